//! The accept loop: a permit a connection, errors told apart, an end when draining.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use outrigger_common::drain::Drain;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use crate::shared::Shared;

/// Pause when the process has no file descriptors left: accepting at once would fail at once.
const OUT_OF_FILES: Duration = Duration::from_millis(50);

/// So many connections as `limits.connections` says, for sockets that are one listener to people.
pub fn permits(shared: &Shared) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(shared.config.limits.connections))
}

/// Accepts until the drain starts; each connection holds one of the permits.
pub async fn accept<F, Fut>(
    shared: Arc<Shared>,
    (listener, permits): (TcpListener, Arc<Semaphore>),
    drain: Drain,
    name: &'static str,
    serve: F,
) where
    F: Fn(Arc<Shared>, TcpStream) -> Fut,
    Fut: Future<Output = ()> + Send + 'static,
{
    loop {
        let permit = tokio::select! {
            // Never closed, so acquiring cannot fail.
            Ok(permit) = permits.clone().acquire_owned() => permit,
            () = drain.signalled() => return,
        };
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.signalled() => return,
        };
        match accepted {
            Ok((stream, _)) => {
                if stream.set_nodelay(true).is_err() {
                    continue;
                }
                // Boxed: each future around it would hold a second copy of it, for as long as the
                // connection lasts.
                let serving = Box::pin(serve(shared.clone(), stream));
                shared.connections.spawn(name, async move {
                    serving.await;
                    drop(permit);
                });
            }
            Err(error) if concerns_one_connection(&error) => {}
            Err(error) => {
                tracing::warn!(%error, listener = name, "cannot accept; trying again");
                tokio::time::sleep(OUT_OF_FILES).await;
            }
        }
    }
}

/// The peer went away between connecting and being accepted (accept(2), "Error handling").
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}
