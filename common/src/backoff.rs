//! Exponential back-off with full jitter, for reconnecting to things that went away.

use std::time::Duration;

/// Delays between attempts: a random time between zero and a bound that doubles up to a cap.
///
/// Source: "Exponential Backoff And Jitter" (AWS Architecture Blog, 2015), the full-jitter variant.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    cap: Duration,
    attempt: u32,
}

impl Backoff {
    /// A back-off whose first delay is at most `base` and whose later ones are at most `cap`.
    pub fn new(base: Duration, cap: Duration) -> Self {
        Self { base, cap, attempt: 0 }
    }

    /// The next delay; `unit` is a random number in `[0, 1)`.
    pub fn next(&mut self, unit: f64) -> Duration {
        let bound =
            self.base.saturating_mul(1u32.checked_shl(self.attempt).unwrap_or(u32::MAX)).min(self.cap);
        self.attempt = self.attempt.saturating_add(1).min(31);
        bound.mul_f64(unit.clamp(0.0, 1.0))
    }

    /// Starts over after a success.
    pub fn reset(&mut self) {
        self.attempt = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_doubles_to_the_cap_and_starts_over_after_reset() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_millis(350));
        let delays: Vec<_> = (0..4).map(|_| backoff.next(1.0).as_millis()).collect();
        assert_eq!(delays, [100, 200, 350, 350]);
        backoff.reset();
        assert_eq!(backoff.next(0.5).as_millis(), 50);
    }

    #[test]
    fn never_exceeds_the_cap_however_often_it_is_asked() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(5));
        assert!((0..100).all(|_| backoff.next(0.999) <= Duration::from_secs(5)));
    }
}
