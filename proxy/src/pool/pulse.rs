//! What a connection's byte stream tells of its peer: when it was last heard, and how many streams it
//! admits. Any byte counts, an answer to a PING as much as a response: it proves that the peer lives.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// A peer that leaves what was sent to it unacknowledged for this long is gone, and the kernel ends the
/// connection (`TCP_USER_TIMEOUT`, RFC 5482). Without it, Linux tries for about 15 minutes
/// (`tcp_retries2`). As long as an HTTP/2 PING may take from the first silence, so that both find a
/// black hole at the same time.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

const UNKNOWN: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

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
    /// `SETTINGS_ENABLE_CONNECT_PROTOCOL`: one of [`UNKNOWN`], [`NO`] and [`YES`].
    connect: AtomicU8,
}

impl Pulse {
    /// Of a peer that has just been connected to.
    pub fn new(now: Instant) -> Self {
        let (heard, reads) = (AtomicU64::new(0), AtomicU64::new(0));
        let connect = AtomicU8::new(UNKNOWN);
        Self { born: now, heard, reads, streams: AtomicUsize::new(usize::MAX), connect }
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

    /// Whether the peer takes extended CONNECT (RFC 8441 section 3); `None` before it has said anything.
    pub fn extended_connect(&self) -> Option<bool> {
        match self.connect.load(Ordering::Relaxed) {
            UNKNOWN => None,
            known => Some(known == YES),
        }
    }

    /// Takes over what the peer admits: streams, and whether extended CONNECT. Its settings are the first
    /// thing that comes from it (RFC 9113 section 3.4).
    pub(super) fn admits(&self, streams: usize, extended_connect: bool) {
        self.streams.store(streams, Ordering::Relaxed);
        if self.reads() > 0 {
            self.connect.store(if extended_connect { YES } else { NO }, Ordering::Relaxed);
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
        }
        read
    }
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
