use super::*;
use crate::resource::policy::{Effective, Layer, defaults_from_json, effective};

fn spec(json: &str) -> TrafficPolicySpec {
    defaults_from_json(json).unwrap_or_else(|error| panic!("{json}: {error}"))
}

/// Merges layers given in JSON; their origins are `0`, `1` and so on, the built-in one `default`.
fn merged(layers: &[&str]) -> Effective {
    let specs: Vec<_> = layers.iter().map(|json| spec(json)).collect();
    let names: Vec<_> = (0..specs.len()).map(|number| number.to_string()).collect();
    let built_in = TrafficPolicySpec::built_in();
    let mut layers: Vec<_> = specs.iter().zip(&names).map(|(spec, origin)| Layer { origin, spec }).collect();
    layers.push(Layer { origin: "default", spec: &built_in });
    effective(&layers)
}

fn json(spec: &TrafficPolicySpec) -> serde_json::Value {
    serde_json::to_value(spec).unwrap()
}

#[test]
fn every_setting_comes_from_the_most_specific_layer_that_says_it() {
    let found = merged(&[
        r#"{"retries": {"attempts": 1, "statuses": [503]}}"#,
        r#"{"retries": {"attempts": 4, "statuses": [500, 502], "backoffMax": "1s"}, "timeouts": {"request": "3s"}}"#,
    ]);
    let (spec, origins) = (json(&found.spec), &found.origins);
    for (key, value, origin) in [
        ("/retries/attempts", serde_json::json!(1), "0"),
        ("/retries/statuses", serde_json::json!([503]), "0"),
        ("/retries/backoffMax", serde_json::json!("1s"), "1"),
        ("/timeouts/request", serde_json::json!("3s"), "1"),
        ("/retries/backoffBase", serde_json::json!("25ms"), "default"),
        ("/loadBalancing/zone/minUsable", serde_json::json!(70.0), "default"),
    ] {
        assert_eq!(spec.pointer(key), Some(&value), "{key}");
        assert_eq!(origins[&key[1..].replace('/', ".")], origin, "{key}");
    }
}

#[test]
fn no_layers_say_nothing_and_the_built_in_one_says_itself() {
    assert_eq!(effective(&[]), Effective::default());
    let found = merged(&[]);
    assert_eq!(found.spec, TrafficPolicySpec::built_in());
    assert!(found.origins.values().all(|origin| origin == "default"));
    assert_eq!(found.origins.len(), 26, "{:?}", found.origins);
}

#[test]
fn targets_are_of_no_concern() {
    let mut one = spec(r#"{"retries": {"attempts": 1}}"#);
    one.target_refs = serde_json::from_str(r#"[{"kind": "Service", "name": "orders"}]"#).unwrap();
    let found = effective(&[Layer { origin: "one", spec: &one }]);
    assert_eq!(found.spec, spec(r#"{"retries": {"attempts": 1}}"#));
    assert_eq!(found.origins.keys().collect::<Vec<_>>(), ["retries.attempts"]);
}

#[test]
fn sections_that_make_sense_as_a_whole_alone_are_never_mixed() {
    for (key, specific, general) in [
        ("/hedging", r#"{"hedging": {"quantile": 99}}"#, r#"{"hedging": {"minDelay": "5ms"}}"#),
        (
            "/faults",
            r#"{"faults": {"abort": {"percent": 1}}}"#,
            r#"{"faults": {"delay": {"percent": 2, "duration": "5ms"}}}"#,
        ),
        (
            "/limits/rate",
            r#"{"limits": {"rate": {"requestsPerSecond": 5}}}"#,
            r#"{"limits": {"rate": {"requestsPerSecond": 9, "burst": 90}}}"#,
        ),
        (
            "/limits/ratePerCaller",
            r#"{"limits": {"ratePerCaller": {"requestsPerSecond": 5}}}"#,
            r#"{"limits": {"ratePerCaller": {"requestsPerSecond": 9, "burst": 90}}}"#,
        ),
        (
            "/loadBalancing/hash",
            r#"{"loadBalancing": {"algorithm": "maglev", "hash": {"cookie": "a"}}}"#,
            r#"{"loadBalancing": {"algorithm": "ringHash", "hash": {"header": "b"}}}"#,
        ),
    ] {
        let found = merged(&[specific, general]);
        assert_eq!(json(&found.spec).pointer(key), json(&spec(specific)).pointer(key), "{key}");
        assert_eq!(found.origins[&key[1..].replace('/', ".")], "0", "{key}");
    }
}

#[test]
fn a_hash_belongs_to_the_algorithm_beside_it() {
    let found = merged(&[
        r#"{"loadBalancing": {"algorithm": "roundRobin"}}"#,
        r#"{"loadBalancing": {"algorithm": "maglev", "hash": {"source": true}}}"#,
    ]);
    assert_eq!(json(&found.spec).pointer("/loadBalancing/hash"), None);
    assert!(!found.origins.contains_key("loadBalancing.hash"));
}

#[test]
fn hedging_and_faults_can_be_switched_off() {
    let found = merged(&[
        r#"{"hedging": {"enabled": false}, "faults": {}}"#,
        r#"{"hedging": {}, "faults": {"abort": {"percent": 5}}}"#,
    ]);
    assert_eq!((&found.spec.hedging, &found.spec.faults), (&None, &None));
    assert_eq!((found.origins["hedging"].as_str(), found.origins["faults"].as_str()), ("0", "0"));
    assert!(merged(&[r#"{"hedging": {}}"#]).spec.hedging.is_some());
}

#[test]
fn a_base_is_never_above_its_maximum() {
    let found = merged(&[
        r#"{"retries": {"backoffMax": "5ms"}, "circuitBreaker": {"ejectionMax": "200ms"}}"#,
        r#"{"circuitBreaker": {"ejectionBase": "3s"}}"#,
    ]);
    let (spec, origins) = (json(&found.spec), &found.origins);
    assert_eq!(spec["retries"]["backoffBase"], "5ms");
    assert_eq!(spec["circuitBreaker"]["ejectionBase"], "200ms");
    assert_eq!(
        (origins["retries.backoffBase"].as_str(), origins["circuitBreaker.ejectionBase"].as_str()),
        ("0", "0")
    );
}

#[test]
fn a_rule_of_a_route_is_a_layer() {
    let route = parse(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: orders}\nspec:\n  parentRefs: [{name: orders}]\n  rules: [{timeouts: {request: 2s, backendRequest: 0s}, retry: {attempts: 1, codes: [503], backoff: 10ms}}, {}]\n",
    )
    .unwrap();
    let Resource::HttpRoute { spec: route, .. } = &route[0] else { panic!("{route:?}") };
    assert_eq!(
        route.rules[0].policy(),
        spec(
            r#"{"timeouts": {"request": "2s", "perTry": "0s"}, "retries": {"attempts": 1, "statuses": [503], "backoffBase": "10ms"}}"#
        )
    );
    assert_eq!(route.rules[1].policy(), TrafficPolicySpec::default());
}
