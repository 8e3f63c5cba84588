//! Request bodies on their way up: read from the client once, kept up to a bound so that another
//! attempt can start over, and watched for when the last byte went out.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use outrigger_common::tasks::Tasks;
use tokio::sync::Notify;
use tokio::time::Sleep;

use super::headers;
use super::incoming::Incoming;
use crate::error::cause;

/// A request body shared by the attempts of one request; each attempt reads a [`RequestBody`].
#[derive(Debug, Clone)]
pub struct Replay(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    sent: Notify,
    idle: Duration,
    tasks: Tasks,
}

#[derive(Debug)]
struct State {
    client: Incoming,
    /// What was read so far, until it exceeds the bound.
    kept: Option<Vec<Bytes>>,
    kept_bytes: usize,
    bound: usize,
    trailers: Option<HeaderMap>,
    /// The client speaks HTTP/1.
    http1: bool,
    /// The client's body has ended.
    ended: bool,
    /// Bytes read from the client.
    bytes: u64,
    /// The attempt that may read; earlier ones are dead.
    attempt: u32,
    /// When the current attempt was given the last byte.
    sent_at: Option<Instant>,
    /// When a byte last went out, or the attempt began.
    moved: Instant,
    failed: Option<Failed>,
}

/// Why a body broke off on the client's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failed {
    /// It stood still for the idle time.
    Idle,
    /// The client broke off.
    Client,
    /// The client sent what is no body: chunks without a size, trailers that are none.
    Malformed,
}

/// The body of one attempt.
#[derive(Debug)]
pub struct RequestBody {
    shared: Arc<Shared>,
    attempt: u32,
    /// Chunks already given to this attempt.
    given: usize,
    ended: bool,
    idle: Option<Pin<Box<Sleep>>>,
}

/// A body that cannot go on; hyper resets the stream.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("the request body broke off")]
pub struct BrokenBody;

impl Replay {
    /// Keeps up to `bound` bytes; a body that stands still for `idle` fails. A task waits for an end that
    /// the client announces late.
    pub fn new(client: impl Into<Incoming>, bound: usize, idle: Duration, tasks: &Tasks) -> Self {
        let client = client.into();
        let ended = client.is_end_stream();
        let state = State {
            client,
            kept: Some(Vec::new()),
            kept_bytes: 0,
            bound,
            trailers: None,
            http1: false,
            ended,
            bytes: 0,
            attempt: 0,
            sent_at: None,
            moved: Instant::now(),
            failed: None,
        };
        Self(Arc::new(Shared { state: Mutex::new(state), sent: Notify::new(), idle, tasks: tasks.clone() }))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock()
    }

    /// The client speaks HTTP/1: there, trailers that are none are malformed ones.
    pub fn of_http1(&self) {
        self.state().http1 = true;
    }

    /// Starts another attempt, ending the one before. `None`: too much was read to start over.
    pub fn attempt(&self) -> Option<RequestBody> {
        let mut state = self.state();
        if state.attempt > 0 && (state.kept.is_none() || state.failed.is_some()) {
            return None;
        }
        state.attempt += 1;
        state.sent_at = None;
        state.moved = Instant::now();
        Some(RequestBody {
            shared: self.0.clone(),
            attempt: state.attempt,
            given: 0,
            ended: false,
            idle: None,
        })
    }

    /// Whether another attempt could start over.
    pub fn replayable(&self) -> bool {
        let state = self.state();
        state.kept.is_some() && state.failed.is_none()
    }

    /// The whole body, if it has been read to its end and kept: chunks and trailers.
    pub fn whole(&self) -> Option<(Vec<Bytes>, Option<HeaderMap>)> {
        let state = self.state();
        state.kept.clone().filter(|_| state.ended).map(|kept| (kept, state.trailers.clone()))
    }

    /// Bytes read from the client so far.
    pub fn bytes(&self) -> u64 {
        self.state().bytes
    }

    /// Why the client's side broke off, if it did.
    pub fn failed(&self) -> Option<Failed> {
        self.state().failed
    }

    /// When the current attempt was given its last byte.
    pub fn sent_at(&self) -> Option<Instant> {
        self.state().sent_at
    }

    /// Resolves when there has been no response for too long: `limit` after the last byte was given,
    /// or when before that no byte has moved for the idle time, whoever is to blame: a client that
    /// does not send, or an upstream that does not read.
    ///
    /// Cancel safety: safe.
    pub async fn overdue(&self, limit: Duration) {
        loop {
            let notified = self.0.sent.notified();
            let (sent_at, moved) = {
                let state = self.state();
                (state.sent_at, state.moved)
            };
            if let Some(sent) = sent_at {
                return tokio::time::sleep_until((sent + limit).into()).await;
            }
            tokio::select! {
                () = notified => {}
                () = tokio::time::sleep_until((moved + self.0.idle).into()) => {
                    let mut state = self.state();
                    if state.moved == moved && state.sent_at.is_none() {
                        state.failed.get_or_insert(Failed::Idle);
                        return;
                    }
                }
            }
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().expect("no holder of this lock panics")
    }

    /// Reads what may follow the last announced byte, as long as `attempt` is the latest: the end, or
    /// trailers.
    fn poll_tail(&self, attempt: u32, context: &mut Context<'_>) -> Poll<()> {
        let mut state = self.lock();
        while state.attempt == attempt && !state.ended && state.failed.is_none() {
            match ready!(Pin::new(&mut state.client).poll_frame(context)) {
                // One without bytes.
                Some(Ok(frame)) if frame.is_data() => {}
                Some(Ok(frame)) => _ = state.trail(frame),
                Some(Err(_)) => state.failed = Some(Failed::Client),
                None => state.ended = true,
            }
        }
        Poll::Ready(())
    }
}

impl State {
    /// Ends the body with these trailers. False: they are malformed.
    fn trail(&mut self, frame: Frame<Bytes>) -> bool {
        let trailers = frame.into_trailers().ok();
        if self.http1 && trailers.as_ref().is_some_and(HeaderMap::is_empty) {
            // A bare LF where the last line ends: the HTTP library reads what follows, perhaps
            // another request, as trailers, and drops it.
            self.failed = Some(Failed::Malformed);
            return false;
        }
        self.trailers = trailers.and_then(|mut trailers| {
            headers::strip_trailers(&mut trailers);
            (!trailers.is_empty()).then_some(trailers)
        });
        self.ended = true;
        true
    }

    /// Whether all announced bytes are here, and only the end of the stream is missing.
    fn lacks_only_its_end(&self) -> bool {
        !self.ended && self.failed.is_none() && self.client.size_hint().exact() == Some(0)
    }
}

impl RequestBody {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        let shared = self.shared.clone();
        let mut state = shared.lock();
        if state.attempt != self.attempt || state.failed.is_some() {
            return Poll::Ready(Some(Err(BrokenBody)));
        }
        if let Some(chunk) = state.kept.as_ref().and_then(|kept| kept.get(self.given)) {
            self.given += 1;
            let chunk = chunk.clone();
            state.moved = Instant::now();
            self.finish_if_done(&mut state);
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if state.ended {
            return Poll::Ready(self.end(&mut state));
        }
        let frame = match Pin::new(&mut state.client).poll_frame(context) {
            Poll::Ready(frame) => frame,
            Poll::Pending => {
                let idle = self.idle.get_or_insert_with(|| Box::pin(tokio::time::sleep(shared.idle)));
                ready!(idle.as_mut().poll(context));
                state.failed = Some(Failed::Idle);
                return Poll::Ready(Some(Err(BrokenBody)));
            }
        };
        self.idle = None;
        match frame {
            Some(Ok(frame)) => Poll::Ready(self.pass(&mut state, frame)),
            Some(Err(error)) => {
                let malformed = cause::<io::Error>(&error).is_some_and(is_malformed);
                state.failed = Some(if malformed { Failed::Malformed } else { Failed::Client });
                Poll::Ready(Some(Err(BrokenBody)))
            }
            None => {
                state.ended = true;
                Poll::Ready(self.end(&mut state))
            }
        }
    }

    /// Keeps a frame from the client and passes it on.
    fn pass(&mut self, state: &mut State, frame: Frame<Bytes>) -> Option<Result<Frame<Bytes>, BrokenBody>> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if !state.trail(frame) {
                    return Some(Err(BrokenBody));
                }
                return self.end(state);
            }
        };
        let size = data.remaining();
        state.moved = Instant::now();
        state.bytes += u64::try_from(size).unwrap_or(u64::MAX);
        state.kept_bytes = state.kept_bytes.saturating_add(size);
        if state.kept_bytes > state.bound {
            state.kept = None;
        } else if let Some(kept) = &mut state.kept {
            kept.push(data.clone());
            self.given += 1;
        }
        state.ended = state.client.is_end_stream();
        self.finish_if_done(state);
        Some(Ok(Frame::data(data)))
    }

    /// After the last chunk of a body without trailers nothing more is asked for.
    fn finish_if_done(&mut self, state: &mut State) {
        let all_given = state.kept.as_ref().is_none_or(|kept| self.given == kept.len());
        if state.ended && all_given && state.trailers.is_none() {
            self.finish(state);
        }
    }

    fn end(&mut self, state: &mut State) -> Option<Result<Frame<Bytes>, BrokenBody>> {
        let again = self.ended;
        self.finish(state);
        state.trailers.clone().filter(|_| !again).map(|trailers| Ok(Frame::trailers(trailers)))
    }

    fn finish(&mut self, state: &mut State) {
        self.ended = true;
        state.sent_at.get_or_insert_with(Instant::now);
        self.shared.sent.notify_waiters();
    }
}

/// As the HTTP library's decoder says it.
fn is_malformed(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData)
}

impl Drop for RequestBody {
    /// An upstream that has all it wants drops the body before asking for its end.
    ///
    /// A client of HTTP/2 may announce the end in a frame of its own, later than its last byte. Without
    /// anybody who waits for it the stream would be reset, which such a client is in the middle of ending:
    /// some then drop a response they have in full (RFC 9113 section 8.1 says they must not).
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.attempt != self.attempt || self.ended {
            return;
        }
        state.sent_at.get_or_insert_with(Instant::now);
        self.shared.sent.notify_waiters();
        if state.lacks_only_its_end() {
            let (shared, attempt) = (self.shared.clone(), self.attempt);
            self.shared.tasks.spawn("end of a request", async move {
                let tail = std::future::poll_fn(|context| shared.poll_tail(attempt, context));
                // A client that never ends it has its stream reset after all.
                let _elapsed = tokio::time::timeout(shared.idle, tail).await;
            });
        }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = BrokenBody;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BrokenBody>>> {
        self.get_mut().poll(context)
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        let state = self.shared.lock();
        let given = if self.given == 0 { 0 } else { state.bytes };
        let kept: u64 = state.bytes - given.min(state.bytes);
        let mut hint = state.client.size_hint();
        // What the client still holds, and what is kept for this attempt.
        if let Some(exact) = hint.exact() {
            hint.set_exact(exact + kept);
        } else {
            hint.set_lower(hint.lower() + kept);
        }
        hint
    }
}
