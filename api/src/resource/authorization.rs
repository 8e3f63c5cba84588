//! `AuthorizationPolicy`: who may call a service, decided at the service's own sidecar.

use serde::{Deserialize, Serialize};

use super::policy::TargetRef;

/// What an `AuthorizationPolicy` says.
///
/// A request is denied when a policy of action `Deny` matches it; else, when there are policies of
/// action `Allow` for the service, allowed only if one of them matches; else allowed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationPolicySpec {
    /// Services of its own namespace; every one of them if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// Default `Allow`.
    #[serde(default)]
    pub action: Action,
    /// Any one of these; with none nothing matches, so that `Allow` without rules allows nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<AuthorizationRule>,
}

/// What happens to what matches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// It may call.
    #[default]
    Allow,
    /// It may not, whatever allows it.
    Deny,
}

/// Conditions that must all hold; one left out holds always.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AuthorizationRule {
    /// The caller's SPIFFE id is one of these; `*` at the end stands for anything.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub identities: Vec<String>,
    /// The caller's namespace is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub namespaces: Vec<String>,
    /// The service's port, as callers name it, is one of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<u16>,
}
