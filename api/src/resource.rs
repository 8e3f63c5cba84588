//! The resource kinds of this version, checked: a [`Resource`] that exists is valid.
//!
//! Other kinds of the groups, and fields nothing enforces yet, are refused by name.

pub mod attachment;
pub mod authorization;
mod check;
mod effective;
pub mod fields;
mod pattern;
pub mod policy;
pub mod route;
pub mod value;

use std::collections::HashSet;
use std::net::IpAddr;

use outrigger_common::config::{ConfigError, Origin};
use outrigger_common::name::{ServiceName, check_label};
use serde::{Deserialize, Serialize};

use self::authorization::AuthorizationPolicySpec;
pub use self::pattern::{Regex, compile_regex};
use self::policy::TrafficPolicySpec;
use self::route::{GrpcRouteSpec, HttpRouteSpec};
use crate::v1;

/// Group and version of every kind of our own.
pub const API_VERSION: &str = "outrigger.dev/v1alpha1";
/// Group and version of the Gateway API's routes.
pub const GATEWAY_API_VERSION: &str = "gateway.networking.k8s.io/v1";
/// The one name a `MeshConfig` may have.
pub const MESH_CONFIG_NAME: &str = "default";
/// Share of traces sampled where no `MeshConfig` says otherwise.
pub const DEFAULT_SAMPLING_RATIO: f64 = 0.01;

const NOT_SUPPORTED: &str = "not supported by this version";

/// How an application's port is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Whatever the client turns out to speak: HTTP in its version, else its bytes as they come.
    #[default]
    Auto,
    /// HTTP in the version the client used.
    Http,
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge.
    Http2,
    /// gRPC over HTTP/2.
    Grpc,
    /// Bytes, never looked at.
    Tcp,
}

impl Protocol {
    /// As configuration files and documents write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Http => "http",
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Grpc => "grpc",
            Self::Tcp => "tcp",
        }
    }
}

impl From<Protocol> for v1::Protocol {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Auto => Self::Unspecified,
            Protocol::Http => Self::Http,
            Protocol::Http1 => Self::Http1,
            Protocol::Http2 => Self::Http2,
            Protocol::Grpc => Self::Grpc,
            Protocol::Tcp => Self::Tcp,
        }
    }
}

impl From<v1::Protocol> for Protocol {
    fn from(protocol: v1::Protocol) -> Self {
        match protocol {
            v1::Protocol::Unspecified => Self::Auto,
            v1::Protocol::Http => Self::Http,
            v1::Protocol::Http1 => Self::Http1,
            v1::Protocol::Http2 => Self::Http2,
            v1::Protocol::Grpc => Self::Grpc,
            v1::Protocol::Tcp => Self::Tcp,
        }
    }
}

/// One port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServicePort {
    /// A DNS label.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// 1 to 65535.
    pub port: u16,
    /// How the application is spoken to.
    #[serde(default)]
    pub protocol: Protocol,
}

/// What a `Service` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// At least one; numbers and names unique.
    pub ports: Vec<ServicePort>,
    /// Virtual addresses, at most [`MAX_ADDRESSES`]: a captured connection to one of them and a port's
    /// number goes to that port.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// Virtual addresses a service may have: two families, in a few networks.
pub const MAX_ADDRESSES: usize = 16;

/// Settings of the whole mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct MeshConfigSpec {
    /// Tracing.
    #[serde(default)]
    pub tracing: Tracing,
    /// What every service's traffic policy starts from; without `targetRefs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<TrafficPolicySpec>,
    /// Whom sidecars let in.
    #[serde(default, skip_serializing_if = "Mtls::is_default")]
    pub mtls: Mtls,
    /// Whether applications may leave the mesh.
    #[serde(default, skip_serializing_if = "Egress::is_default")]
    pub egress: Egress,
}

/// Whom sidecars let in to their applications.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mtls {
    /// Default: strict.
    #[serde(default)]
    pub mode: MtlsMode,
}

/// See [`Mtls`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MtlsMode {
    /// Those alone who prove an identity.
    #[default]
    Strict,
    /// Plaintext that was captured on its way in as well.
    Permissive,
}

/// Whether applications may leave the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Egress {
    /// Default: allow.
    #[serde(default)]
    pub mode: EgressMode,
}

/// What becomes of connections to what is nobody's in the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EgressMode {
    /// They go there as they are.
    #[default]
    Allow,
    /// They are refused.
    Deny,
}

impl Mtls {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl Egress {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

impl From<MtlsMode> for v1::MtlsMode {
    fn from(mode: MtlsMode) -> Self {
        match mode {
            MtlsMode::Strict => Self::Strict,
            MtlsMode::Permissive => Self::Permissive,
        }
    }
}

impl From<v1::MtlsMode> for MtlsMode {
    fn from(mode: v1::MtlsMode) -> Self {
        match mode {
            v1::MtlsMode::Unspecified | v1::MtlsMode::Strict => Self::Strict,
            v1::MtlsMode::Permissive => Self::Permissive,
        }
    }
}

impl From<EgressMode> for v1::EgressMode {
    fn from(mode: EgressMode) -> Self {
        match mode {
            EgressMode::Allow => Self::Allow,
            EgressMode::Deny => Self::Deny,
        }
    }
}

impl From<v1::EgressMode> for EgressMode {
    fn from(mode: v1::EgressMode) -> Self {
        match mode {
            v1::EgressMode::Unspecified | v1::EgressMode::Allow => Self::Allow,
            v1::EgressMode::Deny => Self::Deny,
        }
    }
}

/// Tracing settings of the mesh.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Tracing {
    /// Share of the traces that sidecars start which are sampled: 0 to 1, default 0.01.
    pub sampling_ratio: f64,
}

impl Default for Tracing {
    fn default() -> Self {
        Self { sampling_ratio: DEFAULT_SAMPLING_RATIO }
    }
}

/// A valid resource.
#[derive(Debug, Clone, PartialEq)]
pub enum Resource {
    /// A service and its ports.
    Service {
        /// `name.namespace`.
        name: ServiceName,
        /// Its ports.
        spec: ServiceSpec,
    },
    /// The mesh's settings; one a mesh.
    MeshConfig {
        /// The settings.
        spec: MeshConfigSpec,
    },
    /// How the calls of services are carried.
    TrafficPolicy {
        /// Where it is.
        name: ResourceName,
        /// What it says.
        spec: TrafficPolicySpec,
    },
    /// Who may call services.
    AuthorizationPolicy {
        /// Where it is.
        name: ResourceName,
        /// What it says.
        spec: AuthorizationPolicySpec,
    },
    /// Where HTTP requests go.
    HttpRoute {
        /// Where it is.
        name: ResourceName,
        /// What it says.
        spec: HttpRouteSpec,
    },
    /// Where gRPC calls go.
    GrpcRoute {
        /// Where it is.
        name: ResourceName,
        /// What it says.
        spec: GrpcRouteSpec,
    },
}

/// Namespace and name of a resource that is not a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResourceName {
    /// A DNS label.
    pub namespace: String,
    /// A DNS name (RFC 1123 subdomain), as Kubernetes allows.
    pub name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
struct Document<Spec> {
    api_version: String,
    kind: String,
    metadata: Metadata,
    spec: Spec,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    api_version: Option<String>,
    kind: Option<String>,
}

impl Resource {
    /// The kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Service { .. } => "Service",
            Self::MeshConfig { .. } => "MeshConfig",
            Self::TrafficPolicy { .. } => "TrafficPolicy",
            Self::AuthorizationPolicy { .. } => "AuthorizationPolicy",
            Self::HttpRoute { .. } => "HTTPRoute",
            Self::GrpcRoute { .. } => "GRPCRoute",
        }
    }

    /// The namespace, empty for a kind without one.
    pub fn namespace(&self) -> &str {
        match self {
            Self::Service { name, .. } => name.namespace(),
            Self::MeshConfig { .. } => "",
            Self::TrafficPolicy { name, .. }
            | Self::AuthorizationPolicy { name, .. }
            | Self::HttpRoute { name, .. }
            | Self::GrpcRoute { name, .. } => &name.namespace,
        }
    }

    /// The name within its namespace.
    pub fn name(&self) -> &str {
        match self {
            Self::Service { name, .. } => name.name(),
            Self::MeshConfig { .. } => MESH_CONFIG_NAME,
            Self::TrafficPolicy { name, .. }
            | Self::AuthorizationPolicy { name, .. }
            | Self::HttpRoute { name, .. }
            | Self::GrpcRoute { name, .. } => &name.name,
        }
    }

    /// The document in JSON, as [`Resource::from_json`] reads it.
    pub fn to_json(&self) -> String {
        let metadata = Metadata {
            name: self.name().to_owned(),
            namespace: Some(self.namespace().to_owned()).filter(|namespace| !namespace.is_empty()),
        };
        match self {
            Self::Service { spec, .. } => self.document(metadata, spec),
            Self::MeshConfig { spec } => self.document(metadata, spec),
            Self::TrafficPolicy { spec, .. } => self.document(metadata, spec),
            Self::AuthorizationPolicy { spec, .. } => self.document(metadata, spec),
            Self::HttpRoute { spec, .. } => self.document(metadata, spec),
            Self::GrpcRoute { spec, .. } => self.document(metadata, spec),
        }
    }

    fn document<Spec: Serialize>(&self, metadata: Metadata, spec: &Spec) -> String {
        let (api_version, kind) = (self.api_version().to_owned(), self.kind().to_owned());
        serde_json::to_string(&Document { api_version, kind, metadata, spec })
            .expect("plain data with text keys always serialises")
    }

    /// Group and version of its kind.
    pub fn api_version(&self) -> &'static str {
        match self {
            Self::HttpRoute { .. } | Self::GrpcRoute { .. } => GATEWAY_API_VERSION,
            Self::Service { .. }
            | Self::MeshConfig { .. }
            | Self::TrafficPolicy { .. }
            | Self::AuthorizationPolicy { .. } => API_VERSION,
        }
    }

    /// Reads and checks a document in JSON (which is YAML).
    ///
    /// # Errors
    /// As [`crate::document::parse_yaml`].
    pub fn from_json(json: &str) -> Result<Self, ConfigError> {
        from_origin(&Origin::new(Some("resource".into()), json.to_owned(), Vec::new(), &[]))
    }
}

/// Reads and checks one document.
pub(crate) fn from_origin(origin: &Origin) -> Result<Resource, ConfigError> {
    let envelope: Envelope = origin.load()?;
    let Some(kind) = envelope.kind.as_deref() else {
        return Err(origin.error("kind", format!("missing; this version has {KINDS}")));
    };
    let Some(wanted) = api_version_of(kind) else {
        return Err(origin.error("kind", format!("{kind:?} is {NOT_SUPPORTED}; it has {KINDS}")));
    };
    match envelope.api_version.as_deref() {
        Some(given) if given == wanted => {}
        Some(other) => {
            return Err(origin.error("apiVersion", format!("{other:?} is {NOT_SUPPORTED}; use {wanted}")));
        }
        None => return Err(origin.error("apiVersion", format!("missing; add `apiVersion: {wanted}`"))),
    }
    match kind {
        "Service" => service(origin),
        "MeshConfig" => mesh_config(origin),
        "TrafficPolicy" => {
            let (name, spec) = named(origin, kind)?;
            check::traffic_policy(&name, &spec).map_err(|fault| fault.at(origin, "spec"))?;
            Ok(Resource::TrafficPolicy { name, spec })
        }
        "AuthorizationPolicy" => {
            let (name, spec) = named(origin, kind)?;
            check::authorization(&name, &spec).map_err(|fault| fault.at(origin, "spec"))?;
            Ok(Resource::AuthorizationPolicy { name, spec })
        }
        "HTTPRoute" => {
            let (name, spec) = named(origin, kind)?;
            check::http_route(&spec).map_err(|fault| fault.at(origin, "spec"))?;
            Ok(Resource::HttpRoute { name, spec })
        }
        _ => {
            let (name, spec) = named(origin, kind)?;
            check::grpc_route(&spec).map_err(|fault| fault.at(origin, "spec"))?;
            Ok(Resource::GrpcRoute { name, spec })
        }
    }
}

/// The kinds there are, for people.
const KINDS: &str = "Service, MeshConfig, TrafficPolicy, AuthorizationPolicy, HTTPRoute and GRPCRoute";

fn api_version_of(kind: &str) -> Option<&'static str> {
    match kind {
        "Service" | "MeshConfig" | "TrafficPolicy" | "AuthorizationPolicy" => Some(API_VERSION),
        "HTTPRoute" | "GRPCRoute" => Some(GATEWAY_API_VERSION),
        _ => None,
    }
}

fn named<Spec: serde::de::DeserializeOwned>(
    origin: &Origin,
    kind: &str,
) -> Result<(ResourceName, Spec), ConfigError> {
    let document: Document<Spec> = document(origin, kind)?;
    let namespace = document.metadata.namespace.unwrap_or_else(|| "default".to_owned());
    check_label(&namespace).map_err(|e| origin.error("metadata.namespace", e))?;
    check::subdomain(&document.metadata.name).map_err(|e| origin.error("metadata.name", e))?;
    Ok((ResourceName { namespace, name: document.metadata.name }, document.spec))
}

fn document<Spec: serde::de::DeserializeOwned>(
    origin: &Origin,
    kind: &str,
) -> Result<Document<Spec>, ConfigError> {
    origin.load().map_err(|error| explained(error, kind))
}

/// The parser's words and what they lack: that an unknown name may be known elsewhere, and which
/// values a known one takes.
fn explained(mut error: ConfigError, kind: &str) -> ConfigError {
    if error.message.contains("`hostnames`") {
        error.message.push_str("; routes of a mesh are found by the Service they are attached to");
    }
    if error.message.contains("unknown field") || error.message.contains("unknown variant") {
        error.message.push_str(&format!(" ({NOT_SUPPORTED})"));
    } else if let Some((key, _)) = error.message.split_once(": ")
        && let Some(range) = fields::range_of(kind, key)
    {
        error.message.push_str(&format!("; use {range}"));
    }
    error
}

fn service(origin: &Origin) -> Result<Resource, ConfigError> {
    let document: Document<ServiceSpec> = document(origin, "Service")?;
    let namespace = document.metadata.namespace.as_deref().unwrap_or("default");
    check_label(namespace).map_err(|e| origin.error("metadata.namespace", e))?;
    let name =
        ServiceName::new(namespace, &document.metadata.name).map_err(|e| origin.error("metadata.name", e))?;
    if document.spec.ports.is_empty() {
        return Err(origin.error("spec.ports", "a service has at least one port"));
    }
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    for (index, port) in document.spec.ports.iter().enumerate() {
        let key = |field| format!("spec.ports[{index}].{field}");
        if port.port == 0 {
            return Err(origin.error(&key("port"), "0 is not a port; use 1 to 65535"));
        }
        if !numbers.insert(port.port) {
            return Err(origin.error(&key("port"), format!("{} appears twice", port.port)));
        }
        if let Some(name) = &port.name {
            check_label(name).map_err(|e| origin.error(&key("name"), e))?;
            if !names.insert(name) {
                return Err(origin.error(&key("name"), format!("{name:?} appears twice")));
            }
        }
    }
    check::addresses(&document.spec.addresses).map_err(|fault| fault.at(origin, "spec"))?;
    Ok(Resource::Service { name, spec: document.spec })
}

fn mesh_config(origin: &Origin) -> Result<Resource, ConfigError> {
    let document: Document<MeshConfigSpec> = document(origin, "MeshConfig")?;
    if document.metadata.name != MESH_CONFIG_NAME {
        return Err(origin.error(
            "metadata.name",
            format!(
                "{:?} has no effect: a mesh has one MeshConfig, named {MESH_CONFIG_NAME}",
                document.metadata.name
            ),
        ));
    }
    if document.metadata.namespace.is_some() {
        return Err(origin.error("metadata.namespace", "a MeshConfig has no namespace; remove the key"));
    }
    let ratio = document.spec.tracing.sampling_ratio;
    if !(0.0..=1.0).contains(&ratio) {
        return Err(
            origin.error("spec.tracing.samplingRatio", format!("{ratio} is out of range; use 0 to 1"))
        );
    }
    if let Some(spec) = &document.spec.defaults {
        check::defaults(spec).map_err(|fault| fault.at(origin, "spec.defaults"))?;
    }
    Ok(Resource::MeshConfig { spec: document.spec })
}

#[cfg(test)]
mod tests;
