//! One replica of three fails: nothing that may be repeated does, and nothing that may not is executed
//! twice.

use rustix::process::Signal;

use crate::cluster::Cluster;
use crate::run::{Outcome, Run};

/// Switches a fault of the first replica's application on for ten seconds.
async fn application(what: &'static str, fault: &str) -> Outcome {
    let cluster = Cluster::start().await;
    let mut run = Run::start(what, &cluster).await;
    run.at(4, "fault").await;
    cluster.replicas[0].app.fault(fault).await;
    run.at(14, "after").await;
    cluster.replicas[0].app.fault("healthy").await;
    run.finish(&cluster).await
}

#[tokio::test]
async fn a_replica_killed() {
    let mut cluster = Cluster::start().await;
    let mut run = Run::start("one of three replicas killed", &cluster).await;
    run.at(4, "replica 1 killed").await;
    cluster.replicas[0].kill();
    run.at(8, "replica 1 back").await;
    cluster.replicas[0].start_again().await;
    run.at(11, "sidecar of replica 2 killed").await;
    cluster.replicas[1].sidecar.process.kill();
    run.at(15, "sidecar of replica 2 back").await;
    cluster.replicas[1].sidecar.start_again().await;
    let outcome = run.finish(&cluster).await;
    outcome.assert_fault_shown();
    outcome.assert_repeatable_clean(true);
}

#[tokio::test]
async fn a_replica_frozen() {
    let cluster = Cluster::start().await;
    let mut run = Run::start("one of three replicas frozen", &cluster).await;
    run.at(4, "replica 1 frozen").await;
    cluster.replicas[0].signal(Signal::STOP);
    run.at(9, "replica 1 goes on").await;
    cluster.replicas[0].signal(Signal::CONT);
    run.at(11, "application of replica 2 frozen").await;
    cluster.replicas[1].app.process.signal(Signal::STOP);
    run.at(15, "application of replica 2 goes on").await;
    cluster.replicas[1].app.process.signal(Signal::CONT);
    let outcome = run.finish(&cluster).await;
    outcome.assert_fault_shown();
    outcome.assert_repeatable_clean(false);
}

#[tokio::test]
async fn a_replica_slow() {
    let outcome = application("one of three replicas slowed to 500 ms", "slow").await;
    // Slowness is no failure: nothing is repeated, and the balancer avoids it.
    outcome.assert_all_clean();
    let slow = |phase: &str| {
        let part = outcome.part(phase);
        outcome.gets.during(&part).filter(|sample| sample.took.as_millis() >= 500).count()
    };
    let (before, during) = (slow("before"), slow("fault"));
    println!("   {before} and then {during} took 500 ms or more");
    assert!(before == 0 && during > 0, "the fault is not to be seen");
    let all = outcome.gets.during(&outcome.part("fault")).count();
    assert!(during * 10 < all, "{during} of {all} went to the slow replica");
}

#[tokio::test]
async fn a_replica_failing_half() {
    let outcome = application("one of three replicas answers 503 to half", "unavailable").await;
    outcome.assert_fault_shown();
    outcome.assert_repeatable_clean(false);
    // Half is where the breaker begins to act; the balancer takes failures for slowness before that. Of
    // equal shares a sixth of all attempts would fail.
    let all = outcome.during_both("fault");
    assert!(outcome.failed_attempts() * 12.0 < all, "{} of {all} attempts failed", outcome.failed_attempts());
}

#[tokio::test]
async fn a_replica_refusing_connects() {
    let outcome = application("one of three replicas refuses connects", "refuse").await;
    outcome.assert_fault_shown();
    // What was not delivered may be repeated, whatever it is.
    outcome.assert_all_clean();
}

#[tokio::test]
async fn a_replica_resetting_before_the_head() {
    let outcome = application("one of three replicas resets before the head", "reset-before-head").await;
    outcome.assert_fault_shown();
    outcome.assert_repeatable_clean(false);
    assert!(outcome.ejections >= 1.0, "it was never ejected");
}

#[tokio::test]
async fn a_replica_resetting_mid_response() {
    let outcome = application("one of three replicas resets mid-response", "reset-mid-response").await;
    // Nobody can repeat those: they end in an unmistakable error, and few there are.
    outcome.gets.assert_clean_but_for_cuts(outcome.what);
    outcome.posts.assert_clean_but_for_cuts(outcome.what);
    let (cut, all) = (outcome.gets.cut(), outcome.gets.during(&outcome.part("fault")).count());
    assert!(cut > 0, "the fault is not to be seen");
    assert!(outcome.ejections >= 1.0, "it was never ejected");
    assert!(cut * 10 < all, "{cut} of {all} responses cut");
}
