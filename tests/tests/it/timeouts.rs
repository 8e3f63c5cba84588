//! Deadlines of requests and of single attempts, and which layer of a chain of calls repeats.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, OnceLock};

use http::{HeaderMap, Method};
use outrigger_tests::app::{App, ok, streamed};
use outrigger_tests::client::{Broken, Client, request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::until;
use rustix::process::Signal;

use crate::shop::{ORDERS, Shop, grpc, policy};

const PAYMENTS: &str = "payments.shop";
/// Longer than any test waits.
const NEVER: (&str, &str) = ("x-app-delay-ms", "60000");

#[tokio::test]
async fn the_deadline_of_a_request_ends_it_with_its_reason() {
    let shop = Shop::open(1).await;
    shop.govern("timeouts: {request: 300ms}").await;
    let client = shop.front.client();
    let answer = client.send(request(Method::GET, ORDERS, "/", &[NEVER], "")).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (504, "deadline_exceeded"));
    let answer = shop.front.client_http2().send(grpc("/a.B/C", &[NEVER])).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "4"), "DEADLINE_EXCEEDED");
    assert!(answer.body.is_empty() && answer.trailers.is_none());
    // What the application of gRPC has left is less than the policy's.
    let left = shop.apps[0].heads()[1].1["grpc-timeout"].to_str().unwrap().to_owned();
    let (number, unit) = left.split_at(left.len() - 1);
    let millis = number.parse::<u64>().unwrap() / if unit == "u" { 1000 } else { 1 };
    assert!(["m", "u"].contains(&unit) && millis <= 300, "{left}");
    // A client may have less time than the policy gives, and none at all: then nothing is begun.
    shop.apps[0].forget();
    let answer = shop.front.client_http2().send(grpc("/a.B/C", &[("grpc-timeout", "0m")])).await.unwrap();
    assert_eq!((answer.header("grpc-status"), answer.reason()), ("4", "deadline_exceeded"));
    assert_eq!(shop.apps[0].requests(), 0);
    shop.govern("timeouts: {request: 20s}").await;
    assert_eq!(client.get(ORDERS, "/").await.unwrap().text(), "app-1");
    // A client that has no timer of its own is told as well.
    let wants = [NEVER, ("grpc-timeout", "300m")];
    let answer = shop.front.client_http2().send(grpc("/a.B/C", &wants)).await.unwrap();
    assert_eq!((answer.header("grpc-status"), answer.reason()), ("4", "deadline_exceeded"));
}

#[tokio::test]
async fn the_deadline_holds_to_the_last_byte_of_the_response() {
    let mesh = Mesh::start().await;
    let open = Arc::new(Mutex::new(Vec::new()));
    let kept = open.clone();
    let app = App::with("app", move |_| {
        let (chunks, body) = streamed();
        kept.lock().unwrap().push(chunks);
        async { Ok(http::Response::new(body)) }
    })
    .await;
    let _replica = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    front.caught_up(mesh.apply(&policy("orders", "timeouts: {request: 300ms}")).await).await;
    let broken = front.client().get(ORDERS, "/").await.unwrap_err();
    assert!(matches!(broken, Broken::Body { .. }), "a head, and never a complete response: {broken:?}");
    assert_eq!(open.lock().unwrap().len(), 1);
    let cut = async || {
        let labels = [("direction", "outbound"), ("reason", "deadline_exceeded")];
        front.metrics().await.sum("mesh_requests_total", &labels) == 1.0
    };
    until("it is counted with its reason", cut).await;
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_goes_to_another_replica_if_it_may() {
    let mesh = Mesh::start().await;
    let frozen = App::with("frozen", |_| std::future::pending()).await;
    let well = App::start("well").await;
    let _replicas =
        [mesh.replica("orders-1", "orders", &frozen).await, mesh.replica("orders-2", "orders", &well).await];
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 2).await;
    let spec = "timeouts: {request: 20s, perTry: 250ms}
                retries: {attempts: 1, backoffBase: 1ms}
                loadBalancing: {algorithm: roundRobin, slowStart: 0s}
                retryBudget: {minPerSecond: 1000}
                circuitBreaker: {consecutiveFailures: 1000, successRate: 0}";
    front.caught_up(mesh.apply(&policy("orders", spec)).await).await;
    let client = front.client();
    for _ in 0..6 {
        assert_eq!(client.get(ORDERS, "/").await.unwrap().text(), "well");
    }
    let late = frozen.requests();
    assert!(late >= 1, "the frozen one was tried");
    let retries = async |outcome| {
        let labels = [("reason", "try_timeout"), ("outcome", outcome)];
        front.metrics().await.sum("mesh_retries_total", &labels)
    };
    assert_eq!(retries("sent").await, late as f64);
    // The application may have acted: only what may be repeated is.
    let mut refused = 0;
    for n in 0..4 {
        let before = frozen.requests() + well.requests();
        let answer = client.post(ORDERS, "/", &n.to_string()).await.unwrap();
        assert_eq!(frozen.requests() + well.requests(), before + 1, "one attempt");
        if answer.status != 200 {
            assert_eq!((answer.status.as_u16(), answer.reason()), (504, "try_timeout"));
            refused += 1;
        }
    }
    assert!(refused >= 1);
    assert_eq!(retries("not_replayable").await, f64::from(refused));
}

/// `front` calls `orders`, whose application calls `payments` through its own sidecar. Headers of the
/// request say how:
///
/// | Header | Effect |
/// |---|---|
/// | `x-forward` | the call carries the `traceparent` of the request |
/// | `x-second` | the first request of an `x-id` is answered 503, and makes no call |
/// | `x-fail` | `payments` answers 503 |
struct Chain {
    front: Sidecar,
    orders: Sidecar,
    payments: Vec<Sidecar>,
    seen: Arc<Mutex<Vec<HeaderMap>>>,
    app: App,
    _payments_apps: Vec<App>,
    mesh: Mesh,
}

impl Chain {
    async fn open(payments: usize) -> Self {
        let mesh = Mesh::start().await;
        let (seen, mut apps, mut sidecars) = (Arc::new(Mutex::new(Vec::new())), Vec::new(), Vec::new());
        for n in 1..=payments {
            let seen = seen.clone();
            let app = App::with("payments", move |request| {
                seen.lock().unwrap().push(request.headers().clone());
                let mut response = ok("paid");
                if request.headers().contains_key("x-fail") {
                    *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
                }
                async { Ok(response) }
            })
            .await;
            sidecars.push(mesh.replica(&format!("payments-{n}"), "payments", &app).await);
            apps.push(app);
        }
        let outbound = Arc::new(OnceLock::new());
        let known = outbound.clone();
        let ids = Mutex::new(HashSet::new());
        let app = App::with("orders", move |request| {
            let map = request.headers().clone();
            let first = ids.lock().unwrap().insert(map.get("x-id").cloned());
            call_payments(known.get().copied(), first, map)
        })
        .await;
        let orders = mesh.sidecar("orders-1").serves("orders", &app).calls(&[PAYMENTS]).start().await;
        outbound.set(orders.outbound).unwrap();
        orders.knows_healthy(PAYMENTS, payments).await;
        let front = mesh.caller("front", &[ORDERS]).await;
        front.knows_healthy(ORDERS, 1).await;
        Self { front, orders, payments: sidecars, seen, app, _payments_apps: apps, mesh }
    }

    async fn inherited(&self, result: &str) -> f64 {
        self.orders.metrics().await.sum("mesh_deadline_inheritance_total", &[("result", result)])
    }

    fn payments_seen(&self) -> Vec<HeaderMap> {
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}

/// What the application of `orders` does with a request.
async fn call_payments(
    outbound: Option<SocketAddr>,
    first_of_id: bool,
    map: HeaderMap,
) -> outrigger_tests::app::Reply {
    if first_of_id && map.contains_key("x-second") {
        let mut response = ok("not yet");
        *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
        return Ok(response);
    }
    let copy = |name: &'static str| map.get(name).and_then(|value| Some((name, value.to_str().ok()?)));
    let forwarded = map.contains_key("x-forward").then_some("traceparent");
    let headers: Vec<_> = forwarded.into_iter().chain(["x-fail"]).filter_map(copy).collect();
    let outbound = outbound.expect("the sidecar runs before the first request");
    let answer = Client::http1(outbound).send(request(Method::GET, PAYMENTS, "/", &headers, "")).await;
    let answer = answer.map_err(|broken| std::io::Error::other(format!("{broken:?}")))?;
    Ok(ok(format!("{} {}", answer.status.as_u16(), answer.text())))
}

#[tokio::test]
async fn only_one_layer_of_a_chain_retries() {
    let mut chain = Chain::open(2).await;
    let spec = "retries: {attempts: 1, statuses: [503], backoffBase: 1ms, backoffMax: 2ms}
                retryBudget: {minPerSecond: 1000}
                circuitBreaker: {consecutiveFailures: 1000, successRate: 0}
                loadBalancing: {algorithm: roundRobin, slowStart: 0s}";
    chain.front.caught_up(chain.mesh.apply(&policy("orders", spec)).await).await;
    chain.orders.caught_up(chain.mesh.apply(&policy("payments", spec)).await).await;
    let client = chain.front.client();
    let retries = async |sidecar: &Sidecar, reason, outcome| {
        sidecar.metrics().await.sum("mesh_retries_total", &[("reason", reason), ("outcome", outcome)])
    };
    let (fail, forward, second) = (("x-fail", "1"), ("x-forward", "1"), ("x-second", "1"));
    // Under a first attempt a call may be repeated; under a second one it is not; where the application
    // drops the trace nobody knows.
    for (id, headers, calls) in [
        ("first", vec![fail, forward], 2),
        ("second", vec![fail, forward, second], 1),
        ("dropped", vec![fail, second], 2),
    ] {
        let headers = [headers, vec![("x-id", id)]].concat();
        let answer = client.send(request(Method::GET, ORDERS, "/", &headers, "")).await.unwrap();
        assert_eq!(answer.text(), "503 paid", "{id}");
        assert_eq!(chain.payments_seen().len(), calls, "{id}");
    }
    assert_eq!(retries(&chain.front, "status", "sent").await, 2.0);
    assert_eq!(retries(&chain.orders, "status", "sent").await, 2.0);
    assert_eq!(retries(&chain.orders, "status", "not_replayable").await, 1.0);
    assert_eq!(chain.inherited("no_context").await, 1.0, "a call counts once");

    // What never arrived is repeated all the same.
    chain.payments[0].process.signal(Signal::KILL);
    chain.payments[0].process.end().await;
    let heads = chain.app.requests();
    for n in 0..4 {
        let headers = [forward, second, ("x-id", &format!("undelivered-{n}"))];
        let answer = client.send(request(Method::GET, ORDERS, "/", &headers, "")).await.unwrap();
        assert_eq!(answer.text(), "200 paid");
    }
    assert_eq!(chain.app.requests(), heads + 8);
    // Either its connection was found broken, or the next one was refused.
    assert!(retries(&chain.orders, "undelivered", "sent").await >= 1.0);
}
