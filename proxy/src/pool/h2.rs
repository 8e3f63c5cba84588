//! A set of HTTP/2 connections to one place: streams counted, ages bounded, idle ones closed.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::{Duration, Instant};

use hyper::client::conn::http2;
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncRead, AsyncWrite};

use super::jittered;
use crate::http::body::Body;
use crate::http::exec::Executor;

/// Streams before another connection is opened; below hyper's default of 200 that a peer admits.
const STREAMS: usize = 100;
/// Connections to one place.
const CONNECTIONS: usize = 8;
/// Flow-control windows: bodies of the usual size pass without waiting for an update.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;

/// How long connections live.
#[derive(Debug, Clone, Copy)]
pub struct Ages {
    /// Without requests.
    pub idle: Duration,
    /// With requests, shortened at random.
    pub max: Duration,
}

/// One HTTP/2 connection.
#[derive(Debug)]
pub struct Connection {
    sender: http2::SendRequest<Body>,
    streams: AtomicUsize,
    /// Takes no new requests: too old, idle, or broken.
    closed: AtomicBool,
    last_used: Mutex<Instant>,
    /// Has carried a request: a request it gives back unsent met a connection that had grown stale.
    used: AtomicBool,
    /// Where it is kept, to be let go of when it closes.
    home: OnceLock<Weak<Mutex<Vec<Arc<Self>>>>>,
}

impl Connection {
    fn usable(&self) -> bool {
        !self.closed.load(Ordering::Relaxed) && !self.sender.is_closed()
    }

    /// A handle to send one request with.
    pub fn sender(&self) -> http2::SendRequest<Body> {
        self.sender.clone()
    }

    /// Whether it had carried a request before; says so from now on.
    pub fn mark_used(&self) -> bool {
        self.used.swap(true, Ordering::Relaxed)
    }

    /// No new requests: it broke, is idle or old. It ends with its last stream.
    pub fn close(&self) {
        self.closed.store(true, Ordering::Relaxed);
        if let Some(home) = self.home.get().and_then(Weak::upgrade) {
            home.lock()
                .expect("no holder of this lock panics")
                .retain(|kept| !std::ptr::eq(kept.as_ref(), self));
        }
    }
}

/// Counts a stream until dropped.
#[derive(Debug)]
pub struct StreamGuard(Arc<Connection>);

impl StreamGuard {
    fn open(connection: Arc<Connection>) -> Self {
        connection.streams.fetch_add(1, Ordering::Relaxed);
        Self(connection)
    }

    /// The connection.
    pub fn connection(&self) -> &Connection {
        &self.0
    }
}

impl Drop for StreamGuard {
    fn drop(&mut self) {
        *self.0.last_used.lock().expect("no holder of this lock panics") = Instant::now();
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Connections to one place. Gone with its owner: connections then end with their last stream.
#[derive(Debug)]
pub struct Set {
    connections: Arc<Mutex<Vec<Arc<Connection>>>>,
    /// One at a time connects; others wait and share.
    connecting: tokio::sync::Mutex<()>,
}

impl Default for Set {
    fn default() -> Self {
        Self { connections: Arc::default(), connecting: tokio::sync::Mutex::new(()) }
    }
}

impl Set {
    /// The least used connection with room, if there is one.
    fn with_room(&self) -> Option<StreamGuard> {
        let mut connections = self.connections.lock().expect("no holder of this lock panics");
        connections.retain(|connection| connection.usable());
        let full = connections.len() >= CONNECTIONS;
        let least = connections.iter().min_by_key(|connection| connection.streams.load(Ordering::Relaxed))?;
        let room = least.streams.load(Ordering::Relaxed) < STREAMS || full;
        room.then(|| StreamGuard::open(least.clone()))
    }

    /// Number of connections, for people.
    pub fn count(&self) -> usize {
        self.connections.lock().expect("no holder of this lock panics").len()
    }

    /// A stream on a connection with room, else on a new one made by `connect`.
    ///
    /// Cancel safety: safe; a connection being made is dropped, or found by the next caller.
    ///
    /// # Errors
    /// What `connect` said.
    pub async fn acquire<E, F>(&self, connect: F) -> Result<StreamGuard, E>
    where
        F: AsyncFnOnce() -> Result<Arc<Connection>, E>,
    {
        if let Some(stream) = self.with_room() {
            return Ok(stream);
        }
        let _single_flight = self.connecting.lock().await;
        if let Some(stream) = self.with_room() {
            return Ok(stream);
        }
        let connection = connect().await?;
        // Set once: a connection is made for one set.
        let _first = connection.home.set(Arc::downgrade(&self.connections));
        self.connections.lock().expect("no holder of this lock panics").push(connection.clone());
        Ok(StreamGuard::open(connection))
    }
}

/// Starts HTTP/2 on a fresh byte stream and a task that drives it.
///
/// # Errors
/// When the preface cannot be written.
pub async fn handshake<Io>(
    io: Io,
    header_bytes: usize,
    ages: Ages,
    tasks: &Tasks,
) -> hyper::Result<Arc<Connection>>
where
    Io: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, driver) = http2::Builder::new(Executor(tasks.clone()))
        .timer(hyper_util::rt::TokioTimer::new())
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_header_list_size(u32::try_from(header_bytes).unwrap_or(u32::MAX))
        .keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(5))
        .handshake(hyper_util::rt::TokioIo::new(io))
        .await?;
    let connection = Arc::new(Connection {
        sender,
        streams: AtomicUsize::new(0),
        closed: AtomicBool::new(false),
        last_used: Mutex::new(Instant::now()),
        used: AtomicBool::new(false),
        home: OnceLock::new(),
    });
    let watched = Arc::downgrade(&connection);
    tasks.spawn("h2 connection", async move {
        tokio::select! {
            result = driver => {
                if let Err(error) = result {
                    tracing::debug!(%error, "connection ended");
                }
                if let Some(connection) = watched.upgrade() {
                    connection.close();
                }
            }
            // Returns never: the driver ends once the last handle is gone.
            () = retire(&watched, ages) => {}
        }
    });
    Ok(connection)
}

/// Closes the connection to new requests when it is idle or old. The driver ends by itself when the
/// set has let go of it and the last stream is done.
async fn retire(watched: &Weak<Connection>, ages: Ages) {
    let born = tokio::time::Instant::now();
    let old = born + jittered(ages.max);
    loop {
        tokio::time::sleep_until((tokio::time::Instant::now() + ages.idle / 2).min(old)).await;
        let Some(connection) = watched.upgrade() else { break };
        let idle_for = connection.last_used.lock().expect("no holder of this lock panics").elapsed();
        let idle = connection.streams.load(Ordering::Relaxed) == 0 && idle_for >= ages.idle;
        if idle || tokio::time::Instant::now() >= old {
            connection.close();
            break;
        }
    }
    std::future::pending::<()>().await;
}
