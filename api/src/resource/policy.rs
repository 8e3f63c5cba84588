//! `TrafficPolicy`: how the calls of a service are carried, and [`effective`]: several of them
//! as the one in force.
//!
//! Every setting is optional: what a policy does not say is said by a less specific one, in the end
//! by the defaults documented at each field, which are safe without any policy.

use std::time::Duration;

use outrigger_common::config::{ConfigError, Origin};
use serde::{Deserialize, Serialize};

pub use super::effective::{Effective, Layer, effective};
use super::route::HttpRouteMatch;
use super::value::{Percent, Size, Span};

/// What a `TrafficPolicy` says. Durations are written as `250ms`, sizes as `64KiB`, shares as
/// percentages from 0 to 100.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TrafficPolicySpec {
    /// What it governs: at least one, except in `MeshConfig`, where there is none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub target_refs: Vec<TargetRef>,
    /// Limits in time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<Timeouts>,
    /// What is sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<Retries>,
    /// How much may be sent again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_budget: Option<RetryBudget>,
    /// When an endpoint is set aside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub circuit_breaker: Option<CircuitBreaker>,
    /// Which endpoint a request goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub load_balancing: Option<LoadBalancing>,
    /// Limits of the client's sidecar towards the service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection_pool: Option<ConnectionPool>,
    /// Limits of the server's sidecar in front of its application.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
    /// A second attempt before the first has failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hedging: Option<Hedging>,
    /// Faults made on purpose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Faults>,
}

/// What a policy is attached to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct TargetRef {
    /// Empty for a Service, `gateway.networking.k8s.io` for a route; told from the kind if left out.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// `Service`, `HTTPRoute` or `GRPCRoute`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its namespace: the policy's own if left out. In a policy of another namespace than the
    /// target's, the target must be a Service and the policy governs the calls made from the policy's
    /// namespace alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// A port of the Service, by name or number, or a named rule of the route; all of it if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
}

/// Limits in time, kept by the client's sidecar; deadlines also by the server's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Timeouts {
    /// Deadline of the whole request, all attempts included, from its head read to the last response
    /// byte. 1ms to 24h, or `0s` for none at all. Default: none but the sidecar's own
    /// `timeouts.request` to the response head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<Span>,
    /// Of one attempt, from its start to the response head: at most `request`. 1ms to 24h, or `0s` for
    /// none of its own, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_try: Option<Span>,
    /// Connecting to an endpoint, TLS included. 1ms to 1m. Default: the sidecar's `timeouts.connect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect: Option<Span>,
    /// A connection to an endpoint without requests. 1s to 24h. Default: `pool.idle_timeout`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle: Option<Span>,
    /// A body that does not move. 10ms to 24h. Default: the sidecar's `timeouts.idle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream_idle: Option<Span>,
}

/// What is sent again, beyond requests that certainly never reached the application and repeatable
/// ones that met a broken connection, which always are.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Retries {
    /// Attempts after the first. 0 to 10, default 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attempts: Option<u32>,
    /// Statuses on which a repeatable request is sent again: 400 to 599. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub statuses: Option<Vec<u16>>,
    /// gRPC codes on which a repeatable call is sent again, by name, such as `UNAVAILABLE`. Naming
    /// codes makes every call of this target count as repeatable on these codes when they come in a
    /// trailers-only response. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_codes: Option<Vec<GrpcCode>>,
    /// Pause before the second attempt at most, doubled for each further one, of which a random part
    /// is waited (full jitter). 1ms to 1m, default 25ms. Undelivered requests are not paused for the
    /// first time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_base: Option<Span>,
    /// Longest pause, and longest `Retry-After` that is waited for. 1ms to 1m, default 250ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backoff_max: Option<Span>,
    /// Bodies up to this size are kept for another attempt. 0B to 16MiB. Default: the sidecar's
    /// `limits.replay_bytes`, 64KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub buffer: Option<Size>,
}

/// Always on: retries and hedges may not exceed a share of the requests.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct RetryBudget {
    /// Retries of the requests to one destination over the last 10 s, at the client's sidecar. 0 to
    /// 100 percent, default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<Percent>,
    /// Retries a second allowed whatever the share, so that rare calls may be repeated at all.
    /// 0 to 1000, default 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_per_second: Option<f64>,
    /// Share of retries among the requests that arrive, above which the server's sidecar refuses
    /// further retries. 0 to 100 percent, default 30; `minPerSecond` holds here as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_percent: Option<Percent>,
}

/// When an endpoint is set aside, and how it comes back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct CircuitBreaker {
    /// Failures in a row (5xx, failing gRPC codes, connect and TLS errors, timeouts). 1 to 1000,
    /// default 5; a refused or broken connection counts as all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive_failures: Option<u32>,
    /// Least share of successes over the window. 0 to 100 percent, default 50; 0 switches it off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success_rate: Option<Percent>,
    /// Window of the success rate. 1s to 10m, default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<Span>,
    /// Requests in the window below which the success rate says nothing. 1 to 100000, default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_requests: Option<u32>,
    /// First ejection, doubled each time. 100ms to 10m, default 1s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection_base: Option<Span>,
    /// Longest ejection. 100ms to 1h, default 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ejection_max: Option<Span>,
    /// Endpoints out at once, rounded up, never the last. 0 to 50 percent, default 50.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_ejected: Option<Percent>,
}

/// How an endpoint is chosen.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct LoadBalancing {
    /// Default `peakEwma`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub algorithm: Option<Algorithm>,
    /// What `ringHash` and `maglev` hash; they need it beside them, the others must not have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<HashKey>,
    /// Time over which a new or returned endpoint gets up to its whole share. 0s to 1h, default 10s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slow_start: Option<Span>,
    /// Preference for the caller's own zone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<ZonePreference>,
}

/// The ways to choose an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Algorithm {
    /// The better of two at random, by peak-EWMA latency times requests in flight.
    PeakEwma,
    /// The one of two at random with fewer requests in flight.
    LeastRequest,
    /// One after the other.
    RoundRobin,
    /// By a hash on a ring: few move when an endpoint comes or goes.
    RingHash,
    /// By a hash in a lookup table: evener than a ring, a few more move.
    Maglev,
}

/// What is hashed: exactly one of the three.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct HashKey {
    /// A request header's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// A cookie's value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// The address of the application's connection.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub source: bool,
}

/// Requests stay in the caller's zone while it can carry them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ZonePreference {
    /// Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefer: Option<bool>,
    /// Usable endpoints of the own zone, as a share of its endpoints, below which requests spill over
    /// in proportion. 1 to 100 percent, default 70.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_usable: Option<Percent>,
}

/// Limits of one sidecar towards one destination; over them requests are shed at once.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct ConnectionPool {
    /// Connections to all endpoints together. 1 to 100000, default 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_connections: Option<u32>,
    /// Requests that wait for a connection. 0 to 100000, default 1024.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_pending: Option<u32>,
    /// Requests in flight, waiting ones included. 1 to 1000000, default 4096.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Requests after which a connection takes no new ones. 1 to 1000000000. Default: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_requests_per_connection: Option<u32>,
}

/// Limits in front of the application, kept by its own sidecar.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Limits {
    /// Requests in the application at once. 1 to 1000000, default 1024; with `adaptive`, the most it
    /// may find.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_in_flight: Option<u32>,
    /// Requests waiting for their turn, shared fairly between callers. 0 to 100000, default 128.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_queued: Option<u32>,
    /// Longest wait for a turn. 0s to 1m, default 100ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_wait: Option<Span>,
    /// Find the limit from the gradient of the latency. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<bool>,
    /// Of all callers together. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rate>,
    /// Of each caller's identity. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_caller: Option<Rate>,
}

/// A token bucket.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Rate {
    /// Tokens a second. Above 0, to 1000000.
    pub requests_per_second: f64,
    /// Tokens it holds. 1 to 1000000. Default: one second's worth, at least 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u32>,
}

/// A second attempt, for requests of a safe method (RFC 9110 section 9.2.1) without a body, before the
/// first has failed; the first good answer counts.
/// Off unless a policy has this section.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Hedging {
    /// `false` switches off what a less specific policy says. Default true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Quantile of the destination's latency after which the second attempt goes out. 50 to 99.9
    /// percent, default 95.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantile: Option<Percent>,
    /// Shortest delay, and the delay while latencies are not known. 1ms to 1m, default 10ms.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_delay: Option<Span>,
}

/// Faults made on purpose, at the client's sidecar. Neither `delay` nor `abort`: none, whatever a less
/// specific policy says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Faults {
    /// Requests held back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<DelayFault>,
    /// Requests answered by the mesh.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abort: Option<AbortFault>,
    /// Which requests: any one of these matches, as in an `HTTPRoute`. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<HttpRouteMatch>,
}

/// Requests held back for a time.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct DelayFault {
    /// Share of the requests. 0 to 100 percent.
    pub percent: Percent,
    /// For how long. 1ms to 1m.
    pub duration: Span,
}

/// Requests answered by the mesh in the application's place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct AbortFault {
    /// Share of the requests. 0 to 100 percent.
    pub percent: Percent,
    /// HTTP status. 400 to 599, default 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// gRPC code of calls of gRPC. Default `UNAVAILABLE`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_code: Option<GrpcCode>,
}

/// The codes of gRPC that mean failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[allow(missing_docs)]
#[repr(u8)]
pub enum GrpcCode {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl GrpcCode {
    /// Its number on the wire.
    pub fn number(self) -> u8 {
        self as u8
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

/// Reads and checks the `defaults` of a `MeshConfig` from its JSON.
///
/// # Errors
/// As [`crate::document::parse_yaml`], with keys that start at `defaults`.
pub fn defaults_from_json(json: &str) -> Result<TrafficPolicySpec, ConfigError> {
    #[derive(Deserialize)]
    struct Defaults {
        defaults: TrafficPolicySpec,
    }
    let text = format!("{{\"defaults\": {json}}}");
    let origin = Origin::new(Some("MeshConfig".into()), text, Vec::new(), &[]);
    let found: Defaults = origin.load().map_err(|error| super::explained(error, "MeshConfig"))?;
    super::check::defaults(&found.defaults).map_err(|fault| fault.at(&origin, "defaults"))?;
    Ok(found.defaults)
}
