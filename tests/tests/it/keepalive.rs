//! An application that closes connections it has kept, as all do: what a request sees that arrives at
//! that moment, with no second replica to go to.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrigger_common::tasks::Tasks;
use outrigger_tests::mesh::Mesh;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::shop::ORDERS;

/// Answers the first request of each connection, and closes it when a second one comes, unanswered.
struct ClosingApp {
    address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl ClosingApp {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, requests) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let (tasks, counter) = (Tasks::current(), requests.clone());
        tasks.clone().spawn("closing app", async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let counter = counter.clone();
                tasks.spawn("closing connection", async move {
                    let _closed = serve(tcp, &counter).await;
                });
            }
        });
        Self { address, requests }
    }

    fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

async fn serve(mut tcp: TcpStream, requests: &AtomicUsize) -> std::io::Result<()> {
    head(&mut tcp).await?;
    requests.fetch_add(1, Ordering::SeqCst);
    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await?;
    head(&mut tcp).await?;
    requests.fetch_add(1, Ordering::SeqCst);
    Ok(())
}

async fn head(tcp: &mut TcpStream) -> std::io::Result<()> {
    let mut read = Vec::new();
    while !read.ends_with(b"\r\n\r\n") {
        read.push(tcp.read_u8().await?);
    }
    Ok(())
}

#[tokio::test]
async fn the_end_of_a_kept_connection_reaches_only_what_may_not_be_repeated() {
    let mesh = Mesh::start().await;
    let app = ClosingApp::start().await;
    let _replica = mesh.sidecar("orders-1").serves_at("orders", 80, "http1", app.address).start().await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let client = front.client();
    for n in 0..10 {
        let answer = client.get(ORDERS, "/").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "ok"), "request {n}");
    }
    // The first of each connection is answered; the second of all but the last was sent again.
    assert!(app.requests() > 10, "no connection was used twice");
    // The repetition is between the sidecar and its application.
    assert_eq!(front.metrics().await.sum("mesh_retries_total", &[]), 0.0);

    // Whatever becomes of these, each is executed once.
    for _ in 0..10 {
        let before = app.requests();
        let answer = client.post(ORDERS, "/", "").await.unwrap();
        assert_eq!(app.requests(), before + 1, "{}", answer.status);
        let lost = answer.status == 502 && answer.reason() == "app_reset";
        assert!(answer.status == 200 || lost, "{}", answer.status);
    }
}
