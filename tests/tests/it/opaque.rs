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

use crate::shop::policy;

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
        let timed = front.metrics().await.sum("mesh_protocol_detection_seconds_count", &[]);
        // Of a client that says nothing there is nothing to time.
        assert_eq!(timed, detected, "each took its time");
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

#[tokio::test]
async fn a_server_may_speak_first_unmarked() {
    let mesh = Mesh::start().await;
    let app = TcpApp::start(|mut stream| async move {
        // A health check is gone by now.
        if stream.write_all(b"220 ready\r\n").await.is_ok() {
            let mut words = Vec::new();
            let _broken = stream.read_to_end(&mut words).await;
            let _broken = stream.write_all(&words).await;
        }
    })
    .await;
    let (db, front) = pair(&mesh, "auto", app.address).await;
    let mut stream = TcpStream::connect(front.ports[0]).await.unwrap();
    let mut greeting = [0; 11];
    soon("the greeting", stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"220 ready\r\n");
    // Even what looks like HTTP is the server's now.
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("the end", stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!(rest, b"GET / HTTP/1.1\r\n\r\n");
    let metrics = front.metrics().await;
    assert_eq!(metrics.sum(DETECTED, &[("direction", "outbound"), ("protocol", "server_first")]), 1.0);
    assert_eq!(db.metrics().await.sum(OPENED, &[]), 1.0, "one connection for one");
}

#[tokio::test]
async fn a_client_that_speaks_http_late_is_still_governed_as_http() {
    let (mesh, app) = (Mesh::start().await, App::start("app").await);
    let (db, front) = pair(&mesh, "auto", app.address).await;
    let mut stream = TcpStream::connect(front.ports[0]).await.unwrap();
    until("its silence has the server dialled", || async { db.metrics().await.sum(OPENED, &[]) == 1.0 })
        .await;
    stream.write_all(b"GET / HTTP/1.1\r\nhost: db\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("app"), "{answer}");
    until("what was dialled is closed unused", || async {
        db.metrics().await.sum(CLOSED, &[("reason", "")]) == 1.0
    })
    .await;
    let metrics = front.metrics().await;
    assert_eq!(metrics.sum("mesh_requests_total", &[("status", "200")]), 1.0);
    assert_eq!(metrics.sum(OPENED, &[]), 0.0, "none of the application's");
}

/// A connection through the local port that the application has answered.
async fn answered(front: &Sidecar) -> TcpStream {
    let mut stream = TcpStream::connect(front.ports[0]).await.unwrap();
    stream.write_all(b"\0hello").await.unwrap();
    let mut echo = [0; 6];
    soon("the echo", stream.read_exact(&mut echo)).await.unwrap();
    stream
}

/// Waits until the connection ends, and not orderly.
async fn is_reset(stream: &mut TcpStream) {
    let mut rest = Vec::new();
    let error = soon("a reset", stream.read_to_end(&mut rest)).await.expect_err("an orderly end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// A connection through the local port is reset, perhaps before its client has noticed that it is open.
async fn is_refused(front: &Sidecar) {
    match TcpStream::connect(front.ports[0]).await {
        Ok(mut stream) => is_reset(&mut stream).await,
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
    }
}

/// Waits until that many connections have ended for a reason.
async fn ended(sidecar: &Sidecar, reason: &str, count: f64) {
    until(&format!("{} counts {reason}", sidecar.id), || async {
        sidecar.metrics().await.sum(CLOSED, &[("reason", reason)]) == count
    })
    .await;
}

#[tokio::test]
async fn what_breaks_is_reset_at_the_other_end() {
    let mesh = Mesh::start().await;
    let broken = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = broken.clone();
    let app = TcpApp::start(move |mut stream| {
        let seen = seen.clone();
        async move {
            let mut word = [0; 6];
            if stream.read_exact(&mut word).await.is_ok() {
                stream.write_all(&word).await.unwrap();
                if let Err(error) = stream.read_exact(&mut word).await {
                    let reset = error.kind() == std::io::ErrorKind::ConnectionReset;
                    seen.store(reset, std::sync::atomic::Ordering::Relaxed);
                }
                stream.set_zero_linger().unwrap();
            }
        }
    })
    .await;
    let (db, front) = pair(&mesh, "auto", app.address).await;
    let mut stream = answered(&front).await;
    stream.write_all(b"again!").await.unwrap();
    is_reset(&mut stream).await;
    ended(&front, "upstream_reset", 1.0).await;
    ended(&db, "app_reset", 1.0).await;

    let stream = answered(&front).await;
    stream.set_zero_linger().unwrap();
    drop(stream);
    until("the application sees a reset", || async { broken.load(std::sync::atomic::Ordering::Relaxed) })
        .await;
    ended(&front, "client_closed", 1.0).await;
    ended(&db, "client_closed", 1.0).await;

    // The mesh itself breaks in between.
    let mut stream = answered(&front).await;
    drop(db);
    is_reset(&mut stream).await;
    ended(&front, "upstream_reset", 2.0).await;
}

#[tokio::test]
async fn a_connection_that_cannot_be_made_is_made_elsewhere() {
    let mesh = Mesh::start().await;
    let app = TcpApp::echo().await;
    let slow = json!({"health": {"interval": "10m"}});
    let dead = TcpApp::echo().await;
    let _dead = mesh.sidecar("db-0").serves_at("db", 5432, "tcp", dead.address).config(&slow).start().await;
    let live = mesh.sidecar("db-1").serves_at("db", 5432, "tcp", app.address).config(&slow).start().await;
    let front = mesh.sidecar("front").config(&local_ports(&[5432])).start().await;
    front.knows_healthy(DB, 2).await;
    drop(dead);
    // Among so many, some are first tried at the dead one.
    for _ in 0..20 {
        assert_eq!(converse(front.ports[0], b"hello").await, b"hello");
    }
    let metrics = front.metrics().await;
    assert!(metrics.sum("mesh_retries_total", &[("reason", "undelivered"), ("outcome", "sent")]) >= 1.0);
    assert_eq!(metrics.sum(CLOSED, &[("reason", "")]), metrics.sum(CLOSED, &[]), "nobody noticed");
    assert!(metrics.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]) >= 1.0);
    drop((live, app));
    is_refused(&front).await;
}

#[tokio::test]
async fn policies_hold_for_connections() {
    let mesh = Mesh::start().await;
    let app = TcpApp::echo().await;
    let (db, front) = pair(&mesh, "tcp", app.address).await;
    front.caught_up(mesh.apply(&policy("db", "connectionPool: {maxConnections: 1}")).await).await;
    let first = answered(&front).await;
    is_refused(&front).await;
    ended(&front, "connection_limit", 1.0).await;
    drop(first);
    ended(&front, "", 1.0).await;

    front.caught_up(mesh.apply(&policy("db", "timeouts: {streamIdle: 300ms}")).await).await;
    let mut idle = answered(&front).await;
    is_reset(&mut idle).await;
    mesh.delete(&policy("db", "")).await;
    front.forgot("TrafficPolicy shop/db").await;

    let mut open = answered(&front).await;
    let nobody = "apiVersion: outrigger.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: db, namespace: shop}\nspec:\n  targetRefs: [{kind: Service, name: db}]\n  action: Allow\n  rules: [{identities: [\"spiffe://mesh.local/ns/shop/sa/nobody\"]}]\n";
    mesh.apply(nobody).await;
    // Who was let in is put out, and nobody is let in again.
    is_reset(&mut open).await;
    ended(&db, "denied", 1.0).await;
    is_refused(&front).await;
    ended(&front, "denied", 1.0).await;
    assert_eq!(front.metrics().await.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]), 0.0);
}

#[tokio::test]
async fn a_drain_gives_connections_its_time_and_no_more() {
    let mesh = Mesh::start().await;
    let app = TcpApp::echo().await;
    let drain = json!({"drain": {"deadline": "1s"}});
    let db = mesh.sidecar("db-1").serves_at("db", 5432, "tcp", app.address).config(&drain).start().await;
    let front = mesh.sidecar("front").config(&local_ports(&[5432])).start().await;
    front.knows_healthy(DB, 1).await;
    let mut open = answered(&front).await;
    assert_eq!(db.post_drain().await, 202);
    front.knows(DB, &[]).await;
    open.write_all(b"still!").await.unwrap();
    let mut echo = [0; 6];
    soon("it goes on", open.read_exact(&mut echo)).await.unwrap();
    is_reset(&mut open).await;
    ended(&front, "upstream_reset", 1.0).await;
}

#[tokio::test]
async fn http_does_not_get_in_as_something_else() {
    // What the client's sidecar takes for no HTTP, and many servers take for a request.
    let disguises = [
        &b"\n\n\n\n\nGET / HTTP/1.1\r\nhost: db\r\nx-forwarded-client-cert: URI=me\r\n\r\n"[..],
        b"GET / HTTP/1.1\rhost: db\r\nx-forwarded-client-cert: URI=me\r\n\r\n",
        b" \tGET\t/ HTTP/1.0\r\nx-forwarded-client-cert: URI=me\r\n\r\n",
    ];
    let app = TcpApp::echo().await;
    let mesh = Mesh::start().await;
    let (db, front) = pair(&mesh, "auto", app.address).await;
    for disguise in disguises {
        let mut stream = TcpStream::connect(front.ports[0]).await.unwrap();
        stream.write_all(disguise).await.unwrap();
        let mut read = Vec::new();
        let _reset = soon("the connection is broken", stream.read_to_end(&mut read)).await;
        let back = String::from_utf8_lossy(&read).into_owned();
        assert!(!back.contains("URI=me"), "{back:?}");
    }
    let refused = [("direction", "inbound"), ("destination", DB), ("reason", "not_served")];
    until("the server's sidecar has broken them", || async {
        db.metrics().await.sum(CLOSED, &refused) >= 1.0
    })
    .await;
    // Declared as opaque it is nobody's business.
    let mesh = Mesh::start().await;
    let (_db, front) = pair(&mesh, "tcp", app.address).await;
    assert_eq!(converse(front.ports[0], disguises[0]).await, disguises[0]);
}

#[tokio::test]
async fn one_identity_leaves_room_for_others() {
    let (mesh, app) = (Mesh::start().await, TcpApp::echo().await);
    let limits = json!({"limits": {"connections": 6}});
    let db = mesh.sidecar("db-1").serves_at("db", 5432, "tcp", app.address).config(&limits).start().await;
    let greedy = mesh.sidecar("greedy").account("greedy").config(&local_ports(&[5432])).start().await;
    let modest = mesh.sidecar("modest").account("modest").config(&local_ports(&[5432])).start().await;
    for sidecar in [&greedy, &modest] {
        sidecar.knows_healthy(DB, 1).await;
    }
    let mut held = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(greedy.ports[0]).await.unwrap();
        stream.write_all(b"x").await.unwrap();
        soon("the echo", stream.read_u8()).await.unwrap();
        held.push(stream);
    }
    let mut refused = TcpStream::connect(greedy.ports[0]).await.unwrap();
    let error = soon("the end", refused.read_u8()).await.expect_err("half of the listener is taken");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    let metrics = db.metrics().await;
    assert_eq!(metrics.sum(CLOSED, &[("source", "greedy.shop"), ("reason", "overloaded")]), 1.0);
    assert_eq!(metrics.sum("mesh_tls_handshakes_total", &[("result", "limited")]), 1.0);
    assert_eq!(converse(modest.ports[0], b"hello").await, b"hello", "others get in");
    // A place comes back with its connection.
    held.pop();
    until("the greedy gets in again", || async {
        let Ok(mut stream) = TcpStream::connect(greedy.ports[0]).await else { return false };
        stream.write_all(b"x").await.is_ok() && stream.read_u8().await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn requests_over_a_connection_too_many_go_elsewhere() {
    let (mesh, echo) = (Mesh::start().await, TcpApp::echo().await);
    let (near, far) = (App::start("near").await, App::start("far").await);
    let limits = json!({"limits": {"connections": 2}});
    let full = mesh.sidecar("db-1").serves_at("db", 5432, "tcp", echo.address).serves("orders", &near);
    let full = full.config(&limits).start().await;
    let _other = mesh.replica("orders-2", "orders", &far).await;
    let front = mesh.sidecar("front").calls(&["orders.shop"]).config(&local_ports(&[5432])).start().await;
    for (service, replicas) in [(DB, 1), ("orders.shop", 2)] {
        front.knows_healthy(service, replicas).await;
    }
    // Its one place at the first.
    let mut held = TcpStream::connect(front.ports[0]).await.unwrap();
    held.write_all(b"x").await.unwrap();
    soon("the echo", held.read_u8()).await.unwrap();
    for _ in 0..20 {
        let answer = front.client().post("orders.shop", "/", "once").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "far"));
    }
    assert_eq!(near.requests(), 0);
    assert!(full.metrics().await.sum("mesh_tls_handshakes_total", &[("result", "limited")]) >= 1.0);
}

#[tokio::test]
async fn everything_goes_over_ipv6() {
    const LOOPBACK: &str = "[::1]:0";
    let mesh = Mesh::start().await;
    let echo = TcpApp::on(LOOPBACK, |mut stream| async move {
        let (mut reader, mut writer) = stream.split();
        let _broken = tokio::io::copy(&mut reader, &mut writer).await;
    })
    .await;
    let web = App::start_at("web", LOOPBACK.parse().unwrap()).await;
    // All addresses are those of IPv6, too.
    let here = json!({"workload": {"address": "::1"}, "mesh": {"listen": "0.0.0.0:0"}});
    let db = mesh.sidecar("db-1").serves_at("db", 5432, "auto", echo.address).serves("web", &web);
    let _db = db.config(&here).start().await;
    let there = json!({
        "outbound": {"listen": LOOPBACK, "ports": [{"listen": LOOPBACK, "service": DB, "port": 5432}]},
        "mesh": {"listen": LOOPBACK},
        "admin": {"listen": LOOPBACK},
    });
    let front = mesh.sidecar("front").calls(&["web.shop"]).config(&there).start().await;
    for service in [DB, "web.shop"] {
        front.knows_healthy(service, 1).await;
    }
    assert!([front.outbound, front.ports[0], front.admin].iter().all(SocketAddr::is_ipv6));
    assert_eq!(converse(front.ports[0], b"\0hello").await, b"\0hello");
    for client in [front.client(), front.client_http2()] {
        let answer = client.get("web.shop", "/").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "web"));
    }
    let (code, _) = front.get("/ready").await;
    assert_eq!(code, 200);
}
