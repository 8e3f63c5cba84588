//! Leases on the monotonic clock. Pure: the clock is an argument, nothing here writes.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{LeaseId, LeaseState};

/// Longest time between two looks at the leases.
const MAX_TICK: Duration = Duration::from_secs(1);
const MIN_TICK: Duration = Duration::from_millis(25);
/// How often the reader of renewals says that it is at work: several times within half of the
/// shortest lease there is (1 s).
pub const MAX_ATTENDANCE: Duration = Duration::from_millis(100);

/// All leases of a store and the keys attached to each.
#[derive(Debug)]
pub struct Leases {
    leases: HashMap<LeaseId, Lease>,
    last_look: Instant,
    /// When whoever reads renewals was last at work; none where nobody says so.
    attended: Option<Instant>,
    /// How long the machine has slept since it was started, as last heard.
    slept: Duration,
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
        Self { leases: HashMap::new(), last_look: now, attended: None, slept: Duration::ZERO }
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
        // The clock may have been read before an absence that was noticed meanwhile.
        lease.deadline = lease.deadline.max(now + lease.ttl);
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
    /// A holder renews at a third of the time, so a shorter absence cannot end a living lease. The
    /// same holds while only the reader of renewals is away ([`Leases::attend`]).
    pub fn look(&mut self, now: Instant) -> Vec<LeaseId> {
        let present = self.attended.map_or(self.last_look, |attended| attended.min(self.last_look));
        let away = now.saturating_duration_since(present);
        self.last_look = now;
        for lease in self.leases.values_mut() {
            if away > lease.ttl / 2 {
                lease.deadline = lease.deadline.max(now + lease.ttl);
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

    /// Says that the reader of renewals is at work. Once said, it must be said again at least every
    /// [`MAX_ATTENDANCE`]: leases do not end while their renewals may wait unread.
    pub fn attend(&mut self, now: Instant) {
        self.attended = Some(now);
    }

    /// Says how long the machine has slept in all. The monotonic clock stands still meanwhile, the
    /// holders of leases may not: the time counts as an absence.
    pub fn slept(&mut self, total: Duration) {
        let more = total.saturating_sub(self.slept);
        self.slept = total;
        // Less than that is the distance between two readings of two clocks.
        if more >= MIN_TICK {
            self.last_look = self.last_look.checked_sub(more).unwrap_or(self.last_look);
        }
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
    fn nothing_ends_while_renewals_are_not_read_nor_before_they_can_be() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut leases = Leases::new(now);
        leases.grant(ID, TTL, now);
        leases.attend(now + second);
        // The writer looks all the while; the reader does not come back before 40 s.
        assert_eq!(run(&mut leases, now, second * 40), None);
        let back = now + second * 40;
        leases.attend(back);
        assert_eq!(leases.look(back), []);
        assert!(leases.state(ID, back).unwrap().remaining >= TTL - second);
        let mut ended = None;
        for millis in (0..30_000).step_by(100) {
            let at = back + Duration::from_millis(millis);
            leases.attend(at);
            if !leases.look(at).is_empty() {
                ended = Some(at - back);
                break;
            }
        }
        let ended = ended.unwrap();
        assert!((TTL - second..=TTL + second).contains(&ended), "{ended:?}");
    }

    #[test]
    fn sleep_of_the_machine_is_an_absence() {
        let (now, hour) = (Instant::now() + Duration::from_secs(7200), Duration::from_secs(3600));
        let mut leases = Leases::new(now);
        leases.slept(hour);
        leases.look(now);
        leases.grant(ID, TTL, now);
        // A millisecond before its end the lid is closed for a minute; the clock stands still.
        let closed = now + TTL - Duration::from_millis(1);
        let mut at = now;
        while at < closed {
            at = (at + Duration::from_secs(1)).min(closed);
            leases.slept(hour + Duration::from_micros(at.duration_since(now).subsec_micros().into()) / 1000);
            assert_eq!(leases.look(at), []);
        }
        let opened = closed + Duration::from_millis(2);
        leases.slept(hour + Duration::from_secs(60));
        assert_eq!(leases.look(opened), []);
        assert_eq!(leases.state(ID, opened).unwrap().remaining, TTL);
    }

    #[test]
    fn a_renewal_that_read_the_clock_before_an_absence_does_not_shorten_the_lease() {
        let now = Instant::now();
        let mut leases = Leases::new(now);
        leases.grant(ID, TTL, now);
        let back = now + TTL * 3;
        assert_eq!(leases.look(back), []);
        assert_eq!(leases.keep_alive(ID, now), Some(TTL));
        assert_eq!(leases.look(back + Duration::from_millis(1)), []);
        assert_eq!(run(&mut leases, back + Duration::from_millis(1), TTL * 2).unwrap().as_secs(), 9);
    }

    /// Holders renew at a third of the time, through a registry that stops, sleeps and hangs at
    /// random: no lease of a living holder ever ends, and those of the dead do.
    #[test]
    fn no_living_lease_ends_whatever_pauses_the_registry() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for _ in 0..200 {
            let base = Instant::now() + Duration::from_secs(86_400);
            let ttl = Duration::from_millis(random.u64(1_000..20_000));
            let mut leases = Leases::new(base);
            let (alive, dead) = (LeaseId(1), LeaseId(2));
            leases.grant(alive, ttl, base);
            leases.grant(dead, ttl, base);
            let (mut now, mut slept) = (base, Duration::ZERO);
            let mut renew_at = now + ttl / 3;
            let mut gone = false;
            for _ in 0..500 {
                let tick = leases.next_look(now).unwrap().max(Duration::from_millis(1));
                let pause = match random.u8(..20) {
                    0 => ttl.mul_f64(random.f64() * 3.0),
                    1 => {
                        let nap = ttl.mul_f64(random.f64() * 3.0);
                        slept += nap;
                        renew_at = renew_at.checked_sub(nap).unwrap();
                        Duration::ZERO
                    }
                    _ => Duration::ZERO,
                };
                now += tick + pause;
                leases.slept(slept);
                // Either of the two threads may come first.
                let reader_first = random.bool();
                if reader_first {
                    leases.attend(now);
                }
                let ended = leases.look(now);
                assert!(!ended.contains(&alive), "a living lease ended");
                gone |= ended.contains(&dead);
                leases.attend(now);
                if now >= renew_at {
                    assert!(leases.keep_alive(alive, now).is_some());
                    renew_at = now + ttl / 3;
                }
            }
            // Undisturbed from here on.
            let calm = now;
            while now < calm + ttl * 2 {
                now += leases.next_look(now).unwrap().max(Duration::from_millis(1));
                leases.keep_alive(alive, now);
                leases.attend(now);
                gone |= leases.look(now).contains(&dead);
            }
            assert!(gone, "the dead one stays");
        }
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
