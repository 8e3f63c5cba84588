//! What connections need beside the endpoint they lead to: how they are made, and how many there may
//! be.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use outrigger_common::tasks::Tasks;

use crate::policy::limit::Bound;
use crate::telemetry::metrics::Metrics;
use crate::tls::TlsConfigs;

/// What connecting to other sidecars needs: the same for all of them.
#[derive(Debug)]
pub struct Connector {
    /// TLS with the current certificate; none before the first.
    pub tls: Arc<ArcSwapOption<TlsConfigs>>,
    /// Counts handshakes.
    pub metrics: Arc<Metrics>,
    /// Drives the connections.
    pub tasks: Tasks,
    /// Largest head, in bytes.
    pub header_bytes: usize,
    /// A connection takes no new requests after this, shortened by up to a fifth at random.
    pub max_age: Duration,
}

/// Limits towards one destination, shared by its endpoints. Given anew to each request, so that a
/// policy applies to connections that are open.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Longest wait for a connection: for TCP and TLS, and for another's attempt at them.
    pub connect: Duration,
    /// A connection without requests for this long is closed.
    pub idle: Duration,
    /// A connection takes no new requests after this many.
    pub max_requests_per_connection: Option<u32>,
    /// Connections open at once. One that is replaced for its age no longer counts: it ends with its
    /// last stream, and must not keep the next one from being opened.
    pub connections: Arc<Bound>,
    /// Requests that wait for a connection to be made.
    pub pending: Arc<Bound>,
}

impl Limits {
    /// Times alone, and no limit to connections or to requests that wait for one.
    pub fn unbounded(connect: Duration, idle: Duration) -> Self {
        let (connections, pending) = (Bound::new(u32::MAX), Bound::new(u32::MAX));
        Self { connect, idle, max_requests_per_connection: None, connections, pending }
    }
}

/// Which connections a request may be sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// Any: the request may be repeated if the connection proves dead.
    Any,
    /// One in use, or idle for at most this long. The peer may be closing a connection that has been
    /// idle, and a request that crosses its close on the way may not be repeated.
    Fresh(Duration),
}

impl Reuse {
    /// Longest idle time of a connection that a request which may not be repeated is sent on.
    pub const FRESH: Duration = Duration::from_secs(1);

    /// What suits a request, by whether it may be repeated.
    pub fn of(repeatable: bool) -> Self {
        if repeatable { Self::Any } else { Self::Fresh(Self::FRESH) }
    }

    /// Whether a connection without streams that was last used `idle` ago will do.
    pub fn accepts(self, idle: Duration) -> bool {
        match self {
            Self::Any => true,
            Self::Fresh(limit) => idle <= limit,
        }
    }
}
