//! The registry's data is lost and restored, and what restoring refuses.

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use outrigger_tests::app::App;
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::process::command;
use outrigger_tests::wait::until;
use serde_json::json;

use crate::shop::{ORDERS, Shop, repeatable};

const TTL: Duration = Duration::from_secs(3);

fn run(args: &[&str]) -> Output {
    // A command ends by itself; it need not watch over its standard input.
    command(args).env_remove("OUTRIGGER_DEMO_CHILD").output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command against the mesh's registry as its administrator.
fn as_admin(mesh: &Mesh, args: &[&str]) -> Output {
    let (grpc, identity) = (mesh.grpc.to_string(), mesh.data().join("admin"));
    run(&[args, &["--registry", &grpc, "--identity", text(&identity)]].concat())
}

fn backup(mesh: &Mesh, out: &Path) {
    let output = as_admin(mesh, &["registry", "backup", "--out", text(out)]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("PRIVATE KEY") && output.stdout.is_empty(), "{}", said(&output));
}

fn restore(from: &Path, data: &Path) -> Output {
    run(&["registry", "restore", "--from", text(from), "--data-dir", text(data)])
}

fn apply(mesh: &Mesh, name: &str) {
    let file = mesh.directory().join(format!("{name}.yaml"));
    let resource = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"ports": [{"port": 80}]},
    });
    std::fs::write(&file, resource.to_string()).unwrap();
    let output = as_admin(mesh, &["apply", "-f", text(&file)]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
}

fn services(mesh: &Mesh) -> String {
    let output = as_admin(mesh, &["get", "services"]);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn a_lost_registry_is_restored_and_nobody_joins_again() {
    let mut shop = Shop::with(2, &json!({"lease_ttl": "3s"}), &json!({})).await;
    apply(&shop.mesh, "before");
    let token = shop.mesh.token("shop", "payments", &["payments"]).await.expose();
    let file = shop.mesh.directory().join("mesh.backup");
    backup(&shop.mesh, &file);
    // What comes now is not in the backup: it must not be taken from those who know it.
    apply(&shop.mesh, "after");
    let third = App::start("app-3").await;
    let late = shop.mesh.sidecar("orders-3").account("orders").serves("orders", &third).start().await;
    shop.front.knows_healthy(ORDERS, 3).await;

    let load = Load::start(&shop.front.client(), 100.0, repeatable);
    load.more(50).await;
    shop.mesh.registry.kill();
    std::fs::rename(shop.mesh.data(), shop.mesh.directory().join("lost")).unwrap();
    let output = restore(&file, &shop.mesh.data());
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    shop.mesh.restart_registry().await;
    let fewest = Cell::new(usize::MAX);
    let glance = async || fewest.set(fewest.get().min(shop.front.workloads(ORDERS).await.len()));
    for sidecar in shop.replicas.iter().chain([&shop.front, &late]) {
        until(&format!("{} is connected again", sidecar.id), || async {
            glance().await;
            let metrics = sidecar.metrics().await;
            metrics.value("mesh_registry_connected") == 1.0
                && metrics.value("mesh_snapshot_age_seconds") == 0.0
        })
        .await;
        assert_eq!(sidecar.process.log().matches("certificate in force").count(), 1, "{}", sidecar.id);
    }
    until("the late one is registered again", || async {
        late.process.log().contains("the lease is gone; registering again")
    })
    .await;
    let listed = async || {
        let (_, page) = shop.mesh.get("/v1/services/shop/orders").await;
        serde_json::from_str::<serde_json::Value>(&page).unwrap_or_default()["endpoints"]
            .as_array()
            .map_or(0, Vec::len)
    };
    until("the registry knows all three", || async { listed().await == 3 }).await;
    // Until the registry has told everyone what it holds, and longer.
    let begun = Instant::now();
    until("two leases are over", || async {
        glance().await;
        begun.elapsed() > TTL * 2
    })
    .await;
    assert_eq!(fewest.get(), 3, "an endpoint that the backup lacks was taken away");
    for replica in &shop.replicas {
        assert!(!replica.process.log().contains("the lease is gone"), "{} kept its lease", replica.id);
    }
    let known = services(&shop.mesh);
    assert!(known.contains("before") && !known.contains("after"), "{known}");
    // The token of before is still good, and what it grants too.
    let app = App::start("payments").await;
    let joined = shop.mesh.sidecar("payments-1").serves("payments", &app).token(&token).start().await;
    assert!(joined.process.log().contains("registered"));
    load.more(100).await;
    load.stop().await.assert_clean("the registry restored from a backup");
}

#[tokio::test]
async fn a_backup_is_private_whole_and_never_written_over_anything() {
    let mesh = Mesh::start().await;
    let file = mesh.directory().join("mesh.backup");
    backup(&mesh, &file);
    assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let first = std::fs::read(&file).unwrap();
    let again = as_admin(&mesh, &["registry", "backup", "--out", text(&file)]);
    assert_eq!(again.status.code(), Some(2));
    assert!(said(&again).contains(text(&file)) && said(&again).contains("is there already"));
    assert_eq!(std::fs::read(&file).unwrap(), first);
    // Standard output takes it too, for a program that encrypts.
    let piped = as_admin(&mesh, &["registry", "backup", "--out", "-"]);
    assert!(piped.status.success() && piped.stdout.starts_with(b"outrigger-backup 1\n"), "{}", said(&piped));
    // Without the registry, from its directory; with it, that is refused.
    let data = mesh.data();
    let offline = mesh.directory().join("offline.backup");
    let args = ["registry", "backup", "--data-dir", text(&data), "--out", text(&offline)];
    let busy = run(&args);
    assert_eq!(busy.status.code(), Some(2));
    assert!(said(&busy).contains("leave --data-dir out"), "{}", said(&busy));
    let mut mesh = mesh;
    mesh.registry.kill();
    let away = as_admin(&mesh, &["registry", "backup", "--out", text(&mesh.directory().join("none"))]);
    assert_eq!(away.status.code(), Some(1));
    assert!(said(&away).contains("cannot reach the registry at"), "{}", said(&away));
    assert!(!mesh.directory().join("none").exists());
    let output = run(&args);
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let entries = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.lines().filter(|line| line.contains("\"key\"")).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(entries(&std::fs::read(&offline).unwrap()), entries(&first));
}

#[tokio::test]
async fn a_workload_gets_no_backup() {
    let mesh = Mesh::start().await;
    let workload = mesh.identity("shop", "orders", &["orders"]).await;
    let mut client = outrigger_api::v1::admin_client::AdminClient::new(mesh.channel(workload));
    let refused = client.backup(outrigger_api::v1::BackupRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::PermissionDenied);
}

#[tokio::test]
async fn a_backup_that_is_not_whole_and_a_directory_that_is_not_empty_are_refused() {
    let mesh = Mesh::start().await;
    let good = mesh.directory().join("mesh.backup");
    backup(&mesh, &good);
    let bytes = std::fs::read(&good).unwrap();
    let newer = [b"outrigger-backup 2".as_slice(), &bytes[18..]].concat();
    let mut changed = bytes.clone();
    changed[40] ^= 1;
    let target = mesh.directory().join("restored");
    for (name, content, reason) in [
        ("cut", bytes[..bytes.len() / 2].to_vec(), "cut short"),
        ("changed", changed, "checksum does not match"),
        ("newer", newer, "its format is 2"),
        ("foreign", b"PK\x03\x04".to_vec(), "no backup of an Outrigger registry"),
        ("empty", Vec::new(), "no backup of an Outrigger registry"),
    ] {
        let file = mesh.directory().join(name);
        std::fs::write(&file, content).unwrap();
        let output = restore(&file, &target);
        assert_eq!(output.status.code(), Some(2), "{name}");
        let error = said(&output);
        assert!(error.contains(text(&file)) && error.contains(reason), "{error}");
        assert!(!target.exists(), "{name}: nothing is made");
    }
    let before = std::fs::read(mesh.data().join("registry.redb")).unwrap().len();
    let output = restore(&good, &mesh.data());
    assert_eq!(output.status.code(), Some(2));
    let data = mesh.data();
    assert!(
        said(&output).contains(text(&data)) && said(&output).contains("is not empty"),
        "{}",
        said(&output)
    );
    assert_eq!(std::fs::read(data.join("registry.redb")).unwrap().len(), before);
    assert_eq!(mesh.get("/ready").await.0, 200);
    let missing = restore(Path::new("/nowhere.backup"), &target);
    assert_eq!(missing.status.code(), Some(2));
    assert!(said(&missing).contains("/nowhere.backup"));
}
