//! The circuit breaker of one endpoint: when it is set aside, for how long, how it comes back. How
//! many may be out at once is the group's business ([`super::group`]).
//!
//! Source: Nygard, "Release It!" (circuit breaker, half-open state); Envoy's outlier detection, as
//! documented, for consecutive failures, success rate and ejection times that grow and shrink.

use std::time::{Duration, Instant};

use super::settings::BreakerSettings;

/// Buckets of the success rate's window.
const BUCKETS: usize = 10;
/// Above this the ejection time has long reached its maximum.
const TOP_LEVEL: u8 = 24;

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// In use.
    Closed,
    /// Set aside until then.
    Open {
        /// When its time is over.
        until: Instant,
    },
    /// Its time is over; one request finds out whether it is back.
    HalfOpen {
        /// That request is on its way.
        probing: bool,
    },
}

/// What ties a report to the state in which its request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    generation: u32,
    probe: bool,
}

/// What a report asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing.
    Keep,
    /// The endpoint should be set aside, if the group can spare it.
    Trip,
    /// The probe failed: it has been set aside again.
    Reopened,
    /// It proved itself: it has been taken back.
    Closed,
}

/// State of one endpoint's breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Counts the changes of `state`: a report of a request sent before the last one says nothing.
    generation: u32,
    /// Failures since the last success.
    consecutive: u32,
    /// Ejections not yet made up for by good behaviour.
    level: u8,
    probing: bool,
    window: Window,
}

#[derive(Debug, Clone, Copy)]
enum State {
    /// Since when; `None`: it was never open.
    Closed(Option<Instant>),
    Open {
        since: Instant,
        until: Instant,
    },
}

impl Breaker {
    /// Closed, without a past.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            state: State::Closed(None),
            generation: 0,
            consecutive: 0,
            level: 0,
            probing: false,
            window: Window::new(now),
        }
    }

    /// Where the endpoint stands.
    pub(super) fn status(&self, now: Instant) -> Status {
        match self.state {
            State::Closed(_) => Status::Closed,
            State::Open { until, .. } if now < until => Status::Open { until },
            State::Open { .. } => Status::HalfOpen { probing: self.probing },
        }
    }

    /// Since when it has not been closed.
    pub(super) fn out_since(&self) -> Option<Instant> {
        match self.state {
            State::Closed(_) => None,
            State::Open { since, .. } => Some(since),
        }
    }

    /// The ticket of an ordinary request sent now.
    pub(super) fn ticket(&self) -> Ticket {
        Ticket { generation: self.generation, probe: false }
    }

    /// The ticket of the probe, if one may be sent now. Its slot is taken until a report or
    /// [`Breaker::release`].
    pub(super) fn claim(&mut self, now: Instant) -> Option<Ticket> {
        if self.status(now) != (Status::HalfOpen { probing: false }) {
            return None;
        }
        self.probing = true;
        Some(Ticket { generation: self.generation, probe: true })
    }

    /// Gives the probe's slot back, if `ticket` holds it.
    pub(super) fn release(&mut self, ticket: Ticket) {
        if ticket.probe && self.is_current(ticket) {
            self.probing = false;
        }
    }

    /// Whether nothing has changed since `ticket` was given.
    pub(super) fn is_current(&self, ticket: Ticket) -> bool {
        ticket.generation == self.generation
    }

    /// A request succeeded. One sent after the ejection, as a probe or for want of anything better,
    /// proves that the endpoint is back.
    pub(super) fn succeeded(&mut self, ticket: Ticket, now: Instant, settings: &BreakerSettings) -> Verdict {
        if !self.is_current(ticket) {
            return Verdict::Keep;
        }
        match self.state {
            State::Closed(_) => {
                self.consecutive = 0;
                self.window.add(true, now, settings.window);
                Verdict::Keep
            }
            State::Open { .. } => {
                self.close(now);
                Verdict::Closed
            }
        }
    }

    /// A request failed; `decisive`: it counts as all the failures in a row that it takes.
    pub(super) fn failed(
        &mut self,
        ticket: Ticket,
        decisive: bool,
        now: Instant,
        settings: &BreakerSettings,
    ) -> Verdict {
        if !self.is_current(ticket) {
            return Verdict::Keep;
        }
        match self.state {
            State::Closed(_) => {
                let more = if decisive { settings.consecutive_failures } else { 1 };
                self.consecutive = self.consecutive.saturating_add(more);
                self.window.add(false, now, settings.window);
                let trip = self.consecutive >= settings.consecutive_failures || self.window.is_poor(settings);
                if trip { Verdict::Trip } else { Verdict::Keep }
            }
            State::Open { .. } if ticket.probe => {
                self.open(now, settings);
                Verdict::Reopened
            }
            State::Open { .. } => Verdict::Keep,
        }
    }

    /// Sets the endpoint aside: for the base time, doubled for each ejection before, of which one is
    /// forgiven for each window it has behaved well since the last.
    pub(super) fn open(&mut self, now: Instant, settings: &BreakerSettings) {
        let level = match self.state {
            State::Closed(Some(since)) => {
                let good = now.saturating_duration_since(since).as_secs_f64();
                let forgiven = good / settings.window.as_secs_f64().max(1e-3);
                self.level.saturating_sub(forgiven as u8)
            }
            State::Closed(None) => 0,
            State::Open { .. } => self.level,
        };
        let longest = settings.ejection_max.max(settings.ejection_base);
        let time = settings.ejection_base.saturating_mul(1 << level).min(longest);
        self.level = (level + 1).min(TOP_LEVEL);
        self.change(State::Open { since: now, until: now + time }, now);
    }

    /// Takes the endpoint back.
    pub(super) fn close(&mut self, now: Instant) {
        self.change(State::Closed(Some(now)), now);
    }

    fn change(&mut self, state: State, now: Instant) {
        self.state = state;
        self.generation = self.generation.wrapping_add(1);
        self.consecutive = 0;
        self.probing = false;
        self.window = Window::new(now);
    }
}

/// Successes and failures of the recent past, in buckets.
#[derive(Debug)]
struct Window {
    buckets: [Bucket; BUCKETS],
    /// The bucket of now.
    at: u8,
    /// When that began.
    since: Instant,
}

#[derive(Debug, Clone, Copy, Default)]
struct Bucket {
    succeeded: u32,
    failed: u32,
}

impl Window {
    fn new(now: Instant) -> Self {
        Self { buckets: [Bucket::default(); BUCKETS], at: 0, since: now }
    }

    fn add(&mut self, success: bool, now: Instant, length: Duration) {
        self.advance(now, length / BUCKETS as u32);
        let bucket = &mut self.buckets[usize::from(self.at)];
        let count = if success { &mut bucket.succeeded } else { &mut bucket.failed };
        *count = count.saturating_add(1);
    }

    fn advance(&mut self, now: Instant, width: Duration) {
        let elapsed = now.saturating_duration_since(self.since);
        if elapsed < width {
            return;
        }
        if elapsed >= width * BUCKETS as u32 {
            *self = Self::new(now);
            return;
        }
        while now.saturating_duration_since(self.since) >= width {
            self.at = (self.at + 1) % BUCKETS as u8;
            self.buckets[usize::from(self.at)] = Bucket::default();
            self.since += width;
        }
    }

    /// Whether enough requests were seen and too few of them succeeded.
    fn is_poor(&self, settings: &BreakerSettings) -> bool {
        let sum =
            |count: fn(&Bucket) -> u32| self.buckets.iter().map(|one| u64::from(count(one))).sum::<u64>();
        let (succeeded, failed) = (sum(|one| one.succeeded), sum(|one| one.failed));
        let all = succeeded + failed;
        all >= u64::from(settings.min_requests) && (succeeded as f64) < settings.success_rate * all as f64
    }
}
