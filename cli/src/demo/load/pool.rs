//! Connections of the load to the storefront: HTTP/1.1, kept alive, a bounded number of them.

use std::io;
use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use outrigger_common::tasks::Tasks;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;

/// Most connections; requests beyond that wait, and their delay counts on.
const CONNECTIONS: usize = 256;
/// A connection idle for longer is not used again: the storefront closes them after two minutes, and a
/// request must not meet that moment.
const IDLE: Duration = Duration::from_secs(60);

/// A whole answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Why there is no whole answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum ExchangeError {
    #[error("connect: {0}")]
    Connect(#[source] io::Error),
    #[error("connection broke: {0}")]
    Broken(#[source] hyper::Error),
}

type Sender = SendRequest<Full<Bytes>>;

#[derive(Debug)]
pub(super) struct Pool {
    address: SocketAddr,
    tasks: Tasks,
    permits: Semaphore,
    /// The one used last is used first, so that the number in use follows the need.
    idle: Mutex<Vec<(Sender, Instant)>>,
}

impl Pool {
    pub(super) fn new(address: SocketAddr, tasks: Tasks) -> Self {
        Self { address, tasks, permits: Semaphore::new(CONNECTIONS), idle: Mutex::default() }
    }

    /// Sends a request and reads its whole answer. Nothing is sent twice: only a request that never
    /// left, because an idle connection had been closed, goes to another connection.
    pub(super) async fn exchange(&self, mut request: Request<Full<Bytes>>) -> Result<Answer, ExchangeError> {
        let _permit = self.permits.acquire().await;
        loop {
            let (mut sender, reused) = match self.take_idle() {
                Some(sender) => (sender, true),
                None => (self.connect().await?, false),
            };
            if let Err(error) = sender.ready().await {
                if reused { continue } else { return Err(ExchangeError::Broken(error)) }
            }
            match sender.try_send_request(request).await {
                Ok(response) => {
                    let (head, body) = response.into_parts();
                    let body = body.collect().await.map_err(ExchangeError::Broken)?.to_bytes();
                    self.give_back(sender);
                    return Ok(Answer { status: head.status, headers: head.headers, body });
                }
                Err(mut error) => match error.take_message() {
                    Some(unsent) if reused => request = unsent,
                    _ => return Err(ExchangeError::Broken(error.into_error())),
                },
            }
        }
    }

    async fn connect(&self) -> Result<Sender, ExchangeError> {
        let stream = TcpStream::connect(self.address).await.map_err(ExchangeError::Connect)?;
        stream.set_nodelay(true).map_err(ExchangeError::Connect)?;
        let (sender, connection) =
            http1::handshake(TokioIo::new(stream)).await.map_err(ExchangeError::Broken)?;
        self.tasks.spawn("load-connection", async move {
            // The request in flight reports the error; an idle connection may end as it likes.
            let _reported = connection.await;
        });
        Ok(sender)
    }

    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = |since: Instant| since.elapsed() < IDLE;
        // The last one is the freshest: if it is too old, all are.
        if idle.last().is_some_and(|(_, since)| !fresh(*since)) {
            idle.clear();
        }
        loop {
            let (sender, _) = idle.pop()?;
            if !sender.is_closed() {
                return Some(sender);
            }
        }
    }

    fn give_back(&self, sender: Sender) {
        if !sender.is_closed() {
            self.idle.lock().unwrap_or_else(PoisonError::into_inner).push((sender, Instant::now()));
        }
    }
}
