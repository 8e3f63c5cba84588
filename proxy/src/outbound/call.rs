//! One call on its way to a destination: all that its attempts have in common.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderMap, Method};
use outrigger_common::name::ServiceName;

use super::policy::CallPolicy;
use super::watch::Watch;
use crate::balance::{Ask, Group};
use crate::control::destination::{Destination, Settings};
use crate::control::snapshot::Entry;
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::replay::{Failed, Replay};
use crate::http::tunnel::Feed;
use crate::pool::connector::Reuse;
use crate::pool::mesh::Endpoint;
use crate::shared::Shared;
use crate::telemetry::edge::Edge;

/// A call and what governs it.
pub struct Call<'a> {
    /// The sidecar.
    pub shared: &'a Shared,
    /// The service it goes to: a route's backend, or the service called.
    pub service: &'a ServiceName,
    /// Its port.
    pub port: u16,
    /// Its endpoints in the snapshot of this version, where they were looked up already.
    pub found: Option<(u64, &'a Arc<Group<Endpoint>>)>,
    /// Where its metrics go.
    pub edge: &'a Arc<Edge>,
    /// Limits and budget of that port.
    pub destination: &'a Destination,
    /// The destination's settings when the call began.
    pub settings: Arc<Settings>,
    /// How it is carried.
    pub policy: &'a CallPolicy,
    /// The request's head, ours by now.
    pub head: &'a Parts,
    /// The request's body.
    pub payload: &'a Payload,
    /// What may be done with it.
    pub terms: Terms,
    /// The one workload it may go to, where it was addressed to one.
    pub workload: Option<&'a str>,
}

/// What may be done with a call.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// May be repeated although it may have had an effect.
    pub repeatable: bool,
    /// Made under an attempt above the first: only one layer of a chain of calls retries, so this one
    /// is repeated only if it was undelivered.
    pub under_retry: bool,
    /// Speaks gRPC.
    pub grpc: bool,
    /// When its answer is of no use any more.
    pub deadline: Option<Instant>,
    /// Whether a policy set the deadline: one that a client chose says nothing about an endpoint.
    pub deadline_by_policy: bool,
    /// Which endpoint it belongs to, where the algorithm hashes.
    pub hash: Option<u64>,
}

/// A request's body, for as many attempts as it takes.
#[derive(Debug)]
pub enum Payload {
    /// None.
    Empty,
    /// Read from the client once, kept up to a bound.
    Replay(Replay),
    /// All of it, with its trailers.
    Kept(Vec<bytes::Bytes>, Option<HeaderMap>),
    /// What an upgraded connection will send.
    Tunnel(Feed),
}

/// The endpoints that were tried; few.
#[derive(Debug, Default)]
pub struct Tried(Vec<Arc<Endpoint>>);

impl Tried {
    /// Remembers one.
    pub fn add(&mut self, endpoint: Arc<Endpoint>) {
        self.0.push(endpoint);
    }

    /// Whether one was.
    pub fn any(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether it was.
    pub fn has(&self, candidate: &Endpoint) -> bool {
        self.0.iter().any(|one| std::ptr::eq(one.as_ref(), candidate))
    }
}

impl Call<'_> {
    /// Picks an endpoint that was not tried; where there is none, any.
    pub fn pick(&self, tried: &Tried) -> Option<Watch> {
        self.pick_untried(tried)
            .or_else(|| if tried.any() { self.pick_untried(&Tried::default()) } else { None })
    }

    /// Picks an endpoint with a connection that takes one more request.
    pub fn pick_with_room(&self) -> Option<Watch> {
        let reuse = Reuse::of(self.terms.repeatable);
        self.pick_but(&|candidate| !candidate.has_room(reuse))
    }

    /// Picks an endpoint that was not tried.
    pub fn pick_untried(&self, tried: &Tried) -> Option<Watch> {
        self.pick_but(&|candidate| tried.has(candidate))
    }

    /// Picks from the newest set: a retry must not pick the dead.
    fn pick_but(&self, tried: &dyn Fn(&Endpoint) -> bool) -> Option<Watch> {
        let snapshot = self.shared.directory.load();
        let endpoints = match self.found {
            Some((version, endpoints)) if version == snapshot.version => endpoints,
            Some(_) | None => match snapshot.service(self.service.as_str()) {
                Some(Entry::Known(service)) => &service.port(self.port)?.endpoints,
                Some(Entry::Unknown) | None => return None,
            },
        };
        let other = |candidate: &Endpoint| self.workload.is_some_and(|one| one != &*candidate.workload);
        let ask = Ask { tried: &|candidate| tried(candidate) || other(candidate), hash: self.terms.hash };
        let now = Instant::now();
        let pick = endpoints.pick(&ask, now, &mut fastrand::Rng::with_seed(fastrand::u64(..)))?;
        Some(Watch::begin(endpoints.clone(), pick, self.shared.metrics.clone(), now))
    }

    /// Time left until the deadline, if there is one.
    pub fn left(&self, now: Instant) -> Option<Duration> {
        self.terms.deadline.map(|deadline| deadline.saturating_duration_since(now))
    }

    /// Whether a second attempt may go out before the first has failed: a safe method (RFC 9110
    /// section 9.2.1), without a body, for only one attempt can read one.
    pub fn may_hedge(&self) -> bool {
        let safe = matches!(self.head.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
        safe && !self.terms.under_retry && matches!(self.payload, Payload::Empty)
    }
}

impl Payload {
    /// The body of the next attempt; `None` when too much was read to start over.
    pub fn attempt(&self) -> Option<Body> {
        match self {
            Self::Empty => Some(Body::Empty),
            Self::Replay(replay) => replay.attempt().map(Body::Request),
            Self::Kept(chunks, trailers) => Some(Body::Kept(chunks.clone().into(), trailers.clone())),
            Self::Tunnel(feed) => Some(Body::Tunnel(feed.body())),
        }
    }

    /// Whether another attempt could start over.
    pub fn replayable(&self) -> bool {
        match self {
            Self::Empty | Self::Kept(..) | Self::Tunnel(_) => true,
            Self::Replay(replay) => replay.replayable(),
        }
    }

    /// The whole body, if it has been read to its end and kept.
    pub fn whole(&self) -> Option<(Vec<bytes::Bytes>, Option<HeaderMap>)> {
        match self {
            Self::Empty => Some(Default::default()),
            Self::Replay(replay) => replay.whole(),
            Self::Kept(chunks, trailers) => Some((chunks.clone(), trailers.clone())),
            Self::Tunnel(_) => None,
        }
    }

    /// Resolves when there has been no response for too long; see [`Replay::overdue`].
    pub async fn overdue(&self, limit: Duration) {
        match self {
            Self::Empty | Self::Kept(..) | Self::Tunnel(_) => tokio::time::sleep(limit).await,
            Self::Replay(replay) => replay.overdue(limit).await,
        }
    }

    /// The client's side broke off: no attempt is to blame.
    pub fn client_error(&self, idle: Duration) -> Option<ProxyError> {
        match self {
            Self::Empty | Self::Kept(..) | Self::Tunnel(_) => None,
            Self::Replay(replay) => replay.failed().map(|failed| match failed {
                Failed::Idle => ProxyError::IdleTimeout(idle),
                Failed::Client => ProxyError::ClientClosed,
                Failed::Malformed => ProxyError::BadRequest("the body of the request is malformed"),
            }),
        }
    }
}
