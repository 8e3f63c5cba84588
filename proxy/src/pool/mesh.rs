//! One endpoint: its address, the identity it must prove, what is known of it, its connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use outrigger_common::identity::SpiffeId;
use outrigger_common::mtls;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::h2::{self, Ages, StreamGuard};
use crate::balance::{Candidate, EndpointState};
use crate::error::ProxyError;
use crate::http::body::HasState;
use crate::shared::Shared;
use crate::telemetry::metrics::Direction;

/// One workload's offer of one service port. It survives snapshots while these facts do not change.
#[derive(Debug)]
pub struct Endpoint {
    /// The workload's id.
    pub workload: Box<str>,
    /// Its sidecar.
    pub address: SocketAddr,
    /// Whom that sidecar must prove to be.
    pub identity: SpiffeId,
    /// Names the service port at the sidecar.
    pub server_name: ServerName<'static>,
    healthy: AtomicBool,
    state: EndpointState,
    connections: h2::Set,
}

impl Endpoint {
    /// An endpoint nobody has called yet.
    pub fn new(
        workload: &str,
        address: SocketAddr,
        identity: SpiffeId,
        server_name: ServerName<'static>,
        healthy: bool,
    ) -> Self {
        Self {
            workload: workload.into(),
            address,
            identity,
            server_name,
            healthy: AtomicBool::new(healthy),
            state: EndpointState::new(Instant::now()),
            connections: h2::Set::default(),
        }
    }

    /// Takes over the registry's word on health.
    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::Relaxed);
    }

    /// Connections now, for people.
    pub fn connections(&self) -> usize {
        self.connections.count()
    }

    /// A stream to the endpoint's sidecar: on a connection there is, or on a new one.
    ///
    /// # Errors
    /// The connection did not come about: nothing was sent.
    pub async fn acquire(&self, shared: &Shared) -> Result<StreamGuard, ProxyError> {
        let limit = shared.config.timeouts.connect;
        // Around the wait for another's attempt as well: waiters must not queue up behind a dead node.
        let acquiring = self.connections.acquire(async || self.connect(shared).await);
        tokio::time::timeout(limit, acquiring).await.unwrap_or_else(|_| {
            let text = format!("no connection within {limit:?}");
            let source = std::io::Error::new(std::io::ErrorKind::TimedOut, text);
            Err(ProxyError::Connect { address: self.address, source })
        })
    }

    async fn connect(&self, shared: &Shared) -> Result<Arc<h2::Connection>, ProxyError> {
        let result = self.connect_tls(shared).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(ProxyError::Identity { .. }) => "identity_mismatch",
            Err(ProxyError::Tls { .. }) => "failed",
            Err(_) => return result,
        };
        shared.metrics.handshake(Direction::Outbound, outcome);
        result
    }

    async fn connect_tls(&self, shared: &Shared) -> Result<Arc<h2::Connection>, ProxyError> {
        let address = self.address;
        let tcp =
            TcpStream::connect(address).await.map_err(|source| ProxyError::Connect { address, source })?;
        tcp.set_nodelay(true).map_err(|source| ProxyError::Connect { address, source })?;
        let no_certificate =
            || ProxyError::Tls { address, source: std::io::Error::other("no certificate yet") };
        let config = shared.tls.load().as_ref().ok_or_else(no_certificate)?.client.clone();
        let tls = TlsConnector::from(config)
            .connect(self.server_name.clone(), tcp)
            .await
            .map_err(|source| ProxyError::Tls { address, source })?;
        // Before any application data: a reachable port is not yet the peer that was registered.
        match mtls::peer_id(tls.get_ref().1.peer_certificates().unwrap_or_default()) {
            Ok(found) if found == self.identity => {}
            Ok(found) => return Err(self.foreign(found.to_string())),
            Err(error) => return Err(self.foreign(error.to_string())),
        }
        let ages = Ages { idle: shared.config.pool.idle_timeout, max: shared.config.pool.max_age };
        h2::handshake(tls, shared.config.limits.header_bytes, ages, &shared.tasks)
            .await
            .map_err(|error| ProxyError::Tls { address, source: std::io::Error::other(error) })
    }

    fn foreign(&self, found: String) -> ProxyError {
        ProxyError::Identity { address: self.address, expected: self.identity.clone(), found }
    }
}

impl Candidate for Endpoint {
    fn state(&self) -> &EndpointState {
        &self.state
    }

    fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }

    fn key(&self) -> &str {
        &self.workload
    }
}

impl HasState for Endpoint {
    fn endpoint_state(&self) -> &EndpointState {
        &self.state
    }
}
