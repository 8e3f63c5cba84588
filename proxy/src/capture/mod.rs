//! Connections of the application that the kernel redirected to this sidecar: where they were going, and
//! whose that is.

pub mod leaving;
pub mod listen;
pub mod original;
pub mod uid;

use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpStream;

use crate::error::ProxyError;
use crate::outbound::entry::{self, Refusal, Target};
use crate::shared::Shared;

/// Serves one connection of the application's, captured or made to the sidecar itself, until it ends.
pub async fn serve(shared: Arc<Shared>, stream: TcpStream) {
    let Ok(from) = stream.peer_addr() else { return };
    let target = match original::destination(&stream) {
        None => Target::Named,
        Some(address) => target(&shared, from, address).await,
    };
    entry::serve(shared, stream, from, target).await;
}

/// Where a connection goes that was going to `address`.
///
/// Cancel safety: safe.
async fn target(shared: &Shared, from: SocketAddr, address: SocketAddr) -> Target {
    if shared.leaving.is_ours(from, address) {
        // Carried on, it would come back here, and again, until there are no connections left.
        tracing::error!(
            %address,
            "this sidecar's own connections are captured: run `outrigger capture install` with --uid {}",
            rustix::process::geteuid().as_raw()
        );
        return Target::Refused(address, Refusal::Loop);
    }
    if shared.own.contains(address) {
        return Target::Refused(address, Refusal::Loop);
    }
    match shared.directory.bound_for(address, shared.config.timeouts.discovery).await {
        Ok(owner) => Target::of(owner, address),
        Err(ProxyError::EgressDenied(_)) => Target::Refused(address, Refusal::Egress),
        Err(_) => Target::Refused(address, Refusal::Unknown),
    }
}
