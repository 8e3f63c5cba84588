//! Filters of routes.

use super::super::route::{
    HeaderModifier, HttpRouteFilter, NamedValue, PathModifier, RequestMirror, RequestRedirect,
};
use super::route::{path_value, service};
use super::{Checked, count, dns_name, fault, header_value, token, twice};

const MAX_FILTERS: usize = 16;
const MAX_HEADERS: usize = 16;
const REDIRECTS: [u16; 5] = [301, 302, 303, 307, 308];
/// Headers of one connection (RFC 9110 section 7.6.1), of framing, and of the destination: not for
/// routes to write.
const RESERVED: [&str; 12] = [
    "host",
    "connection",
    "content-length",
    "expect",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Headers by which sidecars speak to each other.
const MESH_PREFIX: &str = "x-mesh-";
/// The header by which the mesh tells an application who calls.
const CLIENT_CERT: &str = "x-forwarded-client-cert";

/// Whether a route may change a header: it is neither of the connection, nor of framing, nor the
/// mesh's own, however that is spelled: applications behind CGI-like interfaces read `_` as `-`.
pub(in crate::resource) fn is_changeable(name: &str) -> bool {
    let plain = name.to_ascii_lowercase().replace('_', "-");
    let mesh = plain.starts_with(MESH_PREFIX) || plain == CLIENT_CERT;
    !mesh && !RESERVED.contains(&name.to_ascii_lowercase().as_str())
}

/// Filters of a rule or of a backend; `prefix`: the rule has one path prefix, which can be replaced.
pub(super) fn all(key: &str, filters: &[HttpRouteFilter], prefix: bool) -> Checked {
    count(key, filters.len(), 0, MAX_FILTERS)?;
    let same = |a: &HttpRouteFilter, b: &HttpRouteFilter| {
        let repeatable = matches!(a, HttpRouteFilter::RequestMirror { .. });
        !repeatable && std::mem::discriminant(a) == std::mem::discriminant(b)
    };
    if let Some(index) = twice(filters, same) {
        let why = format!("{} appears twice; only RequestMirror may", kind(&filters[index]));
        return fault(format!("{key}[{index}].type"), why);
    }
    for (index, filter) in filters.iter().enumerate() {
        one(&format!("{key}[{index}]"), filter, prefix)?;
    }
    Ok(())
}

/// A redirect leaves nothing to send or rewrite.
pub(super) fn redirect_alone(key: &str, filters: &[HttpRouteFilter], backends: bool) -> Checked {
    let at = |wanted: &str| filters.iter().position(|filter| kind(filter) == wanted);
    let Some(redirect) = at("RequestRedirect") else { return Ok(()) };
    if let Some(rewrite) = at("URLRewrite") {
        return fault(format!("{key}[{rewrite}].type"), "URLRewrite has no effect beside RequestRedirect");
    }
    if backends {
        let why = "RequestRedirect leaves nothing to send; remove the filter or the rule's `backendRefs`";
        return fault(format!("{key}[{redirect}].type"), why);
    }
    Ok(())
}

pub(super) fn of_grpc(key: &str, filters: &[HttpRouteFilter]) -> Checked {
    let other = |filter: &HttpRouteFilter| {
        ["RequestRedirect", "URLRewrite"].into_iter().find(|name| *name == kind(filter))
    };
    let found = filters.iter().enumerate().find_map(|(index, filter)| Some((index, other(filter)?)));
    let Some((index, name)) = found else { return Ok(()) };
    let why = "is not for a GRPCRoute; use RequestHeaderModifier, ResponseHeaderModifier or RequestMirror";
    fault(format!("{key}[{index}].type"), format!("{name} {why}"))
}

pub(super) fn of_backend(key: &str, filters: &[HttpRouteFilter]) -> Checked {
    match filters.iter().position(|filter| matches!(filter, HttpRouteFilter::RequestRedirect { .. })) {
        Some(index) => {
            fault(format!("{key}[{index}].type"), "RequestRedirect is for a rule: a backend is sent to")
        }
        None => Ok(()),
    }
}

fn kind(filter: &HttpRouteFilter) -> &'static str {
    match filter {
        HttpRouteFilter::RequestHeaderModifier { .. } => "RequestHeaderModifier",
        HttpRouteFilter::ResponseHeaderModifier { .. } => "ResponseHeaderModifier",
        HttpRouteFilter::RequestRedirect { .. } => "RequestRedirect",
        HttpRouteFilter::UrlRewrite { .. } => "URLRewrite",
        HttpRouteFilter::RequestMirror { .. } => "RequestMirror",
    }
}

fn one(key: &str, filter: &HttpRouteFilter, prefix: bool) -> Checked {
    match filter {
        HttpRouteFilter::RequestHeaderModifier { modifier: found } => {
            modifier(&format!("{key}.requestHeaderModifier"), found)
        }
        HttpRouteFilter::ResponseHeaderModifier { modifier: found } => {
            modifier(&format!("{key}.responseHeaderModifier"), found)
        }
        HttpRouteFilter::RequestRedirect { redirect: found } => {
            redirect(&format!("{key}.requestRedirect"), found, prefix)
        }
        HttpRouteFilter::UrlRewrite { rewrite } => {
            let key = format!("{key}.urlRewrite");
            hostname(&key, rewrite.hostname.as_deref())?;
            path(&key, rewrite.path.as_ref(), prefix)
        }
        HttpRouteFilter::RequestMirror { mirror: found } => mirror(&format!("{key}.requestMirror"), found),
    }
}

fn modifier(key: &str, modifier: &HeaderModifier) -> Checked {
    for (field, list) in [("set", &modifier.set), ("add", &modifier.add)] {
        let key = format!("{key}.{field}");
        count(&key, list.len(), 0, MAX_HEADERS)?;
        for (index, NamedValue { name, value }) in list.iter().enumerate() {
            header(&format!("{key}[{index}].name"), name)?;
            header_value(&format!("{key}[{index}].value"), value)?;
        }
        if let Some(index) = twice(list, |a, b| a.name.eq_ignore_ascii_case(&b.name)) {
            return fault(format!("{key}[{index}].name"), "appears twice");
        }
    }
    let key = format!("{key}.remove");
    count(&key, modifier.remove.len(), 0, MAX_HEADERS)?;
    for (index, name) in modifier.remove.iter().enumerate() {
        header(&format!("{key}[{index}]"), name)?;
    }
    match twice(&modifier.remove, |a, b| a.eq_ignore_ascii_case(b)) {
        Some(index) => fault(format!("{key}[{index}]"), "appears twice"),
        None => Ok(()),
    }
}

/// A header a route may change.
fn header(key: &str, name: &str) -> Checked {
    token(key, name)?;
    if !is_changeable(name) {
        let why = "is not for a route to change: it belongs to the connection or to the mesh";
        return fault(key, format!("{name:?} {why}"));
    }
    Ok(())
}

fn redirect(key: &str, redirect: &RequestRedirect, prefix: bool) -> Checked {
    hostname(key, redirect.hostname.as_deref())?;
    path(key, redirect.path.as_ref(), prefix)?;
    match redirect.status_code {
        Some(status) if !REDIRECTS.contains(&status) => fault(
            format!("{key}.statusCode"),
            format!("{status} is out of range; use 301, 302, 303, 307 or 308"),
        ),
        _ => Ok(()),
    }
}

fn hostname(key: &str, name: Option<&str>) -> Checked {
    name.map_or(Ok(()), |name| dns_name(&format!("{key}.hostname"), name))
}

fn path(key: &str, path: Option<&PathModifier>, prefix: bool) -> Checked {
    match path {
        None => Ok(()),
        Some(PathModifier::ReplaceFullPath { value }) => {
            path_value(&format!("{key}.path.replaceFullPath"), value)
        }
        Some(PathModifier::ReplacePrefixMatch { .. }) if !prefix => {
            let why =
                "ReplacePrefixMatch needs exactly one match in the rule, with a path of type PathPrefix";
            fault(format!("{key}.path.type"), why)
        }
        Some(PathModifier::ReplacePrefixMatch { value }) if value.is_empty() => Ok(()),
        Some(PathModifier::ReplacePrefixMatch { value }) => {
            path_value(&format!("{key}.path.replacePrefixMatch"), value)
        }
    }
}

fn mirror(key: &str, mirror: &RequestMirror) -> Checked {
    let backend = &mirror.backend_ref;
    service(&format!("{key}.backendRef"), &backend.group, &backend.kind, backend.port)?;
    let Some(fraction) = mirror.fraction else { return Ok(()) };
    if mirror.percent.is_some() {
        return fault(format!("{key}.fraction"), "says the same as `percent`; use one of them");
    }
    if fraction.numerator > fraction.denominator {
        let why = format!("{} is out of range; use 0 to {}", fraction.numerator, fraction.denominator);
        return fault(format!("{key}.fraction.numerator"), why);
    }
    Ok(())
}
