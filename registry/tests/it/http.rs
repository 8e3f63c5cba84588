//! What people read on 15014.

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use serde_json::json;

use crate::harness::{Mesh, until, workload};

#[tokio::test]
async fn services_show_endpoints_identities_health_and_lease_age() {
    let mesh = Mesh::start("").await;
    assert_eq!(mesh.get("/v1/services").await, (200, json!({ "services": [] })));
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap();
    watcher.until("orders.shop", |service| service.is_some()).await;
    let (status, service) = mesh.get("/v1/services/shop/orders").await;
    let endpoint = &service["endpoints"][0];
    assert_eq!(
        (status, service["ports"].clone()),
        (200, json!([{ "port": 80, "name": "", "protocol": "http1" }]))
    );
    assert_eq!(service["addresses"], json!([]));
    assert_eq!(endpoint["identity"], "spiffe://mesh.local/ns/shop/sa/orders");
    assert_eq!(
        (&endpoint["workload"], &endpoint["address"], &endpoint["zone"]),
        (&json!("w1"), &json!("127.0.0.1"), &json!("z1"))
    );
    assert_eq!(
        (&endpoint["mesh_port"], &endpoint["target_port"], &endpoint["healthy"]),
        (&json!(15008), &json!(8080), &json!(true))
    );
    assert!(endpoint["lease_age_ms"].as_u64().unwrap() < 10_000 && endpoint["lease_ttl_ms"] == 10_000);
    let (_, list) = mesh.get("/v1/services").await;
    assert_eq!((&list["services"][0]["endpoints"], &list["services"][0]["healthy"]), (&json!(1), &json!(1)));
    assert_eq!(mesh.metric("mesh_registry_endpoints{health=\"healthy\"}").await, 1.0);
    assert_eq!(mesh.metric("mesh_registry_services").await, 1.0);
    assert_eq!(mesh.metric("mesh_registry_streams").await, 1.0);
    assert!(mesh.metric("mesh_registry_pushes_total").await >= 3.0);
    assert!(mesh.metric("mesh_certificate_expiry_timestamp_seconds{certificate=\"root\"}").await > 1.9e9);
    until("the change is timed", || async {
        mesh.metric("mesh_registry_convergence_seconds_count").await >= 1.0
    })
    .await;
}

#[tokio::test]
async fn nothing_can_be_written_and_errors_are_json() {
    let mesh = Mesh::start("").await;
    for path in ["/live", "/ready"] {
        assert_eq!(mesh.get(path).await.0, 200);
    }
    for path in ["/", "/v1/services/shop/none", "/v1/services/BAD/x", "/v1/traces/none", "/v1/services/"] {
        let (status, body) = mesh.get(path).await;
        assert!(status == 404 && body["error"].is_string(), "{path}: {status} {body}");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH"] {
        for path in ["/v1/services", "/v1/services/shop/orders", "/v1/traces", "/metrics", "/ready"] {
            let (status, body) = mesh.http(method, path).await;
            assert!(status == 405 && body.contains("outrigger apply"), "{method} {path}: {status} {body}");
        }
    }
    let (status, body) = mesh.get("/v1/traces?limit=many").await;
    assert!(status == 400 && body["error"].is_string(), "{body}");
}

#[tokio::test]
async fn spans_from_sidecars_are_kept_and_shown_and_bounded() {
    let mesh = Mesh::start("traces:\n  max_spans: 10\n").await;
    let sidecar = mesh.sidecar("shop", "front", &[]).await;
    let mut client = TraceServiceClient::new(sidecar.channel.clone());
    let name = AnyValue { value: Some(Any::StringValue("front.shop".into())) };
    let attribute = KeyValue { key: "service.name".into(), value: Some(name), ..Default::default() };
    for n in 1..=25u8 {
        let span = Span {
            trace_id: vec![n; 16],
            span_id: vec![n; 8],
            name: format!("GET /{n}"),
            start_time_unix_nano: 1_700_000_000_000_000_000,
            end_time_unix_nano: 1_700_000_000_005_000_000,
            kind: 2,
            ..Default::default()
        };
        let resource = Resource { attributes: vec![attribute.clone()], ..Default::default() };
        let scope_spans = vec![ScopeSpans { spans: vec![span], ..Default::default() }];
        let resource_spans =
            vec![ResourceSpans { resource: Some(resource), scope_spans, ..Default::default() }];
        client.export(ExportTraceServiceRequest { resource_spans }).await.unwrap();
    }
    let (_, list) = mesh.get("/v1/traces?service=front.shop&limit=3").await;
    let roots: Vec<_> = list["traces"].as_array().unwrap().iter().map(|t| t["root"].clone()).collect();
    assert_eq!(roots, ["GET /25", "GET /24", "GET /23"]);
    assert_eq!(list["traces"][0]["duration_ms"], 5.0);
    assert_eq!(mesh.get("/v1/traces").await.1["traces"].as_array().unwrap().len(), 10);
    assert_eq!(mesh.get("/v1/traces?service=other.shop").await.1, json!({ "traces": [] }));
    let (status, trace) = mesh.get(&format!("/v1/traces/{}", "19".repeat(16))).await;
    assert_eq!((status, &trace["spans"][0]["kind"]), (200, &json!("server")));
    assert_eq!(trace["spans"][0]["sender"], "spiffe://mesh.local/ns/shop/sa/front");
    assert_eq!(mesh.get(&format!("/v1/traces/{}", "01".repeat(16))).await.0, 404);
    assert_eq!(mesh.metric("mesh_registry_spans_received_total").await, 25.0);
    assert_eq!(mesh.metric("mesh_registry_spans_stored").await, 10.0);
}
