//! CONNECT (RFC 9110 section 9.3.6): a tunnel to a service of the mesh, or out of it.

use std::net::SocketAddr;
use std::sync::Arc;

use http::{Method, Request, Response};
use hyper::body::Incoming;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use outrigger_api::resource::EgressMode;
use outrigger_common::resolve::resolve;
use tokio::net::TcpStream;

use super::destination::{self, Destination};
use super::entry::{self, Target};
use super::tcp;
use crate::capture::leaving::Left;
use crate::control::owners::Owner;
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::io::Prefixed;
use crate::shared::Shared;

/// Where a tunnel leads.
enum Way {
    /// Into the mesh.
    Mesh(Target),
    /// Out of it; connected already, so that the client learns now if it cannot be.
    Outside((TcpStream, Left)),
}

/// Whether a request asks for a tunnel. One with a protocol (RFC 8441) is a request like others.
pub fn asked(request: &Request<Incoming>) -> bool {
    request.method() == Method::CONNECT && request.extensions().get::<hyper::ext::Protocol>().is_none()
}

/// Opens the tunnel that `request` asks for. What goes through it is served as any connection of the
/// application, from the moment the client has its answer.
///
/// Cancel safety: safe; what was connected is closed.
///
/// # Errors
/// There is nowhere to lead it, or it may not.
pub async fn open(
    shared: &Arc<Shared>,
    from: SocketAddr,
    request: Request<Incoming>,
) -> Result<Response<Body>, ProxyError> {
    let way = way(shared, request.uri().authority().map_or("", |authority| authority.as_str())).await?;
    let (shared, upgrading) = (shared.clone(), hyper::upgrade::on(request));
    shared.clone().connections.spawn("tunnel", async move {
        match upgrading.await {
            Ok(upgraded) => carry(shared, upgraded, from, way).await,
            Err(error) => tracing::debug!(%error, "the client did not wait for its tunnel"),
        }
    });
    Ok(Response::new(Body::Empty))
}

/// Gives the tunnel its own stream back where it is one of HTTP/1: it can be reset, which a stream of
/// HTTP/2 cannot.
async fn carry(shared: Arc<Shared>, upgraded: Upgraded, from: SocketAddr, way: Way) {
    match upgraded.downcast::<TokioIo<Prefixed<TcpStream>>>() {
        Ok(parts) => {
            let io = Prefixed::new(parts.read_buf, parts.io.into_inner());
            match way {
                Way::Mesh(target) => Box::pin(entry::serve(shared, io, from, target)).await,
                Way::Outside(server) => Box::pin(tcp::join_outside(&shared, io, server)).await,
            }
        }
        Err(upgraded) => {
            let io = TokioIo::new(upgraded);
            match way {
                Way::Mesh(target) => Box::pin(entry::serve(shared, io, from, target)).await,
                Way::Outside(server) => Box::pin(tcp::join_outside(&shared, io, server)).await,
            }
        }
    }
}

async fn way(shared: &Arc<Shared>, authority: &str) -> Result<Way, ProxyError> {
    let Some(caller) = shared.caller.get() else {
        return Err(ProxyError::DiscoveryUnavailable(format!(
            "{authority}: this sidecar has no certificate yet"
        )));
    };
    // A port must be named: nothing says which would be meant (RFC 9110 section 9.3.6).
    let with_port = authority.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
    if !with_port || authority.contains('@') {
        return Err(ProxyError::BadRequest("CONNECT names host:port"));
    }
    match destination::parse(authority, &caller.namespace) {
        Destination::Malformed => Err(ProxyError::BadRequest("CONNECT names host:port")),
        Destination::Local { port } if shared.own.has_port(port) => {
            Err(ProxyError::Loop(authority.to_owned()))
        }
        Destination::Local { .. } => Err(ProxyError::UnknownService(authority.to_owned())),
        Destination::Service { name, port } => match tcp::locate(shared, &name, port, None).await {
            Ok(_) => Ok(Way::Mesh(Target::Service { name, port })),
            // `example.com` is written like a service.
            Err(ProxyError::UnknownService(_)) => outside(shared, authority).await,
            Err(error) => Err(error),
        },
        Destination::NotAService => outside(shared, authority).await,
    }
}

/// To an address, which may be one of the mesh as well; else out of it, if that is allowed.
async fn outside(shared: &Arc<Shared>, authority: &str) -> Result<Way, ProxyError> {
    let limit = shared.config.timeouts.discovery;
    let literal = authority.parse::<SocketAddr>().ok();
    if let Some(address) = literal {
        match shared.directory.owner(address, limit).await {
            Owner::Service { name, port } => return Ok(Way::Mesh(Target::Service { name, port })),
            Owner::Endpoint { name, port, workload } => {
                return Ok(Way::Mesh(Target::Endpoint { name, port, workload }));
            }
            Owner::Outside => {}
        }
    }
    if shared.directory.load().egress == EgressMode::Deny {
        return Err(ProxyError::EgressDenied(authority.to_owned()));
    }
    let resolving = tokio::time::timeout(tcp::OUTSIDE_CONNECT, resolve(authority));
    let addresses = resolving.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let addresses = addresses.map_err(|error| {
        tracing::debug!(%error, authority, "not resolved");
        ProxyError::UnknownService(authority.to_owned())
    })?;
    let mut failed = None;
    for address in addresses {
        // A name must not lead where its address must not.
        if address.ip().is_loopback() || address.ip().is_unspecified() {
            failed = Some(ProxyError::UnknownService(authority.to_owned()));
            continue;
        }
        match tcp::connect_outside(shared, address).await {
            Ok(server) => return Ok(Way::Outside(server)),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| ProxyError::UnknownService(authority.to_owned())))
}
