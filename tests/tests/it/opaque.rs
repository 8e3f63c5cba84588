//! Opaque bytes between sidecars, over dedicated local ports.

use std::net::SocketAddr;

use http::Method;
use outrigger_tests::app::App;
use outrigger_tests::client::{Client, request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::tcp::TcpApp;
use outrigger_tests::wait::{soon, until};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const DB: &str = "db.shop";
const OPENED: &str = "mesh_tcp_connections_opened_total";
const CLOSED: &str = "mesh_tcp_connections_closed_total";
const DETECTED: &str = "mesh_protocol_detections_total";

/// The configuration of a sidecar with one local port for each of these ports of `db.shop`.
fn local_ports(ports: &[u16]) -> Value {
    let ports: Vec<_> =
        ports.iter().map(|port| json!({"listen": "127.0.0.1:0", "service": DB, "port": port})).collect();
    json!({"outbound": {"ports": ports}})
}

/// A replica `db-1` that serves port 5432 of `db.shop` by a protocol, and a caller `front` with a local
/// port for it.
async fn pair(mesh: &Mesh, protocol: &str, app: SocketAddr) -> (Sidecar, Sidecar) {
    let db = mesh.sidecar("db-1").serves_at("db", 5432, protocol, app).start().await;
    let front = mesh.sidecar("front").config(&local_ports(&[5432])).start().await;
    front.knows_healthy(DB, 1).await;
    (db, front)
}

/// Sends all of it, ends, and reads to the end what comes back.
async fn converse(at: SocketAddr, words: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).await.unwrap();
    let (mut reader, mut writer) = stream.split();
    let mut read = Vec::new();
    let saying = async {
        writer.write_all(words).await.unwrap();
        writer.shutdown().await.unwrap();
    };
    soon("the conversation ends", async { tokio::join!(saying, reader.read_to_end(&mut read)).1 })
        .await
        .unwrap();
    read
}

#[tokio::test]
async fn bytes_pass_both_ways_and_either_side_may_end_first() {
    let app = TcpApp::echo().await;
    for protocol in ["auto", "tcp"] {
        let mesh = Mesh::start().await;
        let (db, front) = pair(&mesh, protocol, app.address).await;
        // What begins like nothing known, like a line, like a request, with nothing at all.
        for words in [&b"\0\x01\x02\xff"[..], b"hello", b"EHLO mail\r\n", b"GET", b"\x16\x03", b""] {
            assert_eq!(converse(front.ports[0], words).await, words, "{protocol} {words:?}");
        }
        let long: Vec<u8> = (0..3_000_000u32).map(|at| (at % 251) as u8).collect();
        assert!(converse(front.ports[0], &long).await == long, "{protocol}");
        let edge = [("source", "front.shop"), ("destination", DB)];
        for (sidecar, direction) in [(&front, "outbound"), (&db, "inbound")] {
            let labels = [edge.as_slice(), &[("direction", direction)]].concat();
            until("all have ended", || async {
                sidecar.metrics().await.sum(CLOSED, &[labels.as_slice(), &[("reason", "")]].concat()) == 7.0
            })
            .await;
            let metrics = sidecar.metrics().await;
            assert_eq!(metrics.sum(OPENED, &labels), 7.0);
            for name in ["mesh_tcp_received_bytes_total", "mesh_tcp_sent_bytes_total"] {
                assert_eq!(metrics.sum(name, &labels), 3_000_000.0 + 4.0 + 5.0 + 11.0 + 3.0 + 2.0, "{name}");
            }
            assert_eq!(metrics.sum("mesh_requests_total", &[]), 0.0);
        }
        let detected = front.metrics().await.sum(DETECTED, &[("protocol", "opaque")]);
        assert_eq!(detected, if protocol == "auto" { 7.0 } else { 0.0 }, "what is declared is not looked at");
    }
}

#[tokio::test]
async fn a_server_may_end_first() {
    let mesh = Mesh::start().await;
    let app = TcpApp::start(|mut stream| async move {
        let mut word = [0; 4];
        if stream.read_exact(&mut word).await.is_ok() {
            stream.write_all(b"bye").await.unwrap();
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"still here");
        }
    })
    .await;
    let (db, front) = pair(&mesh, "auto", app.address).await;
    let mut stream = TcpStream::connect(front.ports[0]).await.unwrap();
    stream.write_all(b"\0\0\0\0").await.unwrap();
    let mut read = Vec::new();
    soon("the server ends", stream.read_to_end(&mut read)).await.unwrap();
    assert_eq!(read, b"bye");
    stream.write_all(b"still here").await.unwrap();
    stream.shutdown().await.unwrap();
    until("both directions have ended", || async {
        db.metrics().await.sum(CLOSED, &[("reason", "")]) == 1.0
    })
    .await;
}

#[tokio::test]
async fn http_on_a_local_port_is_governed_as_http_whatever_its_host() {
    for protocol in ["auto", "http"] {
        let (mesh, app) = (Mesh::start().await, App::start("app").await);
        let (_db, front) = pair(&mesh, protocol, app.address).await;
        for client in [Client::http1(front.ports[0]), Client::http2(front.ports[0])] {
            let answer = client.send(request(Method::GET, "example.org", "/", &[], "")).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.text()), (200, "app".to_owned()), "{protocol}");
        }
        assert!(
            app.heads()
                .iter()
                .all(|(_, headers)| headers.get("host").is_none_or(|host| host == "example.org"))
        );
        let metrics = front.metrics().await;
        assert_eq!(metrics.sum("mesh_requests_total", &[("destination", DB), ("status", "200")]), 2.0);
        assert_eq!(metrics.sum(OPENED, &[]), 0.0);
        // Nobody to ask for a service: the port says which.
        let old = outrigger_tests::client::raw(front.ports[0], b"GET / HTTP/1.0\r\n\r\n").await;
        assert!(old.starts_with("HTTP/1.0 200") && old.ends_with("app"), "{old}");
    }
}
