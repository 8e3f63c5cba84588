//! What a request carries from hop to hop through applications that know no mesh: its deadline, and
//! whether it is a retry. And what a server's sidecar does with retries.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, Method};
use outrigger_tests::app::{App, full, ok};
use outrigger_tests::client::{Client, request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::until;
use tokio::sync::watch;

use crate::shop::ORDERS;

const ITEMS: &str = "items.shop";
const GRPC: [(&str, &str); 2] = [("content-type", "application/grpc"), ("te", "trailers")];

fn policy(name: &str, service: &str, spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec: {{targetRefs: [{{kind: Service, name: {service}}}], {spec}}}\n---\n"
    )
}

/// front calls orders, whose application calls items for each request: with the trace context it got,
/// if `traced`, and whether the call is gRPC as its own request says. It answers what items answered.
struct Chain {
    front: Sidecar,
    orders: Sidecar,
    items: Sidecar,
    middle: App,
    last: App,
    mesh: Mesh,
}

impl Chain {
    async fn start(policies: &str, traced: bool, last: App) -> Self {
        let mesh = Mesh::start().await;
        mesh.apply(policies).await;
        let items = mesh.replica("items-1", "items", &last).await;
        let (beside, own): (_, watch::Receiver<Option<Client>>) = watch::channel(None);
        let middle = App::with("middle", move |request| {
            let client = own.borrow().clone().expect("it is told before the first request");
            async move { Ok(call_items(&client, request.headers(), traced).await) }
        })
        .await;
        let orders = mesh.sidecar("orders-1").serves("orders", &middle).calls(&[ITEMS]).start().await;
        orders.knows_healthy(ITEMS, 1).await;
        beside.send_replace(Some(orders.client_http2()));
        let front = mesh.caller("front", &[ORDERS]).await;
        front.knows_healthy(ORDERS, 1).await;
        Self { front, orders, items, middle, last, mesh }
    }

    /// How the calls of the application in the middle were found to belong to its requests.
    async fn inherited(&self, result: &str) -> f64 {
        self.orders.metrics().await.sum("mesh_deadline_inheritance_total", &[("result", result)])
    }
}

async fn call_items(
    client: &Client,
    request: &HeaderMap,
    traced: bool,
) -> http::Response<outrigger_tests::app::Body> {
    let text = |name: &str| request.get(name).map(|value| value.to_str().unwrap());
    let mut headers: Vec<_> =
        text("traceparent").filter(|_| traced).map(|it| ("traceparent", it)).into_iter().collect();
    headers.push(("idempotency-key", "a-key"));
    if text("x-last") == Some("grpc") || text("content-type") == Some(GRPC[0].1) {
        headers.extend(GRPC);
    }
    let call = self::request(Method::POST, ITEMS, "/shop.Items/List", &headers, "");
    let answer = client.send(call).await.unwrap();
    let mut response = ok(answer.body.clone());
    *response.status_mut() = answer.status;
    for name in ["grpc-status", "content-type"] {
        if let Some(value) = answer.headers.get(name) {
            response.headers_mut().insert(http::HeaderName::from_static(name), value.clone());
        }
    }
    response.headers_mut().insert("x-items-said", answer.reason().parse().unwrap());
    response
}

/// An application that answers calls of gRPC with success, in the head.
async fn grpc_app(name: &str) -> App {
    App::with(name, |_| async {
        let mut response = http::Response::new(full(""));
        response.headers_mut().insert("content-type", GRPC[0].1.parse().unwrap());
        response.headers_mut().insert("grpc-status", "0".parse().unwrap());
        Ok(response)
    })
    .await
}

/// An application that never answers.
async fn hanging_app(name: &str) -> App {
    App::with(name, |_| std::future::pending()).await
}

/// What `grpc-timeout` said to an application.
fn left(app: &App) -> Option<Duration> {
    let (_, headers) = app.heads().pop().expect("a request came");
    let value = headers.get("grpc-timeout")?.to_str().unwrap().to_owned();
    let (number, unit) = value.split_at(value.len() - 1);
    let unit = match unit {
        "n" => Duration::from_nanos(1),
        "u" => Duration::from_micros(1),
        "m" => Duration::from_millis(1),
        "S" => Duration::from_secs(1),
        other => panic!("{other}"),
    };
    Some(unit * number.parse::<u32>().unwrap())
}

#[tokio::test]
async fn a_deadline_shrinks_from_hop_to_hop_through_applications_that_pass_on_the_trace() {
    let chain = Chain::start("", true, grpc_app("last").await).await;
    // The client's own, in gRPC.
    let mut headers = GRPC.to_vec();
    headers.push(("grpc-timeout", "20S"));
    let call = request(Method::POST, ORDERS, "/shop.Orders/List", &headers, "");
    let answer = chain.front.client_http2().send(call).await.unwrap();
    assert_eq!(answer.header("grpc-status"), "0", "{answer:?}");
    let (first, second) = (left(&chain.middle).unwrap(), left(&chain.last).unwrap());
    println!("20 s, then {first:?}, then {second:?}");
    assert!(second < first && first < Duration::from_secs(20), "{first:?}, {second:?}");
    assert_eq!(chain.inherited("exact").await, 1.0);
    // A policy's, in HTTP: what is left of it is seen where it is gRPC again.
    let revision = chain.mesh.apply(&policy("slow", "orders", "timeouts: {request: 15s}")).await;
    chain.front.caught_up(revision).await;
    let answer =
        chain.front.client().send(request(Method::GET, ORDERS, "/", &[("x-last", "grpc")], "")).await;
    assert_eq!(answer.unwrap().status, 200);
    assert!(left(&chain.middle).is_none(), "no header of gRPC's in HTTP");
    assert!(left(&chain.last).unwrap() < Duration::from_secs(15));
    // The earlier of two: the one that orders has for its own calls.
    let revision = chain.mesh.apply(&policy("items", "items", "timeouts: {request: 2s}")).await;
    chain.orders.caught_up(revision).await;
    chain.front.client().send(request(Method::GET, ORDERS, "/", &[("x-last", "grpc")], "")).await.unwrap();
    assert!(left(&chain.last).unwrap() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_passed_deadline_ends_the_work_of_every_hop() {
    let policies = policy("orders", "orders", "timeouts: {request: 400ms}");
    let chain = Chain::start(&policies, true, hanging_app("last").await).await;
    let answer = chain.front.client().get(ORDERS, "/").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (504, "deadline_exceeded"));
    assert_eq!((chain.middle.requests(), chain.last.requests()), (1, 1));
    for sidecar in [&chain.orders, &chain.items] {
        until("nothing is left in flight", || async {
            sidecar.metrics().await.sum("mesh_requests_in_flight", &[]) == 0.0
        })
        .await;
    }
    // Orders' sidecar knew, without a timeout of its own towards items, and long before its usual limit.
    let metrics = chain.orders.metrics().await;
    let ended = |reason| {
        let labels = [("direction", "outbound"), ("destination", ITEMS), ("reason", reason)];
        metrics.sum("mesh_requests_total", &labels)
    };
    // Whichever was first: its own clock, or the application that went away with the request.
    assert_eq!(
        ended("deadline_exceeded") + ended("client_closed") + ended("request_timeout"),
        1.0,
        "{}",
        metrics.text()
    );
    assert_eq!(ended("request_timeout"), 0.0);
    assert_eq!(chain.inherited("exact").await, 1.0);
}

#[tokio::test]
async fn an_application_that_drops_the_trace_passes_on_nothing_and_a_metric_says_so() {
    let policies = policy("orders", "orders", "timeouts: {request: 15s}");
    let chain = Chain::start(&policies, false, grpc_app("last").await).await;
    let answer =
        chain.front.client().send(request(Method::GET, ORDERS, "/", &[("x-last", "grpc")], "")).await;
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(left(&chain.last), None);
    assert_eq!((chain.inherited("no_context").await, chain.inherited("exact").await), (1.0, 0.0));
}

/// Only one layer of a chain retries: what is called under a retry is not repeated, unless it never
/// arrived.
#[tokio::test]
async fn calls_made_under_a_retry_are_not_repeated() {
    let failed = Arc::new(Mutex::new(0));
    let counter = failed.clone();
    let last = App::with("last", move |_| {
        *counter.lock().unwrap() += 1;
        async {
            let mut response = ok("broken");
            *response.status_mut() = http::StatusCode::SERVICE_UNAVAILABLE;
            Ok(response)
        }
    })
    .await;
    let retries =
        "retries: {attempts: 2, statuses: [503], backoffBase: 1ms}, retryBudget: {minPerSecond: 100}";
    let policies = policy("orders", "orders", retries) + &policy("items", "items", retries);
    let chain = Chain::start(&policies, true, last).await;
    let answer = chain.front.client().get(ORDERS, "/").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, ""));
    assert_eq!(chain.middle.requests(), 3, "the first layer repeats");
    assert_eq!(*failed.lock().unwrap(), 3 + 1 + 1, "the second one only under the first attempt");
}

#[tokio::test]
async fn a_server_refuses_retries_above_their_share_whoever_sends_them() {
    let mesh = Mesh::start().await;
    let retries = |share: u32| {
        let budget = format!("{{percent: 100, minPerSecond: 0, serverPercent: {share}}}");
        policy(
            "orders",
            "orders",
            &format!("retries: {{attempts: 1, statuses: [503], backoffBase: 1ms}}, retryBudget: {budget}"),
        )
    };
    mesh.apply(&retries(25)).await;
    let app = App::start("app").await;
    let replica = mesh.replica("orders-1", "orders", &app).await;
    let mut callers = Vec::new();
    for id in ["front-1", "front-2", "front-3"] {
        let caller = mesh.caller(id, &[ORDERS]).await;
        caller.knows_healthy(ORDERS, 1).await;
        callers.push(caller);
    }
    let (mut own, mut refused) = (0, 0u32);
    for n in 0..45 {
        let failing = request(Method::GET, ORDERS, "/", &[("x-app-status", "503")], "");
        let answer = callers[n % 3].client().send(failing).await.unwrap();
        match (answer.status.as_u16(), answer.reason()) {
            (503, "") => own += 1,
            (503, "retry_refused") => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    let retries_let_in = app.requests() - 45;
    println!("of 45 retries {retries_let_in} were let in and {refused} refused");
    assert_eq!((own, own + refused as usize), (retries_let_in, 45), "a refusal ends the request");
    // A quarter of what is let in, 45 first attempts and the retries, as each retry found it.
    assert!((1..=15).contains(&retries_let_in), "{retries_let_in}");
    let labels = [("direction", "inbound"), ("reason", "retry_refused")];
    assert_eq!(replica.metrics().await.sum("mesh_requests_shed_total", &labels), f64::from(refused));
    // Each of the callers was within its own budget: together they were too many.
    for caller in &callers {
        let exhausted = [("outcome", "budget_exhausted")];
        assert_eq!(caller.metrics().await.sum("mesh_retries_total", &exhausted), 0.0);
    }
    // No share at all: what the client's application says of attempts and deadlines is not believed.
    replica.caught_up(mesh.apply(&retries(0)).await).await;
    let claims = [("x-mesh-attempt", "2"), ("x-mesh-timeout-ms", "0"), ("x_mesh_attempt", "3")];
    for client in [callers[0].client(), callers[0].client_http2()] {
        let answer = client.send(request(Method::GET, ORDERS, "/", &claims, "")).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason()), (200, ""), "{}", answer.text());
    }
    let failing = request(Method::GET, ORDERS, "/", &[("x-app-status", "503")], "");
    let answer = callers[0].client().send(failing).await.unwrap();
    assert_eq!(answer.reason(), "retry_refused");
}
