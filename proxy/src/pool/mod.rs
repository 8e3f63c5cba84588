//! Connections kept for reuse: to other sidecars ([`mesh`]) and to the application ([`app`]).

pub mod app;
pub mod connector;
pub mod drive;
pub mod h2;
pub mod mesh;
pub mod pulse;
pub mod sending;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

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
        connection: app::Http1,
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
            Self::Http1 { pool, connection, .. } => pool.give_back(connection),
            Self::H2(stream) => drop(stream),
        }
    }
}

/// `age` less up to a fifth at random, so that connections made together do not end together.
fn jittered(age: Duration) -> Duration {
    age.mul_f64(1.0 - 0.2 * fastrand::f64())
}

/// Whether a request that failed so provably never reached an application: the peer refused its
/// stream before doing anything with it (RFC 9113 section 8.7), or closed the connection and said with
/// its GOAWAY that this stream is above the last one it will look at (section 6.8).
///
/// An error of GOAWAY that came from the peer is set by h2 on streams above the last one alone; those
/// at or below it go on, and end with an I/O error if the connection does. Any other reset proves
/// nothing, nor does a connection that breaks.
pub fn undelivered(error: &::h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(::h2::Reason::REFUSED_STREAM);
    error.is_remote() && (error.is_go_away() || refused)
}
