//! Peak-EWMA: latency that rises at once and falls slowly, times the requests in flight.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// Time after which an observation weighs 1/e. Finagle's default.
const DECAY: Duration = Duration::from_secs(10);
/// Assumed latency, in seconds, of an endpoint that has a request but never answered one: above that
/// of a good one, so that a newcomer gets requests one at a time until its first answer.
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
    /// `None`: never observed.
    seconds: Option<f64>,
    /// The last observation.
    at: Instant,
}

impl Average {
    /// How much the last average still weighs at `now`.
    fn weight(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }

    /// The average as it stands at `now`: without new observations it decays towards zero. Looking at
    /// it changes nothing, else the next observation would weigh by the time since the last look.
    fn seconds(&self, now: Instant) -> Option<f64> {
        self.seconds.map(|seconds| seconds * self.weight(now))
    }
}

impl Load {
    /// An endpoint never observed.
    pub fn new(now: Instant) -> Self {
        Self { average: Mutex::new(Average { seconds: None, at: now }), in_flight: AtomicU32::new(0) }
    }

    /// Adds an answer that took `latency`. A slower one than the average replaces it.
    pub fn observe(&self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let mut average = self.average.lock().expect("no holder of this lock panics");
        let weight = average.weight(now);
        let seconds = match average.seconds(now) {
            Some(decayed) if decayed > latency => decayed + latency * (1.0 - weight),
            Some(_) | None => latency,
        };
        *average = Average { seconds: Some(seconds), at: average.at.max(now) };
    }

    /// What another request would cost: average latency in seconds times requests in flight with it.
    pub fn cost(&self, now: Instant) -> f64 {
        let average = self.average.lock().expect("no holder of this lock panics").seconds(now);
        // The floor keeps requests in flight counting when an average has decayed to nothing.
        average.map_or_else(|| self.cost_unknown(), |seconds| seconds.max(1e-6) * self.with_one_more())
    }

    /// The same where nothing is known, or nothing that still holds: an idle endpoint costs nothing,
    /// for its first request finds out.
    pub fn cost_unknown(&self) -> f64 {
        if self.in_flight() == 0 { 0.0 } else { UNKNOWN * self.with_one_more() }
    }

    fn with_one_more(&self) -> f64 {
        f64::from(self.in_flight() + 1)
    }

    /// Forgets what was observed.
    pub fn forget(&self) {
        self.average.lock().expect("no holder of this lock panics").seconds = None;
    }

    /// Average latency in seconds, for people; zero while unknown.
    pub fn seconds(&self, now: Instant) -> f64 {
        let average = self.average.lock().expect("no holder of this lock panics");
        average.seconds(now).unwrap_or_default()
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
