//! What is sent again, what is not, and what the metrics say of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONNECTION;
use http::{HeaderValue, Method};
use http_body::Frame;
use http_body_util::BodyExt;
use outrigger_tests::app::{App, ok, streamed};
use outrigger_tests::client::{request, stream_request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::metrics::Metrics;
use outrigger_tests::wait::{soon, until};
use rustix::process::Signal;
use serde_json::json;

use crate::shop::{ORDERS, Shop};

/// What two applications agree on: the first to get a request of an id breaks the connection, the
/// other answers.
#[derive(Clone, Default)]
struct BreakFirst(Arc<Mutex<HashMap<String, Vec<Vec<u8>>>>>);

impl BreakFirst {
    /// Bodies of all the deliveries of a request, complete or not.
    fn deliveries(&self, id: &str) -> Vec<Vec<u8>> {
        self.0.lock().unwrap().get(id).cloned().unwrap_or_default()
    }

    async fn app(&self, name: &str) -> App {
        let state = self.clone();
        App::with(name, move |request| {
            let state = state.clone();
            async move {
                let id = request.headers()["x-id"].to_str().unwrap().to_owned();
                let body = request.into_body().collect().await.map(|body| body.to_bytes().to_vec());
                let mut deliveries = state.0.lock().unwrap();
                let of_id = deliveries.entry(id).or_default();
                of_id.push(body.unwrap_or_default());
                if of_id.len() == 1 {
                    return Err(std::io::Error::other("broken off"));
                }
                // A connection kept from here and broken next would be for the sidecar beside it to repeat.
                let mut second = ok("second");
                second.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                Ok(second)
            }
        })
        .await
    }
}

struct Pair {
    front: Sidecar,
    _replicas: Vec<Sidecar>,
    _apps: Vec<App>,
    _mesh: Mesh,
}

/// Two replicas that break the first delivery of everything, spoken to in one protocol.
async fn pair(state: &BreakFirst, protocol: &str) -> Pair {
    let mesh = Mesh::start().await;
    let (mut replicas, mut apps) = (Vec::new(), Vec::new());
    for n in 1..=2 {
        let app = state.app("app").await;
        let builder = mesh.sidecar(&format!("orders-{n}"));
        replicas.push(builder.serves_at("orders", 80, protocol, app.address).start().await);
        apps.push(app);
    }
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 2).await;
    Pair { front, _replicas: replicas, _apps: apps, _mesh: mesh }
}

fn retries(metrics: &Metrics, reason: &str, outcome: &str) -> f64 {
    metrics.sum("mesh_retries_total", &[("reason", reason), ("outcome", outcome)])
}

fn all_retries(metrics: &Metrics) -> f64 {
    metrics.sum("mesh_retries_total", &[])
}

#[tokio::test]
async fn what_the_application_broke_off_is_repeated_only_where_that_is_safe() {
    for protocol in ["http1", "http2"] {
        let state = BreakFirst::default();
        let pair = pair(&state, protocol).await;
        let client = pair.front.client();
        // The bound of what is kept is 64 KiB.
        let fits = "x".repeat(64 << 10);
        let large = "y".repeat((64 << 10) + 1);
        let cases = [
            (Method::POST, "unkeyed", None, "body", 1),
            (Method::PATCH, "patch", None, "body", 1),
            (Method::POST, "keyed", Some("k"), "body", 2),
            (Method::GET, "get", None, "", 2),
            (Method::PUT, "put", None, "body", 2),
            (Method::POST, "fits", Some("k"), fits.as_str(), 2),
            (Method::POST, "large", Some("k"), large.as_str(), 1),
        ];
        let (mut sent, mut kept_back) = (0.0, 0.0);
        for (method, id, key, body, deliveries) in cases {
            // Ejected endpoints come back, so that there is always another one to go to.
            let mut headers = vec![("x-id", id)];
            headers.extend(key.map(|key| ("idempotency-key", key)));
            let answer = client.send(request(method, ORDERS, "/", &headers, body.to_owned())).await.unwrap();
            let got = state.deliveries(id);
            assert_eq!(got.len(), deliveries, "{protocol} {id}: {} {}", answer.status, answer.reason());
            if deliveries == 2 {
                assert_eq!(
                    (answer.status.as_u16(), answer.text().as_str()),
                    (200, "second"),
                    "{protocol} {id}"
                );
                assert!(got.iter().all(|delivery| delivery == body.as_bytes()), "{id}: byte for byte");
                sent += 1.0;
            } else {
                assert_eq!((answer.status.as_u16(), answer.reason()), (502, "app_reset"), "{protocol} {id}");
                kept_back += 1.0;
            }
            let metrics = pair.front.metrics().await;
            assert_eq!(retries(&metrics, "app_reset", "sent"), sent, "{protocol} {id}");
            assert_eq!(retries(&metrics, "app_reset", "not_replayable"), kept_back, "{protocol} {id}");
            assert_eq!(all_retries(&metrics), sent + kept_back, "{protocol} {id}");
        }
        let metrics = pair.front.metrics().await;
        let requests = [("direction", "outbound"), ("destination", "orders.shop")];
        assert_eq!(metrics.sum("mesh_requests_total", &requests), 7.0, "a request counts once");
    }
}

#[tokio::test]
async fn a_refused_connection_is_tried_elsewhere_whatever_the_request() {
    let mut shop = Shop::open(2).await;
    let client = shop.front.client();
    shop.replicas[0].process.kill();
    let large = "z".repeat(1 << 20);
    let mut requests = 0.0;
    // Both are picked equally often: ten tries meet the dead one.
    for n in 0..20 {
        let (id, body) = (format!("u{n}"), if n % 2 == 0 { "small" } else { large.as_str() });
        let post = request(Method::POST, ORDERS, "/", &[("x-id", &id)], body.to_owned());
        let answer = client.send(post).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "app-2"), "{}", answer.text());
        requests += 1.0;
        assert_eq!(shop.executions(&id), 1);
    }
    assert!(shop.apps[1].seen().iter().all(|seen| seen.body.len() == 5 || seen.body.len() == 1 << 20));
    let metrics = shop.front.metrics().await;
    let open = metrics.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]);
    assert_eq!(retries(&metrics, "undelivered", "sent"), all_retries(&metrics), "nothing else was repeated");
    // Each ejection begins with one failed attempt; while it lasts the dead one is not picked.
    assert_eq!(all_retries(&metrics), open);
    assert_eq!(open, 1.0, "within a second");
    assert_eq!(metrics.sum("mesh_requests_total", &[("direction", "outbound")]), requests);
}

#[tokio::test]
async fn an_application_that_refuses_connections_is_passed_by_for_any_request() {
    // Health checks are rare here: the sidecar must not rely on them.
    let mut shop = Shop::with(2, &json!({}), &json!({"health": {"interval": "1m"}})).await;
    let client = shop.front.client();
    shop.apps[0].die().await;
    for n in 0..20 {
        let id = format!("u{n}");
        let answer = client.send(request(Method::POST, ORDERS, "/", &[("x-id", &id)], "body")).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "app-2"), "{}", answer.text());
        assert_eq!(shop.executions(&id), 1);
    }
    let metrics = shop.front.metrics().await;
    assert!(retries(&metrics, "undelivered", "sent") >= 1.0);
    assert_eq!(retries(&metrics, "undelivered", "sent"), all_retries(&metrics));
    // With nowhere else to go the refusal is the answer, and says why.
    shop.replicas[1].process.signal(Signal::TERM);
    shop.replicas[1].process.end().await;
    shop.front.knows(ORDERS, &["orders-1"]).await;
    let answer = client.post(ORDERS, "/", "body").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "app_unreachable"), "{}", answer.text());
    assert!(shop.apps[0].seen().is_empty());
}

#[tokio::test]
async fn an_ejected_endpoint_rests_for_a_second_while_there_is_another() {
    let mut shop = Shop::open(2).await;
    let client = shop.front.client();
    let address = shop.replicas[0].mesh;
    shop.replicas[0].process.kill();
    let ejected = || async {
        let metrics = shop.front.metrics().await;
        metrics.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]) >= 1.0
    };
    until("the dead endpoint is ejected", || async {
        client.get(ORDERS, "/").await.unwrap();
        ejected().await
    })
    .await;
    let begun = Instant::now();
    assert_eq!(shop.front.metrics().await.value("mesh_circuit_breaker_open"), 1.0);
    // Whoever connects to it from now on is noticed.
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let calls = async {
        loop {
            assert_eq!(client.get(ORDERS, "/").await.unwrap().text(), "app-2");
        }
    };
    let probed = tokio::select! {
        accepted = soon("the endpoint is probed", listener.accept()) => accepted.map(drop),
        () = calls => unreachable!("calls never end"),
    };
    probed.unwrap();
    println!("an endpoint was ejected for {:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_millis(900), "picked while ejected: {:?}", begun.elapsed());
    // Once there is no other, it is tried again.
    shop.replicas[1].process.kill();
    let (answer, tried) = tokio::join!(
        client.get(ORDERS, "/"),
        soon("it is tried again", async { listener.accept().await.map(drop) })
    );
    tried.unwrap();
    assert_eq!(answer.unwrap().status.as_u16(), 503);
}

#[tokio::test]
async fn an_upload_under_way_is_not_repeated_but_one_not_begun_is() {
    let mut shop = Shop::open(2).await;
    let client = shop.front.client();
    // More than is kept, half of it sent, then the connection breaks.
    let (chunks, body) = streamed();
    let upload = stream_request(Method::PUT, ORDERS, "/", &[("x-id", "half")], body);
    let feed = async {
        for _ in 0..8 {
            chunks.send(Ok(Frame::data(Bytes::from(vec![7; 16 << 10])))).await.unwrap();
        }
        until("an application has it", || async { shop.apps.iter().any(|app| app.requests() == 1) }).await;
        let holder = shop.apps.iter().position(|app| app.requests() == 1).unwrap();
        shop.replicas[holder].process.kill();
        chunks.closed().await;
        holder
    };
    let (answer, holder) = tokio::join!(client.send(upload), feed);
    let answer = answer.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (502, "upstream_reset"), "{}", answer.text());
    assert_eq!(shop.apps[1 - holder].requests(), 0);
    let metrics = shop.front.metrics().await;
    assert_eq!(retries(&metrics, "reset", "not_replayable"), 1.0);
    assert_eq!(all_retries(&metrics), 1.0);
}
