//! What a sidecar costs: idle, with idle connections, and while large bodies pass.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::{App, Body, full, ok, streamed};
use outrigger_tests::client::{Client, stream_request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::process::{Process, binary};
use outrigger_tests::wait::until;
use serde_json::json;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::resting::answer;
use crate::shop::{ORDERS, Shop};

/// Only an optimised binary says something about the promises.
fn optimised() -> bool {
    binary().components().any(|part| part.as_os_str() == "release" || part.as_os_str() == "dist")
}

#[tokio::test]
async fn an_idle_sidecar_is_small() {
    let shop = Shop::open(1).await;
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    for process in [&shop.front.process, &shop.replicas[0].process, &shop.mesh.registry] {
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
        let parts: Vec<_> = status.lines().filter(|line| line.starts_with("Rss")).collect();
        println!("{} MiB resident: {parts:?}", mib(process.resident_bytes()));
    }
    if optimised() {
        assert!(shop.front.process.resident_bytes() <= 10 << 20);
    }
}

/// Idle connections of one test: each needs a descriptor here and one in the sidecar, and a limit of
/// 20,000 is common.
const CONNECTIONS: usize = 10_000;
/// Most of a sidecar's memory for an idle connection, in bytes: one that has not spoken yet, or one between two
/// requests of HTTP/1.1.
const IDLE: u64 = 12 << 10;

fn descriptors(process: &Process) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap().count()
}

/// One request on a connection that stays open.
async fn ask(stream: &mut TcpStream) {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: orders.shop\r\nuser-agent: idle/1\r\n\r\n").await.unwrap();
    answer(stream).await;
}

/// Opens the connections, and asks on each if told so. Returns what each costs the sidecar.
async fn cost_of_each(sidecar: &Sidecar, asking: bool) -> u64 {
    // What the first of them brings for all.
    let mut warm = TcpStream::connect(sidecar.outbound).await.unwrap();
    ask(&mut warm).await;
    let (before, open) = (sidecar.process.resident_bytes(), descriptors(&sidecar.process));
    let mut streams = Vec::with_capacity(CONNECTIONS);
    for _ in 0..CONNECTIONS {
        let mut stream = TcpStream::connect(sidecar.outbound).await.unwrap();
        if asking {
            ask(&mut stream).await;
        }
        streams.push(stream);
    }
    until("all are accepted", || async { descriptors(&sidecar.process) >= open + CONNECTIONS }).await;
    // The last ones work, and so do those that had been idle.
    ask(streams.last_mut().unwrap()).await;
    ask(&mut warm).await;
    let each = || sidecar.process.resident_bytes().saturating_sub(before) / CONNECTIONS as u64;
    until("they rest", || async { each() <= IDLE }).await;
    let each = each();
    for stream in streams.iter_mut().step_by(500) {
        ask(stream).await;
    }
    each
}

#[tokio::test]
async fn an_idle_connection_of_the_application_is_small() {
    let shop = Shop::open(1).await;
    for (asking, id) in [(true, "kept-alive"), (false, "silent")] {
        let config = json!({"limits": {"connections": CONNECTIONS + 100}});
        let sidecar = shop.mesh.sidecar(id).calls(&[ORDERS]).config(&config).start().await;
        sidecar.knows_healthy(ORDERS, 1).await;
        let each = cost_of_each(&sidecar, asking).await;
        println!("{CONNECTIONS} {id} connections: {each} bytes resident each");
    }
}

/// Most memory it has had since [`forget_peak`], in bytes.
fn peak(process: &Process) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
    kib.unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// As proc_pid_clear_refs(5) has it.
fn forget_peak(process: &Process) {
    std::fs::write(format!("/proc/{}/clear_refs", process.pid()), "5").unwrap();
}

/// Sends bytes in pieces, numbered so that none may be lost, doubled or out of order.
fn numbered(pieces: u64) -> Body {
    let (chunks, body) = streamed();
    Tasks::current().spawn("pieces", async move {
        for number in 0..pieces {
            let mut piece = vec![0; PIECE];
            piece[..8].copy_from_slice(&number.to_le_bytes());
            if chunks.send(Ok(Frame::data(piece.into()))).await.is_err() {
                return;
            }
        }
    });
    body
}

const PIECE: usize = 64 << 10;

/// How many pieces came, each in its place.
async fn count(mut body: Incoming) -> u64 {
    let (mut number, mut offset) = (0u64, 0);
    while let Some(frame) = body.frame().await {
        let mut data: Bytes = frame.unwrap().into_data().unwrap_or_default();
        while !data.is_empty() {
            let here = data.split_to(data.len().min(PIECE - offset));
            for (at, byte) in (offset..8).zip(&here) {
                assert_eq!(*byte, number.to_le_bytes()[at], "piece {number}");
            }
            offset += here.len();
            if offset == PIECE {
                (number, offset) = (number + 1, 0);
            }
        }
    }
    assert_eq!(offset, 0);
    number
}

/// Takes what is sent to `/up` and says how many pieces it was; answers `/down/N` with N pieces.
async fn bulk() -> App {
    App::with("bulk", |request: Request<Incoming>| async move {
        if let Some(pieces) = request.uri().path().strip_prefix("/down/") {
            return Ok(Response::new(numbered(pieces.parse().unwrap_or_default())));
        }
        Ok(ok(count(request.into_body()).await.to_string()))
    })
    .await
}

async fn up(client: &Client, service: &str, pieces: u64) {
    let answer =
        client.send(stream_request(Method::POST, service, "/up", &[], numbered(pieces))).await.unwrap();
    assert_eq!(answer.text(), pieces.to_string());
}

async fn down(client: &Client, service: &str, pieces: u64) {
    let path = format!("/down/{pieces}");
    let response = client.head(stream_request(Method::GET, service, &path, &[], full(""))).await.unwrap();
    assert_eq!(count(response.into_body()).await, pieces);
}

#[tokio::test]
async fn bodies_larger_than_memory_pass() {
    let mesh = Mesh::start().await;
    let app = bulk().await;
    let builder = mesh.sidecar("orders-1").serves_at("one", 80, "http1", app.address);
    let replica = builder.serves_at("two", 80, "http2", app.address).start().await;
    let front = mesh.caller("front", &["one.shop", "two.shop"]).await;
    front.knows_healthy("one.shop", 1).await;
    front.knows_healthy("two.shop", 1).await;
    let pieces = (if optimised() { 1 << 30 } else { 64 << 20 }) / PIECE as u64;
    for (service, client) in [("one.shop", front.client()), ("two.shop", front.client_http2())] {
        let client = client.limit(Duration::from_secs(600));
        // What the first of them brings for all.
        up(&client, service, 64).await;
        down(&client, service, 64).await;
        let processes = [("caller's", &front.process), ("server's", &replica.process)];
        let before = processes.map(|(_, process)| process.resident_bytes());
        for (_, process) in processes {
            forget_peak(process);
        }
        up(&client, service, pieces).await;
        down(&client, service, pieces).await;
        for ((name, process), before) in processes.into_iter().zip(before) {
            let grown = peak(process).saturating_sub(before) >> 10;
            let sent = (pieces * PIECE as u64) >> 20;
            println!("{service}: {sent} MiB up and down: the {name} sidecar grew by {grown} KiB at most");
            assert!(grown < 8 << 10, "{grown} KiB");
        }
    }
}
