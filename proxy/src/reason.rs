//! The closed list of reasons: why the mesh itself answered, in `x-mesh-reason`, metrics and spans.

/// Why a request was answered by the mesh, or ended early. [`Reason::as_str`] is the text users see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// The request's target cannot be understood.
    BadRequest,
    /// The request is addressed to this sidecar itself.
    Loop,
    /// The method is not carried by this version.
    MethodNotSupported,
    /// The registry knows no such service.
    UnknownService,
    /// The service has no such port.
    UnknownPort,
    /// The registry could not be asked in time.
    DiscoveryUnavailable,
    /// The service has no endpoint.
    NoEndpoint,
    /// No endpoint could be connected to.
    ConnectFailed,
    /// The endpoint's sidecar proved another identity than the one registered.
    IdentityMismatch,
    /// TLS with the endpoint's sidecar failed.
    TlsFailed,
    /// The upstream broke the connection.
    UpstreamReset,
    /// No response head in time.
    RequestTimeout,
    /// A body stood still for too long.
    IdleTimeout,
    /// The client went away.
    ClientClosed,
    /// This sidecar does not serve the port it was asked for.
    NotServed,
    /// The application does not accept connections.
    AppUnreachable,
    /// The application broke the connection.
    AppReset,
    /// The application sent no response head in time.
    AppTimeout,
    /// Routes are attached to the service, and none matches.
    RouteNotFound,
    /// The rule that applies names no backend that can be used.
    NoBackend,
    /// An authorization policy does not let the caller in.
    Denied,
    /// A rate limit of the server is exceeded.
    RateLimited,
    /// The application has as many requests as it may.
    Overloaded,
    /// Too many of the requests that arrive are retries.
    RetryRefused,
    /// As many requests are on their way to the destination as may be.
    InFlightLimit,
    /// As many requests wait for a connection as may.
    PendingLimit,
    /// There are as many connections to the destination as may be, all in use.
    ConnectionLimit,
    /// The deadline of the request has passed.
    DeadlineExceeded,
    /// No response head within the time of one attempt.
    TryTimeout,
    /// A fault made on purpose.
    FaultInjected,
    /// A route redirects the request.
    Redirected,
    /// The drain's deadline ended the connection.
    Drained,
    /// The mesh's egress mode lets nobody out.
    EgressDenied,
    /// The mesh's mTLS mode lets no plaintext in.
    PlaintextRefused,
}

impl Reason {
    /// Every reason, for the documentation's test.
    pub const ALL: [Self; 34] = [
        Self::BadRequest,
        Self::Loop,
        Self::MethodNotSupported,
        Self::UnknownService,
        Self::UnknownPort,
        Self::DiscoveryUnavailable,
        Self::NoEndpoint,
        Self::ConnectFailed,
        Self::IdentityMismatch,
        Self::TlsFailed,
        Self::UpstreamReset,
        Self::RequestTimeout,
        Self::IdleTimeout,
        Self::ClientClosed,
        Self::NotServed,
        Self::AppUnreachable,
        Self::AppReset,
        Self::AppTimeout,
        Self::RouteNotFound,
        Self::NoBackend,
        Self::Denied,
        Self::RateLimited,
        Self::Overloaded,
        Self::RetryRefused,
        Self::InFlightLimit,
        Self::PendingLimit,
        Self::ConnectionLimit,
        Self::DeadlineExceeded,
        Self::TryTimeout,
        Self::FaultInjected,
        Self::Redirected,
        Self::Drained,
        Self::EgressDenied,
        Self::PlaintextRefused,
    ];

    /// The text in headers, labels and logs.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::BadRequest => "bad_request",
            Self::Loop => "loop",
            Self::MethodNotSupported => "method_not_supported",
            Self::UnknownService => "unknown_service",
            Self::UnknownPort => "unknown_port",
            Self::DiscoveryUnavailable => "discovery_unavailable",
            Self::NoEndpoint => "no_endpoint",
            Self::ConnectFailed => "connect_failed",
            Self::IdentityMismatch => "identity_mismatch",
            Self::TlsFailed => "tls_failed",
            Self::UpstreamReset => "upstream_reset",
            Self::RequestTimeout => "request_timeout",
            Self::IdleTimeout => "idle_timeout",
            Self::ClientClosed => "client_closed",
            Self::NotServed => "not_served",
            Self::AppUnreachable => "app_unreachable",
            Self::AppReset => "app_reset",
            Self::AppTimeout => "app_timeout",
            Self::RouteNotFound => "route_not_found",
            Self::NoBackend => "no_backend",
            Self::Denied => "denied",
            Self::RateLimited => "rate_limited",
            Self::Overloaded => "overloaded",
            Self::RetryRefused => "retry_refused",
            Self::InFlightLimit => "in_flight_limit",
            Self::PendingLimit => "pending_limit",
            Self::ConnectionLimit => "connection_limit",
            Self::DeadlineExceeded => "deadline_exceeded",
            Self::TryTimeout => "try_timeout",
            Self::FaultInjected => "fault_injected",
            Self::Redirected => "redirected",
            Self::Drained => "drained",
            Self::EgressDenied => "egress_denied",
            Self::PlaintextRefused => "plaintext_refused",
        }
    }

    /// Whether it means that there was no room, rather than that something failed.
    pub const fn is_shed(self) -> bool {
        matches!(
            self,
            Self::RateLimited
                | Self::Overloaded
                | Self::RetryRefused
                | Self::InFlightLimit
                | Self::PendingLimit
                | Self::ConnectionLimit
        )
    }

    /// The reason another sidecar gave, if it is one of the list.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str().as_bytes() == text)
    }
}
