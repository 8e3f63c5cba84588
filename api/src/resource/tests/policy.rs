use super::*;
use crate::resource::policy::defaults_from_json;

const ON: &str = "targetRefs: [{kind: Service, name: orders}]\n";

/// Every section of a policy.
const FULL: &str = "\
targetRefs:
  - {kind: Service, name: orders, group: core, namespace: shop, sectionName: http}
timeouts: {request: 3s, perTry: 1s, connect: 500ms, idle: 1m, streamIdle: 10s}
retries:
  attempts: 3
  statuses: [502, 503]
  grpcCodes: [UNAVAILABLE, ABORTED]
  backoffBase: 10ms
  backoffMax: 1s
  buffer: 128KiB
retryBudget: {percent: 10, minPerSecond: 0.5, serverPercent: 25}
circuitBreaker:
  {consecutiveFailures: 3, successRate: 80, window: 20s, minRequests: 50, ejectionBase: 2s, ejectionMax: 1m, maxEjected: 30}
loadBalancing:
  algorithm: ringHash
  hash: {header: x-user}
  slowStart: 30s
  zone: {prefer: true, minUsable: 60}
connectionPool: {maxConnections: 10, maxPending: 0, maxInFlight: 100, maxRequestsPerConnection: 1000}
limits:
  maxInFlight: 64
  maxQueued: 32
  maxWait: 50ms
  adaptive: true
  rate: {requestsPerSecond: 100.5, burst: 200}
  ratePerCaller: {requestsPerSecond: 10}
hedging: {quantile: 99, minDelay: 5ms}
faults:
  delay: {percent: 1.5, duration: 200ms}
  abort: {percent: 0.1, status: 500, grpcCode: INTERNAL}
  matches: [{path: {type: Exact, value: /orders}, method: GET}]
";

/// What [`FULL`] has no place for.
const REST: &str = "\
targetRefs: [{kind: Service, name: orders}]
loadBalancing: {algorithm: maglev, hash: {cookie: session}}
hedging: {enabled: false}
limits: {ratePerCaller: {requestsPerSecond: 1, burst: 2}}
faults: {matches: [{}]}
";

/// Every field of a policy.
pub(super) const WHOLE: &[&str] = &[
    FULL,
    REST,
    "targetRefs: [{kind: Service, name: orders}]\nloadBalancing: {algorithm: maglev, hash: {source: true}}",
];

#[test]
fn good_policies_are_accepted_and_survive_a_round_trip() {
    let hash = |algorithm, hash| format!("{ON}loadBalancing: {{algorithm: {algorithm}, hash: {hash}}}");
    accepted(
        "TrafficPolicy",
        &[
            FULL,
            REST,
            ON,
            &hash("maglev", "{cookie: session}"),
            &hash("ringHash", "{source: true}"),
            &format!("{ON}timeouts: {{request: 0s, perTry: 5s}}"),
            &format!("{ON}timeouts: {{request: 5s, perTry: 5s}}"),
            &format!("{ON}hedging: {{}}\nfaults: {{}}"),
            "targetRefs: [{kind: HTTPRoute, name: split.v1, group: gateway.networking.k8s.io, sectionName: canary}, {kind: GRPCRoute, name: a}]\ntimeouts: {request: 1s, perTry: 1s, streamIdle: 1s}\nretries: {attempts: 1}\nhedging: {}\nfaults: {abort: {percent: 1}}\nlimits: {rate: {requestsPerSecond: 5}, ratePerCaller: {requestsPerSecond: 1, burst: 2}}",
            "targetRefs: [{kind: Service, name: orders, namespace: other}]\nretryBudget: {percent: 5}\ntimeouts: {request: 1s}",
        ],
    );
}

#[test]
fn every_range_is_kept_at_both_ends() {
    for (key, low, high, too_low, too_high) in [
        ("timeouts.request", "1ms", "24h", "", "25h"),
        ("timeouts.perTry", "0s", "24h", "", "86401s"),
        ("timeouts.connect", "1ms", "1m", "0s", "61s"),
        ("timeouts.idle", "1s", "24h", "999ms", "25h"),
        ("timeouts.streamIdle", "10ms", "24h", "9ms", "25h"),
        ("retries.attempts", "0", "10", "-1", "11"),
        ("retries.statuses", "[400]", "[400, 599]", "[399]", "[503, 600]"),
        ("retries.backoffBase", "1ms", "1m", "0s", "2m"),
        ("retries.backoffMax", "1ms", "1m", "0s", "2m"),
        ("retries.buffer", "0B", "16MiB", "", "17MiB"),
        ("retryBudget.percent", "0", "100", "-1", "100.1"),
        ("retryBudget.minPerSecond", "0", "1000", "-0.1", "1001"),
        ("retryBudget.serverPercent", "0", "100", "-1", "101"),
        ("circuitBreaker.consecutiveFailures", "1", "1000", "0", "1001"),
        ("circuitBreaker.successRate", "0", "100", "-1", "100.5"),
        ("circuitBreaker.window", "1s", "10m", "999ms", "11m"),
        ("circuitBreaker.minRequests", "1", "100000", "0", "100001"),
        ("circuitBreaker.ejectionBase", "100ms", "10m", "99ms", "11m"),
        ("circuitBreaker.ejectionMax", "100ms", "1h", "99ms", "2h"),
        ("circuitBreaker.maxEjected", "0", "50", "-1", "50.5"),
        ("loadBalancing.slowStart", "0s", "1h", "", "61m"),
        ("loadBalancing.zone.minUsable", "1", "100", "0.9", "101"),
        ("connectionPool.maxConnections", "1", "100000", "0", "100001"),
        ("connectionPool.maxPending", "0", "100000", "-1", "100001"),
        ("connectionPool.maxInFlight", "1", "1000000", "0", "1000001"),
        ("connectionPool.maxRequestsPerConnection", "1", "1000000000", "0", "4294967296"),
        ("limits.maxInFlight", "1", "1000000", "0", "1000001"),
        ("limits.maxQueued", "0", "100000", "-1", "100001"),
        ("limits.maxWait", "0s", "1m", "", "61s"),
        ("limits.rate.requestsPerSecond", "0.1", "1000000", "0", "1000001"),
        ("limits.ratePerCaller.requestsPerSecond", "1", "1000000", "-5", "1e9"),
        ("hedging.quantile", "50", "99.9", "49", "99.95"),
        ("hedging.minDelay", "1ms", "1m", "0s", "61s"),
    ] {
        let with = |value: &str| {
            let mut spec = ON.to_owned();
            for (depth, part) in key.split('.').enumerate() {
                spec.push_str(&format!(
                    "{}{}{part}:",
                    if depth == 0 { "" } else { "\n" },
                    "  ".repeat(depth)
                ));
            }
            format!("{spec} {value}\n")
        };
        accepted("TrafficPolicy", &[&with(low), &with(high)]);
        let line = key.split('.').count() + 1;
        let last = key.rsplit('.').next().unwrap();
        for bad in [too_low, too_high].into_iter().filter(|bad| !bad.is_empty()) {
            refused("TrafficPolicy", &[(&with(bad), line, last), (&with(bad), line, "; use ")]);
        }
    }
    for burst in [0, 1_000_001] {
        let spec = format!("{ON}limits: {{rate: {{requestsPerSecond: 1, burst: {burst}}}}}");
        refused("TrafficPolicy", &[(&spec, 2, "spec.limits.rate.burst: ")]);
    }
    for (faults, words) in [
        ("delay: {percent: 101, duration: 1s}", "spec.faults.delay.percent"),
        ("delay: {percent: 1, duration: 2m}", "spec.faults.delay.duration"),
        ("delay: {percent: 1}", "duration"),
        ("abort: {percent: -1}", "spec.faults.abort.percent"),
        ("abort: {percent: 1, status: 200}", "spec.faults.abort.status: 200 is out of range; use 400 to 599"),
        ("abort: {percent: 1, grpcCode: OK}", "OK"),
        ("matches: [{method: get}]", "spec.faults.matches[0].method: get is out of range; use GET"),
        ("matches: [{path: {value: a}}]", "spec.faults.matches[0].path.value: "),
    ] {
        refused("TrafficPolicy", &[(&format!("{ON}faults: {{{faults}}}"), 2, words)]);
    }
}

#[test]
fn what_belongs_together_is_checked_together() {
    let on = |text: &str| format!("{ON}{text}");
    for (text, line, words) in [
        (
            "timeouts:\n  request: 1s\n  perTry: 2s",
            4,
            "spec.timeouts.perTry: 2s is out of range; use at most request, 1s",
        ),
        ("retries: {backoffBase: 2s, backoffMax: 1s}", 2, "spec.retries.backoffBase"),
        ("circuitBreaker:\n  ejectionMax: 1s\n  ejectionBase: 2s", 4, "spec.circuitBreaker.ejectionBase"),
        ("loadBalancing:\n  algorithm: ringHash", 3, "spec.loadBalancing.algorithm: needs `hash`"),
        (
            "loadBalancing:\n  algorithm: peakEwma\n  hash: {source: true}",
            4,
            "only the algorithms ringHash and maglev",
        ),
        ("loadBalancing: {hash: {source: true}}", 2, "spec.loadBalancing.hash: has no effect"),
        ("loadBalancing: {algorithm: maglev, hash: {}}", 2, "exactly one of"),
        ("loadBalancing: {algorithm: maglev, hash: {source: true, header: a}}", 2, "exactly one of"),
        ("loadBalancing: {algorithm: maglev, hash: {header: 'a b'}}", 2, "spec.loadBalancing.hash.header"),
        ("loadBalancing: {algorithm: maglev, hash: {cookie: 'a;b'}}", 2, "spec.loadBalancing.hash.cookie"),
        ("loadBalancing: {algorithm: random}", 2, "not supported by this version"),
        ("outlierDetection: {}", 2, "unknown field `outlierDetection`"),
        ("retries:\n  attempts: 1\n  on: [5xx]", 4, "not supported by this version"),
        ("retries:\n  attempts: many", 3, "attempts: "),
        ("retries:\n  attempts: many", 3, "use 0 to 10"),
        ("timeouts:\n  request: 10", 3, "request: "),
        ("timeouts:\n  request: 1.5s", 3, "is not a duration"),
        ("retries:\n  grpcCodes: [OK]", 3, "OK"),
    ] {
        refused("TrafficPolicy", &[(&on(text), line, words)]);
    }
}

#[test]
fn targets_are_there_known_and_in_reach() {
    let many: String = (0..17).map(|number| format!("  - {{kind: Service, name: a{number}}}\n")).collect();
    refused(
        "TrafficPolicy",
        &[
            ("timeouts: {request: 1s}", 0, "spec.targetRefs: empty; give 1 to 16"),
            (&format!("targetRefs:\n{many}"), 1, "17 are too many"),
            ("targetRefs:\n  - {kind: Gateway, name: a}", 2, "use Service, HTTPRoute or GRPCRoute"),
            ("targetRefs:\n  - {kind: Service, name: a.b}", 2, "spec.targetRefs[0].name"),
            (
                "targetRefs:\n  - {kind: Service, name: a}\n  - {kind: Service, name: A}",
                3,
                "spec.targetRefs[1].name",
            ),
            ("targetRefs:\n  - {kind: Service, name: a}\n  - {kind: Service, name: a}", 3, "twice"),
            ("targetRefs:\n  - {kind: Service, name: a, group: apps}", 2, "spec.targetRefs[0].group"),
            ("targetRefs:\n  - {kind: HTTPRoute, name: a, group: core}", 2, "use gateway.networking.k8s.io"),
            ("targetRefs:\n  - {kind: HTTPRoute, name: a, namespace: other}", 2, "own namespace alone"),
            ("targetRefs:\n  - {kind: Service, name: a, namespace: A}", 2, "spec.targetRefs[0].namespace"),
            ("targetRefs:\n  - kind: Service\n    name: a\n    sectionName: '0'", 4, "use 1 to 65535"),
            ("targetRefs:\n  - {kind: Service, name: a, sectionName: '65536'}", 2, "use 1 to 65535"),
            (
                "targetRefs:\n  - {kind: Service, name: a, sectionName: a_b}",
                2,
                "spec.targetRefs[0].sectionName",
            ),
            ("targetRefs:\n  - {kind: Service}", 2, "missing field `name`"),
        ],
    );
}

#[test]
fn a_route_and_a_consumer_say_only_what_is_theirs() {
    let route = |text: &str| format!("targetRefs: [{{kind: HTTPRoute, name: a}}]\n{text}");
    let consumer = |text: &str| format!("targetRefs: [{{kind: Service, name: a, namespace: other}}]\n{text}");
    for (text, key) in [
        ("timeouts:\n  connect: 1s", "timeouts.connect"),
        ("timeouts:\n  idle: 1s", "timeouts.idle"),
        ("retryBudget:\n  percent: 1", "retryBudget.percent"),
        ("circuitBreaker:\n  window: 1s", "circuitBreaker.window"),
        ("loadBalancing:\n  algorithm: leastRequest", "loadBalancing.algorithm"),
        ("connectionPool:\n  maxPending: 1", "connectionPool.maxPending"),
        ("limits:\n  maxInFlight: 1", "limits.maxInFlight"),
    ] {
        let words = format!("spec.{key}: not for a route");
        refused("TrafficPolicy", &[(&route(text), 3, &words)]);
    }
    for (text, key) in [
        ("limits:\n  rate: {requestsPerSecond: 1}", "limits.rate"),
        ("limits:\n  maxQueued: 1", "limits.maxQueued"),
        ("retryBudget:\n  serverPercent: 1", "retryBudget.serverPercent"),
    ] {
        let words = format!("spec.{key}: kept by the service's own sidecars");
        refused("TrafficPolicy", &[(&consumer(text), 3, &words)]);
    }
}

#[test]
fn the_meshs_defaults_are_a_policy_without_targets() {
    let mesh = |defaults: &str| {
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec:\n  defaults: {defaults}\n"
        )
    };
    let found = parse(&mesh("{retries: {attempts: 1}, timeouts: {request: 5s}}")).unwrap().remove(0);
    assert_eq!(Resource::from_json(&found.to_json()).unwrap(), found);
    for (defaults, words) in [
        ("{retries: {attempts: 11}}", "spec.defaults.retries.attempts: 11 is out of range; use 0 to 10"),
        ("{targetRefs: [{kind: Service, name: a}]}", "spec.defaults.targetRefs"),
        ("{timeouts: {request: 1s, perTry: 2s}}", "spec.defaults.timeouts.perTry"),
    ] {
        let error = parse(&mesh(defaults)).unwrap_err();
        assert!(error.message.contains(words), "{error}");
        assert_eq!(error.place, "mesh.yaml:5", "{error}");
    }
    for (json, words) in [
        (r#"{"retries": {"attempts": 11}}"#, "defaults.retries.attempts: 11 is out of range; use 0 to 10"),
        (r#"{"retry": {}}"#, "unknown field `retry`"),
        ("nothing", "expected mapping"),
    ] {
        let error = defaults_from_json(json).unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
}
