//! The HTTP server towards the application.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Version};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;

use super::entry::Target;
use super::find::Recent;
use super::handle::{self, Origin};
use super::http1;
use crate::http::exec::Executor;
use crate::http::finale::{Abrupt, Finale};
use crate::http::window;
use crate::io::{Prefixed, Stream};
use crate::shared::Shared;

/// Serves a connection of the application whose first bytes are HTTP of `version`, until it ends or the
/// drain has let its last request finish.
///
/// Boxed: what goes through a tunnel may be HTTP again, and a connection that has not spoken should not
/// hold the room for it.
pub fn serve<Io: Stream>(
    shared: &Arc<Shared>,
    io: Prefixed<Io>,
    from: SocketAddr,
    target: Target,
    version: Version,
) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
    Box::pin(run(shared, io, from, target, version))
}

async fn run<Io: Stream>(
    shared: &Arc<Shared>,
    io: Prefixed<Io>,
    from: SocketAddr,
    target: Target,
    version: Version,
) {
    let (io, finale) = Abrupt::new(io);
    serve_http(shared, io, (from, target, version), &finale).await;
    if let Some(status) = finale.refused() {
        handle::refused(shared, status);
    }
    // A connection that was upgraded ends with its tunnel.
    finale.gone().await;
}

async fn serve_http<Io: Stream>(
    shared: &Arc<Shared>,
    io: Abrupt<Prefixed<Io>>,
    (from, target, version): (SocketAddr, Target, Version),
    finale: &Finale,
) {
    let origin =
        Origin { from, target, finale: finale.clone(), recent: Recent::default(), parting: Notify::new() };
    let origin = Arc::new(origin);
    if version == Version::HTTP_2 {
        Box::pin(serve_http2(shared, io, &origin)).await;
    } else {
        http1::serve(shared, io, &origin).await;
    }
}

async fn serve_http2<Io: Stream>(shared: &Arc<Shared>, io: Abrupt<Prefixed<Io>>, origin: &Arc<Origin>) {
    let (limits, idle) = (&shared.config.limits, shared.config.timeouts.idle);
    let spoken = AtomicBool::new(false);
    let service = service_fn(|request: Request<Incoming>| {
        spoken.store(true, Ordering::Relaxed);
        let (shared, origin) = (shared.clone(), origin.clone());
        // Boxed: the library moves it several times on its way into a task.
        Box::pin(async move {
            let response = handle::handle(&shared, &origin, request).await;
            origin.finale.answers();
            if origin.is_premature() {
                origin.parting.notify_one();
            }
            Ok::<_, Infallible>(response)
        })
    });
    let mut builder = http2::Builder::new(Executor(shared.tasks.clone()));
    builder
        .timer(TokioTimer::new())
        .enable_connect_protocol()
        .initial_stream_window_size(window::STREAM)
        .initial_connection_window_size(window::CONNECTION)
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX));
    let connection = builder.serve_connection(TokioIo::new(io), service);
    let enough = async {
        tokio::select! {
            () = shared.outbound_drain.signalled() => {}
            () = origin.parting.notified() => {}
        }
    };
    tokio::select! {
        () = drive(connection, enough, http2::Connection::graceful_shutdown) => {}
        // The library has no such timeout for HTTP/2.
        () = silent(&spoken, idle) => {}
    }
}

/// Resolves when no request has come within `idle`; never once one has.
async fn silent(spoken: &AtomicBool, idle: Duration) {
    tokio::time::sleep(idle).await;
    if spoken.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}

/// Runs a connection to its end, or has it `finish` what is under way when there was `enough`.
async fn drive<C>(connection: C, enough: impl Future<Output = ()>, finish: fn(Pin<&mut C>))
where
    C: Future<Output = hyper::Result<()>>,
{
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = enough => {
            finish(connection.as_mut());
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection of the application ended");
    }
}
