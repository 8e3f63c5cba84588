//! The application's side: its calls come in here and leave for other sidecars.

pub mod attempt;
pub mod call;
pub mod connect;
pub mod destination;
pub mod entry;
pub mod find;
pub mod handle;
pub mod hedge;
mod http1;
pub mod mirror;
pub mod policy;
pub mod retry;
pub mod server;
pub mod tcp;
pub mod terms;
pub mod watch;

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::capture;
use crate::shared::Shared;
use entry::Target;

/// Serves one connection to the listener that applications are pointed at, and captured ones led to.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    if shared.config.capture {
        capture::serve(shared, stream).await;
    } else {
        serve_to(shared, stream, Target::Named).await;
    }
}

/// Serves one connection to a listener that leads to `target`.
pub async fn serve_to(shared: Arc<Shared>, stream: TcpStream, target: Target) {
    let Ok(from) = stream.peer_addr() else { return };
    entry::serve(shared, stream, from, target).await;
}
