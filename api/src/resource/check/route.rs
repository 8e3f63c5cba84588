//! `HTTPRoute` and `GRPCRoute`. Limits and rules are those of the Gateway API's version 1.

use super::super::fields::{GRPC_ROUTE, HTTP_ROUTE};
use super::super::pattern::compile_regex;
use super::super::route::{
    GrpcMethodMatch, GrpcRouteSpec, HttpBackendRef, HttpRouteFilter, HttpRouteMatch, HttpRouteRule,
    HttpRouteSpec, HttpRouteTimeouts, NamedMatch, ParentRef, PathMatch, PathMatchKind, ValueMatchKind,
};
use super::policy::at_most;
use super::{Checked, core_group, count, fault, filter, header_value, label, ranges, token, twice};

const MAX_PARENTS: usize = 32;
const MAX_RULES: usize = 16;
/// Most matches of a rule, and of faults.
pub(super) const MAX_MATCHES: usize = 64;
const MAX_MATCHES_IN_ALL: usize = 128;
const MAX_CONDITIONS: usize = 16;
const MAX_BACKENDS: usize = 16;
/// Longest path and query value, in bytes.
const MAX_PATH: usize = 1024;
const MAX_QUERY_NAME: usize = 256;

pub(crate) fn http_route(spec: &HttpRouteSpec) -> Checked {
    parents(&spec.parent_refs)?;
    ranges(HTTP_ROUTE, spec)?;
    rule_names(spec.rules.iter().map(|rule| rule.name.as_deref()))?;
    match_counts(spec.rules.iter().map(|rule| rule.matches.len()))?;
    for (index, rule) in spec.rules.iter().enumerate() {
        http_rule(&format!("rules[{index}]"), rule)?;
    }
    Ok(())
}

pub(crate) fn grpc_route(spec: &GrpcRouteSpec) -> Checked {
    parents(&spec.parent_refs)?;
    ranges(GRPC_ROUTE, spec)?;
    rule_names(spec.rules.iter().map(|rule| rule.name.as_deref()))?;
    match_counts(spec.rules.iter().map(|rule| rule.matches.len()))?;
    for (index, rule) in spec.rules.iter().enumerate() {
        let key = format!("rules[{index}]");
        for (number, found) in rule.matches.iter().enumerate() {
            let key = format!("{key}.matches[{number}]");
            found.method.as_ref().map_or(Ok(()), |method| grpc_method(&format!("{key}.method"), method))?;
            headers(&format!("{key}.headers"), &found.headers)?;
        }
        filter::of_grpc(&format!("{key}.filters"), &rule.filters)?;
        filter::all(&format!("{key}.filters"), &rule.filters, false)?;
        backends(&key, rule.backend_refs.as_deref(), |key, filters| {
            filter::of_grpc(key, filters)?;
            filter::all(key, filters, false)
        })?;
    }
    Ok(())
}

fn parents(parents: &[ParentRef]) -> Checked {
    count("parentRefs", parents.len(), 1, MAX_PARENTS)?;
    for (index, parent) in parents.iter().enumerate() {
        let at = |field: &str| format!("parentRefs[{index}].{field}");
        if parent.kind != "Service" {
            let why =
                "is not supported by this version: a mesh's routes are attached to Services; use Service";
            return fault(at("kind"), format!("{:?} {why}", parent.kind));
        }
        core_group(at("group"), &parent.group)?;
        if let Some(name) = &parent.section_name {
            label(&at("sectionName"), name)?;
            if parent.port.is_some() {
                return fault(at("sectionName"), "names a port by name, `port` by number; use one of them");
            }
        }
    }
    match twice(parents, |a, b| a == b) {
        Some(index) => fault(format!("parentRefs[{index}]"), "appears twice"),
        None => Ok(()),
    }
}

fn rule_names<'a>(names: impl Iterator<Item = Option<&'a str>>) -> Checked {
    let names: Vec<_> = names.collect();
    count("rules", names.len(), 1, MAX_RULES)?;
    match twice(&names, |a, b| a.is_some() && a == b) {
        Some(index) => {
            let name = names[index].unwrap_or_default();
            fault(format!("rules[{index}].name"), format!("{name:?} appears twice"))
        }
        None => Ok(()),
    }
}

fn match_counts(counts: impl Iterator<Item = usize>) -> Checked {
    let mut sum = 0;
    for (index, found) in counts.enumerate() {
        count(&format!("rules[{index}].matches"), found, 0, MAX_MATCHES)?;
        sum += found;
    }
    if sum > MAX_MATCHES_IN_ALL {
        let why =
            format!("{sum} matches in all rules together are too many; give at most {MAX_MATCHES_IN_ALL}");
        return fault("rules", why);
    }
    Ok(())
}

fn http_rule(key: &str, rule: &HttpRouteRule) -> Checked {
    for (number, found) in rule.matches.iter().enumerate() {
        http_match(&format!("{key}.matches[{number}]"), found)?;
    }
    let prefix = one_prefix(&rule.matches);
    let filters = format!("{key}.filters");
    filter::all(&filters, &rule.filters, prefix)?;
    filter::redirect_alone(&filters, &rule.filters, rule.backend_refs.is_some())?;
    backends(key, rule.backend_refs.as_deref(), |key, filters| {
        filter::of_backend(key, filters)?;
        filter::all(key, filters, prefix)
    })?;
    rule.timeouts.as_ref().map_or(Ok(()), |found| timeouts(&format!("{key}.timeouts"), found))
}

fn timeouts(key: &str, timeouts: &HttpRouteTimeouts) -> Checked {
    let keys = [format!("{key}.backendRequest"), format!("{key}.request")];
    at_most([&keys[0], &keys[1]], timeouts.backend_request, timeouts.request)
}

/// Whether a rule has one prefix to replace. A match without a path, and a rule without matches, match
/// the prefix `/`.
fn one_prefix(matches: &[HttpRouteMatch]) -> bool {
    let is_prefix = |found: &HttpRouteMatch| {
        found.path.as_ref().is_none_or(|path| path.kind == PathMatchKind::PathPrefix)
    };
    matches.len() <= 1 && matches.iter().all(is_prefix)
}

/// One match of an `HTTPRoute`, or of the faults of a policy.
pub(super) fn http_match(key: &str, found: &HttpRouteMatch) -> Checked {
    found.path.as_ref().map_or(Ok(()), |path| path_match(&format!("{key}.path.value"), path))?;
    headers(&format!("{key}.headers"), &found.headers)?;
    let queries = format!("{key}.queryParams");
    count(&queries, found.query_params.len(), 0, MAX_CONDITIONS)?;
    for (index, query) in found.query_params.iter().enumerate() {
        if !(1..=MAX_QUERY_NAME).contains(&query.name.len()) {
            let why = format!("{} bytes are out of range; use 1 to {MAX_QUERY_NAME}", query.name.len());
            return fault(format!("{queries}[{index}].name"), why);
        }
        let value = format!("{queries}[{index}].value");
        match query.kind {
            ValueMatchKind::RegularExpression => regex(&value, &query.value)?,
            ValueMatchKind::Exact if (1..=MAX_PATH).contains(&query.value.len()) => {}
            ValueMatchKind::Exact => {
                let why = format!("{} bytes are out of range; use 1 to {MAX_PATH}", query.value.len());
                return fault(value, why);
            }
        }
    }
    match twice(&found.query_params, |a, b| a.name == b.name) {
        Some(index) => fault(format!("{queries}[{index}].name"), "appears twice"),
        None => Ok(()),
    }
}

fn headers(key: &str, headers: &[NamedMatch]) -> Checked {
    count(key, headers.len(), 0, MAX_CONDITIONS)?;
    for (index, header) in headers.iter().enumerate() {
        token(&format!("{key}[{index}].name"), &header.name)?;
        let value = format!("{key}[{index}].value");
        match header.kind {
            ValueMatchKind::RegularExpression => regex(&value, &header.value)?,
            ValueMatchKind::Exact => header_value(&value, &header.value)?,
        }
    }
    match twice(headers, |a, b| a.name.eq_ignore_ascii_case(&b.name)) {
        Some(index) => fault(format!("{key}[{index}].name"), "appears twice"),
        None => Ok(()),
    }
}

fn path_match(key: &str, path: &PathMatch) -> Checked {
    match path.kind {
        PathMatchKind::RegularExpression => regex(key, &path.value),
        PathMatchKind::Exact | PathMatchKind::PathPrefix => path_value(key, &path.value),
    }
}

/// A path as requests have it: absolute, normal, encoded (RFC 3986 section 3.3).
pub(super) fn path_value(key: &str, path: &str) -> Checked {
    let refuse = |why: &str| fault(key, format!("{path:?} is not a path requests have: {why}"));
    if !path.starts_with('/') {
        return refuse("begin with '/'");
    }
    if path.len() > MAX_PATH {
        return refuse(&format!("use at most {MAX_PATH} bytes"));
    }
    let lower = path.to_ascii_lowercase();
    for part in ["//", "/./", "/../", "%2f", "#"] {
        if lower.contains(part) {
            return refuse(&format!("it has {part:?} in it"));
        }
    }
    if lower.ends_with("/.") || lower.ends_with("/..") {
        return refuse("it ends with '.' or '..'");
    }
    let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/".contains(&b);
    let mut rest = path.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = match (first, tail) {
            (b'%', [high, low, tail @ ..]) if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => tail,
            (other, tail) if plain(other) => tail,
            _ => return refuse("encode other characters with '%' and two digits"),
        };
    }
    Ok(())
}

fn regex(key: &str, pattern: &str) -> Checked {
    if pattern.is_empty() {
        return fault(key, "empty; give a regular expression");
    }
    compile_regex(pattern).map(drop).or_else(|message| fault(key, message))
}

fn grpc_method(key: &str, found: &GrpcMethodMatch) -> Checked {
    if found.service.is_none() && found.method.is_none() {
        return fault(key, "says nothing; give service, method or both");
    }
    let word = |text: &str| {
        let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic() || b == b'_');
        first && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
    };
    for (field, value, dots) in [("service", &found.service, true), ("method", &found.method, false)] {
        let (key, Some(value)) = (format!("{key}.{field}"), value) else { continue };
        if found.kind == ValueMatchKind::RegularExpression {
            regex(&key, value)?;
            continue;
        }
        let valid = if dots { value.split('.').all(word) } else { word(value) };
        if !valid || value.len() > MAX_PATH {
            return fault(key, format!("{value:?} is not a name of gRPC, such as shop.v1.Orders or Create"));
        }
    }
    Ok(())
}

fn backends(
    rule: &str,
    backends: Option<&[HttpBackendRef]>,
    filters: impl Fn(&str, &[HttpRouteFilter]) -> Checked,
) -> Checked {
    let Some(backends) = backends else { return Ok(()) };
    let list = format!("{rule}.backendRefs");
    if backends.is_empty() {
        return fault(list, "empty; leave the key out to send to the Service itself");
    }
    count(&list, backends.len(), 1, MAX_BACKENDS)?;
    for (index, backend) in backends.iter().enumerate() {
        let key = format!("{list}[{index}]");
        service(&key, &backend.group, &backend.kind, backend.port)?;
        filters(&format!("{key}.filters"), &backend.filters)?;
    }
    Ok(())
}

/// A Service that requests go to.
pub(super) fn service(key: &str, group: &str, kind: &str, port: Option<u16>) -> Checked {
    if kind != "Service" {
        return fault(
            format!("{key}.kind"),
            format!("{kind:?} is not supported by this version; use Service"),
        );
    }
    core_group(format!("{key}.group"), group)?;
    match port {
        None => fault(format!("{key}.port"), "missing; a Service is sent to at a port, 1 to 65535"),
        Some(_) => Ok(()),
    }
}
