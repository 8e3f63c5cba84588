//! Upgraded connections: bytes of the application's side carried as the bodies of one request between
//! the sidecars.
//!
//! Between sidecars an upgrade is a request like any other, whose two bodies stay open: `x-mesh-upgrade`
//! names the protocol, in the request what is asked for, in a response of 200 what was agreed on. Extended
//! CONNECT (RFC 8441) would say the same on the wire, but the HTTP library hides from both ends of such a
//! stream whether it ended or was reset, and takes every 200 for consent, which to an upgrade of HTTP/1.1
//! is a refusal. Towards clients and applications the protocol's own forms are spoken.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::StatusCode;
use http_body::{Body as _, Frame};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf, ReadHalf};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::body::{Cut, Ending};
use super::finale::Finale;
use super::incoming::{Incoming, TransportError};
use super::stream_io::StreamIo;
use crate::reason::Reason;
use crate::telemetry::metrics::Direction;

/// Bytes read at once: a TLS record of the hop between the sidecars (RFC 8446 section 5.1).
const READ: usize = 16 << 10;
/// Longest time from the answer that agrees to the upgrade to the upgraded connection: the answer must
/// have been written, which takes a client that reads.
const HANDOVER: Duration = Duration::from_secs(30);

/// The application's side of an upgrade.
#[derive(Debug)]
pub enum Local {
    /// A connection, or a stream, that the HTTP library serves: once its answer has been written or read.
    Upgrading(OnUpgrade),
    /// A stream to the application.
    Stream(StreamIo),
}

/// The same once it carries bytes.
#[derive(Debug)]
enum LocalIo {
    Library(TokioIo<Upgraded>),
    Stream(StreamIo),
}

impl LocalIo {
    fn both(self: Pin<&mut Self>) -> Pin<&mut (dyn Both + Unpin)> {
        match self.get_mut() {
            Self::Library(io) => Pin::new(io),
            Self::Stream(io) => Pin::new(io),
        }
    }
}

trait Both: AsyncRead + AsyncWrite {}

impl<Io: AsyncRead + AsyncWrite> Both for Io {}

impl AsyncRead for LocalIo {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.both().poll_read(context, buffer)
    }
}

impl AsyncWrite for LocalIo {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.both().poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.both().poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.both().poll_shutdown(context)
    }
}

/// What the application's side sends, on its way to the other sidecar. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Feed(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// The source ended or broke.
    over: Notify,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// The body that may read; those of earlier attempts are dead.
    attempt: u32,
    /// That body is still wanted.
    wanted: bool,
    waker: Option<Waker>,
    bytes: u64,
    moved: Instant,
}

#[derive(Debug)]
enum Phase {
    /// The upgrade has not been agreed on.
    Waiting,
    /// Bytes pass.
    Reading(ReadHalf<LocalIo>),
    /// The source has ended, or never began.
    Ended,
    /// The source, or whoever takes its bytes, broke off.
    Broken,
}

/// The body of one attempt: empty until the tunnel starts.
#[derive(Debug)]
pub struct TunnelBody {
    shared: Arc<Shared>,
    attempt: u32,
}

/// A tunnel that broke off; the HTTP library resets the stream.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the tunnel broke off")]
pub struct Broken;

impl Default for Feed {
    fn default() -> Self {
        let state = State {
            phase: Phase::Waiting,
            attempt: 0,
            wanted: false,
            waker: None,
            bytes: 0,
            moved: Instant::now(),
        };
        Self(Arc::new(Shared { state: Mutex::new(state), over: Notify::new() }))
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }
}

impl State {
    fn turn(&mut self, phase: Phase) {
        self.phase = phase;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

impl Feed {
    /// The body of the next attempt; it takes the place of the one before.
    pub fn body(&self) -> TunnelBody {
        let mut state = self.0.lock();
        state.attempt += 1;
        state.wanted = true;
        TunnelBody { shared: self.0.clone(), attempt: state.attempt }
    }

    /// The upgrade was refused: the body ends.
    pub fn refused(&self) {
        self.0.lock().turn(Phase::Ended);
    }

    fn start(&self, source: ReadHalf<LocalIo>) {
        let mut state = self.0.lock();
        state.moved = Instant::now();
        let phase = if state.wanted { Phase::Reading(source) } else { Phase::Broken };
        state.turn(phase);
        drop(state);
        self.0.over.notify_one();
    }

    fn cut(&self) {
        self.0.lock().turn(Phase::Broken);
    }

    /// Resolves when the source has ended, or has broken.
    async fn ended(&self) -> Result<(), Broken> {
        loop {
            match self.0.lock().phase {
                Phase::Waiting | Phase::Reading(_) => {}
                Phase::Ended => return Ok(()),
                Phase::Broken => return Err(Broken),
            }
            self.0.over.notified().await;
        }
    }

    fn touch(&self) {
        self.0.lock().moved = Instant::now();
    }

    /// Resolves when nothing has moved for `idle`, in either direction.
    async fn idle(&self, idle: Duration) {
        loop {
            let at = self.0.lock().moved + idle;
            if at <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(at).await;
        }
    }
}

impl TunnelBody {
    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let mut state = self.shared.lock();
        if state.attempt != self.attempt {
            return Poll::Ready(Some(Err(Broken)));
        }
        let mut space = [0; READ];
        let mut buffer = ReadBuf::new(&mut space);
        let read = match &mut state.phase {
            Phase::Waiting => {
                state.waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            Phase::Ended => return Poll::Ready(None),
            Phase::Broken => return Poll::Ready(Some(Err(Broken))),
            Phase::Reading(source) => match Pin::new(source).poll_read(context, &mut buffer) {
                Poll::Ready(read) => read,
                Poll::Pending => {
                    // To hear of a break that comes from the other direction.
                    state.waker = Some(context.waker().clone());
                    return Poll::Pending;
                }
            },
        };
        state.moved = Instant::now();
        let (phase, result) = match read {
            Ok(()) if !buffer.filled().is_empty() => {
                let bytes = Bytes::copy_from_slice(buffer.filled());
                state.bytes += bytes.len() as u64;
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            Ok(()) => (Phase::Ended, None),
            Err(error) => {
                tracing::debug!(%error, "an upgraded connection broke");
                (Phase::Broken, Some(Err(Broken)))
            }
        };
        state.phase = phase;
        drop(state);
        self.shared.over.notify_one();
        Poll::Ready(result)
    }
}

impl Drop for TunnelBody {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.attempt != self.attempt {
            return;
        }
        state.wanted = false;
        if matches!(state.phase, Phase::Reading(_)) {
            // Its stream was reset.
            state.phase = Phase::Broken;
            drop(state);
            self.shared.over.notify_one();
        }
    }
}

impl http_body::Body for TunnelBody {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        self.get_mut().poll(context)
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.shared.lock().phase, Phase::Ended)
    }
}

/// An upgrade that was agreed on.
#[derive(Debug)]
pub struct Tunnel {
    /// The application's side.
    pub local: Local,
    /// How that connection may end, where it is one of HTTP/1.1.
    pub finale: Option<Finale>,
    /// What the application's side sends.
    pub feed: Feed,
    /// What the other sidecar sends, or a client in plaintext.
    pub remote: Incoming,
    /// Longest time without a byte in either direction.
    pub idle: Duration,
    /// What ends with it: the request that became it is in flight until then.
    pub ending: Ending,
}

/// Why a tunnel broke off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Why {
    /// The application's side, a client's or a server's.
    Local,
    /// The other sidecar's side.
    Remote,
    /// Nothing moved.
    Idle,
}

impl Tunnel {
    /// Carries bytes once the answer of this status, which agrees to it, has been given.
    pub fn spawn(mut self, tasks: &Tasks, status: StatusCode) {
        agreed(&mut self.ending, status);
        if let Some(finale) = &self.finale {
            finale.open();
        }
        tasks.spawn("tunnel", self.run());
    }

    /// Carries bytes both ways until both directions have ended, one breaks, or nothing has moved for
    /// the idle time. What breaks one side breaks the other.
    ///
    /// Cancel safety: both sides are reset.
    async fn run(self) {
        let Self { local, finale, feed, mut remote, idle, ending } = self;
        let mut received = 0;
        feed.touch();
        let joined = tokio::select! {
            joined = join(local, finale.as_ref(), &feed, &mut remote, &mut received) => joined,
            () = feed.idle(idle) => Err(Why::Idle),
        };
        if joined.is_err() {
            if let Some(finale) = &finale {
                finale.open();
            }
            feed.cut();
        }
        if joined.is_ok() {
            remote.complete();
        }
        let sent = feed.0.lock().bytes;
        finish(ending, joined, (sent, received));
    }
}

async fn join(
    local: Local,
    finale: Option<&Finale>,
    feed: &Feed,
    remote: &mut Incoming,
    received: &mut u64,
) -> Result<(), Why> {
    let local = match local {
        Local::Stream(stream) => LocalIo::Stream(stream),
        Local::Upgrading(upgrading) => {
            let upgraded = tokio::time::timeout(HANDOVER, upgrading).await.ok().and_then(Result::ok);
            LocalIo::Library(TokioIo::new(upgraded.ok_or(Why::Local)?))
        }
    };
    let (source, mut sink) = tokio::io::split(local);
    // So that the connection learns how it may end, should no byte go that way.
    sink.flush().await.map_err(|_| Why::Local)?;
    feed.start(source);
    let sending = async {
        while let Some(frame) = next(remote).await {
            let Ok(mut data) = frame.map_err(|_| Why::Remote)?.into_data() else { continue };
            while data.has_remaining() {
                let written = sink.write(data.chunk()).await.map_err(|_| Why::Local)?;
                data.advance(written);
                *received += written as u64;
                feed.touch();
            }
            sink.flush().await.map_err(|_| Why::Local)?;
        }
        if !remote.is_end_stream() {
            // The HTTP library takes a reset without an error code for the end.
            return Err(Why::Remote);
        }
        if let Some(finale) = finale {
            finale.complete();
        }
        sink.shutdown().await.map_err(|_| Why::Local)
    };
    let feeding = async { feed.ended().await.map_err(|_| Why::Local) };
    tokio::try_join!(sending, feeding).map(drop)
}

async fn next(body: &mut Incoming) -> Option<Result<Frame<Bytes>, TransportError>> {
    std::future::poll_fn(|context| {
        let frame = ready!(Pin::new(&mut *body).poll_frame(context));
        Poll::Ready(frame)
    })
    .await
}

/// The handshake is over, and tells of the upstream; the tunnel may last for days.
fn agreed(ending: &mut Ending, status: StatusCode) {
    ending.record.responded(status);
    ending.held.on_head();
}

/// The tunnel is over; that many bytes were `(sent, received)` by this side of the mesh.
fn finish(ending: Ending, joined: Result<(), Why>, (sent, received): (u64, u64)) {
    let Ending { mut record, mut held, lease } = ending;
    let outbound = record.edge().direction() == Direction::Outbound;
    let (request, response) = if outbound { (sent, received) } else { (received, sent) };
    record.request_bytes += request;
    record.response_bytes += response;
    let (reason, cut) = match joined {
        Ok(()) => {
            record.completed();
            held.end();
            return;
        }
        Err(Why::Idle) => (Reason::IdleTimeout, Cut::Time),
        Err(Why::Local) if outbound => (Reason::ClientClosed, Cut::Time),
        Err(Why::Local) => (Reason::UpstreamReset, Cut::Upstream),
        Err(Why::Remote) if outbound => (Reason::UpstreamReset, Cut::Upstream),
        Err(Why::Remote) => (Reason::ClientClosed, Cut::Time),
    };
    record.explained(reason);
    held.on_break(cut);
    drop(lease);
}
