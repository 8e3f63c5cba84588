//! Processes die without warning, under load.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use outrigger_tests::app::{App, streamed};
use outrigger_tests::client::{Broken, read, request};
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::soon;
use serde_json::json;

use crate::shop::{ORDERS, Shop, repeatable, unkeyed};

/// Kills something in a shop of three replicas under load, and judges: nothing that may be repeated
/// fails, nothing that may not is executed twice.
async fn survives(what: &str, kill: impl AsyncFnOnce(&mut Shop)) {
    let mut shop = Shop::with(3, &json!({"lease_ttl": "2s"}), &json!({})).await;
    let client = shop.front.client();
    let load = Load::start(&client, 150.0, repeatable);
    let posts = Load::start(&client, 30.0, unkeyed);
    load.more(150).await;
    kill(&mut shop).await;
    load.more(450).await;
    let (report, posts) = (load.stop().await, posts.stop().await);
    let cut = report.cut();
    report.assert_clean_but_for_cuts(what);
    println!(
        "{what}: {cut} responses cut after their head; {} of {} posts without a key failed",
        posts.failures.len(),
        posts.sent
    );
    let twice: Vec<_> = (0..posts.sent).filter(|n| shop.executions(&format!("u{n}")) > 1).collect();
    assert!(twice.is_empty(), "executed twice: {twice:?}");
    // The survivors took the load; how they share it is the balancer's affair.
    assert!(shop.apps[1..].iter().all(|app| app.requests() > 10), "{:?}", report.answered_by);
    let metrics = shop.front.metrics().await;
    println!(
        "{what}: {} retries, {} ejections",
        metrics.sum("mesh_retries_total", &[("outcome", "sent")]),
        metrics.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")])
    );
}

#[tokio::test]
async fn a_killed_replica_costs_no_request() {
    survives("sidecar and application killed", async |shop| {
        shop.replicas[0].process.kill();
        shop.apps[0].die().await;
        shop.front.knows(ORDERS, &["orders-2", "orders-3"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_killed_sidecar_costs_no_request() {
    survives("sidecar killed", async |shop| {
        shop.replicas[0].process.kill();
        shop.front.knows(ORDERS, &["orders-2", "orders-3"]).await;
    })
    .await;
}

#[tokio::test]
async fn a_killed_application_costs_no_request() {
    survives("application killed", async |shop| {
        shop.apps[0].die().await;
        // The sidecar stays registered and says that its application is away.
        shop.front.knows_healthy(ORDERS, 2).await;
        assert_eq!(shop.front.workloads(ORDERS).await.len(), 3);
    })
    .await;
}

#[tokio::test]
async fn a_response_cut_after_its_head_is_an_error_never_a_complete_response() {
    let mesh = Mesh::start().await;
    for (length, http2) in [(Some("1000"), false), (None, false), (Some("1000"), true), (None, true)] {
        let (chunks, body) = streamed();
        let body = std::sync::Mutex::new(Some(body));
        let app = App::with("app", move |_| {
            let body = body.lock().unwrap().take();
            async move {
                let mut response = Response::new(body.ok_or_else(|| std::io::Error::other("asked twice"))?);
                if let Some(length) = length {
                    response.headers_mut().insert("content-length", length.parse().unwrap());
                }
                Ok(response)
            }
        })
        .await;
        let mut replica = mesh.replica("orders-1", "orders", &app).await;
        let front = mesh.caller("front", &[ORDERS]).await;
        front.knows_healthy(ORDERS, 1).await;
        let client = if http2 { front.client_http2() } else { front.client() };
        let mut response = client.head(request(Method::GET, ORDERS, "/", &[], "")).await.unwrap();
        assert_eq!(response.status(), 200);
        chunks.send(Ok(Frame::data(Bytes::from_static(b"part")))).await.unwrap();
        let first = soon("the first chunk", response.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "part");
        replica.process.kill();
        let rest = soon("the body ends", read(response)).await;
        assert!(matches!(rest, Err(Broken::Body { got: 0, .. })), "{length:?} {http2}: {rest:?}");
        assert_eq!(app.requests(), 1, "a response under way is never asked for again");
        drop(front);
    }
}

#[tokio::test]
async fn an_unanswered_request_without_a_key_fails_once_the_application_may_have_seen_it() {
    let shop = Shop::open(2).await;
    let client = shop.front.client();
    let slow = request(Method::POST, ORDERS, "/", &[("x-app-delay-ms", "30000"), ("x-id", "slow")], "once");
    let mut shop = shop;
    let kill = async {
        outrigger_tests::wait::until("the request is with an application", || async {
            shop.executions("slow") == 1
        })
        .await;
        let holder = shop.apps.iter().position(|app| app.requests() == 1).unwrap();
        shop.replicas[holder].process.kill();
    };
    let (answer, ()) = tokio::join!(client.send(slow), kill);
    let answer = answer.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (502, "upstream_reset"));
    assert_eq!(shop.executions("slow"), 1);
    // The same with a key goes to the other replica, quickly.
    let metrics = shop.front.metrics().await;
    assert_eq!(metrics.sum("mesh_retries_total", &[("reason", "reset"), ("outcome", "not_replayable")]), 1.0);
    assert_eq!(metrics.sum("mesh_retries_total", &[("outcome", "sent")]), 0.0);
    let begun = std::time::Instant::now();
    assert_eq!(client.get(ORDERS, "/").await.unwrap().status, 200);
    assert!(begun.elapsed() < Duration::from_secs(5));
}
