//! CONNECT (RFC 9110 section 9.3.6): a tunnel to a service of the mesh, or out of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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
use crate::control::directory::Directory;
use crate::control::owners::Owner;
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::finale::Abrupt;
use crate::io::Prefixed;
use crate::shared::{OwnAddresses, Shared};

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
    match upgraded.downcast::<TokioIo<Abrupt<Prefixed<TcpStream>>>>() {
        Ok(parts) => {
            let mut io = parts.io.into_inner();
            io.tunnels();
            let io = Prefixed::new(parts.read_buf, io);
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

/// To the addresses of a host, which may be of the mesh as well; else out of it, if that is allowed.
async fn outside(shared: &Arc<Shared>, authority: &str) -> Result<Way, ProxyError> {
    let resolving = tokio::time::timeout(tcp::OUTSIDE_CONNECT, resolve(authority));
    let addresses = resolving.await.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let addresses = addresses.map_err(|error| {
        tracing::debug!(%error, authority, "not resolved");
        match shared.directory.load().egress {
            // It would have had to leave, for the registry does not know it.
            Some(EgressMode::Deny) => ProxyError::EgressDenied(authority.to_owned()),
            Some(EgressMode::Allow) | None => ProxyError::UnknownService(authority.to_owned()),
        }
    })?;
    let limit = shared.config.timeouts.discovery;
    let mut failed = None;
    for mut address in addresses {
        address.set_ip(address.ip().to_canonical());
        let connected = match owner(&shared.directory, &shared.own, address, limit).await {
            Ok(Owner::Outside) => tcp::connect_outside(shared, address).await,
            Ok(owner) => return Ok(Way::Mesh(Target::of(owner, address))),
            // The next one would wait for the same.
            Err(error @ ProxyError::DiscoveryUnavailable(_)) => return Err(error),
            Err(error) => Err(error),
        };
        match connected {
            Ok(server) => return Ok(Way::Outside(server)),
            Err(error) => failed = Some(error),
        }
    }
    Err(failed.unwrap_or_else(|| ProxyError::UnknownService(authority.to_owned())))
}

/// Whose an address is that a host has: a name must not lead where its address must not.
async fn owner(
    directory: &Directory,
    own: &OwnAddresses,
    address: SocketAddr,
    limit: Duration,
) -> Result<Owner, ProxyError> {
    if own.contains(address) {
        return Err(ProxyError::Loop(address.to_string()));
    }
    if address.ip().is_loopback() || address.ip().is_unspecified() {
        return Err(ProxyError::UnknownService(address.to_string()));
    }
    directory.bound_for(address, limit).await
}

#[cfg(test)]
mod tests {
    use outrigger_common::name::ServiceName;

    use super::*;
    use crate::control::owners::Owners;
    use crate::telemetry::metrics::Metrics;

    #[tokio::test]
    async fn what_a_name_resolves_to_is_judged_by_its_address() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let own = OwnAddresses {
            outbound: at("127.0.0.1:15001"),
            mesh: at("192.0.2.7:15008"),
            admin: at("127.0.0.1:15020"),
            inbound: None,
            local_ports: Vec::new(),
        };
        let (directory, _wanted) = Directory::new(Owners::new(own.clone(), Arc::new(Metrics::new(8))));
        let name = ServiceName::parse("orders.shop").unwrap();
        let service = Owner::Service { name: name.clone(), port: 80 };
        let endpoint = Owner::Endpoint { name, port: 80, workload: "orders-1".into() };
        let told =
            [("10.0.9.1:80", &service), ("10.0.0.7:8080", &endpoint), ("192.0.2.1:443", &Owner::Outside)];
        directory.owners.restore(told.map(|(address, owner)| (at(address), owner.clone())));
        let judged = async |address: &str| owner(&directory, &own, at(address), Duration::ZERO).await;
        assert_eq!(judged("10.0.9.1:80").await.unwrap(), service);
        assert_eq!(judged("10.0.0.7:8080").await.unwrap(), endpoint);
        for (address, wanted) in [
            ("192.0.2.7:15008", "loop"),
            ("127.0.0.1:15020", "loop"),
            ("127.0.0.1:9", "unknown_service"),
            ("[::1]:9", "unknown_service"),
            ("0.0.0.0:9", "unknown_service"),
            ("192.0.2.1:443", "discovery_unavailable"),
        ] {
            assert_eq!(judged(address).await.unwrap_err().reason().as_str(), wanted, "{address}");
        }
    }
}
