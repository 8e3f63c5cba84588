//! The HTTP/1 server towards the application: the HTTP library's while there is something to serve, and next
//! to nothing while there is not.
//!
//! The library keeps two buffers of 8 KiB a connection. A connection that has had no request for a while is
//! taken back from it: only the byte stream is left, and the few bytes of a request that has begun.

use std::convert::Infallible;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::UPGRADE;
use http::{Method, Request};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, Sleep};

use super::handle::{self, Origin};
use crate::http::body::{Body, BodyError};
use crate::http::finale::Abrupt;
use crate::io::{Prefixed, Stream, read_into};
use crate::shared::Shared;

/// Time without a request after which a connection is taken back, at the next look; looks are as far apart.
const REST: Duration = Duration::from_millis(500);

/// What happens on a connection, as its driver and its requests see it.
#[derive(Debug, Default)]
struct Activity {
    /// Requests whose response has not been written.
    under_way: AtomicUsize,
    /// Requests ever.
    begun: AtomicUsize,
    /// One asks for an upgrade: from then on the library keeps the connection.
    upgrades: AtomicBool,
}

/// How the library's part ended.
enum Served<Io> {
    /// The connection is over, or became something else.
    Over,
    /// Nothing is under way; what was read of the next request.
    Resting(Io, Bytes),
}

/// Serves a connection until it ends, it has been without a request for the idle time, or the drain has let
/// its last request finish.
pub(super) async fn serve<Io: Stream>(
    shared: &Arc<Shared>,
    mut io: Abrupt<Prefixed<Io>>,
    origin: &Arc<Origin>,
) {
    // Since when no request has come.
    let mut since = Instant::now();
    loop {
        let read = match Box::pin(serve_busy(shared, io, origin, &mut since)).await {
            Served::Over => return,
            Served::Resting(resting, read) => {
                io = resting;
                read
            }
        };
        let mut bytes = Vec::from(read);
        let more = tokio::select! {
            more = tokio::time::timeout_at(since + shared.config.timeouts.idle, read_into(&mut io, &mut bytes)) => more,
            () = shared.outbound_drain.signalled() => {
                // Its end, or that of a client which has none of it: nobody is left to tell.
                let _gone = io.shutdown().await;
                return;
            }
        };
        match more {
            Ok(Ok(1..)) => io.put_back(bytes),
            Ok(Ok(0) | Err(_)) | Err(_) => {
                let _gone = io.shutdown().await;
                return;
            }
        }
    }
}

/// Serves requests until there is none for a while.
async fn serve_busy<Io: Stream>(
    shared: &Arc<Shared>,
    io: Abrupt<Prefixed<Io>>,
    origin: &Arc<Origin>,
    since: &mut Instant,
) -> Served<Abrupt<Prefixed<Io>>> {
    let activity = Arc::new(Activity::default());
    let service = service_fn(|request: Request<Incoming>| {
        let under_way = UnderWay::begin(&activity);
        let upgrades = request.method() == Method::CONNECT || request.headers().contains_key(UPGRADE);
        if upgrades {
            activity.upgrades.store(true, Ordering::Relaxed);
        }
        let (shared, origin) = (shared.clone(), origin.clone());
        // Boxed: the library keeps room for it on idle connections.
        Box::pin(async move {
            if upgrades {
                // So that the driver sees to it before there is an answer.
                tokio::task::yield_now().await;
            }
            let response = handle::handle(&shared, &origin, request).await;
            origin.finale.answers();
            Ok::<_, Infallible>(response.map(|body| Written { body, _under_way: under_way }))
        })
    });
    let mut builder = http1::Builder::new();
    builder.max_buf_size(shared.config.limits.header_bytes);
    let mut connection = builder.serve_connection(TokioIo::new(io), service);
    let mut look = Look::new(origin.clone(), activity.clone(), shared.config.timeouts.idle);
    let why = {
        let finish = |connection: &mut http1::Connection<_, _>| Pin::new(connection).graceful_shutdown();
        drive(shared, &mut connection, finish, &mut look, since).await
    };
    match why {
        Why::Over | Why::Late => return Served::Over,
        Why::Upgrades => {}
        Why::Rests => {
            // With nothing under way this ends the library's part at once, and only that.
            Pin::new(&mut connection).graceful_shutdown();
            let rests = poll_fn(|context| Poll::Ready(connection.poll_without_shutdown(context).is_ready()));
            if rests.await {
                let parts = connection.into_parts();
                return Served::Resting(parts.io.into_inner(), parts.read_buf);
            }
        }
    }
    // From here on it is the library's to its end.
    look.only_late = true;
    let mut connection = connection.with_upgrades();
    let finish =
        |connection: &mut http1::UpgradeableConnection<_, _>| Pin::new(connection).graceful_shutdown();
    drive(shared, &mut connection, finish, &mut look, since).await;
    Served::Over
}

/// Runs the library until `look` says something, or has it `finish` what is under way when the drain begins.
async fn drive<C>(
    shared: &Shared,
    connection: &mut C,
    finish: impl Fn(&mut C),
    look: &mut Look,
    since: &mut Instant,
) -> Why
where
    C: Future<Output = hyper::Result<()>> + Unpin,
{
    let drained = shared.outbound_drain.signalled();
    tokio::pin!(drained);
    let mut draining = false;
    poll_fn(|context| {
        if let Poll::Ready(result) = Pin::new(&mut *connection).poll(context) {
            if let Err(error) = result {
                tracing::debug!(%error, "connection of the application ended");
            }
            return Poll::Ready(Why::Over);
        }
        if !draining && drained.as_mut().poll(context).is_ready() {
            draining = true;
            finish(connection);
            // It closes after what is left, and says so itself.
            look.only_late = true;
            context.waker().wake_by_ref();
        }
        look.poll(context, since)
    })
    .await
}

/// Why the driver looks up.
enum Why {
    /// The connection has ended.
    Over,
    /// A request asks for an upgrade.
    Upgrades,
    /// There has been no request since the last look.
    Rests,
    /// There has been no request for the idle time.
    Late,
}

/// Looks from time to time whether anything happens.
struct Look {
    origin: Arc<Origin>,
    activity: Arc<Activity>,
    idle: Duration,
    at: Pin<Box<Sleep>>,
    /// Requests at the last look.
    begun: usize,
    /// Reads from the client at the last look.
    reads: u32,
    /// The library keeps the connection whatever happens.
    only_late: bool,
}

impl Look {
    fn new(origin: Arc<Origin>, activity: Arc<Activity>, idle: Duration) -> Self {
        let at = Box::pin(tokio::time::sleep(REST));
        Self { origin, activity, idle, at, begun: 0, reads: 0, only_late: false }
    }

    fn poll(&mut self, context: &mut Context<'_>, since: &mut Instant) -> Poll<Why> {
        if !self.only_late && self.activity.upgrades.load(Ordering::Relaxed) {
            return Poll::Ready(Why::Upgrades);
        }
        while self.at.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            let (begun, reads) = (self.activity.begun.load(Ordering::Relaxed), self.origin.finale.reads());
            let busy = self.activity.under_way.load(Ordering::Relaxed) > 0 || self.origin.finale.is_blocked();
            // A client may send on when it has its response already: then the library is not done with it.
            let reading = std::mem::replace(&mut self.reads, reads) != reads;
            if begun != self.begun || busy {
                (self.begun, *since) = (begun, now);
            } else if now >= *since + self.idle {
                return Poll::Ready(Why::Late);
            } else if begun > 0 && !reading && !self.only_late {
                // Before its first request the library has no way to give a connection back.
                return Poll::Ready(Why::Rests);
            }
            self.at.as_mut().reset(now + REST);
        }
        Poll::Pending
    }
}

/// A request from its head to the last byte of its response.
struct UnderWay(Arc<Activity>);

impl UnderWay {
    fn begin(activity: &Arc<Activity>) -> Self {
        activity.under_way.fetch_add(1, Ordering::Relaxed);
        activity.begun.fetch_add(1, Ordering::Relaxed);
        Self(activity.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A response's body, under way until the library drops it.
struct Written {
    body: Body,
    _under_way: UnderWay,
}

impl http_body::Body for Written {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
