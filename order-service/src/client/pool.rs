//! Kept HTTP/1.1 connections to one address.
//!
//! One peer and one protocol need no more than a stack of idle connections: the most recently used one
//! goes out first, so that under less load the others grow old and the peer closes them.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use outrigger_common::tasks::Tasks;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use super::ClientError;

/// Largest answer, in bytes: a page of the largest orders is smaller.
const MAX_ANSWER: usize = 16 * 1024 * 1024;

type Sender = SendRequest<Full<Bytes>>;

/// A whole answer.
#[derive(Debug)]
pub(super) struct Received {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Connections to one address; cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Pool(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: String,
    permits: Semaphore,
    idle: Mutex<Vec<Sender>>,
    tasks: Tasks,
}

/// Host and port of a URL, port 80 when it has none.
pub(super) fn address(url: &Uri) -> String {
    format!("{}:{}", url.host().unwrap_or_default(), url.port_u16().unwrap_or(80))
}

impl Pool {
    pub(super) fn new(address: String, max_connections: usize) -> Self {
        let permits = Semaphore::new(max_connections.max(1));
        Self(Arc::new(Shared { address, permits, idle: Mutex::default(), tasks: Tasks::current() }))
    }

    /// Sends a request and collects the answer.
    ///
    /// A kept connection may have been closed by the peer in the meantime; then the request goes out
    /// once more over a new one. That is safe: reads change nothing and writes carry a key.
    ///
    /// Cancel safety: the connection in use is closed.
    pub(super) async fn send(&self, request: Request<Full<Bytes>>) -> Result<Received, ClientError> {
        let _permit = self.0.permits.acquire().await.map_err(|error| self.broken(&error))?;
        if let Some(sender) = self.kept().await
            && let Ok(received) = self.exchange(sender, request.clone()).await
        {
            return Ok(received);
        }
        let sender = self.connect().await?;
        self.exchange(sender, request).await
    }

    async fn exchange(
        &self,
        mut sender: Sender,
        request: Request<Full<Bytes>>,
    ) -> Result<Received, ClientError> {
        let response = sender.send_request(request).await.map_err(|error| self.broken(&error))?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| self.broken(&*error))?;
        self.idle().push(sender);
        Ok(Received { status: head.status, headers: head.headers, body: body.to_bytes() })
    }

    /// A kept connection that is still open.
    async fn kept(&self) -> Option<Sender> {
        loop {
            let mut sender = self.idle().pop()?;
            if sender.ready().await.is_ok() {
                return Some(sender);
            }
        }
    }

    async fn connect(&self) -> Result<Sender, ClientError> {
        let refuse = |cause: String| ClientError::Connect { address: self.0.address.clone(), cause };
        let stream = TcpStream::connect(&self.0.address).await.map_err(|error| refuse(error.to_string()))?;
        let _best_effort = stream.set_nodelay(true);
        let (sender, connection) =
            handshake(TokioIo::new(stream)).await.map_err(|error| refuse(error.to_string()))?;
        self.0.tasks.spawn("upstream-connection", async {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to the order service ended early");
            }
        });
        Ok(sender)
    }

    fn idle(&self) -> std::sync::MutexGuard<'_, Vec<Sender>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn broken(&self, error: &dyn std::error::Error) -> ClientError {
        let cause = outrigger_common::telemetry::chain(error);
        ClientError::Broken { address: self.0.address.clone(), cause }
    }
}
