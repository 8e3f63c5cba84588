//! What is remembered of one endpoint.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::breaker::{Breaker, Status, Ticket, Verdict};
use super::ewma::Ewma;
use super::settings::{BreakerSettings, Settings};

/// What a failed or throttled attempt counts as in the EWMA, unless it took longer: failing fast must
/// not look fast.
pub const FAILURE_COST: Duration = Duration::from_secs(1);
/// Longest time a `Retry-After` is taken for: it is the word of one answer.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Share at which a new or returned endpoint starts.
const FIRST_SHARE: f64 = 0.1;

/// How an attempt ended, as far as it concerns the endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It answered.
    Success {
        /// From the request sent on a connection to the response head.
        latency: Duration,
    },
    /// It failed.
    Failure {
        /// In what way.
        kind: FailureKind,
        /// From the attempt's start.
        elapsed: Duration,
    },
    /// It answered, to ask for fewer requests (429, `RESOURCE_EXHAUSTED`): slow, but not broken.
    Throttled {
        /// From the attempt's start.
        elapsed: Duration,
        /// What it asked for, if it said; up to 30 s are taken as its latency.
        retry_after: Option<Duration>,
    },
    /// Nobody waited for the answer any more: says nothing to the breaker, but what has taken longer
    /// than usual is slow, or the slowest endpoint would look the fastest for want of answers.
    GivenUp {
        /// From the attempt's start.
        elapsed: Duration,
    },
    /// Says nothing of the endpoint.
    Ignored,
}

/// Assumed latency, at least, of an endpoint that never answered and whose first request was given up.
const UNANSWERED: Duration = Duration::from_millis(30);

/// The ways to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailureKind {
    /// A connection was refused or broke, or its TLS failed: counts as all the failures in a row.
    Connection,
    /// No answer in time.
    Timeout,
    /// A failing status or gRPC code.
    Status,
}

/// What is remembered of an endpoint; it survives snapshots. One short lock, some 200 bytes.
#[derive(Debug)]
pub struct EndpointState {
    learned: Mutex<Learned>,
    in_flight: AtomicU32,
    /// The group's tick at its last pick.
    picked: AtomicU32,
}

#[derive(Debug)]
struct Learned {
    latency: Ewma,
    breaker: Breaker,
    /// Since when it has been starting slowly.
    starting: Option<Instant>,
}

/// An endpoint as it stood at one moment, read under one lock.
#[derive(Debug, Clone, Copy)]
pub struct Look {
    /// Its breaker.
    pub status: Status,
    /// Peak-EWMA latency in seconds; `None`: unknown, or out of date because it was out.
    pub seconds: Option<f64>,
    /// Part of its weight it may have by slow start: 0.1 to 1.
    pub ramp: f64,
    pub(super) ticket: Ticket,
}

impl EndpointState {
    /// Nothing is known yet.
    pub fn new(now: Instant) -> Self {
        let learned = Learned { latency: Ewma::new(now), breaker: Breaker::new(now), starting: None };
        Self { learned: Mutex::new(learned), in_flight: AtomicU32::new(0), picked: AtomicU32::new(0) }
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// One more request in flight; pair with [`EndpointState::end`].
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// One fewer.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// As it stands at `now`, where a start takes `slow_start`.
    pub fn look(&self, now: Instant, slow_start: Duration) -> Look {
        let learned = self.lock();
        let status = learned.breaker.status(now);
        // While it is out, the failures that weigh on its average are what it was set aside for.
        let seconds = if status == Status::Closed { learned.latency.seconds(now) } else { None };
        let ramp = learned.starting.map_or(1.0, |since| {
            let elapsed = now.saturating_duration_since(since).as_secs_f64();
            let part = elapsed / slow_start.as_secs_f64();
            if part < 1.0 { FIRST_SHARE + (1.0 - FIRST_SHARE) * part } else { 1.0 }
        });
        Look { status, seconds, ramp, ticket: learned.breaker.ticket() }
    }

    /// Starts slowly, as what is new.
    pub fn start_slowly(&self, now: Instant) {
        self.lock().starting = Some(now);
    }

    /// Takes the probe's slot, if it is half-open and the slot is free.
    pub(super) fn claim(&self, now: Instant) -> Option<Ticket> {
        self.lock().breaker.claim(now)
    }

    /// Gives it back.
    pub(super) fn release(&self, ticket: Ticket) {
        self.lock().breaker.release(ticket);
    }

    /// Learns how a request of `ticket` ended.
    pub(super) fn learn(
        &self,
        ticket: Ticket,
        outcome: &Outcome,
        now: Instant,
        settings: &Settings,
    ) -> Verdict {
        let mut learned = self.lock();
        let Learned { latency: average, breaker, starting } = &mut *learned;
        let stale = !breaker.is_current(ticket);
        let (verdict, seen) = match *outcome {
            Outcome::Ignored => {
                breaker.release(ticket);
                return Verdict::Keep;
            }
            Outcome::GivenUp { elapsed } => {
                breaker.release(ticket);
                match average.seconds(now) {
                    Some(usual) if elapsed.as_secs_f64() <= usual => {}
                    Some(_) => average.observe(elapsed, now),
                    // It has had its first request, and is no good unknown any more: else all requests
                    // would go to the one that never answers.
                    None => average.observe(elapsed.max(UNANSWERED), now),
                }
                return Verdict::Keep;
            }
            Outcome::Success { latency } => (breaker.succeeded(ticket, now, &settings.breaker), latency),
            Outcome::Throttled { elapsed, retry_after } => {
                let asked = retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER);
                let seen = elapsed.max(FAILURE_COST).max(asked);
                (breaker.succeeded(ticket, now, &settings.breaker), seen)
            }
            Outcome::Failure { kind, elapsed } => {
                let decisive = kind == FailureKind::Connection;
                (breaker.failed(ticket, decisive, now, &settings.breaker), elapsed.max(FAILURE_COST))
            }
        };
        if verdict == Verdict::Closed {
            average.forget();
            *starting = Some(now);
        }
        // A failure of a request sent before the last change has been paid for by that change.
        if !(stale && matches!(outcome, Outcome::Failure { .. })) {
            average.observe(seen, now);
        }
        verdict
    }

    /// Since when it has not been closed.
    pub(super) fn out_since(&self) -> Option<Instant> {
        self.lock().breaker.out_since()
    }

    /// Sets it aside, unless that was done since `ticket`. Returns whether it was done now.
    pub(super) fn open(&self, ticket: Ticket, now: Instant, settings: &BreakerSettings) -> bool {
        let mut learned = self.lock();
        let current = learned.breaker.is_current(ticket);
        if current {
            learned.breaker.open(now, settings);
        }
        current
    }

    /// Takes it back unproven, for want of others: slowly, and with nothing known.
    pub(super) fn take_back(&self, now: Instant) {
        let mut learned = self.lock();
        learned.breaker.close(now);
        learned.latency.forget();
        learned.starting = Some(now);
    }

    pub(super) fn picked(&self) -> u32 {
        self.picked.load(Ordering::Relaxed)
    }

    pub(super) fn mark_picked(&self, tick: u32) {
        self.picked.store(tick, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Learned> {
        self.learned.lock().expect("no holder of this lock panics")
    }
}

#[cfg(test)]
impl EndpointState {
    /// As an answer would.
    pub(super) fn learn_latency(&self, latency: Duration, now: Instant) {
        self.lock().latency.observe(latency, now);
    }
}
