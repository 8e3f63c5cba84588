//! Delay = transmit + processing: each half measured where it arises.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use http_body::Frame;
use outrigger_tests::app::{App, streamed};
use outrigger_tests::client::{Client, request, stream_request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::metrics::Metrics;
use outrigger_tests::wait::until;
use rustix::process::Signal;
use serde_json::json;

use crate::relay::Relay;

/// What the application waits.
const WAIT: Duration = Duration::from_millis(50);
/// What the wire takes each way.
const WIRE: Duration = Duration::from_millis(20);
/// Requests a figure is the mean of.
const REQUESTS: u32 = 20;
const EDGE: [(&str, &str); 3] =
    [("direction", "outbound"), ("source", "front.shop"), ("destination", "orders.shop")];

/// Means of some requests, in seconds.
#[derive(Debug, Clone, Copy)]
struct Split {
    duration: f64,
    processing: f64,
    transmit: f64,
}

/// Sum and count of a histogram on the edge.
fn totals(metrics: &Metrics, what: &str) -> (f64, f64) {
    let sum = |suffix: &str| metrics.sum(&format!("mesh_request_{what}_seconds_{suffix}"), &EDGE);
    (sum("sum"), sum("count"))
}

async fn send(client: &Client, requests: u32, wait: Duration) {
    for _ in 0..requests {
        let wait = wait.as_millis().to_string();
        let request = request(Method::GET, "orders.shop", "/", &[("x-app-delay-ms", &wait)], "");
        assert_eq!(client.send(request).await.unwrap().status, 200);
    }
}

/// Sends requests and reads what the caller's sidecar made of them. The first, with its handshakes, is
/// left out.
async fn measure(front: &Sidecar, wait: Duration) -> Split {
    let client = front.client();
    let counted = async || totals(&front.metrics().await, "duration").1;
    let before = counted().await;
    send(&client, 1, wait).await;
    until("the first request is counted", || async { counted().await > before }).await;
    let start = front.metrics().await;
    send(&client, REQUESTS, wait).await;
    let whole = before + 1.0 + f64::from(REQUESTS);
    until("all requests are counted", || async { counted().await >= whole }).await;
    let end = front.metrics().await;
    let mean = |what: &str| {
        let ((sum, count), (sum_before, count_before)) = (totals(&end, what), totals(&start, what));
        assert_eq!(count - count_before, f64::from(REQUESTS), "{what}");
        (sum - sum_before) / (count - count_before)
    };
    Split { duration: mean("duration"), processing: mean("processing"), transmit: mean("transmit") }
}

#[tokio::test]
async fn delay_splits_into_the_applications_and_the_wires_share() {
    let mesh = Mesh::start().await;
    let app = App::start("orders").await;
    // Registered is 127.0.0.2, where the relay listens; the sidecar itself is at 127.0.0.1.
    let far = mesh
        .sidecar("orders-far")
        .serves_at("orders", 80, "http", app.address)
        .config(&json!({"workload": {"address": "127.0.0.2"}}))
        .start()
        .await;
    let entrance = SocketAddr::from(([127, 0, 0, 2], far.mesh.port()));
    let _relay = Relay::start(entrance, far.mesh, WIRE).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    front.knows("orders.shop", &["orders-far"]).await;

    let both = measure(&front, WAIT).await;
    let wire_alone = measure(&front, Duration::ZERO).await;
    // The same replica without the wire between.
    let _near = mesh.replica("orders-near", "orders", &app).await;
    far.process.signal(Signal::TERM);
    front.knows("orders.shop", &["orders-near"]).await;
    let wait_alone = measure(&front, WAIT).await;
    println!("both      {both:.4?}\nwire only {wire_alone:.4?}\nwait only {wait_alone:.4?}");

    let (wait, wires) = (WAIT.as_secs_f64(), 2.0 * WIRE.as_secs_f64());
    assert!(both.processing >= wait, "{both:?}");
    assert!(both.transmit >= wires, "{both:?}");
    assert!(wire_alone.processing < both.processing / 2.0, "{wire_alone:?}");
    assert!(wire_alone.transmit >= wires, "{wire_alone:?}");
    assert!(wait_alone.processing >= wait, "{wait_alone:?}");
    assert!(wait_alone.transmit < both.transmit / 2.0, "{wait_alone:?}");
    for split in [both, wire_alone, wait_alone] {
        let sum = split.processing + split.transmit;
        assert!((split.duration - sum).abs() < 1e-6, "means add up: {split:?}");
    }
}

#[tokio::test]
async fn a_slow_upload_is_transmit() {
    let mesh = Mesh::start().await;
    let app = App::start("orders").await;
    let back = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    let client = front.client();
    send(&client, 1, Duration::ZERO).await;
    until("it is counted", || async { totals(&front.metrics().await, "duration").1 == 1.0 }).await;
    let (before, _) = totals(&front.metrics().await, "transmit");

    let (chunks, body) = streamed();
    let upload = stream_request(Method::POST, "orders.shop", "/", &[], body);
    let length = Duration::from_millis(100);
    let sending = async {
        chunks.send(Ok(Frame::data("half ".into()))).await.unwrap();
        tokio::time::sleep(length).await; // The length of the upload, not a wait for something.
        chunks.send(Ok(Frame::data("whole".into()))).await.unwrap();
        drop(chunks);
    };
    let (answer, ()) = tokio::join!(client.send(upload), sending);
    assert_eq!(answer.unwrap().status, 200);
    assert_eq!(app.seen()[1].body, "half whole");
    until("it is counted", || async { totals(&front.metrics().await, "duration").1 == 2.0 }).await;
    let metrics = front.metrics().await;
    let transmit = totals(&metrics, "transmit").0 - before;
    assert!(transmit >= length.as_secs_f64(), "the upload is no processing: {transmit}");
    assert_eq!(totals(&metrics, "processing").1, 2.0);
    let inbound = back.metrics().await;
    assert_eq!(inbound.sum("mesh_request_processing_seconds_count", &[("direction", "inbound")]), 2.0);
    assert_eq!(inbound.sum("mesh_request_transmit_seconds_count", &[]), 0.0, "outbound only");
}

#[tokio::test]
async fn a_request_without_a_report_is_in_the_duration_alone() {
    let mesh = Mesh::start().await;
    let mut app = App::start("orders").await;
    let _back = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    let client = front.client();
    send(&client, 1, Duration::ZERO).await;
    app.die().await;
    let answer = client.get("orders.shop", "/").await.unwrap();
    assert_eq!(answer.status, 503, "{answer:?}");
    until("both are counted", || async { totals(&front.metrics().await, "duration").1 == 2.0 }).await;
    let metrics = front.metrics().await;
    assert_eq!([totals(&metrics, "processing").1, totals(&metrics, "transmit").1], [1.0, 1.0]);
}
