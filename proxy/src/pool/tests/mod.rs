//! Pools against raw HTTP/2 peers over in-memory streams, on a paused clock.

mod app;
mod dead;
mod limits;
mod refusal;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use outrigger_common::tasks::Tasks;
use tokio::io::DuplexStream;
use tokio::sync::mpsc;

use super::connector::{Limits, Reuse};
use super::drive::{self, Terms};
use super::h2::{Connection, Set, StreamGuard};
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::incoming::Incoming;

const TERMS: Terms = Terms {
    header_bytes: 64 << 10,
    max_age: Duration::from_secs(600),
    frame: 16_384,
    pings: true,
    narrow: false,
};

/// A place to connect to: each connection's far end is handed to the test.
struct Place {
    set: Set,
    terms: Terms,
    made: AtomicUsize,
    ends: mpsc::Sender<DuplexStream>,
}

impl Place {
    fn new(terms: Terms) -> (Arc<Self>, mpsc::Receiver<DuplexStream>) {
        let (ends, accepted) = mpsc::channel(64);
        let place = Self { set: Set::default(), terms, made: AtomicUsize::new(0), ends };
        (Arc::new(place), accepted)
    }

    async fn acquire(&self, limits: &Limits, reuse: Reuse) -> Result<StreamGuard, ProxyError> {
        self.set.acquire(limits, reuse, async || self.connect().await).await
    }

    async fn connect(&self) -> Result<Arc<Connection>, ProxyError> {
        let (near, far) = tokio::io::duplex(1 << 20);
        self.made.fetch_add(1, Ordering::Relaxed);
        self.ends.send(far).await.unwrap();
        Ok(drive::handshake(near, self.terms, &Tasks::current()).await.unwrap())
    }

    fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }
}

fn limits() -> Limits {
    Limits::unbounded(Duration::from_secs(1), Duration::from_secs(90))
}

fn get() -> Request<Body> {
    Request::get("http://orders.shop/").body(Body::Empty).unwrap()
}

async fn send(stream: &StreamGuard) -> Result<Response<Incoming>, ::h2::Error> {
    stream.connection().sender().send(get(), &Tasks::current()).await.map_err(|failed| failed.error)
}

/// Answers every request of every connection, admitting `streams` at once.
fn answering(mut accepted: mpsc::Receiver<DuplexStream>, streams: u32) {
    let tasks = Tasks::current();
    tasks.clone().spawn("peers", async move {
        while let Some(end) = accepted.recv().await {
            tasks.spawn("peer", async move {
                let mut builder = ::h2::server::Builder::new();
                let mut peer =
                    builder.max_concurrent_streams(streams).handshake::<_, Bytes>(end).await.unwrap();
                while let Some(Ok((_, mut respond))) = peer.accept().await {
                    respond.send_response(Response::new(()), true).unwrap();
                }
            });
        }
    });
}

/// Lets every task that can go on do so, without moving the clock.
async fn settle() {
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
}
