//! Replicas come, fall silent and come back.

use std::time::{Duration, Instant};

use http::Method;
use outrigger_tests::app::App;
use outrigger_tests::client::request;
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::until;
use rustix::process::Signal;
use serde_json::json;

#[tokio::test]
async fn a_new_replica_gets_requests_and_none_fails_meanwhile() {
    let mesh = Mesh::start().await;
    let (one, two) = (App::start("one").await, App::start("two").await);
    let _first = mesh.replica("orders-1", "orders", &one).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    let load = Load::start(&front.client(), 200.0, |n| {
        request(Method::GET, "orders.shop", &format!("/{n}"), &[], "")
    });
    load.more(100).await;
    assert_eq!(two.requests(), 0);
    let begun = Instant::now();
    let _second = mesh.replica("orders-2", "orders", &two).await;
    load.answered_by("two", 1).await;
    println!("from start of the new replica to its first request: {:?}", begun.elapsed());
    load.answered_by("two", 10).await;
    let report = load.stop().await;
    report.assert_clean("a new replica");
    assert!(report.answered_by["one"] > 100, "the old one still serves: {report:?}");
    let metrics = front.metrics().await;
    assert_eq!(
        metrics
            .sum("mesh_requests_total", &[("direction", "outbound"), ("status", "200"), ("tls", "mutual")]),
        report.sent as f64
    );
    assert_eq!(metrics.sum("mesh_retries_total", &[]), 0.0);
}

#[tokio::test]
async fn a_sidecar_that_falls_silent_is_gone_within_its_lease_and_back_afterwards() {
    let ttl = Duration::from_secs(2);
    let mesh = Mesh::with(&json!({"lease_ttl": "2s"}), &[]).await;
    let (one, two) = (App::start("one").await, App::start("two").await);
    let first = mesh.replica("orders-1", "orders", &one).await;
    let _second = mesh.replica("orders-2", "orders", &two).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    front.knows("orders.shop", &["orders-1", "orders-2"]).await;
    let begun = Instant::now();
    first.process.signal(Signal::STOP);
    front.knows("orders.shop", &["orders-2"]).await;
    let gone = begun.elapsed();
    // A lease is renewed at a third of its time, so between two thirds and all of it is left.
    println!("a stopped sidecar was gone after {gone:?} (lease {ttl:?})");
    assert!(gone <= ttl + Duration::from_millis(500), "{gone:?}");
    assert_eq!(mesh.metrics().await.value("mesh_registry_leases_expired_total"), 1.0);
    first.process.signal(Signal::CONT);
    let begun = Instant::now();
    front.knows("orders.shop", &["orders-1", "orders-2"]).await;
    println!("it was back after {:?}", begun.elapsed());
    let client = front.client();
    until("it serves again", || async {
        client.get("orders.shop", "/").await.is_ok_and(|answer| answer.text() == "one")
    })
    .await;
    assert!(first.process.log().contains("the lease is gone; registering again"));
}
