//! curl: HTTP/1.0, uploads that wait for `100 Continue`, the forms of a target.

use std::path::PathBuf;

use http::StatusCode;
use http_body_util::BodyExt;
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::{App, full};
use outrigger_tests::mesh::Mesh;

use crate::shop::{ORDERS, Shop, client, said};

/// What curl received.
struct Answer {
    /// Of the last response: what curl printed by `--write-out`.
    line: String,
    body: Vec<u8>,
    /// What `--verbose` says.
    talk: String,
}

/// Runs curl against the port for all services.
fn curl(shop: &Shop, args: &[&str]) -> Answer {
    let url = format!("http://{}/", shop.front.outbound);
    let line = "%{http_version} %{response_code} %{num_connects} %{size_download}";
    let out = shop.mesh.directory().join("curl.body");
    let fixed = ["--silent", "--show-error", "--verbose", "--write-out", line, "--output"];
    let out_name = out.to_string_lossy();
    let mut all = [&fixed[..], &[&out_name], args].concat();
    if !args.iter().any(|arg| arg.starts_with("http://")) {
        all.push(&url);
    }
    // A response without a body leaves no file, and an old one is not its body.
    let _none = std::fs::remove_file(&out);
    let output = client(shop.mesh.directory(), "curl", &all);
    assert!(output.status.success(), "curl {args:?}: {}\n{}", output.status, said(&output));
    Answer {
        line: String::from_utf8_lossy(&output.stdout).into_owned(),
        body: std::fs::read(out).unwrap_or_default(),
        talk: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// A file of that many bytes, no two parts of it alike.
fn upload(shop: &Shop, length: usize) -> (PathBuf, Vec<u8>) {
    let bytes: Vec<u8> = (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let path = shop.mesh.directory().join("upload");
    std::fs::write(&path, &bytes).unwrap();
    (path, bytes)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_of_http_1_0_gets_what_it_understands() {
    let (shop, app) = Shop::with_app("http1").await;
    let to = ["--http1.0", "--header", "host: orders.shop"];
    let answer = curl(&shop, &to);
    assert_eq!((answer.body.as_slice(), app.only().header("host")), (&b"app"[..], ORDERS));
    assert!(answer.line.contains(" 200 "), "{}", answer.line);
    // The application's body has no length and comes in chunks, which HTTP/1.0 does not have: here it
    // ends with the connection.
    let (_, bytes) = upload(&shop, 300_000);
    let echo = ["--header", "x-app-echo: 1", "--data-binary", "@upload"];
    let answer = curl(&shop, &[&to[..], &echo[..]].concat());
    assert!(answer.body == bytes, "{} bytes: {}", answer.body.len(), answer.line);
    let talk = answer.talk.to_ascii_lowercase();
    assert!(!talk.contains("< transfer-encoding"), "{talk}");
    // It may ask for the connection to stay open, and two requests then need one.
    let url = format!("http://{}/", shop.front.outbound);
    let keep = ["--header", "connection: keep-alive", &url, "--output", "second"];
    let answer = curl(&shop, &[&to[..], &keep[..], &[&url]].concat());
    assert!(answer.line.ends_with(" 200 0 3"), "the second on the connection of the first: {}", answer.line);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_upload_that_waits_to_be_asked_for_is_asked_for() {
    for protocol in ["http1", "http2"] {
        let (shop, app) = Shop::with_app(protocol).await;
        let (_, bytes) = upload(&shop, 3 << 20);
        let echo = ["--header", "host: orders.shop", "--header", "x-app-echo: 1"];
        // So long without being asked, curl sends it anyway: then it was not asked.
        let wait =
            ["--header", "expect: 100-continue", "--expect100-timeout", "50", "--upload-file", "upload"];
        let answer = curl(&shop, &[&echo[..], &wait[..]].concat());
        assert!(answer.talk.contains("< HTTP/1.1 100 Continue"), "{}", answer.talk);
        assert!(answer.body == bytes, "{protocol}: {} bytes: {}", answer.body.len(), answer.line);
        assert!(app.only().complete && app.only().header("expect").is_empty());
        // Chunked, as from a pipe.
        let piped = ["--header", "transfer-encoding: chunked"];
        let answer = curl(&shop, &[&echo[..], &wait[..], &piped[..]].concat());
        assert!(answer.body == bytes, "{protocol}: {} bytes: {}", answer.body.len(), answer.line);
        shop.rests().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_early_refusal_of_an_upload_arrives() {
    let app = App::with("app", |request| async {
        // What it answers is not the end of what is sent: a server that closed with bytes unread would
        // have its answer lost.
        Tasks::current().spawn("rest", async move { drop(request.collect().await) });
        let mut response = http::Response::new(full("too large"));
        *response.status_mut() = StatusCode::PAYLOAD_TOO_LARGE;
        Ok(response)
    })
    .await;
    let shop = Shop::open(Mesh::start().await, "http1", app.address).await;
    upload(&shop, 3 << 20);
    let wait = ["--header", "expect: 100-continue", "--expect100-timeout", "50", "--upload-file", "upload"];
    let answer = curl(&shop, &[&["--header", "host: orders.shop"], &wait[..]].concat());
    assert!(answer.line.contains(" 413 ") && answer.body == b"too large", "{}", answer.line);
    assert!(!answer.talk.contains("x-mesh-reason"), "the application's own answer: {}", answer.talk);
    // And of one whose length the sidecar does not like to begin with.
    let answer = curl(&shop, &["--header", "host: nobody.shop", wait[0], wait[1], wait[4], wait[5]]);
    assert!(answer.talk.contains("x-mesh-reason: unknown_service"), "{}", answer.talk);
    assert_eq!(app.requests(), 1);
    shop.rests().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http2_and_proxies_mean_the_same_service() {
    let (shop, app) = Shop::with_app("auto").await;
    let (_, bytes) = upload(&shop, 3 << 20);
    let echo = ["--header", "x-app-echo: 1", "--upload-file", "upload"];
    let at = shop.front.outbound.to_string();
    let forms: [&[&str]; 4] = [
        &["--http2-prior-knowledge", "--header", "host: orders.shop"],
        &["--http1.1", "--proxy", &at, "http://orders.shop/"],
        &["--http1.1", "--proxy", &at, "http://orders.shop.svc.cluster.local/"],
        &["--http1.1", "--connect-to", &format!("::{at}"), "http://orders.shop/"],
    ];
    for form in forms {
        app.forget();
        let answer = curl(&shop, &[form, &echo[..]].concat());
        assert!(answer.body == bytes, "{form:?}: {} bytes: {}", answer.body.len(), answer.line);
        let version = if form[0] == "--http2-prior-knowledge" { "2 200" } else { "1.1 200" };
        assert!(answer.line.starts_with(version), "{form:?}: {}", answer.line);
        assert!(app.only().complete);
        // HEAD says how long, and sends nothing; curl would wait for it.
        let answer = curl(&shop, &[form, &["--head", "--header", "x-app-body: 77"]].concat());
        assert!(answer.talk.to_ascii_lowercase().contains("content-length: 77"), "{form:?}: {}", answer.talk);
    }
}
