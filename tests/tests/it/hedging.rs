//! Hedging: a slow replica makes no request slow, within the budget, and only where that is safe.

use std::time::Duration;

use http::Method;
use outrigger_tests::app::{App, ok};
use outrigger_tests::client::request;
use outrigger_tests::mesh::{Mesh, Sidecar};

use crate::shop::{ORDERS, policy};

/// One replica that never answers beside one that does, and nothing but hedging against it.
struct Pair {
    front: Sidecar,
    stuck: App,
    well: App,
    _replicas: [Sidecar; 2],
    mesh: Mesh,
}

impl Pair {
    async fn open() -> Self {
        let mesh = Mesh::start().await;
        let stuck = App::with("stuck", |_| std::future::pending()).await;
        let well = App::start("well").await;
        let replicas = [
            mesh.replica("orders-1", "orders", &stuck).await,
            mesh.replica("orders-2", "orders", &well).await,
        ];
        let front = mesh.caller("front", &[ORDERS]).await;
        front.knows_healthy(ORDERS, 2).await;
        Self { front, stuck, well, _replicas: replicas, mesh }
    }

    async fn govern(&self, spec: &str) {
        self.balance("roundRobin", spec).await;
    }

    async fn balance(&self, algorithm: &str, spec: &str) {
        let spec = format!(
            "{spec}
             timeouts: {{request: 1s}}
             retries: {{attempts: 0}}
             loadBalancing: {{algorithm: {algorithm}, slowStart: 0s}}
             circuitBreaker: {{consecutiveFailures: 1000, successRate: 0}}"
        );
        self.front.caught_up(self.mesh.apply(&policy("orders", &spec)).await).await;
    }

    async fn hedges(&self, outcome: &str) -> f64 {
        self.front.metrics().await.sum("mesh_hedges_total", &[("outcome", outcome)])
    }
}

#[tokio::test]
async fn a_stuck_replica_makes_no_safe_request_slow() {
    let pair = Pair::open().await;
    pair.govern("hedging: {quantile: 90, minDelay: 20ms}\nretryBudget: {minPerSecond: 1000}").await;
    let client = pair.front.client();
    for _ in 0..20 {
        let answer = client.get(ORDERS, "/").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "well"), "{}", answer.reason());
    }
    let won = pair.hedges("won").await;
    assert!(won >= 1.0 && pair.stuck.requests() >= 1, "{won}");
    // Every request has one first attempt, and each of those that got stuck a second one.
    assert_eq!(pair.stuck.requests() + pair.well.requests(), 20 + (won + pair.hedges("lost").await) as usize);

    // Nothing that may change something, keyed or not, and nothing with a body.
    let before = (pair.hedges("won").await, pair.hedges("lost").await);
    let mut stuck = 0;
    for (method, headers, body) in [
        (Method::POST, vec![], ""),
        (Method::POST, vec![("idempotency-key", "k")], ""),
        (Method::DELETE, vec![], ""),
        (Method::GET, vec![], "body"),
    ] {
        let attempts = pair.stuck.requests() + pair.well.requests();
        let answer = client.send(request(method, ORDERS, "/", &headers, body)).await.unwrap();
        assert_eq!(pair.stuck.requests() + pair.well.requests(), attempts + 1);
        stuck += usize::from(answer.reason() == "deadline_exceeded");
    }
    assert!(stuck >= 1, "some met the stuck one");
    assert_eq!((pair.hedges("won").await, pair.hedges("lost").await), before);
}

#[tokio::test]
async fn a_replica_whose_requests_are_given_up_is_slow_even_if_it_never_answered() {
    let pair = Pair::open().await;
    pair.balance("peakEwma", "hedging: {quantile: 90, minDelay: 20ms}\nretryBudget: {minPerSecond: 1000}")
        .await;
    for _ in 0..40 {
        assert_eq!(pair.front.client().get(ORDERS, "/").await.unwrap().text(), "well");
    }
    // Not the fastest for want of answers.
    let stuck = pair.stuck.requests();
    assert!(stuck <= 20, "{stuck} of 40 requests went to the one that is stuck");
}

#[tokio::test]
async fn hedges_come_out_of_the_retry_budget_and_can_be_switched_off() {
    let pair = Pair::open().await;
    let client = pair.front.client();
    pair.govern("hedging: {quantile: 90, minDelay: 20ms}\nretryBudget: {percent: 0, minPerSecond: 0}").await;
    let mut stuck = 0;
    for _ in 0..4 {
        stuck += usize::from(client.get(ORDERS, "/").await.unwrap().reason() == "deadline_exceeded");
    }
    assert!(stuck >= 1);
    assert_eq!(pair.hedges("budget_exhausted").await, stuck as f64);
    assert_eq!(pair.hedges("won").await + pair.hedges("lost").await, 0.0);
    pair.govern("hedging: {enabled: false}\nretryBudget: {minPerSecond: 1000}").await;
    for _ in 0..2 {
        stuck += usize::from(client.get(ORDERS, "/").await.unwrap().reason() == "deadline_exceeded");
    }
    assert_eq!(stuck, pair.stuck.requests());
    assert_eq!(pair.front.metrics().await.sum("mesh_hedges_total", &[("outcome", "won")]), 0.0);
}

#[tokio::test]
async fn a_pair_that_failed_was_two_attempts() {
    let mesh = Mesh::start().await;
    let failing = |name: &'static str| {
        App::with(name, |_| async {
            tokio::time::sleep(Duration::from_millis(300)).await; // For the second to go out beside it.
            let mut response = ok("no");
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            Ok(response)
        })
    };
    let apps = [failing("one").await, failing("two").await, failing("three").await];
    let mut replicas = Vec::new();
    for (n, app) in (1..).zip(&apps) {
        replicas.push(mesh.replica(&format!("orders-{n}"), "orders", app).await);
    }
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 3).await;
    let spec = "hedging: {minDelay: 1ms}
                retries: {attempts: 2, statuses: [503], backoffBase: 1ms}
                retryBudget: {minPerSecond: 1000}
                circuitBreaker: {consecutiveFailures: 1000, successRate: 0}";
    front.caught_up(mesh.apply(&policy("orders", spec)).await).await;
    assert_eq!(front.client().get(ORDERS, "/").await.unwrap().status, 503);
    assert_eq!(apps.iter().map(App::requests).sum::<usize>(), 3, "one and two retries");
    let lost = front.metrics().await.sum("mesh_hedges_total", &[("outcome", "lost")]);
    assert_eq!(lost, 1.0, "of them a pair");
}
