//! The endpoints of one service port, as one snapshot has them.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::Candidate;
use super::breaker::{Status, Verdict};
use super::draw::Part;
use super::endpoint::{Look, Outcome};
use super::floor::Gate;
use super::hash::{Member, Table};
use super::pick::{Pick, Robin};
use super::settings::{Algorithm, Settings};

/// Part of the requests for which the own zone is asked first however little of it is usable, else
/// nobody would find out that it is back. They go on to the others where it is not.
const LEAST_ASKED: f64 = 0.05;

/// What a report changed, for log and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Nothing.
    None,
    /// The endpoint was set aside; at the floor, the one that had been out longest was taken back for it.
    Opened,
    /// The endpoint was taken back.
    Closed,
}

/// All endpoints of one service port. What was learned of each survives in the endpoint, what
/// concerns all of them in what a group takes over from the one before.
#[derive(Debug)]
pub struct Group<C> {
    pub(super) settings: Settings,
    /// Those of the own zone first, if zones count.
    pub(super) endpoints: Arc<[Arc<C>]>,
    /// The registry's word on each when this group was made.
    healthy: Box<[bool]>,
    /// Of the own zone; empty if zones do not count.
    pub(super) local: Part,
    /// All others.
    pub(super) others: Part,
    pub(super) mean_weight: f64,
    /// Whether all weigh the same.
    pub(super) even: bool,
    pub(super) table: Option<Arc<Table>>,
    pub(super) robin: Option<Mutex<Robin>>,
    pub(super) shared: Arc<Shared<C>>,
    /// The own zone's share as last worked out, and for which count of transitions.
    local_share: AtomicU64,
}

/// What a group takes over from the one before.
#[derive(Debug)]
pub(super) struct Shared<C> {
    /// Held by who sets an endpoint aside.
    pub(super) gate: Mutex<Gate<C>>,
    /// Counts picks, to tell which endpoint's was longer ago.
    pub(super) tick: AtomicU32,
    /// Counts changes of any breaker.
    transitions: AtomicU32,
}

impl<C> Shared<C> {
    fn new(members: Arc<[Arc<C>]>) -> Self {
        let gate = Mutex::new(Gate::new(members));
        Self { gate, tick: AtomicU32::new(0), transitions: AtomicU32::new(0) }
    }
}

impl<C: Candidate> Group<C> {
    /// The group of `candidates` that comes after `previous`. Endpoints are known by their `Arc`: who
    /// is not in `previous`, or was unhealthy there, starts slowly, unless all of them would.
    ///
    /// O(n); the tables of the hash algorithms are made here, and shared if nothing changed for them.
    pub fn new(settings: Settings, candidates: Vec<Arc<C>>, previous: Option<&Self>, now: Instant) -> Self {
        let is_local = |candidate: &Arc<C>| match &settings.zone {
            Some(zone) if !is_hashed(settings.algorithm) => candidate.zone() == Some(&*zone.own),
            Some(_) | None => false,
        };
        let (mut endpoints, others): (Vec<_>, Vec<_>) = candidates.into_iter().partition(is_local);
        let local = endpoints.len();
        endpoints.extend(others);
        let endpoints: Arc<[_]> = endpoints.into();
        let weights: Vec<u32> = endpoints.iter().map(|endpoint| endpoint.weight().max(1)).collect();
        let sum: f64 = weights.iter().map(|&weight| f64::from(weight)).sum();
        let group = Self {
            healthy: endpoints.iter().map(|endpoint| endpoint.healthy()).collect(),
            local: Part::new(0, &weights[..local]),
            others: Part::new(local, &weights[local..]),
            mean_weight: sum / (weights.len().max(1) as f64),
            even: weights.iter().all(|&weight| weight == weights[0]),
            table: table(&settings, &endpoints, &weights, previous),
            robin: None,
            shared: match previous {
                Some(previous) => previous.shared.clone(),
                None => Arc::new(Shared::new(endpoints.clone())),
            },
            // Of a count that is not reached in a sidecar's life.
            local_share: AtomicU64::new(u64::MAX),
            endpoints,
            settings,
        };
        let group = group.with_robin(previous);
        if let Some(previous) = previous {
            group.start_newcomers(previous, now);
            group.take_gate(now);
        }
        group
    }

    /// Its endpoints; those of the own zone first if zones count.
    pub fn endpoints(&self) -> &[Arc<C>] {
        &self.endpoints
    }

    /// What it goes by.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many endpoints are set aside; half-open ones are not.
    pub fn ejected(&self, now: Instant) -> usize {
        let open = |endpoint: &&Arc<C>| matches!(self.look(endpoint, now).status, Status::Open { .. });
        self.endpoints.iter().filter(open).count()
    }

    /// An endpoint as it stands at `now`.
    pub fn look(&self, endpoint: &C, now: Instant) -> Look {
        endpoint.state().look(now, self.settings.slow_start)
    }

    /// Learns how the request of `pick` ended. `now` is when it was over.
    ///
    /// O(1) but for the moment an endpoint is set aside, which looks at all of them.
    pub fn report(&self, pick: Pick<C>, outcome: &Outcome, now: Instant) -> Transition {
        let (endpoint, ticket) = pick.into_parts();
        match endpoint.state().learn(ticket, outcome, now, &self.settings) {
            Verdict::Keep => return Transition::None,
            Verdict::Trip => return self.trip(&endpoint, ticket, now),
            Verdict::Reopened => self.count_transition(),
            Verdict::Closed => {
                self.reopen_gate();
                self.count_transition();
                return Transition::Closed;
            }
        }
        Transition::Opened
    }

    /// Part of the requests that stay in the own zone, 0 to 1: its usable share over the least it needs
    /// to carry them all. Worked out anew after a transition.
    ///
    /// Source: Envoy's priority levels, where an overprovisioning factor (here 1 / `min_usable`) makes
    /// up for missing hosts until it cannot.
    pub(super) fn local_share(&self) -> f64 {
        let Some(zone) = &self.settings.zone else { return 0.0 };
        let count = self.shared.transitions.load(Ordering::Relaxed);
        let cached = self.local_share.load(Ordering::Relaxed);
        if cached >> 32 == u64::from(count) {
            return f64::from(f32::from_bits(cached as u32));
        }
        let local = &self.endpoints[self.local.positions()];
        let usable = local
            .iter()
            .filter(|endpoint| endpoint.healthy() && endpoint.state().out_since().is_none())
            .count();
        let share = usable as f64 / local.len().max(1) as f64 / zone.min_usable;
        let share = share.clamp(LEAST_ASKED, 1.0);
        let packed = u64::from(count) << 32 | u64::from((share as f32).to_bits());
        self.local_share.store(packed, Ordering::Relaxed);
        share
    }

    pub(super) fn count_transition(&self) {
        self.shared.transitions.fetch_add(1, Ordering::Relaxed);
    }

    fn with_robin(mut self, previous: Option<&Self>) -> Self {
        if self.settings.algorithm == Algorithm::RoundRobin {
            let kept = previous.and_then(|previous| {
                let robin = previous.robin.as_ref()?.lock().expect("no holder of this lock panics");
                let ahead = |(endpoint, index)| Some((endpoint, robin.ahead(index, previous.local.length)?));
                Some(previous.positions().filter_map(ahead).collect())
            });
            let kept: HashMap<*const C, f64> = kept.unwrap_or_default();
            let due = |endpoint: &Arc<C>| kept.get(&Arc::as_ptr(endpoint)).copied();
            self.robin = Some(Mutex::new(Robin::new(self.endpoints.iter().map(due))));
        }
        self
    }

    fn start_newcomers(&self, previous: &Self, now: Instant) {
        let same = |(old, new): (&Arc<C>, &Arc<C>)| Arc::ptr_eq(old, new);
        if self.healthy == previous.healthy
            && self.endpoints.len() == previous.endpoints.len()
            && previous.endpoints.iter().zip(self.endpoints.iter()).all(same)
        {
            return;
        }
        let known: HashMap<*const C, bool> =
            previous.positions().map(|(endpoint, index)| (endpoint, previous.healthy[index])).collect();
        let was_usable = |endpoint: &Arc<C>| known.get(&Arc::as_ptr(endpoint)) == Some(&true);
        let usable = || self.endpoints.iter().filter(|endpoint| endpoint.healthy());
        // Where nobody carries the load already, nobody can be spared it.
        if usable().any(was_usable) {
            for newcomer in usable().filter(|endpoint| !was_usable(endpoint)) {
                newcomer.state().start_slowly(now);
            }
        }
    }

    fn positions(&self) -> impl Iterator<Item = (*const C, usize)> {
        self.endpoints.iter().enumerate().map(|(index, endpoint)| (Arc::as_ptr(endpoint), index))
    }
}

/// Whether the algorithm is of those that send a key where it lives.
pub(super) fn is_hashed(algorithm: Algorithm) -> bool {
    matches!(algorithm, Algorithm::RingHash | Algorithm::Maglev)
}

fn table<C: Candidate>(
    settings: &Settings,
    endpoints: &[Arc<C>],
    weights: &[u32],
    previous: Option<&Group<C>>,
) -> Option<Arc<Table>> {
    if !is_hashed(settings.algorithm) {
        return None;
    }
    let member = |(endpoint, &weight)| Member { key: C::key(endpoint), weight };
    let members: Vec<_> = endpoints.iter().map(|endpoint| &**endpoint).zip(weights).map(member).collect();
    match previous.and_then(|previous| previous.table.as_ref()) {
        Some(table) if table.is_of(settings.algorithm, &members) => Some(table.clone()),
        Some(_) | None => Table::new(settings.algorithm, &members).map(Arc::new),
    }
}
