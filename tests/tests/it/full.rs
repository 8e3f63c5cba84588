//! The registry's disk is full: a small file system, filled up. Needs root, to mount it.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;

use outrigger_api::v1;
use outrigger_tests::app::App;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::until;
use serde_json::json;

use crate::shop::ORDERS;

/// A small file system, unmounted when dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(path: PathBuf) -> Self {
        std::fs::create_dir(&path).unwrap();
        let status =
            Command::new("mount").args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"]).arg(&path).status();
        assert!(status.unwrap().success(), "this test needs the right to mount a file system");
        Self(path)
    }

    fn fill(&self) {
        // Until nothing more fits, to the last page.
        for size in [256 << 10, 4096] {
            for n in 0.. {
                if std::fs::write(self.0.join(format!("fill-{size}-{n}")), vec![1; size]).is_err() {
                    break;
                }
            }
        }
    }

    fn free(&self) {
        for entry in std::fs::read_dir(&self.0).unwrap().flatten() {
            if entry.file_name().to_string_lossy().starts_with("fill-") {
                std::fs::remove_file(entry.path()).unwrap();
            }
        }
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily: the registry may not be gone yet.
        let _unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn service(name: &str) -> v1::ApplyRequest {
    let json = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": name, "namespace": "shop"}, "spec": {"ports": [{"port": 80}]},
    });
    let resource = v1::Resource {
        kind: "Service".into(),
        namespace: "shop".into(),
        name: name.into(),
        json: json.to_string(),
        revision: 0,
    };
    v1::ApplyRequest { resources: vec![resource], ..Default::default() }
}

#[tokio::test]
async fn a_full_disk_refuses_writes_by_name_and_everything_else_goes_on() {
    let place = tempfile::tempdir().unwrap();
    let disk = Tmpfs::mount(place.path().join("disk"));
    let data = disk.0.join("registry");
    let mesh = Mesh::with(&json!({"data_dir": data, "lease_ttl": "2s"}), &[]).await;
    // The harness reads the admin's identity where it is by default.
    std::os::unix::fs::symlink(&data, mesh.data()).unwrap();
    let app = App::start("app").await;
    let replica = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let token = mesh.token("shop", "late", &["late"]).await.expose();
    disk.fill();
    let mut admin = mesh.admin();
    let mut refused = None;
    // What the store has set aside in its file may take some more.
    for n in 0..2000 {
        if let Err(status) = admin.apply(service(&format!("s{n}"))).await {
            refused = Some(status);
            break;
        }
    }
    let refused = refused.unwrap();
    let store = data.join("registry.redb");
    assert_eq!(refused.code(), tonic::Code::Unavailable);
    assert!(
        refused.message().contains(store.to_str().unwrap())
            && refused.message().contains("cannot be written"),
        "{refused:?}"
    );
    assert!(mesh.metrics().await.value("mesh_registry_store_errors_total") >= 1.0);
    let late = mesh.sidecar("late-1").serves("late", &app).token(&token).launch().await;
    until("the sidecar says why it cannot join", || async {
        let log = late.process.log();
        log.contains("cannot be written") && log.contains(store.to_str().unwrap())
    })
    .await;
    // Leases are renewed and nothing ends, whatever the disk.
    let renewals = || async {
        let (_, page) = mesh.get("/v1/services/shop/orders").await;
        let page: serde_json::Value = serde_json::from_str(&page).unwrap();
        page["endpoints"][0]["lease_age_ms"].as_u64().unwrap()
    };
    let (last, seen) = (Cell::new(renewals().await), Cell::new(0));
    until("the lease is renewed five times", || async {
        let age = renewals().await;
        seen.set(seen.get() + u32::from(age < last.replace(age)));
        seen.get() >= 5
    })
    .await;
    assert_eq!(front.workloads(ORDERS).await, ["orders-1"]);
    assert_eq!(front.client().get(ORDERS, "/").await.unwrap().status, 200);
    assert_eq!(front.metrics().await.value("mesh_registry_connected"), 1.0);
    disk.free();
    until("it writes again", || async { mesh.admin().apply(service("again")).await.is_ok() }).await;
    late.ready().await;
    drop(replica);
}
