//! The real process: killed, stopped, and told to end.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use outrigger_api::v1;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use crate::harness::{DEADLINE, Mesh, hello, soon, until, workload};

/// The registry's binary; killed when dropped.
struct Process {
    child: Child,
    mesh: Mesh,
}

impl Process {
    fn start(dir: &Path, ports: (u16, u16), ttl: &str) -> Self {
        let config = dir.join("registry.yaml");
        let data = dir.join("data");
        let text = format!(
            "data_dir: {}\ngrpc:\n  listen: 127.0.0.1:{}\nhttp:\n  listen: 127.0.0.1:{}\nlease_ttl: {ttl}\n",
            data.display(),
            ports.0,
            ports.1
        );
        std::fs::write(&config, text).unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger-registry"))
            .args(["--config", config.to_str().unwrap(), "--output", "json"])
            .env("RUST_LOG", "trace")
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(dir.join("log")).unwrap())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["data_dir"], data.to_str().unwrap());
        let mesh = Mesh::at(
            ready["grpc"].as_str().unwrap(),
            ready["http"].as_str().unwrap().parse().unwrap(),
            &data,
        );
        Self { child, mesh }
    }

    fn ports(&self) -> (u16, u16) {
        let grpc: std::net::SocketAddr = self.mesh.grpc.parse().unwrap();
        (grpc.port(), self.mesh.http.port())
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _status = self.child.wait();
    }
}

#[tokio::test]
async fn a_killed_registry_comes_back_with_everything_and_nobody_notices() {
    let dir = tempfile::tempdir().unwrap();
    let first = Process::start(dir.path(), (0, 0), "30s");
    let ports = first.ports();
    let sidecar = first.mesh.sidecar("shop", "orders", &["orders"]).await;
    let front = first.mesh.sidecar("shop", "front", &[]).await;
    let service = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "Service", "metadata": { "name": "payments", "namespace": "shop" },
        "spec": { "ports": [{ "port": 80 }] },
    });
    let resource = v1::Resource {
        kind: "Service".into(),
        namespace: "shop".into(),
        name: "payments".into(),
        json: service.to_string(),
        revision: 0,
    };
    let request = v1::ApplyRequest { resources: vec![resource], ..Default::default() };
    first.mesh.admin().apply(request).await.unwrap();
    let mut leases = Vec::new();
    for n in 0..3 {
        leases.push(sidecar.register(workload(&format!("w{n}"), "orders.shop", 80)).await.unwrap().lease);
    }
    let token = first.mesh.token("shop", "later", &[], 600).await;
    let mut watcher = front.watch(&["orders.shop", "payments.shop"]).await;
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.len() == 3)).await;
    let (cursor, held, root) = (watcher.cursor.clone(), watcher.held.clone(), first.mesh.admin_svid().bundle);
    // The last thing it hears is a write that it answered: that too must be there.
    let last = sidecar.register(workload("w3", "orders.shop", 80)).await.unwrap().lease;
    drop(first);

    let second = Process::start(dir.path(), ports, "30s");
    assert_eq!(second.mesh.admin_svid().bundle, root);
    let (_, service) = second.mesh.get("/v1/services/shop/orders").await;
    let ages: Vec<_> = service["endpoints"]
        .as_array()
        .unwrap()
        .iter()
        .map(|e| e["lease_age_ms"].as_u64().unwrap())
        .collect();
    println!("lease ages after the restart: {ages:?} ms");
    assert!(ages.len() == 4 && ages.iter().all(|age| *age < 15_000), "{service}");
    // The same certificates, leases, cursor and token go on.
    for lease in leases.iter().chain([&last]) {
        until("the sidecar is connected again", || async { sidecar.renew(lease, &[true]).await.is_ok() })
            .await;
    }
    let mut watcher = front.hello(hello(&cursor, &["orders.shop", "payments.shop"])).await.unwrap();
    assert!(watcher.welcome.resumed);
    watcher.held = held;
    watcher.until("orders.shop", |service| service.is_some_and(|s| s.endpoints.len() == 4)).await;
    assert!(watcher.held["payments.shop"].is_some());
    second.mesh.join(&token).await.unwrap();
}

#[tokio::test]
async fn a_registry_that_was_stopped_longer_than_a_lease_loses_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), (0, 0), "1s");
    let sidecar = process.mesh.sidecar("shop", "orders", &["orders"]).await;
    let lease = sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap().lease;
    let mut watcher = process.mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    assert_eq!(watcher.workloads("orders.shop"), ["w1"]);
    process.signal(Signal::STOP);
    // The renewal waits in the socket until the registry can read it again. The time itself is what
    // is tested here.
    let renewal = outrigger_common::tasks::Tasks::current().spawn_joinable("renewal", {
        let (sidecar, lease) = (sidecar.clone(), lease.clone());
        async move { sidecar.renew(&lease, &[true]).await }
    });
    tokio::time::sleep(Duration::from_millis(3500)).await;
    assert!(!renewal.is_finished());
    process.signal(Signal::CONT);
    soon("renewal", renewal).await.unwrap().unwrap();
    // Kept alive for two more leases; the subscriber hears nothing.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        sidecar.renew(&lease, &[true]).await.unwrap();
        let heard = tokio::time::timeout(Duration::from_millis(200), watcher.answers.message()).await;
        assert!(heard.is_err(), "{heard:?}");
    }
    assert_eq!(process.mesh.metric("mesh_registry_leases_expired_total").await, 0.0);
}

#[tokio::test]
async fn no_secret_reaches_the_log_however_much_is_logged() {
    let dir = tempfile::tempdir().unwrap();
    let process = Process::start(dir.path(), (0, 0), "10s");
    let token = process.mesh.token("shop", "orders", &["orders"], 60).await;
    let sidecar = process.mesh.sidecar_as(process.mesh.join(&token).await.unwrap());
    sidecar.register(workload("w1", "orders.shop", 80)).await.unwrap();
    let wrong = outrigger_api::token::Token { secret: "a-wrong-guess".into(), ..token.clone() };
    process.mesh.join(&wrong).await.unwrap_err();
    drop(process);
    let log = String::from_utf8_lossy(&std::fs::read(dir.path().join("log")).unwrap()).into_owned();
    assert!(log.contains("join token made") && log.contains("workload registered"), "{log}");
    let key = std::fs::read_to_string(dir.path().join("data/admin/key.pem")).unwrap();
    let key = key.lines().nth(1).unwrap();
    for secret in [token.secret.as_str(), &wrong.secret, "PRIVATE KEY", key] {
        assert!(!log.contains(secret), "a secret is in the log");
    }
}

#[tokio::test]
async fn sigterm_ends_it_quickly_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for signal in [Signal::TERM, Signal::INT] {
        let mut process = Process::start(dir.path(), (0, 0), "10s");
        let mut watcher = process.mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
        let begun = Instant::now();
        process.signal(signal);
        watcher.end().await;
        let mut status = None;
        until("it ends", || {
            status = process.child.try_wait().unwrap();
            let ended = status.is_some();
            async move { ended }
        })
        .await;
        println!("{signal:?}: ended after {:?}", begun.elapsed());
        assert!(status.unwrap().success() && begun.elapsed() < DEADLINE / 2);
    }
}

#[test]
fn a_bad_configuration_exits_with_2_and_names_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("registry.yaml");
    std::fs::write(&config, "grcp:\n  listen: x\n").unwrap();
    let run = |config: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger-registry"));
        command
            .arg("--config")
            .arg(config)
            .env("OUTRIGGER_DATA_DIR", dir.path().join("data"))
            .output()
            .unwrap()
    };
    let output = run(&config);
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(text.contains("registry.yaml:1") && text.contains("grcp"), "{text}");
    let output = run(&dir.path().join("none.yaml"));
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8(output.stderr).unwrap().contains("none.yaml"));
    assert!(!dir.path().join("data").exists(), "nothing was made");
}
