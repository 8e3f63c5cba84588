//! Connections kept for reuse: to other sidecars ([`mesh`]) and to the application ([`app`]).

pub mod app;
pub mod h2;
pub mod mesh;

use std::sync::Arc;
use std::time::Duration;

use hyper::client::conn::http1;

use crate::http::body::Body;
use crate::http::replay::Replay;

/// A connection in use by one request; give it back after the response's last byte. Dropped instead,
/// an HTTP/1.1 connection is closed, for its next bytes belong to the response nobody read.
#[derive(Debug)]
pub enum Lease {
    /// A whole connection.
    Http1 {
        /// Where it goes back to.
        pool: Arc<app::AppPool>,
        /// The connection.
        sender: http1::SendRequest<Body>,
        /// The request's body: a response may end before it.
        request: Option<Replay>,
    },
    /// A stream of a shared connection.
    H2(h2::StreamGuard),
}

impl Lease {
    /// The response is complete.
    pub fn give_back(self) {
        match self {
            // While the request is still being sent, the connection is not free.
            Self::Http1 { request: Some(request), .. } if request.sent_at().is_none() => {}
            Self::Http1 { pool, sender, .. } => pool.give_back(sender),
            Self::H2(stream) => drop(stream),
        }
    }
}

/// `age` less up to a fifth at random, so that connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(1.0 - 0.2 * fastrand::f64())
}
