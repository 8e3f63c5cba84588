//! gRPC channels to the registry (and to a collector) over connectors of our own: names resolved
//! without NSS, mutual TLS with the identity that is current at each connection, and the registry
//! recognised by its reserved id.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{CertificateError, ClientConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use crate::identity::{Principal, TrustDomain};
use crate::mtls::{self, Svid};
use crate::resolve::resolve;
use crate::telemetry::with_causes;

/// Limit for connecting and the handshake together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const ALPN_H2: &[&[u8]] = &[b"h2"];
/// The name in SNI; the registry is recognised by its id, not by this.
const REGISTRY_NAME: &str = "registry.outrigger.mesh";

/// How the far side is recognised.
#[derive(Debug, Clone)]
pub enum Trust {
    /// Before the first certificate: the root must have this pin.
    Pin(Arc<str>),
    /// Afterwards: our own identity, whatever it is when the connection is made.
    Svid(Arc<ArcSwapOption<Svid>>),
}

/// A lazy channel to the registry at `address` (`host:port`): it connects at the first call and
/// again after a loss. Dead connections are found by HTTP/2 pings within 10 seconds.
///
/// # Errors
/// When `address` cannot be part of a URI.
pub fn registry(address: &str, trust: Trust) -> Result<Channel, tonic::transport::Error> {
    let address: Arc<str> = address.into();
    let connect = move || {
        let (address, trust) = (address.clone(), trust.clone());
        async move { within(connect_registry(&address, &trust)).await.map(TokioIo::new) }
    };
    Ok(endpoint("http://registry.outrigger.mesh")?.connect_with_connector_lazy(Connector(connect)))
}

/// A lazy plaintext channel to `address` (`host:port`), for a collector.
///
/// # Errors
/// When `address` cannot be part of a URI.
pub fn plaintext(address: &str) -> Result<Channel, tonic::transport::Error> {
    let target: Arc<str> = address.into();
    let connect = move || {
        let target = target.clone();
        async move { within(connect_tcp(&target)).await.map(TokioIo::new) }
    };
    Ok(endpoint(&format!("http://{address}"))?.connect_with_connector_lazy(Connector(connect)))
}

/// A gRPC status for people: its message, and what caused it.
pub fn describe(status: &tonic::Status) -> String {
    let text = with_causes(status.message().to_owned(), std::error::Error::source(status));
    if text.is_empty() { status.code().to_string() } else { text }
}

/// Why a server at the registry's address is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disbelief {
    /// Its chain ends in another root than ours: a wiped registry, or one of another mesh.
    UnknownRoot,
    /// It proved an identity of this mesh that is not the registry's.
    NotRegistry,
    /// Its certificate has expired by our clock, or is not valid yet.
    Time,
}

/// Finds out whether a call failed because the server is not believed.
pub fn disbelief(status: &tonic::Status) -> Option<Disbelief> {
    let mut next = std::error::Error::source(status);
    while let Some(error) = next {
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        if let Some(found) = inner.and_then(|inner| inner.downcast_ref::<Disbelieved>()) {
            return Some(found.why);
        }
        next = error.source();
    }
    None
}

/// Such a server, in the words of an error.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Disbelieved {
    why: Disbelief,
    message: String,
}

/// A failed handshake, with its reason kept if the server's certificate is it.
fn handshake_failed(address: &str, error: &io::Error) -> io::Error {
    let message = format!("TLS with the registry at {address} failed: {error}");
    let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    let why = match cause {
        Some(rustls::Error::InvalidCertificate(certificate)) => match certificate {
            CertificateError::UnknownIssuer | CertificateError::BadSignature => Some(Disbelief::UnknownRoot),
            CertificateError::Expired | CertificateError::NotValidYet => Some(Disbelief::Time),
            _ => None,
        },
        _ => None,
    };
    match why {
        Some(why) => io::Error::new(error.kind(), Disbelieved { why, message }),
        None => io::Error::new(error.kind(), message),
    }
}

fn endpoint(uri: &str) -> Result<Endpoint, tonic::transport::Error> {
    Ok(Endpoint::from_shared(uri.to_owned())?
        .http2_keep_alive_interval(Duration::from_secs(5))
        .keep_alive_timeout(Duration::from_secs(5))
        .keep_alive_while_idle(true))
}

async fn within<T>(connecting: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "connecting took longer than 5s")))
}

/// Tries each address in turn.
async fn connect_tcp(address: &str) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for address in resolve(address).await? {
        match TcpStream::connect(address).await {
            Ok(stream) => {
                stream.set_nodelay(true)?;
                return Ok(stream);
            }
            Err(error) => {
                last = io::Error::new(error.kind(), format!("cannot connect to {address}: {error}"));
            }
        }
    }
    Err(last)
}

async fn connect_registry(address: &str, trust: &Trust) -> io::Result<TlsStream<TcpStream>> {
    let (config, domain): (Arc<ClientConfig>, Option<TrustDomain>) = match trust {
        Trust::Pin(pin) => (mtls::joining_client_config(pin, ALPN_H2).map_err(io::Error::other)?, None),
        Trust::Svid(cell) => {
            let svid = cell.load_full().ok_or_else(|| io::Error::other("no certificate yet"))?;
            let config = mtls::client_config(&svid, ALPN_H2).map_err(io::Error::other)?;
            (config, Some(svid.id.trust_domain().clone()))
        }
    };
    let stream = connect_tcp(address).await?;
    let name = ServerName::try_from(REGISTRY_NAME).expect("the constant is a DNS name");
    let stream = TlsConnector::from(config)
        .connect(name, stream)
        .await
        .map_err(|error| handshake_failed(address, &error))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let id = mtls::peer_id(chain).map_err(io::Error::other)?;
    let right_domain = domain.is_none_or(|domain| *id.trust_domain() == domain);
    if *id.principal() != Principal::Registry || !right_domain {
        let message = format!("the server at {address} is {id}, not the registry: refused");
        let refused = Disbelieved { why: Disbelief::NotRegistry, message };
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, refused));
    }
    Ok(stream)
}

/// tonic takes connectors as a `Service`; this is one around a closure.
#[derive(Clone)]
struct Connector<F>(F);

impl<F, Fut, T> tower_service::Service<Uri> for Connector<F>
where
    F: Fn() -> Fut,
    Fut: Future<Output = io::Result<T>> + Send + 'static,
{
    type Response = T;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<T>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _uri: Uri) -> Self::Future {
        Box::pin((self.0)())
    }
}
