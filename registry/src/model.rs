//! What the registry keeps in its store: the layout of the keys and the rows under them, in JSON.
//!
//! | key | row |
//! |---|---|
//! | `ca/root` | [`RootRow`] |
//! | `token/<id>` | [`TokenRow`] |
//! | `grant/<namespace>/<account>/<token>` | [`GrantRow`]: what that identity may register, having joined with that token |
//! | `resource/<kind>/<namespace>/<name>`, `resource/MeshConfig/default` | the resource as applied |
//! | `ports/<namespace>/<name>` | [`PortsRow`]: a service's ports as registrations named them |
//! | `workload/<namespace>/<id>` | [`WorkloadRow`], attached to the workload's lease |

use std::net::IpAddr;

use bytes::Bytes;
use outrigger_api::resource::Protocol;
use outrigger_api::v1;
use outrigger_common::name::ServiceName;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::store::Entry;

/// Key of the mesh's root.
pub const ROOT_KEY: &str = "ca/root";
/// Prefix of join tokens.
pub const TOKENS: &str = "token/";
/// Prefix of resources.
pub const RESOURCES: &str = "resource/";
/// Prefix of applied services.
pub const SERVICES: &str = "resource/Service/";
/// Kinds of what governs calls, in order.
pub const GOVERNING: [&str; 4] = ["AuthorizationPolicy", "GRPCRoute", "HTTPRoute", "TrafficPolicy"];
/// Key of the mesh's settings.
pub const MESH_CONFIG_KEY: &str = "resource/MeshConfig/default";
/// Prefix of registered ports.
pub const PORTS: &str = "ports/";
/// Prefix of workloads.
pub const WORKLOADS: &str = "workload/";

/// Key of a join token.
pub fn token_key(id: &str) -> String {
    format!("{TOKENS}{id}")
}

/// Prefix of what an identity was granted.
pub fn grants_of(namespace: &str, account: &str) -> String {
    format!("grant/{namespace}/{account}/")
}

/// Key of what an identity was granted by a token it joined with.
pub fn grant_key(namespace: &str, account: &str, token: &str) -> String {
    format!("{}{token}", grants_of(namespace, account))
}

/// Key of an applied service.
pub fn service_key(name: &ServiceName) -> String {
    format!("{SERVICES}{}/{}", name.namespace(), name.name())
}

/// Key of a resource that governs calls.
pub fn governing_key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{RESOURCES}{kind}/{namespace}/{name}")
}

/// Key of a service's registered ports.
pub fn ports_key(name: &ServiceName) -> String {
    format!("{PORTS}{}/{}", name.namespace(), name.name())
}

/// Prefix of the workloads of a namespace.
pub fn workloads_of(namespace: &str) -> String {
    format!("{WORKLOADS}{namespace}/")
}

/// Key of a workload. Ids are unique within the namespace of the identity alone, so that nobody can
/// take those of another namespace.
pub fn workload_key(namespace: &str, id: &str) -> String {
    format!("{WORKLOADS}{namespace}/{id}")
}

/// The service that the rest of a key (`<namespace>/<name>`) names.
pub fn service_of(rest: &str) -> Option<ServiceName> {
    let (namespace, name) = rest.split_once('/')?;
    ServiceName::new(namespace, name).ok()
}

/// The mesh's root. The key never leaves the store.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RootRow {
    /// Certificate, base64 of DER.
    pub certificate: String,
    /// PKCS#8, base64 of DER.
    pub key: String,
}

/// A join token, without its secret.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenRow {
    /// SHA-256 of the secret, base64.
    pub secret_hash: String,
    /// Namespace of who joins.
    pub namespace: String,
    /// Account of who joins.
    pub account: String,
    /// Labels of the services it may register.
    pub services: Vec<String>,
    /// Seconds since 1970.
    pub expires: i64,
    /// Good for one sidecar.
    pub single_use: bool,
    /// The first use of a single-use token.
    pub used: Option<Use>,
}

/// When and by which key a single-use token was used.
#[derive(Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Use {
    /// SHA-256 of the public key, base64.
    pub key_hash: String,
    /// Seconds since 1970.
    pub at: i64,
}

/// What an identity may register by one token, for as long as that is not revoked.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrantRow {
    /// Labels of services in the identity's namespace, in order.
    pub services: Vec<String>,
}

/// A port of a service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortRow {
    /// 1 to 65535.
    pub number: u16,
    /// A label, or empty.
    pub name: String,
    /// How the application is spoken to.
    pub protocol: Protocol,
}

impl From<&PortRow> for v1::Port {
    fn from(port: &PortRow) -> Self {
        let protocol = v1::Protocol::from(port.protocol);
        Self { number: port.number.into(), name: port.name.clone(), protocol: protocol.into() }
    }
}

/// A service's ports as registrations named them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortsRow {
    /// In the order of their numbers.
    pub ports: Vec<PortRow>,
}

impl PortsRow {
    /// Adds a port, unless there is one of its number.
    pub fn add(&mut self, port: &PortRow) {
        if let Err(place) = self.ports.binary_search_by_key(&port.number, |known| known.number) {
            self.ports.insert(place, port.clone());
        }
    }
}

/// One port a workload serves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServedRow {
    /// `name.namespace`.
    pub service: String,
    /// The service's port, as this workload named it.
    pub port: PortRow,
    /// The application's port on the workload.
    pub target_port: u16,
    /// Whether its sidecar reaches it.
    pub healthy: bool,
}

/// A registered workload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadRow {
    /// Its id, unique within its namespace.
    pub id: String,
    /// SPIFFE id of who registered it.
    pub identity: String,
    /// Failure zone, or empty.
    pub zone: String,
    /// Where peers reach its sidecar.
    pub address: IpAddr,
    /// Port of the sidecar's mesh listener.
    pub mesh_port: u16,
    /// Share of requests relative to other workloads, up to 1000; 0 is what sidecars count as 100.
    #[serde(default)]
    pub weight: u16,
    /// What it serves.
    pub ports: Vec<ServedRow>,
}

impl WorkloadRow {
    /// The ports it serves of a service.
    pub fn served(&self, name: &ServiceName) -> impl Iterator<Item = &ServedRow> {
        self.ports.iter().filter(|served| served.service == name.as_str())
    }
}

/// A row that is not what its key says.
#[derive(Debug, thiserror::Error)]
#[error("the store's row {key} cannot be read: {cause}; it was written by another release or by hand")]
pub struct BadRow {
    key: String,
    cause: String,
}

/// Reads a row.
///
/// # Errors
/// When it is not what its key says.
pub fn decode<T: DeserializeOwned>(entry: &Entry) -> Result<T, BadRow> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| BadRow { key: entry.key.to_string(), cause: error.to_string() })
}

/// Writes a row.
pub fn encode<T: Serialize>(row: &T) -> Bytes {
    serde_json::to_vec(row).expect("rows are plain data with text keys").into()
}
