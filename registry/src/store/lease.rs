//! Leases on the monotonic clock. Pure: the clock is an argument, nothing here writes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{LeaseId, LeaseState};

/// Longest time between two looks at the leases.
const MAX_TICK: Duration = Duration::from_secs(1);
const MIN_TICK: Duration = Duration::from_millis(25);

/// All leases of a store and the keys attached to each.
#[derive(Debug)]
pub struct Leases {
    leases: HashMap<LeaseId, Lease>,
    last_look: Instant,
}

#[derive(Debug)]
struct Lease {
    ttl: Duration,
    deadline: Instant,
    keys: BTreeSet<Arc<str>>,
    /// Its end is being written: it cannot be renewed any more.
    ending: bool,
}

impl Leases {
    /// No leases.
    pub fn new(now: Instant) -> Self {
        Self { leases: HashMap::new(), last_look: now }
    }

    /// Adds a lease with a full time to live.
    pub fn grant(&mut self, id: LeaseId, ttl: Duration, now: Instant) {
        self.leases.insert(id, Lease { ttl, deadline: now + ttl, keys: BTreeSet::new(), ending: false });
    }

    /// Whether keys may be attached to the lease.
    pub fn is_live(&self, id: LeaseId) -> bool {
        self.leases.get(&id).is_some_and(|lease| !lease.ending)
    }

    /// Starts the lease's time over; returns its time to live, or none when it is gone.
    pub fn keep_alive(&mut self, id: LeaseId, now: Instant) -> Option<Duration> {
        let lease = self.leases.get_mut(&id).filter(|lease| !lease.ending)?;
        lease.deadline = now + lease.ttl;
        Some(lease.ttl)
    }

    /// How the lease stands.
    pub fn state(&self, id: LeaseId, now: Instant) -> Option<LeaseState> {
        let lease = self.leases.get(&id)?;
        Some(LeaseState { ttl: lease.ttl, remaining: lease.deadline.saturating_duration_since(now) })
    }

    /// The lease's full time to live.
    pub fn ttl(&self, id: LeaseId) -> Option<Duration> {
        self.leases.get(&id).map(|lease| lease.ttl)
    }

    /// Keys attached to the lease, in order.
    pub fn keys(&self, id: LeaseId) -> Vec<Arc<str>> {
        self.leases.get(&id).map(|lease| lease.keys.iter().cloned().collect()).unwrap_or_default()
    }

    /// Attaches a key.
    pub fn attach(&mut self, id: LeaseId, key: Arc<str>) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.insert(key);
        }
    }

    /// Detaches a key.
    pub fn detach(&mut self, id: LeaseId, key: &str) {
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.keys.remove(key);
        }
    }

    /// Marks a lease whose end is being written; false when it is gone or marked already.
    pub fn start_ending(&mut self, id: LeaseId) -> bool {
        let Some(lease) = self.leases.get_mut(&id) else { return false };
        !std::mem::replace(&mut lease.ending, true)
    }

    /// Takes the mark back, because the end could not be written: the lease is not due before
    /// `retry_at`. One without keys is forgotten instead, or those of refused registrations would
    /// pile up while the disk is full; should its row be on the disk, a restart ends it again.
    pub fn cancel_ending(&mut self, id: LeaseId, retry_at: Instant) {
        if self.leases.get(&id).is_some_and(|lease| lease.keys.is_empty()) {
            self.leases.remove(&id);
        }
        if let Some(lease) = self.leases.get_mut(&id) {
            lease.ending = false;
            lease.deadline = lease.deadline.max(retry_at);
        }
    }

    /// Forgets a lease.
    pub fn remove(&mut self, id: LeaseId) {
        self.leases.remove(&id);
    }

    /// Looks at the clock; returns the leases that have ended.
    ///
    /// A look that comes late by half a time to live means that this process, not the holders, was
    /// away (stopped, suspended, moved): renewals wait unread, so every lease gets a full time again.
    /// A holder renews at a third of the time, so a shorter absence cannot end a living lease.
    pub fn look(&mut self, now: Instant) -> Vec<LeaseId> {
        let away = now.saturating_duration_since(self.last_look);
        self.last_look = now;
        for lease in self.leases.values_mut() {
            if away > lease.ttl / 2 {
                lease.deadline = now + lease.ttl;
            }
        }
        let mut ended: Vec<_> = self
            .leases
            .iter()
            .filter(|(_, lease)| lease.deadline <= now && !lease.ending)
            .map(|(id, _)| *id)
            .collect();
        ended.sort_unstable();
        ended
    }

    /// How long until the next [`Leases::look`]: the nearest deadline, and often enough to notice an
    /// absence; without leases there is nothing to look for.
    pub fn next_look(&self, now: Instant) -> Option<Duration> {
        let live = || self.leases.values().filter(|lease| !lease.ending);
        let shortest = live().map(|lease| lease.ttl).min()?;
        let nearest = live().map(|lease| lease.deadline).min()?;
        let tick = (shortest / 8).clamp(MIN_TICK, MAX_TICK);
        Some(nearest.saturating_duration_since(now).min(tick))
    }

    /// Says that leases were not watched until now, because there were none.
    pub fn reset_clock(&mut self, now: Instant) {
        self.last_look = now;
    }

    /// Whether there is no lease.
    pub fn is_empty(&self) -> bool {
        self.leases.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(10);
    const ID: LeaseId = LeaseId(1);

    fn run(leases: &mut Leases, from: Instant, until: Duration) -> Option<Duration> {
        let mut at = Duration::ZERO;
        while at <= until {
            if !leases.look(from + at).is_empty() {
                return Some(at);
            }
            at += leases.next_look(from + at)?.max(Duration::from_millis(1));
        }
        None
    }

    #[test]
    fn a_lease_ends_exactly_at_its_time_and_not_when_renewed() {
        let now = Instant::now();
        let mut leases = Leases::new(now);
        leases.grant(ID, TTL, now);
        assert_eq!(run(&mut leases, now, TTL * 2), Some(TTL));
        assert_eq!(leases.keep_alive(ID, now + TTL), Some(TTL));
        assert_eq!(run(&mut leases, now + TTL, TTL * 2), Some(TTL));
    }

    #[test]
    fn an_absence_gives_every_lease_a_full_time() {
        let now = Instant::now();
        let mut leases = Leases::new(now);
        leases.grant(ID, TTL, now);
        let back = now + TTL * 3;
        assert_eq!(leases.look(back), []);
        assert_eq!(leases.state(ID, back).unwrap().remaining, TTL);
        assert_eq!(run(&mut leases, back, TTL * 2), Some(TTL));
    }

    #[test]
    fn a_short_delay_is_no_absence() {
        let now = Instant::now();
        let mut leases = Leases::new(now);
        leases.grant(ID, TTL, now);
        for second in [1, 2, 3, 7, 9] {
            assert_eq!(leases.look(now + Duration::from_secs(second)), []);
        }
        assert_eq!(leases.look(now + Duration::from_secs(12)), [ID]);
    }

    #[test]
    fn an_ending_lease_cannot_be_renewed_until_its_end_is_taken_back() {
        let now = Instant::now();
        let mut leases = Leases::new(now);
        leases.grant(ID, TTL, now);
        assert!(leases.start_ending(ID));
        assert!(!leases.start_ending(ID));
        assert_eq!(leases.keep_alive(ID, now), None);
        leases.attach(ID, "w/1".into());
        leases.cancel_ending(ID, now);
        assert_eq!(leases.keep_alive(ID, now), Some(TTL));
        leases.remove(ID);
        assert_eq!((leases.keep_alive(ID, now), leases.is_empty()), (None, true));
    }

    #[test]
    fn an_end_that_could_not_be_written_is_not_due_again_at_once() {
        let now = Instant::now();
        let mut leases = Leases::new(now);
        leases.grant(ID, TTL, now);
        leases.attach(ID, "w/1".into());
        let due = now + TTL;
        assert_eq!(run(&mut leases, now, TTL), Some(TTL));
        leases.start_ending(ID);
        leases.cancel_ending(ID, due + Duration::from_secs(1));
        assert!(leases.next_look(due).unwrap() >= Duration::from_secs(1));
        assert_eq!(run(&mut leases, due, TTL), Some(Duration::from_secs(1)));
        // Nobody waits for the end of a lease without keys.
        leases.detach(ID, "w/1");
        leases.start_ending(ID);
        leases.cancel_ending(ID, due);
        assert!(leases.is_empty());
    }

    #[test]
    fn ids_survive_a_round_trip() {
        for id in [LeaseId(0), LeaseId(u64::MAX), LeaseId(0xab)] {
            assert_eq!(LeaseId::parse(&id.to_string()), Some(id));
        }
        for bad in ["", "1", "+000000000000001", "00000000000000001", "gggggggggggggggg"] {
            assert_eq!(LeaseId::parse(bad), None, "{bad}");
        }
    }
}
