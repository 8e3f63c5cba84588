//! Picking: who is eligible, and which of those it is.

use std::cmp::Ordering as Order;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Candidate;
use super::breaker::{Status, Ticket};
use super::draw::Part;
use super::endpoint::Look;
use super::group::Group;
use super::hash::{self, Member};
use super::settings::Algorithm;

/// Random draws before a scan. The first is eligible in the common case.
const DRAWS: usize = 6;
/// Costs that differ by less than this factor are equal. Latencies of equal replicas differ by chance:
/// following them sends nearly all of a small load to one of them.
const EQUAL: f64 = 1.25;
/// Added to every latency, in seconds, so that differences well below it make none.
const SLACK: f64 = 0.001;
/// Assumed latency, in seconds, of an endpoint that has a request but never answered one: above that
/// of a good one, so that a newcomer gets requests one at a time until its first answer.
const UNKNOWN: f64 = 0.03;

/// What a pick has to go by.
pub struct Ask<'a, C> {
    /// Which endpoints this request has been to.
    pub tried: &'a dyn Fn(&C) -> bool,
    /// For the hash algorithms: the request's key. `None`: it has none, and goes anywhere.
    pub hash: Option<u64>,
}

/// An endpoint that was picked. Dropped without a report it gives back the probe's slot, if it holds
/// it, and teaches nothing.
#[derive(Debug)]
#[must_use = "report how it went"]
pub struct Pick<C: Candidate> {
    endpoint: Arc<C>,
    ticket: Ticket,
    probe: bool,
}

/// How picky a pass is; each admits what the one before did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tier {
    /// Healthy, and closed or waiting for its probe.
    Good,
    /// Healthy, though ejected: while nothing better exists it may have recovered.
    Ejected,
    /// Whatever is registered: health reports are stale while the registry is away.
    Any,
}

#[derive(Debug, Clone, Copy)]
struct Chosen {
    index: usize,
    look: Look,
}

/// One pick, as its stages pass it on.
struct Request<'a, 'b, C> {
    ask: &'a Ask<'b, C>,
    now: Instant,
}

impl<C: Candidate> Pick<C> {
    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<C> {
        &self.endpoint
    }

    /// Whether this request is the probe of a half-open endpoint.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The probe's slot, if it holds it, becomes the caller's to free.
    pub(super) fn into_parts(mut self) -> (Arc<C>, Ticket) {
        self.probe = false;
        (self.endpoint.clone(), self.ticket)
    }
}

impl<C: Candidate> Drop for Pick<C> {
    fn drop(&mut self) {
        if self.probe {
            self.endpoint.state().release(self.ticket);
        }
    }
}

impl<C: Candidate> Group<C> {
    /// Picks an endpoint that `ask` has not tried.
    ///
    /// Healthy endpoints whose breaker is closed come first, and half-open ones that wait for their
    /// probe; ejected ones only when there is no other, and unhealthy ones only when there is nothing
    /// else, so that neither the breaker nor stale health can cause an outage. `None`: everything was
    /// tried, or there is nothing.
    ///
    /// Allocates nothing. Expected O(1), one short lock for each endpoint compared; round robin O(n)
    /// over plain numbers. A scan where most endpoints are not eligible.
    pub fn pick(&self, ask: &Ask<'_, C>, now: Instant, rng: &mut fastrand::Rng) -> Option<Pick<C>> {
        let request = Request { ask, now };
        loop {
            let chosen = self.choose(&request, rng)?;
            let endpoint = &self.endpoints[chosen.index];
            let probe = chosen.look.status == Status::HalfOpen { probing: false };
            let ticket = if probe {
                // Lost to another thread: it is taken, or over, and the next choice sees that.
                let Some(ticket) = endpoint.state().claim(now) else { continue };
                ticket
            } else {
                chosen.look.ticket
            };
            let tick = self.shared.tick.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            endpoint.state().mark_picked(tick);
            return Some(Pick { endpoint: endpoint.clone(), ticket, probe });
        }
    }

    fn choose(&self, request: &Request<'_, '_, C>, rng: &mut fastrand::Rng) -> Option<Chosen> {
        if let Some(table) = &self.table {
            let key = request.ask.hash.unwrap_or_else(|| rng.u64(..));
            let own = table.walk(key).find_map(|index| self.eligible(index, Tier::Good, request));
            let best = |tier| self.rendezvous(key, tier, request);
            return own.or_else(|| [Tier::Good, Tier::Ejected, Tier::Any].into_iter().find_map(best));
        }
        let (first, second) = self.zones(rng);
        self.choose_in(first, request, rng)
            .or_else(|| self.choose_in(second?, request, rng))
            .or_else(|| self.scan(0..self.endpoints.len(), Tier::Ejected, request, rng))
            .or_else(|| self.scan(0..self.endpoints.len(), Tier::Any, request, rng))
    }

    /// The zones to ask in turn: the own one first with the probability that it carries its requests.
    fn zones(&self, rng: &mut fastrand::Rng) -> (&Part, Option<&Part>) {
        if self.local.length == 0 {
            return (&self.others, None);
        }
        if self.others.length == 0 {
            return (&self.local, None);
        }
        let share = self.local_share();
        if share >= 1.0 || rng.f64() < share {
            (&self.local, Some(&self.others))
        } else {
            (&self.others, Some(&self.local))
        }
    }

    fn choose_in(
        &self,
        part: &Part,
        request: &Request<'_, '_, C>,
        rng: &mut fastrand::Rng,
    ) -> Option<Chosen> {
        match (&self.robin, part.length) {
            (_, 0) => None,
            (_, 1) => self.eligible(part.start, Tier::Good, request),
            (Some(robin), _) => {
                let mut robin = robin.lock().expect("no holder of this lock panics");
                self.next_in_turn(&mut robin, part, request, rng)
            }
            (None, _) => self.better_of_two(part, request, rng),
        }
    }

    /// The first is drawn by weight, part of which a newcomer gets; the second, any other, wins if it is
    /// clearly cheaper. So shares follow the weights while costs are equal.
    ///
    /// Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing", IEEE TPDS 2001.
    fn better_of_two(
        &self,
        part: &Part,
        request: &Request<'_, '_, C>,
        rng: &mut fastrand::Rng,
    ) -> Option<Chosen> {
        let first = (0..DRAWS).find_map(|_| {
            let drawn = self.eligible(part.draw(rng), Tier::Good, request)?;
            (drawn.look.ramp >= 1.0 || rng.f64() < drawn.look.ramp).then_some(drawn)
        });
        let Some(first) = first else { return self.scan(part.positions(), Tier::Good, request, rng) };
        // Of two there is but one other.
        let draws = if part.length == 2 { 1 } else { DRAWS };
        let second =
            (0..draws).find_map(|_| self.eligible(part.draw_other(first.index, rng), Tier::Good, request));
        Some(second.map_or(first, |second| self.better(first, second, rng)))
    }

    /// The same where few or none are eligible: looks at all of them, twice.
    fn scan(
        &self,
        positions: std::ops::Range<usize>,
        tier: Tier,
        request: &Request<'_, '_, C>,
        rng: &mut fastrand::Rng,
    ) -> Option<Chosen> {
        let mut sum = 0.0;
        let mut first: Option<Chosen> = None;
        for chosen in positions.clone().filter_map(|index| self.eligible(index, tier, request)) {
            let weight = self.weight(&chosen);
            sum += weight;
            if first.is_none() || rng.f64() * sum < weight {
                first = Some(chosen);
            }
        }
        let first = first?;
        let mut count = 0;
        let mut second = None;
        for chosen in positions.filter_map(|index| self.eligible(index, tier, request)) {
            if chosen.index != first.index {
                count += 1;
                if rng.usize(..count) == 0 {
                    second = Some(chosen);
                }
            }
        }
        Some(second.map_or(first, |second| self.better(first, second, rng)))
    }

    fn better(&self, first: Chosen, second: Chosen, rng: &mut fastrand::Rng) -> Chosen {
        let (one, other) = (self.cost(&first), self.cost(&second));
        if other * EQUAL < one {
            // It was not drawn by weight.
            let part = self.weight(&second) / self.weight(&first);
            return if part >= 1.0 || rng.f64() < part { second } else { first };
        }
        if one * EQUAL < other || !self.even || first.look.ramp < 1.0 || second.look.ramp < 1.0 {
            return first;
        }
        // Equals take turns, which is evener than chance.
        let tick = self.shared.tick.load(Ordering::Relaxed);
        let age = |chosen: &Chosen| tick.wrapping_sub(self.endpoints[chosen.index].state().picked());
        if age(&second) > age(&first) { second } else { first }
    }

    /// What another request would cost: latency times requests in flight with it, those in proportion
    /// to the weight.
    fn cost(&self, chosen: &Chosen) -> f64 {
        if chosen.look.status == (Status::HalfOpen { probing: false }) {
            // It is probed at once, else it would idle beside fast peers.
            return 0.0;
        }
        let in_flight = self.endpoints[chosen.index].state().in_flight();
        let load = 1.0 + f64::from(in_flight) * self.mean_weight / self.weight(chosen);
        match (self.settings.algorithm, chosen.look.seconds) {
            (Algorithm::LeastRequest, _) => load,
            (_, Some(seconds)) => (seconds + SLACK) * load,
            // The first request finds out.
            (_, None) if in_flight == 0 => 0.0,
            (_, None) => UNKNOWN * load,
        }
    }

    /// The weight it has now.
    fn weight(&self, chosen: &Chosen) -> f64 {
        f64::from(self.endpoints[chosen.index].weight().max(1)) * chosen.look.ramp
    }

    fn rendezvous(&self, key: u64, tier: Tier, request: &Request<'_, '_, C>) -> Option<Chosen> {
        let score = |chosen: &Chosen| {
            let endpoint = &self.endpoints[chosen.index];
            hash::rendezvous(key, Member { key: endpoint.key(), weight: endpoint.weight().max(1) })
        };
        (0..self.endpoints.len())
            .filter_map(|index| self.eligible(index, tier, request))
            .max_by(|one, other| score(one).partial_cmp(&score(other)).unwrap_or(Order::Equal))
    }

    /// The endpoint, if `tier` admits it and it has not been tried.
    fn eligible(&self, index: usize, tier: Tier, request: &Request<'_, '_, C>) -> Option<Chosen> {
        let endpoint = &self.endpoints[index];
        if (tier != Tier::Any && !endpoint.healthy()) || (request.ask.tried)(endpoint) {
            return None;
        }
        let look = self.look(endpoint, request.now);
        let usable = matches!(look.status, Status::Closed | Status::HalfOpen { probing: false });
        (tier != Tier::Good || usable).then_some(Chosen { index, look })
    }

    /// The eligible endpoint whose turn is due first; its next one is due after its weight's interval.
    ///
    /// Source: Demers, Keshav and Shenker, "Analysis and Simulation of a Fair Queueing Algorithm",
    /// SIGCOMM 1989 (virtual time); Envoy's weighted round robin is the same by a heap.
    fn next_in_turn(
        &self,
        robin: &mut Robin,
        part: &Part,
        request: &Request<'_, '_, C>,
        rng: &mut fastrand::Rng,
    ) -> Option<Chosen> {
        let clock = usize::from(part.start != 0 || self.local.length == 0);
        let start = robin.clocks[clock];
        let mut best: Option<(f64, Chosen)> = None;
        for index in part.positions() {
            let interval = self.mean_weight / f64::from(self.endpoints[index].weight().max(1));
            let due = robin.due[index].get_or_insert_with(|| start + rng.f64() * interval).max(start);
            if best.as_ref().is_none_or(|(earliest, _)| due < *earliest)
                && let Some(chosen) = self.eligible(index, Tier::Good, request)
            {
                best = Some((due, chosen));
            }
        }
        let (due, chosen) = best?;
        robin.clocks[clock] = due;
        robin.due[chosen.index] = Some(due + self.mean_weight / self.weight(&chosen));
        Some(chosen)
    }
}

/// Whose turn it is, in virtual time: a turn each in one unit, at the mean weight.
#[derive(Debug)]
pub(super) struct Robin {
    /// When each endpoint is due; `None`: it is new, and joins at a random point of its interval, so
    /// that callers do not march in step.
    due: Box<[Option<f64>]>,
    /// Virtual time in the own zone, and in the others. What was due before, but could not be had, is
    /// due now: turns that were missed are not made up for.
    clocks: [f64; 2],
}

impl Robin {
    /// With when each endpoint is due.
    pub(super) fn new(due: impl Iterator<Item = Option<f64>>) -> Self {
        Self { due: due.collect(), clocks: [0.0; 2] }
    }

    /// How far ahead of its zone's clock the endpoint at `index` is due, where `local` endpoints are of
    /// the own zone.
    pub(super) fn ahead(&self, index: usize, local: usize) -> Option<f64> {
        self.due[index].map(|due| (due - self.clocks[usize::from(index >= local)]).max(0.0))
    }
}
