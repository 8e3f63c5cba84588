//! Peak-EWMA: latency that rises at once and falls slowly, times the requests in flight.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Time after which an observation weighs 1/e. Finagle's default.
const DECAY: Duration = Duration::from_secs(10);
/// Assumed latency of an endpoint never observed, in seconds: above that of a good one, so that a
/// newcomer gets requests one at a time until its first answer.
const UNKNOWN: f64 = 0.03;

/// Latency and requests in flight of one endpoint.
///
/// Source: Finagle's `p2c` peak-EWMA load metric, as described in its documentation.
#[derive(Debug)]
pub struct Load {
    average: Mutex<Average>,
    in_flight: AtomicU32,
}

#[derive(Debug)]
struct Average {
    seconds: f64,
    at: Instant,
}

impl Average {
    /// The average as it stands at `now`: without new observations it decays towards zero.
    fn decay(&mut self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        let weight = (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp();
        self.seconds *= weight;
        self.at = self.at.max(now);
        weight
    }
}

impl Load {
    /// An endpoint never observed.
    pub fn new(now: Instant) -> Self {
        Self { average: Mutex::new(Average { seconds: UNKNOWN, at: now }), in_flight: AtomicU32::new(0) }
    }

    /// Adds an answer that took `latency`. A slower one than the average replaces it.
    pub fn observe(&self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let mut average = self.average.lock().expect("no holder of this lock panics");
        let weight = average.decay(now);
        average.seconds =
            if latency > average.seconds { latency } else { average.seconds + latency * (1.0 - weight) };
    }

    /// What another request would cost: average latency in seconds times requests in flight with it.
    pub fn cost(&self, now: Instant) -> f64 {
        let mut average = self.average.lock().expect("no holder of this lock panics");
        average.decay(now);
        // The floor keeps requests in flight counting when an average has decayed to nothing.
        average.seconds.max(1e-6) * f64::from(self.in_flight.load(Ordering::Relaxed) + 1)
    }

    /// Average latency in seconds, for people.
    pub fn seconds(&self, now: Instant) -> f64 {
        let mut average = self.average.lock().expect("no holder of this lock panics");
        average.decay(now);
        average.seconds
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// One more request in flight; pair with [`Load::end`].
    pub fn begin(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
    }

    /// One fewer.
    pub fn end(&self) {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}
