//! Opaque bytes on their way in: who may, and the connection to the application.

use std::sync::Arc;
use std::time::Duration;

use outrigger_api::resource::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::server::TlsStream;

use super::handle::source;
use super::served::{ServedPort, account_name};
use super::{GOODBYE, Peer, not_allowed};
use crate::error::ProxyError;
use crate::io::Ahead;
use crate::io::{Guarded, Stream, is_http};
use crate::policy::limit::IdentityPermit;
use crate::reason::Reason;
use crate::route::DEFAULT_ROUTE;
use crate::shared::Shared;
use crate::tcp::keep_alive;
use crate::tcp::preface::{Answer, HELLO_HEAD, Hello, Malformed};
use crate::tcp::relay::{End, relay};
use crate::telemetry::metrics::Direction;
use crate::telemetry::tcp::ConnectionRecord;

/// Longest wait for the other sidecar to say who calls: it does so at once.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);

/// A connection from another sidecar that asks for opaque bytes.
type Inward = TlsStream<Ahead<TcpStream>>;

/// Carries one connection of another sidecar to the application, until both are done, a policy no
/// longer lets the peer call, or the drain has no more time. Without a `place` it is told that it has too
/// many.
pub async fn serve(shared: Arc<Shared>, mut stream: Inward, peer: Arc<Peer>, place: Option<IdentityPermit>) {
    keep_alive(stream.get_ref().0.get_ref());
    // Who has too many connections keeps this one no longer than it takes to tell.
    let patience = if place.is_some() { HELLO_TIMEOUT } else { GOODBYE };
    let hello = match tokio::time::timeout(patience, hear(&mut stream)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => return tracing::debug!(%error, peer = %peer.id, "no hello from a peer"),
        Err(_) => return tracing::debug!(peer = %peer.id, "no hello from a peer in time"),
    };
    let Some(port) = &peer.port else {
        // By its account: a name it chooses would be a label it chooses.
        let account = account_name(&peer.id);
        let edge = shared.metrics.edge(Direction::Inbound, &account, "unknown", DEFAULT_ROUTE);
        let record = ConnectionRecord::start(edge, shared.metrics.clone());
        return refuse(stream, record, &ProxyError::NotServed(peer.asked.clone())).await;
    };
    let edge = port.edge(&peer.id, &source(&peer, Some(&hello.source)));
    let record = ConnectionRecord::start(edge, shared.metrics.clone());
    let Some(_place) = place else {
        return refuse(stream, record, &ProxyError::Overloaded("the caller has too many connections")).await;
    };
    match admit(&shared, &peer, port).await {
        Ok((app, idle)) => carry(&shared, &peer, (Guarded::new(stream), app), idle, record).await,
        Err(error) => refuse(stream, record, &error).await,
    }
}

/// What the other sidecar says first.
async fn hear(stream: &mut Inward) -> std::io::Result<Hello> {
    let senseless = |error: Malformed| std::io::Error::other(error);
    let mut head = [0; HELLO_HEAD];
    stream.read_exact(&mut head).await?;
    let mut fields = vec![0; Hello::length(head).map_err(senseless)?];
    stream.read_exact(&mut fields).await?;
    Hello::decode(&fields).map_err(senseless)
}

/// Whether the peer is let in, and its connection to the application.
pub(super) async fn admit(
    shared: &Shared,
    peer: &Peer,
    port: &ServedPort,
) -> Result<(TcpStream, Duration), ProxyError> {
    match port.protocol {
        Protocol::Auto | Protocol::Tcp => {}
        // What a policy says of requests must not be passed by where only requests are served.
        Protocol::Http | Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => {
            return Err(ProxyError::NotServed(format!(
                "{} for anything but {}",
                peer.asked,
                port.protocol.as_str()
            )));
        }
    }
    port.governed(shared.config.timeouts.discovery).await?;
    let idle = {
        let policy = port.policy();
        policy.authorize(&peer.id, &port.service)?;
        policy.tcp_idle
    };
    let address = port.app.address();
    let failed = |source| ProxyError::AppUnreachable { address, source };
    let connected = tokio::time::timeout(shared.config.timeouts.connect, TcpStream::connect(address)).await;
    let app = connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(failed)?;
    app.set_nodelay(true).map_err(failed)?;
    Ok((app, idle))
}

async fn carry(
    shared: &Shared,
    peer: &Peer,
    (mut stream, mut app): (Guarded<Inward>, TcpStream),
    idle: Duration,
    mut record: ConnectionRecord,
) {
    let relaying = async {
        // Before any byte of the application's: the other sidecar waits for it.
        if let Err(error) = stream.write_all(&Answer::Connected.encode()).await {
            return End::Client(error);
        }
        if peer.port.as_ref().is_some_and(|port| port.protocol == Protocol::Auto) {
            stream.watch();
        }
        relay(&mut stream, &mut app, idle, &mut record).await
    };
    let reason = tokio::select! {
        end = relaying => match end {
            End::Complete => None,
            End::Client(error) => Some(broken_by_client(&error)),
            End::Server(_) => Some(Reason::AppReset),
            End::Idle => Some(Reason::IdleTimeout),
        },
        () = not_allowed(shared, peer) => {
            tracing::info!(peer = %peer.id, port = peer.asked, "connection ended: its peer may not call any more");
            Some(Reason::Denied)
        }
        () = drained(shared) => Some(Reason::Drained),
    };
    if reason.is_some() {
        stream.abort();
        app.abort();
    }
    record.end(reason);
}

/// Why the client's side of opaque bytes failed.
pub(super) fn broken_by_client(error: &std::io::Error) -> Reason {
    if is_http(error) { Reason::NotServed } else { Reason::ClientClosed }
}

/// Resolves when the drain's time is over.
pub(super) async fn drained(shared: &Shared) {
    shared.inbound_drain.signalled().await;
    tokio::time::sleep_until(Instant::now() + shared.config.drain.deadline).await;
}

/// Tells the other sidecar why it is not carried, and whether another endpoint may do better.
async fn refuse(mut stream: Inward, record: ConnectionRecord, error: &ProxyError) {
    tracing::debug!(%error, reason = error.reason().as_str(), "connection of a peer refused");
    let elsewhere = !matches!(error, ProxyError::Denied { .. });
    let answer = Answer::Refused { reason: Some(error.reason()), elsewhere };
    let saying = async {
        stream.write_all(&answer.encode()).await?;
        stream.shutdown().await?;
        // Until it has been read: closing with something unread would be a reset.
        stream.read(&mut [0; 1]).await
    };
    let _gone = tokio::time::timeout(GOODBYE, saying).await;
    record.end(Some(error.reason()));
}
