//! A wire of a given length: a TCP relay that delivers every byte a while after it came.

use std::net::SocketAddr;
use std::time::Duration;

use outrigger_common::drain::DrainTrigger;
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Pieces under way; more wait in the sender's socket.
const UNDER_WAY: usize = 1024;

/// A running relay; its port closes when dropped.
pub(crate) struct Relay {
    stop: DrainTrigger,
}

impl Relay {
    /// Listens at `at` and forwards to `to`, `delay` later each way.
    pub(crate) async fn start(at: SocketAddr, to: SocketAddr, delay: Duration) -> Self {
        let listener = TcpListener::bind(at).await.unwrap_or_else(|error| panic!("relay at {at}: {error}"));
        let (stop, tasks) = (DrainTrigger::new(), Tasks::current());
        let (stopped, inner) = (stop.listen(), tasks.clone());
        tasks.spawn("relay", async move {
            loop {
                let accepted = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stopped.signalled() => return,
                };
                let Ok((near, _)) = accepted else { continue };
                let Ok(far) = TcpStream::connect(to).await else { continue };
                for stream in [&near, &far] {
                    stream.set_nodelay(true).expect("a TCP socket");
                }
                let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                for (from, to) in [(near_read, far_write), (far_read, near_write)] {
                    let stopped = stopped.clone();
                    let (bytes, pieces) = mpsc::channel(UNDER_WAY);
                    inner.spawn("relay reads", async move {
                        tokio::select! {
                            () = read(from, bytes, delay) => {}
                            () = stopped.signalled() => {}
                        }
                    });
                    inner.spawn("relay writes", write(pieces, to));
                }
            }
        });
        Self { stop }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop.start();
    }
}

type Piece = (Instant, Vec<u8>);

async fn read(mut from: OwnedReadHalf, pieces: mpsc::Sender<Piece>, delay: Duration) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if pieces.send((Instant::now() + delay, buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn write(mut pieces: mpsc::Receiver<Piece>, mut to: OwnedWriteHalf) {
    while let Some((due, bytes)) = pieces.recv().await {
        sleep_until(due).await;
        if to.write_all(&bytes).await.is_err() {
            return;
        }
    }
    // The other side may be gone as well.
    let _gone = to.shutdown().await;
}
