//! Certificates renew under load, and nothing secret is written anywhere.

use outrigger_tests::app::App;
use outrigger_tests::load::Load;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::until;
use serde_json::json;

use crate::shop::{ORDERS, repeatable};

const EXPIRY: &str = "mesh_certificate_expiry_timestamp_seconds";

#[tokio::test]
async fn certificates_are_renewed_under_load_and_no_secret_is_logged() {
    // Everything the processes could say, to look for secrets in it.
    let trace = [("RUST_LOG".to_owned(), "trace".to_owned())];
    let mesh = Mesh::with(&json!({"certificates": {"lifetime": "4s"}}), &trace).await;
    let app = App::start("app-1").await;
    let tokens = [mesh.token("shop", "orders", &["orders"]).await, mesh.token("shop", "front", &[]).await];
    // Connections are replaced often, so that every certificate is used.
    let pool = json!({"pool": {"max_age": "1s"}});
    let sidecar = |id: &str, token: usize| {
        mesh.sidecar(id).token(&tokens[token].expose()).config(&pool).env("RUST_LOG", "trace")
    };
    let replica = sidecar("orders-1", 0).serves("orders", &app).start().await;
    let front = sidecar("front", 1).calls(&[ORDERS]).start().await;
    front.knows_healthy(ORDERS, 1).await;
    let load = Load::start(&front.client(), 30.0, repeatable);
    let first = front.metrics().await.value(EXPIRY);
    for _ in 0..3 {
        let (before, peer) = (front.metrics().await.value(EXPIRY), replica.metrics().await.value(EXPIRY));
        until("both certificates are renewed", || async {
            front.metrics().await.value(EXPIRY) > before && replica.metrics().await.value(EXPIRY) > peer
        })
        .await;
    }
    // The certificate both began with is long over.
    until("three lifetimes have passed", || async { front.metrics().await.value(EXPIRY) >= first + 12.0 })
        .await;
    load.more(30).await;
    let report = load.stop().await;
    report.assert_clean("certificates of 4 s");
    let metrics = front.metrics().await;
    println!(
        "{} handshakes, {} failed; {} certificates issued",
        metrics.sum("mesh_tls_handshakes_total", &[("result", "ok")]),
        metrics.sum("mesh_tls_handshakes_total", &[("result", "failed")]),
        mesh.metrics().await.sum("mesh_registry_certificates_issued_total", &[])
    );
    assert_eq!(metrics.sum("mesh_tls_handshakes_total", &[("result", "failed")]), 0.0);
    assert!(metrics.sum("mesh_tls_handshakes_total", &[("result", "ok")]) >= 5.0);
    assert_eq!(metrics.sum("mesh_requests_total", &[("tls", "none")]), 0.0);

    let key = std::fs::read_to_string(mesh.data().join("admin/key.pem")).unwrap();
    let key = key.lines().nth(1).unwrap();
    let logs = mesh.logs();
    assert_eq!(logs.len(), 3);
    for (name, log) in logs {
        assert!(log.contains("TRACE"), "{name} says everything");
        for secret in [tokens[0].secret.as_str(), &tokens[1].secret, "PRIVATE KEY", key] {
            assert!(!log.contains(secret), "{name} holds a secret");
        }
    }
    let (_, config) = front.get("/config").await;
    assert!(config.contains(&tokens[1].id) && !config.contains(&tokens[1].secret));
}
