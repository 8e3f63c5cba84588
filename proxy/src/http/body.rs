//! The one body type of the proxy, and the response body that finishes a request's record.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::Sleep;

use super::finale::Finale;
use super::headers;
use super::incoming::Incoming;
use super::replay::RequestBody;
use super::stalled::{Listed, Stalled, Stillness, Sweep};
use super::tunnel::TunnelBody;
use crate::balance::FailureKind;
use crate::outbound::watch::Watch;
use crate::policy::inherited::Remembered;
use crate::policy::limit::adaptive::Sample;
use crate::policy::limit::{BoundPermit, Permit};
use crate::pool::Lease;
use crate::reason::Reason;
use crate::telemetry::record::RequestRecord;

/// Any body the proxy sends.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// A text of the mesh's own.
    Full(Option<Bytes>),
    /// A copy that was kept: what is left of it, and its trailers.
    Kept(VecDeque<Bytes>, Option<http::HeaderMap>),
    /// A client's body on its way up.
    Request(RequestBody),
    /// An upstream's body on its way down.
    Response(ResponseBody),
    /// One direction of an upgraded connection.
    Tunnel(TunnelBody),
}

/// A boxed error: hyper only shows it.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Kept(chunks, trailers) => Poll::Ready(match chunks.pop_front() {
                Some(chunk) => Some(Ok(Frame::data(chunk))),
                None => trailers.take().map(|trailers| Ok(Frame::trailers(trailers))),
            }),
            Self::Request(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Response(body) => body.poll(context),
            Self::Tunnel(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(text) => text.is_none(),
            Self::Kept(chunks, trailers) => chunks.is_empty() && trailers.is_none(),
            Self::Request(body) => body.is_end_stream(),
            Self::Response(body) => body.is_end_stream(),
            Self::Tunnel(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(text) => SizeHint::with_exact(
                text.as_ref().map_or(0, |text| u64::try_from(text.len()).unwrap_or(u64::MAX)),
            ),
            Self::Kept(chunks, _) => {
                let bytes = chunks.iter().map(|chunk| u64::try_from(chunk.len()).unwrap_or(u64::MAX));
                SizeHint::with_exact(bytes.sum())
            }
            Self::Request(body) => body.size_hint(),
            Self::Response(body) => body.size_hint(),
            Self::Tunnel(_) => SizeHint::default(),
        }
    }
}

/// What ends with a response's body, and is told how it went.
#[derive(Debug)]
pub enum Held {
    /// At the client's sidecar.
    Outbound {
        /// Learns how the attempt went.
        watch: Watch,
        /// The request's place among those on their way to the destination.
        permit: BoundPermit,
    },
    /// At the server's sidecar.
    Inbound {
        /// The request's place in the application, and what its latency teaches.
        permit: Permit,
        /// See [`Permit::finish`].
        sample: Sample,
        /// What calls made for this request inherit.
        remembered: Remembered,
    },
}

impl Held {
    fn on_trailers(&mut self, trailers: &http::HeaderMap) {
        if let Self::Outbound { watch, .. } = self {
            watch.trailed(headers::grpc_status(trailers));
        }
    }

    /// The head is all there is to judge by.
    pub(super) fn on_head(&mut self) {
        if let Self::Outbound { watch, .. } = self {
            watch.trailed(None);
        }
    }

    pub(super) fn on_break(&mut self, cut: Cut) {
        let Self::Outbound { watch, .. } = self else { return };
        match cut {
            // As a broken connection: counted singly, it would never be set aside, for after each failure
            // the balancer goes elsewhere for a while.
            Cut::Upstream => watch.failed(FailureKind::Connection),
            Cut::Time => watch.cut(),
        }
    }

    pub(super) fn end(self) {
        match self {
            Self::Outbound { mut watch, permit } => {
                watch.trailed(None);
                drop(permit);
            }
            Self::Inbound { permit, sample, remembered } => {
                drop(remembered);
                permit.finish(sample, Instant::now());
            }
        }
    }
}

/// Who cut a response off.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// It broke.
    Upstream,
    /// We did: it was late, or stood still.
    Time,
}

/// How long a response may take.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// Without moving.
    pub idle: Duration,
    /// At all.
    pub deadline: Option<Instant>,
}

/// What ends with a response.
#[derive(Debug)]
pub struct Ending {
    /// What is known of the request.
    pub record: RequestRecord,
    /// What is freed.
    pub held: Held,
    /// The connection it comes on.
    pub lease: Lease,
}

/// An upstream's body: counted, timed, and the owner of what ends with it, whether it is read or not.
#[derive(Debug)]
pub struct ResponseBody {
    shared: Arc<Passing>,
    /// Where sweeps find it.
    _listed: Option<Listed>,
}

/// What a body shares with the sweep that ends it when nobody reads it.
#[derive(Debug)]
struct Passing(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Nothing once a sweep has ended it.
    live: Option<Live>,
    times: Times,
    still: Stillness,
    /// Kept beyond the end: it wakes whoever waits for the next piece.
    timer: Option<Pin<Box<Sleep>>>,
}

#[derive(Debug)]
struct Live {
    upstream: Incoming,
    record: RequestRecord,
    /// Freed when the body ends.
    held: Option<Held>,
    lease: Option<Lease>,
    /// The client's connection, where the body ends with it.
    finale: Option<Finale>,
}

impl ResponseBody {
    /// Passes `upstream` on. A body that is late or stands still for too long, because nothing comes or
    /// because nobody reads it, fails; the latter is found by sweeps of `stalled`.
    pub fn new(upstream: Incoming, times: Times, ending: Ending, stalled: &Arc<Stalled>) -> Self {
        let Ending { record, held, lease } = ending;
        let mut live = Live { upstream, record, held: Some(held), lease: Some(lease), finale: None };
        let ended = live.upstream.is_end_stream();
        if ended {
            live.end();
        }
        let state = State { live: Some(live), times, still: Stillness::default(), timer: None };
        let shared = Arc::new(Passing(Mutex::new(state)));
        let listed = (!ended).then(|| {
            let weak: Weak<Passing> = Arc::downgrade(&shared);
            stalled.list(weak)
        });
        Self { shared, _listed: listed }
    }

    fn poll(&self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.shared.lock().poll(context)
    }

    /// The client's connection ends with the body, and must break with it.
    pub fn ends_connection(&self, finale: Finale) {
        let mut state = self.shared.lock();
        if let Some(live) = state.live.as_mut().filter(|live| live.held.is_some()) {
            finale.open();
            live.finale = Some(finale);
        }
    }

    fn is_end_stream(&self) -> bool {
        self.shared.lock().live.as_ref().is_some_and(|live| live.upstream.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.shared.lock().live.as_ref().map_or_else(SizeHint::default, |live| live.upstream.size_hint())
    }
}

impl Passing {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl Sweep for Passing {
    fn sweep(&self, now: Instant) {
        // Whoever holds it asks for the next piece, or drops the last.
        let Ok(mut state) = self.0.try_lock() else { return };
        let times = state.times;
        let Some(reason) = state.still.look(times, now) else { return };
        let Some(mut live) = state.live.take() else { return };
        drop(state);
        // Also where the last of it has been handed on: it is in a buffer that nobody reads.
        live.record.broken_off(reason);
        live.broke(Cut::Time);
    }
}

impl State {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.still.asked();
        let Some(live) = &mut self.live else {
            return Poll::Ready(Some(Err("the response was not read in time".into())));
        };
        match Pin::new(&mut live.upstream).poll_frame(context) {
            Poll::Pending => self.poll_timer(context),
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                Poll::Ready(Some(Ok(live.pass(frame))))
            }
            Poll::Ready(Some(Err(error))) => {
                live.record.explained(Reason::UpstreamReset);
                live.broke(Cut::Upstream);
                Poll::Ready(Some(Err(error.into())))
            }
            // hyper takes a stream reset without an error code for the end of the body; a part of a
            // response must never pass for all of it.
            Poll::Ready(None) if live.is_cut_short() => {
                live.record.explained(Reason::UpstreamReset);
                live.broke(Cut::Upstream);
                Poll::Ready(Some(Err("the stream was reset before the end of the response".into())))
            }
            Poll::Ready(None) => {
                live.end();
                Poll::Ready(None)
            }
        }
    }

    fn poll_timer(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Times { idle, deadline } = self.times;
        let timer = self.timer.get_or_insert_with(|| {
            let idle_at = tokio::time::Instant::now() + idle;
            let at = deadline.map_or(idle_at, |deadline| idle_at.min(deadline.into()));
            Box::pin(tokio::time::sleep_until(at))
        });
        std::task::ready!(timer.as_mut().poll(context));
        let late = deadline.is_some_and(|deadline| Instant::now() >= deadline);
        let (reason, text) = if late {
            (Reason::DeadlineExceeded, "the deadline of the request has passed".to_owned())
        } else {
            (Reason::IdleTimeout, format!("the response body did not move for {idle:?}"))
        };
        if let Some(live) = &mut self.live {
            live.record.explained(reason);
            live.broke(Cut::Time);
        }
        Poll::Ready(Some(Err(text.into())))
    }
}

impl Live {
    /// Whether the end of the upstream's body is not one that the upstream announced.
    fn is_cut_short(&self) -> bool {
        matches!(self.lease, Some(Lease::H2(_))) && !self.upstream.is_end_stream()
    }

    fn pass(&mut self, frame: Frame<Bytes>) -> Frame<Bytes> {
        let frame = match frame.into_trailers() {
            Ok(mut trailers) => {
                self.record.grpc_status(&trailers);
                if let Some(held) = &mut self.held {
                    held.on_trailers(&trailers);
                }
                headers::strip_trailers(&mut trailers);
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        };
        if let Some(data) = frame.data_ref() {
            self.record.response_bytes += u64::try_from(data.remaining()).unwrap_or(u64::MAX);
        }
        // After the last announced byte nobody may ask for the end of the stream.
        if self.upstream.is_end_stream() || self.upstream.size_hint().exact() == Some(0) {
            self.end();
        }
        frame
    }

    /// It cannot go on.
    fn broke(&mut self, cut: Cut) {
        if let Some(mut held) = self.held.take() {
            held.on_break(cut);
        }
        self.lease = None;
    }

    fn end(&mut self) {
        self.record.completed();
        if let Some(finale) = self.finale.take() {
            finale.complete();
        }
        if let Some(held) = self.held.take() {
            held.end();
        }
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}
