//! A replica leaves in order: nobody notices.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use http::Method;
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::{App, ok};
use outrigger_tests::client::{Client, request};
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::{soon, until};
use rustix::process::Signal;
use serde_json::json;

use crate::shop::{ORDERS, Shop, repeatable, unkeyed};

async fn drains(what: &str, ask: impl AsyncFnOnce(&Shop)) {
    let mut shop = Shop::open(3).await;
    let client = shop.front.client();
    let load = Load::start(&client, 150.0, repeatable);
    let posts = Load::start(&client, 50.0, unkeyed);
    load.more(100).await;
    // Enough slow requests that the one that leaves has some in hand.
    let slow: Vec<_> = (0..9)
        .map(|n| {
            let id = format!("slow-{n}");
            let headers = [("x-app-delay-ms", "1500"), ("x-id", id.as_str())];
            let request = request(Method::POST, ORDERS, "/slow", &headers, "slow");
            let client = client.clone();
            Tasks::current().spawn_joinable("slow", async move { client.send(request).await })
        })
        .collect();
    let in_hand = |app: &App| app.heads().iter().filter(|(uri, _)| uri.path() == "/slow").count();
    until("all slow requests are with an application", || async {
        shop.apps.iter().map(in_hand).sum::<usize>() == 9
    })
    .await;
    let leaving = (0..3).max_by_key(|n| in_hand(&shop.apps[*n])).unwrap();
    println!(
        "{what}: {} leaves with {} slow requests in hand",
        shop.replicas[leaving].id,
        in_hand(&shop.apps[leaving])
    );
    shop.replicas.swap(0, leaving);
    shop.apps.swap(0, leaving);
    let others: Vec<_> = shop.replicas[1..].iter().map(|replica| replica.id.as_str()).collect();

    let begun = Instant::now();
    ask(&shop).await;
    shop.front.knows(ORDERS, &others).await;
    println!("{what}: its caller knew after {:?}", begun.elapsed());
    let (status, text) = shop.replicas[0].get("/ready").await;
    assert_eq!(status, 503, "{text}");
    assert!(text.contains("draining"), "{text}");
    let last = shop.apps[0].requests();
    for slow in slow {
        let answer = soon("a slow request ends", slow).await.unwrap().unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    let status = shop.replicas[0].process.end().await;
    println!("{what}: it ended {:?} after it was asked", begun.elapsed());
    assert!(status.success(), "{status}");
    load.more(100).await;
    load.stop().await.assert_clean(what);
    let posts = posts.stop().await;
    posts.assert_clean(&format!("{what}, posts without a key"));
    let wrong: Vec<_> = (0..posts.sent).filter(|n| shop.executions(&format!("u{n}")) != 1).collect();
    assert!(wrong.is_empty(), "not executed exactly once: {wrong:?}");
    // A request may have been on its way when the caller learned of it, no more.
    assert!(shop.apps[0].requests() <= last + 2, "{} then {}", last, shop.apps[0].requests());
    let log = shop.replicas[0].process.log();
    assert!(log.contains("subscribers=1 acknowledged=1"), "{log}");
    let metrics = shop.front.metrics().await;
    assert_eq!(metrics.sum("mesh_circuit_breaker_transitions_total", &[]), 0.0, "nobody was ejected");
}

#[tokio::test]
async fn sigterm_loses_no_request_of_any_kind() {
    drains("SIGTERM", async |shop| shop.replicas[0].process.signal(Signal::TERM)).await;
}

#[tokio::test]
async fn post_drain_does_the_same() {
    drains("POST /drain", async |shop| assert_eq!(shop.replicas[0].post_drain().await, 202)).await;
}

#[tokio::test]
async fn the_deadline_ends_what_does_not_end_itself() {
    let mut shop = Shop::with(1, &json!({}), &json!({"drain": {"deadline": "500ms"}})).await;
    let client = shop.front.client();
    let endless = request(Method::POST, ORDERS, "/", &[("x-app-delay-ms", "20000")], "");
    let waiting = Tasks::current().spawn_joinable("endless", async move { client.send(endless).await });
    until("the application has it", || async { shop.apps[0].requests() == 1 }).await;
    let begun = Instant::now();
    shop.replicas[0].process.signal(Signal::TERM);
    let status = shop.replicas[0].process.end().await;
    println!("a drain with a deadline of 500 ms took {:?}", begun.elapsed());
    assert!(status.success() && begun.elapsed() >= Duration::from_millis(500));
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    let answer = soon("the caller learns of it", waiting).await.unwrap().unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (502, "upstream_reset"));
    assert!(shop.replicas[0].process.log().contains("the deadline ended requests in flight"));
}

#[tokio::test]
async fn a_drain_without_a_registry_still_ends_in_order() {
    let mut shop = Shop::open(1).await;
    shop.mesh.registry.kill();
    let client = shop.front.client();
    let slow = request(Method::POST, ORDERS, "/", &[("x-app-delay-ms", "1000")], "");
    let waiting = Tasks::current().spawn_joinable("slow", async move { client.send(slow).await });
    until("the application has it", || async { shop.apps[0].requests() == 1 }).await;
    let begun = Instant::now();
    shop.replicas[0].process.signal(Signal::TERM);
    assert_eq!(soon("the request ends", waiting).await.unwrap().unwrap().status, 200);
    assert!(shop.replicas[0].process.end().await.success());
    println!("a drain without a registry took {:?}", begun.elapsed());
}

#[tokio::test]
async fn a_replica_that_leaves_can_still_call_others_for_what_it_has_in_hand() {
    let mesh = Mesh::start().await;
    let leaf = App::start("leaf").await;
    let _payments = mesh.replica("payments-1", "payments", &leaf).await;
    let own: Arc<OnceLock<Client>> = Arc::default();
    let (arrived, mut arrivals) = tokio::sync::mpsc::channel(1);
    let (go, gone) = tokio::sync::watch::channel(false);
    let calling = own.clone();
    let app = App::with("app", move |_| {
        let (client, arrived, mut gone) = (calling.get().unwrap().clone(), arrived.clone(), gone.clone());
        async move {
            arrived.send(()).await.unwrap();
            gone.wait_for(|gone| *gone).await.unwrap();
            let answer = client.post("payments.shop", "/", "pay").await;
            Ok(ok(answer.map_or_else(|error| format!("{error:?}"), |answer| answer.text())))
        }
    })
    .await;
    let mut replica = mesh.replica("orders-1", "orders", &app).await;
    assert!(own.set(replica.client()).is_ok());
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let client = front.client();
    let waiting =
        Tasks::current().spawn_joinable("order", async move { client.post(ORDERS, "/", "order").await });
    soon("the application has it", arrivals.recv()).await.unwrap();
    replica.process.signal(Signal::TERM);
    front.knows(ORDERS, &[]).await;
    // It had never called anybody before: the lookup and the connection are made while it drains.
    go.send(true).unwrap();
    let answer = soon("the answer", waiting).await.unwrap().unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "leaf"));
    assert!(replica.process.end().await.success());
    assert_eq!(leaf.requests(), 1);
}
