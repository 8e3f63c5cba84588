//! Who may call: `AuthorizationPolicy`, decided at the sidecar of the service, also for connections and
//! responses that were there before it.

use bytes::Bytes;
use http::{Method, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use outrigger_tests::app::{App, Chunks, streamed};
use outrigger_tests::client::{Broken, Client, read, request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::{soon, until};

use crate::overload::{Gate, Under, at_replica};
use crate::shop::{ORDERS, Shop};

/// A policy of the shop; `spec` is YAML in braces.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec: {spec}\n---\n"
    )
}

/// Denies an identity of the shop the service orders.
fn deny(account: &str) -> String {
    let who = format!("spiffe://mesh.local/ns/shop/sa/{account}");
    policy(
        "denied",
        &format!(
            "{{targetRefs: [{{kind: Service, name: orders}}], action: Deny, rules: [{{identities: [\"{who}\"]}}]}}"
        ),
    )
}

/// The service orders with the ports 80 and 81, and callers of three identities
/// in two namespaces. Dropped in this order.
struct Ports {
    callers: Vec<Sidecar>,
    replica: Sidecar,
    _app: App,
    mesh: Mesh,
}

/// Callers and ports of [`Ports::allowed`].
const PLACES: [(&str, u16); 6] =
    [("front", 80), ("front", 81), ("batch", 80), ("batch", 81), ("guest", 80), ("guest", 81)];

impl Ports {
    async fn open() -> Self {
        let mesh = Mesh::start().await;
        let app = App::start("app").await;
        let replica = mesh.sidecar("orders-1").serves_at("orders", 80, "http", app.address).serves_at(
            "orders",
            81,
            "http",
            app.address,
        );
        let replica = replica.start().await;
        let mut callers = Vec::new();
        for (id, namespace) in [("front", "shop"), ("batch", "shop"), ("guest", "guests")] {
            let caller = mesh.sidecar(id).namespace(namespace).calls(&[ORDERS]).start().await;
            caller.knows_healthy(ORDERS, 2).await;
            callers.push(caller);
        }
        Self { callers, replica, _app: app, mesh }
    }

    /// Puts policies in force, and asks everybody at each of [`PLACES`]: who may call, as digits.
    async fn allowed(&self, policies: &str) -> String {
        let revision = self.mesh.apply(policies).await;
        self.replica.caught_up(revision).await;
        let mut allowed = String::new();
        for (id, port) in PLACES {
            let caller = self.callers.iter().find(|caller| caller.id == id).unwrap();
            // The same connections all the time, as those of a real application.
            let answer = caller.client().get(&format!("{ORDERS}:{port}"), "/").await.unwrap();
            match (answer.status.as_u16(), answer.reason()) {
                (200, "") => allowed.push('1'),
                (403, "denied") => {
                    let text = answer.text();
                    assert!(text.contains(&format!("/sa/{id} may not call orders.shop")), "{text}");
                    allowed.push('0');
                }
                other => panic!("{id} at {port}: {other:?} {}", answer.text()),
            }
        }
        allowed
    }
}

#[tokio::test]
async fn policies_decide_by_identity_namespace_and_port() {
    let ports = Ports::open().await;
    let orders = "targetRefs: [{kind: Service, name: orders}]";
    let front = "identities: [\"spiffe://mesh.local/ns/shop/sa/front\"]";
    for (first, second, expected, why) in [
        ("action: Deny".to_owned(), String::new(), "111111", "without rules nothing matches"),
        (format!("{orders}, rules: [{{{front}}}]"), String::new(), "110000", "an identity"),
        (format!("{orders}, rules: [{{namespaces: [guests]}}]"), String::new(), "000011", "a namespace"),
        (
            format!("{orders}, rules: [{{identities: [\"spiffe://mesh.local/ns/shop/*\"], ports: [81]}}]"),
            String::new(),
            "010100",
            "a prefix on a port by number, which closes the other port",
        ),
        (
            format!("{orders}, action: Deny, rules: [{{namespaces: [shop], ports: [80]}}]"),
            String::new(),
            "010111",
            "deny leaves the rest open",
        ),
        (
            "rules: [{}]".to_owned(),
            format!("{orders}, action: Deny, rules: [{{{front}}}]"),
            "001111",
            "deny beats an allow for everybody, of the whole namespace",
        ),
        (orders.to_owned(), String::new(), "000000", "allow without rules allows nobody"),
        ("rules: [{namespaces: [shop]}]".to_owned(), String::new(), "111100", "for the whole namespace"),
    ] {
        let second = if second.is_empty() { "action: Deny" } else { &second };
        let policies = policy("first", &format!("{{{first}}}")) + &policy("second", &format!("{{{second}}}"));
        assert_eq!(ports.allowed(&policies).await, expected, "{why}: {first}; {second}");
    }
    // A policy of another namespace says nothing here.
    let foreign =
        policy("foreign", "{action: Deny, rules: [{}]}").replace("namespace: shop", "namespace: guests");
    ports.mesh.apply(&foreign).await;
    assert_eq!(ports.allowed(&policy("first", "{action: Deny}")).await, "111111");
}

#[tokio::test]
async fn a_denied_call_is_not_made_again_anywhere() {
    let shop = Shop::open(2).await;
    let retries = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: eager, namespace: \
                   shop}\nspec: {targetRefs: [{kind: Service, name: orders}], retries: {attempts: 5, statuses: \
                   [403], grpcCodes: [PERMISSION_DENIED]}}\n---\n";
    let revision = shop.mesh.apply(&format!("{retries}{}", deny("front"))).await;
    shop.front.caught_up(revision).await;
    for replica in &shop.replicas {
        replica.caught_up(revision).await;
    }
    let answer = shop.front.client().get(ORDERS, "/").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (403, "denied"));
    let call =
        request(Method::POST, ORDERS, "/shop.Orders/List", &[("content-type", "application/grpc")], "");
    let answer = shop.front.client_http2().send(call).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status"), answer.reason()), (200, "7", "denied"));
    assert!(answer.header("grpc-message").contains("may not call orders.shop"), "{:?}", answer.headers);
    assert!(answer.body.is_empty() && answer.trailers.is_none(), "trailers-only: {answer:?}");
    let mut denied = 0.0;
    for replica in &shop.replicas {
        let labels = [("direction", "inbound"), ("source", "front.shop"), ("reason", "denied")];
        denied += replica.metrics().await.sum("mesh_requests_total", &labels);
    }
    assert_eq!(denied, 2.0, "each call came once");
    assert_eq!(shop.front.metrics().await.sum("mesh_retries_total", &[]), 0.0);
    assert_eq!(shop.apps.iter().map(App::requests).sum::<usize>(), 0);
}

/// A response of an application that goes on until it is told to end.
struct Endless {
    response: Response<Incoming>,
    chunks: Chunks,
}

impl Endless {
    async fn begin(client: &Client, begun: &mut tokio::sync::mpsc::Receiver<Chunks>) -> Self {
        let response = client.head(request(Method::GET, ORDERS, "/", &[], "")).await.unwrap();
        assert_eq!(response.status(), 200);
        let mut endless = Self { response, chunks: begun.recv().await.unwrap() };
        endless.moves().await;
        endless
    }

    async fn moves(&mut self) {
        self.chunks.send(Ok(Frame::data(Bytes::from_static(b"more")))).await.unwrap();
        let frame = soon("the chunk arrives", self.response.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "more");
    }
}

#[tokio::test]
async fn a_new_policy_ends_the_responses_under_way_of_whom_it_denies_and_nobody_elses() {
    let mesh = Mesh::start().await;
    let (bodies, mut begun) = tokio::sync::mpsc::channel(1);
    let app = App::with("app", move |_| {
        let bodies = bodies.clone();
        async move {
            let (chunks, body) = streamed();
            bodies.send(chunks).await.unwrap();
            Ok(Response::new(body))
        }
    })
    .await;
    let replica = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    let other = mesh.caller("other", &[ORDERS]).await;
    for caller in [&front, &other] {
        caller.knows_healthy(ORDERS, 1).await;
    }
    let clients = [front.client(), front.client_http2()];
    let mut denied = Vec::new();
    for client in &clients {
        denied.push(Endless::begin(client, &mut begun).await);
    }
    let mut kept = Endless::begin(&other.client(), &mut begun).await;
    // A policy that denies neither ends nothing.
    replica.caught_up(mesh.apply(&deny("nobody")).await).await;
    for endless in &mut denied {
        endless.moves().await;
    }
    replica.caught_up(mesh.apply(&deny("front")).await).await;
    for Endless { response, chunks } in denied {
        let end = soon("the response of a denied caller ends", read(response)).await;
        assert!(matches!(end, Err(Broken::Body { .. })), "never a complete response: {end:?}");
        soon("the application is told", chunks.closed()).await;
    }
    for client in clients {
        let answer = client.get(ORDERS, "/").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason()), (403, "denied"));
    }
    kept.moves().await;
    drop(kept.chunks);
    assert!(soon("the end", read(kept.response)).await.is_ok());
    assert_eq!(app.requests(), 3, "nothing of the denied came to the application again");
    until("nothing is left in flight", || async {
        replica.metrics().await.sum("mesh_requests_in_flight", &[]) == 0.0
    })
    .await;
    // Allowed again, over the connection on which it was told that it is not.
    replica.caught_up(mesh.apply(&deny("nobody")).await).await;
    let again = front.client();
    Endless::begin(&again, &mut begun).await;
}

#[tokio::test]
async fn what_a_denied_caller_has_waiting_is_not_begun_and_what_was_begun_not_repeated() {
    let mesh = Mesh::start().await;
    let limits = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: one, namespace: \
                  shop}\nspec: {targetRefs: [{kind: Service, name: orders}], limits: {maxInFlight: 1, maxWait: \
                  60s}}\n---\n";
    mesh.apply(limits).await;
    let gate = Gate::start("app").await;
    let replica = mesh.replica("orders-1", "orders", &gate.app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    let other = mesh.caller("other", &[ORDERS]).await;
    for caller in [&front, &other] {
        caller.knows_healthy(ORDERS, 1).await;
    }
    let (mut begun, mut waiting, mut safe) = (Under::way(), Under::way(), Under::way());
    begun.post(&front.client(), "begun");
    gate.holds(1).await;
    waiting.post(&front.client(), "waiting");
    safe.send(&front.client(), request(Method::GET, ORDERS, "/", &[("x-id", "safe")], ""));
    at_replica(&replica, 3).await;
    let mut others = Under::way();
    others.post(&other.client(), "other");
    at_replica(&replica, 4).await;
    replica.caught_up(mesh.apply(&deny("front")).await).await;
    for under in [&mut begun, &mut waiting] {
        let answer = under.next().await;
        assert_eq!((answer.status.as_u16(), answer.reason()), (502, "upstream_reset"), "{}", answer.text());
    }
    let answer = safe.next().await;
    assert_eq!((answer.status.as_u16(), answer.reason()), (403, "denied"), "it may be repeated, and was");
    // The place in the application is free again, for whom may still call.
    gate.holds(2).await;
    gate.open(2);
    assert_eq!(others.next().await.text(), "app");
    assert_eq!(gate.ids(), ["begun", "other"]);
}
