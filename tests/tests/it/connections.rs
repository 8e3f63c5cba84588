//! Limits of what one sidecar asks of a destination: over them a request is shed at once, with its
//! reason.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::{App, ok, streamed};
use outrigger_tests::client::{Answer, Broken, Client, request, stream_request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::metrics::Metrics;
use outrigger_tests::tcp::TcpApp;
use outrigger_tests::wait::{soon, until};
use rustix::process::Signal;
use tokio::sync::{Semaphore, oneshot};

use crate::shop::{ORDERS, Shop, policy};

/// Streams that a sidecar takes on one connection.
const STREAMS: usize = 250;

/// One replica whose application answers when it is let.
struct Held {
    front: Sidecar,
    gate: Arc<Semaphore>,
    app: App,
    replica: Sidecar,
    mesh: Mesh,
}

impl Held {
    async fn open(spec: &str) -> Self {
        let (mesh, gate) = (Mesh::start().await, Arc::new(Semaphore::new(0)));
        let waits = gate.clone();
        let app = App::with("app", move |_| {
            let waits = waits.clone();
            async move {
                waits.acquire().await.unwrap().forget();
                Ok(ok("app"))
            }
        })
        .await;
        let replica = mesh.replica("orders-1", "orders", &app).await;
        let front = mesh.caller("front", &[ORDERS]).await;
        front.knows_healthy(ORDERS, 1).await;
        front.caught_up(mesh.apply(&policy("orders", spec)).await).await;
        Self { front, gate, app, replica, mesh }
    }

    /// Sends a request without waiting for its answer.
    fn send(&self) -> oneshot::Receiver<Result<Answer, Broken>> {
        send(self.front.client())
    }

    async fn arrived(&self, requests: usize) {
        until(&format!("{requests} requests arrived"), async || self.app.requests() == requests).await;
    }

    /// Asserts that one more request is shed.
    async fn shed(&self, reason: &str) {
        let before = shed(&self.front.metrics().await, reason);
        let answer = self.front.client().post(ORDERS, "/", "").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason()), (503, reason));
        assert_eq!(shed(&self.front.metrics().await, reason), before + 1.0);
    }
}

fn send(client: Client) -> oneshot::Receiver<Result<Answer, Broken>> {
    let (sender, receiver) = oneshot::channel();
    Tasks::current().spawn("held request", async move {
        // A test that has failed does not listen.
        let _gone = sender.send(client.send(request(Method::GET, ORDERS, "/", &[], "")).await);
    });
    receiver
}

fn shed(metrics: &Metrics, reason: &str) -> f64 {
    metrics.sum("mesh_requests_shed_total", &[("reason", reason)])
}

async fn fine(answer: oneshot::Receiver<Result<Answer, Broken>>) {
    let answer = soon("an answer", answer).await.unwrap().unwrap();
    assert_eq!(answer.status, 200, "{}", answer.reason());
}

#[tokio::test]
async fn requests_in_flight_are_limited_and_a_new_limit_holds_at_once() {
    let held = Held::open("connectionPool: {maxInFlight: 2}").await;
    let (one, two) = (held.send(), held.send());
    held.arrived(2).await;
    held.shed("in_flight_limit").await;
    let wider = held.mesh.apply(&policy("orders", "connectionPool: {maxInFlight: 3}")).await;
    held.front.caught_up(wider).await;
    let three = held.send();
    held.arrived(3).await;
    held.shed("in_flight_limit").await;
    held.gate.add_permits(4);
    for answer in [one, two, three] {
        fine(answer).await;
    }
    fine(held.send()).await;
}

#[tokio::test]
async fn a_connection_carries_as_many_requests_as_the_policy_says() {
    let shop = Shop::open(2).await;
    shop.govern("connectionPool: {maxRequestsPerConnection: 5}").await;
    let handshakes = async || {
        let labels = [("direction", "outbound"), ("result", "ok")];
        shop.front.metrics().await.sum("mesh_tls_handshakes_total", &labels)
    };
    let client = shop.front.client();
    let before = handshakes().await;
    for _ in 0..50 {
        assert_eq!(client.get(ORDERS, "/").await.unwrap().status, 200);
    }
    // 50 requests fill ten connections; at each replica one may have places left.
    let made = handshakes().await - before;
    assert!((10.0..=11.0).contains(&made), "{made} connections");
}

#[tokio::test]
async fn the_last_connection_that_may_be_is_filled_and_then_there_is_no_room() {
    let held = Held::open("connectionPool: {maxConnections: 1}").await;
    // How many streams the peer takes is known once its settings have come.
    held.gate.add_permits(1);
    fine(held.send()).await;
    let answers: Vec<_> = (0..STREAMS).map(|_| held.send()).collect();
    held.arrived(STREAMS + 1).await;
    held.shed("connection_limit").await;
    assert_eq!(held.front.endpoints(ORDERS).await[0]["connections"], 1);
    held.gate.add_permits(STREAMS + 1);
    for answer in answers {
        fine(answer).await;
    }
    fine(held.send()).await;
}

#[tokio::test]
async fn one_more_connection_is_opened_before_streams_queue() {
    let held = Held::open("").await;
    held.gate.add_permits(1);
    fine(held.send()).await;
    let answers: Vec<_> = (0..101).map(|_| held.send()).collect();
    held.arrived(102).await;
    assert_eq!(held.front.endpoints(ORDERS).await[0]["connections"], 2);
    held.gate.add_permits(101);
    for answer in answers {
        fine(answer).await;
    }
}

#[tokio::test]
async fn a_burst_does_not_outrun_what_an_application_admits() {
    let mesh = Mesh::start().await;
    let app = TcpApp::start(|stream| async move {
        let service = service_fn(|_: Request<Incoming>| async { Ok::<_, Infallible>(ok("app")) });
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let serving = builder.max_concurrent_streams(1).serve_connection(TokioIo::new(stream), service);
        // A health check says nothing.
        let _gone = serving.await;
    })
    .await;
    let replica = mesh.sidecar("orders-1").serves_at("orders", 80, "http2", app.address).start().await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let client = front.client_http2();
    let answers: Vec<_> = (0..50).map(|_| send(client.clone())).collect();
    for answer in answers {
        let answer = soon("an answer", answer).await.unwrap().unwrap();
        assert_eq!((answer.status.as_u16(), answer.reason()), (200, ""));
    }
    assert_eq!(replica.metrics().await.sum("mesh_requests_total", &[("status", "200")]), 50.0, "each once");
}

#[tokio::test]
async fn an_upload_nobody_reads_delays_no_other() {
    let mesh = Mesh::start().await;
    let app = TcpApp::start(|stream| async move {
        let service = service_fn(|request: Request<Incoming>| async move {
            if request.uri().path() == "/unread" {
                let _unread = request.into_body();
                return std::future::pending().await;
            }
            let said = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, Infallible>(ok(said))
        });
        // What nobody reads of one body is all that the connection takes.
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.initial_stream_window_size(65_535).initial_connection_window_size(65_535);
        let _gone = builder.serve_connection(TokioIo::new(stream), service).await;
    })
    .await;
    let _replica = mesh.sidecar("orders-1").serves_at("orders", 80, "http2", app.address).start().await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let client = front.client_http2();
    let (chunks, body) = streamed();
    let (unread, uploading) = (client.clone(), stream_request(Method::POST, ORDERS, "/unread", &[], body));
    Tasks::current().spawn("upload", async move {
        let _never = unread.head(uploading).await;
    });
    let mut full = 0;
    until("it stands still", || {
        match chunks.try_send(Ok(Frame::data(Bytes::from(vec![0; 16 << 10])))) {
            Ok(()) => full = 0,
            Err(_) => full += 1,
        }
        let still = full > 20;
        async move { still }
    })
    .await;
    for client in [client, front.client()] {
        // Well before the upload is given up, after 15 s.
        let client = client.limit(Duration::from_secs(5));
        for _ in 0..10 {
            let answer = client.post(ORDERS, "/", "small").await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "small"));
        }
    }
}

#[tokio::test]
async fn where_there_may_be_no_more_connections_the_others_are_used() {
    let shop = Shop::open(2).await;
    shop.govern("connectionPool: {maxConnections: 1}\nloadBalancing: {algorithm: roundRobin, slowStart: 0s}")
        .await;
    let client = shop.front.client();
    for _ in 0..10 {
        assert_eq!(client.get(ORDERS, "/").await.unwrap().status, 200);
    }
    let endpoints = shop.front.endpoints(ORDERS).await;
    let open: Vec<_> = endpoints.iter().filter_map(|endpoint| endpoint["connections"].as_u64()).collect();
    assert_eq!(open.iter().sum::<u64>(), 1, "{open:?}");
    assert_eq!(shop.apps.iter().filter(|app| app.requests() > 0).count(), 1);
}

#[tokio::test]
async fn requests_that_wait_for_a_connection_are_limited() {
    let held = Held::open("connectionPool: {maxPending: 1}\ntimeouts: {connect: 20s}").await;
    // Its sidecar is there, and says nothing.
    held.replica.process.signal(Signal::STOP);
    // One makes the connection, the other waits for it.
    let (connecting, waiting) = (held.send(), held.send());
    until("one waits", async || {
        let endpoints = held.front.endpoints(ORDERS).await;
        endpoints[0]["in_flight"] == 2
    })
    .await;
    held.shed("pending_limit").await;
    held.replica.process.signal(Signal::CONT);
    held.gate.add_permits(2);
    fine(connecting).await;
    fine(waiting).await;
}
