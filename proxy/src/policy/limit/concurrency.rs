//! Bounded concurrency with a fair queue: [`Fair`] under a lock, and waiting for a turn.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use outrigger_common::identity::SpiffeId;
use tokio::sync::oneshot;

use super::adaptive::{Adaptive, Sample};
use super::fair::{Asked, Fair, Shed, Ticket, Turn};

/// What bounds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// Requests in the application at once: at least 1; with `adaptive`, the most it may find.
    pub max_in_flight: u32,
    /// Requests that wait for their turn; with 0 nobody waits.
    pub max_queued: u32,
    /// Longest wait for a turn; with 0 nobody waits.
    pub max_wait: Duration,
    /// Find the limit from the latency.
    pub adaptive: bool,
}

/// What goes on, for people and metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// The limit in force.
    pub limit: u32,
    /// Requests let in.
    pub in_flight: u32,
    /// Requests waiting.
    pub queued: u32,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Admission {
    /// It may go on while it holds the permit.
    Admit(Permit),
    /// It may wait for its turn.
    Wait(Waiting),
    /// There is no room.
    Shed(Shed),
}

/// The concurrency of one served port.
#[derive(Debug)]
pub struct Concurrency(Mutex<Inner>);

type Answer = Result<Permit, Shed>;

#[derive(Debug)]
struct Inner {
    settings: Settings,
    fair: Fair<SpiffeId, oneshot::Sender<Answer>>,
    adaptive: Option<Adaptive>,
}

impl Concurrency {
    /// Nothing in flight.
    pub fn new(settings: Settings, now: Instant) -> Arc<Self> {
        let adaptive = settings.adaptive.then(|| Adaptive::new(settings.max_in_flight, now));
        let limit = adaptive.as_ref().map_or(settings.max_in_flight, Adaptive::limit);
        let fair = Fair::new(limit, settings.max_queued, settings.max_wait);
        Arc::new(Self(Mutex::new(Inner { settings, fair, adaptive })))
    }

    /// Asks for a place for one request of `caller`, whose work is worth nothing after `deadline`. One
    /// short lock and no allocation unless it has to wait.
    pub fn admit(self: &Arc<Self>, caller: &SpiffeId, deadline: Option<Instant>, now: Instant) -> Admission {
        let mut receiver = None;
        let asked = self.lock().fair.ask(caller, deadline, now, || {
            let (wake, turn) = oneshot::channel();
            receiver = Some(turn);
            wake
        });
        match (asked, receiver) {
            (Asked::Admitted, _) => Admission::Admit(Permit::new(self)),
            (Asked::Queued { ticket, until, displaced }, Some(turn)) => {
                tell(displaced, Shed::Displaced);
                Admission::Wait(Waiting { owner: self.clone(), ticket, until, turn })
            }
            (Asked::Shed(why), _) => Admission::Shed(why),
            (Asked::Queued { .. }, None) => unreachable!("who is queued was given a way to be told"),
        }
    }

    /// Changes the bounds in place; what was let in and who waits stays.
    pub fn update(self: &Arc<Self>, settings: Settings, now: Instant) {
        let mut inner = self.lock();
        let max = settings.max_in_flight;
        match (&mut inner.adaptive, settings.adaptive) {
            (Some(adaptive), true) => adaptive.set_max(max),
            (adaptive @ None, true) => *adaptive = Some(Adaptive::new(max, now)),
            (adaptive, false) => *adaptive = None,
        }
        inner.settings = settings;
        let limit = inner.adaptive.as_ref().map_or(max, Adaptive::limit);
        inner.fair.set_limit(limit);
        inner.fair.set_queue(settings.max_queued, settings.max_wait);
        drop(inner);
        self.hand_on(now);
    }

    /// The bounds in force.
    pub fn settings(&self) -> Settings {
        self.lock().settings
    }

    /// What goes on.
    pub fn state(&self) -> State {
        let fair = &self.lock().fair;
        State { limit: fair.limit(), in_flight: fair.in_flight(), queued: fair.queued() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("no holder of this lock panics")
    }

    /// Takes a place back. The clock is read only if somebody waits for it.
    fn release(self: &Arc<Self>, end: Option<(Sample, Instant)>) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if let (Some((sample, now)), Some(adaptive)) = (end, &mut inner.adaptive) {
            inner.fair.set_limit(adaptive.observe(sample, inner.fair.in_flight(), now));
        }
        inner.fair.release();
        let waited_for = inner.fair.queued() > 0;
        drop(guard);
        if waited_for {
            self.hand_on(end.map_or_else(Instant::now, |(_, now)| now));
        }
    }

    /// Gives turns while there is room. Nobody is told under the lock: a permit whose receiver has gone
    /// is dropped on the spot, which takes the lock.
    fn hand_on(self: &Arc<Self>, now: Instant) {
        loop {
            let Turn { next, expired } = self.lock().fair.turn(now);
            for waiter in expired {
                tell(Some(waiter), Shed::TimedOut);
            }
            let Some(waiter) = next else { return };
            // Refused only by a future dropped this instant; the permit comes back by its own drop.
            drop(waiter.send(Ok(Permit::new(self))));
        }
    }
}

/// Tells a waiter that it gets no turn; if it has gone, it does not mind.
fn tell(waiter: Option<oneshot::Sender<Answer>>, why: Shed) {
    if let Some(waiter) = waiter {
        drop(waiter.send(Err(why)));
    }
}

/// A place, which passes on when dropped.
#[derive(Debug)]
pub struct Permit {
    owner: Arc<Concurrency>,
    end: Option<(Sample, Instant)>,
}

impl Permit {
    fn new(owner: &Arc<Concurrency>) -> Self {
        Self { owner: owner.clone(), end: None }
    }

    /// Gives the place back and says how the request ended at `now`, from which an adaptive limit
    /// learns. Requests that say nothing of the application (cancelled by the client) are dropped.
    pub fn finish(mut self, sample: Sample, now: Instant) {
        self.end = Some((sample, now));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.owner.release(self.end);
    }
}

/// A place in the queue, given up when dropped.
#[derive(Debug)]
pub struct Waiting {
    owner: Arc<Concurrency>,
    ticket: Ticket,
    until: Instant,
    turn: oneshot::Receiver<Answer>,
}

impl Waiting {
    /// Waits for the turn, no longer than the longest wait and the deadline.
    ///
    /// Cancel safety: dropping the future gives up the place, or the permit if it was given just then.
    ///
    /// # Errors
    /// Displaced or timed out.
    pub async fn turn(mut self) -> Result<Permit, Shed> {
        match tokio::time::timeout_at(self.until.into(), &mut self.turn).await {
            Ok(Ok(answer)) => answer,
            // A sender is never dropped without an answer while its receiver lives.
            Ok(Err(_)) | Err(_) => Err(Shed::TimedOut),
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        // Before the receiver goes: who is out of the queue by then is given no turn in vain.
        let waiter = self.owner.lock().fair.cancel(self.ticket);
        drop(waiter);
    }
}

#[cfg(test)]
#[path = "concurrency_tests.rs"]
mod tests;
