//! Requests the mesh answers itself: which status, which reason.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Method;
use http_body::Frame;
use outrigger_tests::app::streamed;
use outrigger_tests::client::{raw, request, stream_request};
use outrigger_tests::wait::until;
use serde_json::json;

use crate::shop::{ORDERS, Shop};

#[tokio::test]
async fn what_cannot_be_routed_is_refused_with_its_reason() {
    let mut shop = Shop::open(1).await;
    let client = shop.front.client();
    for (name, status, reason) in [
        ("payments.shop", 404, "unknown_service"),
        ("example.com.au", 404, "unknown_service"),
        ("orders.shop:81", 404, "unknown_port"),
    ] {
        for client in [&client, &shop.front.client_http2()] {
            let answer = client.get(name, "/").await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.reason()), (status, reason), "{name}");
            assert!(answer.text().contains(name.split(':').next().unwrap()), "{name}: {}", answer.text());
        }
    }
    // Known, but nobody serves it any more.
    shop.replicas[0].process.signal(rustix::process::Signal::TERM);
    shop.replicas[0].process.end().await;
    shop.front.knows(ORDERS, &[]).await;
    let answer = client.get(ORDERS, "/").await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "no_endpoint"), "{}", answer.text());
    // Nobody to ask.
    shop.mesh.registry.kill();
    until("the sidecar notices", || async {
        shop.front.metrics().await.value("mesh_registry_connected") == 0.0
    })
    .await;
    let begun = Instant::now();
    let answer = client.get("never-heard-of.shop", "/").await.unwrap();
    println!("an unknown name without a registry is refused after {:?}", begun.elapsed());
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "discovery_unavailable"));
    assert!(begun.elapsed() < Duration::from_millis(1500));
    let metrics = shop.front.metrics().await;
    for (reason, count) in [
        ("unknown_service", 4.0),
        ("unknown_port", 2.0),
        ("no_endpoint", 1.0),
        ("discovery_unavailable", 1.0),
    ] {
        assert_eq!(metrics.sum("mesh_requests_total", &[("reason", reason)]), count, "{reason}");
    }
    assert!(!metrics.text().contains("never-heard-of"), "a client must not choose labels");
}

#[tokio::test]
async fn malformed_requests_are_refused_and_reach_nobody() {
    let shop = Shop::open(1).await;
    let long = "x".repeat(200 << 10);
    let cases = [
        ("a bad request line", "GET / HTTP/9.9\r\n\r\n".to_owned(), 400),
        ("no host", "GET / HTTP/1.1\r\nconnection: close\r\n\r\n".to_owned(), 400),
        (
            "two hosts",
            "GET / HTTP/1.1\r\nhost: orders.shop\r\nhost: payments.shop\r\nconnection: close\r\n\r\n"
                .to_owned(),
            400,
        ),
        (
            "a host with spaces",
            "GET / HTTP/1.1\r\nhost: orders shop\r\nconnection: close\r\n\r\n".to_owned(),
            400,
        ),
        (
            "a user in the target",
            "GET http://a@orders.shop/ HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n".to_owned(),
            400,
        ),
        (
            "a space before the colon",
            "GET / HTTP/1.1\r\nhost: orders.shop\r\nx-a : 1\r\n\r\n".to_owned(),
            400,
        ),
        (
            "two lengths",
            "POST / HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab"
                .to_owned(),
            400,
        ),
        (
            "a length that is none",
            "POST / HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: -1\r\n\r\n".to_owned(),
            400,
        ),
        (
            "an unknown coding",
            "POST / HTTP/1.1\r\nhost: orders.shop\r\ntransfer-encoding: chunked, gzip\r\n\r\n".to_owned(),
            400,
        ),
        ("a header too large", format!("GET / HTTP/1.1\r\nhost: orders.shop\r\nx-long: {long}\r\n\r\n"), 431),
        (
            "CONNECT without a port",
            "CONNECT orders.shop HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n".to_owned(),
            400,
        ),
    ];
    for (what, bytes, status) in cases {
        let answer = raw(shop.front.outbound, bytes.as_bytes()).await;
        let head = answer.lines().next().unwrap_or_default();
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{what}: {head:?}");
    }
    // Length and coding together are how requests are smuggled: one of them must win for both ends.
    let both = "POST / HTTP/1.1\r\nhost: orders.shop\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nhost: orders.shop\r\n\r\n";
    let answer = raw(shop.front.outbound, both.as_bytes()).await;
    println!("length and coding together: {:?}", answer.lines().next());
    assert!(shop.apps[0].seen().iter().all(|seen| seen.uri.path() != "/smuggled"), "smuggled");
    assert!(shop.apps[0].requests() <= 1);
    let answer = shop.front.client().get(ORDERS, "/").await.unwrap();
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_header_too_large_is_refused_over_http2_as_well() {
    let shop = Shop::open(1).await;
    let long = "x".repeat(200 << 10);
    let answer =
        shop.front.client_http2().send(request(Method::GET, ORDERS, "/", &[("x-long", &long)], "")).await;
    match answer {
        Ok(answer) => assert_eq!(answer.status.as_u16(), 431),
        // The limit announced in SETTINGS: the client itself refuses to send it.
        Err(error) => println!("{error:?}"),
    }
    assert_eq!(shop.apps[0].requests(), 0);
}

#[tokio::test]
async fn the_request_timeout_runs_from_the_last_byte_of_the_request() {
    let timeouts = json!({"timeouts": {"request": "600ms"}});
    let shop = Shop::with(2, &json!({}), &timeouts).await;
    for client in [shop.front.client(), shop.front.client_http2()] {
        shop.apps.iter().for_each(outrigger_tests::app::App::forget);
        let begun = Instant::now();
        let slow = request(Method::GET, ORDERS, "/", &[("x-app-delay-ms", "5000")], "");
        let answer = client.send(slow).await.unwrap();
        let took = begun.elapsed();
        println!("a timeout of 600 ms ended a request after {took:?}: {}", answer.reason());
        assert_eq!(answer.status.as_u16(), 504);
        assert!(["request_timeout", "app_timeout"].contains(&answer.reason()), "{}", answer.reason());
        assert!(took >= Duration::from_millis(600) && took < Duration::from_millis(1500), "{took:?}");
        let requests: usize = shop.apps.iter().map(outrigger_tests::app::App::requests).sum();
        assert_eq!(requests, 1, "a timeout is not repeated");

        // An upload may take its time: the clock starts with its last byte.
        let (chunks, body) = streamed();
        let upload = stream_request(Method::POST, ORDERS, "/", &[("x-id", "slow")], body);
        let feed = async {
            for _ in 0..10 {
                // The slowness itself is what is tested.
                tokio::time::sleep(Duration::from_millis(150)).await;
                chunks.send(Ok(Frame::data(Bytes::from_static(b"0123456789")))).await.unwrap();
            }
            drop(chunks);
        };
        let (answer, ()) = tokio::join!(client.send(upload), feed);
        assert_eq!(answer.unwrap().status, 200, "1.5 s of upload are no fault");
        assert_eq!(shop.executions("slow"), 1);
    }
}

#[tokio::test]
async fn a_body_that_stands_still_is_ended() {
    let shop = Shop::with(1, &json!({}), &json!({"timeouts": {"idle": "1s"}})).await;
    for client in [shop.front.client(), shop.front.client_http2()] {
        let (chunks, body) = streamed();
        chunks.send(Ok(Frame::data(Bytes::from_static(b"part")))).await.unwrap();
        let begun = Instant::now();
        let answer = client.send(stream_request(Method::POST, ORDERS, "/", &[], body)).await.unwrap();
        println!("an idle time of 1 s ended a request after {:?}", begun.elapsed());
        assert_eq!((answer.status.as_u16(), answer.reason()), (408, "idle_timeout"), "{}", answer.text());
        assert!(begun.elapsed() >= Duration::from_secs(1) && begun.elapsed() < Duration::from_secs(3));
        drop(chunks);
    }
    until("the application's side ends", || async { shop.apps[0].seen().len() == 2 }).await;
    assert!(shop.apps[0].seen().iter().all(|seen| !seen.complete), "a part is not the whole");
    // A response that stands still breaks off: its client must not take it for complete.
    let (chunks, body) = streamed();
    let client = shop.front.client();
    let echo = stream_request(Method::POST, ORDERS, "/", &[("x-app-echo", "1")], body);
    let feed = async {
        chunks.send(Ok(Frame::data(Bytes::from_static(b"part")))).await.unwrap();
        chunks.closed().await;
    };
    let (result, ()) = tokio::join!(client.send(echo), feed);
    assert!(matches!(result, Err(outrigger_tests::client::Broken::Body { got: 4, .. })), "{result:?}");
}
