//! Rate limits at the sidecar of the service: of the service, of a rule of its routes, of each caller.

use http::Method;
use outrigger_tests::app::App;
use outrigger_tests::client::{Answer, request};
use outrigger_tests::mesh::{Mesh, Sidecar};

use crate::shop::{ORDERS, Shop};

/// A traffic policy of the shop; `spec` is what is in the braces.
fn policy(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: \
         shop}}\nspec: {{{spec}}}\n---\n"
    )
}

const SERVICE: &str = "targetRefs: [{kind: Service, name: orders}]";
/// No token comes back in the length of a test.
const RARELY: &str = "requestsPerSecond: 0.001";

async fn in_force(shop: &Shop, yaml: &str) {
    let revision = shop.mesh.apply(yaml).await;
    for sidecar in shop.replicas.iter().chain([&shop.front]) {
        sidecar.caught_up(revision).await;
    }
}

/// How many of `requests` are let in; the rest must be refused for the rate.
async fn let_in(caller: &Sidecar, path: &str, requests: usize) -> usize {
    let mut let_in = 0;
    for _ in 0..requests {
        let answer = caller.client().get(ORDERS, path).await.unwrap();
        match answer.status.as_u16() {
            200 => let_in += 1,
            _ => assert_refused(&answer),
        }
    }
    let_in
}

fn assert_refused(answer: &Answer) {
    assert_eq!((answer.status.as_u16(), answer.reason()), (429, "rate_limited"), "{}", answer.text());
    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1, "{:?}", answer.headers);
}

/// Requests that a replica refused for the rate.
async fn refused(replica: &Sidecar) -> f64 {
    let labels = [("direction", "inbound"), ("reason", "rate_limited")];
    let metrics = replica.metrics().await;
    assert_eq!(metrics.sum("mesh_requests_shed_total", &labels), metrics.sum("mesh_requests_total", &labels));
    metrics.sum("mesh_requests_total", &labels)
}

#[tokio::test]
async fn a_service_takes_its_rate_and_refusals_are_not_repeated() {
    let shop = Shop::open(2).await;
    let eager = "retries: {attempts: 5, statuses: [429], grpcCodes: [RESOURCE_EXHAUSTED]}, loadBalancing: \
                 {algorithm: roundRobin, slowStart: 0s}";
    let limits =
        |rate: &str| policy("rate", &format!("{SERVICE}, {eager}, limits: {{rate: {{{rate}, burst: 3}}}}"));
    in_force(&shop, &limits(RARELY)).await;
    assert_eq!(let_in(&shop.front, "/", 10).await, 6, "three at each replica");
    let call = [("content-type", "application/grpc"), ("te", "trailers")];
    let call = request(Method::POST, ORDERS, "/shop.Orders/List", &call, "");
    let answer = shop.front.client_http2().send(call).await.unwrap();
    assert_eq!((answer.header("grpc-status"), answer.reason()), ("8", "rate_limited"), "{answer:?}");
    let refused = [refused(&shop.replicas[0]).await, refused(&shop.replicas[1]).await];
    assert_eq!(refused[0] + refused[1], 5.0, "each refusal is of a request of its own: {refused:?}");
    assert_eq!(shop.front.metrics().await.sum("mesh_retries_total", &[]), 0.0);
    assert_eq!(shop.apps.iter().map(|app| app.requests()).collect::<Vec<_>>(), [3, 3]);
    // A policy that leaves the rate alone leaves the bucket alone; one that changes it fills no bucket
    // either, and holds nobody to the old rate.
    in_force(&shop, &(limits(RARELY) + &policy("other", &format!("{SERVICE}, timeouts: {{request: 20s}}"))))
        .await;
    assert_eq!(let_in(&shop.front, "/", 2).await, 0);
    in_force(&shop, &limits("requestsPerSecond: 0.002")).await;
    assert_eq!(let_in(&shop.front, "/", 4).await, 0);
    in_force(&shop, &limits("requestsPerSecond: 1000")).await;
    assert!(let_in(&shop.front, "/", 2).await > 0);
}

#[tokio::test]
async fn a_rule_has_a_rate_of_its_own() {
    let shop = Shop::open(1).await;
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: orders, namespace: \
                 shop}\nspec: {parentRefs: [{kind: Service, name: orders}], rules: [{name: dear, matches: [{path: \
                 {type: PathPrefix, value: /dear}}]}, {name: cheap}]}\n---\n";
    let dear = "targetRefs: [{kind: HTTPRoute, name: orders, sectionName: dear}]";
    let rate = |burst: u32| format!("limits: {{rate: {{{RARELY}, burst: {burst}}}}}");
    let policies =
        [policy("dear", &format!("{dear}, {}", rate(2))), policy("all", &format!("{SERVICE}, {}", rate(4)))];
    in_force(&shop, &(route.to_owned() + &policies.concat())).await;
    assert_eq!(let_in(&shop.front, "/dear/thing", 5).await, 2);
    assert_eq!(
        let_in(&shop.front, "/other", 6).await,
        4,
        "what the rule refused or took is not the service's"
    );
    assert_eq!(let_in(&shop.front, "/dear", 1).await, 0);
}

#[tokio::test]
async fn a_port_has_a_rate_by_its_name_or_number() {
    let mesh = Mesh::start().await;
    let rate = |name: &str, port: &str, burst: u32| {
        let target = format!("targetRefs: [{{kind: Service, name: orders, sectionName: \"{port}\"}}]");
        policy(name, &format!("{target}, limits: {{rate: {{{RARELY}, burst: {burst}}}}}"))
    };
    let service = "apiVersion: outrigger.dev/v1alpha1\nkind: Service\nmetadata: {name: orders, namespace: \
                   shop}\nspec: {ports: [{name: web, port: 80}, {name: admin, port: 81}, {port: 82}]}\n---\n";
    mesh.apply(&(service.to_owned() + &rate("named", "admin", 1) + &rate("numbered", "82", 2))).await;
    let app = App::start("app").await;
    let mut replica = mesh.sidecar("orders-1");
    for port in [80, 81, 82] {
        replica = replica.serves_at("orders", port, "http", app.address);
    }
    let _replica = replica.start().await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 3).await;
    let mut let_in = Vec::new();
    for port in [80, 81, 82] {
        let mut answers = Vec::new();
        for _ in 0..4 {
            let answer = front.client().get(&format!("{ORDERS}:{port}"), "/").await.unwrap();
            answers.push(answer.status.as_u16());
        }
        let_in.push(answers.iter().filter(|status| **status == 200).count());
    }
    assert_eq!(let_in, [4, 1, 2]);
}

#[tokio::test]
async fn each_caller_has_its_own_rate() {
    let shop = Shop::open(1).await;
    let other = shop.mesh.caller("other", &[ORDERS]).await;
    let same = shop.mesh.sidecar("front-2").account("front").calls(&[ORDERS]).start().await;
    let foreign =
        shop.mesh.sidecar("far").namespace("guests").account("front").calls(&[ORDERS]).start().await;
    for caller in [&other, &same, &foreign] {
        caller.knows_healthy(ORDERS, 1).await;
    }
    let limits = format!(
        "limits: {{ratePerCaller: {{{RARELY}, burst: 3}}, rate: {{{RARELY}, burst: 8}}}}, retries: {{attempts: 0}}"
    );
    in_force(&shop, &policy("rate", &format!("{SERVICE}, {limits}"))).await;
    assert_eq!(let_in(&shop.front, "/", 20).await, 3);
    assert_eq!(let_in(&same, "/", 3).await, 0, "another workload of the same identity");
    assert_eq!(let_in(&other, "/", 4).await, 3, "refusals of one caller used up nothing of the others'");
    assert_eq!(let_in(&foreign, "/", 4).await, 2, "its own allows a third, the service's own rate does not");
}

#[tokio::test]
async fn a_rate_holds_from_the_first_request_of_a_new_replica() {
    let mesh = Mesh::start().await;
    let limits = format!("limits: {{rate: {{{RARELY}, burst: 1}}}}");
    mesh.apply(&policy("rate", &format!("{SERVICE}, {limits}"))).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    let app = App::start("app").await;
    let _replica = mesh.replica("orders-1", "orders", &app).await;
    front.knows_healthy(ORDERS, 1).await;
    assert_eq!(let_in(&front, "/", 5).await, 1);
}
