//! What a policy says of balancing and breaking, as plain values with the defaults filled in.

use std::time::Duration;

pub use outrigger_api::resource::policy::Algorithm;
use outrigger_api::resource::policy::TrafficPolicySpec;

/// How a group chooses and when it sets an endpoint aside.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// How an endpoint is chosen.
    pub algorithm: Algorithm,
    /// When an endpoint is set aside, and how it comes back.
    pub breaker: BreakerSettings,
    /// Time over which a new or returned endpoint gets up to its whole share; zero: at once. The hash
    /// algorithms take no notice of it: half of a key's requests elsewhere is no affinity.
    pub slow_start: Duration,
    /// Preference for the caller's own zone. The hash algorithms take no notice of it either: all
    /// callers must agree where a key lives.
    pub zone: Option<ZoneSettings>,
}

/// See `CircuitBreaker` among the resource kinds.
#[derive(Debug, Clone, PartialEq)]
pub struct BreakerSettings {
    /// Failures in a row that set an endpoint aside; at least 1.
    pub consecutive_failures: u32,
    /// Least share of successes over the window, 0 to 1; 0 switches this rule off.
    pub success_rate: f64,
    /// Window of the success rate, and the time of good behaviour that halves the next ejection.
    pub window: Duration,
    /// Requests in the window below which the success rate says nothing.
    pub min_requests: u32,
    /// First ejection, doubled each time.
    pub ejection_base: Duration,
    /// Longest ejection.
    pub ejection_max: Duration,
    /// Share of the endpoints that may be out at once, rounded up, never the last; 0 to 1.
    pub max_ejected: f64,
}

/// Requests stay in the own zone while it can carry them.
#[derive(Debug, Clone, PartialEq)]
pub struct ZoneSettings {
    /// The caller's zone.
    pub own: Box<str>,
    /// Usable endpoints of the own zone, as a share of its endpoints, below which requests spill over;
    /// above 0, at most 1.
    pub min_usable: f64,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            success_rate: 0.5,
            window: Duration::from_secs(10),
            min_requests: 20,
            ejection_base: Duration::from_secs(1),
            ejection_max: Duration::from_secs(30),
            max_ejected: 0.5,
        }
    }
}

impl Default for Settings {
    /// Those of a service without any policy, for a caller that knows no zone.
    fn default() -> Self {
        Self {
            algorithm: Algorithm::PeakEwma,
            breaker: BreakerSettings::default(),
            slow_start: Duration::from_secs(10),
            zone: None,
        }
    }
}

impl Settings {
    /// What `policy` says, checked before; the documented defaults where it says nothing. `own_zone`
    /// is the caller's, if it knows one.
    pub fn from_policy(policy: &TrafficPolicySpec, own_zone: Option<&str>) -> Self {
        let mut settings = Self::default();
        let mut min_usable = Some(0.7);
        if let Some(balancing) = &policy.load_balancing {
            settings.algorithm = balancing.algorithm.unwrap_or(settings.algorithm);
            settings.slow_start = balancing.slow_start.map_or(settings.slow_start, Duration::from);
            if let Some(zone) = &balancing.zone {
                let share = zone.min_usable.map_or(0.7, |percent| percent.share());
                min_usable = zone.prefer.unwrap_or(true).then_some(share);
            }
        }
        settings.zone =
            own_zone.zip(min_usable).map(|(own, min_usable)| ZoneSettings { own: own.into(), min_usable });
        if let Some(said) = &policy.circuit_breaker {
            let breaker = &mut settings.breaker;
            breaker.consecutive_failures = said.consecutive_failures.unwrap_or(breaker.consecutive_failures);
            breaker.success_rate = said.success_rate.map_or(breaker.success_rate, |percent| percent.share());
            breaker.window = said.window.map_or(breaker.window, Duration::from);
            breaker.min_requests = said.min_requests.unwrap_or(breaker.min_requests);
            breaker.ejection_base = said.ejection_base.map_or(breaker.ejection_base, Duration::from);
            breaker.ejection_max = said.ejection_max.map_or(breaker.ejection_max, Duration::from);
            breaker.max_ejected = said.max_ejected.map_or(breaker.max_ejected, |percent| percent.share());
        }
        settings
    }
}

impl BreakerSettings {
    /// How many of `count` endpoints may be out at once: the share rounded up, never all of them.
    pub fn most_out(&self, count: usize) -> usize {
        // The subtrahend keeps 0.07 * 100, a little above 7 in binary, from being rounded up to 8.
        let share = (self.max_ejected * count as f64 - 1e-9).ceil().max(0.0);
        (share as usize).min(count.saturating_sub(1))
    }
}
