//! Calls of gRPC as Python's `grpcio` makes and serves them, through two sidecars.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

use std::net::SocketAddr;
use std::path::Path;

use outrigger_tests::component::{Running, run};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::until;
use serde_json::{Value, json};

/// A Python with `grpcio`.
const PYTHON: &str = "OUTRIGGER_TEST_GRPC_PYTHON";
/// Names under which the one server is served, each governed in its own way.
const SERVICES: [&str; 6] = ["orders", "closed", "limited", "slow", "routed", "flaky"];

/// A server of grpcio behind a sidecar, and a caller. Dropped in this order.
struct Grpc {
    front: Sidecar,
    replica: Sidecar,
    server: Running,
    mesh: Mesh,
}

fn script() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/grpc/peer.py").to_string_lossy().into_owned()
}

/// A server that knows its name, and where it listens.
async fn serve(mesh: &Mesh, name: &str) -> (Running, SocketAddr) {
    let output = mesh.directory().join(format!("{name}.txt"));
    let mut server = Running::start(PYTHON, &[script(), "serve".into(), name.into()], output);
    let mut port = 0u16;
    until("the server listens", || {
        let said = server.output();
        assert!(server.ended().is_none(), "the server ended: {said}");
        let line = said.lines().find_map(|line| line.strip_prefix("port ")).map(str::to_owned);
        port = line.and_then(|line| line.parse().ok()).unwrap_or(0);
        async move { port != 0 }
    })
    .await;
    (server, SocketAddr::from(([127, 0, 0, 1], port)))
}

impl Grpc {
    async fn start(policies: &str) -> Self {
        let mesh = Mesh::start().await;
        if !policies.is_empty() {
            mesh.apply(policies).await;
        }
        let (server, address) = serve(&mesh, "orders-1").await;
        let mut replica = mesh.sidecar("orders-1");
        for service in SERVICES {
            replica = replica.serves_at(service, 80, "grpc", address);
        }
        let replica = replica.start().await;
        let names = SERVICES.map(|service| format!("{service}.shop"));
        let front = mesh.caller("front", &names.each_ref().map(String::as_str)).await;
        for name in &names {
            front.knows_healthy(name, 1).await;
        }
        Self { front, replica, server, mesh }
    }

    /// Makes calls through the caller's sidecar, one after the other on one channel.
    fn call(&self, authority: &str, steps: &Value) -> Vec<Value> {
        let to = self.front.outbound.to_string();
        let args = [&script(), "call", &to, authority];
        let said = run(PYTHON, &args, self.mesh.directory(), &steps.to_string());
        let line = said.lines().find(|line| line.starts_with('[')).unwrap_or_else(|| panic!("{said}"));
        serde_json::from_str(line).unwrap()
    }

    fn one(&self, authority: &str, method: &str, message: &str) -> Value {
        self.call(authority, &json!([{"method": method, "messages": [message]}])).remove(0)
    }

    /// How often the server was called.
    fn executions(&self, method: &str) -> usize {
        self.server.output().lines().filter(|line| *line == method).count()
    }
}

fn traffic(service: &str, spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {service}, namespace: \
         shop}}\nspec: {{targetRefs: [{{kind: Service, name: {service}}}], {spec}}}\n---\n"
    )
}

#[tokio::test]
async fn calls_of_every_kind_pass_with_their_codes_and_details() {
    let grpc = Grpc::start("").await;
    let answers = grpc.call(
        "orders.shop",
        &json!([
            {"method": "Echo", "messages": ["hello"]},
            {"method": "Count", "messages": ["2000"]},
            {"method": "Sum", "messages": ["1", "20", "300"]},
            {"method": "Talk", "messages": ["a", "b", "c"]},
            {"method": "Echo", "messages": ["x".repeat(1 << 20)]},
        ]),
    );
    let codes: Vec<_> = answers.iter().map(|answer| answer["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["OK"; 5], "{answers:?}");
    assert_eq!(answers[0]["messages"], json!(["hello"]));
    assert_eq!(answers[0]["trailing"]["x-served"], "yes");
    let counted: Vec<_> = (0..2000).map(|number| number.to_string()).collect();
    assert_eq!(answers[1]["messages"], json!(counted));
    assert_eq!(
        [&answers[2]["messages"], &answers[3]["messages"]],
        [&json!(["321"]), &json!(["A", "B", "C"])]
    );
    assert_eq!(answers[4]["messages"][0].as_str().unwrap().len(), 1 << 20);
    // An application's own codes are nobody else's business.
    for code in ["NOT_FOUND", "UNAVAILABLE", "INTERNAL", "UNAUTHENTICATED", "DATA_LOSS", "UNIMPLEMENTED"] {
        let answer = grpc.one("orders.shop", "Fail", &format!("{code} 100% of caf\u{e9}\u{2026}"));
        assert_eq!(
            (&answer["code"], &answer["details"]),
            (&json!(code), &json!("100% of caf\u{e9}\u{2026}"))
        );
        assert!(answer["trailing"]["x-mesh-reason"].is_null(), "{answer}");
    }
    assert_eq!(grpc.executions("Fail"), 6, "without a policy nothing is made again");
    assert_eq!(grpc.one("orders.shop", "Missing", "")["code"], "UNIMPLEMENTED");
    let metrics = grpc.front.metrics().await;
    let ok = [("protocol", "grpc"), ("grpc_status", "0"), ("destination", "orders.shop")];
    assert_eq!(metrics.sum("mesh_requests_total", &ok), 5.0);
    let not_found = [("protocol", "grpc"), ("grpc_status", "5"), ("destination", "orders.shop")];
    assert_eq!(metrics.sum("mesh_requests_total", &not_found), 1.0);
}

#[tokio::test]
async fn the_server_is_told_less_time_than_the_client_had() {
    let grpc = Grpc::start(&traffic("slow", "timeouts: {request: 5s}")).await;
    let ask = json!([{"method": "TimeLeft", "messages": [""], "timeout": 30}]);
    let left = |authority: &str| {
        let answer = grpc.call(authority, &ask).remove(0);
        let text = answer["messages"][0].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();
        text.parse::<f64>().unwrap()
    };
    let (own, by_policy) = (left("orders.shop"), left("slow.shop"));
    println!("of 30 s {own} are left, and {by_policy} of the policy's 5 s");
    assert!((5.0..30.0).contains(&own) && by_policy < 5.0, "{own} {by_policy}");
}

#[tokio::test]
async fn what_the_mesh_refuses_is_a_status_with_readable_details() {
    let policies = [
        traffic("limited", "limits: {rate: {requestsPerSecond: 0.001, burst: 1}}"),
        traffic("slow", "timeouts: {request: 300ms}"),
        "apiVersion: outrigger.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: closed, namespace: \
         shop}\nspec: {targetRefs: [{kind: Service, name: closed}]}\n---\n"
            .to_owned(),
        "apiVersion: gateway.networking.k8s.io/v1\nkind: GRPCRoute\nmetadata: {name: routed, namespace: \
         shop}\nspec: {parentRefs: [{kind: Service, name: routed}], rules: [{matches: [{method: {service: \
         shop.Orders, method: Echo}}]}]}\n---\n"
            .to_owned(),
        "apiVersion: outrigger.dev/v1alpha1\nkind: Service\nmetadata: {name: empty, namespace: shop}\nspec: \
         {ports: [{port: 80}]}\n---\n"
            .to_owned(),
    ];
    let grpc = Grpc::start(&policies.concat()).await;
    for (authority, method) in [("limited.shop", "Echo"), ("routed.shop", "Echo")] {
        assert_eq!(grpc.one(authority, method, "first")["code"], "OK", "{authority}");
    }
    let executed = grpc.executions("Echo");
    for (authority, method, code, reason) in [
        ("nobody.shop", "Echo", "UNAVAILABLE", "unknown_service"),
        ("empty.shop", "Echo", "UNAVAILABLE", "no_endpoint"),
        ("orders.shop:99", "Echo", "UNAVAILABLE", "unknown_port"),
        ("closed.shop", "Echo", "PERMISSION_DENIED", "denied"),
        ("limited.shop", "Echo", "RESOURCE_EXHAUSTED", "rate_limited"),
        ("routed.shop", "Count", "UNIMPLEMENTED", "route_not_found"),
        ("slow.shop", "Hang", "DEADLINE_EXCEEDED", "deadline_exceeded"),
    ] {
        let answer = grpc.one(authority, method, "1");
        println!("{authority} {method}: {answer}");
        assert_eq!(answer["code"], code, "{authority}: {answer}");
        assert!(answer["details"].as_str().unwrap().starts_with("outrigger: "), "{answer}");
        // In a head that is the trailers, grpcio finds all of it in the trailing metadata.
        assert_eq!(answer["trailing"]["x-mesh-reason"], reason, "{answer}");
    }
    assert_eq!(grpc.executions("Echo"), executed);
    assert_eq!(grpc.executions("Count"), 0);
    until("the call that took too long is not left with the server", || async {
        grpc.replica.metrics().await.sum("mesh_requests_in_flight", &[]) == 0.0
    })
    .await;
}

#[tokio::test]
async fn a_policy_that_names_codes_has_calls_made_again() {
    let policies = traffic("flaky", "retries: {attempts: 2, grpcCodes: [UNAVAILABLE], backoffBase: 1ms}");
    let grpc = Grpc::start(&policies).await;
    let answer = grpc.one("flaky.shop", "Flaky", "one");
    assert_eq!((&answer["code"], &answer["messages"]), (&json!("OK"), &json!(["one"])), "{answer}");
    assert_eq!(grpc.executions("Flaky"), 2);
    // Not named by the policy, and no policy at all.
    assert_eq!(grpc.one("flaky.shop", "Fail", "ABORTED no")["code"], "ABORTED");
    assert_eq!(grpc.executions("Fail"), 1);
    assert_eq!(grpc.one("orders.shop", "Flaky", "two")["code"], "UNAVAILABLE");
    assert_eq!(grpc.executions("Flaky"), 3);
    // To the end of the attempts, and then what the server said.
    let answer = grpc.one("flaky.shop", "Fail", "UNAVAILABLE never");
    assert_eq!((&answer["code"], &answer["details"]), (&json!("UNAVAILABLE"), &json!("never")));
    assert_eq!(grpc.executions("Fail"), 4);
    let sent = [("reason", "grpc_status"), ("outcome", "sent")];
    assert_eq!(grpc.front.metrics().await.sum("mesh_retries_total", &sent), 3.0);
}

#[tokio::test]
async fn calls_of_one_channel_go_to_every_replica() {
    let spread = "loadBalancing: {algorithm: roundRobin, slowStart: 0s}";
    let grpc = Grpc::start(&traffic("orders", spread)).await;
    let ask = json!(vec![json!({"method": "Who", "messages": [""]}); 20]);
    let answered = |answers: &[Value], name: &str| {
        let said = |answer: &&Value| answer["messages"] == json!([name]);
        answers.iter().filter(said).count()
    };
    let alone = grpc.call("orders.shop", &ask);
    assert_eq!(answered(&alone, "orders-1"), 20, "{alone:?}");
    let (_second, address) = serve(&grpc.mesh, "orders-2").await;
    let _replica = grpc.mesh.sidecar("orders-2").serves_at("orders", 80, "grpc", address).start().await;
    grpc.front.knows_healthy("orders.shop", 2).await;
    let connections =
        || async { grpc.front.metrics().await.sum("mesh_protocol_detections_total", &[("protocol", "h2")]) };
    let before = connections().await;
    let both = grpc.call("orders.shop", &ask);
    assert_eq!(connections().await - before, 1.0, "one connection for all of them");
    assert_eq!([answered(&both, "orders-1"), answered(&both, "orders-2")], [10, 10], "{both:?}");
}

#[tokio::test]
async fn a_stream_that_is_cut_short_ends_at_the_server_too() {
    let grpc = Grpc::start("").await;
    // On a channel that is connected: that takes of the time, too.
    let answers = grpc.call(
        "orders.shop",
        &json!([
            {"method": "Echo", "messages": ["first"]},
            {"method": "EndlessTalk", "messages": ["begun"], "open": true, "timeout": 2},
            {"method": "Endless", "messages": ["begun"], "timeout": 300, "cancel after": 1},
            {"method": "Echo", "messages": ["last"]},
        ]),
    );
    let codes: Vec<_> = answers.iter().map(|answer| answer["code"].as_str().unwrap()).collect();
    assert_eq!(codes, ["OK", "DEADLINE_EXCEEDED", "CANCELLED", "OK"], "{answers:?}");
    for answer in &answers[1..3] {
        assert_eq!(answer["messages"], json!(["begun"]), "{answer}");
    }
    let called = ["EndlessTalk", "Endless"].map(|method| grpc.executions(method));
    assert_eq!(called, [1, 1], "neither was made again");
    until("the server learns of both ends", || async { grpc.executions("cut off") == 2 }).await;
    for sidecar in [&grpc.front, &grpc.replica] {
        until(&format!("nothing is left at {}", sidecar.id), || async {
            sidecar.metrics().await.sum("mesh_requests_in_flight", &[]) == 0.0
        })
        .await;
    }
}
