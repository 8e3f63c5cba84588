//! Clients that do not read what they asked for: they get no more than their time, and nobody else
//! waits for them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_common::mtls::Svid;
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::{App, Body, Spawn, ok, streamed};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::{soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::identity::connect_tls;
use crate::shop::{ORDERS, policy};

/// Answers `/flood` without an end, and all else with `app`.
struct Flood {
    app: App,
    /// Responses without an end under way.
    floods: Arc<AtomicUsize>,
}

impl Flood {
    async fn start() -> Self {
        let floods = Arc::new(AtomicUsize::new(0));
        let count = floods.clone();
        let app = App::with("app", move |request| {
            let (chunks, body) = streamed();
            let piece = match request.uri().path() {
                "/flood" => Bytes::from(vec![b'x'; 64 << 10]),
                _ => Bytes::new(),
            };
            let count = count.clone();
            let response = if piece.is_empty() { ok("app") } else { Response::new(body) };
            async move {
                if !piece.is_empty() {
                    count.fetch_add(1, Ordering::SeqCst);
                    Tasks::current().spawn("flood", async move {
                        while chunks.send(Ok(Frame::data(piece.clone()))).await.is_ok() {}
                        count.fetch_sub(1, Ordering::SeqCst);
                    });
                }
                Ok(response)
            }
        });
        Self { app: app.await, floods }
    }

    async fn ends(&self) {
        until("the application's response is broken off", || async {
            self.floods.load(Ordering::SeqCst) == 0
        })
        .await;
    }
}

async fn counted(sidecar: &Sidecar, direction: &str, reason: &str) {
    until(&format!("{} counts {reason}", sidecar.id), || async {
        let labels = [("direction", direction), ("reason", reason)];
        sidecar.metrics().await.sum("mesh_requests_total", &labels) == 1.0
    })
    .await;
}

/// Waits until a caller is served again.
async fn served(front: &Sidecar) {
    until("another request is served", || async {
        front.client().get(ORDERS, "/").await.is_ok_and(|answer| answer.text() == "app")
    })
    .await;
}

/// Asks for the flood over HTTP/1.1, reads the head, and nothing more.
async fn ask_and_not_read(front: &Sidecar) -> TcpStream {
    let mut stream = TcpStream::connect(front.outbound).await.unwrap();
    stream.write_all(b"GET /flood HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("a head", stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test]
async fn a_client_that_does_not_read_loses_its_place_on_the_way_to_the_destination() {
    let mesh = Mesh::start().await;
    let spec = "timeouts: {streamIdle: 1s}
                connectionPool: {maxInFlight: 1}
                circuitBreaker: {consecutiveFailures: 1}";
    mesh.apply(&policy("orders", spec)).await;
    let flood = Flood::start().await;
    let _replica = mesh.replica("orders-1", "orders", &flood.app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let mut stalled = ask_and_not_read(&front).await;
    served(&front).await;
    flood.ends().await;
    counted(&front, "outbound", "idle_timeout").await;
    let metrics = front.metrics().await;
    assert_eq!(
        metrics.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]),
        0.0,
        "whose fault it is"
    );
    // What it then reads is not a whole response.
    let mut rest = Vec::new();
    let _reset = soon("the connection ends", stalled.read_to_end(&mut rest)).await;
    assert!(!rest.is_empty() && !rest.ends_with(b"0\r\n\r\n"));
}

#[tokio::test]
async fn a_deadline_holds_for_a_client_that_does_not_read_as_well() {
    let mesh = Mesh::start().await;
    mesh.apply(&policy("orders", "timeouts: {request: 2s}\nconnectionPool: {maxInFlight: 1}")).await;
    let flood = Flood::start().await;
    let _replica = mesh.replica("orders-1", "orders", &flood.app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let _stalled = ask_and_not_read(&front).await;
    served(&front).await;
    counted(&front, "outbound", "deadline_exceeded").await;
}

/// A connection of another sidecar that is none.
async fn peer(to: &Sidecar, svid: &Svid, window: u32) -> http2::SendRequest<Body> {
    let stream = connect_tls(to.mesh, "80.orders.shop.mesh", svid, b"h2").await;
    let tasks = Tasks::current();
    let (sender, driver) = http2::Builder::new(Spawn(tasks.clone()))
        .timer(TokioTimer::new())
        .initial_stream_window_size(window)
        .handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tasks.spawn("peer", async move {
        let _ended = driver.await;
    });
    sender
}

async fn ask(sender: &mut http2::SendRequest<Body>, path: &str) -> Response<Incoming> {
    let request =
        Request::get(format!("http://orders.shop{path}")).body(outrigger_tests::app::full("")).unwrap();
    soon("a head", sender.send_request(request)).await.unwrap()
}

#[tokio::test]
async fn a_peer_that_does_not_read_loses_its_place_in_the_application() {
    let mesh = Mesh::start().await;
    let spec = "timeouts: {streamIdle: 1s}
                retries: {attempts: 0}
                limits: {maxInFlight: 1, maxQueued: 0}";
    mesh.apply(&policy("orders", spec)).await;
    let flood = Flood::start().await;
    let replica = mesh.replica("orders-1", "orders", &flood.app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let svid = mesh.identity("shop", "greedy", &[]).await;
    // One that reads something of much, and one that has no room for a single byte of little.
    for (path, window, counts) in [("/flood", 64 << 10, 1.0), ("/little", 0, 2.0)] {
        let mut sender = peer(&replica, &svid, window).await;
        let stalled = ask(&mut sender, path).await;
        assert_eq!(stalled.status(), 200);
        served(&front).await;
        flood.ends().await;
        until("it is counted with its reason", || async {
            let labels = [("direction", "inbound"), ("reason", "idle_timeout")];
            replica.metrics().await.sum("mesh_requests_total", &labels) == counts
        })
        .await;
        if window > 0 {
            // Its connection is good for others, and this response ends as the failure it is.
            let mut other = ask(&mut sender, "/").await;
            let whole = soon("an answer", other.body_mut().collect()).await.unwrap().to_bytes();
            assert_eq!(whole, "app");
            let mut body = stalled.into_body();
            let end = soon("the response ends", async {
                loop {
                    match body.frame().await {
                        Some(Ok(_)) => {}
                        other => return other.map(|frame| frame.map(|_| ())),
                    }
                }
            });
            assert!(matches!(end.await, Some(Err(_))), "not a complete response");
        }
    }
}

#[tokio::test]
async fn a_client_that_reads_slowly_keeps_its_response() {
    let mesh = Mesh::start().await;
    mesh.apply(&policy("orders", "timeouts: {streamIdle: 2s}")).await;
    let flood = Flood::start().await;
    let _replica = mesh.replica("orders-1", "orders", &flood.app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let mut stream = ask_and_not_read(&front).await;
    // Never as fast as the application, for longer than may pass between two pieces.
    let mut buffer = vec![0; 1 << 20];
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(5) {
        let _all = soon("more of it", stream.read_exact(&mut buffer)).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(20)).await; // Slowly.
    }
    assert_eq!(front.metrics().await.sum("mesh_requests_total", &[("reason", "idle_timeout")]), 0.0);
}
