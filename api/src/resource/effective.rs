//! The policy in force where several govern the same calls, and the defaults under all of them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value};

use super::policy::{
    Algorithm, CircuitBreaker, ConnectionPool, Limits, LoadBalancing, Retries, RetryBudget, Timeouts,
    TrafficPolicySpec, ZonePreference,
};
use super::route::HttpRouteRule;
use super::value::{Percent, Span};

/// Sections taken from one layer as a whole: half of one with half of another would be a setting
/// nobody wrote.
const WHOLE: [&str; 5] = ["hedging", "faults", "loadBalancing.hash", "limits.rate", "limits.ratePerCaller"];

/// One policy of several that govern the same calls.
#[derive(Debug, Clone, Copy)]
pub struct Layer<'a> {
    /// Where it comes from, for people, such as `TrafficPolicy shop/orders`.
    pub origin: &'a str,
    /// What it says; its `targetRefs` play no part.
    pub spec: &'a TrafficPolicySpec,
}

/// Several policies as one.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Effective {
    /// What is in force, without `targetRefs`.
    pub spec: TrafficPolicySpec,
    /// Each setting's dotted key, such as `retries.attempts`, and the origin of the layer that says
    /// it. A section taken as a whole has one entry under its own name, such as `hedging`; so has one
    /// that a layer switches off, although `spec` lacks it.
    pub origins: BTreeMap<String, String>,
}

/// The policy in force, from layers with the most specific first: every setting comes from the first
/// layer that says it.
///
/// Lists are settings, not sections: one replaces the other. `hedging`, `faults`, `limits.rate` and
/// `limits.ratePerCaller` are taken as a whole, and `loadBalancing.hash` with the `algorithm` of its
/// layer. Where layers put a maximum below a base (`retries.backoff*`, `circuitBreaker.ejection*`),
/// the base is lowered to it, for the same reason and origin. `hedging` that is not `enabled` and
/// `faults` without any are left out: a layer's way to switch off what a less specific one says.
pub fn effective(layers: &[Layer<'_>]) -> Effective {
    let (mut merged, mut origins) = (Map::new(), BTreeMap::new());
    for layer in layers {
        let Value::Object(mut said) =
            serde_json::to_value(layer.spec).expect("plain data with text keys always serialises")
        else {
            continue;
        };
        said.remove("targetRefs");
        if origins.contains_key("loadBalancing.algorithm")
            && let Some(Value::Object(balancing)) = said.get_mut("loadBalancing")
        {
            balancing.remove("hash");
        }
        merge(&mut merged, said, "", layer.origin, &mut origins);
    }
    let mut spec: TrafficPolicySpec =
        serde_json::from_value(Value::Object(merged)).expect("what was written from specs reads as one");
    lower_bases(&mut spec, &mut origins);
    spec.hedging = spec.hedging.filter(|hedging| hedging.enabled != Some(false));
    spec.faults = spec.faults.filter(|faults| faults.delay.is_some() || faults.abort.is_some());
    Effective { spec, origins }
}

fn merge(
    into: &mut Map<String, Value>,
    said: Map<String, Value>,
    prefix: &str,
    origin: &str,
    origins: &mut BTreeMap<String, String>,
) {
    for (key, value) in said {
        let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
        match value {
            Value::Object(section) if !WHOLE.contains(&path.as_str()) => {
                let place = into.entry(key).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(place) = place {
                    merge(place, section, &path, origin, origins);
                }
            }
            setting if !into.contains_key(&key) => {
                into.insert(key, setting);
                origins.insert(path, origin.to_owned());
            }
            _ => {}
        }
    }
}

fn lower_bases(spec: &mut TrafficPolicySpec, origins: &mut BTreeMap<String, String>) {
    let mut lower = |base: &mut Option<Span>, max: Option<Span>, keys: [&str; 2]| {
        if let (Some(from), Some(to)) = (*base, max)
            && from > to
        {
            *base = Some(to);
            let origin = origins.get(keys[1]).cloned().unwrap_or_default();
            origins.insert(keys[0].to_owned(), origin);
        }
    };
    if let Some(retries) = &mut spec.retries {
        lower(&mut retries.backoff_base, retries.backoff_max, ["retries.backoffBase", "retries.backoffMax"]);
    }
    if let Some(breaker) = &mut spec.circuit_breaker {
        let keys = ["circuitBreaker.ejectionBase", "circuitBreaker.ejectionMax"];
        lower(&mut breaker.ejection_base, breaker.ejection_max, keys);
    }
}

impl TrafficPolicySpec {
    /// The least specific layer of all: the documented default of every setting that has a fixed one.
    /// What the sidecar's own configuration says, and what is off unless said, is not in it.
    pub fn built_in() -> Self {
        Self {
            retries: Some(Retries {
                attempts: Some(2),
                statuses: Some(Vec::new()),
                grpc_codes: Some(Vec::new()),
                backoff_base: Some(millis(25)),
                backoff_max: Some(millis(250)),
                buffer: None,
            }),
            retry_budget: Some(RetryBudget {
                percent: Some(Percent(20.0)),
                min_per_second: Some(3.0),
                server_percent: Some(Percent(30.0)),
            }),
            circuit_breaker: Some(CircuitBreaker {
                consecutive_failures: Some(5),
                success_rate: Some(Percent(50.0)),
                window: Some(millis(10_000)),
                min_requests: Some(20),
                ejection_base: Some(millis(1000)),
                ejection_max: Some(millis(30_000)),
                max_ejected: Some(Percent(50.0)),
            }),
            load_balancing: Some(LoadBalancing {
                algorithm: Some(Algorithm::PeakEwma),
                hash: None,
                slow_start: Some(millis(10_000)),
                zone: Some(ZonePreference { prefer: Some(true), min_usable: Some(Percent(70.0)) }),
            }),
            connection_pool: Some(ConnectionPool {
                max_connections: Some(1024),
                max_pending: Some(1024),
                max_in_flight: Some(4096),
                max_requests_per_connection: None,
            }),
            limits: Some(Limits {
                max_in_flight: Some(1024),
                max_queued: Some(128),
                max_wait: Some(millis(100)),
                adaptive: Some(false),
                rate: None,
                rate_per_caller: None,
            }),
            ..Self::default()
        }
    }
}

fn millis(millis: u64) -> Span {
    Span(Duration::from_millis(millis))
}

impl HttpRouteRule {
    /// The rule's `timeouts` and `retry` as a layer: less specific than a policy attached to the rule
    /// or its route, more than one attached to the service.
    pub fn policy(&self) -> TrafficPolicySpec {
        let timeouts = self.timeouts.as_ref().map(|timeouts| Timeouts {
            request: timeouts.request,
            per_try: timeouts.backend_request,
            ..Timeouts::default()
        });
        let retries = self.retry.as_ref().map(|retry| Retries {
            attempts: retry.attempts,
            statuses: Some(retry.codes.clone()).filter(|codes| !codes.is_empty()),
            backoff_base: retry.backoff,
            ..Retries::default()
        });
        TrafficPolicySpec { timeouts, retries, ..TrafficPolicySpec::default() }
    }
}
