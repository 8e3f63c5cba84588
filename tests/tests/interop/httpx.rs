//! Python's `httpx` and, below it, `h2`, whose every window and reset is in the test's hand.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use bytes::Bytes;
use http_body::Frame;
use http_body_util::BodyExt;
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::{App, ok, streamed};
use outrigger_tests::component::{component, run};
use outrigger_tests::mesh::Mesh;
use serde_json::{Value, json};

use crate::shop::{ORDERS, Shop};

/// A Python with `httpx` and `h2`.
const PYTHON: &str = "OUTRIGGER_TEST_HTTP_PYTHON";

fn script() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/peer.py").to_string_lossy().into_owned()
}

/// Runs the script to its end; returns what it saw.
fn peer(shop: &Shop, kind: &str, extra: &[&str]) -> Value {
    let (script, at) = (script(), shop.front.outbound.to_string());
    let args = [&[script.as_str(), kind, &at, ORDERS], extra].concat();
    let said = run(PYTHON, &args, shop.mesh.directory(), "");
    let line = said.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("{said}"));
    let seen = serde_json::from_str(line).unwrap();
    println!("{kind}: {seen}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn httpx_finds_nothing_amiss_in_either_version() {
    for protocol in ["http1", "http2"] {
        let (shop, app) = Shop::with_app(protocol).await;
        let seen = peer(&shop, "httpx", &[]);
        assert_eq!(seen, json!({"http1": "HTTP/1.1", "http2": "HTTP/2", "together": 100}), "{protocol}");
        let posted = app.seen();
        let first = posted.iter().find(|seen| seen.method == "POST").unwrap();
        assert_eq!((first.uri.path_and_query().unwrap().as_str(), first.body.len()), ("/a?b=%20", 997_300));
        shop.rests().await;
    }
}

/// The script while it waits for a line.
struct Waiting {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Waiting {
    fn start(args: &[&str]) -> Self {
        let mut child = Command::new(component(PYTHON))
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python starts");
        let output = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, output }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    fn go_on(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_nobody_reads_holds_up_its_sender_and_no_other_stream() {
    const SIZE: usize = 64 << 20;
    let (shop, _app) = Shop::with_app("http2").await;
    // Both sidecars have done this once: what grows from now on is what they hold of the body.
    peer(&shop, "reset", &[]);
    let resident = || [&shop.front, &shop.replica].map(|sidecar| sidecar.process.resident_bytes());
    let before = resident();
    let (script, at, size) = (script(), shop.front.outbound.to_string(), SIZE.to_string());
    let mut reader = Waiting::start(&[&script, "stuck", &at, ORDERS, &size]);
    assert_eq!(reader.line(), json!({"others": true, "before": 65_535}));
    for (after, before) in resident().into_iter().zip(before) {
        let grown = after.saturating_sub(before) >> 10;
        println!("{grown} KiB more for {} MiB nobody reads", SIZE >> 20);
        assert!(grown < 8 << 10, "{grown} KiB");
    }
    reader.go_on();
    assert_eq!(reader.line(), json!({"late": SIZE, "ended": true}));
    shop.rests().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_read_holds_up_the_client() {
    const LIMIT: usize = 64 << 20;
    let app = App::with("app", |request| async move {
        if request.headers().contains_key("x-hold") {
            let _unread = request;
            std::future::pending::<()>().await;
        }
        Ok(ok("app"))
    })
    .await;
    let shop = Shop::open(Mesh::start().await, "http2", app.address).await;
    let seen = peer(&shop, "unread", &[&LIMIT.to_string()]);
    assert_eq!((&seen["others"], &seen["room"]), (&json!(true), &json!(0)));
    let sent = seen["sent"].as_u64().unwrap();
    assert!(sent < 8 << 20, "{sent} bytes are held somewhere");
    shop.rests().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_alone_at_either_side() {
    let app = App::with("app", |request| async move {
        let (chunks, body) = streamed();
        let broken = request.headers().contains_key("x-break");
        let length =
            request.headers().get("x-app-body").map_or(0, |length| length.to_str().unwrap().parse().unwrap());
        Tasks::current().spawn("body", async move {
            let mut left: usize = if broken { 100 } else { length };
            while left > 0 {
                let chunk = Bytes::from(vec![b'x'; left.min(10_000)]);
                left -= chunk.len();
                if chunks.send(Ok(Frame::data(chunk))).await.is_err() {
                    return;
                }
            }
            if broken {
                let _gone = chunks.send(Err(std::io::Error::other("broken"))).await;
            }
        });
        Ok(http::Response::new(body.boxed()))
    })
    .await;
    let shop = Shop::open(Mesh::start().await, "http2", app.address).await;
    let seen = peer(&shop, "reset", &[]);
    assert_eq!(
        (&seen["other"], &seen["after"], &seen["goaway"]),
        (&json!(3_000_000), &json!(200), &Value::Null)
    );
    let broken = &seen["broken"];
    // The break may overtake the head, or find the sidecar with nothing sent yet.
    let refused = broken["status"].as_u64().is_some_and(|status| status >= 500);
    assert!(refused || broken["ended"] == false, "{broken}");
    assert!(refused || broken["reset"].as_u64().is_some_and(|code| code != 0), "not a clean end: {broken}");
    assert_eq!(shop.replica.metrics().await.sum("mesh_requests_in_flight", &[]), 0.0, "the one given up too");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_may_end_after_its_response() {
    // The application has its answer ready as soon as the announced bytes are there.
    for protocol in ["http1", "http2"] {
        let app = App::with("app", |request| async move {
            let mut body = request.into_body();
            let mut length = 0;
            while length < 5 {
                let Some(Ok(frame)) = body.frame().await else { break };
                length += frame.data_ref().map_or(0, Bytes::len);
            }
            Ok(ok("done"))
        })
        .await;
        let shop = Shop::open(Mesh::start().await, protocol, app.address).await;
        let seen = peer(&shop, "late", &[]);
        assert_eq!(seen, json!({"status": 200, "reset": null, "after": 200}), "{protocol}");
        shop.rests().await;
    }
}
