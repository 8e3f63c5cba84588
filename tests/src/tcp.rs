//! An application of any protocol: what it does with a connection is the test's to say.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use outrigger_common::drain::DrainTrigger;
use outrigger_common::tasks::Tasks;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

/// A running application; it ends when dropped.
pub struct TcpApp {
    /// Where it listens.
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    end: DrainTrigger,
}

impl TcpApp {
    /// Starts one that handles each connection by itself.
    ///
    /// # Panics
    /// When this machine has no port left.
    pub async fn start<F, Fut>(handle: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        Self::on("127.0.0.1:0", handle).await
    }

    /// The same at an address of this machine.
    ///
    /// # Panics
    /// When this machine does not have it.
    pub async fn on<F, Fut>(listen: &str, handle: F) -> Self
    where
        F: Fn(TcpStream) -> Fut + Send + 'static,
        Fut: Future<Output = ()> + Send + 'static,
    {
        let listener = TcpListener::bind(listen).await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let (accepted, end) = (Arc::new(AtomicUsize::new(0)), DrainTrigger::new());
        let (count, drain, tasks) = (accepted.clone(), end.listen(), Tasks::current());
        Tasks::current().spawn("tcp app", async move {
            loop {
                tokio::select! {
                    Ok((stream, _)) = listener.accept() => {
                        count.fetch_add(1, Ordering::Relaxed);
                        tasks.spawn("tcp app connection", handle(stream));
                    }
                    () = drain.signalled() => return,
                }
            }
        });
        Self { address, accepted, end }
    }

    /// One that sends everything back, and ends when its client does.
    pub async fn echo() -> Self {
        Self::start(|mut stream| async move {
            let (mut reader, mut writer) = stream.split();
            // A connection that breaks is its client's affair.
            let _broken = tokio::io::copy(&mut reader, &mut writer).await;
            let _broken = writer.shutdown().await;
        })
        .await
    }

    /// Connections accepted so far; health checks are among them.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }
}

impl Drop for TcpApp {
    fn drop(&mut self) {
        self.end.start();
    }
}
