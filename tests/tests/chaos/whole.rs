//! All replicas at once, and everything in turn.

use std::time::Duration;

use outrigger_tests::load::Report;
use rustix::process::Signal;

use crate::cluster::{Cluster, ORDERS, Replica};
use crate::run::Run;

/// From the last replica's start to a mesh without failures.
const RECOVERY: Duration = Duration::from_secs(3);

#[tokio::test]
async fn all_replicas_down_and_back() {
    let mut cluster = Cluster::start().await;
    let mut run = Run::start("all replicas down and back", &cluster).await;
    run.at(4, "all killed").await;
    cluster.replicas.iter_mut().for_each(Replica::kill);
    run.at(8, "started").await;
    for replica in &mut cluster.replicas {
        replica.start_again().await;
    }
    run.phase("all back");
    let outcome = run.finish(&cluster).await;
    outcome.assert_fault_shown();
    let down = outcome.part("all killed");
    let back = outcome.part("all back").start + RECOVERY;
    let judge = |report: &Report| {
        let failed = report.failures.iter().filter(|failure| down.contains(&failure.at)).count();
        assert!(failed > 0, "nothing failed while all were down");
        for failure in &report.failures {
            // What was under way when they died may be cut.
            assert!(
                failure.kind.contains(' ') && !failure.kind.starts_with("no ") || failure.cut,
                "{failure:?}"
            );
            assert!(failure.at < back, "still failing: {failure:?}");
        }
    };
    judge(&outcome.gets);
    judge(&outcome.posts);
}

/// SIGTERM to what is old, then what is new in its place: first the replicas one by one, then the
/// registry, then the caller's sidecar.
#[tokio::test]
async fn a_rolling_restart_of_everything() {
    let mut cluster = Cluster::start().await;
    let mut run = Run::start("a rolling restart of everything", &cluster).await;
    for n in 0..cluster.replicas.len() {
        run.at(2 + 4 * n as u64, &format!("replica {}", n + 1)).await;
        let replica = &mut cluster.replicas[n];
        replica.sidecar.process.signal(Signal::TERM);
        assert!(replica.sidecar.process.end().await.success());
        replica.app.process.signal(Signal::TERM);
        assert!(replica.app.process.end().await.success());
        replica.start_again().await;
        cluster.front.knows_healthy(ORDERS, 3).await;
    }
    run.at(14, "registry").await;
    cluster.mesh.registry.signal(Signal::TERM);
    assert!(cluster.mesh.registry.end().await.success());
    cluster.mesh.restart_registry().await;
    run.at(17, "caller").await;
    let front = cluster.mesh.sidecar("front-2").calls(&[ORDERS]).start().await;
    front.knows_healthy(ORDERS, 3).await;
    let metrics = cluster.front.metrics().await;
    run.client.turn_to(front.outbound);
    let mut old = std::mem::replace(&mut cluster.front, front);
    old.process.signal(Signal::TERM);
    assert!(old.process.end().await.success());
    run.at(crate::run::LENGTH, "the end").await;
    let outcome = run.judged(&cluster, &metrics).await;
    outcome.assert_all_clean();
}
