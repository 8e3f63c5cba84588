//! Whose an address is, and what the mesh says of plaintext and of leaving it: on the wire.

use outrigger_api::document::parse_yaml;
use outrigger_api::v1;
use tonic::{Code, Status};

use crate::harness::{Mesh, hello, refused, until, workload};

fn documents(yaml: &str) -> Vec<v1::Resource> {
    let sent = |resource: &outrigger_api::resource::Resource| v1::Resource {
        kind: resource.kind().into(),
        namespace: resource.namespace().into(),
        name: resource.name().into(),
        json: resource.to_json(),
        revision: 0,
    };
    parse_yaml("mesh.yaml".as_ref(), yaml).unwrap().iter().map(sent).collect()
}

fn service(name: &str, spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}\n---\n"
    )
}

async fn send(mesh: &Mesh, yaml: &str, delete: bool) -> Result<(), Status> {
    let request = v1::ApplyRequest { resources: documents(yaml), delete, dry_run: false };
    mesh.admin().apply(request).await.map(|_| ())
}

async fn apply(mesh: &Mesh, yaml: &str) {
    send(mesh, yaml, false).await.unwrap();
}

/// A workload at an address, with an application on port 8080.
fn at(id: &str, name: &str, address: &str) -> v1::RegisterRequest {
    v1::RegisterRequest { address: address.into(), ..workload(id, name, 80) }
}

#[tokio::test]
async fn addresses_are_answered_at_once_and_followed_from_then_on() {
    let mesh = Mesh::start("").await;
    apply(
        &mesh,
        &service("orders", "{ports: [{port: 80, protocol: http1}], addresses: [10.0.9.1, \"fd00::9\"]}"),
    )
    .await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    let first = server.register(at("w1", "orders.shop", "10.1.0.1")).await.unwrap();
    let (_, page) = mesh.get("/v1/services/shop/orders").await;
    assert_eq!(page["addresses"], serde_json::json!(["10.0.9.1", "fd00::9"]));
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&[]).await;
    assert_eq!(watcher.welcome.features, ["addresses"]);
    let asked = ["10.0.9.1:80", "[fd00::9]:80", "10.1.0.1:8080", "10.0.9.1:81", "[::ffff:10.1.0.2]:8080"];
    watcher.ask_about(&asked, &[]).await;
    watcher.owned_by("10.0.9.1:80", "orders.shop 80 ").await;
    watcher.owned_by("[fd00::9]:80", "orders.shop 80 ").await;
    watcher.owned_by("10.1.0.1:8080", "orders.shop 80 w1").await;
    watcher.owned_by("10.0.9.1:81", "").await;
    watcher.owned_by("10.1.0.2:8080", "").await;
    assert!(watcher.held.is_empty(), "nobody asked for services");

    let second = server.register(at("w2", "orders.shop", "10.1.0.2")).await.unwrap();
    watcher.owned_by("10.1.0.2:8080", "orders.shop 80 w2").await;
    server.deregister(&first.lease, 0).await.unwrap();
    watcher.owned_by("10.1.0.1:8080", "").await;
    // Its address is given to another before its own lease ends.
    server.register(at("w3", "orders.shop", "10.1.0.2")).await.unwrap();
    watcher.owned_by("10.1.0.2:8080", "orders.shop 80 w3").await;
    server.deregister(&second.lease, 0).await.unwrap();
    apply(
        &mesh,
        &service("orders", "{ports: [{port: 80, protocol: http1}, {port: 81}], addresses: [10.0.9.1]}"),
    )
    .await;
    watcher.owned_by("[fd00::9]:80", "").await;
    watcher.owned_by("10.0.9.1:81", "orders.shop 81 ").await;
    assert_eq!(watcher.owners["10.1.0.2:8080"], "orders.shop 80 w3", "the other one's end is not this one's");

    // Nothing more about what it gave up.
    watcher.ask_about(&[], &["10.0.9.1:81"]).await;
    watcher.subscribe(&["orders.shop"], &[]).await;
    watcher.until("orders.shop", |service| service.is_some()).await;
    apply(&mesh, &service("orders", "{ports: [{port: 80, protocol: http1}], addresses: [10.0.9.2]}")).await;
    watcher.owned_by("10.0.9.1:80", "").await;
    assert_eq!(watcher.owners["10.0.9.1:81"], "orders.shop 81 ");
}

#[tokio::test]
async fn the_end_of_a_lease_leaves_the_address_to_nobody() {
    let mesh = Mesh::start("lease_ttl: 1s\n").await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&[]).await;
    watcher.ask_about(&["10.1.0.1:8080"], &[]).await;
    let registering = async {
        loop {
            server.register(at("w1", "orders.shop", "10.1.0.1")).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    };
    tokio::select! {
        () = registering => {}
        () = watcher.owned_by("10.1.0.1:8080", "orders.shop 80 w1") => {}
    }
    watcher.owned_by("10.1.0.1:8080", "").await;
}

#[tokio::test]
async fn a_returning_sidecar_hears_of_the_addresses_that_changed_hands() {
    let mesh = Mesh::start("").await;
    apply(&mesh, &service("orders", "{ports: [{port: 80}], addresses: [10.0.9.1, 10.0.9.2]}")).await;
    let front = mesh.sidecar("shop", "front", &[]).await;
    let mut watcher = front.watch(&[]).await;
    watcher.ask_about(&["10.0.9.1:80", "10.0.9.2:80", "10.0.9.3:80"], &[]).await;
    watcher.owned_by("10.0.9.3:80", "").await;
    let cursor = watcher.cursor.clone();
    drop(watcher);
    apply(&mesh, &service("orders", "{ports: [{port: 80}], addresses: [10.0.9.1, 10.0.9.3]}")).await;
    let orders = |address: &str| v1::AddressOwner {
        address: address.into(),
        service: "orders.shop".into(),
        port: 80,
        workload: String::new(),
    };
    let nobody = v1::AddressOwner { address: "10.0.9.3:80".into(), ..Default::default() };
    // Whether the cursor is one the registry knows or not.
    for cursor in [cursor, b"rubbish".to_vec()] {
        let addresses = vec![orders("10.0.9.1:80"), orders("10.0.9.2:80"), nobody.clone()];
        let mut again = front.hello(v1::Hello { addresses, ..hello(&cursor, &[]) }).await.unwrap();
        again.update().await;
        let told: Vec<_> = again.owners.iter().map(|(at, owner)| (at.as_str(), owner.as_str())).collect();
        assert_eq!(told, [("10.0.9.2:80", ""), ("10.0.9.3:80", "orders.shop 80 ")]);
    }
}

#[tokio::test]
async fn a_stream_asks_about_so_many_addresses_and_makes_sense() {
    let mesh = Mesh::start("").await;
    let front = mesh.sidecar("shop", "front", &[]).await;
    let many: Vec<_> = (0..8192u32).map(|n| format!("10.2.{}.{}:80", n / 256, n % 256)).collect();
    let many: Vec<_> = many.iter().map(String::as_str).collect();
    let mut watcher = front.watch(&[]).await;
    watcher.ask_about(&many, &[]).await;
    watcher.owned_by(many[8191], "").await;
    // Full: one may go for another, but no more.
    watcher.ask_about(&["10.3.0.1:80"], &many[..1]).await;
    watcher.owned_by("10.3.0.1:80", "").await;
    watcher.ask_about(&["10.3.0.2:80"], &[]).await;
    let end = watcher.end().await;
    assert_eq!(end.code(), Code::ResourceExhausted, "{end:?}");
    assert!(end.message().contains("8192"), "{end:?}");

    let mut watcher = front.watch(&[]).await;
    watcher.ask_about(&["orders.shop:80"], &[]).await;
    assert_eq!(watcher.end().await.code(), Code::InvalidArgument);
    let bad = v1::AddressOwner { address: "10.0.9.1:80".into(), service: "Bad".into(), ..Default::default() };
    let bad = v1::Hello { addresses: vec![bad], ..hello(&[], &[]) };
    refused(front.hello(bad).await.map(|_| ()), Code::InvalidArgument, "Bad");
    until("no stream is left", || async { mesh.metric("mesh_registry_streams").await == 0.0 }).await;
}

#[tokio::test]
async fn an_address_with_a_port_is_one_services() {
    let mesh = Mesh::start("").await;
    let orders = service("orders", "{ports: [{port: 80}], addresses: [10.0.9.1, 10.0.9.2]}");
    apply(&mesh, &orders).await;
    let items = service("items", "{ports: [{port: 443}, {port: 80}], addresses: [10.0.9.2]}");
    let words = "Service items.shop: 10.0.9.2 with port 80 is the address of Service orders.shop already";
    refused(send(&mesh, &items, false).await, Code::FailedPrecondition, words);
    // Nothing of a request that is refused is written, and two within one are seen as well.
    let both = service("a", "{ports: [{port: 1}], addresses: [10.0.9.7]}")
        + &service("b", "{ports: [{port: 1}], addresses: [10.0.9.7]}");
    refused(
        send(&mesh, &both, false).await,
        Code::FailedPrecondition,
        "Service b.shop: 10.0.9.7 with port 1",
    );
    let listed = mesh.admin().get(v1::GetRequest { kind: "Service".into(), ..Default::default() }).await;
    assert_eq!(listed.unwrap().into_inner().resources.len(), 1);

    // The same address on another port is another's; so is one that is given up in the same request.
    apply(&mesh, &service("items", "{ports: [{port: 443}], addresses: [10.0.9.2]}")).await;
    let swapped = service("orders", "{ports: [{port: 80}], addresses: [10.0.9.1]}") + &items;
    apply(&mesh, &swapped).await;
    apply(&mesh, &swapped).await;
    send(&mesh, &items, true).await.unwrap();
    apply(&mesh, &orders).await;
}

#[tokio::test]
async fn of_two_applied_at_once_one_has_the_address() {
    let mesh = Mesh::start("").await;
    for round in 0..20 {
        let service = |name: &str| {
            service(
                &format!("{name}{round}"),
                &format!("{{ports: [{{port: 80}}], addresses: [10.9.0.{round}]}}"),
            )
        };
        let (a, b) = (service("a"), service("b"));
        let (a, b) = tokio::join!(send(&mesh, &a, false), send(&mesh, &b, false));
        assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    }
}

#[tokio::test]
async fn modes_of_the_mesh_reach_every_sidecar() {
    let mesh = Mesh::start("").await;
    let front = mesh.sidecar("shop", "front", &[]).await;
    let mut watcher = front.watch(&[]).await;
    assert_eq!(watcher.modes, Some((v1::MtlsMode::Strict, v1::EgressMode::Allow)));
    let config = |spec: &str| {
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {spec}\n"
        )
    };
    let open = config("{mtls: {mode: permissive}, egress: {mode: deny}}");
    apply(&mesh, &open).await;
    watcher.update().await;
    assert_eq!(watcher.modes, Some((v1::MtlsMode::Permissive, v1::EgressMode::Deny)));
    send(&mesh, &open, true).await.unwrap();
    watcher.update().await;
    assert_eq!(watcher.modes, Some((v1::MtlsMode::Strict, v1::EgressMode::Allow)));
}
