//! Whose an address is, from the administrator's document to a sidecar that asks, through whatever
//! becomes of registry and sidecar.

use std::path::PathBuf;

use outrigger_proxy::control::disk::file::{Kind, decode_snapshot};
use outrigger_tests::app::App;
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::until;
use rustix::process::Signal;
use serde_json::{Value, json};

fn service(addresses: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: Service\nmetadata: {{name: orders, namespace: shop}}\nspec: {{ports: [{{port: 80, protocol: auto}}], addresses: {addresses}}}\n"
    )
}

/// Whose a sidecar finds an address to be: `service port`, with the workload where it is one's own.
async fn owner(sidecar: &Sidecar, address: &str) -> String {
    let (status, page) = sidecar.get(&format!("/addresses?of={address}")).await;
    assert_eq!(status, 200, "{page}");
    written(&serde_json::from_str(&page).unwrap())
}

fn written(owner: &Value) -> String {
    let [service, workload] = ["service", "workload"].map(|key| owner[key].as_str().unwrap_or_default());
    match owner["owner"].as_str() {
        Some("service") => format!("{service} {}", owner["port"]),
        Some("endpoint") => format!("{service} {} {workload}", owner["port"]),
        Some("outside") => "outside".to_owned(),
        other => panic!("{other:?} in {owner}"),
    }
}

async fn page(sidecar: &Sidecar) -> Value {
    serde_json::from_str(&sidecar.get("/addresses").await.1).unwrap_or_default()
}

/// What a sidecar holds of an address without asking; none: nothing.
async fn held(sidecar: &Sidecar, address: &str) -> Option<String> {
    let page = page(sidecar).await;
    let found = page["addresses"].as_array()?.iter().find(|known| known["address"] == address)?;
    Some(written(found))
}

async fn becomes(sidecar: &Sidecar, address: &str, owner: &str) {
    until(&format!("{address} is {owner}"), || async {
        held(sidecar, address).await.as_deref() == Some(owner)
    })
    .await;
}

async fn connected(sidecar: &Sidecar, value: f64) {
    until(&format!("{}: connected is {value}", sidecar.id), || async {
        sidecar.metrics().await.value("mesh_registry_connected") == value
    })
    .await;
}

/// How often the registry could not be asked.
async fn away(sidecar: &Sidecar) -> f64 {
    sidecar.metrics().await.sum("mesh_address_lookups_total", &[("result", "away")])
}

fn state(mesh: &Mesh) -> PathBuf {
    mesh.directory().join("front.state")
}

async fn front(mesh: &Mesh) -> Sidecar {
    mesh.sidecar("front").config(&json!({"state_dir": state(mesh)})).start().await
}

/// Waits until what a sidecar holds of an address is on disk.
async fn on_disk(mesh: &Mesh, address: &str, service: &str) {
    let file = state(mesh).join(Kind::Snapshot.name());
    until(&format!("{address} is on disk"), || async {
        let snapshot = std::fs::read(&file).ok().and_then(|file| decode_snapshot(&file).ok());
        let told = snapshot.map(|(_, changes)| format!("{changes:?}")).unwrap_or_default();
        told.contains(&format!("address: \"{address}\", service: \"{service}\""))
    })
    .await;
}

#[tokio::test]
async fn services_and_endpoints_are_known_by_address_and_the_rest_is_outside() {
    let mesh = Mesh::start().await;
    mesh.apply(&service("[10.0.9.1, \"fd00::9\"]")).await;
    let app = App::start("app").await;
    let replica = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    front.knows("orders.shop", &["orders-1"]).await;
    let own = app.address.to_string();
    for (address, wanted) in [
        ("10.0.9.1:80", "orders.shop 80"),
        ("[fd00::9]:80", "orders.shop 80"),
        ("[::ffff:10.0.9.1]:80", "orders.shop 80"),
        (&own, "orders.shop 80 orders-1"),
        ("10.0.9.1:81", "outside"),
        ("192.0.2.1:80", "outside"),
        (&front.outbound.to_string(), "outside"),
    ] {
        assert_eq!(owner(&front, address).await, wanted, "{address}");
    }
    let known: Vec<_> = page(&front).await["addresses"].as_array().unwrap().iter().map(written).collect();
    assert_eq!(known.len(), 5, "each once, and not its own: {known:?}");
    let metrics = front.metrics().await;
    assert_eq!(metrics.value("mesh_addresses_known"), 5.0);
    for (result, count) in [("asked", 5.0), ("known", 1.0), ("unasked", 1.0), ("away", 0.0)] {
        assert_eq!(metrics.sum("mesh_address_lookups_total", &[("result", result)]), count, "{result}");
    }
    assert_eq!(front.get("/addresses?of=orders.shop:80").await.0, 400);

    // What was asked is followed: a deregistration, a service changed and deleted.
    replica.process.signal(Signal::TERM);
    becomes(&front, &own, "outside").await;
    mesh.apply(&service("[10.0.9.2]")).await;
    becomes(&front, "10.0.9.1:80", "outside").await;
    assert_eq!(owner(&front, "10.0.9.2:80").await, "orders.shop 80");
    mesh.delete(&service("[10.0.9.2]")).await;
    becomes(&front, "10.0.9.2:80", "outside").await;
}

#[tokio::test]
async fn an_outage_of_the_registry_leaves_what_is_known_and_nothing_is_remembered_of_it() {
    let mut mesh = Mesh::start().await;
    mesh.apply(&service("[10.0.9.1, 10.0.9.2]")).await;
    let front = front(&mesh).await;
    assert_eq!(owner(&front, "10.0.9.1:80").await, "orders.shop 80");
    on_disk(&mesh, "10.0.9.1:80", "orders.shop").await;
    mesh.registry.kill();
    connected(&front, 0.0).await;
    let before = away(&front).await;
    assert_eq!(owner(&front, "10.0.9.1:80").await, "orders.shop 80");
    assert_eq!(owner(&front, "10.0.9.2:80").await, "outside", "it cannot be asked");
    assert_eq!(away(&front).await, before + 1.0);
    assert_eq!(held(&front, "10.0.9.2:80").await, None, "and that is no answer to keep");

    // A sidecar that starts in the outage has it from disk.
    let front = front.restart().await;
    assert_eq!(held(&front, "10.0.9.1:80").await.as_deref(), Some("orders.shop 80"));
    assert_eq!(owner(&front, "10.0.9.1:80").await, "orders.shop 80");

    mesh.restart_registry().await;
    connected(&front, 1.0).await;
    assert_eq!(owner(&front, "10.0.9.2:80").await, "orders.shop 80");
    // Both are followed again, the one resumed and the one asked since.
    mesh.apply(&service("[10.0.9.3]")).await;
    becomes(&front, "10.0.9.1:80", "outside").await;
    becomes(&front, "10.0.9.2:80", "outside").await;
}

#[tokio::test]
async fn what_changed_hands_while_a_sidecar_was_away_it_hears_on_its_return() {
    let mesh = Mesh::start().await;
    mesh.apply(&service("[10.0.9.1, 10.0.9.2]")).await;
    let mut front = front(&mesh).await;
    for (address, wanted) in
        [("10.0.9.1:80", "orders.shop 80"), ("10.0.9.2:80", "orders.shop 80"), ("10.0.9.3:80", "outside")]
    {
        assert_eq!(owner(&front, address).await, wanted);
    }
    on_disk(&mesh, "10.0.9.1:80", "orders.shop").await;
    on_disk(&mesh, "10.0.9.2:80", "orders.shop").await;
    on_disk(&mesh, "10.0.9.3:80", "").await;
    front.process.kill();
    mesh.apply(&service("[10.0.9.2, 10.0.9.3]")).await;
    front.start_again().await;
    becomes(&front, "10.0.9.1:80", "outside").await;
    becomes(&front, "10.0.9.3:80", "orders.shop 80").await;
    assert_eq!(held(&front, "10.0.9.2:80").await.as_deref(), Some("orders.shop 80"));
    assert!(front.process.log().contains("resumed=true"));
}

#[tokio::test]
async fn what_the_mesh_says_of_plaintext_and_of_leaving_it_is_in_force_everywhere() {
    let mesh = Mesh::start().await;
    let front = mesh.sidecar("front").start().await;
    let modes = |page: &Value| format!("{} {}", page["mtls"]["mode"], page["egress"]["mode"]);
    until("it is told", || async { modes(&page(&front).await) == r#""strict" "allow""# }).await;
    mesh.apply(
        "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {mtls: {mode: permissive}, egress: {mode: deny}}\n",
    )
    .await;
    until("both are in force", || async { modes(&page(&front).await) == r#""permissive" "deny""# }).await;
}
