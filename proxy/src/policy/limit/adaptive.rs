//! A limit of concurrency that finds itself: from the gradient of the latency.
//!
//! Latency well above what the application needs without a queue means a queue in front of its own
//! bottleneck; it is better kept here, where it is bounded and fair. At the end of each window:
//!
//! ```text
//! gradient = clamp(TOLERANCE * baseline / mean latency, 0.5, 1)
//! limit   += SMOOTHING * (limit * gradient + sqrt(limit) - limit)       within 4 and the maximum
//! ```
//!
//! The square root is the queue that is allowed for, and what makes the limit grow while there is
//! none. A window in which fewer than half of the places were used says nothing about the limit and
//! leaves it alone. One with drops takes a tenth off.
//!
//! The baseline is the latency without a queue of our making. It follows lower latencies at once and
//! higher ones only while the limit is not in use or is at its floor. A long average in its place
//! (Gradient2) drifts up during a long overload, and the limit with it; measuring it at regular
//! times with few requests let in (Envoy) costs throughput when nothing is wrong. Here that happens on
//! demand: an application that has become slower drives the limit to its floor, is measured there, and
//! gets its concurrency back.
//!
//! Sources: Netflix concurrency-limits, Gradient and Gradient2 (formula, tolerance, smoothing, first
//! limit); Envoy's adaptive concurrency filter (square root as headroom, baseline measured at low
//! concurrency).

use std::time::{Duration, Instant};

/// Latency may be this multiple of the baseline before the limit shrinks.
const TOLERANCE: f64 = 1.5;
/// Share of the way to the new limit taken at once.
const SMOOTHING: f64 = 0.2;
/// Left of the limit after a window with drops.
const BACK_OFF: f64 = 0.9;
/// Below this the application would idle between requests.
const FLOOR: f64 = 4.0;
/// Where the search starts.
const FIRST: f64 = 20.0;
/// Shortest window; else twice the baseline, so that most answers in it belong to its limit.
const MIN_WINDOW: Duration = Duration::from_millis(100);
/// Longest wait for the samples of answers already on their way under an earlier limit.
const MAX_WINDOW: Duration = Duration::from_secs(10);
/// Answers below which a mean says nothing.
const MIN_SAMPLES: u32 = 10;

/// How a request that was let in has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// Time in the application: without the wait for a turn.
    pub latency: Duration,
    /// It timed out or was refused for overload: its latency means nothing, its end does.
    pub dropped: bool,
}

/// The limit and what it is found from.
#[derive(Debug)]
pub struct Adaptive {
    limit: f64,
    max: f64,
    /// Latency without a queue, in seconds.
    baseline: Option<f64>,
    window: Window,
}

#[derive(Debug)]
struct Window {
    start: Instant,
    /// Seconds, of `timed` answers.
    total: f64,
    timed: u32,
    dropped: u32,
    peak: u32,
}

impl Window {
    fn new(start: Instant) -> Self {
        Self { start, total: 0.0, timed: 0, dropped: 0, peak: 0 }
    }
}

impl Adaptive {
    /// A search for a limit of at most `max`, which may be below the floor of 4.
    pub fn new(max: u32, now: Instant) -> Self {
        let max = f64::from(max.max(1));
        Self { limit: FIRST.min(max), max, baseline: None, window: Window::new(now) }
    }

    /// The limit in force.
    pub fn limit(&self) -> u32 {
        // At most `max`, which was a u32.
        self.limit as u32
    }

    /// Changes the maximum.
    pub fn set_max(&mut self, max: u32) {
        self.max = f64::from(max.max(1));
        self.limit = self.limit.clamp(self.floor(), self.max);
    }

    /// Latency without a queue as believed now, for people.
    pub fn baseline(&self) -> Option<Duration> {
        self.baseline.map(Duration::from_secs_f64)
    }

    /// Adds the end of a request, with the requests in flight while it was among them. Returns the limit.
    pub fn observe(&mut self, sample: Sample, in_flight: u32, now: Instant) -> u32 {
        let window = &mut self.window;
        window.peak = window.peak.max(in_flight);
        if sample.dropped {
            window.dropped += 1;
        } else {
            window.total += sample.latency.as_secs_f64();
            window.timed += 1;
        }
        let enough = window.timed + window.dropped >= MIN_SAMPLES;
        if enough && now.saturating_duration_since(window.start) >= self.window_length() {
            let window = std::mem::replace(&mut self.window, Window::new(now));
            self.close(&window);
        }
        self.limit()
    }

    fn window_length(&self) -> Duration {
        let twice = self.baseline().map_or(MIN_WINDOW, |baseline| baseline * 2);
        twice.clamp(MIN_WINDOW, MAX_WINDOW)
    }

    fn close(&mut self, window: &Window) {
        let used = f64::from(window.peak) * 2.0 >= self.limit;
        let gradient = (window.timed > 0).then(|| {
            let mean = window.total / f64::from(window.timed);
            let baseline = self.learn(mean, used);
            (TOLERANCE * baseline / mean.max(1e-6)).clamp(0.5, 1.0)
        });
        if !used {
            return;
        }
        let limit = match gradient {
            _ if window.dropped > 0 => self.limit * BACK_OFF,
            Some(gradient) => {
                let target = self.limit * gradient + self.limit.sqrt();
                self.limit + SMOOTHING * (target - self.limit)
            }
            None => self.limit,
        };
        self.limit = limit.clamp(self.floor(), self.max);
    }

    fn floor(&self) -> f64 {
        FLOOR.min(self.max)
    }

    /// Lets the baseline follow a window's mean, and returns it.
    fn learn(&mut self, mean: f64, used: bool) -> f64 {
        let at_floor = self.limit < self.floor() + 1.0;
        let baseline = match self.baseline {
            None => mean,
            // All of it: with half, the limit would leave its floor for a place between the two.
            Some(_) if at_floor => mean,
            // Half of the way: one lucky window must not set a mark that no other reaches.
            Some(baseline) if mean < baseline => f64::midpoint(baseline, mean),
            Some(baseline) if !used => baseline + SMOOTHING * (mean - baseline),
            Some(baseline) => baseline,
        };
        self.baseline = Some(baseline);
        baseline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An application that works on `capacity` requests at once for `base` each, under more load than
    /// it can take: everything the limit lets in is in flight, and waits inside it beyond the capacity.
    struct App {
        capacity: f64,
        base: f64,
    }

    impl App {
        /// Feeds the answers of `seconds` of saturation; returns requests answered a second.
        fn saturate(
            &self,
            adaptive: &mut Adaptive,
            now: &mut Instant,
            seconds: f64,
            rng: &mut fastrand::Rng,
        ) -> f64 {
            let (mut elapsed, mut answered) = (0.0, 0);
            while elapsed < seconds {
                let limit = f64::from(adaptive.limit());
                let latency = self.base * (limit / self.capacity).max(1.0) * (0.8 + 0.4 * rng.f64());
                let step = latency / limit;
                elapsed += step;
                *now += Duration::from_secs_f64(step);
                let sample = Sample { latency: Duration::from_secs_f64(latency), dropped: false };
                adaptive.observe(sample, adaptive.limit(), *now);
                answered += 1;
            }
            f64::from(answered) / elapsed
        }
    }

    #[test]
    fn a_long_overload_finds_the_capacity_and_stays_there() {
        for seed in 0..12 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (capacity, base) = (rng.u32(8..100), [0.01, 0.05, 0.2][rng.usize(0..3)]);
            let hundred_windows = 10.0_f64.max(200.0 * base);
            let app = App { capacity: f64::from(capacity), base };
            let mut now = Instant::now();
            let mut adaptive = Adaptive::new(1024, now);
            // A quiet start shows the latency without a queue.
            for _ in 0..100 {
                now += Duration::from_millis(50);
                adaptive.observe(Sample { latency: Duration::from_secs_f64(base), dropped: false }, 1, now);
            }
            app.saturate(&mut adaptive, &mut now, 3.0 * hundred_windows, &mut rng);
            for _ in 0..5 {
                let rate = app.saturate(&mut adaptive, &mut now, hundred_windows, &mut rng);
                let limit = adaptive.limit();
                let what = format!(
                    "seed {seed}: limit {limit} of capacity {capacity}, {rate}/s of {}",
                    app.capacity / base
                );
                assert!(limit >= capacity && limit <= capacity * 5 / 2 + 8, "{what}");
                assert!(rate > 0.9 * app.capacity / base, "{what}");
            }
        }
    }

    #[test]
    fn an_application_that_became_slower_gets_its_concurrency_back() {
        for seed in 0..10 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut now = Instant::now();
            let mut adaptive = Adaptive::new(1024, now);
            App { capacity: 50.0, base: 0.01 }.saturate(&mut adaptive, &mut now, 30.0, &mut rng);
            let slower = App { capacity: 50.0, base: 0.1 };
            slower.saturate(&mut adaptive, &mut now, 120.0, &mut rng);
            let rate = slower.saturate(&mut adaptive, &mut now, 60.0, &mut rng);
            assert!(rate > 450.0, "seed {seed}: {rate}/s of 500, limit {}", adaptive.limit());
            assert!(adaptive.limit() < 130, "seed {seed}: {}", adaptive.limit());
        }
    }

    #[test]
    fn a_limit_not_in_use_is_left_alone_and_latency_learned() {
        let mut now = Instant::now();
        let mut adaptive = Adaptive::new(1024, now);
        for (latency, dropped) in [(1, false), (50, false), (50, true)] {
            for _ in 0..2000 {
                now += Duration::from_millis(10);
                let sample = Sample { latency: Duration::from_millis(latency), dropped };
                assert_eq!(adaptive.observe(sample, 5, now), 20);
            }
        }
        let baseline = adaptive.baseline().unwrap();
        assert!(baseline > Duration::from_millis(45), "{baseline:?}");
    }

    #[test]
    fn drops_shrink_it_to_the_floor_and_not_below() {
        let mut now = Instant::now();
        let mut adaptive = Adaptive::new(1024, now);
        let mut limits = Vec::new();
        for _ in 0..1000 {
            now += Duration::from_millis(10);
            let sample = Sample { latency: Duration::from_secs(1), dropped: true };
            limits.push(adaptive.observe(sample, adaptive.limit(), now));
        }
        assert!(limits.is_sorted_by(|a, b| a >= b) && limits.contains(&18));
        assert_eq!(limits.last(), Some(&4));
    }

    #[test]
    fn it_keeps_within_its_bounds_whatever_it_is_told() {
        for seed in 0..50 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut now = Instant::now();
            let mut max = rng.u32(1..60);
            let mut adaptive = Adaptive::new(max, now);
            for _ in 0..5000 {
                now += Duration::from_micros(rng.u64(0..50_000));
                let latency = Duration::from_nanos(1u64 << rng.u32(0..40));
                let sample = Sample { latency, dropped: rng.u32(0..50) == 0 };
                let limit = adaptive.observe(sample, rng.u32(0..2 * max), now);
                assert!(limit >= max.min(4) && limit <= max, "seed {seed}: {limit} of {max}");
                if rng.u32(0..500) == 0 {
                    max = rng.u32(1..60);
                    adaptive.set_max(max);
                }
            }
        }
    }

    #[test]
    fn a_fast_application_gets_all_it_is_allowed() {
        let mut now = Instant::now();
        let mut adaptive = Adaptive::new(300, now);
        let mut rng = fastrand::Rng::with_seed(1);
        App { capacity: 1e6, base: 0.01 }.saturate(&mut adaptive, &mut now, 60.0, &mut rng);
        assert_eq!(adaptive.limit(), 300);
    }
}
