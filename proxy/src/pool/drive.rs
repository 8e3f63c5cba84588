//! Starts an HTTP/2 connection and drives it to its end.

use std::pin::Pin;
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use super::h2::{Closing, Connection};
use super::jittered;
use super::pulse::{Heard, Pulse};
use crate::http::body::Body;
use crate::http::window;

/// With requests under way, a peer that is silent for this long is sent a PING (RFC 9113 section 6.7).
/// gRPC waits 10 s at least and 20 s for the answer (gRPC proposal A8), which is for mobile clients: here
/// a round trip takes milliseconds, and only connections that wait for an answer are asked.
pub const PING_AFTER: Duration = Duration::from_secs(2);
/// A PING unanswered for this long ends the connection and its requests. Not shorter: a sidecar that
/// is short of CPU answers late, and breaking its connections would make it busier.
const PING_ANSWER: Duration = Duration::from_secs(3);

/// How a connection lives.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Largest head, in bytes.
    pub header_bytes: usize,
    /// Longest life, shortened at random.
    pub max_age: Duration,
    /// Whether a peer that stays silent is sent PINGs. Not for applications: on the same machine the
    /// kernel tells of an end, and gRPC servers break connections with more than two PINGs in five
    /// minutes without data (gRPC proposal A8, "too_many_pings").
    pub pings: bool,
}

type Wire = Pin<Box<dyn Future<Output = ()> + Send>>;
type Dispatch<Io> = http2::Connection<TokioIo<Heard<Io>>, Body, Inline>;

/// Starts HTTP/2 on a fresh byte stream and a task that drives it.
///
/// # Errors
/// When the preface cannot be written.
pub async fn handshake<Io>(io: Io, terms: Terms, tasks: &Tasks) -> hyper::Result<Arc<Connection>>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (io, pulse) = Heard::new(io);
    let inline = Inline { tasks: tasks.clone(), slot: Arc::new(Mutex::new(Slot::Open)) };
    let (sender, dispatch) = http2::Builder::new(inline.clone())
        .timer(TokioTimer::new())
        .initial_stream_window_size(window::STREAM)
        .initial_connection_window_size(window::CONNECTION)
        .max_header_list_size(u32::try_from(terms.header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(terms.pings.then_some(PING_AFTER))
        .keep_alive_timeout(PING_ANSWER)
        .handshake(TokioIo::new(io))
        .await?;
    let connection = Arc::new(Connection::new(sender, pulse.clone(), terms.pings));
    let driver = Driver { dispatch: Some(dispatch), wire: inline.taken(), pulse };
    let watched = Arc::downgrade(&connection);
    tasks.spawn("h2 connection", async move {
        tokio::select! {
            () = driver.run(&watched) => {}
            // Returns never: the driver ends once the last handle is gone.
            () = retire(&watched, terms.max_age) => {}
        }
        if let Some(connection) = watched.upgrade() {
            connection.ended();
        }
    });
    Ok(connection)
}

/// hyper's executor that keeps the first future, which reads and writes the connection, to be driven
/// together with the one that hands requests to it. hyper asks "may I send?", sends, and asks again; in
/// two tasks, a GOAWAY that arrives in between makes it report a request as failed by GOAWAY that
/// has been sent, and [`super::undelivered`] would no longer prove anything. It also saves a wake-up.
#[derive(Clone)]
struct Inline {
    tasks: Tasks,
    slot: Arc<Mutex<Slot>>,
}

enum Slot {
    Open,
    Kept(Wire),
    Closed,
}

impl Inline {
    fn taken(&self) -> Option<Wire> {
        match std::mem::replace(&mut *self.lock(), Slot::Closed) {
            Slot::Kept(wire) => Some(wire),
            Slot::Open | Slot::Closed => None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Slot> {
        self.slot.lock().expect("no holder of this lock panics")
    }
}

impl<F> hyper::rt::Executor<F> for Inline
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        let mut slot = self.lock();
        if matches!(*slot, Slot::Open) {
            *slot = Slot::Kept(Box::pin(future));
        } else {
            drop(slot);
            self.tasks.spawn("http", future);
        }
    }
}

/// Both halves of a connection; each is dropped when it ends, which tells the other.
struct Driver<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    dispatch: Option<Dispatch<Io>>,
    wire: Option<Wire>,
    pulse: Arc<Pulse>,
}

impl<Io> Driver<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Until the last stream is done and the byte stream closed.
    async fn run(mut self, watched: &Weak<Connection>) {
        std::future::poll_fn(|context| self.poll(context, watched)).await;
    }

    fn poll(&mut self, context: &mut Context<'_>, watched: &Weak<Connection>) -> Poll<()> {
        // Requests first, so that the same turn writes them.
        if let Some(dispatch) = &mut self.dispatch
            && let Poll::Ready(result) = Pin::new(dispatch).poll(context)
        {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
            self.dispatch = None;
            if let Some(connection) = watched.upgrade() {
                connection.close();
            }
        }
        if let Some(wire) = &mut self.wire
            && wire.as_mut().poll(context).is_ready()
        {
            self.wire = None;
            // The other half learns of it by being asked once more.
            context.waker().wake_by_ref();
        }
        match (&self.dispatch, &self.wire) {
            (None, None) => Poll::Ready(()),
            (Some(dispatch), _) => {
                let extended = dispatch.is_extended_connect_protocol_enabled();
                self.pulse.admits(dispatch.current_max_send_streams(), extended);
                Poll::Pending
            }
            (None, Some(_)) => Poll::Pending,
        }
    }
}

/// Closes the connection to new requests when it is idle or old. The driver ends by itself when the
/// set has let go of it and the last stream is done.
async fn retire(watched: &Weak<Connection>, max_age: Duration) {
    let old = Instant::now() + jittered(max_age);
    // The idle time is known with the first request.
    let mut look = Instant::now() + FIRST_LOOK;
    loop {
        tokio::time::sleep_until(look.min(old)).await;
        let Some(connection) = watched.upgrade() else { break };
        let now = Instant::now();
        if now >= old {
            connection.close_for(Closing::Old);
            break;
        }
        let Some(next) = connection.close_if_idle(now) else { break };
        look = next;
    }
    std::future::pending::<()>().await;
}

/// The first look at whether a connection is idle, in time for the shortest idle time there is.
const FIRST_LOOK: Duration = Duration::from_millis(100);
