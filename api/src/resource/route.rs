//! `HTTPRoute` and `GRPCRoute` of the Gateway API, version 1, attached to Services: the part a mesh
//! has a use for. Field names and defaults are the Gateway API's.

use serde::{Deserialize, Serialize};

use self::raw::{RawFilter, RawPathModifier};
use super::value::Span;

mod raw;

/// Whether a route may change a header of this name: the check of filters, for those who apply them.
pub fn is_changeable_header(name: &str) -> bool {
    super::check::filter::is_changeable(name)
}

/// What an `HTTPRoute` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpRouteSpec {
    /// The Services whose calls it governs: at least one.
    pub parent_refs: Vec<ParentRef>,
    /// Rules; one that matches everything if left out.
    #[serde(default = "one_rule")]
    pub rules: Vec<HttpRouteRule>,
}

/// What a `GRPCRoute` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GrpcRouteSpec {
    /// The Services whose calls it governs: at least one.
    pub parent_refs: Vec<ParentRef>,
    /// Rules; one that matches everything if left out.
    #[serde(default = "one_grpc_rule")]
    pub rules: Vec<GrpcRouteRule>,
}

fn one_rule() -> Vec<HttpRouteRule> {
    vec![HttpRouteRule::default()]
}

fn one_grpc_rule() -> Vec<GrpcRouteRule> {
    vec![GrpcRouteRule::default()]
}

/// A Service whose calls a route governs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ParentRef {
    /// Empty or `core`: the group of Services.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Service`, the default here: there are no Gateways in a mesh.
    #[serde(default = "service", skip_serializing_if = "is_service")]
    pub kind: String,
    /// Namespace of the Service: the route's own if left out. A route of another namespace than the
    /// Service's governs the calls made from the route's namespace alone (a consumer route).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Name of the Service.
    pub name: String,
    /// Name of a port of the Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// Number of a port of the Service; all of them if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

fn service() -> String {
    "Service".to_owned()
}

fn is_service(kind: &String) -> bool {
    kind == "Service"
}

/// One rule: what it matches, what it changes, where it sends.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpRouteRule {
    /// A DNS label, for policies, metrics and spans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any one of these; everything if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpRouteMatch>,
    /// Applied in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpRouteFilter>,
    /// Where requests go, by weight. None: to the Service itself, unless a filter redirects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_refs: Option<Vec<HttpBackendRef>>,
    /// Limits in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<HttpRouteTimeouts>,
    /// What is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<HttpRouteRetry>,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpRouteMatch {
    /// Any path if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathMatch>,
    /// All of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedMatch>,
    /// All of these.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub query_params: Vec<NamedMatch>,
    /// Such as `GET`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}

/// How a path is compared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct PathMatch {
    /// Default `PathPrefix`.
    #[serde(rename = "type", default)]
    pub kind: PathMatchKind,
    /// Begins with `/` unless it is a regular expression. Default `/`.
    #[serde(default = "root")]
    pub value: String,
}

fn root() -> String {
    "/".to_owned()
}

/// The ways to compare a path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum PathMatchKind {
    /// All of it.
    Exact,
    /// Whole elements at its start.
    #[default]
    PathPrefix,
    /// A regular expression that matches all of it.
    RegularExpression,
}

/// A header or query parameter and the value it must have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct NamedMatch {
    /// Default `Exact`.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchKind,
    /// Case does not matter in header names.
    pub name: String,
    /// What it must be.
    pub value: String,
}

/// The ways to compare a value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ValueMatchKind {
    /// All of it.
    #[default]
    Exact,
    /// A regular expression that matches all of it.
    RegularExpression,
}

/// A change of the request or response.
///
/// In YAML `type` names it, and the key of the same name in camel case says what it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "RawFilter", into = "RawFilter")]
pub enum HttpRouteFilter {
    /// Headers of the request.
    RequestHeaderModifier {
        /// Which.
        modifier: HeaderModifier,
    },
    /// Headers of the response.
    ResponseHeaderModifier {
        /// Which.
        modifier: HeaderModifier,
    },
    /// A redirect instead of a backend.
    RequestRedirect {
        /// Where to.
        redirect: RequestRedirect,
    },
    /// Another host or path for the backend: `URLRewrite`.
    UrlRewrite {
        /// Which.
        rewrite: UrlRewrite,
    },
    /// A copy of the request elsewhere, whose answer nobody waits for.
    RequestMirror {
        /// Where to.
        mirror: RequestMirror,
    },
}

/// Headers set, added and removed, in this order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HeaderModifier {
    /// Replaced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub set: Vec<NamedValue>,
    /// Appended.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<NamedValue>,
    /// Taken out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub remove: Vec<String>,
}

/// A header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NamedValue {
    /// Its name.
    pub name: String,
    /// Its value.
    pub value: String,
}

/// Where a redirect leads; what is left out stays as it is in the request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestRedirect {
    /// `http` or `https`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<String>,
    /// A DNS name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
    /// If left out: the scheme's own where a scheme is given, else the request's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// 301, 302, 303, 307 or 308; default 302.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
}

/// What the backend sees instead.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct UrlRewrite {
    /// The host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// The path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<PathModifier>,
}

/// Another path.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "RawPathModifier", into = "RawPathModifier")]
pub enum PathModifier {
    /// All of it.
    ReplaceFullPath {
        /// The new path.
        value: String,
    },
    /// What a `PathPrefix` matched.
    ReplacePrefixMatch {
        /// In its place.
        value: String,
    },
}

/// Where copies go, and how many.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RequestMirror {
    /// The Service.
    pub backend_ref: BackendObjectRef,
    /// Share of the requests, 0 to 100; default 100. Not together with `fraction`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u8>,
    /// The same as a fraction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fraction: Option<Fraction>,
}

/// `numerator` of `denominator`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fraction {
    /// At most the denominator.
    pub numerator: u32,
    /// Default 100.
    #[serde(default = "hundred")]
    pub denominator: u32,
}

fn hundred() -> u32 {
    100
}

/// A Service and its port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct BackendObjectRef {
    /// Empty or `core`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Service`.
    #[serde(default = "service", skip_serializing_if = "is_service")]
    pub kind: String,
    /// The Service's name.
    pub name: String,
    /// Its namespace: the route's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its port; needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// A backend and its share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpBackendRef {
    /// Empty or `core`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Service`.
    #[serde(default = "service", skip_serializing_if = "is_service")]
    pub kind: String,
    /// The Service's name.
    pub name: String,
    /// Its namespace: the route's own if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its port; needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// Share among the backends: 0 to 1000000, default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Applied to requests of this backend alone, after the rule's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpRouteFilter>,
}

fn one() -> u32 {
    1
}

fn is_one(weight: &u32) -> bool {
    *weight == 1
}

/// Limits in time of a rule, as `timeouts.request` and `timeouts.perTry` of a `TrafficPolicy`; a
/// policy attached to the rule wins. `0s` means none.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpRouteTimeouts {
    /// Of the whole request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Span>,
    /// Of one attempt: at most `request`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_request: Option<Span>,
}

/// What is sent again, as `retries` of a `TrafficPolicy`; a policy attached to the rule wins.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HttpRouteRetry {
    /// Statuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub codes: Vec<u16>,
    /// Attempts after the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Pause before the second attempt at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff: Option<Span>,
}

/// One rule of a `GRPCRoute`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GrpcRouteRule {
    /// A DNS label, for policies, metrics and spans.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Any one of these; everything if empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<GrpcRouteMatch>,
    /// Header modifiers and mirrors alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub filters: Vec<HttpRouteFilter>,
    /// As in an `HTTPRoute`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backend_refs: Option<Vec<HttpBackendRef>>,
}

/// Conditions that must all hold.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GrpcRouteMatch {
    /// Any if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<GrpcMethodMatch>,
    /// All of these, in the call's metadata.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<NamedMatch>,
}

/// A gRPC service, a method, or both: at least one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct GrpcMethodMatch {
    /// Default `Exact`.
    #[serde(rename = "type", default)]
    pub kind: ValueMatchKind,
    /// Such as `shop.v1.Orders`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    /// Such as `Create`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
}
