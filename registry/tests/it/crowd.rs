//! Strangers and greedy clients do not keep others out.

use std::time::Duration;

use outrigger_common::mtls;
use outrigger_registry::Limits;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::Code;

use crate::harness::{Mesh, hello, refused, soon, until, workload};

const HOUR: Duration = Duration::from_secs(3600);

/// Connections without a certificate that say nothing.
async fn strangers(mesh: &Mesh, pin: &str, count: usize) -> Vec<TlsStream<TcpStream>> {
    let connector = TlsConnector::from(mtls::joining_client_config(pin, &[b"h2"]).unwrap());
    let mut strangers = Vec::new();
    for _ in 0..count {
        let stream = TcpStream::connect(&mesh.grpc).await.unwrap();
        let name = ServerName::try_from("registry.outrigger.mesh").unwrap();
        strangers.push(soon("handshake", connector.connect(name, stream)).await.unwrap());
    }
    strangers
}

async fn ends(mut stranger: TlsStream<TcpStream>) {
    let _cut_short = soon("its end", stranger.read_to_end(&mut Vec::new())).await;
}

#[tokio::test]
async fn a_crowd_of_strangers_shuts_nobody_out() {
    let least = Duration::from_millis(50);
    let mesh = Mesh::start_with(Limits { anonymous_least: least, ..Limits::default() }).await;
    let token = mesh.token("shop", "orders", &["orders"], 60).await;
    let first = mesh.join(&token).await.unwrap();
    let crowd = strangers(&mesh, &token.pin, 80).await;
    mesh.sidecar_as(first).register(workload("w1", "orders.shop", 80)).await.unwrap();
    until("a new one joins", || async { mesh.join(&token).await.is_ok() }).await;
    // The oldest made room.
    ends(crowd.into_iter().next().unwrap()).await;
}

#[tokio::test]
async fn strangers_that_stay_are_shown_out() {
    let most = Duration::from_secs(1);
    let limits = Limits { anonymous: 3, anonymous_least: HOUR, anonymous_most: most, ..Limits::default() };
    let mesh = Mesh::start_with(limits).await;
    let token = mesh.token("shop", "orders", &["orders"], 60).await;
    let crowd = strangers(&mesh, &token.pin, 5).await;
    until("two are refused", || async {
        mesh.metric("mesh_registry_handshakes_total{result=\"refused\"}").await == 2.0
    })
    .await;
    for stranger in crowd {
        ends(stranger).await;
    }
    mesh.join(&token).await.unwrap();
}

#[tokio::test]
async fn a_connection_has_few_watch_streams() {
    let mesh = Mesh::start("").await;
    let front = mesh.sidecar("shop", "front", &[]).await;
    let mut watchers = Vec::new();
    for _ in 0..4 {
        watchers.push(front.watch(&[]).await);
    }
    refused(front.hello(hello(&[], &[])).await.map(|_| ()), Code::ResourceExhausted, "end one");
    mesh.sidecar("shop", "front", &[]).await.watch(&[]).await;
    watchers.pop();
    until("there is room again", || async { front.hello(hello(&[], &[])).await.is_ok() }).await;
}
