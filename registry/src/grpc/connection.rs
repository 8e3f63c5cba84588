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
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::metrics::Metrics;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once; more wait in the kernel's queue.
const MAX_HANDSHAKES: usize = 256;
/// Pause after a failed accept (no file descriptors left), so as not to spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
const QUEUE: usize = 64;

/// Who is at the far end of a connection.
#[derive(Debug, Clone)]
pub(crate) struct PeerInfo {
    /// Id and end of the certificate, if one was presented.
    pub(crate) proven: Option<(Arc<SpiffeId>, SystemTime)>,
}

/// A connection after its handshake.
pub(crate) struct Connection {
    stream: TlsStream<TcpStream>,
    peer: PeerInfo,
}

/// Accepts connections until the drain; those that finish their handshake come out of the channel.
/// The configuration is read anew for each, so a renewed certificate is used at once.
pub(crate) fn accept(
    listener: TcpListener,
    config: Arc<ArcSwap<ServerConfig>>,
    metrics: Arc<Metrics>,
    tasks: Tasks,
    drain: Drain,
) -> (impl Future<Output = ()> + Send, mpsc::Receiver<io::Result<Connection>>) {
    let (ready, connections) = mpsc::channel(QUEUE);
    let places = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    let accepting = async move {
        while let Ok(place) = places.clone().acquire_owned().await {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = drain.signalled() => return,
            };
            let (stream, address) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (acceptor, ready, metrics) =
                (TlsAcceptor::from(config.load_full()), ready.clone(), metrics.clone());
            tasks.spawn("handshake", async move {
                let _place = place;
                if let Some(connection) = handshake(&acceptor, stream, address, &metrics).await {
                    let _stopping = ready.send(Ok(connection)).await;
                }
            });
        }
    };
    (accepting, connections)
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
    address: SocketAddr,
    metrics: &Metrics,
) -> Option<Connection> {
    let result = |result: &str| metrics.handshakes.with_label_values(&[result]).inc();
    let _unsupported = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
    let stream = match handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(stream) => stream,
        Err(error) => {
            tracing::debug!(%address, %error, "handshake failed");
            result("failed");
            return None;
        }
    };
    let proven = match stream.get_ref().1.peer_certificates() {
        None => None,
        Some(chain) => match (mtls::peer_id(chain), mtls::leaf_expiry(chain)) {
            (Ok(id), Ok(expires)) => Some((Arc::new(id), expires)),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(%address, %error, "client certificate refused");
                result("failed");
                return None;
            }
        },
    };
    result(if proven.is_some() { "mutual" } else { "anonymous" });
    Some(Connection { stream, peer: PeerInfo { proven } })
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
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
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
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
