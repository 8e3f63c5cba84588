//! The registry dies and comes back, under load.

use std::time::Instant;

use outrigger_api::v1;
use outrigger_tests::app::App;
use outrigger_tests::load::Load;
use outrigger_tests::wait::until;
use serde_json::json;

use crate::shop::{ORDERS, Shop, repeatable};

#[tokio::test]
async fn nothing_that_runs_needs_the_registry_and_it_forgets_nothing() {
    let mut shop = Shop::open(2).await;
    let payments = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "payments", "namespace": "shop"}, "spec": {"ports": [{"port": 80}]},
    });
    let resource = v1::Resource {
        kind: "Service".into(),
        namespace: "shop".into(),
        name: "payments".into(),
        json: payments.to_string(),
        revision: 0,
    };
    let request = v1::ApplyRequest { resources: vec![resource], ..Default::default() };
    shop.mesh.admin().apply(request).await.unwrap();
    let root = shop.mesh.admin_identity().bundle;

    let load = Load::start(&shop.front.client(), 150.0, repeatable);
    load.more(100).await;
    assert_eq!(shop.front.metrics().await.value("mesh_snapshot_age_seconds"), 0.0);
    shop.mesh.registry.kill();
    until("the sidecar notices", || async {
        shop.front.metrics().await.value("mesh_registry_connected") == 0.0
    })
    .await;
    let younger = shop.front.metrics().await.value("mesh_snapshot_age_seconds");
    load.more(300).await;
    let older = shop.front.metrics().await.value("mesh_snapshot_age_seconds");
    assert!(older > younger, "{older} after {younger}");
    for sidecar in shop.replicas.iter().chain([&shop.front]) {
        assert_eq!(sidecar.get("/ready").await.0, 200, "{} stays ready", sidecar.id);
    }
    assert_eq!(shop.front.workloads(ORDERS).await, ["orders-1", "orders-2"]);

    let begun = Instant::now();
    shop.mesh.restart_registry().await;
    // Before a single sidecar can have registered anew.
    let (_, page) = shop.mesh.get("/v1/services/shop/orders").await;
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    assert_eq!(page["endpoints"].as_array().unwrap().len(), 2, "{page}");
    assert_eq!(shop.mesh.get("/v1/services/shop/payments").await.0, 200);
    assert_eq!(shop.mesh.admin_identity().bundle, root);
    for sidecar in shop.replicas.iter().chain([&shop.front]) {
        until(&format!("{} is connected again", sidecar.id), || async {
            let metrics = sidecar.metrics().await;
            metrics.value("mesh_registry_connected") == 1.0
                && metrics.value("mesh_snapshot_age_seconds") == 0.0
        })
        .await;
    }
    println!("all sidecars connected {:?} after the registry was started again", begun.elapsed());

    let third = App::start("app-3").await;
    let _new = shop.mesh.replica("orders-3", "orders", &third).await;
    shop.front.knows_healthy(ORDERS, 3).await;
    load.answered_by("app-3", 1).await;
    load.stop().await.assert_clean("the registry killed and started again");
    for sidecar in shop.replicas.iter().chain([&shop.front]) {
        assert!(!sidecar.process.log().contains("registering again"), "no lease was lost");
    }
}

#[tokio::test]
async fn a_replica_that_dies_while_the_registry_is_away_costs_no_request() {
    let mut shop = Shop::open(3).await;
    let load = Load::start(&shop.front.client(), 150.0, repeatable);
    load.more(50).await;
    shop.mesh.registry.kill();
    shop.replicas[0].process.kill();
    shop.apps[0].die().await;
    load.more(450).await;
    load.stop().await.assert_clean_but_for_cuts("a replica killed without a registry");
}

#[tokio::test]
async fn a_registry_that_was_wiped_is_not_believed_and_traffic_goes_on() {
    let mut shop = Shop::open(2).await;
    let load = Load::start(&shop.front.client(), 100.0, repeatable);
    load.more(50).await;
    shop.mesh.registry.kill();
    std::fs::remove_dir_all(shop.mesh.data()).unwrap();
    shop.mesh.restart_registry().await;
    let refused =
        |log: String| log.contains("TLS with the registry") && log.contains("invalid peer certificate");
    for sidecar in shop.replicas.iter().chain([&shop.front]) {
        until(&format!("{} says why", sidecar.id), || async { refused(sidecar.process.log()) }).await;
        assert_eq!(sidecar.metrics().await.value("mesh_registry_connected"), 0.0);
        assert_eq!(sidecar.get("/ready").await.0, 200, "what runs goes on");
    }
    // The registry sees them come, and says what to do about it once in a while.
    until("the registry counts them", || async {
        let metrics = shop.mesh.metrics().await;
        metrics.sum("mesh_registry_handshakes_failed_total", &[("reason", "other_root")]) >= 3.0
    })
    .await;
    let log = shop.mesh.registry.log();
    assert_eq!(log.matches("was this registry's data lost?").count(), 1, "once a minute at most");
    assert!(log.contains("outrigger registry restore"), "{log}");
    load.more(100).await;
    load.stop().await.assert_clean("a registry with another root");
    assert_eq!(shop.front.workloads(ORDERS).await, ["orders-1", "orders-2"]);
    assert_eq!(shop.mesh.get("/v1/services/shop/orders").await.0, 404, "nobody registered there");
}
