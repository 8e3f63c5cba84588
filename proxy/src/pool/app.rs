//! Connections to the application on this machine, in its own protocol.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use outrigger_common::tasks::Tasks;
use tokio::net::TcpStream;

use super::h2::{self, Ages, StreamGuard};
use crate::error::ProxyError;
use crate::http::body::Body;

/// Idle HTTP/1.1 connections kept; more are closed when given back.
const KEPT: usize = 256;

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
    idle: Mutex<Vec<(http1::SendRequest<Body>, Instant)>>,
    h2: h2::Set,
}

impl AppPool {
    /// No connection yet.
    pub fn new(address: SocketAddr, limits: AppLimits, tasks: Tasks) -> Self {
        Self { address, limits, tasks, idle: Mutex::new(Vec::new()), h2: h2::Set::default() }
    }

    /// The application.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// An HTTP/1.1 connection that has been used before, if one is at hand.
    ///
    /// Cancel safety: the connection taken is closed.
    pub async fn reuse(&self) -> Option<http1::SendRequest<Body>> {
        loop {
            let (mut sender, since) = self.idle.lock().expect("no holder of this lock panics").pop()?;
            // Older ones lie below; they are swept when their time has come.
            if since.elapsed() >= self.limits.idle {
                continue;
            }
            // Given back at the last byte: its driver may have to notice first. If the application is
            // not done with it by then, another one serves.
            if sender.is_ready() || matches!(tokio::time::timeout(SETTLE, sender.ready()).await, Ok(Ok(()))) {
                return Some(sender);
            }
        }
    }

    /// A new HTTP/1.1 connection.
    ///
    /// # Errors
    /// The application does not accept it.
    pub async fn connect(&self) -> Result<http1::SendRequest<Body>, ProxyError> {
        let tcp = self.tcp().await?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(self.limits.header_bytes)
            .handshake(TokioIo::new(tcp))
            .await
            .map_err(|error| self.unreachable(std::io::Error::other(error)))?;
        self.tasks.spawn("app connection", async move {
            if let Err(error) = driver.await {
                tracing::debug!(%error, "connection to the application ended");
            }
        });
        Ok(sender)
    }

    /// A stream of an HTTP/2 connection.
    ///
    /// # Errors
    /// The application does not accept the connection.
    pub async fn stream(&self) -> Result<StreamGuard, ProxyError> {
        let acquiring = self.h2.acquire(async || {
            let ages = Ages { idle: self.limits.idle, max: self.limits.max_age };
            let tcp = self.tcp().await?;
            h2::handshake(tcp, self.limits.header_bytes, ages, &self.tasks)
                .await
                .map_err(|error| self.unreachable(std::io::Error::other(error)))
        });
        // Waiting for another's attempt counts as well.
        tokio::time::timeout(self.limits.connect, acquiring).await.unwrap_or_else(|_| Err(self.timed_out()))
    }

    /// Keeps a connection whose response is complete.
    pub fn give_back(&self, sender: http1::SendRequest<Body>) {
        if sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock().expect("no holder of this lock panics");
        if idle.len() < KEPT {
            idle.push((sender, Instant::now()));
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
