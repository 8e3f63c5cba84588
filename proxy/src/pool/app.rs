//! Connections to the application on this machine, in its own protocol.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outrigger_common::tasks::Tasks;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::connector::{Limits, Reuse};
use super::drive::{self, Terms};
use super::h2::{self, StreamGuard};
use super::pulse::{Heard, Pulse};
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::finale::{Abrupt, Finale};
use crate::http::window;

/// Idle HTTP/1.1 connections kept; more are closed when given back.
const KEPT: usize = 256;

/// Longest wait for the settings of an application of HTTP/2, which are the first thing it says: one that is
/// busy is not kept waiting for.
const SETTINGS: Duration = Duration::from_millis(50);

/// Longest wait for a connection given back to become free.
const SETTLE: Duration = Duration::from_millis(5);

/// Limits of the connections.
#[derive(Debug, Clone, Copy)]
pub struct AppLimits {
    /// Connecting.
    pub connect: Duration,
    /// A connection unused for this long is not used again.
    pub idle: Duration,
    /// Largest head.
    pub header_bytes: usize,
    /// HTTP/2 connections are replaced after this.
    pub max_age: Duration,
}

/// Connections to one port of the application.
#[derive(Debug)]
pub struct AppPool {
    address: SocketAddr,
    limits: AppLimits,
    tasks: Tasks,
    /// Most recently used last: it is the least likely to be closed by the application.
    idle: Mutex<Vec<(Http1, Instant)>>,
    h2: h2::Set,
    h2_limits: Limits,
}

/// An HTTP/1.1 connection to the application.
#[derive(Debug)]
pub struct Http1 {
    sender: http1::SendRequest<Body>,
    pulse: Arc<Pulse>,
    finale: Finale,
}

impl Http1 {
    /// How the connection may end.
    pub fn finale(&self) -> &Finale {
        &self.finale
    }

    /// Sends one request.
    ///
    /// Cancel safety: the connection is closed.
    ///
    /// # Errors
    /// There is no response; the request comes back if nothing of it was sent.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, Failed> {
        let reads = self.pulse.reads();
        self.sender.try_send_request(request).await.map_err(|mut failed| {
            let unsent = failed.take_message();
            Failed { unsent, answered: self.pulse.reads() != reads, error: failed.into_error() }
        })
    }
}

/// A request without a response.
#[derive(Debug)]
pub struct Failed {
    /// The request, if nothing of it was sent.
    pub unsent: Option<Request<Body>>,
    /// The application had begun to answer.
    pub answered: bool,
    /// What HTTP said.
    pub error: hyper::Error,
}

/// What is known of a request that a connection to the application failed.
#[derive(Debug, Clone, Copy)]
pub struct Evidence {
    /// hyper gave it back: nothing of it was sent.
    pub unsent: bool,
    /// The application said that it did not and will not look at it ([`super::undelivered`]).
    pub refused: bool,
    /// The connection had carried a request before.
    pub reused: bool,
    /// The application had begun to answer, if only by resetting the one stream.
    pub answered: bool,
    /// There is another copy of the request, and it may be repeated although it may have had an effect.
    pub repeatable: bool,
}

/// What becomes of a request that a connection to the application failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The application closed a connection it had kept, as we reached for it: once more on another.
    Again,
    /// It never reached the application.
    Unsent,
    /// The application has not looked at it.
    Refused,
    /// The application may have had it.
    Reset,
}

impl Evidence {
    /// Decides. A connection that was kept may be closed by the application at any time, which is no
    /// failure of anybody (RFC 9112 section 9.3.1): a request that met such an end without a byte in
    /// answer goes out again where that is safe.
    pub fn verdict(self) -> Verdict {
        let kept_alive = self.reused && !self.answered;
        match self {
            Self { unsent: true, reused: true, .. } => Verdict::Again,
            Self { unsent: true, .. } => Verdict::Unsent,
            Self { repeatable: true, .. } if kept_alive => Verdict::Again,
            Self { refused: true, .. } => Verdict::Refused,
            Self { .. } => Verdict::Reset,
        }
    }
}

impl AppPool {
    /// No connection yet.
    pub fn new(address: SocketAddr, limits: AppLimits, tasks: Tasks) -> Self {
        // How much goes to the application is decided before a connection is wanted.
        let h2_limits = Limits::unbounded(limits.connect, limits.idle);
        Self { address, limits, tasks, idle: Mutex::new(Vec::new()), h2: h2::Set::default(), h2_limits }
    }

    /// Where its connections' tasks run.
    pub fn tasks(&self) -> &Tasks {
        &self.tasks
    }

    /// Longest time to connect.
    pub fn connect_limit(&self) -> Duration {
        self.limits.connect
    }

    /// The application.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An HTTP/1.1 connection that has been used before, if one is at hand that suits the request.
    ///
    /// Cancel safety: the connection taken is closed.
    pub async fn reuse(&self, reuse: Reuse) -> Option<Http1> {
        loop {
            let mut connection = self.take(reuse)?;
            // Given back at the last byte: its driver may have to notice first. If the application is
            // not done with it by then, another one serves.
            let sender = &mut connection.sender;
            if sender.is_ready() || matches!(tokio::time::timeout(SETTLE, sender.ready()).await, Ok(Ok(()))) {
                return Some(connection);
            }
        }
    }

    /// The connection used last, unless that is too long ago: all others are older, and are swept
    /// when their time has come.
    fn take(&self, reuse: Reuse) -> Option<Http1> {
        let mut idle = self.idle.lock().expect("no holder of this lock panics");
        let unused = idle.last()?.1.elapsed();
        if unused >= self.limits.idle || !reuse.accepts(unused) {
            return None;
        }
        idle.pop().map(|(connection, _)| connection)
    }

    /// A new HTTP/1.1 connection.
    ///
    /// # Errors
    /// The application does not accept it.
    pub async fn connect(&self) -> Result<Http1, ProxyError> {
        let (io, finale) = Abrupt::new(self.tcp().await?);
        let (io, pulse) = Heard::new(io);
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(self.limits.header_bytes)
            .handshake(TokioIo::new(io))
            .await
            .map_err(|error| self.unreachable(std::io::Error::other(error)))?;
        self.tasks.spawn("app connection", async move {
            if let Err(error) = driver.with_upgrades().await {
                tracing::debug!(%error, "connection to the application ended");
            }
        });
        Ok(Http1 { sender, pulse, finale })
    }

    /// A stream of an HTTP/2 connection.
    ///
    /// # Errors
    /// The application does not accept the connection.
    pub async fn stream(&self, reuse: Reuse) -> Result<StreamGuard, ProxyError> {
        if let Some(stream) = self.h2.at_hand(&self.h2_limits, reuse) {
            return Ok(stream);
        }
        Box::pin(self.stream_of_new(reuse)).await
    }

    async fn stream_of_new(&self, reuse: Reuse) -> Result<StreamGuard, ProxyError> {
        let acquiring = self.h2.acquire(&self.h2_limits, reuse, async || {
            let limits = &self.limits;
            let terms = Terms {
                header_bytes: limits.header_bytes,
                max_age: limits.max_age,
                frame: window::SMALL_FRAME,
                pings: false,
                narrow: true,
            };
            let tcp = self.tcp().await?;
            let connection = drive::handshake(tcp, terms, &self.tasks)
                .await
                .map_err(|error| self.unreachable(std::io::Error::other(error)))?;
            // Else a burst would be more than an application of few streams takes, which refuses the rest.
            connection.settled(SETTINGS).await;
            Ok(connection)
        });
        // Waiting for another's attempt counts as well.
        tokio::time::timeout(self.limits.connect, acquiring).await.unwrap_or_else(|_| Err(self.timed_out()))
    }

    /// Keeps a connection whose response is complete.
    pub fn give_back(&self, connection: Http1) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().expect("no holder of this lock panics");
        if idle.len() < KEPT {
            idle.push((connection, Instant::now()));
        }
    }

    /// Closes connections that have been idle for too long, until the pool is gone.
    pub async fn sweep(pool: std::sync::Weak<Self>) {
        loop {
            let Some(limit) = pool.upgrade().map(|pool| pool.limits.idle) else { return };
            tokio::time::sleep(limit / 2).await;
            let Some(pool) = pool.upgrade() else { return };
            pool.idle
                .lock()
                .expect("no holder of this lock panics")
                .retain(|(_, since)| since.elapsed() < limit);
        }
    }

    async fn tcp(&self) -> Result<TcpStream, ProxyError> {
        let connecting = TcpStream::connect(self.address);
        let connected = tokio::time::timeout(self.limits.connect, connecting).await;
        let tcp = connected.map_err(|_| self.timed_out())?.map_err(|source| self.unreachable(source))?;
        tcp.set_nodelay(true).map_err(|source| self.unreachable(source))?;
        Ok(tcp)
    }

    fn timed_out(&self) -> ProxyError {
        let text = format!("no connection within {:?}", self.limits.connect);
        self.unreachable(std::io::Error::new(std::io::ErrorKind::TimedOut, text))
    }

    fn unreachable(&self, source: std::io::Error) -> ProxyError {
        ProxyError::AppUnreachable { address: self.address, source }
    }
}

impl Drop for AppPool {
    fn drop(&mut self) {
        tracing::debug!(address = %self.address, "connections to the application closed");
    }
}

/// A pool and the task that sweeps it.
pub fn swept(address: SocketAddr, limits: AppLimits, tasks: &Tasks) -> Arc<AppPool> {
    let pool = Arc::new(AppPool::new(address, limits, tasks.clone()));
    tasks.spawn("app pool sweep", AppPool::sweep(Arc::downgrade(&pool)));
    pool
}
