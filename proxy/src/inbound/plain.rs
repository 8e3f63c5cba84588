//! Connections to the application that were captured on their way in: no sidecar is at their other end,
//! or one that did not know the way. What becomes of them is for the mesh's mTLS mode to say.

mod upgrade;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use outrigger_api::resource::{MtlsMode, Protocol};
use outrigger_common::identity::SpiffeId;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::Instant;

use self::upgrade::{Bridge, Pending};
use super::handle::Payload;
use super::served::ServedPort;
use super::{Known, Peer, drive, handle, not_allowed, probe, tcp};
use crate::capture::original;
use crate::detect::Verdict;
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::exec::Executor;
use crate::http::headers;
use crate::io::{Guarded, Prefixed, Stream, read_into, tell};
use crate::reason::Reason;
use crate::route::DEFAULT_ROUTE;
use crate::shared::Shared;
use crate::tcp::keep_alive;
use crate::tcp::relay::{End, relay};
use crate::telemetry::edge::Edge;
use crate::telemetry::metrics::Direction;
use crate::telemetry::tcp::{ConnectionRecord, Detected};

/// The source's label: nobody vouches for any other.
pub const NOBODY: &str = "unknown";
/// The destination's label of a port that is not served.
const NOWHERE: &str = "unknown";
/// How long a client that will be refused may take to begin, and then to hear why.
const PATIENCE: Duration = Duration::from_secs(5);

/// What becomes of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Admission<P> {
    /// It is told why not, where it speaks HTTP; the probes of the port, if it is served, are answered.
    Refuse(Option<P>),
    /// It goes the way of those that prove an identity, without one.
    Serve(P),
    /// It goes on untouched: the mesh knows nothing of that port.
    Pass,
}

/// `own`: it is for the sidecar itself. `port`: what is served where it was going.
fn admission<P>(mode: MtlsMode, own: bool, port: Option<P>) -> Admission<P> {
    match (mode, own, port) {
        // To pass it on would be to call oneself.
        (_, true, _) => Admission::Refuse(None),
        (MtlsMode::Strict, false, port) => Admission::Refuse(port),
        (MtlsMode::Permissive, false, Some(port)) => Admission::Serve(port),
        (MtlsMode::Permissive, false, None) => Admission::Pass,
    }
}

/// Serves one connection that was captured on its way in, until it ends, the mesh becomes strict, or
/// the drain has no more time.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let (Some(target), Some(caller)) =
        (original::destination(&stream).or_else(|| stream.local_addr().ok()), shared.caller.get())
    else {
        return;
    };
    keep_alive(&stream);
    let port = shared.served.get().and_then(|served| served.at_target(target.port()));
    let destination = port.as_ref().map_or(NOWHERE, |port| port.service.as_str());
    let edge = shared.metrics.edge(Direction::Inbound, NOBODY, destination, DEFAULT_ROUTE);
    let mode = shared.directory.load().mtls;
    match admission(mode, shared.own.has_port(target.port()), port) {
        Admission::Refuse(port) => refuse(&shared, stream, port, edge).await,
        Admission::Pass => pass(&shared, stream, target, edge).await,
        Admission::Serve(port) => {
            let peer = Peer {
                id: SpiffeId::nobody(caller.id.trust_domain().clone()),
                client_cert: None,
                asked: format!("{} in plaintext", port.service),
                port: Some(port.clone()),
                known: Known::default(),
            };
            Visit { shared: &shared, peer: Arc::new(peer), port, edge }.begin(stream).await;
        }
    }
}

/// Says why not, or what a probe wants to know, and ends the connection: with 403 for HTTP, with a reset
/// for anything else.
async fn refuse(shared: &Arc<Shared>, mut stream: TcpStream, port: Option<Arc<ServedPort>>, edge: Arc<Edge>) {
    let mut bytes = Vec::new();
    let telling = async {
        match read_into(&mut stream, &mut bytes).await {
            Ok(1..) => tell(&mut stream, &mut bytes, None).await.ok(),
            Ok(0) | Err(_) => None,
        }
    };
    let told = tokio::time::timeout(PATIENCE, telling).await.ok().flatten();
    let version = match told {
        Some(Verdict::Http1) => Version::HTTP_11,
        Some(Verdict::Http2) => Version::HTTP_2,
        Some(Verdict::Tls(_) | Verdict::Opaque | Verdict::More { .. }) | None => {
            tracing::debug!(destination = edge.destination(), "plaintext refused");
            stream.abort();
            return ConnectionRecord::start(edge, shared.metrics.clone()).end(Some(Reason::PlaintextRefused));
        }
    };
    let answered = Arc::new(Notify::new());
    let service = service_fn(|request| {
        let (shared, edge, port, answered) = (shared.clone(), edge.clone(), port.clone(), answered.clone());
        async move {
            let response = probe::answer(&shared, port.as_ref(), edge, request).await;
            answered.notify_one();
            Ok::<_, Infallible>(response)
        }
    });
    let io = TokioIo::new(Prefixed::new(Bytes::from(bytes), stream));
    let bytes = shared.config.limits.header_bytes;
    let ending = async {
        if version == Version::HTTP_2 {
            let mut builder = http2::Builder::new(Executor(shared.tasks.clone()));
            builder.timer(TokioTimer::new()).max_concurrent_streams(1);
            let connection = builder.serve_connection(io, service);
            once(connection, &answered).await
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(bytes)
                .keep_alive(false);
            once(builder.serve_connection(io, service), &answered).await
        }
    };
    let limit = PATIENCE + shared.config.health.timeout;
    if let Ok(Err(error)) = tokio::time::timeout(limit, ending).await {
        tracing::debug!(%error, "refused connection ended");
    }
}

/// Runs a connection until one request is answered.
async fn once<C: GracefulConnection<Error = hyper::Error>>(
    connection: C,
    answered: &Notify,
) -> hyper::Result<()> {
    tokio::pin!(connection);
    tokio::select! {
        result = connection.as_mut() => return result,
        () = answered.notified() => connection.as_mut().graceful_shutdown(),
    }
    connection.await
}

/// Carries a connection to a port the mesh knows nothing of, as it came.
async fn pass(shared: &Arc<Shared>, stream: TcpStream, target: SocketAddr, edge: Arc<Edge>) {
    let record = ConnectionRecord::start(edge, shared.metrics.clone());
    let connecting = tokio::time::timeout(shared.config.timeouts.connect, TcpStream::connect(target));
    match connecting.await {
        Ok(Ok(app)) => {
            let strict = shared.directory.until(|snapshot| snapshot.mtls == MtlsMode::Strict);
            join(shared, (stream, app), shared.config.timeouts.tcp_idle, strict, record).await;
        }
        Ok(Err(_)) | Err(_) => {
            stream.abort();
            record.end(Some(Reason::AppUnreachable));
        }
    }
}

/// Copies until both are done; `unwelcome` ends it before.
async fn join<C: Stream>(
    shared: &Shared,
    (mut client, mut app): (C, TcpStream),
    idle: Duration,
    unwelcome: impl Future<Output = ()>,
    mut record: ConnectionRecord,
) {
    let reason = tokio::select! {
        end = relay(&mut client, &mut app, idle, &mut record) => match end {
            End::Complete => None,
            End::Client(error) => Some(tcp::broken_by_client(&error)),
            End::Server(_) => Some(Reason::AppReset),
            End::Idle => Some(Reason::IdleTimeout),
        },
        () = unwelcome => Some(Reason::PlaintextRefused),
        () = tcp::drained(shared) => Some(Reason::Drained),
    };
    if reason.is_some() {
        client.abort();
        app.abort();
    }
    record.end(reason);
}

/// A connection that is let in without an identity.
struct Visit<'a> {
    shared: &'a Arc<Shared>,
    peer: Arc<Peer>,
    port: Arc<ServedPort>,
    edge: Arc<Edge>,
}

impl Visit<'_> {
    /// Finds out what is spoken, as far as that is not declared. A client that is silent may be waiting
    /// for the application to speak first.
    async fn begin(self, mut stream: TcpStream) {
        let timeouts = &self.shared.config.timeouts;
        let auto = match self.port.protocol {
            Protocol::Tcp => return self.opaque(stream, Vec::new(), None).await,
            Protocol::Auto => true,
            Protocol::Http | Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => false,
        };
        let (mut bytes, since) = (Vec::new(), Instant::now());
        let patience = if auto { timeouts.detect } else { timeouts.idle };
        let mut dialled = None;
        let mut first = tokio::time::timeout(patience, read_into(&mut stream, &mut bytes)).await;
        if first.is_err() && auto {
            let app = match tcp::admit(self.shared, &self.peer, &self.port).await {
                Ok(app) => app,
                Err(error) => return self.refused(&stream, &error),
            };
            let mut word = [0; 1];
            let reading = tokio::time::timeout(timeouts.idle, read_into(&mut stream, &mut bytes));
            first = tokio::select! {
                read = reading => read,
                // Its first word, or its end.
                _ = app.0.peek(&mut word) => {
                    self.detected(Detected::ServerFirst, since);
                    return self.opaque(stream, Vec::new(), Some(app)).await;
                }
            };
            dialled = Some(app);
        }
        // Who ends without a word may still want to hear what the application says.
        let words = if auto { 0 } else { 1 };
        if !matches!(first, Ok(Ok(read)) if read >= words) {
            return self.detected(Detected::None, since);
        }
        let short = auto.then_some(timeouts.detect);
        let telling = async {
            tokio::select! {
                told = tokio::time::timeout(timeouts.idle, tell(&mut stream, &mut bytes, short)) => told.ok(),
                () = self.shared.inbound_drain.signalled() => None,
            }
        };
        let Some(told) = telling.await else { return self.detected(Detected::None, since) };
        if matches!(told, Ok(Verdict::Http1 | Verdict::Http2)) {
            // Not for as long as the requests take.
            dialled = None;
        }
        match told {
            Ok(Verdict::Http1) => {
                self.detected(Detected::Http1, since);
                self.http(Prefixed::new(Bytes::from(bytes), stream), Version::HTTP_11).await;
            }
            Ok(Verdict::Http2) => {
                self.detected(Detected::H2, since);
                self.http(Prefixed::new(Bytes::from(bytes), stream), Version::HTTP_2).await;
            }
            Ok(verdict) if auto => {
                let tls = matches!(verdict, Verdict::Tls(_));
                self.detected(if tls { Detected::Tls } else { Detected::Opaque }, since);
                self.opaque(stream, bytes, dialled).await;
            }
            // What is no HTTP is the HTTP server's to refuse.
            Ok(_) => self.http(Prefixed::new(Bytes::from(bytes), stream), Version::HTTP_11).await,
            Err(error) => tracing::debug!(%error, "plaintext connection ended before it was clear"),
        }
    }

    fn detected(&self, what: Detected, since: Instant) {
        self.shared.metrics.detected(Direction::Inbound, what, since.elapsed());
    }

    fn refused(&self, stream: &TcpStream, error: &ProxyError) {
        tracing::debug!(%error, reason = error.reason().as_str(), "plaintext connection refused");
        stream.abort();
        ConnectionRecord::start(self.edge.clone(), self.shared.metrics.clone()).end(Some(error.reason()));
    }

    async fn opaque(self, stream: TcpStream, said: Vec<u8>, dialled: Option<(TcpStream, Duration)>) {
        let admitted = match dialled {
            Some(app) => Ok(app),
            None => tcp::admit(self.shared, &self.peer, &self.port).await,
        };
        match admitted {
            Ok((app, idle)) => {
                let record = ConnectionRecord::start(self.edge, self.shared.metrics.clone());
                let mut client = Guarded::new(Prefixed::new(Bytes::from(said), stream));
                if self.port.protocol == Protocol::Auto {
                    client.watch();
                }
                join(self.shared, (client, app), idle, not_allowed(self.shared, &self.peer), record).await;
            }
            Err(error) => self.refused(&stream, &error),
        }
    }

    async fn http(self, io: Prefixed<TcpStream>, version: Version) {
        let switched = Arc::new(Mutex::new(None));
        let service = service_fn(|request| {
            let (shared, peer, switched) = (self.shared.clone(), self.peer.clone(), switched.clone());
            Box::pin(async move {
                let (response, bridge) = exchange(&shared, &peer, request).await;
                if bridge.is_some() {
                    *switched.lock().expect("no holder of this lock panics") = bridge;
                }
                Ok::<_, Infallible>(response)
            })
        });
        let config = &self.shared.config;
        let result = if version == Version::HTTP_2 {
            let builder = super::h2_builder(self.shared);
            let connection = builder.serve_connection(TokioIo::new(io), service);
            drive(self.shared, &self.peer, connection, http2::Connection::graceful_shutdown).await
        } else {
            let mut builder = http1::Builder::new();
            builder
                .timer(TokioTimer::new())
                .header_read_timeout(config.timeouts.idle)
                .max_buf_size(config.limits.header_bytes);
            let connection = builder.serve_connection(TokioIo::new(io), service).with_upgrades();
            drive(self.shared, &self.peer, connection, http1::UpgradeableConnection::graceful_shutdown).await
        };
        let bridge = switched.lock().expect("no holder of this lock panics").take();
        match (result, bridge) {
            (Ok(()), Some(bridge)) => Box::pin(bridge.run(self.shared, &self.peer)).await,
            (Ok(()), None) => {}
            (Err(error), _) => tracing::debug!(%error, "plaintext connection ended"),
        }
    }
}

/// Makes of a request what another sidecar would have made of it, believing nothing it says of the
/// mesh, and of the response what that one would hand on. With it, what the connection becomes.
async fn exchange(
    shared: &Arc<Shared>,
    peer: &Peer,
    mut request: Request<Incoming>,
) -> (Response<Body>, Option<Bridge>) {
    let pending = Pending::take(&mut request);
    let (mut head, body) = request.into_parts();
    let version = HeaderValue::from_static(if head.version == Version::HTTP_2 { "2" } else { "1.1" });
    headers::strip_mesh(&mut head.headers);
    headers::strip_expect(&mut head.headers);
    head.headers.insert(headers::VERSION, version);
    let (pending, payload) = match pending {
        Some((pending, payload)) => (Some(pending), payload),
        None => (None, Payload::Body(body)),
    };
    let mut response = handle::serve(shared, peer, (head, payload)).await;
    *response.version_mut() = Version::default();
    let ok = response.status() == StatusCode::OK;
    let map = response.headers_mut();
    let agreed = map.remove(&headers::MESH_UPGRADE).filter(|_| ok);
    let reason = map.get(&headers::REASON).cloned();
    headers::strip_mesh(map);
    headers::strip_hop_by_hop(map);
    if let Some(reason) = reason {
        map.insert(headers::REASON, reason);
    }
    let bridge = pending.zip(agreed).map(|(pending, agreed)| pending.agree(&agreed, &mut response));
    (response, bridge)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_permissive_mesh_lets_plaintext_in_and_never_to_the_sidecar_itself() {
        use MtlsMode::{Permissive, Strict};
        for (mode, own, port, expected) in [
            (Strict, false, Some("orders"), Admission::Refuse(Some("orders"))),
            (Strict, false, None, Admission::Refuse(None)),
            (Strict, true, None, Admission::Refuse(None)),
            (Permissive, false, Some("orders"), Admission::Serve("orders")),
            (Permissive, false, None, Admission::Pass),
            (Permissive, true, None, Admission::Refuse(None)),
            (Permissive, true, Some("orders"), Admission::Refuse(None)),
        ] {
            assert_eq!(admission(mode, own, port), expected, "{mode:?} {own} {port:?}");
        }
    }
}
