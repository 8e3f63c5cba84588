//! Peak-EWMA latency of one endpoint.

use std::time::{Duration, Instant};

/// Time after which an observation weighs 1/e. Finagle's default.
const DECAY: Duration = Duration::from_secs(10);

/// An average that follows a rise at once and a fall slowly.
///
/// Source: Finagle's `p2c` peak-EWMA load metric, as described in its documentation.
#[derive(Debug)]
pub(super) struct Ewma {
    /// `None`: never observed.
    seconds: Option<f64>,
    /// The last observation.
    at: Instant,
}

impl Ewma {
    /// Nothing observed yet.
    pub(super) fn new(now: Instant) -> Self {
        Self { seconds: None, at: now }
    }

    /// Adds an answer that took `latency`. A slower one than the average replaces it.
    pub(super) fn observe(&mut self, latency: Duration, now: Instant) {
        let latency = latency.as_secs_f64();
        let weight = self.weight(now);
        let seconds = match self.seconds.map(|seconds| seconds * weight) {
            Some(decayed) if decayed > latency => decayed + latency * (1.0 - weight),
            Some(_) | None => latency,
        };
        *self = Self { seconds: Some(seconds), at: self.at.max(now) };
    }

    /// The average in seconds as it stands at `now`: without new observations it decays towards zero.
    /// Looking at it changes nothing, else the next observation would weigh by the time since the
    /// last look. `None`: never observed.
    pub(super) fn seconds(&self, now: Instant) -> Option<f64> {
        self.seconds.map(|seconds| seconds * self.weight(now))
    }

    /// Forgets what was observed.
    pub(super) fn forget(&mut self) {
        self.seconds = None;
    }

    /// How much the last average still weighs at `now`.
    fn weight(&self, now: Instant) -> f64 {
        let elapsed = now.saturating_duration_since(self.at);
        (-elapsed.as_secs_f64() / DECAY.as_secs_f64()).exp()
    }
}
