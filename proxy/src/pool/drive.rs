//! Starts an HTTP/2 connection and drives it to its end.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::{Ping, PingPong};
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use super::h2::{Closing, Connection};
use super::jittered;
use super::pulse::{Heard, Pulse};
use super::sending::Sender;
use crate::http::window;

/// With requests under way, a peer that is silent for this long is sent a PING (RFC 9113 section 6.7).
/// gRPC waits 10 s at least and 20 s for the answer (gRPC proposal A8), which is for mobile clients: here
/// a round trip takes milliseconds, and only connections that wait for an answer are asked.
pub const PING_AFTER: Duration = Duration::from_secs(2);
/// A PING unanswered for this long ends the connection and its requests. Not shorter: a sidecar that
/// is short of CPU answers late, and breaking its connections would make it busier.
const PING_ANSWER: Duration = Duration::from_secs(3);

/// Streams on a connection whose peer has not said yet how many it admits: what RFC 9113 section 6.5.2
/// recommends as the least.
const STREAMS_AT_FIRST: usize = 100;

/// How a connection lives.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Largest head, in bytes.
    pub header_bytes: usize,
    /// Longest life, shortened at random.
    pub max_age: Duration,
    /// Largest frame that is taken, in bytes.
    pub frame: u32,
    /// Whether a peer that stays silent is sent PINGs. Not for applications: on the same machine the
    /// kernel tells of an end, and gRPC servers break connections with more than two PINGs in five
    /// minutes without data (gRPC proposal A8, "too_many_pings").
    pub pings: bool,
    /// Whether one body may take the room of all: the windows of applications are theirs to choose, and in
    /// many of them a connection has no more than a stream.
    pub narrow: bool,
}

/// Starts HTTP/2 on a fresh byte stream and a task that drives it.
///
/// The h2 library is spoken to without the HTTP library's client around it: that hands each request to the
/// connection's task over a channel, and spawns a task to wait for each response.
///
/// # Errors
/// When the preface cannot be written.
pub async fn handshake<Io>(io: Io, terms: Terms, tasks: &Tasks) -> Result<Arc<Connection>, h2::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (io, pulse) = Heard::new(io);
    let (requests, mut wire) = h2::client::Builder::new()
        .enable_push(false)
        // Until its settings say how many it admits.
        .initial_max_send_streams(STREAMS_AT_FIRST)
        .initial_window_size(window::STREAM)
        .initial_connection_window_size(window::CONNECTION)
        .max_frame_size(terms.frame)
        .max_header_list_size(u32::try_from(terms.header_bytes).unwrap_or(u32::MAX))
        .handshake::<_, Bytes>(io)
        .await?;
    let sender = Sender::new(requests, terms.narrow.then(|| pulse.clone()));
    let connection = Arc::new(Connection::new(sender, pulse.clone(), terms.pings));
    let beat = wire.ping_pong().filter(|_| terms.pings).map(|pings| Beat::new(pings, pulse.clone()));
    let driver = Driver { wire, beat, pulse };
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

/// Reads and writes a connection.
struct Driver<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    wire: h2::client::Connection<Heard<Io>, Bytes>,
    beat: Option<Beat>,
    pulse: Arc<Pulse>,
}

impl<Io> Driver<Io>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    /// Until the last stream is done and the byte stream closed, or the peer has answered no PING. What is
    /// under way then fails as with a broken connection.
    async fn run(mut self, watched: &Weak<Connection>) {
        poll_fn(|context| {
            if let Poll::Ready(result) = Pin::new(&mut self.wire).poll(context) {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                return Poll::Ready(());
            }
            self.pulse.admits(self.wire.max_concurrent_send_streams());
            match &mut self.beat {
                Some(beat) => beat.poll(context, watched),
                None => Poll::Pending,
            }
        })
        .await;
        if let Some(connection) = watched.upgrade() {
            connection.close();
        }
    }
}

/// Sends PINGs to a peer that is silent while it is waited for.
struct Beat {
    pings: PingPong,
    pulse: Arc<Pulse>,
    look: Pin<Box<Sleep>>,
    /// When the PING that is not answered was sent.
    asked: Option<Instant>,
}

impl Beat {
    fn new(pings: PingPong, pulse: Arc<Pulse>) -> Self {
        Self { pings, pulse, look: Box::pin(tokio::time::sleep(PING_AFTER)), asked: None }
    }

    /// Ready when the peer has not answered in time. Any byte from it is an answer.
    fn poll(&mut self, context: &mut Context<'_>, watched: &Weak<Connection>) -> Poll<()> {
        // Asked for also when another byte has answered already: until then no other PING may be sent.
        if self.pings.poll_pong(context).is_ready() {
            self.asked = None;
        }
        while self.look.as_mut().poll(context).is_ready() {
            let (now, heard) = (Instant::now(), self.pulse.heard());
            let waiting = watched.upgrade().is_some_and(|connection| connection.is_waiting());
            let next = match self.asked {
                Some(asked) if heard <= asked => {
                    if now >= asked + PING_ANSWER {
                        tracing::debug!("no answer to a PING");
                        return Poll::Ready(());
                    }
                    asked + PING_ANSWER
                }
                _ if waiting && now >= heard + PING_AFTER => {
                    // One that is under way counts as this one.
                    let _under_way = self.pings.send_ping(Ping::opaque());
                    self.asked = Some(now);
                    now + PING_ANSWER
                }
                _ => {
                    self.asked = None;
                    // With the first request the peer may have been silent for long.
                    if waiting { heard + PING_AFTER } else { now + PING_AFTER / 2 }
                }
            };
            self.look.as_mut().reset(next);
        }
        Poll::Pending
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
