//! What can go wrong with a request, who is to blame, and how it looks outside.

use std::net::SocketAddr;
use std::time::Duration;

use http::StatusCode;
use outrigger_api::resource::policy::GrpcCode;
use outrigger_common::identity::SpiffeId;

use crate::http::incoming::TransportError;
use crate::reason::Reason;

/// Whether any byte of the request may have reached the application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Certainly not: repeating is safe whatever the method.
    Undelivered,
    /// Perhaps: only what may be repeated is.
    Unknown,
}

/// A request that the mesh must answer itself.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The target cannot be understood.
    #[error("{0}")]
    BadRequest(&'static str),
    /// A transfer coding that the message must not have.
    #[error("the only transfer coding carried is chunked, once")]
    UnknownCoding,
    /// The target is this sidecar.
    #[error("{0} is this sidecar's own address; name a service instead")]
    Loop(String),
    /// CONNECT.
    #[error("the method {0} is not carried by this version")]
    MethodNotSupported(http::Method),
    /// The registry said so.
    #[error("the registry knows no service {0}")]
    UnknownService(String),
    /// The service is known, the port is not.
    #[error("{service} has no port {port}")]
    UnknownPort {
        /// The service.
        service: String,
        /// The port asked for.
        port: u16,
    },
    /// Nobody said anything in time.
    #[error("the registry could not be asked about {0}")]
    DiscoveryUnavailable(String),
    /// Known, but nobody serves it.
    #[error("{0} has no endpoint")]
    NoEndpoint(String),
    /// TCP or TLS did not come about in time, or TCP was refused.
    #[error("cannot connect to {address}")]
    Connect {
        /// The endpoint's sidecar.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The handshake failed.
    #[error("TLS with {address} failed")]
    Tls {
        /// The endpoint's sidecar.
        address: SocketAddr,
        /// What TLS said.
        #[source]
        source: std::io::Error,
    },
    /// The handshake succeeded with the wrong peer.
    #[error("{address} proved {found}, but {expected} is registered there")]
    Identity {
        /// The endpoint's sidecar.
        address: SocketAddr,
        /// From the registry.
        expected: SpiffeId,
        /// From the certificate, or why there is none.
        found: String,
    },
    /// The HTTP library gave the request back unsent.
    #[error("the connection to {0} closed before the request was sent")]
    Unsent(SocketAddr),
    /// The peer said that it did not and will not look at the request: REFUSED_STREAM, or GOAWAY below
    /// its stream.
    #[error("{address} refused the request before looking at it")]
    Refused {
        /// The endpoint's sidecar.
        address: SocketAddr,
        /// What HTTP said.
        #[source]
        source: TransportError,
    },
    /// The peer refused our certificate before any application data.
    #[error("{0} refused this sidecar's certificate")]
    CertificateRefused(SocketAddr),
    /// The connection broke after the request, or part of it, was sent.
    #[error("{address} broke off before the response head")]
    Reset {
        /// The endpoint's sidecar.
        address: SocketAddr,
        /// The request's own stream alone: the connection goes on.
        stream_only: bool,
        /// What HTTP said.
        #[source]
        source: TransportError,
    },
    /// No response head.
    #[error("no response head within {0:?}")]
    RequestTimeout(Duration),
    /// The client's body stood still.
    #[error("the request body did not move for {0:?}")]
    IdleTimeout(Duration),
    /// The client broke off its request.
    #[error("the client went away")]
    ClientClosed,
    /// The SNI names something else.
    #[error("this sidecar does not serve {0}")]
    NotServed(String),
    /// The application does not accept connections.
    #[error("cannot connect to the application at {address}")]
    AppUnreachable {
        /// The application.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// The application's connections close before they take a request.
    #[error("the application at {0} closes connections before taking a request")]
    AppUnsent(SocketAddr),
    /// The application said that it did not and will not look at the request.
    #[error("the application at {address} refused the request before looking at it")]
    AppRefused {
        /// The application.
        address: SocketAddr,
        /// What HTTP said.
        #[source]
        source: TransportError,
    },
    /// The application broke the connection.
    #[error("the application at {address} broke the connection before the response head")]
    AppReset {
        /// The application.
        address: SocketAddr,
        /// What HTTP said.
        #[source]
        source: TransportError,
    },
    /// The application agreed to an upgrade that nobody asked for, or not in the words of the protocol.
    #[error("the application at {0} switched protocols in a way that was not asked for")]
    AppSwitched(SocketAddr),
    /// The application is declared to speak HTTP/2, and does not take extended CONNECT.
    #[error("the application at {0} takes no upgrades over HTTP/2 (RFC 8441)")]
    NoUpgrade(SocketAddr),
    /// The application sent no response head.
    #[error("the application sent no response head within {0:?}")]
    AppTimeout(Duration),
    /// Routes are attached, none matches.
    #[error("no route of {0} matches this request")]
    RouteNotFound(String),
    /// A rule without a usable backend.
    #[error("the rule {0} has no backend to send to")]
    NoBackend(String),
    /// The caller may not.
    #[error("{caller} may not call {service}: {why}")]
    Denied {
        /// Who asked.
        caller: String,
        /// For what.
        service: String,
        /// Which policy says so.
        why: String,
    },
    /// A rate limit of the server.
    #[error("{limit} is exceeded; try again in {retry_after:?}")]
    RateLimited {
        /// Which limit.
        limit: &'static str,
        /// When there is room again.
        retry_after: Duration,
    },
    /// The application is as busy as it may be.
    #[error("the application has as many requests as it may; {0}")]
    Overloaded(&'static str),
    /// Retries are too large a part of what arrives.
    #[error("too many of the requests that arrive are retries; this one is refused")]
    RetryRefused,
    /// Requests to the destination.
    #[error("{service} has {limit} requests of this sidecar in flight, its limit")]
    InFlightLimit {
        /// The destination.
        service: String,
        /// The limit.
        limit: u32,
    },
    /// Requests that wait for a connection.
    #[error("{limit} requests wait for a connection, the limit of their destination")]
    PendingLimit {
        /// The limit.
        limit: u32,
    },
    /// Connections to the destination.
    #[error("there are {limit} connections to the destination, its limit, and none has room")]
    ConnectionLimit {
        /// The limit.
        limit: u32,
    },
    /// Too late.
    #[error("the deadline of the request has passed")]
    DeadlineExceeded,
    /// One attempt took too long.
    #[error("{address} sent no response head within {limit:?}, the time of one attempt")]
    TryTimeout {
        /// The endpoint's sidecar.
        address: SocketAddr,
        /// The time of one attempt.
        limit: Duration,
    },
    /// The endpoint's sidecar does not carry the connection to its application.
    #[error("the sidecar at {address} refused the connection")]
    StreamRefused {
        /// The endpoint's sidecar.
        address: SocketAddr,
        /// Why, as it says.
        reason: Option<Reason>,
        /// Another endpoint may do better.
        elsewhere: bool,
    },
    /// It would leave the mesh, and the mesh's egress mode denies that.
    #[error("{0} is outside of the mesh, and its egress mode is deny")]
    EgressDenied(String),
    /// It came without mutual TLS, and the mesh's mTLS mode is strict.
    #[error("no mutual TLS: only sidecars of the mesh, and declared probes, are answered here")]
    PlaintextRefused,
    /// On purpose.
    #[error("a fault made on purpose")]
    FaultInjected {
        /// What the client is to see.
        status: StatusCode,
        /// The same for calls of gRPC.
        grpc: u8,
    },
}

impl ProxyError {
    /// The code of the list.
    pub fn reason(&self) -> Reason {
        match self {
            Self::BadRequest(_) | Self::UnknownCoding => Reason::BadRequest,
            Self::Loop(_) => Reason::Loop,
            Self::MethodNotSupported(_) | Self::NoUpgrade(_) => Reason::MethodNotSupported,
            Self::UnknownService(_) => Reason::UnknownService,
            Self::UnknownPort { .. } => Reason::UnknownPort,
            Self::DiscoveryUnavailable(_) => Reason::DiscoveryUnavailable,
            Self::NoEndpoint(_) => Reason::NoEndpoint,
            Self::Connect { .. } => Reason::ConnectFailed,
            Self::Tls { .. } | Self::CertificateRefused(_) => Reason::TlsFailed,
            Self::Identity { .. } => Reason::IdentityMismatch,
            Self::Unsent(_) | Self::Refused { .. } | Self::Reset { .. } => Reason::UpstreamReset,
            Self::RequestTimeout(_) => Reason::RequestTimeout,
            Self::IdleTimeout(_) => Reason::IdleTimeout,
            Self::ClientClosed => Reason::ClientClosed,
            Self::NotServed(_) => Reason::NotServed,
            Self::AppUnreachable { .. } => Reason::AppUnreachable,
            Self::AppUnsent(_) | Self::AppRefused { .. } | Self::AppReset { .. } | Self::AppSwitched(_) => {
                Reason::AppReset
            }
            Self::AppTimeout(_) => Reason::AppTimeout,
            Self::RouteNotFound(_) => Reason::RouteNotFound,
            Self::NoBackend(_) => Reason::NoBackend,
            Self::Denied { .. } => Reason::Denied,
            Self::RateLimited { .. } => Reason::RateLimited,
            Self::Overloaded(_) => Reason::Overloaded,
            Self::RetryRefused => Reason::RetryRefused,
            Self::InFlightLimit { .. } => Reason::InFlightLimit,
            Self::PendingLimit { .. } => Reason::PendingLimit,
            Self::ConnectionLimit { .. } => Reason::ConnectionLimit,
            Self::DeadlineExceeded => Reason::DeadlineExceeded,
            Self::TryTimeout { .. } => Reason::TryTimeout,
            Self::StreamRefused { reason, .. } => reason.unwrap_or(Reason::UpstreamReset),
            Self::EgressDenied(_) => Reason::EgressDenied,
            Self::PlaintextRefused => Reason::PlaintextRefused,
            Self::FaultInjected { .. } => Reason::FaultInjected,
        }
    }

    /// The status the client sees.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::BadRequest(_) | Self::ClientClosed => StatusCode::BAD_REQUEST,
            Self::Loop(_) => StatusCode::LOOP_DETECTED,
            Self::MethodNotSupported(_) | Self::UnknownCoding | Self::NoUpgrade(_) => {
                StatusCode::NOT_IMPLEMENTED
            }
            Self::UnknownService(_) | Self::UnknownPort { .. } | Self::RouteNotFound(_) => {
                StatusCode::NOT_FOUND
            }
            // The Gateway API's answer for a rule that cannot be followed.
            Self::NoBackend(_) => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Denied { .. } | Self::EgressDenied(_) | Self::PlaintextRefused => StatusCode::FORBIDDEN,
            Self::RateLimited { .. } => StatusCode::TOO_MANY_REQUESTS,
            Self::FaultInjected { status, .. } => *status,
            Self::NotServed(_) => StatusCode::MISDIRECTED_REQUEST,
            Self::IdleTimeout(_) => StatusCode::REQUEST_TIMEOUT,
            Self::DiscoveryUnavailable(_)
            | Self::NoEndpoint(_)
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Identity { .. }
            | Self::CertificateRefused(_)
            | Self::Unsent(_)
            | Self::Refused { .. }
            | Self::AppUnreachable { .. }
            | Self::AppUnsent(_)
            | Self::AppRefused { .. }
            | Self::Overloaded(_)
            | Self::RetryRefused
            | Self::InFlightLimit { .. }
            | Self::PendingLimit { .. }
            | Self::ConnectionLimit { .. }
            | Self::StreamRefused { .. } => StatusCode::SERVICE_UNAVAILABLE,
            Self::Reset { .. } | Self::AppReset { .. } | Self::AppSwitched(_) => StatusCode::BAD_GATEWAY,
            Self::RequestTimeout(_)
            | Self::AppTimeout(_)
            | Self::DeadlineExceeded
            | Self::TryTimeout { .. } => StatusCode::GATEWAY_TIMEOUT,
        }
    }

    /// The code a client of gRPC sees: what gRPC says of the HTTP status ("HTTP to gRPC Status Code
    /// Mapping"), and more exactly where the mesh knows more.
    pub fn grpc_code(&self) -> u8 {
        let code = match self {
            Self::FaultInjected { grpc, .. } => return *grpc,
            Self::ClientClosed => GrpcCode::Cancelled,
            Self::RequestTimeout(_)
            | Self::AppTimeout(_)
            | Self::TryTimeout { .. }
            | Self::IdleTimeout(_)
            | Self::DeadlineExceeded => GrpcCode::DeadlineExceeded,
            Self::RateLimited { .. } => GrpcCode::ResourceExhausted,
            Self::Denied { .. } | Self::EgressDenied(_) | Self::PlaintextRefused => {
                GrpcCode::PermissionDenied
            }
            Self::RouteNotFound(_) | Self::MethodNotSupported(_) | Self::NoUpgrade(_) => {
                GrpcCode::Unimplemented
            }
            Self::BadRequest(_) | Self::UnknownCoding | Self::Loop(_) => GrpcCode::Internal,
            Self::UnknownService(_)
            | Self::UnknownPort { .. }
            | Self::NoBackend(_)
            | Self::DiscoveryUnavailable(_)
            | Self::NoEndpoint(_)
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Identity { .. }
            | Self::Unsent(_)
            | Self::Refused { .. }
            | Self::CertificateRefused(_)
            | Self::Reset { .. }
            | Self::NotServed(_)
            | Self::AppUnreachable { .. }
            | Self::AppUnsent(_)
            | Self::AppRefused { .. }
            | Self::AppReset { .. }
            | Self::AppSwitched(_)
            | Self::Overloaded(_)
            | Self::RetryRefused
            | Self::InFlightLimit { .. }
            | Self::PendingLimit { .. }
            | Self::ConnectionLimit { .. }
            | Self::StreamRefused { .. } => GrpcCode::Unavailable,
        };
        code.number()
    }

    /// How long to wait before asking again, for `Retry-After`.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::RateLimited { retry_after, .. } => Some(*retry_after),
            _ => None,
        }
    }

    /// Whether the application may have seen the request.
    pub fn delivery(&self) -> Delivery {
        match self {
            Self::DiscoveryUnavailable(_)
            | Self::NoEndpoint(_)
            | Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Identity { .. }
            | Self::CertificateRefused(_)
            | Self::Unsent(_)
            | Self::Refused { .. }
            | Self::NotServed(_)
            | Self::AppUnreachable { .. }
            | Self::AppUnsent(_)
            | Self::AppRefused { .. }
            | Self::Overloaded(_)
            | Self::StreamRefused { elsewhere: true, .. } => Delivery::Undelivered,
            // Most are about the request or the whole destination: another endpoint would say the
            // same, so whether it was delivered must not matter.
            Self::BadRequest(_)
            | Self::UnknownCoding
            | Self::AppSwitched(_)
            | Self::NoUpgrade(_)
            | Self::Loop(_)
            | Self::MethodNotSupported(_)
            | Self::UnknownService(_)
            | Self::UnknownPort { .. }
            | Self::Reset { .. }
            | Self::RequestTimeout(_)
            | Self::IdleTimeout(_)
            | Self::ClientClosed
            | Self::AppReset { .. }
            | Self::AppTimeout(_)
            | Self::RouteNotFound(_)
            | Self::NoBackend(_)
            | Self::Denied { .. }
            | Self::RateLimited { .. }
            | Self::RetryRefused
            | Self::InFlightLimit { .. }
            | Self::PendingLimit { .. }
            | Self::ConnectionLimit { .. }
            | Self::DeadlineExceeded
            | Self::TryTimeout { .. }
            | Self::StreamRefused { elsewhere: false, .. }
            | Self::EgressDenied(_)
            | Self::PlaintextRefused
            | Self::FaultInjected { .. } => Delivery::Unknown,
        }
    }

    /// Whether the endpoint refused or broke the connection, so that it is set aside for a while.
    pub fn blames_connection(&self) -> bool {
        match self {
            Self::Connect { .. }
            | Self::Tls { .. }
            | Self::Identity { .. }
            | Self::CertificateRefused(_)
            | Self::Unsent(_)
            | Self::Reset { stream_only: false, .. } => true,
            Self::Reset { stream_only: true, .. }
            // A peer that drains says so, and one with too many streams.
            | Self::Refused { .. }
            | Self::BadRequest(_)
            | Self::UnknownCoding
            | Self::AppSwitched(_)
            | Self::NoUpgrade(_)
            | Self::Loop(_)
            | Self::MethodNotSupported(_)
            | Self::UnknownService(_)
            | Self::UnknownPort { .. }
            | Self::DiscoveryUnavailable(_)
            | Self::NoEndpoint(_)
            | Self::RequestTimeout(_)
            | Self::IdleTimeout(_)
            | Self::ClientClosed
            | Self::NotServed(_)
            | Self::AppUnreachable { .. }
            | Self::AppUnsent(_)
            | Self::AppRefused { .. }
            | Self::AppReset { .. }
            | Self::AppTimeout(_)
            | Self::RouteNotFound(_)
            | Self::NoBackend(_)
            | Self::Denied { .. }
            | Self::RateLimited { .. }
            | Self::Overloaded(_)
            | Self::RetryRefused
            | Self::InFlightLimit { .. }
            | Self::PendingLimit { .. }
            | Self::ConnectionLimit { .. }
            | Self::DeadlineExceeded
            | Self::TryTimeout { .. }
            | Self::EgressDenied(_)
            | Self::PlaintextRefused
            | Self::FaultInjected { .. } => false,
            Self::StreamRefused { reason, .. } => {
                // It cannot reach its application: as good as gone.
                matches!(reason, Some(Reason::AppUnreachable | Reason::AppReset | Reason::NotServed))
            }
        }
    }
}

/// The first error of a type among the causes; I/O errors are looked into.
pub(crate) fn cause<'a, E: std::error::Error + 'static>(
    error: &'a (dyn std::error::Error + 'static),
) -> Option<&'a E> {
    let mut source = Some(error);
    while let Some(cause) = source {
        let inner = || cause.downcast_ref::<std::io::Error>()?.get_ref()?.downcast_ref();
        if let Some(found) = cause.downcast_ref().or_else(inner) {
            return Some(found);
        }
        source = cause.source();
    }
    None
}
