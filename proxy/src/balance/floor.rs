//! How many endpoints may be out at once: the breaker must not cause an outage.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Candidate;
use super::breaker::Ticket;
use super::group::{Group, Transition};

/// An endpoint is out at least so long before it is taken back for another: where all of them fail,
/// changing places at every request would help nobody.
const LEAST_OUT: Duration = Duration::from_millis(250);

/// Held by who sets an endpoint aside.
#[derive(Debug)]
pub(super) struct Gate<C> {
    /// The endpoints of the newest group: reports to an older one must not leave it without any.
    members: Arc<[Arc<C>]>,
    /// Nobody can be spared before, unless one comes back.
    shut_until: Option<Instant>,
}

impl<C> Gate<C> {
    pub(super) fn new(members: Arc<[Arc<C>]>) -> Self {
        Self { members, shut_until: None }
    }
}

/// The endpoints that are not closed, half-open ones included: what they carry, others must.
struct Out<'a, C> {
    /// Endpoints in all. Those the registry calls unhealthy do not count, unless all are.
    members: usize,
    /// How many are out.
    count: usize,
    /// The one out longest.
    longest: Option<(Instant, &'a Arc<C>)>,
    /// Whether the endpoint in question is a member.
    has: bool,
}

impl<C: Candidate> Group<C> {
    /// Sets `endpoint` aside, if the floor allows; at the floor, for the one that has been out
    /// longest. Otherwise it stays: its failures are not forgotten, and the next one asks again.
    pub(super) fn trip(&self, endpoint: &Arc<C>, ticket: Ticket, now: Instant) -> Transition {
        let mut gate = self.shared.gate.lock().expect("no holder of this lock panics");
        if gate.shut_until.is_some_and(|until| now < until) {
            return Transition::None;
        }
        let members = gate.members.clone();
        let out = out(&members, Some(endpoint));
        if !out.has {
            // Gone, or unhealthy and thus not in use: nothing to protect.
            return Transition::None;
        }
        if out.count >= self.settings.breaker.most_out(out.members) {
            let Some((since, longest)) = out.longest else { return Transition::None };
            if now < since + LEAST_OUT {
                gate.shut_until = Some(since + LEAST_OUT);
                return Transition::None;
            }
            longest.state().take_back(now);
        }
        gate.shut_until = None;
        self.count_transition();
        if endpoint.state().open(ticket, now, &self.settings.breaker) {
            Transition::Opened
        } else {
            Transition::None
        }
    }

    /// An endpoint came back: there may be room for another.
    pub(super) fn reopen_gate(&self) {
        self.shared.gate.lock().expect("no holder of this lock panics").shut_until = None;
    }

    /// Makes this the newest group. Endpoints are taken back, longest out first, until no more are out
    /// than may be: there may be fewer than there were.
    pub(super) fn take_gate(&self, now: Instant) {
        let mut gate = self.shared.gate.lock().expect("no holder of this lock panics");
        *gate = Gate::new(self.endpoints.clone());
        loop {
            let out = out(&self.endpoints, None);
            match out.longest {
                Some((_, longest)) if out.count > self.settings.breaker.most_out(out.members) => {
                    longest.state().take_back(now);
                }
                Some(_) | None => return,
            }
        }
    }
}

fn out<'a, C: Candidate>(endpoints: &'a [Arc<C>], wanted: Option<&Arc<C>>) -> Out<'a, C> {
    let any_healthy = endpoints.iter().any(|endpoint| endpoint.healthy());
    let mut out = Out { members: 0, count: 0, longest: None, has: false };
    for endpoint in endpoints.iter().filter(|endpoint| endpoint.healthy() || !any_healthy) {
        out.members += 1;
        out.has |= wanted.is_some_and(|wanted| Arc::ptr_eq(wanted, endpoint));
        if let Some(since) = endpoint.state().out_since() {
            out.count += 1;
            if out.longest.is_none_or(|(longest, _)| since < longest) {
                out.longest = Some((since, endpoint));
            }
        }
    }
    out
}
