//! Picks an endpoint: power of two choices over peak-EWMA load. Pure: the clock and the randomness
//! come in as arguments.

mod ejection;
mod ewma;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use ejection::{Ejection, Transition};
pub use ewma::Load;

/// What the balancer needs to know of an endpoint.
pub trait Candidate {
    /// Its load and ejection.
    fn state(&self) -> &EndpointState;
    /// Whether its sidecar reaches its application.
    fn healthy(&self) -> bool;
}

/// What is remembered of an endpoint; it survives snapshots.
#[derive(Debug)]
pub struct EndpointState {
    /// Latency and requests in flight.
    pub load: Load,
    /// Whether it is set aside for refusing or breaking connections.
    pub ejection: Ejection,
}

impl EndpointState {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        Self { load: Load::new(now), ejection: Ejection::default() }
    }

    /// What another request would cost. After an ejection the endpoint counts as never observed: the
    /// failures that weigh on its average are what it was set aside for.
    fn cost(&self, now: Instant) -> f64 {
        if self.ejection.recovering(now) { self.load.cost_unknown() } else { self.load.cost(now) }
    }

    /// It answered after `latency`.
    pub fn succeeded(&self, latency: Duration, now: Instant) -> Transition {
        let transition = self.ejection.succeeded(now);
        if transition == Transition::Closed {
            self.load.forget();
        }
        self.load.observe(latency, now);
        transition
    }

    /// An attempt failed after `elapsed`; `broken`: the endpoint refused or broke a connection.
    pub fn failed(&self, elapsed: Duration, broken: bool, now: Instant) -> Transition {
        self.load.observe(elapsed.max(FAILURE_COST), now);
        if broken { self.ejection.failed(now) } else { Transition::None }
    }
}

/// What a failed attempt counts as in the EWMA, unless it took longer: failing fast must not look fast.
pub const FAILURE_COST: Duration = Duration::from_secs(1);

/// Random draws before the scan. Two eligible ones are found at the first draw in the common case.
const DRAWS: usize = 6;

/// How picky a pass is; each admits what the one before did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Tier {
    /// Healthy and not ejected.
    Good,
    /// Healthy, though ejected: while nothing better exists it may have recovered.
    Ejected,
    /// Whatever is registered: health reports are stale while the registry is away.
    Any,
}

/// Picks one of `candidates`, leaving out those `tried` says were tried.
///
/// Healthy endpoints that are not ejected come first; ejected ones only when there is no other, and
/// unhealthy ones only when there is nothing else, so that neither the breaker nor stale health can
/// cause an outage. `None`: everything was tried, or there is nothing.
///
/// Expected O(1): two random draws, and a scan only when those are not eligible. Takes one short
/// lock per endpoint compared.
///
/// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 2001.
pub fn pick<'a, C: Candidate>(
    candidates: &'a [Arc<C>],
    tried: impl Fn(&C) -> bool,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Option<&'a Arc<C>> {
    let eligible = |candidate: &C, tier: Tier| match tier {
        Tier::Good => candidate.healthy() && !candidate.state().ejection.ejected(now) && !tried(candidate),
        Tier::Ejected => candidate.healthy() && !tried(candidate),
        Tier::Any => !tried(candidate),
    };
    if candidates.len() > 2 {
        let mut first: Option<&Arc<C>> = None;
        for _ in 0..DRAWS {
            let drawn = &candidates[rng.usize(..candidates.len())];
            if !eligible(drawn, Tier::Good) {
                continue;
            }
            match first {
                None => first = Some(drawn),
                Some(first) if !Arc::ptr_eq(first, drawn) => return Some(lighter(first, drawn, now)),
                Some(_) => {}
            }
        }
    }
    [Tier::Good, Tier::Ejected, Tier::Any].into_iter().find_map(|tier| {
        let count = candidates.iter().filter(|candidate| eligible(candidate, tier)).count();
        let nth = |n: usize| candidates.iter().filter(|candidate| eligible(candidate, tier)).nth(n);
        match count {
            0 => None,
            1 => nth(0),
            _ => {
                let first = rng.usize(..count);
                let second = (first + rng.usize(1..count)) % count;
                Some(lighter(nth(first)?, nth(second)?, now))
            }
        }
    })
}

fn lighter<'a, C: Candidate>(first: &'a Arc<C>, second: &'a Arc<C>, now: Instant) -> &'a Arc<C> {
    if second.state().cost(now) < first.state().cost(now) { second } else { first }
}

#[cfg(test)]
mod tests;
