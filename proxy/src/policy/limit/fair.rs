//! The state of a bound with a queue, fair between callers: no lock, no clock, no waking.
//!
//! - There is room and nobody waits: admitted.
//! - Else one waits among the waiters of one's own caller. Turns go around the callers, so that who
//!   sends a hundred times as much waits a hundred times as long, and nobody else does (fair queueing,
//!   Nagle, RFC 970, with a queue per source).
//! - The queue is full: the caller with the most waiters loses one, which is the newcomer's own caller
//!   where that has as many; a newcomer from a quiet caller gets in (longest queue drop, Suter et al.,
//!   "Design considerations for supporting TCP with per-flow queueing", INFOCOM 1998).
//! - Within a caller the oldest goes first while the queue moves, and the newest once the oldest has
//!   used half of its time: its client is about to give up, and serving it would make every other
//!   wait as long (adaptive LIFO, Maurer, "Fail at Scale", ACM Queue 13(8), 2015). Losers are taken
//!   from the other end, those whose turn is furthest away.
//! - Whose time is over gets no turn: work that nobody waits for is not started.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Why a request is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Shed {
    /// The queue is full, and nobody has more waiters in it than the caller.
    Full,
    /// Its place went to a caller with fewer waiters.
    Displaced,
    /// Its turn did not come in time.
    TimedOut,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Asked<W> {
    /// It may go on; to be followed by [`Fair::release`].
    Admitted,
    /// It waits; `displaced` lost its place to it.
    Queued {
        /// For [`Fair::cancel`].
        ticket: Ticket,
        /// When its time is over.
        until: Instant,
        /// Whom to tell [`Shed::Displaced`].
        displaced: Option<W>,
    },
    /// It is not let in.
    Shed(Shed),
}

/// A place in the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    lane: usize,
    number: u64,
}

/// A turn given, and whom it passed over.
#[derive(Debug)]
pub struct Turn<W> {
    /// Whose turn it is.
    pub next: Option<W>,
    /// Whose time was over before their turn came.
    pub expired: Vec<W>,
}

/// A bound with a queue of callers `K`, whose waiters are told through `W`.
#[derive(Debug)]
pub struct Fair<K, W> {
    limit: u32,
    in_flight: u32,
    max_queued: u32,
    max_wait: Duration,
    queued: u32,
    /// Numbers places and turns; both only grow.
    counter: u64,
    lanes: Vec<Lane<K, W>>,
    free: Vec<usize>,
    by_caller: HashMap<K, usize>,
    /// Lanes with waiters, by when they had their last turn.
    rotation: BTreeMap<u64, usize>,
    /// The same lanes by their number of waiters.
    by_length: BTreeSet<(usize, usize)>,
}

/// The waiters of one caller, oldest first; unused, in `free`, without any.
#[derive(Debug)]
struct Lane<K, W> {
    /// Set while the lane is used.
    caller: Option<K>,
    turn: u64,
    waiters: VecDeque<Waiter<W>>,
}

#[derive(Debug)]
struct Waiter<W> {
    number: u64,
    since: Instant,
    until: Instant,
    wake: W,
}

impl<K: Hash + Eq + Clone, W> Fair<K, W> {
    /// An empty bound. A limit of 0 counts as 1: a queue that never moves would be a trap.
    pub fn new(limit: u32, max_queued: u32, max_wait: Duration) -> Self {
        Self {
            limit: limit.max(1),
            in_flight: 0,
            max_queued,
            max_wait,
            queued: 0,
            counter: 0,
            lanes: Vec::new(),
            free: Vec::new(),
            by_caller: HashMap::new(),
            rotation: BTreeMap::new(),
            by_length: BTreeSet::new(),
        }
    }

    /// One more request of `caller`, which has until `deadline` if that comes before the longest wait.
    /// `waiter` is made only if it has to wait.
    pub fn ask(
        &mut self,
        caller: &K,
        deadline: Option<Instant>,
        now: Instant,
        waiter: impl FnOnce() -> W,
    ) -> Asked<W> {
        if self.in_flight < self.limit && self.queued == 0 {
            self.in_flight += 1;
            return Asked::Admitted;
        }
        let until = deadline.map_or(now + self.max_wait, |deadline| deadline.min(now + self.max_wait));
        if until <= now {
            // Told apart for people: no queue at all, or no time left for it.
            return Asked::Shed(if self.max_wait.is_zero() { Shed::Full } else { Shed::TimedOut });
        }
        let Ok(displaced) = self.make_room(caller, now) else {
            return Asked::Shed(Shed::Full);
        };
        let lane = self.lane(caller);
        self.counter += 1;
        let number = self.counter;
        let waiter = Waiter { number, since: now, until, wake: waiter() };
        self.change(lane, |waiters| waiters.push_back(waiter));
        Asked::Queued { ticket: Ticket { lane, number }, until, displaced }
    }

    /// A request has ended. If anybody waits, [`Fair::turn`] is to follow.
    pub fn release(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// The next turn, if there is room for it: after a release or a raised limit, to be called until
    /// nobody is next. Whoever asks in between waits behind those who did already.
    pub fn turn(&mut self, now: Instant) -> Turn<W> {
        let mut expired = Vec::new();
        while self.in_flight < self.limit {
            let Some((_, &lane)) = self.rotation.first_key_value() else { break };
            let waiter = self.change(lane, |waiters| {
                if newest_first(waiters, now) { waiters.pop_back() } else { waiters.pop_front() }
            });
            let Some(waiter) = waiter else { break };
            if waiter.until <= now {
                expired.push(waiter.wake);
                continue;
            }
            self.rotate(lane);
            self.in_flight += 1;
            return Turn { next: Some(waiter.wake), expired };
        }
        Turn { next: None, expired }
    }

    /// Takes a waiter out of the queue; `None` if it is no longer there, because it was given its turn,
    /// displaced or found expired.
    pub fn cancel(&mut self, ticket: Ticket) -> Option<W> {
        let waiters = &self.lanes.get(ticket.lane)?.waiters;
        let index = waiters.binary_search_by_key(&ticket.number, |waiter| waiter.number).ok()?;
        self.change(ticket.lane, |waiters| waiters.remove(index)).map(|waiter| waiter.wake)
    }

    /// Changes the limit; see [`Fair::turn`]. What is in flight above a lower one goes on.
    pub fn set_limit(&mut self, limit: u32) {
        self.limit = limit.max(1);
    }

    /// Changes the queue's bounds. Those who wait keep their place and their time.
    pub fn set_queue(&mut self, max_queued: u32, max_wait: Duration) {
        (self.max_queued, self.max_wait) = (max_queued, max_wait);
    }

    /// The limit in force.
    pub fn limit(&self) -> u32 {
        self.limit
    }

    /// Requests let in.
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Requests that wait.
    pub fn queued(&self) -> u32 {
        self.queued
    }

    /// Makes room for one more of `caller` if the queue is full, at the cost of the caller with the
    /// most waiters; an error if that is `caller` itself.
    fn make_room(&mut self, caller: &K, now: Instant) -> Result<Option<W>, ()> {
        if self.queued < self.max_queued {
            return Ok(None);
        }
        let own = self.by_caller.get(caller).map_or(0, |lane| self.lanes[*lane].waiters.len());
        let Some(&(length, longest)) = self.by_length.last() else { return Err(()) };
        if own + 1 >= length {
            return Err(());
        }
        let waiter = self.change(longest, |waiters| {
            if newest_first(waiters, now) { waiters.pop_front() } else { waiters.pop_back() }
        });
        Ok(waiter.map(|waiter| waiter.wake))
    }

    /// The caller's lane, which is given its first waiter next.
    fn lane(&mut self, caller: &K) -> usize {
        if let Some(lane) = self.by_caller.get(caller) {
            return *lane;
        }
        let lane = self.free.pop().unwrap_or_else(|| {
            self.lanes.push(Lane { caller: None, turn: 0, waiters: VecDeque::new() });
            self.lanes.len() - 1
        });
        self.by_caller.insert(caller.clone(), lane);
        self.lanes[lane].caller = Some(caller.clone());
        self.counter += 1;
        self.lanes[lane].turn = self.counter;
        self.rotation.insert(self.counter, lane);
        lane
    }

    /// Lets `edit` change a lane's waiters, and everything that depends on their number follow. A lane
    /// left without any is freed, so that memory is bounded by the waiters, not by the callers ever seen.
    fn change<T>(&mut self, index: usize, edit: impl FnOnce(&mut VecDeque<Waiter<W>>) -> T) -> T {
        let lane = &mut self.lanes[index];
        let before = lane.waiters.len();
        let result = edit(&mut lane.waiters);
        let after = lane.waiters.len();
        self.by_length.remove(&(before, index));
        // A lane holds no more than the queue, whose length is a u32.
        self.queued = self.queued + after as u32 - before as u32;
        if after > 0 {
            self.by_length.insert((after, index));
        } else if let Some(caller) = lane.caller.take() {
            self.rotation.remove(&lane.turn);
            self.by_caller.remove(&caller);
            lane.waiters.shrink_to(4);
            self.free.push(index);
        }
        result
    }

    /// A lane that had its turn has its next one after all others.
    fn rotate(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if self.rotation.remove(&lane.turn).is_some() {
            self.counter += 1;
            lane.turn = self.counter;
            self.rotation.insert(self.counter, index);
        }
    }
}

/// Whether the oldest has used half of its time.
fn newest_first<W>(waiters: &VecDeque<Waiter<W>>, now: Instant) -> bool {
    waiters.front().is_some_and(|oldest| {
        let time = oldest.until.saturating_duration_since(oldest.since);
        now.saturating_duration_since(oldest.since) * 2 > time
    })
}

#[cfg(test)]
#[path = "fair_tests.rs"]
mod tests;
