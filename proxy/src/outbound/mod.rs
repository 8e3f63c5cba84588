//! The application's side: its calls come in here and leave for other sidecars.

pub mod attempt;
pub mod call;
pub mod destination;
pub mod find;
pub mod handle;
pub mod hedge;
pub mod mirror;
pub mod policy;
pub mod retry;
pub mod terms;
pub mod watch;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::TcpStream;

use crate::http::exec::Executor;
use crate::shared::Shared;

/// Resolves when no request has come within `idle`; never once one has.
async fn silent(spoken: &AtomicBool, idle: Duration) {
    tokio::time::sleep(idle).await;
    if spoken.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Serves one connection of the application, HTTP/1.1 or HTTP/2 with prior knowledge, until it ends
/// or the drain has let its last request finish.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let Ok(from) = stream.peer_addr() else { return };
    let limits = &shared.config.limits;
    let mut builder = auto::Builder::new(Executor(shared.tasks.clone()));
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.config.timeouts.idle)
        .max_buf_size(limits.header_bytes)
        .preserve_header_case(false);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    let spoken = AtomicBool::new(false);
    let service = service_fn(|request| {
        spoken.store(true, Ordering::Relaxed);
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(handle::handle(&shared, from, request).await) }
    });
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shared.outbound_drain.signalled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        // hyper's own timeout begins with the protocol, and a silent client has not chosen one.
        () = silent(&spoken, shared.config.timeouts.idle) => return,
    };
    if let Err(error) = result {
        tracing::debug!(error, "connection of the application ended");
    }
}
