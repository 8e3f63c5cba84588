//! Connections of the application that have had no request for a while: the sidecar keeps next to nothing of
//! them, and serves the next request as if nothing had been.

use std::time::Duration;

use outrigger_tests::wait::{soon, until};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

use crate::shop::{ORDERS, Shop};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: orders.shop\r\n\r\n";

/// Reads one whole answer of the application.
pub(crate) async fn answer(stream: &mut TcpStream) {
    let (mut answer, mut buffer) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(b"\r\n\r\napp-1") {
        let size = soon("an answer", stream.read(&mut buffer)).await.unwrap();
        assert!(size > 0, "{}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buffer[..size]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&answer));
}

/// Waits until a connection that is idle since now rests.
async fn rested() {
    let since = Instant::now();
    until("it rests", || async { since.elapsed() > Duration::from_millis(2500) }).await;
}

#[tokio::test]
async fn a_request_that_comes_in_pieces_after_a_rest_is_served() {
    let shop = Shop::open(1).await;
    let caller = shop.mesh.caller("caller", &[ORDERS]).await;
    caller.knows_healthy(ORDERS, 1).await;
    let mut stream = TcpStream::connect(caller.outbound).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // The beginning of the second request is there before the rest, the end comes after it.
    let (head, tail) = REQUEST.split_at(20);
    stream.write_all(&[REQUEST, head].concat()).await.unwrap();
    answer(&mut stream).await;
    rested().await;
    for byte in tail {
        stream.write_all(&[*byte]).await.unwrap();
    }
    answer(&mut stream).await;
    // And two at once.
    rested().await;
    stream.write_all(&[REQUEST, REQUEST].concat()).await.unwrap();
    answer(&mut stream).await;
    until("all four were carried", || async {
        caller.metrics().await.sum("mesh_requests_total", &[("direction", "outbound"), ("status", "200")])
            == 4.0
    })
    .await;
}

#[tokio::test]
async fn a_connection_ends_after_its_idle_time_whether_it_rests_or_dawdles() {
    let shop = Shop::open(1).await;
    let config = json!({"timeouts": {"idle": "4s"}});
    let caller = shop.mesh.sidecar("caller").calls(&[ORDERS]).config(&config).start().await;
    caller.knows_healthy(ORDERS, 1).await;
    for beginning in ["", "GET / HT"] {
        let mut stream = TcpStream::connect(caller.outbound).await.unwrap();
        stream.write_all(&[REQUEST, beginning.as_bytes()].concat()).await.unwrap();
        answer(&mut stream).await;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(15), stream.read_to_end(&mut rest)).await;
        assert!(ended.is_ok(), "still open after {beginning:?}");
        assert!(rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    }
}

#[tokio::test]
async fn a_resting_connection_is_closed_by_the_drain() {
    let shop = Shop::open(1).await;
    let mut caller = shop.mesh.caller("caller", &[ORDERS]).await;
    caller.knows_healthy(ORDERS, 1).await;
    let mut stream = TcpStream::connect(caller.outbound).await.unwrap();
    stream.write_all(REQUEST).await.unwrap();
    answer(&mut stream).await;
    rested().await;
    assert_eq!(caller.post_drain().await, 202);
    assert_eq!(soon("its end", stream.read(&mut [0; 16])).await.unwrap(), 0);
    assert!(caller.process.end().await.success());
}
