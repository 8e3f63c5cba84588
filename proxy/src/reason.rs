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
}

impl Reason {
    /// Every reason, for the documentation's test.
    pub const ALL: [Self; 18] = [
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
        }
    }

    /// The reason another sidecar gave, if it is one of the list.
    pub fn parse(text: &[u8]) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str().as_bytes() == text)
    }
}
