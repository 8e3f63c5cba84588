//! The configuration as serde reads it: everything optional or with its default, nothing checked.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use outrigger_api::resource::Protocol;
use outrigger_common::config::{bytes, duration};
use outrigger_common::telemetry::LogFormat;
use serde::Deserialize;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Raw {
    pub(super) registry: RawRegistry,
    pub(super) join: RawJoin,
    pub(super) workload: RawWorkload,
    pub(super) services: Vec<RawService>,
    pub(super) upstreams: Vec<String>,
    pub(super) outbound: RawOutbound,
    pub(super) mesh: RawMesh,
    pub(super) admin: RawAdmin,
    pub(super) workers: RawWorkers,
    pub(super) timeouts: Timeouts,
    pub(super) pool: Pool,
    pub(super) limits: Limits,
    pub(super) health: Health,
    pub(super) drain: Drain,
    pub(super) log_format: LogFormat,
    pub(super) state_dir: Option<PathBuf>,
    pub(super) capture: RawCapture,
    pub(super) inbound: RawInbound,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCapture {
    pub(super) enabled: bool,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawInbound {
    pub(super) listen: SocketAddr,
}

impl Default for RawInbound {
    fn default() -> Self {
        Self { listen: ([0, 0, 0, 0], 15006).into() }
    }
}

/// A path that is answered without mutual TLS.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawProbe {
    pub(super) path: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawRegistry {
    pub(super) address: String,
}

impl Default for RawRegistry {
    fn default() -> Self {
        Self { address: "127.0.0.1:15012".to_owned() }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawJoin {
    pub(super) token: Option<String>,
    pub(super) token_file: Option<PathBuf>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawWorkload {
    pub(super) id: Option<String>,
    pub(super) address: Option<IpAddr>,
    pub(super) zone: String,
    pub(super) weight: u32,
}

impl Default for RawWorkload {
    fn default() -> Self {
        Self { id: None, address: None, zone: String::new(), weight: 100 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawService {
    pub(super) name: String,
    pub(super) port: u16,
    #[serde(default)]
    pub(super) protocol: Protocol,
    pub(super) target: SocketAddr,
    #[serde(default)]
    pub(super) health: RawCheck,
    #[serde(default)]
    pub(super) probes: Vec<RawProbe>,
}

/// One of them, or none.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawCheck {
    pub(super) http: Option<String>,
    pub(super) grpc: Option<String>,
    pub(super) tcp: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawOutbound {
    pub(super) listen: SocketAddr,
    pub(super) ports: Vec<RawLocalPort>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLocalPort {
    pub(super) listen: SocketAddr,
    pub(super) service: String,
    pub(super) port: u16,
}

impl Default for RawOutbound {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 15001).into(), ports: Vec::new() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawMesh {
    pub(super) listen: SocketAddr,
}

impl Default for RawMesh {
    fn default() -> Self {
        Self { listen: ([0, 0, 0, 0], 15008).into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RawAdmin {
    pub(super) listen: SocketAddr,
}

impl Default for RawAdmin {
    fn default() -> Self {
        Self { listen: ([127, 0, 0, 1], 15020).into() }
    }
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
pub(super) enum RawWorkers {
    Number(usize),
    Word(String),
}

impl Default for RawWorkers {
    fn default() -> Self {
        Self::Number(1)
    }
}

/// Limits in time.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Timeouts {
    /// Connecting to an endpoint, TLS included.
    #[serde(deserialize_with = "duration")]
    pub connect: Duration,
    /// From the last request byte sent to the response head.
    #[serde(deserialize_with = "duration")]
    pub request: Duration,
    /// A body or connection that does not move.
    #[serde(deserialize_with = "duration")]
    pub idle: Duration,
    /// A first request's wait for the registry.
    #[serde(deserialize_with = "duration")]
    pub discovery: Duration,
    /// A client's silence before its destination is dialled.
    #[serde(deserialize_with = "duration")]
    pub detect: Duration,
    /// A connection of opaque bytes that does not move.
    #[serde(deserialize_with = "duration")]
    pub tcp_idle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(1),
            request: Duration::from_secs(30),
            idle: Duration::from_secs(300),
            discovery: Duration::from_secs(1),
            detect: Duration::from_millis(10),
            tcp_idle: Duration::from_secs(3600),
        }
    }
}

/// How long connections are kept.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pool {
    /// To sidecars, unused.
    #[serde(deserialize_with = "duration")]
    pub idle_timeout: Duration,
    /// To the application, unused.
    #[serde(deserialize_with = "duration")]
    pub app_idle_timeout: Duration,
    /// To sidecars, used.
    #[serde(deserialize_with = "duration")]
    pub max_age: Duration,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            idle_timeout: Duration::from_secs(90),
            app_idle_timeout: Duration::from_secs(3),
            max_age: Duration::from_secs(600),
        }
    }
}

/// Limits in size and number.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Bytes of a head.
    #[serde(deserialize_with = "bytes")]
    pub header_bytes: usize,
    /// Bytes of a body kept for a retry.
    #[serde(deserialize_with = "bytes")]
    pub replay_bytes: usize,
    /// Connections of a listener.
    pub connections: usize,
    /// Edges with metrics of their own.
    pub edges: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { header_bytes: 64 << 10, replay_bytes: 64 << 10, connections: 10_000, edges: 1000 }
    }
}

/// Checks of the application.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Health {
    /// Between two checks.
    #[serde(deserialize_with = "duration")]
    pub interval: Duration,
    /// Of one check.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// Failures in a row that make a port unhealthy; a refused connection does at once.
    pub unhealthy_after: u32,
    /// Successes in a row that make it healthy.
    pub healthy_after: u32,
}

impl Default for Health {
    fn default() -> Self {
        let second = Duration::from_secs(1);
        Self { interval: second, timeout: second, unhealthy_after: 3, healthy_after: 1 }
    }
}

/// The end.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Drain {
    /// Wait for callers to know.
    #[serde(deserialize_with = "duration")]
    pub acknowledge: Duration,
    /// Wait for requests in flight.
    #[serde(deserialize_with = "duration")]
    pub deadline: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { acknowledge: Duration::from_secs(5), deadline: Duration::from_secs(30) }
    }
}
