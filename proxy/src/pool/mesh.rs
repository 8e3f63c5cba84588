//! One endpoint: its address, the identity it must prove, what is known of it, its connections.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use outrigger_common::identity::SpiffeId;
use outrigger_common::mtls;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::connector::{Connector, Limits, Reuse};
use super::drive::{self, Terms};
use super::h2::{self, StreamGuard};
use super::pulse;
use crate::balance::{Candidate, EndpointState};
use crate::control::state::EndpointFacts;
use crate::error::ProxyError;
use crate::http::window;
use crate::io::Ahead;
use crate::tcp::keep_alive;
use crate::tcp::preface::{self, Answer};
use crate::telemetry::metrics::Direction;
use crate::tls::TlsConfigs;

/// A connection to an endpoint's sidecar that carries opaque bytes.
pub type Opaque = TlsStream<Ahead<TcpStream>>;

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
    /// Failure zone, or empty.
    pub zone: Box<str>,
    /// Share of requests relative to the others, 1 to 1000.
    pub weight: u32,
    healthy: AtomicBool,
    state: EndpointState,
    connections: h2::Set,
}

impl Endpoint {
    /// An endpoint nobody has called yet.
    pub fn new(workload: &str, facts: &EndpointFacts, server_name: ServerName<'static>) -> Self {
        Self {
            workload: workload.into(),
            address: facts.address,
            identity: facts.identity.clone(),
            zone: facts.zone.as_str().into(),
            weight: facts.weight,
            server_name,
            healthy: AtomicBool::new(facts.healthy),
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

    /// Whether a request could be sent at once, on a connection there is: worth asking of other
    /// endpoints when [`Endpoint::acquire`] says that the destination has all its connections.
    pub fn has_room(&self, reuse: Reuse) -> bool {
        self.connections.has_room(reuse)
    }

    /// A stream to the endpoint's sidecar: on a connection there is, or on a new one.
    ///
    /// Cancel safety: safe; a connection being made is dropped.
    ///
    /// # Errors
    /// The connection did not come about, or may not: nothing was sent.
    pub async fn acquire(
        &self,
        connector: &Connector,
        limits: &Limits,
        reuse: Reuse,
    ) -> Result<StreamGuard, ProxyError> {
        match self.connections.at_hand(limits, reuse) {
            Some(stream) => Ok(stream),
            // Boxed: rare beside requests, and each of those would hold the room for a handshake.
            None => Box::pin(self.acquire_new(connector, limits, reuse)).await,
        }
    }

    async fn acquire_new(
        &self,
        connector: &Connector,
        limits: &Limits,
        reuse: Reuse,
    ) -> Result<StreamGuard, ProxyError> {
        // Around the wait for another's attempt as well: waiters must not queue up behind a dead node.
        let acquiring = self.connections.acquire(limits, reuse, async || self.connect(connector).await);
        tokio::time::timeout(limits.connect, acquiring)
            .await
            .unwrap_or_else(|_| Err(self.late(limits.connect)))
    }

    async fn connect(&self, connector: &Connector) -> Result<Arc<h2::Connection>, ProxyError> {
        let result = self.connect_tls(connector).await;
        let outcome = match &result {
            Ok(_) => "ok",
            Err(ProxyError::Identity { .. }) => "identity_mismatch",
            Err(ProxyError::Tls { .. }) => "failed",
            Err(_) => return result,
        };
        connector.metrics.handshake(Direction::Outbound, outcome);
        result
    }

    async fn connect_tls(&self, connector: &Connector) -> Result<Arc<h2::Connection>, ProxyError> {
        let address = self.address;
        let tls = self.handshake(connector, |tls| &tls.client).await?;
        pulse::end_when_unacknowledged(tls.get_ref().0.get_ref());
        let terms = Terms {
            header_bytes: connector.header_bytes + window::HEAD_GROWTH,
            max_age: connector.max_age,
            frame: window::FRAME,
            pings: true,
            narrow: false,
        };
        drive::handshake(tls, terms, &connector.tasks)
            .await
            .map_err(|error| ProxyError::Tls { address, source: io::Error::other(error) })
    }

    /// A connection of its own to the application of this endpoint, for opaque bytes. It is there when
    /// the application has accepted it.
    ///
    /// Cancel safety: safe; a connection being made is dropped.
    ///
    /// # Errors
    /// It did not come about, or may not: not a byte reached the application.
    pub async fn open(
        &self,
        connector: &Connector,
        hello: &[u8],
        limit: Duration,
    ) -> Result<Opaque, ProxyError> {
        let opening = async {
            let opened = self.handshake(connector, |tls| &tls.client_tcp).await;
            let outcome = match &opened {
                Ok(_) => Some("ok"),
                Err(ProxyError::Identity { .. }) => Some("identity_mismatch"),
                Err(ProxyError::Tls { .. }) => Some("failed"),
                Err(_) => None,
            };
            if let Some(outcome) = outcome {
                connector.metrics.handshake(Direction::Outbound, outcome);
            }
            let mut stream = opened?;
            self.introduce(&mut stream, hello).await?;
            Ok(stream)
        };
        tokio::time::timeout(limit, opening).await.unwrap_or_else(|_| Err(self.late(limit)))
    }

    /// Says who calls, and hears whether the application has accepted.
    async fn introduce(&self, stream: &mut Opaque, hello: &[u8]) -> Result<(), ProxyError> {
        let address = self.address;
        let broken = |source| ProxyError::Tls { address, source };
        let senseless = |error: preface::Malformed| broken(io::Error::other(error));
        keep_alive(stream.get_ref().0.get_ref());
        stream.write_all(hello).await.map_err(broken)?;
        stream.flush().await.map_err(broken)?;
        let mut head = [0; preface::ANSWER_HEAD];
        stream.read_exact(&mut head).await.map_err(broken)?;
        let mut reason = [0; u8::MAX as usize];
        let reason = &mut reason[..Answer::length(head).map_err(senseless)?];
        stream.read_exact(reason).await.map_err(broken)?;
        match Answer::decode(head, reason).map_err(senseless)? {
            Answer::Connected => Ok(()),
            Answer::Refused { reason, elsewhere } => {
                Err(ProxyError::StreamRefused { address, reason, elsewhere })
            }
        }
    }

    fn late(&self, limit: Duration) -> ProxyError {
        let source = io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {limit:?}"));
        ProxyError::Connect { address: self.address, source }
    }

    /// TCP and TLS, to the peer that is registered here and to no other.
    async fn handshake(
        &self,
        connector: &Connector,
        which: fn(&TlsConfigs) -> &Arc<ClientConfig>,
    ) -> Result<Opaque, ProxyError> {
        let address = self.address;
        let tcp =
            TcpStream::connect(address).await.map_err(|source| ProxyError::Connect { address, source })?;
        tcp.set_nodelay(true).map_err(|source| ProxyError::Connect { address, source })?;
        let no_certificate = || ProxyError::Tls { address, source: io::Error::other("no certificate yet") };
        let config = which(connector.tls.load().as_ref().ok_or_else(no_certificate)?).clone();
        let tls = TlsConnector::from(config)
            .connect(self.server_name.clone(), Ahead::new(tcp))
            .await
            .map_err(|source| ProxyError::Tls { address, source })?;
        // Before any application data: a reachable port is not yet the peer that was registered.
        match mtls::peer_id(tls.get_ref().1.peer_certificates().unwrap_or_default()) {
            Ok(found) if found == self.identity => Ok(tls),
            Ok(found) => Err(self.foreign(found.to_string())),
            Err(error) => Err(self.foreign(error.to_string())),
        }
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

    fn weight(&self) -> u32 {
        self.weight
    }

    fn zone(&self) -> Option<&str> {
        Some(&*self.zone).filter(|zone| !zone.is_empty())
    }
}
