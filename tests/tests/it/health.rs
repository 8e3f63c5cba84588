//! Whether an application is ready, by its own word: callers hear of it, and people hear why.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use outrigger_tests::app::{App, ok, streamed};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::until;
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::shop::ORDERS;

async fn replica(mesh: &Mesh, id: &str, app: &App, protocol: &str, check: Value) -> Sidecar {
    let entry =
        json!({"name": "orders", "port": 80, "protocol": protocol, "target": app.address, "health": check});
    // As many failures as by default, sooner.
    let config = json!({"services": [entry], "health": {"interval": "100ms", "timeout": "10s"}});
    mesh.sidecar(id).serves("orders", app).config(&config).start().await
}

async fn caller(mesh: &Mesh) -> Sidecar {
    mesh.caller("front", &[ORDERS]).await
}

/// Waits until the sidecar says that its application is well, or why it is not.
async fn says(sidecar: &Sidecar, healthy: bool, why: &str) {
    until(&format!("{}: healthy {healthy}, {why}", sidecar.id), || async {
        let page: Value = serde_json::from_str(&sidecar.get("/services").await.1).unwrap_or_default();
        let port = &page["services"][0];
        let told = port["last_failure"].as_str().unwrap_or_default();
        let (status, ready) = sidecar.get("/ready").await;
        let gauge =
            sidecar.metrics().await.sum("mesh_application_healthy", &[("service", "orders"), ("port", "80")]);
        port["healthy"] == healthy
            && gauge == f64::from(u8::from(healthy))
            && told.contains(why)
            // An unhealthy application does not make its sidecar unready, which serves it all the same.
            && status == 200
            && ready.contains("is unhealthy") != healthy
            && (healthy || ready.contains(why))
    })
    .await;
}

#[tokio::test]
async fn a_path_says_whether_callers_come() {
    let mesh = Mesh::start().await;
    let status = Arc::new(AtomicU16::new(503));
    let now = status.clone();
    let app = App::with("app", move |request| {
        let status = if request.uri().path() == "/ready" { now.load(Ordering::SeqCst) } else { 200 };
        let mut response = ok("app");
        *response.status_mut() = http::StatusCode::from_u16(status).unwrap();
        async { Ok(response) }
    })
    .await;
    let sidecar = replica(&mesh, "orders-1", &app, "http", json!({"http": "/ready"})).await;
    let other = App::start("other").await;
    let _other = replica(&mesh, "orders-2", &other, "http", json!({"tcp": true})).await;
    let front = caller(&mesh).await;
    front.knows(ORDERS, &["orders-1", "orders-2"]).await;
    front.knows_healthy(ORDERS, 1).await;
    says(&sidecar, false, "it answers 503").await;
    let asked = |app: &App| app.heads().iter().filter(|(uri, _)| uri.path() != "/ready").count();
    for _ in 0..10 {
        assert_eq!(front.client().get(ORDERS, "/").await.unwrap().text(), "other");
    }
    assert_eq!(asked(&app), 0);
    // Not followed: where it leads nobody is asked.
    status.store(302, Ordering::SeqCst);
    front.knows_healthy(ORDERS, 2).await;
    says(&sidecar, true, "").await;
    status.store(500, Ordering::SeqCst);
    front.knows_healthy(ORDERS, 1).await;
    says(&sidecar, false, "it answers 500").await;
    let (_, head) = app.heads().remove(0);
    assert_eq!(head["host"].to_str().unwrap(), app.address.to_string());
}

/// As tonic or grpcio answer, with `status` as `grpc-status`, and a message of the enum's number.
fn grpc_answer(serving: u8, status: u16) -> Response<outrigger_tests::app::Body> {
    let (chunks, body) = streamed();
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from(status));
    outrigger_common::tasks::Tasks::current().spawn("answer", async move {
        if status == 0 {
            let _gone =
                chunks.send(Ok(Frame::data(Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, serving])))).await;
        }
        let _gone = chunks.send(Ok(Frame::trailers(trailers))).await;
    });
    let mut response = Response::new(body);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

#[tokio::test]
async fn an_application_of_grpc_says_it_by_its_own_interface() {
    let mesh = Mesh::start().await;
    let serving = Arc::new(AtomicU16::new(1));
    let now = serving.clone();
    let app = App::with("app", move |request| {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        let now = now.load(Ordering::SeqCst);
        let response = if now == 12 { grpc_answer(0, 12) } else { grpc_answer(now.to_le_bytes()[0], 0) };
        async { Ok(response) }
    })
    .await;
    let sidecar = replica(&mesh, "orders-1", &app, "grpc", json!({"grpc": "shop.Orders"})).await;
    let front = caller(&mesh).await;
    front.knows_healthy(ORDERS, 1).await;
    says(&sidecar, true, "").await;
    for (answer, why) in [(2, "NOT_SERVING"), (12, "not implemented")] {
        serving.store(answer, Ordering::SeqCst);
        front.knows_healthy(ORDERS, 0).await;
        says(&sidecar, false, why).await;
        serving.store(1, Ordering::SeqCst);
        front.knows_healthy(ORDERS, 1).await;
    }
}

#[tokio::test]
async fn one_that_hangs_is_unhealthy_and_delays_neither_the_other_ports_nor_the_lease() {
    let mesh = Mesh::with(&json!({"lease_ttl": "2s"}), &[]).await;
    let hanging = App::with("hanging", |_| std::future::pending()).await;
    let mut well = App::start("well").await;
    let entry = |name: &str, app: &App, check: Value| json!({"name": name, "port": 80, "target": app.address, "health": check});
    let services =
        [entry("orders", &hanging, json!({"http": "/"})), entry("payments", &well, json!({"http": "/"}))];
    // Longer than the lease, and than the test waits for the other port.
    let config = json!({"services": services, "health": {"interval": "100ms", "timeout": "5s"}});
    let builder = mesh.sidecar("both").serves("orders", &hanging).serves("payments", &well);
    let _both = builder.config(&config).start().await;
    let front = mesh.caller("front", &[ORDERS, "payments.shop"]).await;
    front.knows_healthy("payments.shop", 1).await;
    front.knows_healthy(ORDERS, 0).await;
    for _ in 0..2 {
        well.die().await;
        front.knows_healthy("payments.shop", 0).await;
        well.revive().await;
        front.knows_healthy("payments.shop", 1).await;
    }
    assert_eq!(front.workloads(ORDERS).await, ["both"]);
}

#[tokio::test]
async fn a_process_that_is_stopped_is_found_by_what_it_does_not_answer() {
    let mesh = Mesh::start().await;
    let app = outrigger_tests::server::Server::start("app", &json!({}), mesh.directory()).await;
    let entry = json!({"name": "orders", "port": 80, "target": app.address, "health": {"http": "/"}});
    let config = json!({"services": [entry], "health": {"interval": "100ms", "timeout": "200ms"}});
    let builder = mesh.sidecar("orders-1").account("orders").serves_at("orders", 80, "http", app.address);
    let sidecar = builder.config(&config).start().await;
    let front = caller(&mesh).await;
    front.knows_healthy(ORDERS, 1).await;
    // The kernel goes on accepting connections in its name.
    app.process.signal(Signal::STOP);
    front.knows_healthy(ORDERS, 0).await;
    says(&sidecar, false, "no answer within 200ms").await;
    app.process.signal(Signal::CONT);
    front.knows_healthy(ORDERS, 1).await;
}
