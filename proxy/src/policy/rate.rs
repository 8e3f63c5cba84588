//! Rate limits: a token bucket, and one for each caller.
//!
//! A bucket is kept as the generic cell rate algorithm keeps it (ITU-T I.371, annex A; as a limiter of
//! requests: brandur.org, "Rate Limiting, Cells, and GCRA"): the time at which it would be full again.
//! A request moves that by one interval, and is refused if it would then lie more than a whole bucket
//! ahead. That is one number, and there is nothing to refill.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use outrigger_common::identity::SpiffeId;

/// A rate and the burst above it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rate {
    /// Requests a second over time, above 0.
    pub per_second: f64,
    /// Requests at once, at least 1.
    pub burst: u32,
}

/// A [`Rate`] in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Cells {
    /// Between two requests.
    interval: u64,
    /// Of a whole bucket.
    depth: u64,
}

impl From<Rate> for Cells {
    fn from(rate: Rate) -> Self {
        // Casts saturate: a rate near zero gives an interval that never ends.
        let interval = ((1e9 / rate.per_second) as u64).max(1);
        Self { interval, depth: interval.saturating_mul(u64::from(rate.burst.max(1))) }
    }
}

impl Cells {
    /// The time at which the bucket is full again after one more request at `now`, or the wait until
    /// there is a token for it.
    fn take(self, full_at: u64, now: u64) -> Result<u64, Duration> {
        let next = full_at.max(now).saturating_add(self.interval);
        match next.checked_sub(now.saturating_add(self.depth)) {
            None | Some(0) => Ok(next),
            Some(wait) => Err(Duration::from_nanos(wait)),
        }
    }
}

impl Cells {
    /// When a bucket that was to be full at `full_at`, at one request every `old` nanoseconds, will be.
    fn converted(self, full_at: u64, old: u64, now: u64) -> u64 {
        let lacks =
            u128::from(full_at.saturating_sub(now)) * u128::from(self.interval) / u128::from(old.max(1));
        now.saturating_add(u64::try_from(lacks).unwrap_or(u64::MAX).min(self.depth))
    }
}

/// Nanoseconds since `origin`: enough for 584 years.
fn nanos(origin: Instant, now: Instant) -> u64 {
    u64::try_from(now.saturating_duration_since(origin).as_nanos()).unwrap_or(u64::MAX)
}

/// One bucket, shared by everybody it limits. No lock.
#[derive(Debug)]
pub struct Bucket {
    origin: Instant,
    full_at: AtomicU64,
    interval: AtomicU64,
    depth: AtomicU64,
}

impl Bucket {
    /// A full bucket. `now` is the zero of its clock.
    pub fn new(rate: Rate, now: Instant) -> Self {
        let cells = Cells::from(rate);
        Self {
            origin: now,
            full_at: AtomicU64::new(0),
            interval: AtomicU64::new(cells.interval),
            depth: AtomicU64::new(cells.depth),
        }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// There is none; the time until there is one, if nobody else takes it. A refusal costs nothing.
    pub fn take(&self, now: Instant) -> Result<(), Duration> {
        let now = nanos(self.origin, now);
        let cells = Cells {
            interval: self.interval.load(Ordering::Relaxed),
            depth: self.depth.load(Ordering::Relaxed),
        };
        let mut refused = Duration::ZERO;
        let taken = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
            cells.take(full_at, now).map_err(|wait| refused = wait).ok()
        });
        taken.map(|_| ()).map_err(|_| refused)
    }

    /// Changes the rate at `now`. What was taken stays taken, in requests: a bucket half empty of ten is
    /// one that lacks five of whatever it holds now, and at most all of it.
    pub fn update(&self, rate: Rate, now: Instant) {
        let (cells, now) = (Cells::from(rate), nanos(self.origin, now));
        let old = self.interval.swap(cells.interval, Ordering::Relaxed);
        self.depth.store(cells.depth, Ordering::Relaxed);
        let moved = |full_at| Some(cells.converted(full_at, old, now));
        // Never refused; who takes a token in between has taken it at either rate.
        let _before = self.full_at.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved);
    }
}

/// A bucket for each caller's identity, of which a bounded number is remembered.
///
/// A caller that is not remembered takes the place of the one with the fullest bucket, and takes over
/// its bucket as it is (space saving: Metwally, Agrawal and El Abbadi, "Efficient Computation of
/// Frequent and Top-k Elements in Data Streams", ICDT 2005). So nobody gains by being forgotten:
/// whoever comes back finds a bucket no fuller than its own would be. And nobody honest is blocked by a
/// full map unless as many others as it holds have used up their buckets at the same time: as long as one
/// of them has been idle, its full bucket is the one taken over. With the least recently used replaced
/// and forgotten, a few more identities than places would be no longer limited at all.
#[derive(Debug)]
pub struct CallerRates {
    origin: Instant,
    capacity: usize,
    state: Mutex<Callers>,
}

#[derive(Debug)]
struct Callers {
    cells: Cells,
    full_at: HashMap<SpiffeId, u64>,
}

/// Callers remembered by default: some 200 KiB when all are there.
pub const CALLERS: usize = 1024;

impl CallerRates {
    /// Full buckets for `capacity` callers, at least one. `now` is the zero of their clock.
    pub fn new(rate: Rate, capacity: usize, now: Instant) -> Self {
        let state = Callers { cells: rate.into(), full_at: HashMap::new() };
        Self { origin: now, capacity: capacity.max(1), state: Mutex::new(state) }
    }

    /// Takes a token of `caller`. A short lock; an allocation for a caller not remembered, and a look at
    /// every bucket when it needs another's place.
    ///
    /// # Errors
    /// There is none; the time until there is one. A refusal costs nothing.
    pub fn take(&self, caller: &SpiffeId, now: Instant) -> Result<(), Duration> {
        let now = nanos(self.origin, now);
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let state = &mut *state;
        if let Some(full_at) = state.full_at.get_mut(caller) {
            *full_at = state.cells.take(*full_at, now)?;
            return Ok(());
        }
        if state.full_at.len() < self.capacity {
            let full_at = state.cells.take(0, now)?;
            state.full_at.insert(caller.clone(), full_at);
            return Ok(());
        }
        let fullest = state.full_at.iter().min_by_key(|(_, full_at)| **full_at);
        let Some((idle, full_at)) = fullest.map(|(idle, full_at)| (idle.clone(), *full_at)) else {
            return Ok(());
        };
        // Refused: the other keeps its place, and the bucket is as it was.
        let full_at = state.cells.take(full_at, now)?;
        state.full_at.remove(&idle);
        state.full_at.insert(caller.clone(), full_at);
        Ok(())
    }

    /// Changes the rate of everybody, as [`Bucket::update`] does.
    pub fn update(&self, rate: Rate, now: Instant) {
        let (cells, now) = (Cells::from(rate), nanos(self.origin, now));
        let mut state = self.state.lock().expect("no holder of this lock panics");
        let old = std::mem::replace(&mut state.cells, cells).interval;
        for full_at in state.full_at.values_mut() {
            *full_at = cells.converted(*full_at, old, now);
        }
    }

    /// Callers remembered.
    pub fn len(&self) -> usize {
        self.state.lock().expect("no holder of this lock panics").full_at.len()
    }

    /// Whether nobody is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// The value of `Retry-After` (RFC 9110 section 10.2.3): whole seconds, rounded up, at least 1, for a
/// client that comes back before the time is refused again.
pub fn retry_after_seconds(wait: Duration) -> u64 {
    wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    fn caller(number: u32) -> SpiffeId {
        SpiffeId::parse(&format!("spiffe://mesh.local/ns/shop/sa/c{number}")).unwrap()
    }

    #[test]
    fn a_burst_and_then_the_rate() {
        let start = Instant::now();
        let bucket = Bucket::new(Rate { per_second: 10.0, burst: 5 }, start);
        let taken = |time| (0..100).filter(|_| bucket.take(start + ms(time)).is_ok()).count();
        assert_eq!((taken(0), taken(99), taken(100), taken(350)), (5, 0, 1, 2));
        assert_eq!(taken(60_000), 5, "it holds no more than its burst");
        assert_eq!(bucket.take(start + ms(60_030)), Err(ms(70)));
        assert_eq!(bucket.take(start + ms(60_100)), Ok(()), "the wait it named was enough");
    }

    /// In any stretch of time: no more than the rate and the burst, and no less when always asked.
    #[test]
    fn the_rate_holds_over_every_stretch_of_time() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let rate = Rate { per_second: f64::from(rng.u32(1..5000)) / 10.0, burst: rng.u32(1..50) };
            let start = Instant::now();
            let bucket = Bucket::new(rate, start);
            let (mut taken, mut time) = (Vec::new(), 0u64);
            for _ in 0..3000 {
                time += rng.u64(0..(4e9 / rate.per_second) as u64);
                match bucket.take(start + Duration::from_nanos(time)) {
                    Ok(()) => taken.push(time),
                    Err(wait) => {
                        let at = time + u64::try_from(wait.as_nanos()).unwrap();
                        let Some(early) = at.checked_sub(1) else { continue };
                        assert!(
                            bucket.take(start + Duration::from_nanos(early)).is_err(),
                            "seed {seed}: too long a wait"
                        );
                    }
                }
            }
            for _ in 0..200 {
                let first = rng.usize(0..taken.len());
                let last = rng.usize(first..taken.len());
                let seconds = (taken[last] - taken[first]) as f64 / 1e9;
                let most = rate.per_second * seconds * (1.0 + 1e-6) + f64::from(rate.burst) + 1e-6;
                assert!(
                    (last - first + 1) as f64 <= most,
                    "seed {seed}: {} in {seconds} s",
                    last - first + 1
                );
            }
        }
    }

    #[test]
    fn a_changed_rate_holds_at_once() {
        let start = Instant::now();
        let bucket = Bucket::new(Rate { per_second: 1.0, burst: 1 }, start);
        assert!(bucket.take(start).is_ok() && bucket.take(start).is_err());
        bucket.update(Rate { per_second: 1000.0, burst: 2000 }, start);
        assert!((0..100).all(|_| bucket.take(start + ms(1)).is_ok()));
        let tiny = Bucket::new(Rate { per_second: 1e-300, burst: u32::MAX }, start);
        assert!(tiny.take(start).is_ok());
    }

    #[test]
    fn a_changed_rate_neither_gives_anew_what_was_taken_nor_holds_anybody_to_the_old_one() {
        let (hour, start) = (Duration::from_secs(3600), Instant::now());
        let free = |bucket: &Bucket, now| (0..100).filter(|_| bucket.take(now).is_ok()).count();
        for (before, taken, after, left) in [
            ((10.0, 10), 10, (10.0, 12), 2),
            ((10.0, 10), 4, (1000.0, 10), 6),
            // One an hour taken: not an hour's wait at a thousand a second.
            ((1.0 / 3600.0, 1), 1, (1000.0, 10), 9),
            // Empty is empty, and full again in the time the new rate takes.
            ((1000.0, 100), 100, (1.0, 5), 0),
            ((10.0, 10), 0, (1.0, 3), 3),
        ] {
            let rate = |(per_second, burst)| Rate { per_second, burst };
            let bucket = Bucket::new(rate(before), start);
            let callers = CallerRates::new(rate(before), 4, start);
            let now = start + hour;
            for _ in 0..taken {
                assert!(bucket.take(now).is_ok() && callers.take(&caller(1), now).is_ok());
            }
            bucket.update(rate(after), now);
            callers.update(rate(after), now);
            assert_eq!(free(&bucket, now), left, "{before:?} {after:?}");
            assert_eq!((0..100).filter(|_| callers.take(&caller(1), now).is_ok()).count(), left);
            let full = now + Duration::from_secs_f64(f64::from(after.1) / after.0);
            assert_eq!(free(&bucket, full), after.1 as usize, "{before:?} {after:?}");
        }
    }

    #[test]
    fn threads_take_no_more_together() {
        let start = Instant::now();
        let bucket = Bucket::new(Rate { per_second: 1.0, burst: 500 }, start);
        let taken: usize = std::thread::scope(|scope| {
            let work = || (0..1000).filter(|_| bucket.take(start).is_ok()).count();
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!(taken, 500);
    }

    #[test]
    fn callers_do_not_share() {
        let start = Instant::now();
        let rates = CallerRates::new(Rate { per_second: 1.0, burst: 2 }, 4, start);
        for number in 0..4 {
            assert!(rates.take(&caller(number), start).is_ok() && rates.take(&caller(number), start).is_ok());
            assert_eq!(rates.take(&caller(number), start), Err(Duration::from_secs(1)));
        }
        rates.update(Rate { per_second: 1.0, burst: 3 }, start);
        assert!(rates.take(&caller(1), start).is_ok() && rates.take(&caller(1), start).is_err());
    }

    /// More identities than places, at random: each is held to its own rate all the same.
    #[test]
    fn a_full_map_is_no_bypass() {
        for seed in 0..30 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let rate = Rate { per_second: 2.0, burst: rng.u32(1..6) };
            let start = Instant::now();
            let rates = CallerRates::new(rate, rng.usize(1..20), start);
            let identities = rng.u32(20..40);
            let mut taken = vec![Vec::new(); identities as usize];
            let mut time = 0;
            for _ in 0..8000 {
                time += rng.u64(0..20);
                let number = rng.u32(0..identities);
                if rates.take(&caller(number), start + ms(time)).is_ok() {
                    taken[number as usize].push(time);
                }
                assert!(rates.len() <= rates.capacity, "seed {seed}");
            }
            for (number, taken) in taken.iter().enumerate() {
                for first in 0..taken.len() {
                    let last = rng.usize(first..taken.len());
                    let most = (taken[last] - taken[first]) as f64 / 500.0 + f64::from(rate.burst) + 1e-3;
                    assert!((last - first + 1) as f64 <= most, "seed {seed} caller {number}");
                }
            }
        }
    }

    #[test]
    fn a_newcomer_is_let_in_while_anybody_is_idle() {
        let start = Instant::now();
        let rates = CallerRates::new(Rate { per_second: 1.0, burst: 5 }, 3, start);
        for number in 0..3 {
            // One is idle by then, two are at their limit and stay there.
            for _ in 0..if number == 0 { 1 } else { 5 } {
                assert!(rates.take(&caller(number), start).is_ok());
            }
        }
        let now = start + ms(1000);
        for number in 10..14 {
            let taken = rates.take(&caller(number), now).is_ok();
            assert!(taken, "newcomer {number}");
        }
        // Nobody was taken the place of who would have gained by it.
        assert_eq!((1..3).filter(|number| rates.take(&caller(*number), now).is_ok()).count(), 2);
        assert!(rates.take(&caller(1), now).is_err() && rates.take(&caller(2), now).is_err());
    }

    #[test]
    fn retry_after_is_rounded_up() {
        let seconds: Vec<_> =
            [0, 1, 999, 1000, 1001, 2000].map(|time| retry_after_seconds(ms(time))).to_vec();
        assert_eq!(seconds, [1, 1, 1, 1, 2, 2]);
        assert_eq!(retry_after_seconds(Duration::MAX), u64::MAX);
    }
}
