//! The peers' side: calls of other sidecars come in here over mutual TLS and leave for the
//! application.

pub mod exchange;
pub mod handle;
pub mod plain;
pub mod policy;
pub mod probe;
pub mod served;
pub mod tcp;
pub mod upgrade;

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::HeaderValue;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_api::resource::MtlsMode;
use outrigger_common::identity::SpiffeId;
use outrigger_common::mtls;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::served::ServedPort;
use crate::error::ProxyError;
use crate::http::exec::Executor;
use crate::http::window;
use crate::io::Ahead;
use crate::pool::pulse;
use crate::shared::Shared;
use crate::tcp::preface;
use crate::telemetry::edge::Edge;
use crate::telemetry::metrics::Direction;

/// Longest handshake: a peer that connects and says nothing must not hold a permit.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest time to tell a peer why it is not served.
const GOODBYE: Duration = Duration::from_secs(1);
/// Concurrent requests a peer may send on one connection; its own limit is lower.
const STREAMS: u32 = window::STREAMS;

/// A peer that proved who it is, and the port it asked for.
#[derive(Debug)]
pub struct Peer {
    /// From its certificate.
    pub id: SpiffeId,
    /// For the application: whose call it is; nothing of who proved nothing.
    pub client_cert: Option<HeaderValue>,
    /// The port named by SNI, if this sidecar serves it.
    pub port: Option<Arc<ServedPort>>,
    /// What SNI said.
    pub asked: String,
    /// What was found out for its earlier requests.
    pub known: Known,
}

/// What requests of one connection have in common, found out once.
#[derive(Debug, Default)]
pub struct Known {
    /// One more than the count of the policies that last let the peer in; 0: none has.
    allowed: AtomicU64,
    /// The edge of the service it named last.
    edge: Mutex<Option<(HeaderValue, Arc<Edge>)>>,
}

impl Known {
    /// Whether the peer may call by the policies of this count, asking `authorize` where that is not known.
    ///
    /// # Errors
    /// It may not.
    pub fn allowed(
        &self,
        version: u64,
        authorize: impl FnOnce() -> Result<(), ProxyError>,
    ) -> Result<(), ProxyError> {
        if self.allowed.load(Ordering::Relaxed) != version + 1 {
            authorize()?;
            self.allowed.store(version + 1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The edge of the service that `claimed` names, made by `find` where it is not the last one.
    pub fn edge(&self, claimed: Option<&HeaderValue>, find: impl FnOnce() -> Arc<Edge>) -> Arc<Edge> {
        let Some(claimed) = claimed else { return find() };
        let mut last = self.edge.lock().expect("no holder of this lock panics");
        match &*last {
            Some((named, edge)) if named == claimed => edge.clone(),
            _ => {
                let edge = find();
                *last = Some((claimed.clone(), edge.clone()));
                edge
            }
        }
    }
}

/// Serves one connection of another sidecar until it ends or the drain has let its last request
/// finish. Whoever cannot prove an identity of this mesh gets no byte of HTTP.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let Some(tls) = shared.tls.load_full() else { return };
    let accepting = TlsAcceptor::from(tls.server.clone()).accept(Ahead::new(stream));
    let accepted = match tokio::time::timeout(HANDSHAKE_TIMEOUT, accepting).await {
        Ok(Ok(stream)) => peer(&shared, &stream).map(|peer| (stream, peer)),
        Ok(Err(error)) => Err(("failed", error.to_string())),
        Err(_) => Err(("timeout", "no handshake within 5s".to_owned())),
    };
    let (stream, peer) = match accepted {
        Ok(accepted) => accepted,
        Err((result, error)) => {
            shared.metrics.handshake(Direction::Inbound, result);
            tracing::debug!(error, "peer refused");
            return;
        }
    };
    let place = shared.peers.try_acquire(&peer.id);
    shared.metrics.handshake(Direction::Inbound, if place.is_some() { "ok" } else { "limited" });
    let protocol = stream.get_ref().1.alpn_protocol();
    if protocol == Some(preface::ALPN) {
        return Box::pin(tcp::serve(shared, stream, peer, place)).await;
    }
    let h2 = protocol == Some(b"h2");
    let Some(_place) = place else {
        tracing::debug!(peer = %peer.id, "connection refused: its peer has too many");
        if h2 {
            let _late = tokio::time::timeout(GOODBYE, Box::pin(turn_away(stream))).await;
        }
        return;
    };
    if h2 {
        pulse::end_when_unacknowledged(stream.get_ref().0.get_ref());
    }
    let result =
        if h2 { serve_h2(&shared, stream, peer).await } else { serve_h1(&shared, stream, peer).await };
    if let Err(error) = result {
        tracing::debug!(%error, "connection of a peer ended");
    }
}

/// Says that no request of the connection was or will be looked at, so that all of them go elsewhere.
async fn turn_away(mut stream: TlsStream<Ahead<TcpStream>>) -> Result<(), h2::Error> {
    let mut connection = h2::server::handshake(&mut stream).await?;
    connection.abrupt_shutdown(h2::Reason::ENHANCE_YOUR_CALM);
    poll_fn(|context| connection.poll_closed(context)).await?;
    drop(connection);
    // Until its end: to close with something unread would be a reset, which may overtake what was said.
    let mut space = [0; 4096];
    while stream.read(&mut space).await.is_ok_and(|read| read > 0) {}
    Ok(())
}

fn peer(shared: &Shared, stream: &TlsStream<Ahead<TcpStream>>) -> Result<Arc<Peer>, (&'static str, String)> {
    let tls = stream.get_ref().1;
    let refuse = |why: String| ("identity_mismatch", why);
    let id = mtls::peer_id(tls.peer_certificates().unwrap_or_default())
        .map_err(|error| refuse(error.to_string()))?;
    let own = shared.caller.get().ok_or_else(|| refuse("no identity of our own yet".to_owned()))?;
    if id.trust_domain() != own.id.trust_domain() {
        return Err(refuse(format!("{id} is of another trust domain")));
    }
    if id.namespace().is_none() {
        return Err(refuse(format!("{id} does not call services")));
    }
    let asked = tls.server_name().unwrap_or_default().to_owned();
    let port = shared.served.get().and_then(|served| served.find(&asked));
    let client_cert = HeaderValue::try_from(format!("By={};URI={id}", own.id))
        .map_err(|error| refuse(error.to_string()))?;
    Ok(Arc::new(Peer { id, client_cert: Some(client_cert), port, asked, known: Known::default() }))
}

/// Resolves when a connection should take no new requests: the drain has begun, or it is older than
/// callers keep theirs. Whoever stole an identity must not go on asking with it on an old connection.
async fn enough(shared: &Shared) {
    tokio::select! {
        () = shared.inbound_drain.signalled() => {}
        () = tokio::time::sleep(shared.config.pool.max_age.mul_f64(1.2)) => {}
    }
}

/// Resolves when a new policy no longer lets the peer call, or the mesh no longer lets in who proved
/// nothing. Who was not let in from the beginning is told so request by request instead.
async fn denied(shared: &Shared, peer: &Peer) {
    tokio::select! {
        () = denied_by_policy(peer) => {}
        () = unproven(shared, peer) => {}
    }
}

/// Resolves when the peer may not call, be it from the beginning: for a connection that was let in
/// once, while policies may have changed.
async fn not_allowed(shared: &Shared, peer: &Peer) {
    // Heard from here on, so that no change falls between looking and listening.
    let later = denied(shared, peer);
    tokio::pin!(later);
    poll_fn(|context| {
        if later.as_mut().poll(context).is_ready() {
            return std::task::Poll::Ready(());
        }
        let port = peer.port.as_ref();
        if port.is_some_and(|port| port.policy().authorize(&peer.id, &port.service).is_err()) {
            return std::task::Poll::Ready(());
        }
        std::task::Poll::Pending
    })
    .await;
}

/// Resolves when the mesh has become strict for one who proved nothing.
async fn unproven(shared: &Shared, peer: &Peer) {
    if peer.id.is_proven() {
        return std::future::pending().await;
    }
    shared.directory.until(|snapshot| snapshot.mtls == MtlsMode::Strict).await;
}

async fn denied_by_policy(peer: &Peer) {
    let Some(port) = &peer.port else { return std::future::pending().await };
    let allowed = || port.policy().authorize(&peer.id, &port.service).is_ok();
    let mut version = port.policy_version();
    let mut was_allowed = allowed();
    loop {
        if version.changed().await.is_err() {
            return std::future::pending().await;
        }
        let now_allowed = allowed();
        if was_allowed && !now_allowed {
            return;
        }
        was_allowed = now_allowed;
    }
}

/// HTTP/2 as peers are served.
fn h2_builder(shared: &Shared) -> http2::Builder<Executor> {
    let header_list = shared.config.limits.header_bytes + window::HEAD_GROWTH;
    let header_list = u32::try_from(header_list).unwrap_or(u32::MAX);
    let mut builder = http2::Builder::new(Executor(shared.tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(window::STREAM)
        .initial_connection_window_size(window::CONNECTION)
        .max_frame_size(window::FRAME)
        .max_header_list_size(header_list)
        .keep_alive_interval(Duration::from_secs(30));
    builder
}

async fn serve_h2(
    shared: &Arc<Shared>,
    stream: TlsStream<Ahead<TcpStream>>,
    peer: Arc<Peer>,
) -> hyper::Result<()> {
    let builder = h2_builder(shared);
    let service = service_fn(|request| {
        let (shared, peer) = (shared.clone(), peer.clone());
        // Boxed: the library moves it several times on its way into a task.
        Box::pin(async move { Ok::<_, Infallible>(handle::handle(&shared, &peer, request).await) })
    });
    drive(
        shared,
        &peer,
        builder.serve_connection(TokioIo::new(stream), service),
        http2::Connection::graceful_shutdown,
    )
    .await
}

async fn serve_h1(
    shared: &Arc<Shared>,
    stream: TlsStream<Ahead<TcpStream>>,
    peer: Arc<Peer>,
) -> hyper::Result<()> {
    let service = service_fn(|request| {
        let (shared, peer) = (shared.clone(), peer.clone());
        Box::pin(async move { Ok::<_, Infallible>(handle::handle(&shared, &peer, request).await) })
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.timeouts.idle)
        .max_buf_size(shared.config.limits.header_bytes);
    drive(
        shared,
        &peer,
        builder.serve_connection(TokioIo::new(stream), service),
        http1::Connection::graceful_shutdown,
    )
    .await
}

/// Runs a connection to its end: its own, a gentle one when it has served long enough, or at once,
/// with all that is under way, when its peer may not call any more. `finish` has it take no more requests.
async fn drive<C>(shared: &Shared, peer: &Peer, connection: C, finish: fn(Pin<&mut C>)) -> hyper::Result<()>
where
    C: Future<Output = hyper::Result<()>>,
{
    tokio::pin!(connection);
    let gently = async {
        tokio::select! {
            result = connection.as_mut() => return result,
            () = enough(shared) => finish(connection.as_mut()),
        }
        // What is under way may take its time, a WebSocket or a stream all day, but no drain's.
        tokio::select! {
            result = connection.as_mut() => result,
            () = tcp::drained(shared) => Ok(()),
        }
    };
    tokio::select! {
        result = gently => result,
        () = denied(shared, peer) => {
            tracing::info!(peer = %peer.id, port = peer.asked, "connection ended: its peer may not call any more");
            Ok(())
        }
    }
}
