//! The floor: two processes that carry bytes over mutual TLS 1.3 and know nothing of HTTP.
//!
//! One TLS connection for each of the client's. What a proxy costs above this is its own doing.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::ValueEnum;
use outrigger_common::tasks::Tasks;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::certs::{self, NAME};

/// Of each direction of each connection: one TLS record.
const BUFFER: usize = 16 << 10;

/// Which end of the hop a process is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(crate) enum Role {
    /// Beside the client: plaintext in, TLS out.
    Outbound,
    /// Beside the server: TLS in, plaintext out.
    Inbound,
}

/// Serves until the process is ended.
pub(crate) async fn serve(
    role: Role,
    listen: SocketAddr,
    connect: SocketAddr,
    directory: &Path,
) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let tasks = Tasks::current();
    let (acceptor, connector) = (acceptor(directory)?, connector(directory)?);
    loop {
        // A client that is gone already is its own affair.
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (acceptor, connector) = (acceptor.clone(), connector.clone());
        tasks.spawn("connection", async move {
            let _ended = match role {
                Role::Outbound => outbound(stream, connect, &connector).await,
                Role::Inbound => inbound(stream, connect, &acceptor).await,
            };
        });
    }
}

async fn outbound(mut client: TcpStream, to: SocketAddr, connector: &TlsConnector) -> Result<()> {
    client.set_nodelay(true)?;
    let upstream = TcpStream::connect(to).await?;
    upstream.set_nodelay(true)?;
    let mut upstream = connector.connect(ServerName::try_from(NAME)?, upstream).await?;
    copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await?;
    Ok(())
}

async fn inbound(client: TcpStream, to: SocketAddr, acceptor: &TlsAcceptor) -> Result<()> {
    client.set_nodelay(true)?;
    let mut client = acceptor.accept(client).await?;
    let mut upstream = TcpStream::connect(to).await?;
    upstream.set_nodelay(true)?;
    copy_bidirectional_with_sizes(&mut client, &mut upstream, BUFFER, BUFFER).await?;
    Ok(())
}

fn identity(directory: &Path) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
    let chain = CertificateDer::pem_file_iter(directory.join(certs::CERTIFICATE))?;
    let chain = chain.collect::<Result<_, _>>().context("the certificate")?;
    Ok((chain, PrivateKeyDer::from_pem_file(directory.join(certs::KEY)).context("the key")?))
}

fn roots(directory: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(directory.join(certs::ROOT)).context("the root")?)?;
    Ok(Arc::new(roots))
}

fn connector(directory: &Path) -> Result<TlsConnector> {
    let (chain, key) = identity(directory)?;
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_root_certificates(roots(directory)?)
        .with_client_auth_cert(chain, key)?;
    Ok(Arc::new(config).into())
}

fn acceptor(directory: &Path) -> Result<TlsAcceptor> {
    let (chain, key) = identity(directory)?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(directory)?, provider.clone()).build()?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)?;
    Ok(Arc::new(config).into())
}
