//! Traces: one context from the first caller to the last application, and a span for each side of each
//! hop at a real collector.

use std::sync::{Arc, OnceLock};

use http::Method;
use outrigger_tests::app::{App, ok};
use outrigger_tests::client::{Client, request};
use outrigger_tests::mesh::{Mesh, Sidecar, SidecarBuilder};
use outrigger_tests::process;
use outrigger_tests::wait::until;
use rustix::process::Signal;
use serde_json::Value;

use crate::collector::{Collector, Span};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

/// A sidecar that exports to `endpoint` without waiting for a batch to fill.
fn exports<'a>(sidecar: SidecarBuilder<'a>, endpoint: &str) -> SidecarBuilder<'a> {
    sidecar.env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint).env("OTEL_BSP_SCHEDULE_DELAY", "50")
}

/// `front`, which calls `orders`, each with a sidecar that exports.
struct Shop {
    orders: App,
    back: Sidecar,
    front: Sidecar,
}

impl Shop {
    async fn start(mesh: &Mesh, endpoint: &str) -> Self {
        let orders = App::start("orders").await;
        let back = exports(mesh.sidecar("orders-1").serves("orders", &orders), endpoint).start().await;
        let front = exports(mesh.sidecar("front").calls(&["orders.shop"]), endpoint).start().await;
        front.knows("orders.shop", &["orders-1"]).await;
        Self { orders, back, front }
    }

    /// Sends a request with these headers and returns the context the application got: trace id, parent
    /// and flags.
    async fn call(&self, headers: &[(&str, &str)]) -> (String, String, String) {
        self.orders.forget();
        let request = request(Method::GET, "orders.shop", "/v1/orders?page=2", headers, "");
        assert_eq!(self.front.client().send(request).await.unwrap().status, 200);
        context(self.orders.only().header("traceparent"))
    }
}

fn context(traceparent: &str) -> (String, String, String) {
    let parts: Vec<_> = traceparent.split('-').collect();
    let [version, trace, parent, flags] = parts[..] else { panic!("{traceparent:?}") };
    assert_eq!((version, trace.len(), parent.len()), ("00", 32, 16), "{traceparent}");
    (trace.to_owned(), parent.to_owned(), flags.to_owned())
}

/// Sets the share of new traces that is sampled, as an operator does.
fn set_sampling(mesh: &Mesh, ratio: f64) {
    let file = mesh.directory().join("mesh-config.yaml");
    let text = format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata:\n  name: default\nspec:\n  tracing:\n    samplingRatio: {ratio}\n"
    );
    std::fs::write(&file, text).unwrap();
    let (file, registry, identity) =
        (file.to_string_lossy(), mesh.grpc.to_string(), mesh.data().join("admin"));
    let identity = identity.to_string_lossy();
    let output = process::command(&["apply", "-f", &file, "--registry", &registry, "--identity", &identity])
        .env_remove("OUTRIGGER_DEMO_CHILD")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn only(spans: &[Span], kind: &str) -> Span {
    let found: Vec<_> = spans.iter().filter(|span| span.kind.to_lowercase().contains(kind)).collect();
    assert_eq!(found.len(), 1, "{kind}: {spans:#?}");
    found[0].clone()
}

fn attribute<'a>(span: &'a Span, key: &str) -> &'a str {
    span.attributes.get(key).map_or("", String::as_str)
}

#[tokio::test]
async fn spans_of_both_sidecars_continue_the_callers_trace() {
    let mesh = Mesh::start().await;
    let collector = Collector::start(mesh.directory()).await;
    let shop = Shop::start(&mesh, &collector.endpoint()).await;
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let (trace, parent, flags) =
        shop.call(&[("traceparent", &traceparent), ("tracestate", "vendor=1")]).await;
    assert_eq!(shop.orders.only().header("tracestate"), "vendor=1");
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));

    let spans = collector.wait(TRACE, 2).await;
    let (client, server) = (only(&spans, "client"), only(&spans, "server"));
    assert_eq!(client.parent, PARENT, "the caller's span is the parent of the first");
    assert_eq!(server.parent, client.id);
    assert_eq!(parent, server.id, "the application goes on from the last");
    assert_eq!((client.name.as_str(), server.name.as_str()), ("GET orders.shop", "GET orders.shop"));
    for (span, service, workload) in [(&client, "front", "front"), (&server, "orders", "orders-1")] {
        assert_eq!(span.resource["service.name"], service);
        assert_eq!(span.resource["service.namespace"], "shop");
        assert_eq!(span.resource["service.instance.id"], workload);
        for (key, value) in [
            ("http.request.method", "GET"),
            ("http.response.status_code", "200"),
            ("url.path", "/v1/orders"),
            ("url.scheme", "http"),
            ("server.address", "orders.shop"),
            ("server.port", "80"),
            ("network.protocol.name", "http"),
            ("network.protocol.version", "1.1"),
        ] {
            assert_eq!(attribute(span, key), value, "{key}: {span:#?}");
        }
        assert!(span.attributes.contains_key("outrigger.processing_ms"), "{span:#?}");
    }
    assert_eq!(attribute(&client, "outrigger.peer.identity"), "spiffe://mesh.local/ns/shop/sa/orders");
    assert_eq!(attribute(&server, "outrigger.peer.identity"), "spiffe://mesh.local/ns/shop/sa/front");
    assert_eq!(attribute(&client, "url.full"), "http://orders.shop/v1/orders");
    assert!(
        spans.iter().all(|span| span.attributes.values().all(|value| !value.contains("page=2"))),
        "no query"
    );
    for sidecar in [&shop.front, &shop.back] {
        until("the span is counted", || async {
            sidecar.metrics().await.value("mesh_spans_exported_total") == 1.0
        })
        .await;
    }
}

#[tokio::test]
async fn a_trace_goes_through_an_application_that_hands_its_context_on() {
    let mesh = Mesh::start().await;
    let collector = Collector::start(mesh.directory()).await;
    let orders = App::start("orders").await;
    let _back =
        exports(mesh.sidecar("orders-1").serves("orders", &orders), &collector.endpoint()).start().await;
    let next: Arc<OnceLock<Client>> = Arc::default();
    let storefront = {
        let next = next.clone();
        App::with("storefront", move |incoming| {
            let next = next.get().cloned().expect("set before the first request");
            async move {
                let context = incoming.headers()["traceparent"].to_str().map_err(std::io::Error::other)?;
                let onward = request(Method::GET, "orders.shop", "/", &[("traceparent", context)], "");
                let answer =
                    next.send(onward).await.map_err(|broken| std::io::Error::other(format!("{broken:?}")))?;
                Ok(ok(answer.body))
            }
        })
        .await
    };
    let middle = mesh.sidecar("storefront-1").serves("storefront", &storefront).calls(&["orders.shop"]);
    let middle = exports(middle, &collector.endpoint()).start().await;
    assert!(next.set(middle.client()).is_ok());
    let edge = exports(mesh.sidecar("edge").calls(&["storefront.shop"]), &collector.endpoint()).start().await;
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let request = request(Method::GET, "storefront.shop", "/", &[("traceparent", &traceparent)], "");
    assert_eq!(edge.client().send(request).await.unwrap().text(), "orders");

    let spans = collector.wait(TRACE, 4).await;
    let of = |service: &str| -> Vec<_> {
        spans.iter().filter(|span| span.resource["service.name"] == service).cloned().collect()
    };
    let chain = [
        only(&of("edge"), "client"),
        only(&of("storefront"), "server"),
        only(&of("storefront"), "client"),
        only(&of("orders"), "server"),
    ];
    let mut parent = PARENT.to_owned();
    for span in chain {
        assert_eq!(span.parent, parent, "{span:#?}");
        parent = span.id;
    }
    assert_eq!(context(orders.only().header("traceparent")).1, parent);
    assert_eq!(collector.spans().len(), 4, "and none besides");
}

#[tokio::test]
async fn sampling_of_new_traces_is_what_the_mesh_config_says() {
    let mesh = Mesh::start().await;
    let collector = Collector::start(mesh.directory()).await;
    set_sampling(&mesh, 0.0);
    let shop = Shop::start(&mesh, &collector.endpoint()).await;
    // Whichever way it came: what the sidecar knows at its first request is the mesh's.
    let (unsampled, _, flags) = shop.call(&[]).await;
    assert_eq!(flags, "00");

    set_sampling(&mesh, 1.0);
    until("sidecars follow the new setting", || async { shop.call(&[]).await.2 == "01" }).await;
    let (trace, parent, _) = shop.call(&[]).await;
    let spans = collector.wait(&trace, 2).await;
    let (client, server) = (only(&spans, "client"), only(&spans, "server"));
    assert!(
        client.parent.bytes().all(|digit| digit == b'0'),
        "a trace that starts here has no parent: {client:#?}"
    );
    assert_eq!((&server.parent, &server.id), (&client.id, &parent));

    // Who decided against sampling is obeyed, and his trace goes on all the same.
    let refused = format!("00-{TRACE}-{PARENT}-00");
    let (trace, parent, flags) = shop.call(&[("traceparent", &refused)]).await;
    assert_eq!((trace.as_str(), parent.as_str(), flags.as_str()), (TRACE, PARENT, "00"));
    // A later trace is there, so the queue before it has been sent.
    let (later, _, _) = shop.call(&[]).await;
    collector.wait(&later, 2).await;
    assert_eq!(collector.trace(TRACE), []);
    assert_eq!(collector.trace(&unsampled), []);
}

#[tokio::test]
async fn b3_comes_in_and_trace_context_goes_out() {
    let mesh = Mesh::start().await;
    let collector = Collector::start(mesh.directory()).await;
    let shop = Shop::start(&mesh, &collector.endpoint()).await;
    let single = format!("{TRACE}-{PARENT}-1");
    let (trace, parent, flags) = shop.call(&[("b3", &single)]).await;
    assert_eq!((trace.as_str(), flags.as_str()), (TRACE, "01"));
    let spans = collector.wait(TRACE, 2).await;
    assert_eq!(only(&spans, "client").parent, PARENT);
    assert_eq!(only(&spans, "server").id, parent);

    let other = "463ac35c9f6413ad48485a3953bb6124";
    let headers = [("x-b3-traceid", other), ("x-b3-spanid", PARENT), ("x-b3-sampled", "1")];
    let (trace, _, flags) = shop.call(&headers).await;
    assert_eq!((trace.as_str(), flags.as_str()), (other, "01"));
    assert_eq!(only(&collector.wait(other, 2).await, "client").parent, PARENT);
}

#[tokio::test]
async fn a_failure_is_an_error_of_the_spans_it_belongs_to() {
    let mesh = Mesh::start().await;
    let collector = Collector::start(mesh.directory()).await;
    let shop = Shop::start(&mesh, &collector.endpoint()).await;
    let client = shop.front.client();
    for (number, status, of_client, of_server) in [(1, "500", "500", "500"), (2, "404", "404", "")] {
        let trace = format!("{number:032x}");
        let traceparent = format!("00-{trace}-{PARENT}-01");
        let headers = [("traceparent", traceparent.as_str()), ("x-app-status", status)];
        let answer = client.send(request(Method::GET, "orders.shop", "/", &headers, "")).await.unwrap();
        assert_eq!(answer.status.as_str(), status);
        let spans = collector.wait(&trace, 2).await;
        assert_eq!(attribute(&only(&spans, "client"), "error.type"), of_client, "{spans:#?}");
        assert_eq!(attribute(&only(&spans, "server"), "error.type"), of_server, "{spans:#?}");
        for span in &spans {
            assert_eq!(attribute(span, "http.response.status_code"), status);
            let failed = span.status.to_lowercase().contains("error");
            assert_eq!(failed, span.attributes.contains_key("error.type"), "{span:#?}");
        }
    }
}

#[tokio::test]
async fn a_dead_collector_costs_spans_and_no_request() {
    let mesh = Mesh::start().await;
    let collector = Collector::start(mesh.directory()).await;
    let endpoint = collector.endpoint();
    drop(collector);
    let shop = Shop::start(&mesh, &endpoint).await;
    let client = shop.front.client();
    let requests = 50;
    for number in 1..=requests {
        let traceparent = format!("00-{number:032x}-{PARENT}-01");
        let request = request(Method::GET, "orders.shop", "/", &[("traceparent", &traceparent)], "");
        assert_eq!(client.send(request).await.unwrap().status, 200);
    }
    for (sidecar, direction) in [(&shop.front, "outbound"), (&shop.back, "inbound")] {
        until("every span is counted as dropped", || async {
            sidecar.metrics().await.sum("mesh_spans_dropped_total", &[("reason", "export_failed")])
                == f64::from(requests)
        })
        .await;
        let metrics = sidecar.metrics().await;
        assert_eq!(metrics.value("mesh_spans_exported_total"), 0.0);
        let succeeded = [("direction", direction), ("status", "200"), ("reason", "")];
        assert_eq!(metrics.sum("mesh_requests_total", &succeeded), f64::from(requests));
    }
}

#[tokio::test]
async fn a_collector_that_hangs_holds_a_bounded_number_of_spans_and_no_request() {
    let mesh = Mesh::start().await;
    // Its connections wait in the accept queue for ever.
    let hung = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", hung.local_addr().unwrap());
    let orders = App::start("orders").await;
    let _back = mesh.replica("orders-1", "orders", &orders).await;
    let front = exports(mesh.sidecar("front").calls(&["orders.shop"]), &endpoint);
    let (queue, batch) = (8, 1);
    let front = front.env("OTEL_BSP_MAX_QUEUE_SIZE", &queue.to_string());
    let front = front.env("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", &batch.to_string()).start().await;
    let client = front.client();
    let requests = 50;
    for number in 1..=requests {
        let traceparent = format!("00-{number:032x}-{PARENT}-01");
        let request = request(Method::GET, "orders.shop", "/", &[("traceparent", &traceparent)], "");
        assert_eq!(client.send(request).await.unwrap().status, 200);
    }
    until("what the queue does not hold is counted", || async {
        let full = front.metrics().await.sum("mesh_spans_dropped_total", &[("reason", "queue_full")]);
        full >= f64::from(requests - queue - batch)
    })
    .await;
    assert_eq!(front.metrics().await.value("mesh_spans_exported_total"), 0.0);
}

#[tokio::test]
async fn a_sidecar_that_drains_takes_no_span_with_it() {
    let mesh = Mesh::start().await;
    let collector = Collector::start(mesh.directory()).await;
    let orders = App::start("orders").await;
    // A batch that would wait for longer than the test.
    let endpoint = collector.endpoint();
    let back = exports(mesh.sidecar("orders-1").serves("orders", &orders), &endpoint);
    let front = exports(mesh.sidecar("front").calls(&["orders.shop"]), &endpoint);
    let mut back = back.env("OTEL_BSP_SCHEDULE_DELAY", "600000").start().await;
    let mut front = front.env("OTEL_BSP_SCHEDULE_DELAY", "600000").start().await;
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let request = request(Method::GET, "orders.shop", "/", &[("traceparent", &traceparent)], "");
    assert_eq!(front.client().send(request).await.unwrap().status, 200);
    for sidecar in [&mut front, &mut back] {
        sidecar.process.signal(Signal::TERM);
        assert!(sidecar.process.end().await.success());
    }
    collector.wait(TRACE, 2).await;
}

#[tokio::test]
async fn spans_go_to_the_registry_unless_told_otherwise() {
    let mesh = Mesh::start().await;
    let orders = App::start("orders").await;
    let _back = mesh.replica("orders-1", "orders", &orders).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let request = request(Method::GET, "orders.shop", "/", &[("traceparent", &traceparent)], "");
    assert_eq!(front.client().send(request).await.unwrap().status, 200);
    let page = format!("/v1/traces/{TRACE}");
    let spans = async || -> Vec<Value> {
        let (_, body) = mesh.get(&page).await;
        let page: Value = serde_json::from_str(&body).unwrap_or_default();
        page["spans"].as_array().cloned().unwrap_or_default()
    };
    until("the registry has both spans", || async { spans().await.len() == 2 }).await;
    let spans = spans().await;
    let of =
        |kind: &str| spans.iter().find(|span| span["kind"] == kind).unwrap_or_else(|| panic!("{spans:#?}"));
    let (client, server) = (of("client"), of("server"));
    assert_eq!(client["parent_span_id"], PARENT);
    assert_eq!(server["parent_span_id"], client["span_id"]);
    assert_eq!(context(orders.only().header("traceparent")).1, server["span_id"].as_str().unwrap());
    assert_eq!((&client["service"], &server["service"]), (&"front".into(), &"orders".into()));
    assert_eq!(client["sender"], "spiffe://mesh.local/ns/shop/sa/front");
    assert_eq!(server["sender"], "spiffe://mesh.local/ns/shop/sa/orders");
    let (_, list) = mesh.get("/v1/traces?service=orders").await;
    assert!(list.contains(TRACE), "{list}");
}
