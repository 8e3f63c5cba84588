//! What the request path calls until it holds a [`super::Group`]: no floor, one probe by cost alone.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::breaker::{Status, Verdict};
use super::endpoint::{EndpointState, FailureKind, Outcome};
use super::group::Transition;
use super::{Candidate, Settings};

impl EndpointState {
    /// It answered after `latency`.
    pub fn succeeded(&self, latency: Duration, now: Instant) -> Transition {
        self.reported(&Outcome::Success { latency }, now)
    }

    /// An attempt failed after `elapsed`; `broken`: the endpoint refused or broke a connection.
    pub fn failed(&self, elapsed: Duration, broken: bool, now: Instant) -> Transition {
        let kind = if broken { FailureKind::Connection } else { FailureKind::Timeout };
        self.reported(&Outcome::Failure { kind, elapsed }, now)
    }

    /// Whether it is set aside.
    pub fn ejected(&self, now: Instant) -> bool {
        matches!(self.look(now, Duration::ZERO).status, Status::Open { .. })
    }

    fn reported(&self, outcome: &Outcome, now: Instant) -> Transition {
        let settings = Settings::default();
        let look = self.look(now, Duration::ZERO);
        let open = matches!(look.status, Status::Open { .. });
        if open {
            return Transition::None;
        }
        let ticket = self.claim(now).unwrap_or(look.ticket);
        match self.learn(ticket, outcome, now, &settings) {
            Verdict::Keep => Transition::None,
            Verdict::Trip if self.open(ticket, now, &settings.breaker) => Transition::Opened,
            Verdict::Trip => Transition::None,
            Verdict::Reopened => Transition::Opened,
            Verdict::Closed => Transition::Closed,
        }
    }
}

/// Picks one of `candidates`, leaving out those `tried` says were tried: the cheaper of two.
pub fn pick<'a, C: Candidate>(
    candidates: &'a [Arc<C>],
    tried: impl Fn(&C) -> bool,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Option<&'a Arc<C>> {
    let tier = |candidate: &C| match (candidate.healthy(), candidate.state().ejected(now)) {
        (true, false) => 0,
        (true, true) => 1,
        (false, _) => 2,
    };
    let best = candidates.iter().filter(|one| !tried(one)).map(|one| tier(one)).min()?;
    let eligible = || candidates.iter().filter(|one| !tried(one) && tier(one) == best);
    let first = rng.usize(..eligible().count());
    let second = rng.usize(..eligible().count());
    let (first, second) = (eligible().nth(first)?, eligible().nth(second)?);
    let cost = |one: &C| {
        let look = one.state().look(now, Duration::ZERO);
        let in_flight = f64::from(one.state().in_flight());
        look.seconds.unwrap_or(if in_flight > 0.0 { 0.03 } else { 0.0 }) * (in_flight + 1.0)
    };
    Some(if cost(second) < cost(first) { second } else { first })
}
