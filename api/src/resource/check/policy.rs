//! `TrafficPolicy` and the defaults of `MeshConfig`.

use super::super::ResourceName;
use super::super::fields::TRAFFIC_POLICY;
use super::super::policy::{Algorithm, Faults, LoadBalancing, TargetRef, TrafficPolicySpec};
use super::super::value::Span;
use super::super::{GATEWAY_API_VERSION, NOT_SUPPORTED};
use super::{Checked, core_group, count, dns_name, fault, label, ranges, route, token, twice};

/// Most targets of one policy: the Gateway API's limit for policies.
pub(super) const MAX_TARGETS: usize = 16;

/// Sections and settings a policy on a route may have, for they concern single requests.
const ON_ROUTES: [&str; 8] = [
    "timeouts.request",
    "timeouts.perTry",
    "timeouts.streamIdle",
    "retries",
    "hedging",
    "faults",
    "limits.rate",
    "limits.ratePerCaller",
];

pub(crate) fn traffic_policy(name: &ResourceName, spec: &TrafficPolicySpec) -> Checked {
    count("targetRefs", spec.target_refs.len(), 1, MAX_TARGETS)?;
    for (index, target) in spec.target_refs.iter().enumerate() {
        target_ref(&format!("targetRefs[{index}]"), &name.namespace, target)?;
    }
    if let Some(index) = twice(&spec.target_refs, |a, b| a == b) {
        return fault(format!("targetRefs[{index}]"), "appears twice");
    }
    settings(spec)?;
    if spec.target_refs.iter().any(|target| target.kind != "Service") {
        on_route(spec)?;
    }
    let foreign = |target: &TargetRef| target.namespace.as_ref().is_some_and(|own| *own != name.namespace);
    if spec.target_refs.iter().any(foreign) { of_consumer(spec) } else { Ok(()) }
}

pub(crate) fn defaults(spec: &TrafficPolicySpec) -> Checked {
    if !spec.target_refs.is_empty() {
        return fault("targetRefs", "defaults govern the whole mesh; remove the key");
    }
    settings(spec)
}

fn target_ref(key: &str, own: &str, target: &TargetRef) -> Checked {
    let at = |field: &str| format!("{key}.{field}");
    let namespace = target.namespace.as_deref().unwrap_or(own);
    label(&at("namespace"), namespace)?;
    match target.kind.as_str() {
        "Service" => {
            core_group(at("group"), &target.group)?;
            label(&at("name"), &target.name)?;
            target.section_name.as_deref().map_or(Ok(()), |section| port(&at("sectionName"), section))
        }
        "HTTPRoute" | "GRPCRoute" => {
            let group = GATEWAY_API_VERSION.split('/').next().unwrap_or_default();
            if !["", group].contains(&target.group.as_str()) {
                return fault(at("group"), format!("{:?} is {NOT_SUPPORTED}; use {group}", target.group));
            }
            dns_name(&at("name"), &target.name)?;
            if namespace != own {
                let why = "a route is governed by policies of its own namespace alone; remove the key";
                return fault(at("namespace"), why);
            }
            target.section_name.as_deref().map_or(Ok(()), |rule| label(&at("sectionName"), rule))
        }
        other => {
            let known = "Service, HTTPRoute or GRPCRoute";
            fault(at("kind"), format!("{other:?} is {NOT_SUPPORTED}; use {known}"))
        }
    }
}

/// A port by number or name.
fn port(key: &str, section: &str) -> Checked {
    if !section.is_empty() && section.bytes().all(|b| b.is_ascii_digit()) {
        return match section.parse::<u16>() {
            Ok(1..) => Ok(()),
            _ => fault(key, format!("{section} is out of range; use 1 to 65535")),
        };
    }
    label(key, section)
}

/// Everything but the targets.
fn settings(spec: &TrafficPolicySpec) -> Checked {
    ranges(TRAFFIC_POLICY, spec)?;
    if let Some(timeouts) = &spec.timeouts {
        at_most(["timeouts.perTry", "timeouts.request"], timeouts.per_try, timeouts.request)?;
    }
    if let Some(retries) = &spec.retries {
        at_most(["retries.backoffBase", "retries.backoffMax"], retries.backoff_base, retries.backoff_max)?;
    }
    if let Some(breaker) = &spec.circuit_breaker {
        let keys = ["circuitBreaker.ejectionBase", "circuitBreaker.ejectionMax"];
        at_most(keys, breaker.ejection_base, breaker.ejection_max)?;
    }
    spec.load_balancing.as_ref().map_or(Ok(()), load_balancing)?;
    spec.faults.as_ref().map_or(Ok(()), faults)
}

/// That one duration is not above another; 0 is none and bounds nothing.
pub(super) fn at_most(keys: [&str; 2], found: Option<Span>, most: Option<Span>) -> Checked {
    let (Some(found), Some(most)) = (found, most) else { return Ok(()) };
    if most.0.is_zero() || found <= most {
        return Ok(());
    }
    let (_, name) = keys[1].rsplit_once('.').unwrap_or(("", keys[1]));
    let most = outrigger_common::config::format_duration(most.0);
    let found = outrigger_common::config::format_duration(found.0);
    fault(keys[0], format!("{found} is out of range; use at most {name}, {most}"))
}

fn load_balancing(balancing: &LoadBalancing) -> Checked {
    let hashes = matches!(balancing.algorithm, Some(Algorithm::RingHash | Algorithm::Maglev));
    let Some(hash) = &balancing.hash else {
        return if hashes {
            fault("loadBalancing.algorithm", "needs `hash` beside it, which says what is hashed")
        } else {
            Ok(())
        };
    };
    if !hashes {
        let why = "has no effect: only the algorithms ringHash and maglev, beside it, hash; remove the key";
        return fault("loadBalancing.hash", why);
    }
    let said = [hash.header.is_some(), hash.cookie.is_some(), hash.source];
    if said.into_iter().filter(|said| *said).count() != 1 {
        return fault("loadBalancing.hash", "use exactly one of header, cookie and source");
    }
    hash.header.as_deref().map_or(Ok(()), |name| token("loadBalancing.hash.header", name))?;
    hash.cookie.as_deref().map_or(Ok(()), |name| token("loadBalancing.hash.cookie", name))
}

fn faults(faults: &Faults) -> Checked {
    count("faults.matches", faults.matches.len(), 0, route::MAX_MATCHES)?;
    for (index, found) in faults.matches.iter().enumerate() {
        route::http_match(&format!("faults.matches[{index}]"), found)?;
    }
    Ok(())
}

/// The settings of a policy, by dotted key.
fn said(spec: &TrafficPolicySpec) -> Vec<String> {
    super::super::policy::effective(&[super::super::policy::Layer { origin: "", spec }])
        .origins
        .into_keys()
        .collect()
}

fn on_route(spec: &TrafficPolicySpec) -> Checked {
    let allowed = |key: &str| {
        ON_ROUTES
            .iter()
            .any(|part| key.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.')))
    };
    match said(spec).into_iter().find(|key| !allowed(key)) {
        Some(key) => {
            let allowed = ON_ROUTES.join(", ");
            fault(
                key,
                format!(
                    "not for a route, whose requests share connections and endpoints with others; attach it to the Service. A route may have {allowed}"
                ),
            )
        }
        None => Ok(()),
    }
}

fn of_consumer(spec: &TrafficPolicySpec) -> Checked {
    let server = |key: &String| key.starts_with("limits.") || key == "retryBudget.serverPercent";
    match said(spec).into_iter().find(server) {
        Some(key) => fault(
            key,
            "kept by the service's own sidecars, so not for its callers in another namespace to say; put it into a policy of the service's namespace",
        ),
        None => Ok(()),
    }
}
