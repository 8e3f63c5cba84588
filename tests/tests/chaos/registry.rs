//! The registry fails: requests notice nothing.

use std::time::Duration;

use outrigger_tests::mesh::execute;
use outrigger_tests::wait::until;
use rustix::process::Signal;

use crate::cluster::{Cluster, ORDERS, administer};
use crate::run::{Outcome, Run};

/// Nothing failed, and every replica is known.
async fn judge(cluster: &Cluster, outcome: &Outcome) {
    outcome.assert_all_clean();
    cluster.front.knows_healthy(ORDERS, cluster.replicas.len()).await;
    for sidecar in cluster.sidecars() {
        assert_eq!(sidecar.get("/ready").await.0, 200, "{}", sidecar.id);
    }
}

/// Waits until every sidecar is cut off, or connected.
async fn connected(cluster: &Cluster, connected: bool) {
    for sidecar in cluster.sidecars() {
        until(&format!("{} is connected: {connected}", sidecar.id), || async {
            (sidecar.metrics().await.value("mesh_registry_connected") == 1.0) == connected
        })
        .await;
    }
}

#[tokio::test]
async fn the_registry_killed() {
    let mut cluster = Cluster::start().await;
    let mut run = Run::start("the registry killed", &cluster).await;
    // Certificates are due for renewal while it is away.
    run.at(8, "registry killed").await;
    cluster.mesh.registry.kill();
    connected(&cluster, false).await;
    run.at(14, "registry back").await;
    cluster.mesh.restart_registry().await;
    connected(&cluster, true).await;
    let outcome = run.finish(&cluster).await;
    judge(&cluster, &outcome).await;
}

#[tokio::test]
async fn the_registry_frozen() {
    let cluster = Cluster::start().await;
    let mut run = Run::start("the registry frozen", &cluster).await;
    // For longer than leases live.
    run.at(8, "registry frozen").await;
    cluster.mesh.registry.signal(Signal::STOP);
    assert_eq!(frozen(&cluster).await, 0, "it answers while frozen");
    run.at(14, "registry goes on").await;
    cluster.mesh.registry.signal(Signal::CONT);
    connected(&cluster, true).await;
    let outcome = run.finish(&cluster).await;
    judge(&cluster, &outcome).await;
    let expired = cluster.mesh.metrics().await.value("mesh_registry_leases_expired_total");
    assert_eq!(expired, 0.0, "leases ended unread");
}

/// Status of the registry's page, 0 without an answer in a second.
async fn frozen(cluster: &Cluster) -> u16 {
    let page = tokio::time::timeout(Duration::from_secs(1), cluster.mesh.get("/metrics"));
    page.await.map_or(0, |(status, _)| status)
}

#[tokio::test]
async fn the_registry_wiped_and_restored() {
    let mut cluster = Cluster::start().await;
    let (data, backup) = (cluster.mesh.data(), cluster.mesh.directory().join("mesh.backup"));
    let (data, backup) = (data.to_str().unwrap(), backup.to_str().unwrap());
    let mut run = Run::start("the registry wiped, then restored", &cluster).await;
    administer(&cluster.mesh, &["registry", "backup", "--out", backup]);
    run.at(7, "registry wiped").await;
    cluster.mesh.registry.kill();
    std::fs::remove_dir_all(data).unwrap();
    cluster.mesh.restart_registry().await;
    for sidecar in cluster.sidecars() {
        until(&format!("{} does not believe it", sidecar.id), || async {
            let metrics = sidecar.metrics().await;
            metrics.sum("mesh_registry_foreign", &[]) == 1.0
                && sidecar.get("/ready").await.1.contains("outrigger registry restore")
        })
        .await;
        assert_eq!(sidecar.get("/ready").await.0, 200, "{}", sidecar.id);
    }
    run.at(13, "registry restored").await;
    cluster.mesh.registry.kill();
    std::fs::remove_dir_all(data).unwrap();
    execute(&["registry", "restore", "--from", backup, "--data-dir", data]);
    cluster.mesh.restart_registry().await;
    connected(&cluster, true).await;
    let outcome = run.finish(&cluster).await;
    judge(&cluster, &outcome).await;
}
