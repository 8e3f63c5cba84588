//! Connections: accept, TLS handshake, who is there.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use outrigger_common::drain::Drain;
use outrigger_common::identity::SpiffeId;
use outrigger_common::mtls;
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use super::limits::{Limits, Places, Stay};
use super::refusal::{Refusal, Strangers};
use crate::metrics::Metrics;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once; more wait in the kernel's queue. With fewer, slow clients would hold up the others.
const MAX_HANDSHAKES: usize = 256;
/// Pause after a failed accept (no file descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const QUEUE: usize = 64;
/// Watch streams of one connection: a sidecar has one, and two while it opens the next.
pub(super) const MAX_WATCHES: usize = 4;

/// Who is at the far end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct PeerInfo {
    /// Id and end of the certificate, if one was presented.
    pub(crate) proven: Option<(Arc<SpiffeId>, SystemTime)>,
    /// Places for watch streams on this connection.
    pub(crate) watches: Arc<Semaphore>,
}

/// A connection after its handshake.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
    /// How long it may stay without a certificate.
    stay: Option<Stay>,
    _place: OwnedSemaphorePermit,
}

/// What accepting works with.
pub(crate) struct Port {
    /// Where clients connect.
    pub(crate) listener: TcpListener,
    /// Read anew for each connection, so a renewed certificate is used at once.
    pub(crate) tls: Arc<ArcSwap<ServerConfig>>,
    /// How many connections there may be.
    pub(crate) limits: Limits,
    /// Counts handshakes.
    pub(crate) metrics: Arc<Metrics>,
    /// Knows whether clients wait.
    pub(crate) crowd: Crowd,
}

/// Places for handshakes; all clients come at once after a restart, and most have to wait for one.
#[derive(Debug, Clone)]
pub(crate) struct Crowd(Arc<Semaphore>);

impl Default for Crowd {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(MAX_HANDSHAKES)))
    }
}

impl Crowd {
    /// Whether so many handshakes are under way that more clients are likely to wait for theirs.
    pub(crate) fn is_there(&self) -> bool {
        self.0.available_permits() < MAX_HANDSHAKES / 2
    }
}

/// Accepts connections until the drain; those that finish their handshake come out of the channel.
pub(crate) fn accept(
    port: Port,
    tasks: Tasks,
    drain: Drain,
) -> (impl Future<Output = ()> + Send, mpsc::Receiver<io::Result<Connection>>) {
    let (ready, connections) = mpsc::channel(QUEUE);
    let Port { listener, tls, limits, metrics, crowd: Crowd(handshakes) } = port;
    let places = Arc::new(Places::new(limits));
    let strangers = Arc::new(Strangers::default());
    let accepting = async move {
        loop {
            let accepted = async {
                let handshake = handshakes.clone().acquire_owned().await.ok()?;
                let place = places.any().await?;
                Some((handshake, place, listener.accept().await))
            };
            let accepted = tokio::select! {
                accepted = accepted => accepted,
                () = drain.signalled() => return,
            };
            let Some((handshake, place, accepted)) = accepted else { return };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, ready) = (TlsAcceptor::from(tls.load_full()), ready.clone());
            let (places, metrics, strangers) = (places.clone(), metrics.clone(), strangers.clone());
            tasks.spawn("handshake", async move {
                let _handshake = handshake;
                let shaken = shake_hands(&acceptor, stream, address, &metrics, &strangers).await;
                let Some((stream, proven)) = shaken else { return };
                let stay = match proven {
                    Some(_) => None,
                    None => match places.anonymous(Instant::now()) {
                        Some(stay) => Some(stay),
                        None => {
                            tracing::debug!(%address, "too many connections without a certificate");
                            return metrics.handshake("refused");
                        }
                    },
                };
                metrics.handshake(if proven.is_some() { "mutual" } else { "anonymous" });
                let peer = PeerInfo { proven, watches: Arc::new(Semaphore::new(MAX_WATCHES)) };
                let connection = Connection { stream, peer, stay, _place: place };
                let _stopping = ready.send(Ok(connection)).await;
            });
        }
    };
    (accepting, connections)
}

type Proven = Option<(Arc<SpiffeId>, SystemTime)>;

async fn shake_hands(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    metrics: &Metrics,
    strangers: &Strangers,
) -> Option<(TlsStream<TcpStream>, Proven)> {
    let _unsupported = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, async {
        // One that gave up while it waited in the queue is not worth the work of a handshake.
        if stream.ready(Interest::READABLE).await?.is_read_closed() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        acceptor.accept(stream).await
    });
    let stream = match handshake.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => stream,
        Err(error) => {
            let refusal = Refusal::of(&error);
            tracing::debug!(%address, %error, reason = refusal.name(), "handshake failed");
            metrics.handshake_failed(refusal.name());
            strangers.met(refusal, address);
            return None;
        }
    };
    let proven = match stream.get_ref().1.peer_certificates() {
        None => None,
        Some(chain) => match (mtls::peer_id(chain), mtls::leaf_expiry(chain)) {
            (Ok(id), Ok(expires)) => Some((Arc::new(id), expires)),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%address, %error, "client certificate refused");
                metrics.handshake_failed(Refusal::Certificate.name());
                return None;
            }
        },
    };
    Some((stream, proven))
}

impl Connection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let over = self.stay.as_mut().is_some_and(|stay| stay.poll_over(cx).is_ready());
        if over { Err(io::ErrorKind::TimedOut.into()) } else { Ok(()) }
    }
}

impl Connected for Connection {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
