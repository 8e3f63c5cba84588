//! What a connection's byte stream tells of its peer: when it was last heard, and how many streams it
//! admits. Any byte counts, an answer to a PING as much as a response: it proves that the peer lives.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::AlertDescription;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A peer that leaves what was sent to it unacknowledged for this long is gone, and the kernel ends the
/// connection (`TCP_USER_TIMEOUT`, RFC 5482). Without it, Linux tries for about 15 minutes
/// (`tcp_retries2`). As long as an HTTP/2 PING may take from the first silence, so that both find a
/// black hole at the same time.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// What is known of the peer of one connection.
#[derive(Debug)]
pub struct Pulse {
    born: Instant,
    /// Nanoseconds from `born` to the last byte read.
    heard: AtomicU64,
    /// Reads that brought something.
    reads: AtomicU64,
    /// `SETTINGS_MAX_CONCURRENT_STREAMS`, as far as it is known.
    streams: AtomicUsize,
    /// The peer ended TLS with an alert about our certificate.
    refused: AtomicBool,
    /// Its settings are here.
    settled: AtomicBool,
    /// Bodies that wait for room in its windows.
    waiting: AtomicUsize,
}

impl Pulse {
    /// Of a peer that has just been connected to.
    pub fn new(now: Instant) -> Self {
        let (heard, reads) = (AtomicU64::new(0), AtomicU64::new(0));
        let (refused, settled) = (AtomicBool::new(false), AtomicBool::new(false));
        let (streams, waiting) = (AtomicUsize::new(usize::MAX), AtomicUsize::new(0));
        Self { born: now, heard, reads, refused, streams, settled, waiting }
    }

    /// When a byte last came from the peer; at first, when it was connected to.
    pub fn heard(&self) -> Instant {
        self.born + Duration::from_nanos(self.heard.load(Ordering::Relaxed))
    }

    /// Reads so far that brought something, to compare with a later value.
    pub fn reads(&self) -> u64 {
        self.reads.load(Ordering::Relaxed)
    }

    /// Streams the peer admits at once.
    pub fn streams(&self) -> usize {
        self.streams.load(Ordering::Relaxed)
    }

    /// Whether the peer's settings are here: they are the first thing that comes from it (RFC 9113 section
    /// 3.4).
    pub fn settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    /// Whether the peer refused our certificate. In TLS 1.3 its verdict arrives after our handshake is done,
    /// as an alert before any application data.
    pub fn certificate_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    /// Whether some body waits for room.
    pub fn is_full(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// One body more waits for room, or does no longer.
    pub(super) fn wait_for_room(&self, waits: bool) {
        if waits {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Takes over how many streams the peer admits, after what was read has been looked at.
    pub(super) fn admits(&self, streams: usize) {
        self.streams.store(streams, Ordering::Relaxed);
        if self.reads() > 0 {
            self.settled.store(true, Ordering::Relaxed);
        }
    }

    fn beat(&self) {
        let at = u64::try_from(self.born.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.heard.store(at, Ordering::Relaxed);
        self.reads.fetch_add(1, Ordering::Relaxed);
    }
}

/// A byte stream that keeps a [`Pulse`].
#[derive(Debug)]
pub struct Heard<Io> {
    io: Io,
    pulse: Arc<Pulse>,
}

impl<Io> Heard<Io> {
    /// Listens to `io` from now on.
    pub fn new(io: Io) -> (Self, Arc<Pulse>) {
        let pulse = Arc::new(Pulse::new(Instant::now()));
        (Self { io, pulse: pulse.clone() }, pulse)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Heard<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.pulse.beat();
        } else if let Poll::Ready(Err(error)) = &read
            && is_refusal(error)
        {
            self.pulse.refused.store(true, Ordering::Relaxed);
        }
        read
    }
}

/// Whether an alert is about our certificate.
fn is_refusal(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(rustls::Error::AlertReceived(alert)) = inner else { return false };
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired
    )
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Heard<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Has the kernel end a connection to a sidecar that acknowledges nothing for 5 s.
///
/// For HTTP/2 only: the kernel also ends a connection whose peer keeps its window shut for that long
/// (tcp(7)). HTTP/2 has windows of its own and always reads its connection; over HTTP/1.1 a client that
/// pauses a download shuts the window of a healthy connection.
pub fn end_when_unacknowledged(tcp: &TcpStream) {
    let milliseconds = u32::try_from(UNACKNOWLEDGED.as_millis()).unwrap_or(u32::MAX);
    // Systems without the option still have PINGs.
    if let Err(error) = rustix::net::sockopt::set_tcp_user_timeout(tcp, milliseconds) {
        tracing::debug!(%error, "no TCP_USER_TIMEOUT");
    }
}
