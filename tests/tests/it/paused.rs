//! The registry is stopped (SIGSTOP) for longer than its leases last.

use std::time::{Duration, Instant};

use outrigger_tests::wait::until;
use rustix::process::Signal;
use serde_json::json;

use crate::shop::{ORDERS, Shop};

const TTL: Duration = Duration::from_secs(2);

/// Stops the registry for `pause`, kills the third replica meanwhile, and watches the caller's list
/// all the time: the living never leave it, the dead one goes a lease after the registry is back.
async fn nobody_disappears(pause: Duration) {
    let mut shop = Shop::with(3, &json!({"lease_ttl": "2s"}), &json!({})).await;
    let living = ["orders-1", "orders-2"];
    shop.mesh.registry.signal(Signal::STOP);
    shop.replicas[2].process.kill();
    let (begun, front) = (Instant::now(), &shop.front);
    let complete = async || {
        let known = front.workloads(ORDERS).await;
        assert!(living.iter().all(|id| known.iter().any(|found| found == id)), "only {known:?} are left");
        known.len()
    };
    until("the pause is over", || async {
        assert_eq!(complete().await, 3);
        begun.elapsed() >= pause
    })
    .await;
    shop.mesh.registry.signal(Signal::CONT);
    let back = Instant::now();
    until("the dead one is gone", || async { complete().await == 2 }).await;
    let gone = back.elapsed();
    println!("after a pause of {pause:?}, the dead one was gone {gone:?} after the registry was back");
    assert!(gone >= TTL / 2, "it had a full time like everyone: {gone:?}");
    // Several more leases long, through whatever reconnects.
    until("some leases later", || async {
        assert_eq!(complete().await, 2);
        back.elapsed() >= TTL * 4
    })
    .await;
    assert_eq!(shop.mesh.metrics().await.value("mesh_registry_leases_expired_total"), 1.0);
    for replica in &shop.replicas[..2] {
        assert!(!replica.process.log().contains("the lease is gone"), "{} kept its lease", replica.id);
    }
}

#[tokio::test]
async fn a_registry_paused_for_two_leases_empties_no_service() {
    nobody_disappears(TTL * 2).await;
}

#[tokio::test]
async fn a_registry_paused_until_every_connection_was_given_up_empties_no_service() {
    nobody_disappears(Duration::from_secs(15)).await;
}
