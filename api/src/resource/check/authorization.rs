//! `AuthorizationPolicy`.

use super::super::ResourceName;
use super::super::authorization::AuthorizationPolicySpec;
use super::super::fields::AUTHORIZATION_POLICY;
use super::super::policy::TargetRef;
use super::policy::MAX_TARGETS;
use super::{Checked, core_group, count, fault, label, ranges, twice};

const SCHEME: &str = "spiffe://";
/// Longest SPIFFE id, in bytes (SPIFFE ID specification, section 2.4).
const MAX_ID: usize = 2048;

pub(crate) fn authorization(name: &ResourceName, spec: &AuthorizationPolicySpec) -> Checked {
    count("targetRefs", spec.target_refs.len(), 0, MAX_TARGETS)?;
    for (index, found) in spec.target_refs.iter().enumerate() {
        target(&format!("targetRefs[{index}]"), &name.namespace, found)?;
    }
    if let Some(index) = twice(&spec.target_refs, |a, b| a.name == b.name) {
        return fault(format!("targetRefs[{index}]"), "appears twice");
    }
    ranges(AUTHORIZATION_POLICY, spec)?;
    for (index, rule) in spec.rules.iter().enumerate() {
        for (number, id) in rule.identities.iter().enumerate() {
            identity(&format!("rules[{index}].identities[{number}]"), id)?;
        }
    }
    Ok(())
}

fn target(key: &str, own: &str, target: &TargetRef) -> Checked {
    let at = |field: &str| format!("{key}.{field}");
    if target.kind != "Service" {
        return fault(at("kind"), format!("{:?} is not what is called; use Service", target.kind));
    }
    core_group(at("group"), &target.group)?;
    label(&at("name"), &target.name)?;
    if target.namespace.as_deref().is_some_and(|namespace| namespace != own) {
        let why =
            "who may call a service is for its own namespace to say; remove the key, or put the policy there";
        return fault(at("namespace"), why);
    }
    if target.section_name.is_some() {
        return fault(at("sectionName"), "name ports in `ports` of a rule, by number; remove the key");
    }
    Ok(())
}

/// A SPIFFE id, or the start of one with `*` after it.
fn identity(key: &str, id: &str) -> Checked {
    let (start, any) = id.strip_suffix('*').map_or((id, false), |start| (start, true));
    let rest = start.strip_prefix(SCHEME);
    let part = |b: u8| b.is_ascii_alphanumeric() || b"._-/".contains(&b);
    let valid = rest.is_some_and(|rest| rest.bytes().all(part) && (any || rest.contains('/')));
    if valid && id.len() <= MAX_ID {
        return Ok(());
    }
    fault(
        key,
        format!(
            "{id:?} is not an identity; use {SCHEME} with trust domain and path, such as spiffe://mesh.local/ns/shop/sa/web, or the start of one with '*' at its end"
        ),
    )
}
