//! Retry budgets: retries as a share of the requests, at the client's sidecar and at the server's.
//!
//! A limit of retries per request multiplies the load of a destination that fails everything; a
//! share of the requests does not, whatever the fleet's size.
//!
//! Sources: Finagle's `RetryBudget` (a share of the requests over a window, and a reserve of a
//! minimum rate times the window); Google's Site Reliability Engineering, chapter 21, "Handling
//! Overload" (a budget per client, and refusal of retries by the server).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Time over which requests and retries are compared.
pub const WINDOW: Duration = Duration::from_secs(10);
/// Width of a bucket in milliseconds.
const BUCKET: u64 = 500;
/// Buckets in a window.
const BUCKETS: u32 = 20;
/// A power of two that holds the buckets of a window, the one being filled and one before them.
const RING: usize = 32;

/// How much may be repeated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Retries as a share of the requests: 0 to 1. For [`ServerBudget`], of what is let in.
    pub share: f64,
    /// Retries a second allowed whatever the share.
    pub min_per_second: f64,
}

impl Settings {
    /// What the minimum rate allows in a window.
    fn reserve(self) -> f64 {
        self.min_per_second * WINDOW.as_secs_f64()
    }
}

/// What a budget has counted over the last window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counts {
    /// First attempts.
    pub requests: u64,
    /// Retries granted.
    pub retries: u64,
}

/// Events by bucket of time, each a word of bucket number and count, so that counting takes no lock.
#[derive(Debug)]
struct Events([AtomicU64; RING]);

impl Events {
    fn new() -> Self {
        Self(std::array::from_fn(|_| AtomicU64::new(0)))
    }

    fn count(&self, bucket: u32) {
        let slot = &self.0[bucket as usize % RING];
        let counted = |word: u64| match (word >> 32).cmp(&u64::from(bucket)) {
            std::cmp::Ordering::Less => Some(u64::from(bucket) << 32 | 1),
            std::cmp::Ordering::Equal => Some(word + 1),
            // A caller whose `now` is a whole ring old: its event is out of every window.
            std::cmp::Ordering::Greater => None,
        };
        // A refusal is the stale caller above.
        let _stale = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, counted);
    }

    /// Events of `bucket`, the `before` ones before it, and later ones of callers whose clock was read
    /// after ours.
    fn sum(&self, bucket: u32, before: u32) -> u64 {
        let first = u64::from(bucket.saturating_sub(before));
        let words = self.0.iter().map(|slot| slot.load(Ordering::Relaxed));
        words.filter(|word| word >> 32 >= first).map(|word| word & u64::from(u32::MAX)).sum()
    }
}

/// Requests and retries over the window, and the settings they are held against.
#[derive(Debug)]
struct Ledger {
    origin: Instant,
    requests: Events,
    retries: Events,
    /// Held while a retry is granted, so that two cannot take the last one.
    settings: Mutex<Settings>,
}

impl Ledger {
    fn new(settings: Settings, now: Instant) -> Self {
        let (requests, retries) = (Events::new(), Events::new());
        Self { origin: now, requests, retries, settings: Mutex::new(settings) }
    }

    fn bucket(&self, now: Instant) -> u32 {
        let elapsed = now.saturating_duration_since(self.origin).as_millis();
        u32::try_from(elapsed / u128::from(BUCKET)).unwrap_or(u32::MAX)
    }

    fn request(&self, now: Instant) {
        self.requests.count(self.bucket(now));
    }

    /// Counts a retry if `allowed(settings, counts)` retries are more than were granted.
    fn retry(&self, now: Instant, allowed: impl Fn(Settings, Counts) -> f64) -> bool {
        let settings = self.settings.lock().expect("no holder of this lock panics");
        let counts = self.counts(now);
        // The margin forgives what binary fractions lose: a share of 0.29 of 100 is 29.
        let granted = (counts.retries + 1) as f64 <= allowed(*settings, counts) + 1e-6;
        if granted {
            self.retries.count(self.bucket(now));
        }
        granted
    }

    /// Buckets are whole, a window is not: requests are counted over up to half a second less than the
    /// window and retries over up to half a second more, so that the limit errs on the side of fewer.
    fn counts(&self, now: Instant) -> Counts {
        let bucket = self.bucket(now);
        Counts {
            requests: self.requests.sum(bucket, BUCKETS - 1),
            retries: self.retries.sum(bucket, BUCKETS),
        }
    }

    fn update(&self, settings: Settings) {
        *self.settings.lock().expect("no holder of this lock panics") = settings;
    }

    fn settings(&self) -> Settings {
        *self.settings.lock().expect("no holder of this lock panics")
    }
}

/// The client's side: one per destination service, shared by everything that is sent to it again,
/// hedges included; it outlives snapshots.
///
/// Whenever a retry is granted, retries of the last 10 s do not exceed `share * requests of the last
/// 10 s + 10 * min_per_second`. Windows that end at a grant can be laid end to end, so over any time
/// from `a` to `b`, in seconds: `retries <= share * requests(a - 10, b) + min_per_second * (b - a + 10)`.
/// Lowering the settings takes back nothing that was granted before.
#[derive(Debug)]
pub struct RetryBudget(Ledger);

impl RetryBudget {
    /// A budget with its reserve full. `now` is the zero of its clock.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self(Ledger::new(settings, now))
    }

    /// Counts a first attempt. One atomic operation.
    pub fn request(&self, now: Instant) {
        self.0.request(now);
    }

    /// Asks for one retry or hedge, and counts it if granted.
    #[must_use]
    pub fn withdraw(&self, now: Instant) -> bool {
        self.0.retry(now, |settings, counts| settings.share * counts.requests as f64 + settings.reserve())
    }

    /// Holds what was counted against other settings from now on.
    pub fn update(&self, settings: Settings) {
        self.0.update(settings);
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.0.settings()
    }

    /// What counts at `now`, for people.
    pub fn counts(&self, now: Instant) -> Counts {
        self.0.counts(now)
    }
}

/// The server's side: retries as a share of what is let in to the application.
///
/// Refused retries do not count: if they did, a client that repeats everything would keep the share
/// above the limit, and with it everybody's retries out. Whenever a retry is let in, retries of the
/// last 10 s do not exceed `share * (first attempts + retries) + 10 * min_per_second`.
#[derive(Debug)]
pub struct ServerBudget(Ledger);

impl ServerBudget {
    /// A budget with its reserve full. `now` is the zero of its clock.
    pub fn new(settings: Settings, now: Instant) -> Self {
        Self(Ledger::new(settings, now))
    }

    /// Whether the request may go to the application. `attempt` counts from 1, and a first attempt
    /// always may: one atomic operation.
    #[must_use]
    pub fn admit(&self, attempt: u32, now: Instant) -> bool {
        if attempt <= 1 {
            self.0.request(now);
            return true;
        }
        self.0.retry(now, |settings, counts| {
            settings.share * (counts.requests + counts.retries + 1) as f64 + settings.reserve()
        })
    }

    /// Holds what was counted against other settings from now on.
    pub fn update(&self, settings: Settings) {
        self.0.update(settings);
    }

    /// The settings in force.
    pub fn settings(&self) -> Settings {
        self.0.settings()
    }

    /// What counts at `now`, for people.
    pub fn counts(&self, now: Instant) -> Counts {
        self.0.counts(now)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const DEFAULT: Settings = Settings { share: 0.2, min_per_second: 3.0 };

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    /// Random requests and as many retries as are granted, against exact windows of the same events.
    #[test]
    fn retries_never_exceed_the_share_and_the_reserve() {
        for seed in 0..60 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let settings = Settings {
                share: f64::from(rng.u32(0..=100)) / 100.0,
                min_per_second: f64::from(rng.u32(0..6)),
            };
            let start = Instant::now();
            let budget = RetryBudget::new(settings, start);
            let (mut requests, mut retries, mut time) = (Vec::new(), Vec::new(), 0);
            for _ in 0..3000 {
                time += if rng.u32(0..200) == 0 { rng.u64(0..15_000) } else { rng.u64(0..20) };
                let now = start + ms(time);
                if rng.bool() {
                    budget.request(now);
                    requests.push(time);
                }
                if rng.bool() && budget.withdraw(now) {
                    retries.push(time);
                    let within = |events: &[u64]| {
                        events.iter().rev().take_while(|at| **at + 10_000 > time).count() as f64
                    };
                    let allowed = settings.share * within(&requests) + settings.min_per_second * 10.0 + 1e-6;
                    assert!(
                        within(&retries) <= allowed,
                        "seed {seed} at {time} ms: {} > {allowed}",
                        within(&retries)
                    );
                }
            }
            let (from, to) = (rng.u64(0..time), time);
            let between = |events: &[u64], from: u64| {
                events.iter().filter(|at| (from..=to).contains(*at)).count() as f64
            };
            let seconds = (to - from) as f64 / 1000.0 + 10.0;
            let allowed = settings.share * between(&requests, from.saturating_sub(10_000))
                + settings.min_per_second * seconds;
            assert!(between(&retries, from) <= allowed + 1e-6, "seed {seed} from {from}");
        }
    }

    #[test]
    fn what_the_share_allows_is_granted() {
        let start = Instant::now();
        let budget = RetryBudget::new(Settings { share: 0.29, min_per_second: 0.0 }, start);
        assert!(!budget.withdraw(start), "nothing is known of requests yet");
        for _ in 0..100 {
            budget.request(start);
        }
        assert_eq!((0..100).filter(|_| budget.withdraw(start + ms(9_000))).count(), 29);
        assert_eq!(budget.counts(start + ms(9_000)), Counts { requests: 100, retries: 29 });
        assert!(!budget.withdraw(start + ms(60_000)), "old requests grant nothing");
    }

    #[test]
    fn the_reserve_comes_back_after_the_window() {
        let start = Instant::now();
        let budget = RetryBudget::new(DEFAULT, start);
        let granted = |time| (0..100).filter(|_| budget.withdraw(start + ms(time))).count();
        assert_eq!((granted(0), granted(9_999), granted(10_500)), (30, 0, 30));
        // Long after the ring has turned many times, and at the end of its clock.
        assert_eq!(granted(3_600_000), 30);
        assert_eq!(granted(u64::from(u32::MAX) * 1000), 30);
    }

    #[test]
    fn settings_change_in_place() {
        let start = Instant::now();
        let budget = RetryBudget::new(DEFAULT, start);
        assert_eq!((0..100).filter(|_| budget.withdraw(start)).count(), 30);
        budget.update(Settings { min_per_second: 5.0, ..DEFAULT });
        assert_eq!((0..100).filter(|_| budget.withdraw(start)).count(), 20, "what was granted stays counted");
        budget.update(DEFAULT);
        assert!(!budget.withdraw(start));
        assert_eq!(budget.settings(), DEFAULT);
    }

    #[test]
    fn a_clock_read_earlier_than_anothers_changes_little() {
        let start = Instant::now();
        let budget = RetryBudget::new(DEFAULT, start + ms(1));
        budget.request(start);
        for _ in 0..10 {
            budget.request(start + ms(5_600));
        }
        assert_eq!(budget.counts(start + ms(5_400)).requests, 11, "later events have happened as well");
        budget.request(start + ms(100_000));
        for _ in 0..1000 {
            budget.request(start + ms(100_000 - 32 * 500));
        }
        assert_eq!(budget.counts(start + ms(100_000)).requests, 1, "an event of the past is in no window");
    }

    #[test]
    fn threads_do_not_grant_more_together() {
        let start = Instant::now();
        let budget = Arc::new(RetryBudget::new(Settings { share: 0.1, min_per_second: 1.0 }, start));
        let granted: usize = std::thread::scope(|scope| {
            let work = || {
                (0..10_000u64)
                    .filter(|_| {
                        budget.request(start);
                        budget.withdraw(start)
                    })
                    .count()
            };
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        let counts = budget.counts(start);
        assert_eq!(counts, Counts { requests: 40_000, retries: granted as u64 });
        assert!((3_000..=4_010).contains(&granted), "{granted}");
    }

    #[test]
    fn the_server_lets_in_retries_up_to_their_share() {
        for seed in 0..60 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let settings = Settings {
                share: f64::from(rng.u32(0..100)) / 100.0,
                min_per_second: f64::from(rng.u32(0..4)),
            };
            let start = Instant::now();
            let budget = ServerBudget::new(settings, start);
            let (mut firsts, mut retries) = (0, 0);
            // All within one window: exact counts apply.
            for _ in 0..2000 {
                let now = start + ms(rng.u64(0..9_000));
                let attempt = rng.u32(0..=4);
                let admitted = budget.admit(attempt, now);
                if attempt <= 1 {
                    assert!(admitted, "seed {seed}: a first attempt was refused");
                    firsts += 1;
                } else {
                    let allowed =
                        settings.share * f64::from(firsts + retries + 1) + settings.min_per_second * 10.0;
                    let fits = f64::from(retries + 1) <= allowed + 1e-6;
                    assert_eq!(admitted, fits, "seed {seed}: {firsts} firsts, {retries} retries");
                    retries += i32::from(admitted);
                }
            }
        }
    }

    #[test]
    fn a_client_that_repeats_everything_gets_the_share_and_no_more() {
        let start = Instant::now();
        let budget = ServerBudget::new(Settings { share: 0.3, min_per_second: 3.0 }, start);
        let (mut first, mut second) = (0, 0);
        for time in 0..60_000 {
            first += i32::from(budget.admit(1, start + ms(time)));
            second += i32::from(budget.admit(2, start + ms(time)));
        }
        assert_eq!(first, 60_000);
        let share = f64::from(second) / f64::from(first + second);
        assert!((0.28..0.305).contains(&share), "{share}");
    }
}
