//! When to send a second attempt: after a quantile of the destination's latency.
//!
//! A second attempt after the 95th percentile costs at most some 5% more requests and cuts the tail
//! (Dean and Barroso, "The Tail at Scale", CACM 56(2), 2013). It is bounded by the retry budget all the
//! same: when everything becomes slow at once, everything is late.
//!
//! The quantile comes from a histogram whose buckets grow with the latency, 16 for each doubling (as
//! HdrHistogram has them), and whose counts halve every 10 s, so that it follows a change within tens
//! of seconds. Memory is constant: 3 KiB.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Buckets of one doubling, as a power of two: 16, each 1/16 of its lower edge wide.
const STEPS: u32 = 4;
/// Doublings of a microsecond: up to 134 s, and everything longer in the last bucket.
const DOUBLINGS: u32 = 27;
const BUCKETS: usize = ((DOUBLINGS - STEPS + 1) << STEPS) as usize;
/// Time in which what was observed loses half of its weight.
const HALF_LIFE: Duration = Duration::from_secs(10);
/// Weight of one observation, so that a halved one still counts.
const ONE: u64 = 256;
/// Observations, by weight, below which a quantile says nothing.
const ENOUGH: u64 = 20 * ONE;
/// How long a quantile is believed before it is counted again: it costs some hundred nanoseconds.
const FRESH: Duration = Duration::from_millis(100);

/// Which delay is wanted.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// Share of the answers that come sooner: above 0, below 1.
    pub quantile: f64,
    /// Shortest delay, and the delay while latencies are not known.
    pub min_delay: Duration,
}

/// Latencies of one destination.
#[derive(Debug)]
pub struct Latencies(Mutex<Histogram>);

#[derive(Debug)]
struct Histogram {
    weights: Box<[u64; BUCKETS]>,
    total: u64,
    halved: Instant,
    known: Option<Known>,
}

/// A quantile counted not long ago.
#[derive(Debug, Clone, Copy)]
struct Known {
    quantile: f64,
    value: Option<Duration>,
    at: Instant,
}

impl Latencies {
    /// Nothing observed.
    pub fn new(now: Instant) -> Self {
        let weights = Box::new([0; BUCKETS]);
        Self(Mutex::new(Histogram { weights, total: 0, halved: now, known: None }))
    }

    /// Adds the latency of an answer. An attempt given up because the other one answered counts as
    /// well, with the time it had taken: without the slow ones the quantile would sink, more be hedged,
    /// and it sink further.
    pub fn observe(&self, latency: Duration, now: Instant) {
        let mut histogram = self.0.lock().expect("no holder of this lock panics");
        histogram.decay(now);
        histogram.weights[bucket(latency)] += ONE;
        histogram.total += ONE;
    }

    /// The latency that the share `quantile` of the answers does not exceed, as the upper edge of its
    /// bucket: above the true one by at most a sixteenth of it and a microsecond. May be 100 ms old. `None`
    /// with fewer than 20 recent observations, which takes some two answers a second.
    pub fn quantile(&self, quantile: f64, now: Instant) -> Option<Duration> {
        let mut histogram = self.0.lock().expect("no holder of this lock panics");
        match histogram.known {
            Some(known) if known.quantile == quantile && now.saturating_duration_since(known.at) < FRESH => {
                known.value
            }
            Some(_) | None => {
                histogram.decay(now);
                let value = histogram.quantile(quantile);
                histogram.known = Some(Known { quantile, value, at: now });
                value
            }
        }
    }

    /// How long after the first attempt the second one goes out.
    pub fn delay(&self, settings: Settings, now: Instant) -> Duration {
        self.quantile(settings.quantile, now)
            .map_or(settings.min_delay, |latency| latency.max(settings.min_delay))
    }
}

impl Histogram {
    fn decay(&mut self, now: Instant) {
        let elapsed = now.saturating_duration_since(self.halved);
        if elapsed < HALF_LIFE {
            return;
        }
        let halvings = u32::try_from(elapsed.as_nanos() / HALF_LIFE.as_nanos()).unwrap_or(u32::MAX);
        // By then nothing is left of any number.
        let shift = halvings.min(63);
        self.total = 0;
        for weight in self.weights.iter_mut() {
            *weight >>= shift;
            self.total += *weight;
        }
        self.halved += HALF_LIFE * halvings;
    }

    fn quantile(&self, quantile: f64) -> Option<Duration> {
        if self.total < ENOUGH {
            return None;
        }
        let rank = (quantile * self.total as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        let found = self.weights.iter().position(|weight| {
            seen += weight;
            seen >= rank
        });
        found.map(upper_edge)
    }
}

/// The bucket of a latency: its doubling and its four bits below the highest.
fn bucket(latency: Duration) -> usize {
    // Rounded up, so that the upper edge of a bucket is never below what is in it.
    let micros = latency.as_nanos().div_ceil(1000).min((1 << DOUBLINGS) - 1) as u64;
    if micros < 1 << STEPS {
        return micros as usize;
    }
    let doubling = micros.ilog2() - STEPS;
    ((doubling << STEPS) as u64 + (micros >> doubling)) as usize
}

/// The longest latency of a bucket.
fn upper_edge(bucket: usize) -> Duration {
    let bucket = bucket as u64;
    let doubling = (bucket >> STEPS).saturating_sub(1);
    let step = bucket - (doubling << STEPS);
    Duration::from_micros(((step + 1) << doubling) - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(time: u64) -> Duration {
        Duration::from_millis(time)
    }

    #[test]
    fn every_latency_is_in_the_bucket_whose_edges_enclose_it() {
        for micros in
            (0..5000).chain((12..27).flat_map(|power| [(1u64 << power) - 1, 1 << power, (1 << power) + 1]))
        {
            let latency = Duration::from_micros(micros);
            let at = bucket(latency);
            let edge = upper_edge(at);
            assert!(at < BUCKETS && edge >= latency, "{micros} in {at} up to {edge:?}");
            assert!(edge - latency <= latency / 16, "{micros} in {at} up to {edge:?}");
            assert!(at == 0 || upper_edge(at - 1) < latency, "{micros} belongs below {at}");
        }
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
        assert_eq!(upper_edge(bucket(Duration::from_nanos(1))), Duration::from_micros(1));
    }

    #[test]
    fn quantiles_are_within_a_sixteenth() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let now = Instant::now();
            let latencies = Latencies::new(now);
            let mut all: Vec<_> = (0..rng.usize(20..2000))
                .map(|_| {
                    Duration::from_secs_f64(0.002 * (1.0 - rng.f64()).powf(-rng.f64() * 2.0)).min(ms(100_000))
                })
                .collect();
            for latency in &all {
                latencies.observe(*latency, now);
            }
            all.sort();
            for quantile in [0.5, 0.9, 0.95, 0.99, 0.999] {
                let exact = all[((quantile * all.len() as f64).ceil() as usize).max(1) - 1];
                let told = latencies.quantile(quantile, now).unwrap();
                let most = exact + exact / 16 + Duration::from_micros(2);
                assert!(told >= exact && told <= most, "seed {seed} at {quantile}: {told:?} for {exact:?}");
            }
        }
    }

    #[test]
    fn unknown_latencies_get_the_shortest_delay() {
        let now = Instant::now();
        let (latencies, settings) = (Latencies::new(now), Settings { quantile: 0.95, min_delay: ms(10) });
        for _ in 0..19 {
            latencies.observe(ms(100), now);
        }
        assert_eq!((latencies.quantile(0.95, now), latencies.delay(settings, now)), (None, ms(10)));
        latencies.observe(ms(100), now);
        let now = now + FRESH;
        assert!(latencies.delay(settings, now) >= ms(100));
        assert_eq!(latencies.delay(Settings { min_delay: ms(500), ..settings }, now), ms(500));
        // They are forgotten when nothing comes in.
        assert_eq!(latencies.delay(settings, now + HALF_LIFE), ms(10));
        assert_eq!(latencies.delay(settings, now + HALF_LIFE * 1000), ms(10));
    }

    #[test]
    fn it_follows_a_change() {
        let start = Instant::now();
        let latencies = Latencies::new(start);
        for time in 0..100_000 {
            latencies.observe(ms(if time < 60_000 { 10 } else { 80 }), start + ms(time));
        }
        assert!(latencies.quantile(0.5, start + ms(100_000)).unwrap() >= ms(80));
        // What an hour of the old load left does not outweigh the new.
        assert!(latencies.0.lock().unwrap().total <= 21_000 * ONE);
    }

    #[test]
    fn a_quantile_is_counted_anew_after_a_while_and_for_another_share() {
        let start = Instant::now();
        let latencies = Latencies::new(start);
        for time in 1..=100 {
            latencies.observe(ms(time), start);
        }
        let first = latencies.quantile(0.5, start).unwrap();
        assert!(latencies.quantile(0.9, start).unwrap() > first);
        latencies.quantile(0.5, start);
        for _ in 0..1000 {
            latencies.observe(ms(500), start);
        }
        assert_eq!(latencies.quantile(0.5, start + ms(99)), Some(first));
        assert!(latencies.quantile(0.5, start + ms(100)).unwrap() >= ms(500));
    }

    #[test]
    fn a_slow_trickle_is_known() {
        let start = Instant::now();
        let latencies = Latencies::new(start);
        for count in 0..300 {
            latencies.observe(ms(40), start + ms(count * 400));
        }
        assert!(latencies.quantile(0.95, start + ms(120_000)).is_some_and(|latency| latency >= ms(40)));
    }
}
