//! Routes with real processes: where requests go, what is changed on the way, and what is made up in
//! place of the application.

use http::Method;
use outrigger_tests::app::App;
use outrigger_tests::client::{Client, request};
use outrigger_tests::mesh::Sidecar;
use outrigger_tests::wait::until;

use crate::shop::{ORDERS, Shop, grpc, route};

/// `orders`, and another service `orders-next` that answers as `next`.
struct Two {
    client: Client,
    next: App,
    sidecar: Sidecar,
    shop: Shop,
}

impl Two {
    async fn open() -> Self {
        let shop = Shop::open(1).await;
        let next = App::start("next").await;
        let sidecar = shop.mesh.replica("next-1", "orders-next", &next).await;
        let client = shop.front.client();
        // Known before it is measured.
        assert_eq!(client.get("orders-next.shop", "/").await.unwrap().text(), "next");
        next.forget();
        Self { client, next, sidecar, shop }
    }

    /// Who answers, or why nobody does.
    async fn ask(&self, method: Method, path: &str, headers: &[(&str, &str)]) -> String {
        let answer = self.client.send(request(method, ORDERS, path, headers, "")).await.unwrap();
        match answer.reason() {
            "" => answer.text(),
            reason => format!("{} {reason}", answer.status.as_u16()),
        }
    }
}

#[tokio::test]
async fn requests_go_by_path_method_header_and_query() {
    let two = Two::open().await;
    let next = "backendRefs: [{name: orders-next, port: 80}]";
    two.shop
        .apply(&route(
            "orders-routes",
            &format!(
                "- {{name: path, matches: [{{path: {{value: /v2}}}}], {next}}}
                 - {{matches: [{{path: {{value: /method}}, method: PUT}}], {next}}}
                 - {{matches: [{{path: {{value: /asked}}, headers: [{{name: x-version, value: next}}]}}], {next}}}
                 - {{matches: [{{path: {{value: /asked}}, queryParams: [{{name: version, value: next}}]}}], {next}}}
                 - {{matches: [{{path: {{value: /nobody}}}}], backendRefs: [{{name: orders, port: 80, weight: 0}}]}}
                 - {{matches: [{{path: {{value: /missing}}}}], backendRefs: [{{name: nowhere, port: 80}}]}}
                 - {{matches: [{{path: {{value: /here}}}}]}}"
            ),
        ))
        .await;
    for (method, path, headers, expected) in [
        (Method::GET, "/v2/x", vec![], "next"),
        (Method::GET, "/v22", vec![], "404 route_not_found"),
        (Method::PUT, "/method", vec![], "next"),
        (Method::GET, "/method", vec![], "404 route_not_found"),
        (Method::GET, "/asked", vec![("x-version", "next")], "next"),
        (Method::GET, "/asked?a=1&version=next", vec![], "next"),
        (Method::GET, "/asked?version=last", vec![("x-version", "last")], "404 route_not_found"),
        (Method::GET, "/here", vec![], "app-1"),
        (Method::GET, "/nobody", vec![], "500 no_backend"),
        (Method::GET, "/missing", vec![], "500 no_backend"),
    ] {
        assert_eq!(two.ask(method.clone(), path, &headers).await, expected, "{method} {path} {headers:?}");
    }
    // Whoever speaks gRPC hears it in its words, from trailers alone.
    let client = two.shop.front.client_http2();
    for (path, code) in [("/shop.v1.Orders/Create", "12"), ("/nobody", "14")] {
        let answer = client.send(grpc(path, &[])).await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, code), "{path}");
        assert!(answer.body.is_empty() && answer.trailers.is_none(), "{path}");
    }
    let metrics = two.shop.front.metrics().await;
    let of_rule = [("route", "shop/orders-routes/path"), ("destination", "orders-next.shop")];
    assert_eq!(metrics.sum("mesh_requests_total", &of_rule), 1.0);
}

#[tokio::test]
async fn calls_of_grpc_go_by_service_and_method() {
    let two = Two::open().await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/policies/grpc-route.yaml");
    two.shop.apply(&std::fs::read_to_string(file).unwrap()).await;
    let client = two.shop.front.client_http2();
    for (path, expected) in [("/shop.v1.Orders/Create", "next"), ("/shop.v1.Orders/List", "app-1")] {
        assert_eq!(client.send(grpc(path, &[])).await.unwrap().text(), expected, "{path}");
    }
    let answer = client.send(grpc("/shop.v1.Other/List", &[])).await.unwrap();
    assert_eq!((answer.header("grpc-status"), answer.reason()), ("12", "route_not_found"));
    // A route governs all of its port.
    assert_eq!(two.ask(Method::GET, "/health", &[]).await, "404 route_not_found");
    two.shop.apply(&route("orders-web", "- {matches: [{path: {value: /health}}]}")).await;
    assert_eq!(two.ask(Method::GET, "/health", &[]).await, "app-1");
    let answer = client.send(grpc("/health", &[])).await.unwrap();
    assert_eq!(answer.header("grpc-status"), "12", "calls of gRPC are the GRPCRoute's affair alone");
}

#[tokio::test]
async fn redirects_rewrites_and_header_filters_do_what_the_example_says() {
    let two = Two::open().await;
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../config/policies/redirect-rewrite.yaml");
    two.shop.apply(&std::fs::read_to_string(file).unwrap()).await;
    let answer = two.client.get(ORDERS, "/list?page=2").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (308, "redirected"));
    assert_eq!(answer.header("location"), "http://orders.shop/orders?page=2");
    assert_eq!(two.shop.apps[0].requests(), 0);
    let answer = two.client.get(ORDERS, "/v1/orders/7?full").await.unwrap();
    assert_eq!((answer.text().as_str(), answer.header("deprecation")), ("app-1", "@1767225600"));
    let seen = two.shop.apps[0].only();
    assert_eq!(seen.uri.path_and_query().unwrap().as_str(), "/orders/7?full");
    assert_eq!(seen.header("x-api-version"), "1");
    two.shop.apps[0].forget();
    let answer = two.client.get(ORDERS, "/v10").await.unwrap();
    assert_eq!((answer.text().as_str(), answer.header("deprecation")), ("app-1", ""));
    assert_eq!(two.shop.apps[0].only().uri.path(), "/v10");
}

#[tokio::test]
async fn a_route_of_the_callers_namespace_replaces_the_services_own() {
    let two = Two::open().await;
    let web = two.shop.mesh.sidecar("web").namespace("web").calls(&[ORDERS]).start().await;
    web.knows_healthy(ORDERS, 1).await;
    two.shop.apply(&route("orders-own", "- {matches: [{path: {value: /own}}]}")).await;
    let consumer = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: beta, namespace: web}\n\
                    spec:\n  parentRefs: [{name: orders, namespace: shop, port: 80}]\n  rules:\n    \
                    - {matches: [{path: {value: /beta}}], backendRefs: [{name: orders-next, namespace: shop, port: 80}]}\n";
    web.caught_up(two.shop.mesh.apply(consumer).await).await;
    let ask = async |client: Client, path: &str| {
        let answer = client.get(ORDERS, path).await.unwrap();
        if answer.reason().is_empty() { answer.text() } else { answer.reason().to_owned() }
    };
    for (path, from_shop, from_web) in
        [("/beta", "route_not_found", "next"), ("/own", "app-1", "route_not_found")]
    {
        assert_eq!(ask(two.shop.front.client(), path).await, from_shop, "{path} from shop");
        assert_eq!(ask(web.client(), path).await, from_web, "{path} from web");
    }
    two.shop.mesh.delete(consumer).await;
    web.forgot("web/beta").await;
    assert_eq!(ask(web.client(), "/own").await, "app-1");
}

#[tokio::test]
async fn traffic_is_split_by_weight() {
    let two = Two::open().await;
    let backends =
        "backendRefs: [{name: orders, port: 80, weight: 3}, {name: orders-next, port: 80, weight: 1}]";
    two.shop.apply(&route("orders-split", &format!("- {{{backends}}}"))).await;
    for _ in 0..200 {
        two.client.get(ORDERS, "/").await.unwrap();
    }
    let (old, new) = (two.shop.apps[0].requests(), two.next.requests());
    assert_eq!(old + new, 200);
    // 50 expected, with a deviation of 6.
    assert!((20..=80).contains(&new), "{new} of 200 went to a quarter");
}

#[tokio::test]
async fn copies_go_to_the_mirror_and_its_death_concerns_nobody() {
    let mut two = Two::open().await;
    let mirror =
        "filters: [{type: RequestMirror, requestMirror: {backendRef: {name: orders-next, port: 80}}}]";
    two.shop.apply(&route("orders-mirror", &format!("- {{{mirror}}}"))).await;
    let outcome = async |outcome: &str| {
        two.shop.front.metrics().await.sum("mesh_mirrored_requests_total", &[("outcome", outcome)])
    };
    for n in 0..5 {
        let post = request(Method::POST, ORDERS, "/a?b=c", &[("x-id", "1")], format!("order {n}"));
        assert_eq!(two.client.send(post).await.unwrap().text(), "app-1");
    }
    until("the copies are answered", async || outcome("answered").await == 5.0).await;
    let mut bodies: Vec<_> = two.next.seen().into_iter().map(|seen| seen.body).collect();
    bodies.sort();
    assert_eq!(bodies, ["order 0", "order 1", "order 2", "order 3", "order 4"]);
    let copy = two.next.seen().remove(0);
    assert_eq!((copy.uri.path_and_query().unwrap().as_str(), copy.method), ("/a?b=c", Method::POST));
    assert_eq!(two.shop.apps[0].requests(), 5);

    // What is not kept whole cannot be copied; the client's answer does not wait for it.
    let large = request(Method::POST, ORDERS, "/", &[], vec![7; (64 << 10) + 1]);
    assert_eq!(two.client.send(large).await.unwrap().text(), "app-1");
    assert_eq!((outcome("skipped").await, two.next.requests()), (1.0, 5));

    two.sidecar.process.kill();
    for _ in 0..5 {
        assert_eq!(two.client.get(ORDERS, "/").await.unwrap().text(), "app-1");
    }
    until("the copies fail", async || outcome("failed").await == 5.0).await;
}

#[tokio::test]
async fn faults_hit_the_share_and_the_requests_they_are_meant_for() {
    let shop = Shop::open(1).await;
    let (client, app) = (shop.front.client(), &shop.apps[0]);
    let injected =
        async |kind: &str| shop.front.metrics().await.sum("mesh_faults_injected_total", &[("kind", kind)]);
    shop.govern(
        "faults: {abort: {percent: 100, status: 418, grpcCode: DATA_LOSS}, \
         matches: [{path: {value: /orders}, method: GET}, {method: POST}]}",
    )
    .await;
    let answer = client.get(ORDERS, "/orders/1").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (418, "fault_injected"));
    let answer = shop.front.client_http2().send(grpc("/shop.v1.Orders/List", &[])).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.header("grpc-status")), (200, "15"));
    assert_eq!((app.requests(), injected("abort").await), (0, 2.0));
    assert_eq!(client.get(ORDERS, "/other").await.unwrap().text(), "app-1", "no match");

    shop.govern("faults: {abort: {percent: 50}}").await;
    app.forget();
    for _ in 0..100 {
        client.get(ORDERS, "/").await.unwrap();
    }
    let (through, aborted) = (app.requests(), injected("abort").await - 2.0);
    assert_eq!(through as f64 + aborted, 100.0);
    assert!((20..=80).contains(&through), "{through} of 100 got through a half");

    // A delay longer than the deadline is seen without a clock.
    shop.govern("timeouts: {request: 200ms}\nfaults: {delay: {percent: 100, duration: 1m}}").await;
    app.forget();
    let answer = client.get(ORDERS, "/").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (504, "deadline_exceeded"));
    assert_eq!((app.requests(), injected("delay").await), (0, 1.0));
    shop.govern("faults: {delay: {percent: 100, duration: 5ms}}").await;
    assert_eq!(client.get(ORDERS, "/").await.unwrap().text(), "app-1");
    assert_eq!(injected("delay").await, 2.0);
    shop.govern("faults: {}").await;
    assert_eq!(client.get(ORDERS, "/").await.unwrap().text(), "app-1");
    assert_eq!(injected("delay").await, 2.0, "switched off");
}
