//! Policies on their way into force: applied, merged, refused, taken away, under traffic, and every
//! example of `config/policies`.

use std::path::{Path, PathBuf};

use outrigger_api::document::parse_yaml;
use outrigger_tests::app::App;
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Mesh;
use serde_json::json;

use crate::shop::{ORDERS, Shop, policy, repeatable, route};

/// Answers of the application that a policy may say to ask for again.
fn unavailable() -> http::Request<outrigger_tests::app::Body> {
    outrigger_tests::client::request(http::Method::GET, ORDERS, "/", &[("x-app-status", "503")], "")
}

/// Attempts that one request answered with 503 makes.
async fn attempts(shop: &Shop) -> usize {
    shop.apps.iter().for_each(App::forget);
    let answer = shop.front.client().send(unavailable()).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, ""));
    shop.apps.iter().map(App::requests).sum()
}

/// Retries as often as it says, whatever the budget and the breaker think of it.
fn retrying(attempts: u32) -> String {
    format!(
        "retries: {{attempts: {attempts}, statuses: [503], backoffBase: 1ms, backoffMax: 2ms}}
         retryBudget: {{minPerSecond: 1000}}
         circuitBreaker: {{consecutiveFailures: 1000, successRate: 0}}"
    )
}

#[tokio::test]
async fn the_most_specific_policy_holds_and_what_is_deleted_is_gone() {
    let shop = Shop::open(1).await;
    assert_eq!(attempts(&shop).await, 1, "no status is retried unless a policy says so");
    let config = "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec:\n  \
                  defaults:\n    retries: {attempts: 1, statuses: [503], backoffBase: 1ms}\n    \
                  retryBudget: {minPerSecond: 1000}\n    circuitBreaker: {consecutiveFailures: 1000, successRate: 0}\n";
    shop.apply(config).await;
    assert_eq!(attempts(&shop).await, 2, "the mesh's defaults");
    shop.govern("retries: {attempts: 3}").await;
    assert_eq!(attempts(&shop).await, 4, "the service's policy, with the statuses of the defaults");
    let in_force = shop.front.policy(ORDERS, "default").await;
    assert_eq!(in_force["policy"]["retries"]["statuses"], json!([503]));
    assert_eq!(in_force["from"]["retries.statuses"], "MeshConfig default");
    assert_eq!(in_force["from"]["retries.attempts"], "TrafficPolicy shop/orders");
    assert_eq!(in_force["from"]["retries.backoffMax"], "default");
    shop.apply(&route("orders-route", "- {name: all, retry: {attempts: 2}}")).await;
    assert_eq!(attempts(&shop).await, 3, "the rule's own words");
    let on_rule = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: rule, namespace: shop}\n\
                   spec:\n  targetRefs: [{kind: HTTPRoute, name: orders-route, sectionName: all}]\n  retries: {attempts: 0}\n";
    shop.apply(on_rule).await;
    assert_eq!(attempts(&shop).await, 1, "the policy of the rule");
    let of_rule = shop.front.policy(ORDERS, "shop/orders-route/all").await;
    assert_eq!(of_rule["from"]["retries.attempts"], "TrafficPolicy shop/rule");

    for (yaml, origin, left) in [
        (on_rule.to_owned(), "TrafficPolicy shop/rule", 3),
        (route("orders-route", "- {}"), "shop/orders-route/all", 4),
        (policy("orders", ""), "TrafficPolicy shop/orders", 2),
        (config.to_owned(), "MeshConfig default", 1),
    ] {
        shop.mesh.delete(&yaml).await;
        shop.front.forgot(origin).await;
        assert_eq!(attempts(&shop).await, left, "without {origin}");
    }
}

#[tokio::test]
async fn a_policy_of_the_callers_namespace_governs_its_calls_alone() {
    let shop = Shop::open(1).await;
    let web = shop.mesh.sidecar("web").namespace("web").calls(&[ORDERS]).start().await;
    web.knows_healthy(ORDERS, 1).await;
    let consumer = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: mine, namespace: web}\n\
                    spec:\n  targetRefs: [{kind: Service, name: orders, namespace: shop}]\n  \
                    retries: {attempts: 2, statuses: [503], backoffBase: 1ms, backoffMax: 2ms}\n";
    web.caught_up(shop.mesh.apply(consumer).await).await;
    assert_eq!(attempts(&shop).await, 1, "calls from the service's own namespace");
    shop.apps[0].forget();
    assert_eq!(web.client().send(unavailable()).await.unwrap().status, 503);
    assert_eq!(shop.apps[0].requests(), 3);
    // What is the service's own is not for its callers to say.
    let limits = format!("{consumer}  limits: {{maxInFlight: 1}}\n");
    let refused = shop.mesh.try_apply(&limits).await.unwrap_err();
    assert!(refused.contains("limits"), "{refused}");
}

#[tokio::test]
async fn a_bad_policy_is_refused_by_line_and_key_and_the_good_one_stays() {
    let shop = Shop::open(1).await;
    shop.govern(&retrying(2)).await;
    let before = shop.front.policy(ORDERS, "default").await;
    for (bad, said) in [
        ("retries: {attempts: 11}", ["retries.attempts", "0 to 10"]),
        ("timeouts: {perTry: 2s, request: 1s}", ["timeouts.perTry", "at most request"]),
        ("retries: {statuses: [200]}", ["retries.statuses", "400 to 599"]),
        ("retry: {attempts: 1}", ["test.yaml", "retry"]),
        ("circuitBreaker: {maxEjected: 51}", ["circuitBreaker.maxEjected", "0 to 50"]),
        (
            "loadBalancing: {algorithm: ringHash, hash: {header: a, cookie: b}}",
            ["loadBalancing.hash", "one of"],
        ),
    ] {
        let refused = shop.mesh.try_apply(&policy("orders", bad)).await.unwrap_err();
        assert!(said.iter().all(|said| refused.contains(said)), "{bad}: {refused}");
        assert!(refused.starts_with("test.yaml:"), "names file and line: {refused}");
    }
    // From who does not check before: the registry does.
    let row = outrigger_api::v1::Resource {
        kind: "TrafficPolicy".into(),
        namespace: "shop".into(),
        name: "orders".into(),
        json: json!({"apiVersion": "outrigger.dev/v1alpha1", "kind": "TrafficPolicy",
            "metadata": {"name": "orders", "namespace": "shop"},
            "spec": {"targetRefs": [{"kind": "Service", "name": "orders"}], "retries": {"attempts": 11}}})
        .to_string(),
        revision: 0,
    };
    let request = outrigger_api::v1::ApplyRequest { resources: vec![row], ..Default::default() };
    let refused = shop.mesh.admin().apply(request).await.unwrap_err();
    assert!(refused.message().contains("retries.attempts"), "{refused:?}");
    assert_eq!(shop.front.policy(ORDERS, "default").await, before);
    assert_eq!(attempts(&shop).await, 3);
}

#[tokio::test]
async fn policies_that_change_under_load_fail_no_request() {
    let shop = Shop::open(2).await;
    let load = Load::start(&shop.front.client(), 200.0, repeatable);
    let specs = [
        "timeouts: {request: 10s, perTry: 5s}\nloadBalancing: {algorithm: roundRobin}",
        "retries: {attempts: 1, statuses: [503]}\nloadBalancing: {algorithm: maglev, hash: {header: x-id}}",
        "connectionPool: {maxConnections: 8, maxRequestsPerConnection: 3}\nhedging: {minDelay: 500ms}",
        "loadBalancing: {algorithm: ringHash, hash: {source: true}, slowStart: 0s}",
    ];
    for round in 0..3 {
        for spec in specs {
            shop.govern(spec).await;
            load.more(10).await;
        }
        shop.apply(&route("orders-route", "- {matches: [{path: {value: /}}], timeouts: {request: 8s}}"))
            .await;
        load.more(10).await;
        shop.mesh.delete(&route("orders-route", "- {}")).await;
        shop.front.forgot("shop/orders-route").await;
        shop.mesh.delete(&policy("orders", "")).await;
        shop.front.forgot("TrafficPolicy shop/orders").await;
        load.more(10).await;
        println!("round {round}: {} requests", load.done());
    }
    load.stop().await.assert_clean("policies applied and deleted again and again");
}

fn examples() -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/policies");
    let mut files: Vec<_> =
        std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

#[tokio::test]
async fn every_example_is_applied_and_shown_as_it_is_in_force() {
    let mesh = Mesh::start().await;
    let (app, next) = (App::start("orders").await, App::start("next").await);
    let _orders = mesh.replica("orders-1", "orders", &app).await;
    let _next = mesh.replica("next-1", "orders-next", &next).await;
    let front = mesh.sidecar("front").account("storefront").calls(&[ORDERS]).start().await;
    front.knows_healthy(ORDERS, 1).await;
    let files = examples();
    assert!(files.len() >= 17, "{files:?}");
    for file in files {
        let path = file.to_str().unwrap();
        let text = std::fs::read_to_string(&file).unwrap();
        let (done, said) = mesh.command(&["apply", "-f", path]);
        assert!(done && !said.contains("warning"), "{path}: {said}");
        let revision = mesh.apply(&text).await;
        let (done, shown) = mesh.command(&["get", "policies", ORDERS]);
        assert!(done, "{path}: {shown}");
        for resource in parse_yaml(&file, &text).unwrap() {
            let (kind, name) = (resource.kind(), resource.name());
            let origin = match kind {
                "MeshConfig" => "MeshConfig default".to_owned(),
                "TrafficPolicy" => format!("TrafficPolicy shop/{name}"),
                _ => format!("shop/{name}"),
            };
            assert!(shown.contains(&origin), "{path}: {origin} is not in\n{shown}");
            if kind != "AuthorizationPolicy" {
                front.caught_up(revision).await;
                let page = front.get("/policies").await.1;
                assert!(page.contains(&format!("\"{origin}")), "{path}: {origin} is not in\n{page}");
            }
        }
        let answer = front.client().get(ORDERS, "/").await.unwrap();
        // One of the examples leaves what is not gRPC without a route.
        let expected = if path.ends_with("/grpc-route.yaml") { 404 } else { 200 };
        assert_eq!(answer.status, expected, "{path}: {} {}", answer.reason(), answer.text());
        let (done, said) = mesh.command(&["apply", "--delete", "-f", path]);
        assert!(done, "{path}: {said}");
    }
}
