//! The clock of a machine jumps, by libfaketime: certificates are judged by it.

use std::path::{Path, PathBuf};

use outrigger_tests::wait::until;

use crate::cluster::{Cluster, Plan};
use crate::run::Run;

/// The wall clock of one process; the monotonic one goes on as it does.
struct Clock(PathBuf);

impl Clock {
    fn new(directory: &Path, name: &str) -> Self {
        let clock = Self(directory.join(name));
        clock.off_by("+0");
        clock
    }

    /// What a process that goes by it is started with.
    fn environment(&self) -> Vec<(String, String)> {
        [
            ("LD_PRELOAD", library().to_str().unwrap()),
            ("FAKETIME_TIMESTAMP_FILE", self.0.to_str().unwrap()),
            ("FAKETIME_CACHE_DURATION", "1"),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
            ("DONT_FAKE_MONOTONIC", "1"),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .to_vec()
    }

    /// Jumps, within a second, to so much before or after the machine's: `+1h`.
    fn off_by(&self, offset: &str) {
        let new = self.0.with_extension("new");
        std::fs::write(&new, format!("{offset}\n")).unwrap();
        std::fs::rename(&new, &self.0).unwrap();
    }
}

/// Debian's package `faketime`; its variant for programs with threads.
fn library() -> PathBuf {
    let places = std::fs::read_dir("/usr/lib").unwrap().filter_map(Result::ok);
    let found =
        places.map(|place| place.path().join("faketime/libfaketimeMT.so.1")).find(|path| path.exists());
    found.expect("libfaketime is missing: run `cargo xtask test`, which installs the package faketime")
}

#[tokio::test]
async fn the_clock_of_a_replica_and_of_the_caller_jumps() {
    let directory = tempfile::tempdir().unwrap();
    let (replica, caller) = (Clock::new(directory.path(), "replica"), Clock::new(directory.path(), "caller"));
    let plan = Plan {
        first_environment: replica.environment(),
        front_environment: caller.environment(),
        ..Plan::default()
    };
    let cluster = Cluster::with(plan).await;
    let mut run = Run::start("the clock of one replica and of the caller jumps", &cluster).await;
    run.at(3, "replica an hour ahead").await;
    replica.off_by("+1h");
    told(&cluster, 3600.0).await;
    run.at(6, "replica an hour behind").await;
    replica.off_by("-1h");
    told(&cluster, -3600.0).await;
    // Before certificates are renewed.
    run.at(10, "replica right").await;
    replica.off_by("+0");
    run.at(14, "caller an hour ahead").await;
    caller.off_by("+1h");
    run.at(17, "caller right").await;
    caller.off_by("+0");
    let outcome = run.finish(&cluster).await;
    // Certificates are judged by the time the registry confirmed, which goes on.
    outcome.assert_all_clean();
    told(&cluster, 0.0).await;
}

/// Waits until the replica says how far its clock is off.
async fn told(cluster: &Cluster, seconds: f64) {
    until(&format!("the clock is known to be off by {seconds} s"), || async {
        let metrics = cluster.replicas[0].sidecar.metrics().await;
        (metrics.value("mesh_clock_offset_seconds") - seconds).abs() < 60.0
    })
    .await;
}
