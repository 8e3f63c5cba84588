//! Accepting connections and draining them; the same for both modes.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use outrigger_common::drain::Drain;
use outrigger_common::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long a connection may stay without sending a whole request head, the time between two requests
/// included. Longer than common proxies keep an idle connection, so that they close first and never
/// send a request into a connection that is just being closed.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);
/// Pause after a failed accept: such failures (no file descriptors left) pass only with time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How far serving may go.
#[derive(Debug, Clone, Copy)]
pub struct ServeOptions {
    /// Most connections at once; more wait in the kernel's queue.
    pub max_connections: usize,
    /// How long requests in flight may take once the drain has started.
    pub drain_timeout: Duration,
}

/// Serves until the drain starts, then until what is in flight has ended or its time is up.
///
/// HTTP/1.1, and HTTP/2 with prior knowledge.
pub async fn serve(listener: TcpListener, router: Router, options: ServeOptions, drain: Drain) {
    let tasks = Tasks::current();
    let permits = Arc::new(Semaphore::new(options.max_connections));
    let mut builder = auto::Builder::new(TaskExecutor(tasks.clone()));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    builder.http2().timer(TokioTimer::new());
    let builder = Arc::new(builder);
    while let Some((stream, permit)) = accept(&listener, &permits, &drain).await {
        let connection =
            Connection { builder: builder.clone(), router: router.clone(), drain: drain.clone() };
        tasks.spawn("connection", connection.run(stream, permit));
    }
    drop(listener);
    let abandoned = tasks.join(options.drain_timeout).await;
    if abandoned > 0 {
        tracing::warn!(connections = abandoned, "the drain timed out; closing what is left");
    }
}

/// The next connection; none once the drain has started.
async fn accept(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
    drain: &Drain,
) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let next = async {
        let permit = permits.clone().acquire_owned().await.ok()?;
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((stream, permit)),
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection failed");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };
    tokio::select! {
        biased;
        () = drain.signalled() => None,
        accepted = next => accepted,
    }
}

struct Connection {
    builder: Arc<auto::Builder<TaskExecutor>>,
    router: Router,
    drain: Drain,
}

impl Connection {
    async fn run(self, stream: TcpStream, _permit: OwnedSemaphorePermit) {
        let _best_effort = stream.set_nodelay(true);
        let service = TowerToHyperService::new(self.router);
        let connection = self.builder.serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let result = tokio::select! {
            result = connection.as_mut() => result,
            () = self.drain.signalled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection ended early");
        }
    }
}

/// Runs hyper's own tasks (HTTP/2 streams) where they are counted.
#[derive(Clone)]
struct TaskExecutor(Tasks);

impl<F> Executor<F> for TaskExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let _detached = self.0.spawn_joinable("http2-stream", future);
    }
}
