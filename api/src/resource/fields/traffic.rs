//! Fields of the policies.

use super::{Field, HTTP_MATCH, PORT, Range, field};

/// The codes of gRPC that mean failure.
const GRPC_CODES: &[&str] = &[
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// Fields of a target of a policy.
pub const TARGET: &[Field] = &[
    field(
        "group",
        Range::Text("empty or core for a Service, gateway.networking.k8s.io for a route"),
        "-",
        "told from the kind if left out",
    ),
    field("kind", Range::Words(&["Service", "HTTPRoute", "GRPCRoute"]), "-", "of what"),
    field("name", Range::Text("a DNS name"), "-", "its name"),
    field(
        "namespace",
        Range::Label,
        "the policy's own",
        "of the target; of another namespace it must be a Service, whose calls from the policy's namespace alone are governed",
    ),
    field(
        "sectionName",
        Range::Text("a DNS label or a port number"),
        "-",
        "a port of the Service by name or number, or a named rule of the route; left out: all of it",
    ),
];

/// Fields of a token bucket.
const RATE: &[Field] = &[
    field("requestsPerSecond", Range::Above(1e6), "-", "tokens a second"),
    field("burst", Range::Whole(1, 1_000_000), "one second's worth", "tokens the bucket holds"),
];

/// Fields of a `TrafficPolicy`.
pub const TRAFFIC_POLICY: &[Field] = &[
    field("targetRefs[]", Range::List("target", TARGET), "-", "what the policy governs: 1 to 16"),
    field(
        "timeouts.request",
        Range::SpanOrZero(1, 86_400_000),
        "-",
        "deadline of the whole request, all attempts included, to the last response byte; `0s`: none at all; left out: the sidecar's `timeouts.request`, to the response head",
    ),
    field(
        "timeouts.perTry",
        Range::SpanOrZero(1, 86_400_000),
        "-",
        "deadline of one attempt, to the response head; at most `timeouts.request`; `0s` and left out: none of its own",
    ),
    field(
        "timeouts.connect",
        Range::Span(1, 60_000),
        "-",
        "connecting to an endpoint, TLS included; left out: the sidecar's `timeouts.connect`",
    ),
    field(
        "timeouts.idle",
        Range::Span(1_000, 86_400_000),
        "-",
        "age of a connection without requests at which it is closed; left out: the sidecar's `pool.idle_timeout`",
    ),
    field(
        "timeouts.streamIdle",
        Range::Span(10, 86_400_000),
        "-",
        "longest standstill of a body; left out: the sidecar's `timeouts.idle`",
    ),
    field("retries.attempts", Range::Whole(0, 10), "2", "attempts after the first"),
    field(
        "retries.statuses[]",
        Range::Whole(400, 599),
        "-",
        "statuses on which a repeatable request is sent again",
    ),
    field(
        "retries.grpcCodes[]",
        Range::Words(GRPC_CODES),
        "-",
        "gRPC codes on which a call is sent again; naming one makes every call repeatable on it where it comes in a trailers-only response",
    ),
    field(
        "retries.backoffBase",
        Range::Span(1, 60_000),
        "25ms",
        "longest pause before the second attempt, doubled for each further one; a random part is waited (full jitter)",
    ),
    field(
        "retries.backoffMax",
        Range::Span(1, 60_000),
        "250ms",
        "longest pause, and longest `Retry-After` that is waited for",
    ),
    field(
        "retries.buffer",
        Range::Size(0, 16 << 20),
        "-",
        "bodies up to this size are kept for another attempt; left out: the sidecar's `limits.replay_bytes`",
    ),
    field(
        "retryBudget.percent",
        Range::Percent(0.0, 100.0),
        "20",
        "retries and hedges as a share of the requests to one destination, over 10 s, at the client's sidecar",
    ),
    field(
        "retryBudget.minPerSecond",
        Range::Number(0.0, 1000.0),
        "3",
        "retries a second allowed whatever the share",
    ),
    field(
        "retryBudget.serverPercent",
        Range::Percent(0.0, 100.0),
        "30",
        "retries as a share of the requests that arrive, above which the server's sidecar refuses them",
    ),
    field(
        "circuitBreaker.consecutiveFailures",
        Range::Whole(1, 1_000),
        "5",
        "failures in a row that eject an endpoint; a refused or broken connection counts as all of them",
    ),
    field(
        "circuitBreaker.successRate",
        Range::Percent(0.0, 100.0),
        "50",
        "share of successes over the window below which an endpoint is ejected; 0 switches it off",
    ),
    field("circuitBreaker.window", Range::Span(1_000, 600_000), "10s", "window of the success rate"),
    field(
        "circuitBreaker.minRequests",
        Range::Whole(1, 100_000),
        "20",
        "requests in the window below which the success rate says nothing",
    ),
    field(
        "circuitBreaker.ejectionBase",
        Range::Span(100, 600_000),
        "1s",
        "first ejection; doubled each time",
    ),
    field("circuitBreaker.ejectionMax", Range::Span(100, 3_600_000), "30s", "longest ejection"),
    field(
        "circuitBreaker.maxEjected",
        Range::Percent(0.0, 50.0),
        "50",
        "share of the endpoints out at once, rounded up; never the last",
    ),
    field(
        "loadBalancing.algorithm",
        Range::Words(&["peakEwma", "leastRequest", "roundRobin", "ringHash", "maglev"]),
        "peakEwma",
        "how an endpoint is chosen",
    ),
    field(
        "loadBalancing.hash.header",
        Range::Text("a header name"),
        "-",
        "hash the value of this request header; one of `header`, `cookie` and `source`, beside `ringHash` or `maglev`",
    ),
    field("loadBalancing.hash.cookie", Range::Text("a cookie name"), "-", "hash the value of this cookie"),
    field(
        "loadBalancing.hash.source",
        Range::Bool,
        "false",
        "hash the address of the application's connection",
    ),
    field(
        "loadBalancing.slowStart",
        Range::Span(0, 3_600_000),
        "10s",
        "time over which a new or returned endpoint gets up to its whole share",
    ),
    field(
        "loadBalancing.zone.prefer",
        Range::Bool,
        "true",
        "keep requests in the caller's zone while it can carry them",
    ),
    field(
        "loadBalancing.zone.minUsable",
        Range::Percent(1.0, 100.0),
        "70",
        "usable share of the own zone's endpoints below which requests spill over in proportion",
    ),
    field(
        "connectionPool.maxConnections",
        Range::Whole(1, 100_000),
        "1024",
        "connections of one sidecar to all endpoints together",
    ),
    field(
        "connectionPool.maxPending",
        Range::Whole(0, 100_000),
        "1024",
        "requests that wait for a connection; more are shed at once",
    ),
    field(
        "connectionPool.maxInFlight",
        Range::Whole(1, 1_000_000),
        "4096",
        "requests in flight, waiting ones included; more are shed at once",
    ),
    field(
        "connectionPool.maxRequestsPerConnection",
        Range::Whole(1, 1_000_000_000),
        "-",
        "requests after which a connection takes no new ones",
    ),
    field(
        "limits.maxInFlight",
        Range::Whole(1, 1_000_000),
        "1024",
        "requests in the application at once; with `adaptive` the most it may find",
    ),
    field(
        "limits.maxQueued",
        Range::Whole(0, 100_000),
        "128",
        "requests that wait for their turn, shared fairly between callers",
    ),
    field("limits.maxWait", Range::Span(0, 60_000), "100ms", "longest wait for a turn"),
    field("limits.adaptive", Range::Bool, "false", "find the limit from the gradient of the latency"),
    field("limits.rate", Range::Table("rate", RATE), "-", "rate of all callers together"),
    field("limits.ratePerCaller", Range::Table("rate", RATE), "-", "rate of each caller's identity"),
    field(
        "hedging.enabled",
        Range::Bool,
        "true",
        "`false` switches off what a less specific policy says; without the section there is no hedging",
    ),
    field(
        "hedging.quantile",
        Range::Percent(50.0, 99.9),
        "95",
        "quantile of the destination's latency after which a request of a safe method without a body goes out a second time",
    ),
    field(
        "hedging.minDelay",
        Range::Span(1, 60_000),
        "10ms",
        "shortest delay, and the delay while latencies are not known",
    ),
    field("faults.delay.percent", Range::Percent(0.0, 100.0), "-", "share of the requests held back"),
    field("faults.delay.duration", Range::Span(1, 60_000), "-", "for how long"),
    field(
        "faults.abort.percent",
        Range::Percent(0.0, 100.0),
        "-",
        "share of the requests answered by the mesh in place of the application",
    ),
    field("faults.abort.status", Range::Whole(400, 599), "503", "HTTP status of the answer"),
    field(
        "faults.abort.grpcCode",
        Range::Words(GRPC_CODES),
        "UNAVAILABLE",
        "gRPC code of the answer to a call of gRPC",
    ),
    field(
        "faults.matches[]",
        Range::List("HTTP match", HTTP_MATCH),
        "-",
        "which requests: those that any of these matches; left out: all",
    ),
];

/// Fields of an `AuthorizationPolicy`.
pub const AUTHORIZATION_POLICY: &[Field] = &[
    field(
        "targetRefs[]",
        Range::List("target", TARGET),
        "-",
        "Services of the policy's own namespace, at most 16; left out: every one of them",
    ),
    field(
        "action",
        Range::Words(&["Allow", "Deny"]),
        "Allow",
        "what happens to requests that a rule matches",
    ),
    field(
        "rules[].identities[]",
        Range::Text("a SPIFFE id, or the start of one and '*'"),
        "-",
        "the caller's identity is one of these",
    ),
    field("rules[].namespaces[]", Range::Label, "-", "the caller's namespace is one of these"),
    field("rules[].ports[]", PORT, "-", "the service's port, as callers name it, is one of these"),
];
