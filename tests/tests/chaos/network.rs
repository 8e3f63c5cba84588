//! The network swallows what is sent to one replica, and what it sends.

use serde_json::json;

use crate::cluster::{Cluster, Plan};
use crate::namespace::Namespace;
use crate::run::Run;

#[tokio::test]
async fn a_replica_black_holed() {
    let namespace = Namespace::create();
    let plan = Plan::default();
    let mut registry = plan.registry.clone();
    registry["grpc"] = json!({"listen": format!("{}:0", namespace.here)});
    let there = namespace.there;
    let first_sidecar = json!({
        "workload": {"address": there},
        "mesh": {"listen": format!("{there}:0")},
        "admin": {"listen": format!("{there}:0")},
    });
    let cluster =
        Cluster::with(Plan { registry, first_within: namespace.prefix(), first_sidecar, ..plan }).await;
    let mut run = Run::start("one of three replicas black-holed", &cluster).await;
    run.at(4, "packets dropped").await;
    namespace.drop_packets();
    run.at(14, "packets carried").await;
    namespace.carry_packets();
    let outcome = run.finish(&cluster).await;
    outcome.assert_fault_shown();
    outcome.assert_repeatable_clean(false);
}
