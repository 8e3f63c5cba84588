//! State on disk: restarts without the registry, and registries that are not the one joined.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use outrigger_common::mtls::sha256;
use outrigger_proxy::control::disk::file::{Kind, decode_snapshot, encode_snapshot};
use outrigger_tests::app::App;
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::process::command;
use outrigger_tests::wait::until;
use rustix::process::Signal;
use serde_json::json;

use crate::shop::ORDERS;

/// One replica of `orders.shop` and a caller, both with state on disk and tokens for one use.
/// Dropped in this order.
struct Kept {
    front: Sidecar,
    replica: Sidecar,
    mesh: Mesh,
    _app: App,
}

impl Kept {
    async fn open(registry: &serde_json::Value) -> Self {
        let mesh = Mesh::with(registry, &[]).await;
        let app = App::start("app-1").await;
        let token = mesh.token_for("shop", "orders", &["orders"], 0).await.expose();
        let replica = mesh.sidecar("orders-1").serves("orders", &app).token(&token);
        let replica = replica.config(&json!({"state_dir": state(&mesh, "orders-1")})).start().await;
        let token = mesh.token_for("shop", "front", &[], 0).await.expose();
        let front = mesh.sidecar("front").calls(&[ORDERS]).token(&token);
        let front = front.config(&json!({"state_dir": state(&mesh, "front")})).start().await;
        front.knows_healthy(ORDERS, 1).await;
        Self { front, replica, mesh, _app: app }
    }

    /// Waits until the state on disk of both holds what they know: the caller's the endpoint, the replica's
    /// who may call it.
    async fn written(&self) {
        for (id, words) in
            [("front", ["orders-1", "healthy: true"]), ("orders-1", ["ServicePolicies", ORDERS])]
        {
            let file = state(&self.mesh, id).join(Kind::Snapshot.name());
            until(&format!("the snapshot of {id} is on disk"), || async {
                let snapshot = std::fs::read(&file).ok().and_then(|file| decode_snapshot(&file).ok());
                let told = snapshot.map(|(_, changes)| format!("{changes:?}")).unwrap_or_default();
                words.iter().all(|word| told.contains(word))
            })
            .await;
        }
    }
}

fn state(mesh: &Mesh, id: &str) -> PathBuf {
    mesh.directory().join(format!("{id}.state"))
}

async fn connected(sidecar: &Sidecar) {
    until(&format!("{} is connected", sidecar.id), || async {
        sidecar.metrics().await.value("mesh_registry_connected") == 1.0
    })
    .await;
}

async fn said(sidecar: &Sidecar, words: &[&str]) {
    until(&format!("/ready of {} says {words:?}", sidecar.id), || async {
        let (_, text) = sidecar.get("/ready").await;
        words.iter().all(|word| text.contains(word))
    })
    .await;
}

async fn foreign(sidecar: &Sidecar, reason: &str, value: f64) {
    until(&format!("{}: {reason} is {value}", sidecar.id), || async {
        sidecar.metrics().await.sum("mesh_registry_foreign", &[("reason", reason)]) == value
    })
    .await;
}

async fn works(sidecar: &Sidecar) {
    let answer = sidecar.client().get(ORDERS, "/").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "app-1"), "{}", answer.reason());
}

/// Waits for the end of a sidecar that should give up, and returns its log of this life.
async fn gave_up(sidecar: &mut Sidecar, before: usize) -> String {
    let status = sidecar.process.end().await;
    assert_eq!(status.code(), Some(1));
    sidecar.process.log().split_off(before)
}

#[tokio::test]
async fn a_restart_needs_neither_the_registry_nor_a_second_token() {
    let mut kept = Kept::open(&json!({})).await;
    kept.written().await;
    kept.mesh.registry.kill();
    let Kept { front, replica, .. } = kept;
    let (replica, front) = (replica.restart().await, front.restart().await);
    works(&front).await;
    said(&front, &["ready\n", "serving from state on disk", "seconds old", "no watch stream"]).await;
    let metrics = front.metrics().await;
    assert_eq!(metrics.value("mesh_registry_connected"), 0.0);
    assert!(metrics.value("mesh_snapshot_age_seconds") > 0.0);

    let lives = front.process.log().matches("resumed=true").count();
    kept.mesh.restart_registry().await;
    for sidecar in [&front, &replica] {
        connected(sidecar).await;
        until("it is ready without a note", || async { sidecar.get("/ready").await.1 == "ready\n" }).await;
    }
    assert!(front.process.log().matches("resumed=true").count() > lives, "only what changed was told again");
    front.knows_healthy(ORDERS, 1).await;
    works(&front).await;
    // And with the registry there, the token of the first start is not asked for again.
    let front = front.restart().await;
    connected(&front).await;
    works(&front).await;
}

#[tokio::test]
async fn an_expired_certificate_on_disk_names_the_remedy() {
    let mut kept = Kept::open(&json!({"certificates": {"lifetime": "3s"}})).await;
    kept.written().await;
    kept.front.process.kill();
    kept.mesh.registry.kill();
    until("the certificate on disk has expired", || async {
        let file = state(&kept.mesh, "front").join(Kind::Identity.name());
        let identity = outrigger_proxy::control::disk::file::decode_identity(&std::fs::read(file).unwrap());
        identity.unwrap().svid.remaining(SystemTime::now()).is_zero()
    })
    .await;
    let mut front = kept.front.relaunch(&json!({})).await;
    // It waits for the registry: the token may still be good.
    said(&front, &["not ready", "front.state/identity expired", "cannot join"]).await;
    let before = front.process.log().len();
    kept.mesh.restart_registry().await;
    let log = gave_up(&mut front, before).await;
    for word in ["front.state/identity expired", "cannot rejoin", "outrigger token", "refused the join token"]
    {
        assert!(log.contains(word), "{word:?} is not in {log}");
    }
    // With the remedy it goes on.
    let token = kept.mesh.token_for("shop", "front", &[], 0).await.expose();
    let front = front.relaunch(&json!({"join": {"token": token}})).await;
    front.ready().await;
    connected(&front).await;
}

#[tokio::test]
async fn damaged_files_are_never_believed() {
    let mut kept = Kept::open(&json!({})).await;
    kept.written().await;
    let [identity, snapshot] =
        [Kind::Identity, Kind::Snapshot].map(|kind| state(&kept.mesh, "front").join(kind.name()));
    kept.front.process.kill();
    let mut bytes = std::fs::read(&snapshot).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&snapshot, &bytes).unwrap();
    let mut front = kept.front.restart().await;
    assert!(front.process.log().contains("snapshot cannot be used: it is damaged"));
    front.knows_healthy(ORDERS, 1).await;
    works(&front).await;

    front.process.kill();
    std::fs::write(&identity, b"").unwrap();
    let before = front.process.log().len();
    let mut front = front.relaunch(&json!({})).await;
    let log = gave_up(&mut front, before).await;
    for word in ["front.state/identity cannot be used", "outrigger token"] {
        assert!(log.contains(word), "{word:?} is not in {log}");
    }
    let token = kept.mesh.token("shop", "front", &[]).await.expose();
    let front = front.relaunch(&json!({"join": {"token": token}})).await;
    front.ready().await;
    works(&front).await;
}

#[tokio::test]
async fn a_directory_in_use_or_of_a_newer_release_is_refused_and_left_alone() {
    let mut kept = Kept::open(&json!({})).await;
    kept.written().await;
    let run = |config: &Path| {
        // The ports are taken as well, but the directory comes first.
        let mut command = command(&["proxy", "--config", &config.to_string_lossy()]);
        // Not a child of a mesh: an ordinary command.
        let output = command.env_remove("OUTRIGGER_DEMO_CHILD").output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let (code, text) = run(&kept.front.config());
    assert_eq!(code, Some(1));
    assert!(text.contains("front.state is in use by another process"), "{text}");

    kept.front.process.kill();
    let snapshot = state(&kept.mesh, "front").join(Kind::Snapshot.name());
    let magic = std::fs::read(&snapshot).unwrap()[..8].to_vec();
    let (format, body) = (2u32.to_be_bytes(), b"of a later release");
    let newer = [magic.as_slice(), &format, &sha256(&[&magic, &format, body]), body].concat();
    std::fs::write(&snapshot, &newer).unwrap();
    let (code, text) = run(&kept.front.config());
    assert_eq!(code, Some(1));
    for word in ["front.state/snapshot", "format 2", "start the release that wrote it"] {
        assert!(text.contains(word), "{word:?} is not in {text}");
    }
    assert_eq!(std::fs::read(&snapshot).unwrap(), newer);
}

/// A file system of 64 KiB, until dropped.
struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(at: PathBuf) -> Self {
        std::fs::create_dir(&at).unwrap();
        let options = ["-t", "tmpfs", "-o", "size=64k", "tmpfs"];
        let mounted = Command::new("mount").args(options).arg(&at).status().unwrap();
        assert!(mounted.success(), "mounting a tmpfs needs root");
        Self(at)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_full_disk_stops_nothing_and_is_said() {
    let mesh = Mesh::start().await;
    let app = App::start("app-1").await;
    let disk = SmallDisk::mount(mesh.directory().join("small"));
    let _replica = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.sidecar("front").calls(&[ORDERS]).config(&json!({"state_dir": disk.0})).start().await;
    front.knows_healthy(ORDERS, 1).await;
    let filler = disk.0.join("filler");
    let full = std::fs::write(&filler, vec![0; 64 << 10]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    // Something to write.
    assert_eq!(front.client().get("nobody.shop", "/").await.unwrap().reason(), "unknown_service");
    until("a write has failed", || async {
        front.metrics().await.value("mesh_state_write_failures_total") >= 1.0
    })
    .await;
    said(&front, &["ready\n", "cannot be written", "No space left"]).await;
    assert_eq!(front.get("/ready").await.0, 200);
    works(&front).await;
    assert_eq!(front.process.log().matches("state cannot be written").count(), 1, "said once");
    let before = front.metrics().await.value("mesh_state_last_written_timestamp_seconds");

    std::fs::remove_file(&filler).unwrap();
    until("it is written after all", || async {
        front.metrics().await.value("mesh_state_last_written_timestamp_seconds") > before
    })
    .await;
    assert_eq!(front.get("/ready").await, (200, "ready\n".to_owned()));
    let saved = decode_snapshot(&std::fs::read(disk.0.join("snapshot")).unwrap()).unwrap();
    assert!(format!("{saved:?}").contains("nobody.shop"));
}

#[tokio::test]
async fn a_wiped_registry_is_not_believed_and_its_backup_heals() {
    let mut kept = Kept::open(&json!({})).await;
    kept.written().await;
    let (data, backup) = (kept.mesh.data(), kept.mesh.directory().join("backup"));
    kept.mesh.registry.kill();
    std::fs::rename(&data, &backup).unwrap();
    kept.mesh.restart_registry().await;
    for sidecar in [&kept.front, &kept.replica] {
        foreign(sidecar, "unknown_root", 1.0).await;
        said(
            sidecar,
            &["ready\n", "is not the one", "unknown root", "outrigger registry restore", "outrigger token"],
        )
        .await;
        assert_eq!(sidecar.get("/ready").await.0, 200);
        assert!(sidecar.process.log().contains("outrigger registry restore"));
    }
    works(&kept.front).await;
    // A restart in the middle changes nothing.
    let front = kept.front.restart().await;
    foreign(&front, "unknown_root", 1.0).await;
    works(&front).await;
    let (_, services) = kept.mesh.get("/v1/services").await;
    assert!(!services.contains("orders"), "nobody registered with it: {services}");

    kept.mesh.registry.kill();
    std::fs::rename(&data, kept.mesh.directory().join("wiped")).unwrap();
    std::fs::rename(&backup, &data).unwrap();
    kept.mesh.restart_registry().await;
    for sidecar in [&front, &kept.replica] {
        connected(sidecar).await;
        foreign(sidecar, "unknown_root", 0.0).await;
        until("it is ready without a note", || async { sidecar.get("/ready").await.1 == "ready\n" }).await;
    }
    works(&front).await;

    // The other remedy: a token of another mesh means that one.
    let mesh = Mesh::start().await;
    let token = mesh.token_for("shop", "front", &[], 0).await.expose();
    let moved = json!({"registry": {"address": mesh.grpc}, "join": {"token": token}});
    let front = front.relaunch(&moved).await;
    connected(&front).await;
    assert!(front.process.log().contains("of another mesh"));
    assert_eq!(front.workloads(ORDERS).await, Vec::<String>::new(), "nothing of the old mesh is left");
    let front = front.restart().await;
    connected(&front).await;
}

#[tokio::test]
async fn a_registry_with_another_store_is_neither_heard_nor_told() {
    let mut kept = Kept::open(&json!({})).await;
    kept.written().await;
    kept.replica.process.signal(Signal::TERM);
    assert_eq!(kept.replica.process.end().await.code(), Some(0));
    let snapshot = state(&kept.mesh, "orders-1").join(Kind::Snapshot.name());
    let (mut head, changes) = decode_snapshot(&std::fs::read(&snapshot).unwrap()).unwrap();
    let real = std::mem::replace(&mut head.store, "another".to_owned());
    std::fs::write(&snapshot, encode_snapshot(&head, &changes)).unwrap();

    let replica = kept.replica.relaunch(&json!({})).await;
    foreign(&replica, "other_store", 1.0).await;
    said(&replica, &["ready\n", &format!("store id {real}, expected another"), "outrigger registry restore"])
        .await;
    let metrics = replica.metrics().await;
    assert_eq!(metrics.value("mesh_registry_connected"), 0.0);
    let (_, page) = kept.mesh.get("/v1/services/shop/orders").await;
    assert!(!page.contains("orders-1"), "it does not register: {page}");

    let token = kept.mesh.token_for("shop", "orders", &["orders"], 0).await.expose();
    let replica = replica.relaunch(&json!({"join": {"token": token}})).await;
    connected(&replica).await;
    foreign(&replica, "other_store", 0.0).await;
    kept.front.knows_healthy(ORDERS, 1).await;
    works(&kept.front).await;
}
