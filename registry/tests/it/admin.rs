//! What the administrator writes and reads.

use outrigger_api::resource::Resource;
use outrigger_api::v1;
use outrigger_api::v1::applied::Outcome;
use serde_json::{Value, json};
use tonic::Code;

use crate::harness::{Mesh, refused, served, workload};

fn service(name: &str, namespace: &str, ports: &Value) -> v1::Resource {
    let json = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "Service",
        "metadata": { "name": name, "namespace": namespace }, "spec": { "ports": ports },
    });
    v1::Resource {
        kind: "Service".into(),
        namespace: namespace.into(),
        name: name.into(),
        json: json.to_string(),
        revision: 0,
    }
}

fn mesh_config(ratio: f64) -> v1::Resource {
    let json = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "MeshConfig", "metadata": { "name": "default" },
        "spec": { "tracing": { "samplingRatio": ratio } },
    });
    v1::Resource {
        kind: "MeshConfig".into(),
        name: "default".into(),
        json: json.to_string(),
        ..Default::default()
    }
}

async fn apply(
    mesh: &Mesh,
    resources: Vec<v1::Resource>,
    delete: bool,
) -> Result<Vec<Outcome>, tonic::Status> {
    let request = v1::ApplyRequest { resources, delete, dry_run: false };
    let results = mesh.admin().apply(request).await?.into_inner().results;
    Ok(results.iter().map(v1::Applied::outcome).collect())
}

async fn get(
    mesh: &Mesh,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<Vec<v1::Resource>, tonic::Status> {
    let request = v1::GetRequest { kind: kind.into(), namespace: namespace.into(), name: name.into() };
    Ok(mesh.admin().get(request).await?.into_inner().resources)
}

#[tokio::test]
async fn resources_are_created_configured_unchanged_deleted_and_read_back() {
    let mesh = Mesh::start("").await;
    let first = service("orders", "shop", &json!([{ "port": 80 }]));
    let second = service("orders", "shop", &json!([{ "port": 81, "protocol": "grpc" }]));
    assert_eq!(
        apply(&mesh, vec![first.clone(), mesh_config(0.5)], false).await.unwrap(),
        [Outcome::Created; 2]
    );
    assert_eq!(
        apply(&mesh, vec![first.clone(), mesh_config(1.0)], false).await.unwrap(),
        [Outcome::Unchanged, Outcome::Configured]
    );
    let dry = v1::ApplyRequest { resources: vec![second.clone()], delete: false, dry_run: true };
    let dry = mesh.admin().apply(dry).await.unwrap().into_inner();
    assert_eq!(dry.results[0].outcome(), Outcome::Configured);
    let read = get(&mesh, "Service", "shop", "orders").await.unwrap();
    assert_eq!(Resource::from_json(&read[0].json).unwrap(), Resource::from_json(&first.json).unwrap());
    assert!(read[0].revision > 0);
    apply(&mesh, vec![second], false).await.unwrap();
    assert_eq!(get(&mesh, "MeshConfig", "", "").await.unwrap().len(), 1);
    assert_eq!(
        apply(&mesh, vec![first.clone(), mesh_config(0.0)], true).await.unwrap(),
        [Outcome::Deleted; 2]
    );
    assert_eq!(apply(&mesh, vec![first], true).await.unwrap(), [Outcome::Unchanged]);
    refused(get(&mesh, "Service", "shop", "orders").await, Code::NotFound, "no Service orders in shop");
    assert_eq!(get(&mesh, "Service", "", "").await.unwrap(), []);
}

#[tokio::test]
async fn one_bad_resource_changes_nothing() {
    let mesh = Mesh::start("").await;
    let good = service("orders", "shop", &json!([{ "port": 80 }]));
    let zero = service("payments", "shop", &json!([{ "port": 0 }]));
    let renamed = v1::Resource { name: "other".into(), ..good.clone() };
    let unknown = v1::Resource { kind: "Topic".into(), ..good.clone() };
    for (bad, words) in [
        (zero, "Service payments.shop"),
        (renamed, "names another resource"),
        (unknown, "version"),
        (good.clone(), "twice"),
    ] {
        refused(apply(&mesh, vec![good.clone(), bad], false).await, Code::InvalidArgument, words);
    }
    assert_eq!(get(&mesh, "Service", "", "").await.unwrap(), []);
    refused(get(&mesh, "Topic", "", "").await, Code::InvalidArgument, "Workload");
}

#[tokio::test]
async fn an_applied_service_says_which_ports_there_are() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    apply(&mesh, vec![service("orders", "shop", &json!([{ "port": 80, "protocol": "http1" }]))], false)
        .await
        .unwrap();
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.ports.len() == 1)).await;
    let mut request = workload("w1", "orders.shop", 81);
    refused(sidecar.register(request.clone()).await, Code::FailedPrecondition, "has no port 81, only 80");
    request.ports = vec![served("orders.shop", 80, v1::Protocol::Grpc)];
    refused(sidecar.register(request).await, Code::FailedPrecondition, "declares port 80 as http1");
    // What a workload leaves open, the Service may say.
    let mut open = workload("w1", "orders.shop", 80);
    open.ports = vec![served("orders.shop", 80, v1::Protocol::Unspecified)];
    sidecar.register(open).await.unwrap();
    sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap();
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.len() == 1)).await;
    // A port it no longer has takes its endpoints along, in the same update.
    apply(&mesh, vec![service("orders", "shop", &json!([{ "port": 90 }]))], false).await.unwrap();
    watcher
        .until("orders.shop", |s| s.is_some_and(|s| s.endpoints.is_empty() && s.ports[0].number == 90))
        .await;
}

#[tokio::test]
async fn deleting_a_service_takes_no_running_workload_off_the_mesh() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    let applied = service("orders", "shop", &json!([{ "port": 80, "protocol": "http1" }, { "port": 90 }]));
    apply(&mesh, vec![applied.clone()], false).await.unwrap();
    let lease = sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.len() == 1)).await;
    assert_eq!(apply(&mesh, vec![applied.clone()], true).await.unwrap(), [Outcome::Deleted]);
    watcher.until("orders.shop", |service| service.is_none_or(|s| s.ports.len() == 1)).await;
    assert_eq!(watcher.workloads("orders.shop"), ["w1"]);
    // What it serves still counts: for who asks, for who registers, for who deletes.
    assert_eq!(get(&mesh, "Service", "shop", "orders").await.unwrap().len(), 1);
    let mut other = workload("w2", "orders.shop", 80);
    other.ports = vec![served("orders.shop", 80, v1::Protocol::Grpc)];
    refused(sidecar.register(other).await, Code::FailedPrecondition, "http1 to workload w1");
    sidecar.register(workload("w2", "orders.shop", 81)).await.unwrap();
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.len() == 2)).await;
    let second = apply(&mesh, vec![applied.clone()], true).await.unwrap();
    assert_eq!(second, [Outcome::Unchanged], "nothing is left to delete while it is served");
    sidecar.deregister(&lease, 0).await.unwrap();
    assert_eq!(apply(&mesh, vec![applied], true).await.unwrap(), [Outcome::Deleted], "port 80");
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.ports.len() == 1)).await;
    assert_eq!(watcher.workloads("orders.shop"), ["w2"]);
}

#[tokio::test]
async fn mesh_settings_reach_every_stream() {
    let mesh = Mesh::start("").await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&[]).await;
    assert_eq!(watcher.sampling, Some(0.01));
    apply(&mesh, vec![mesh_config(1.0)], false).await.unwrap();
    watcher.update().await;
    assert_eq!(watcher.sampling, Some(1.0));
    apply(&mesh, vec![mesh_config(1.0)], true).await.unwrap();
    watcher.update().await;
    assert_eq!(watcher.sampling, Some(0.01));
}

#[tokio::test]
async fn workloads_and_tokens_are_shown_without_secrets() {
    let mesh = Mesh::start("").await;
    let sidecar = mesh.sidecar("shop", "orders", &["orders"]).await;
    sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap();
    let workloads = get(&mesh, "Workload", "shop", "").await.unwrap();
    let json: Value = serde_json::from_str(&workloads[0].json).unwrap();
    assert_eq!((workloads[0].name.as_str(), &json["ports"][0]["service"]), ("w1", &json!("orders.shop")));
    assert!(json["lease_age_ms"].as_u64().unwrap() < 10_000);
    let services = get(&mesh, "Service", "shop", "").await.unwrap();
    assert!(Resource::from_json(&services[0].json).is_ok(), "{services:?}");
    let token = mesh.token("shop", "front", &[], 60).await;
    let tokens = get(&mesh, "Token", "", "").await.unwrap();
    assert_eq!(tokens.len(), 2);
    for shown in &tokens {
        let json: Value = serde_json::from_str(&shown.json).unwrap();
        assert!(!shown.json.contains(&token.secret) && !shown.json.contains("hash"), "{json}");
        assert_eq!(json["used"].is_null(), shown.name == token.id);
    }
}
