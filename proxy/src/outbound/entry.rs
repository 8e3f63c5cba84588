//! The ways into the outbound side: one byte stream of the application, and where it goes. Finds out
//! what is spoken on it, and hands it on: to the HTTP server, or as it is to an endpoint.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use outrigger_api::resource::Protocol;
use outrigger_common::name::ServiceName;
use tokio::time::Instant;

use super::server;
use super::tcp::{self, Opened, Place};
use crate::control::owners::Owner;
use crate::detect::Verdict;
use crate::error::ProxyError;
use crate::io::{Prefixed, Stream, read_into, tell};
use crate::reason::Reason;
use crate::shared::Shared;
use crate::telemetry::metrics::Direction;
use crate::telemetry::tcp::Detected;

/// A client whose destination cannot be connected to gets this long to say that it speaks HTTP, and so
/// to be told why.
const LAST_WORD: Duration = Duration::from_millis(500);

/// Where a connection of the application goes, as far as the connection itself says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Its requests name it one by one, or the host of its TLS hello does: the listener that
    /// applications are pointed at.
    Named,
    /// One port of a service: a dedicated local port, a captured virtual address, CONNECT.
    Service {
        /// The service.
        name: ServiceName,
        /// Its port.
        port: u16,
    },
    /// Exactly one endpoint of it: the captured address of a workload.
    Endpoint {
        /// The service.
        name: ServiceName,
        /// Its port.
        port: u16,
        /// The workload.
        workload: Box<str>,
    },
    /// An address outside of the mesh, which the egress policy allows.
    Outside(SocketAddr),
    /// Nowhere: it was captured on its way to this address, and does not go on.
    Refused(SocketAddr, Refusal),
}

/// Why a captured connection does not go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It would come back to this sidecar.
    Loop,
    /// It would leave the mesh, which the egress policy denies.
    Egress,
    /// It would leave the mesh, and nobody has said yet whether it may.
    Unknown,
}

impl Refusal {
    /// What is said about it.
    pub fn error(self, address: SocketAddr) -> ProxyError {
        match self {
            Self::Loop => ProxyError::Loop(address.to_string()),
            Self::Egress => ProxyError::EgressDenied(address.to_string()),
            Self::Unknown => ProxyError::DiscoveryUnavailable(format!(
                "{address}: this sidecar was never told whether applications may leave the mesh"
            )),
        }
    }
}

impl Target {
    /// Where a connection to `address` goes, by whose that is.
    pub fn of(owner: Owner, address: SocketAddr) -> Self {
        match owner {
            Owner::Service { name, port } => Self::Service { name, port },
            Owner::Endpoint { name, port, workload } => Self::Endpoint { name, port, workload },
            Owner::Outside => Self::Outside(address),
        }
    }

    /// The service port it names, if it does.
    pub fn service(&self) -> Option<(&ServiceName, u16)> {
        match self {
            Self::Service { name, port } | Self::Endpoint { name, port, .. } => Some((name, *port)),
            Self::Named | Self::Outside(_) | Self::Refused(..) => None,
        }
    }

    /// The one workload it is for, if it is for one.
    pub fn workload(&self) -> Option<&str> {
        match self {
            Self::Endpoint { workload, .. } => Some(workload),
            Self::Named | Self::Service { .. } | Self::Outside(_) | Self::Refused(..) => None,
        }
    }
}

/// Serves one byte stream of the application until it ends, or the drain has let its last request
/// finish. `from` is the application's own end of it.
pub async fn serve<Io: Stream>(shared: Arc<Shared>, io: Io, from: SocketAddr, target: Target) {
    match target {
        Target::Named => named(&shared, io, from).await,
        Target::Outside(address) => tcp::outside(&shared, io, address).await,
        Target::Refused(address, why) => {
            let conversation = Conversation::new(&shared, io, from, target);
            Box::pin(conversation.last_word(&why.error(address), None)).await;
        }
        target @ (Target::Service { .. } | Target::Endpoint { .. }) => {
            known(&shared, io, from, target).await;
        }
    }
}

/// HTTP, or TLS with the name of a service.
async fn named<Io: Stream>(shared: &Arc<Shared>, mut io: Io, from: SocketAddr) {
    let mut bytes = Vec::new();
    let telling = async {
        // The time a client takes to begin is its own.
        let first = read_into(&mut io, &mut bytes).await?;
        let since = Instant::now();
        let verdict = if first == 0 { None } else { Some(tell(&mut io, &mut bytes, None).await?) };
        io::Result::Ok((verdict, since))
    };
    let told = tokio::select! {
        told = tokio::time::timeout(shared.config.timeouts.idle, telling) => told,
        () = shared.outbound_drain.signalled() => return,
    };
    let Ok(Ok((Some(verdict), since))) = told else {
        shared.metrics.detected(Direction::Outbound, Detected::None, Duration::ZERO);
        return;
    };
    let io = Prefixed::new(Bytes::from(bytes), io);
    let (version, detected) = match verdict {
        Verdict::Tls(name) => {
            shared.metrics.detected(Direction::Outbound, Detected::Tls, since.elapsed());
            return Box::pin(tcp::by_name(shared, io, from, name.as_deref())).await;
        }
        Verdict::Http2 => (Version::HTTP_2, Detected::H2),
        // What is no HTTP either is the HTTP server's to refuse.
        Verdict::Http1 => (Version::HTTP_11, Detected::Http1),
        Verdict::Opaque | Verdict::More { .. } => (Version::HTTP_11, Detected::Opaque),
    };
    shared.metrics.detected(Direction::Outbound, detected, since.elapsed());
    server::serve(shared, io, from, Target::Named, version).await;
}

/// Anything, to a service that is known before the first byte.
async fn known<Io: Stream>(shared: &Arc<Shared>, io: Io, from: SocketAddr, target: Target) {
    let Some((name, port)) = target.service() else { return };
    let place = match tcp::locate(shared, name, port, target.workload()).await {
        Ok(place) => place,
        Err(error) => {
            return Box::pin(Conversation::new(shared, io, from, target).last_word(&error, None)).await;
        }
    };
    match place.protocol() {
        Protocol::Tcp => Box::pin(tcp::carry(shared, io, from, &place)).await,
        Protocol::Auto => Box::pin(Conversation::new(shared, io, from, target).begin(&place)).await,
        Protocol::Http | Protocol::Http1 => {
            Box::pin(declared_http(shared, io, from, target, Version::HTTP_11)).await;
        }
        Protocol::Http2 | Protocol::Grpc => {
            Box::pin(declared_http(shared, io, from, target, Version::HTTP_2)).await;
        }
    }
}

/// HTTP, because the service says so: only its version is to be found out. What is neither is refused as
/// a client of `usual` understands it: by a response, or where an HTTP/2 preface was to come by the end
/// of the connection (RFC 9113 section 3.4).
async fn declared_http<Io: Stream>(
    shared: &Arc<Shared>,
    mut io: Io,
    from: SocketAddr,
    target: Target,
    usual: Version,
) {
    let mut bytes = Vec::new();
    let telling = async {
        match read_into(&mut io, &mut bytes).await {
            Ok(1..) => tell(&mut io, &mut bytes, None).await.ok(),
            Ok(0) | Err(_) => None,
        }
    };
    let told = tokio::select! {
        told = tokio::time::timeout(shared.config.timeouts.idle, telling) => told,
        () = shared.outbound_drain.signalled() => return,
    };
    let Ok(Some(verdict)) = told else { return };
    let version = match verdict {
        Verdict::Http1 => Version::HTTP_11,
        Verdict::Http2 => Version::HTTP_2,
        Verdict::Tls(_) | Verdict::Opaque | Verdict::More { .. } => usual,
    };
    let io = Prefixed::new(Bytes::from(bytes), io);
    server::serve(shared, io, from, target, version).await;
}

/// A connection of which it is not yet known what is spoken on it.
struct Conversation<'a, Io> {
    shared: &'a Arc<Shared>,
    io: Io,
    /// What the client has said.
    bytes: Vec<u8>,
    from: SocketAddr,
    target: Target,
    since: Instant,
}

/// A connection to the destination, as far as it is.
enum Dialled<'a> {
    Not,
    Under(Pin<Box<dyn Future<Output = Result<Opened, ProxyError>> + Send + 'a>>),
    Done(Box<Opened>),
}

impl<'a, Io: Stream> Conversation<'a, Io> {
    fn new(shared: &'a Arc<Shared>, io: Io, from: SocketAddr, target: Target) -> Self {
        Self { shared, io, bytes: Vec::new(), from, target, since: Instant::now() }
    }

    fn detected(&self, what: Detected) {
        self.shared.metrics.detected(Direction::Outbound, what, self.since.elapsed());
    }

    /// Gives the client a moment to speak first, which costs those that do nothing; then dials, for the
    /// server may be the one to speak.
    async fn begin(mut self, place: &'a Place) {
        let moment = self.shared.config.timeouts.detect;
        match tokio::time::timeout(moment, read_into(&mut self.io, &mut self.bytes)).await {
            Ok(read) => self.client_spoke(read, place, Dialled::Not).await,
            Err(_) => self.race(place).await,
        }
    }

    /// Dials while the client is silent, and listens to both.
    async fn race(mut self, place: &'a Place) {
        let shared = self.shared;
        let mut dialling = Box::pin(tcp::open(shared, place, self.from));
        let mut opened = tokio::select! {
            opened = &mut dialling => match opened {
                Ok(opened) => Box::new(opened),
                Err(error) => return self.last_word(&error, Some(place)).await,
            },
            read = read_into(&mut self.io, &mut self.bytes) => {
                return self.client_spoke(read, place, Dialled::Under(dialling)).await;
            }
            () = shared.outbound_drain.signalled() => return self.io.abort(),
        };
        let mut first = Vec::new();
        let idle = opened.idle;
        tokio::select! {
            read = read_into(&mut opened.stream, &mut first) => {
                self.detected(Detected::ServerFirst);
                let record = place.record(shared);
                match read {
                    // An end without a word is an answer as well.
                    Ok(_) => tcp::join(shared, self.io, *opened, first.into(), record).await,
                    Err(_) => tcp::end_early(&self.io, record, Reason::UpstreamReset),
                }
            }
            read = read_into(&mut self.io, &mut self.bytes) => {
                self.client_spoke(read, place, Dialled::Done(opened)).await;
            }
            () = tokio::time::sleep(idle) => {
                self.detected(Detected::None);
                tcp::end_early(&self.io, place.record(shared), Reason::IdleTimeout);
            }
            () = shared.outbound_drain.signalled() => tcp::end_early(&self.io, place.record(shared), Reason::Drained),
        }
    }

    /// The client has said something, or has ended its side, or is gone.
    async fn client_spoke(mut self, read: io::Result<usize>, place: &Place, dialled: Dialled<'a>) {
        self.since = Instant::now();
        let short = self.shared.config.timeouts.detect;
        let told = match read {
            Ok(_) => tell(&mut self.io, &mut self.bytes, Some(short)).await,
            Err(error) => Err(error),
        };
        let shared = self.shared;
        let Ok(verdict) = told else { return self.detected(Detected::None) };
        let version = match verdict {
            Verdict::Http1 => Version::HTTP_11,
            Verdict::Http2 => Version::HTTP_2,
            Verdict::Tls(_) | Verdict::Opaque | Verdict::More { .. } => {
                self.detected(if matches!(verdict, Verdict::Tls(_)) {
                    Detected::Tls
                } else {
                    Detected::Opaque
                });
                let record = place.record(shared);
                let opened = match dialled {
                    Dialled::Not => tcp::open(shared, place, self.from).await,
                    Dialled::Under(dialling) => dialling.await,
                    Dialled::Done(opened) => Ok(*opened),
                };
                let io = Prefixed::new(self.bytes.into(), self.io);
                return match opened {
                    Ok(opened) => tcp::join(shared, io, opened, Bytes::new(), record).await,
                    Err(error) => tcp::refuse(&io, record, &error),
                };
            }
        };
        match dialled {
            Dialled::Done(opened) => opened.unused().await,
            // Not kept until the last request is over, with its place at the server.
            Dialled::Not | Dialled::Under(_) => drop(dialled),
        }
        self.http(version).await;
    }

    async fn http(self, version: Version) {
        self.detected(if version == Version::HTTP_2 { Detected::H2 } else { Detected::Http1 });
        let io = Prefixed::new(self.bytes.into(), self.io);
        server::serve(self.shared, io, self.from, self.target, version).await;
    }

    /// It cannot be carried. A client that speaks HTTP is told why, as with any request; any other
    /// learns no more than that.
    async fn last_word(mut self, error: &ProxyError, place: Option<&Place>) {
        let short = self.shared.config.timeouts.detect;
        let telling = async {
            match read_into(&mut self.io, &mut self.bytes).await {
                Ok(1..) => tell(&mut self.io, &mut self.bytes, Some(short)).await.ok(),
                Ok(0) | Err(_) => None,
            }
        };
        match tokio::time::timeout(LAST_WORD, telling).await {
            Ok(Some(Verdict::Http1)) => self.http(Version::HTTP_11).await,
            Ok(Some(Verdict::Http2)) => self.http(Version::HTTP_2).await,
            Ok(_) | Err(_) => {
                let record = match place {
                    Some(place) => place.record(self.shared),
                    None => tcp::nowhere(self.shared),
                };
                tcp::refuse(&self.io, record, error);
            }
        }
    }
}
