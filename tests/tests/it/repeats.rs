//! What a policy says to send again, and the budget of it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use outrigger_tests::app::{App, Body, Reply, ok, streamed};
use outrigger_tests::client::request;
use outrigger_tests::mesh::{Mesh, Sidecar};

use crate::shop::{ORDERS, policy};

/// Replicas that answer the first delivery of each `x-id` as the request's headers say, and 200 `again`
/// from then on: whoever gets it.
struct Fickle {
    front: Sidecar,
    deliveries: Deliveries,
    _replicas: Vec<Sidecar>,
    _apps: Vec<App>,
    mesh: Mesh,
}

/// Names of the replicas that got a request, by id.
type Deliveries = Arc<Mutex<HashMap<String, Vec<usize>>>>;

impl Fickle {
    async fn open(count: usize) -> Self {
        let (mesh, deliveries) = (Mesh::start().await, Deliveries::default());
        let (mut replicas, mut apps) = (Vec::new(), Vec::new());
        for n in 0..count {
            let deliveries = deliveries.clone();
            let app = App::with("app", move |request| {
                let map = request.headers().clone();
                let id = map["x-id"].to_str().unwrap().to_owned();
                let first = {
                    let mut deliveries = deliveries.lock().unwrap();
                    let of_id = deliveries.entry(id).or_default();
                    of_id.push(n);
                    of_id.len() == 1 || map.contains_key("x-always")
                };
                async move { if first { refusal(&map).await } else { Ok(ok("again")) } }
            })
            .await;
            replicas.push(mesh.replica(&format!("orders-{n}"), "orders", &app).await);
            apps.push(app);
        }
        let front = mesh.caller("front", &[ORDERS]).await;
        front.knows_healthy(ORDERS, count).await;
        Self { front, deliveries, _replicas: replicas, _apps: apps, mesh }
    }

    async fn govern(&self, spec: &str) {
        self.front.caught_up(self.mesh.apply(&policy("orders", spec)).await).await;
    }

    fn deliveries(&self, id: &str) -> Vec<usize> {
        self.deliveries.lock().unwrap().get(id).cloned().unwrap_or_default()
    }

    fn all(&self) -> usize {
        self.deliveries.lock().unwrap().values().map(Vec::len).sum()
    }

    async fn retries(&self, reason: &str, outcome: &str) -> f64 {
        let labels = [("reason", reason), ("outcome", outcome)];
        self.front.metrics().await.sum("mesh_retries_total", &labels)
    }
}

/// `x-status`, and what else is under `x-set-<header>`; with `x-late` the code of gRPC comes after a
/// message, in trailers.
async fn refusal(map: &HeaderMap) -> Reply {
    let mut response = Response::new(outrigger_tests::app::full(""));
    let set: HeaderMap = map
        .iter()
        .filter_map(|(name, value)| {
            Some((name.as_str().strip_prefix("x-set-")?.parse().ok()?, value.clone()))
        })
        .collect();
    if map.contains_key("x-late") {
        let (chunks, body) = streamed();
        response = Response::new(body);
        outrigger_common::tasks::Tasks::current().spawn("late", async move {
            for frame in [Frame::data(Bytes::from_static(b"\0\0\0\0\0")), Frame::trailers(set)] {
                // The client may be gone.
                let _gone = chunks.send(Ok(frame)).await;
            }
        });
    } else {
        response.headers_mut().extend(set);
    }
    if let Some(status) = map.get("x-status") {
        *response.status_mut() = StatusCode::from_bytes(status.as_bytes()).unwrap();
    }
    if map.contains_key("content-type") {
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    }
    Ok(response)
}

/// Attempts are not stopped by anything but what the test is about.
const LOOSE: &str = "circuitBreaker: {consecutiveFailures: 1000, successRate: 0}
                     loadBalancing: {algorithm: roundRobin, slowStart: 0s}";

fn ask(id: &str, method: Method, headers: &[(&str, &str)], body: &str) -> Request<Body> {
    request(method, ORDERS, "/", &[&[("x-id", id)], headers].concat(), body.to_owned())
}

#[tokio::test]
async fn statuses_of_the_policy_are_asked_for_again_where_that_is_safe() {
    let fickle = Fickle::open(2).await;
    fickle
        .govern(&format!(
            "retries: {{attempts: 2, statuses: [502, 503], backoffBase: 1ms, backoffMax: 50ms, buffer: 8B}}
             retryBudget: {{minPerSecond: 1000}}\n{LOOSE}"
        ))
        .await;
    let client = fickle.front.client();
    let (bad, other, key) = (("x-status", "503"), ("x-status", "500"), ("idempotency-key", "k"));
    let retry_after = |value| ("x-set-retry-after", value);
    let mut expected: HashMap<&str, f64> = HashMap::new();
    for (id, method, headers, body, outcome) in [
        ("get", Method::GET, vec![bad], "", "sent"),
        ("put", Method::PUT, vec![bad], "body", "sent"),
        ("delete", Method::DELETE, vec![bad], "", "sent"),
        ("post", Method::POST, vec![bad], "body", "not_replayable"),
        ("patch", Method::PATCH, vec![bad], "body", "not_replayable"),
        ("keyed", Method::POST, vec![bad, key], "body", "sent"),
        ("fits", Method::POST, vec![bad, key], "12345678", "sent"),
        ("large", Method::POST, vec![bad, key], "123456789", "not_replayable"),
        ("other", Method::GET, vec![other], "", "nothing"),
        ("soon", Method::GET, vec![bad, retry_after("0")], "", "sent"),
        ("later", Method::GET, vec![bad, retry_after("1")], "", "pushback"),
        ("date", Method::GET, vec![bad, retry_after("Tue, 31 Dec 2999 23:59:59 GMT")], "", "pushback"),
    ] {
        let answer = client.send(ask(id, method, &headers, body)).await.unwrap();
        let got = fickle.deliveries(id);
        *expected.entry(outcome).or_default() += 1.0;
        if outcome == "sent" {
            assert_eq!(
                (answer.status.as_u16(), answer.text().as_str(), got.len()),
                (200, "again", 2),
                "{id}"
            );
            assert_ne!(got[0], got[1], "{id}: another replica");
        } else {
            assert_eq!((answer.status.as_str(), got.len()), (headers[0].1, 1), "{id}");
            assert_eq!(answer.reason(), "", "{id}: the application's own answer");
        }
        for counted in ["sent", "not_replayable", "pushback"] {
            let so_far = expected.get(counted).copied().unwrap_or_default();
            assert_eq!(fickle.retries("status", counted).await, so_far, "{id} {counted}");
        }
    }
    // As many attempts as the policy says, the first included.
    client.send(ask("always", Method::GET, &[bad, ("x-always", "1")], "")).await.unwrap();
    assert_eq!(fickle.deliveries("always").len(), 3);
}

#[tokio::test]
async fn codes_of_grpc_are_asked_for_again_before_the_first_message_alone() {
    let fickle = Fickle::open(2).await;
    fickle
        .govern(&format!(
            "retries: {{attempts: 1, grpcCodes: [UNAVAILABLE], backoffBase: 1ms, backoffMax: 50ms}}
             retryBudget: {{minPerSecond: 1000}}\n{LOOSE}"
        ))
        .await;
    let client = fickle.front.client_http2();
    let code = |code| ("x-set-grpc-status", code);
    for (id, headers, deliveries) in [
        ("unavailable", vec![code("14")], 2),
        ("internal", vec![code("13")], 1),
        ("late", vec![code("14"), ("x-late", "1")], 1),
        ("soon", vec![code("14"), ("x-set-grpc-retry-pushback-ms", "5")], 2),
        ("later", vec![code("14"), ("x-set-grpc-retry-pushback-ms", "60000")], 1),
        ("never", vec![code("14"), ("x-set-grpc-retry-pushback-ms", "-1")], 1),
    ] {
        let all = [headers, vec![("content-type", "application/grpc"), ("te", "trailers")]].concat();
        let answer = client.send(ask(id, Method::POST, &all, "")).await.unwrap();
        assert_eq!(fickle.deliveries(id).len(), deliveries, "{id}");
        assert_eq!(answer.text() == "again", deliveries == 2, "{id}");
    }
    assert_eq!(fickle.retries("grpc_status", "pushback").await, 2.0);
    // The same code to who does not speak gRPC is a header like any other.
    client.send(ask("plain", Method::GET, &[code("14")], "")).await.unwrap();
    assert_eq!(fickle.deliveries("plain").len(), 1);
}

#[tokio::test]
async fn when_everything_fails_retries_stay_within_the_budget() {
    let fickle = Fickle::open(3).await;
    fickle
        .govern(&format!(
            "retries: {{attempts: 3, statuses: [503], backoffBase: 1ms, backoffMax: 1ms}}
             retryBudget: {{percent: 10, minPerSecond: 0}}\n{LOOSE}"
        ))
        .await;
    let client = fickle.front.client();
    let always = [("x-status", "503"), ("x-always", "1")];
    for n in 0..200 {
        let answer = client.send(ask(&n.to_string(), Method::GET, &always, "")).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason()), (503, ""));
    }
    let sent = fickle.retries("status", "sent").await;
    assert!((1.0..=20.0).contains(&sent), "{sent} retries of 200 requests");
    assert_eq!(fickle.all(), 200 + sent as usize, "attempts are requests and retries");
    assert!(fickle.retries("status", "budget_exhausted").await >= 180.0);
    // The minimum rate counts whatever the share: 4 a second, over 10 s.
    fickle
        .govern(&format!(
            "retries: {{attempts: 3, statuses: [503], backoffBase: 1ms, backoffMax: 1ms}}
             retryBudget: {{percent: 0, minPerSecond: 4}}\n{LOOSE}"
        ))
        .await;
    for n in 200..240 {
        client.send(ask(&n.to_string(), Method::GET, &always, "")).await.unwrap();
    }
    let more = fickle.retries("status", "sent").await;
    assert!(more > sent, "{more}");
}
