use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::*;

const IDLE: Duration = Duration::from_secs(60);

#[derive(Clone, Default)]
struct Count(Arc<[AtomicU64; 2]>);

impl Count {
    fn get(&self) -> (u64, u64) {
        (self.0[0].load(Ordering::Relaxed), self.0[1].load(Ordering::Relaxed))
    }
}

impl Meter for Count {
    fn to_server(&mut self, bytes: u64) {
        self.0[0].fetch_add(bytes, Ordering::Relaxed);
    }

    fn to_client(&mut self, bytes: u64) {
        self.0[1].fetch_add(bytes, Ordering::Relaxed);
    }
}

/// A relay between two pipes of that many bytes; their far ends, and how it went.
fn piped(capacity: usize) -> (DuplexStream, DuplexStream, Count, JoinHandle<End>) {
    let (client, mut near) = tokio::io::duplex(capacity);
    let (server, mut far) = tokio::io::duplex(capacity);
    let count = Count::default();
    let mut meter = count.clone();
    let relaying = Tasks::current()
        .spawn_joinable("relay", async move { relay(&mut near, &mut far, IDLE, &mut meter).await });
    (client, server, count, relaying)
}

/// The same between sockets.
async fn connected() -> (TcpStream, TcpStream, JoinHandle<(End, TcpStream, TcpStream)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let pair = async || {
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        (near.unwrap(), far.unwrap().0)
    };
    let ((client, mut near), (server, mut far)) = (pair().await, pair().await);
    let relaying = Tasks::current().spawn_joinable("relay", async move {
        let end = relay(&mut near, &mut far, IDLE, &mut Count::default()).await;
        (end, near, far)
    });
    (client, server, relaying)
}

#[tokio::test]
async fn either_side_may_be_done_first() {
    for client_first in [true, false] {
        let (client, server, count, relaying) = piped(16);
        let (mut first, mut second) = if client_first { (client, server) } else { (server, client) };
        let mut read = Vec::new();
        first.write_all(b"a question").await.unwrap();
        first.shutdown().await.unwrap();
        second.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"a question", "and its end");
        let answer = vec![7; 1000];
        let writing = async {
            second.write_all(&answer).await.unwrap();
            second.shutdown().await.unwrap();
        };
        let mut read = Vec::new();
        let (_, length) = tokio::join!(writing, first.read_to_end(&mut read));
        assert_eq!((length.unwrap(), read), (1000, answer));
        assert!(matches!(relaying.await.unwrap(), End::Complete));
        assert_eq!(count.get(), if client_first { (10, 1000) } else { (1000, 10) });
    }
}

#[tokio::test]
async fn bytes_arrive_whole_and_in_order_both_ways_at_once() {
    let (client, server, count, relaying) = piped(777);
    let sent: Vec<u8> = (0..1_000_000u32).map(|at| u8::try_from(at % 251).unwrap()).collect();
    let one_way = |stream: DuplexStream| {
        let sent = sent.clone();
        async move {
            let (mut reader, mut writer) = tokio::io::split(stream);
            let mut read = Vec::new();
            let writing = async {
                writer.write_all(&sent).await.unwrap();
                writer.shutdown().await.unwrap();
            };
            tokio::join!(writing, async { reader.read_to_end(&mut read).await.unwrap() });
            assert!(read == sent);
        }
    };
    tokio::join!(one_way(client), one_way(server));
    assert!(matches!(relaying.await.unwrap(), End::Complete));
    assert_eq!(count.get(), (1_000_000, 1_000_000));
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_stops_stops_its_writer() {
    let (mut client, mut server, count, relaying) = piped(1000);
    let mut taken = 0;
    let chunk = [1; 1000];
    // The paused clock moves only when nothing else does: both pipes and the relay are full then.
    while let Ok(written) = tokio::time::timeout(Duration::from_millis(200), client.write(&chunk)).await {
        taken += written.unwrap();
        assert!(taken <= 3000 + CHUNK, "more is held than may be");
    }
    assert!(count.get().0 <= 1000, "only what the server's pipe holds was handed on");
    drop(client);
    let mut read = Vec::new();
    server.read_to_end(&mut read).await.unwrap();
    assert_eq!(read.len(), taken);
    drop(server);
    assert!(matches!(relaying.await.unwrap(), End::Complete));
}

#[tokio::test(start_paused = true)]
async fn a_pair_that_does_not_move_is_idle() {
    let (mut client, mut server, _, relaying) = piped(16);
    for _ in 0..5 {
        tokio::time::sleep(IDLE - Duration::from_secs(1)).await;
        client.write_all(b"x").await.unwrap();
        server.read_exact(&mut [0; 1]).await.unwrap();
    }
    let since = Instant::now();
    assert!(matches!(relaying.await.unwrap(), End::Idle));
    assert_eq!(since.elapsed().as_secs(), IDLE.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_side_that_is_done_does_not_keep_the_other_for_ever() {
    let (mut client, _server, _, relaying) = piped(16);
    client.shutdown().await.unwrap();
    assert!(matches!(relaying.await.unwrap(), End::Idle));
}

#[tokio::test]
async fn a_side_that_breaks_is_named() {
    for client_breaks in [true, false] {
        let (client, server, relaying) = connected().await;
        let (breaks, mut other) = if client_breaks { (client, server) } else { (server, client) };
        breaks.set_zero_linger().unwrap();
        drop(breaks);
        let (end, near, far) = relaying.await.unwrap();
        match (&end, client_breaks) {
            (End::Client(error), true) | (End::Server(error), false) => {
                assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
            }
            _ => panic!("{end:?}, client breaks: {client_breaks}"),
        }
        // The caller's part: the other side learns of it.
        for stream in [near, far] {
            stream.set_zero_linger().unwrap();
        }
        let error = other.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }
}
