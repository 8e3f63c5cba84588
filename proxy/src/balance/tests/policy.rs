use outrigger_api::resource::policy::{CircuitBreaker, LoadBalancing, TrafficPolicySpec, ZonePreference};
use outrigger_api::resource::value::{Percent, Span};

use super::*;

#[test]
fn what_a_policy_leaves_out_has_the_documented_default() {
    let settings = Settings::from_policy(&TrafficPolicySpec::default(), None);
    assert_eq!(settings, Settings::default());
    let breaker = &settings.breaker;
    assert_eq!((breaker.consecutive_failures, breaker.success_rate, breaker.min_requests), (5, 0.5, 20));
    assert_eq!((breaker.ejection_base, breaker.ejection_max, breaker.window), (secs(1), secs(30), secs(10)));
    assert_eq!((settings.slow_start, breaker.max_ejected), (secs(10), 0.5));
    let zone = Settings::from_policy(&TrafficPolicySpec::default(), Some("near")).zone;
    assert_eq!(zone, Some(ZoneSettings { own: "near".into(), min_usable: 0.7 }));
}

#[test]
fn what_a_policy_says_holds() {
    let zone = ZonePreference { prefer: None, min_usable: Some(Percent(50.0)) };
    let mut policy = TrafficPolicySpec {
        circuit_breaker: Some(CircuitBreaker {
            consecutive_failures: Some(2),
            success_rate: Some(Percent(90.0)),
            window: Some(Span(secs(30))),
            min_requests: Some(7),
            ejection_base: Some(Span(secs(3))),
            ejection_max: Some(Span(secs(4))),
            max_ejected: Some(Percent(10.0)),
        }),
        load_balancing: Some(LoadBalancing {
            algorithm: Some(Algorithm::RoundRobin),
            slow_start: Some(Span(secs(5))),
            zone: Some(zone),
            ..LoadBalancing::default()
        }),
        ..TrafficPolicySpec::default()
    };
    let wanted = Settings {
        algorithm: Algorithm::RoundRobin,
        breaker: BreakerSettings {
            consecutive_failures: 2,
            success_rate: 0.9,
            window: secs(30),
            min_requests: 7,
            ejection_base: secs(3),
            ejection_max: secs(4),
            max_ejected: 0.1,
        },
        slow_start: secs(5),
        zone: Some(ZoneSettings { own: "near".into(), min_usable: 0.5 }),
    };
    assert_eq!(Settings::from_policy(&policy, Some("near")), wanted);
    let zone = ZonePreference { prefer: Some(false), min_usable: None };
    policy.load_balancing.as_mut().unwrap().zone = Some(zone);
    assert_eq!(Settings::from_policy(&policy, Some("near")).zone, None);
}
