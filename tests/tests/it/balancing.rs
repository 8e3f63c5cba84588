//! Which replica a request goes to: algorithms, weights, zones; and which it does not go to, because
//! the breaker has set it aside.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{Method, StatusCode};
use outrigger_tests::app::{App, ok};
use outrigger_tests::client::{Client, request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::until;
use rustix::process::Signal;
use serde_json::json;

use crate::shop::{ORDERS, Shop, policy};

async fn counts(client: &Client, requests: usize) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        *counts.entry(client.get(ORDERS, "/").await.unwrap().text()).or_default() += 1;
    }
    counts
}

#[tokio::test]
async fn round_robin_is_even() {
    let shop = Shop::open(3).await;
    shop.govern("loadBalancing: {algorithm: roundRobin, slowStart: 0s}").await;
    let counts = counts(&shop.front.client(), 90).await;
    assert!(counts.len() == 3 && counts.values().all(|count| (29..=31).contains(count)), "{counts:?}");
}

/// Who answers each of 40 users, asked twice.
async fn places(shop: &Shop, header: &str, value: impl Fn(usize) -> String) -> Vec<String> {
    let client = shop.front.client();
    let mut places = Vec::new();
    for user in 0..40 {
        let value = value(user);
        let ask = || request(Method::GET, ORDERS, "/", &[(header, &value)], "");
        let place = client.send(ask()).await.unwrap().text();
        assert_eq!(client.send(ask()).await.unwrap().text(), place, "{value} stays where it was");
        places.push(place);
    }
    places
}

#[tokio::test]
async fn a_hashed_key_stays_at_its_replica_while_others_leave() {
    for (spec, header, moved) in [
        ("algorithm: ringHash, hash: {header: x-user}", "x-user", 0),
        // Its table is filled anew: few of the others change places.
        ("algorithm: maglev, hash: {cookie: session}", "cookie", 10),
    ] {
        let mut shop = Shop::open(3).await;
        shop.govern(&format!("loadBalancing: {{{spec}}}")).await;
        let value = |user| match header {
            "cookie" => format!("a=b; session=s{user}; c={user}"),
            _ => format!("u{user}"),
        };
        let before = places(&shop, header, value).await;
        for app in ["app-1", "app-2", "app-3"] {
            assert!(before.iter().any(|place| place == app), "{spec}: all replicas have users: {before:?}");
        }
        shop.replicas[2].process.signal(Signal::TERM);
        shop.replicas[2].process.end().await;
        shop.front.knows(ORDERS, &["orders-1", "orders-2"]).await;
        let after = places(&shop, header, value).await;
        let left = before.iter().zip(&after).filter(|(before, _)| *before != "app-3");
        let changed = left.filter(|(before, after)| before != after).count();
        assert!(changed <= moved, "{spec}: {changed} users of replicas that stayed were moved");
    }
}

#[tokio::test]
async fn shares_follow_the_weights() {
    let mesh = Mesh::start().await;
    let (light, heavy) = (App::start("light").await, App::start("heavy").await);
    let weighing = |weight| json!({"workload": {"weight": weight}});
    let replica = |id, app, weight| mesh.sidecar(id).serves("orders", app).config(&weighing(weight)).start();
    let _replicas = [replica("orders-1", &light, 100).await, replica("orders-2", &heavy, 300).await];
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 2).await;
    // Latencies differ by chance, and clear differences go before weights: beside the time that the
    // applications take they are none.
    for (algorithm, delay) in [("roundRobin", "0"), ("leastRequest", "0"), ("peakEwma", "20")] {
        let spec = format!("loadBalancing: {{algorithm: {algorithm}, slowStart: 0s}}");
        front.caught_up(mesh.apply(&policy("orders", &spec)).await).await;
        let client = front.client();
        light.forget();
        for _ in 0..120 {
            let get = request(Method::GET, ORDERS, "/", &[("x-app-delay-ms", delay)], "");
            assert_eq!(client.send(get).await.unwrap().status, 200);
        }
        // A quarter is 30, at random with a deviation of 5.
        let count = light.requests();
        println!("{algorithm}: {count} of 120");
        assert!((8..=52).contains(&count), "{algorithm}: {count} of 120 at a quarter of the weight");
    }
}

/// Two replicas in zone `a`, where the caller is, and two in `b`; applications answer their zone.
struct Zones {
    front: Sidecar,
    replicas: Vec<Sidecar>,
    _apps: Vec<App>,
    mesh: Mesh,
}

impl Zones {
    async fn open() -> Self {
        let mesh = Mesh::start().await;
        let (mut replicas, mut apps) = (Vec::new(), Vec::new());
        let zoned = |zone: &str| json!({"workload": {"zone": zone}});
        for (n, zone) in ["a", "a", "b", "b"].into_iter().enumerate() {
            let app = App::start(zone).await;
            let builder = mesh.sidecar(&format!("orders-{n}")).serves("orders", &app);
            replicas.push(builder.config(&zoned(zone)).start().await);
            apps.push(app);
        }
        let front = mesh.sidecar("front").calls(&[ORDERS]).config(&zoned("a")).start().await;
        front.knows_healthy(ORDERS, 4).await;
        Self { front, replicas, _apps: apps, mesh }
    }

    async fn balance(&self, spec: &str) -> BTreeMap<String, usize> {
        let spec = format!("loadBalancing: {{slowStart: 0s, {spec}}}");
        self.front.caught_up(self.mesh.apply(&policy("orders", &spec)).await).await;
        counts(&self.front.client(), 60).await
    }
}

#[tokio::test]
async fn requests_stay_in_their_zone_until_it_is_short() {
    let mut zones = Zones::open().await;
    assert_eq!(zones.balance("algorithm: roundRobin").await["a"], 60, "by default");
    let anywhere = zones.balance("zone: {prefer: false}").await;
    assert!(anywhere["b"] >= 10, "{anywhere:?}");
    // A policy of one replica in two: nothing spills while both are there.
    assert_eq!(zones.balance("zone: {minUsable: 50}").await["a"], 60);
    // Half of the zone is dead, which the breaker finds out.
    zones.replicas[0].process.kill();
    let client = zones.front.client();
    until("the dead one is set aside", async || {
        client.get(ORDERS, "/").await.unwrap();
        zones.front.metrics().await.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]) >= 1.0
    })
    .await;
    let short = zones.balance("zone: {minUsable: 100}").await;
    assert!(short.contains_key("a") && short.get("b").is_some_and(|count| *count >= 5), "{short:?}");
    // All of it.
    zones.replicas[1].process.kill();
    until("the other zone carries everything", async || {
        client.get(ORDERS, "/").await.is_ok_and(|answer| answer.text() == "b")
            && zones.front.metrics().await.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")])
                >= 2.0
    })
    .await;
    assert_eq!(counts(&client, 20).await, BTreeMap::from([("b".to_owned(), 20)]));
}

/// Three replicas that answer 503 while told to.
struct Failing {
    front: Sidecar,
    failing: Vec<Arc<AtomicBool>>,
    apps: Vec<App>,
    _replicas: Vec<Sidecar>,
    _mesh: Mesh,
}

impl Failing {
    async fn open(spec: &str) -> Self {
        let mesh = Mesh::start().await;
        let (mut failing, mut apps, mut replicas) = (Vec::new(), Vec::new(), Vec::new());
        for n in 1..=3 {
            let fails = Arc::new(AtomicBool::new(false));
            let told = fails.clone();
            let app = App::with(&format!("app-{n}"), move |_| {
                let mut response = ok(format!("app-{n}"));
                if told.load(Ordering::SeqCst) {
                    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
                }
                async { Ok(response) }
            })
            .await;
            // Health checks of the application's port go on succeeding: only its answers tell.
            replicas.push(mesh.replica(&format!("orders-{n}"), "orders", &app).await);
            failing.push(fails);
            apps.push(app);
        }
        let front = mesh.caller("front", &[ORDERS]).await;
        front.knows_healthy(ORDERS, 3).await;
        front.caught_up(mesh.apply(&policy("orders", spec)).await).await;
        Self { front, failing, apps, _replicas: replicas, _mesh: mesh }
    }

    async fn breakers(&self) -> BTreeMap<String, String> {
        let endpoints = self.front.endpoints(ORDERS).await.into_iter();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        endpoints.map(|endpoint| (text(&endpoint["workload"]), text(&endpoint["breaker"]))).collect()
    }

    async fn transitions(&self, to: &str) -> f64 {
        self.front.metrics().await.sum("mesh_circuit_breaker_transitions_total", &[("to", to)])
    }
}

const BREAKER: &str =
    "circuitBreaker: {consecutiveFailures: 3, successRate: 0, ejectionBase: 200ms, ejectionMax: 1s}
                       loadBalancing: {algorithm: roundRobin, slowStart: 0s}";

#[tokio::test]
async fn a_replica_that_fails_is_set_aside_and_taken_back_when_it_is_well() {
    let mesh = Failing::open(BREAKER).await;
    let client = mesh.front.client();
    mesh.failing[0].store(true, Ordering::SeqCst);
    until("it is ejected", async || {
        client.get(ORDERS, "/").await.unwrap();
        mesh.breakers().await["orders-1"] == "open"
    })
    .await;
    assert!(mesh.apps[0].requests() >= 3);
    // While it fails, it meets a probe now and then, and nothing else.
    let tried = mesh.apps[0].requests();
    let probes = mesh.transitions("half_open").await;
    let mut failed = 0;
    for _ in 0..60 {
        failed += usize::from(client.get(ORDERS, "/").await.unwrap().status == 503);
    }
    let probes = mesh.transitions("half_open").await - probes;
    assert_eq!(mesh.apps[0].requests() - tried, failed);
    assert!(failed as f64 <= probes + 1.0 && failed < 20, "{failed} requests failed with {probes} probes");
    mesh.failing[0].store(false, Ordering::SeqCst);
    until("it is taken back", async || {
        client.get(ORDERS, "/").await.unwrap();
        mesh.breakers().await["orders-1"] == "closed"
    })
    .await;
    assert!(mesh.transitions("open").await >= 1.0);
    assert!(mesh.transitions("half_open").await >= 1.0);
    assert!(mesh.transitions("closed").await >= 1.0);
    let counts = counts(&client, 30).await;
    assert!(counts["app-1"] >= 8, "{counts:?}");
}

#[tokio::test]
async fn the_breaker_never_causes_an_outage() {
    let mesh = Failing::open(BREAKER).await;
    let client = mesh.front.client();
    mesh.failing.iter().for_each(|fails| fails.store(true, Ordering::SeqCst));
    let before: usize = mesh.apps.iter().map(App::requests).sum();
    for n in 0..120 {
        let answer = client.get(ORDERS, "/").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason()), (503, ""), "the application's own answer");
        if n % 4 == 0 {
            let out = mesh.breakers().await.into_values().filter(|breaker| breaker != "closed").count();
            assert!(out <= 2, "{out} of 3 are out");
        }
    }
    let after: usize = mesh.apps.iter().map(App::requests).sum();
    assert_eq!(after - before, 120, "every request reached an application");
    assert!(mesh.transitions("open").await >= 2.0);
    mesh.failing.iter().for_each(|fails| fails.store(false, Ordering::SeqCst));
    assert_eq!(client.get(ORDERS, "/").await.unwrap().status, 200, "at once: nobody was shut out");
}
