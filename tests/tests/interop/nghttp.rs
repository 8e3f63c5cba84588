//! nghttp2's clients: `nghttp`, and `h2load` with many streams, connections and narrow windows.

use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use http_body::Frame;
use outrigger_tests::app::{App, streamed};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::process::Process;
use outrigger_tests::wait::{soon, until};

use crate::shop::{Nghttpd, ORDERS, Shop, client, said};

/// Larger than any window on the way.
const PAGE: usize = 2 << 20;

async fn pages() -> (Shop, Nghttpd) {
    let mesh = Mesh::start().await;
    std::fs::write(mesh.directory().join("index.html"), "a page\n").unwrap();
    std::fs::write(mesh.directory().join("large"), vec![b'x'; PAGE]).unwrap();
    let nghttpd = Nghttpd::start(mesh.directory(), &["--trailer", "x-sum: 7"]).await;
    (Shop::open(mesh, "http2", nghttpd.address).await, nghttpd)
}

/// Runs `h2load` with these arguments; all requests must succeed, and the server must be asked so often.
fn load(directory: &Path, requests: usize, args: &[&str]) {
    let number = requests.to_string();
    let output = client(directory, "h2load", &[&["--requests", &number], args].concat());
    let text = said(&output);
    let succeeded = format!("{requests} done, {requests} succeeded, 0 failed, 0 errored, 0 timeout");
    assert!(output.status.success() && text.contains(&succeeded), "h2load {args:?}:\n{text}");
    assert!(text.contains(&format!("status codes: {requests} 2xx")), "{text}");
}

#[tokio::test]
async fn every_request_of_h2load_succeeds() {
    let (shop, _nghttpd) = pages().await;
    let at = shop.front.outbound;
    let (to, dir) = (format!("--connect-to={at}"), shop.mesh.directory());
    let (page, large) = (format!("http://{ORDERS}/"), format!("http://{ORDERS}/large"));
    std::fs::write(dir.join("body"), vec![b'y'; 100_000]).unwrap();
    load(dir, 2000, &[&to, "--clients", "4", "--max-concurrent-streams", "100", &page]);
    load(dir, 500, &[&to, "--h1", "--clients", "8", &page]);
    load(dir, 200, &[&to, "--clients", "2", "--max-concurrent-streams", "10", "--data", "body", &page]);
    // Windows of 64 KiB for pages of 2 MiB, one for the stream and one for the connection.
    let narrow = ["--window-bits", "16", "--connection-window-bits", "16"];
    let many = [&to, "--clients", "2", "--max-concurrent-streams", "10"];
    load(dir, 40, &[&many[..], &narrow, &[&large]].concat());
    let metrics = shop.replica.metrics().await;
    let served = metrics.sum("mesh_requests_total", &[("direction", "inbound"), ("status", "200")]);
    assert_eq!(served, 2740.0, "each was carried once");
    shop.rests().await;
    for sidecar in [&shop.front, &shop.replica] {
        println!("{}: {} KiB", sidecar.id, sidecar.process.resident_bytes() >> 10);
    }
}

#[tokio::test]
async fn nghttp_sees_trailers_priorities_and_its_own_upload() {
    let (shop, _nghttpd) = pages().await;
    let dir = shop.mesh.directory();
    std::fs::write(dir.join("body"), "sent and sent back\n").unwrap();
    let (url, authority) = (format!("http://{}/", shop.front.outbound), format!(":authority: {ORDERS}"));
    let to = ["--header", &authority];
    let get = client(dir, "nghttp", &[&["--verbose", "--multiply", "20"], &to[..], &[&url]].concat());
    let text = said(&get);
    assert!(get.status.success() && text.matches(":status: 200").count() == 20, "{text}");
    assert_eq!(text.matches("x-sum: 7").count(), 20, "each has its trailers: {text}");
    for args in [&[] as &[&str], &["--trailer", "x-end: 1"], &["--expect-continue"], &["--padding", "100"]] {
        let post = client(dir, "nghttp", &[&["--data", "body"], args, &to[..], &[&url]].concat());
        assert!(post.status.success() && post.stdout == b"sent and sent back\n", "{args:?}: {}", said(&post));
    }
    shop.rests().await;
}

#[tokio::test]
async fn a_replica_that_leaves_finishes_the_stream_and_its_goodbye_stays_in_the_mesh() {
    let (bodies, mut begun) = tokio::sync::mpsc::channel(1);
    let app = App::with("app", move |_| {
        let bodies = bodies.clone();
        async move {
            let (chunks, body) = streamed();
            bodies.send(chunks).await.unwrap();
            Ok(http::Response::new(body))
        }
    })
    .await;
    let shop = Shop::open(Mesh::start().await, "http2", app.address).await;
    let mut nghttp = Command::new("setpriv");
    nghttp.args(["--pdeathsig", "KILL", "--", "nghttp", "--verbose", "--header"]);
    nghttp.arg(format!(":authority: {ORDERS}")).arg(format!("http://{}/", shop.front.outbound));
    let mut nghttp = Process::spawn("nghttp", nghttp, shop.mesh.directory());
    let chunks = soon("the request arrives", begun.recv()).await.unwrap();
    chunks.send(Ok(Frame::data(Bytes::from_static(b"before the drain,")))).await.unwrap();
    until("the client has the beginning", || async { nghttp.stdout().contains("before the drain,") }).await;
    assert_eq!(shop.replica.post_drain().await, 202);
    shop.front.knows(ORDERS, &[]).await;
    chunks.send(Ok(Frame::data(Bytes::from_static(b" and after it")))).await.unwrap();
    drop(chunks);
    let mut ended = None;
    until("the client ends", || {
        ended = nghttp.ended();
        std::future::ready(ended.is_some())
    })
    .await;
    let said = nghttp.stdout();
    assert!(ended.is_some_and(|status| status.success()), "{ended:?}: {said}");
    assert!(said.contains(" and after it") && said.contains("END_STREAM"), "{said}");
    assert!(!said.contains("recv GOAWAY") && !said.contains("recv RST_STREAM"), "{said}");
}
