//! Opaque bytes on their way out: which endpoint takes a connection, and its life.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::HeaderMap;
use outrigger_api::resource::Protocol;
use outrigger_common::name::ServiceName;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::call::Tried;
use super::destination::{self, Destination};
use super::find;
use super::watch::Watch;
use crate::balance::{Ask, FailureKind};
use crate::capture::leaving::Left;
use crate::control::snapshot::{Entry, Service, ServicePort};
use crate::error::{Delivery, ProxyError};
use crate::io::{Prefixed, Stream};
use crate::policy::limit::BoundPermit;
use crate::pool::mesh::{Endpoint, Opaque};
use crate::reason::Reason;
use crate::route::DEFAULT_ROUTE;
use crate::shared::Shared;
use crate::tcp::keep_alive;
use crate::tcp::preface::Hello;
use crate::tcp::relay::{End, relay};
use crate::telemetry::metrics::{Direction, RetryOutcome, RetryReason};
use crate::telemetry::tcp::ConnectionRecord;

/// The destination's label of what leaves the mesh: its addresses would be labels without end.
const OUTSIDE: &str = "outside";
/// Longest wait for a connection to leave the mesh, at least: hosts outside are farther away.
pub const OUTSIDE_CONNECT: Duration = Duration::from_secs(10);
/// The port a TLS hello without any other hint is for.
const HTTPS: u16 = 443;
/// Longest wait for the last words to a connection that will not be used.
const GOODBYE: Duration = Duration::from_millis(100);
/// The alert `unrecognized_name`, fatal (RFC 6066 section 3), as a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// Where connections go: a service port, or one endpoint of it.
pub struct Place {
    service: Arc<Service>,
    port: u16,
    workload: Option<Box<str>>,
}

/// A connection to an application, and what ends with it.
pub struct Opened {
    /// Its bytes, from now on.
    pub stream: Opaque,
    /// How long it may stand still.
    pub idle: Duration,
    /// In flight at the endpoint.
    watch: Watch,
    /// Its place among the connections to the destination.
    permit: BoundPermit,
}

impl Opened {
    /// Ends it orderly: nothing was sent on it.
    pub async fn unused(mut self) {
        let _gone = tokio::time::timeout(GOODBYE, self.stream.shutdown()).await;
    }
}

impl Place {
    fn service_port(&self) -> &ServicePort {
        self.service.port(self.port).expect("looked up when this was made, and a service never changes")
    }

    /// What its application speaks, as far as it is declared.
    pub fn protocol(&self) -> Protocol {
        self.service_port().protocol
    }

    /// Begins to count a connection to it.
    pub fn record(&self, shared: &Shared) -> ConnectionRecord {
        ConnectionRecord::start(self.service_port().rules.default.edge.clone(), shared.metrics.clone())
    }

    /// Picks from the newest set an endpoint that was not tried.
    fn pick(&self, shared: &Shared, tried: &Tried, hash: Option<u64>) -> Option<Watch> {
        let snapshot = shared.directory.load();
        let Some(Entry::Known(service)) = snapshot.service(self.service.name.as_str()) else { return None };
        let endpoints = &service.port(self.port)?.endpoints;
        let other =
            |candidate: &Endpoint| self.workload.as_ref().is_some_and(|one| *one != candidate.workload);
        let ask = Ask { tried: &|candidate| other(candidate) || tried.has(candidate), hash };
        let now = Instant::now();
        let pick = endpoints.pick(&ask, now, &mut fastrand::Rng::with_seed(fastrand::u64(..)))?;
        Some(Watch::begin(endpoints.clone(), pick, shared.metrics.clone(), now))
    }
}

/// A service port, from the snapshot or the registry; `workload` is the one endpoint wanted, if it is
/// one.
///
/// Cancel safety: safe.
///
/// # Errors
/// Nobody knows it.
pub async fn locate(
    shared: &Shared,
    name: &ServiceName,
    port: u16,
    workload: Option<&str>,
) -> Result<Place, ProxyError> {
    if shared.caller.get().is_none() {
        return Err(ProxyError::DiscoveryUnavailable(format!("{name}: this sidecar has no certificate yet")));
    }
    let snapshot = shared.directory.load_full();
    let service = shared.directory.find(&snapshot, name, shared.config.timeouts.discovery).await?;
    if service.port(port).is_none() {
        return Err(ProxyError::UnknownPort { service: name.to_string(), port });
    }
    Ok(Place { service, port, workload: workload.map(Into::into) })
}

/// Counts a connection to a destination nobody knows.
pub fn nowhere(shared: &Shared) -> ConnectionRecord {
    ConnectionRecord::start(find::nowhere(shared), shared.metrics.clone())
}

/// A connection to the application of an endpoint. One that does not come about is tried at other
/// endpoints, for not a byte of the client's has been sent: each once, and as many as the policy has
/// attempts.
///
/// Cancel safety: safe; the connection being made is dropped.
///
/// # Errors
/// How the last attempt failed.
pub async fn open(shared: &Shared, place: &Place, from: SocketAddr) -> Result<Opened, ProxyError> {
    let port = place.service_port();
    match port.protocol {
        Protocol::Auto | Protocol::Tcp => {}
        // Every endpoint would say the same.
        Protocol::Http | Protocol::Http1 | Protocol::Http2 | Protocol::Grpc => {
            let what =
                format!("{}:{} for anything but {}", place.service.name, place.port, port.protocol.as_str());
            return Err(ProxyError::NotServed(what));
        }
    }
    let (settings, policy) = (port.destination.settings(), &port.rules.default.policy);
    let limits = &settings.limits;
    let Some(permit) = limits.connections.try_acquire() else {
        return Err(ProxyError::ConnectionLimit { limit: limits.connections.limit() });
    };
    let Some(_pending) = limits.pending.try_acquire() else {
        return Err(ProxyError::PendingLimit { limit: limits.pending.limit() });
    };
    let source = shared.caller.get().map(|caller| caller.source.to_string()).unwrap_or_default();
    let hello = Hello { source }.encode();
    let hash = settings.hash.as_ref().and_then(|hash| hash.key(&HeaderMap::new(), from));
    let (mut tried, mut failed) = (Tried::default(), None);
    for _ in 0..policy.attempts {
        let Some(mut watch) = place.pick(shared, &tried, hash) else { break };
        if failed.is_some() {
            port.rules.default.edge.retry(RetryReason::Undelivered, RetryOutcome::Sent);
        }
        tried.add(watch.endpoint().clone());
        let error = match watch.endpoint().open(&shared.connector, &hello, limits.connect).await {
            Ok(stream) => {
                watch.connected(watch.elapsed());
                return Ok(Opened { stream, idle: policy.tcp_idle, watch, permit });
            }
            Err(error) => error,
        };
        tracing::debug!(%error, workload = %watch.endpoint().workload, "connection not made");
        learn(watch, &error);
        if error.delivery() != Delivery::Undelivered {
            return Err(error);
        }
        failed = Some(error);
    }
    Err(failed.unwrap_or_else(|| ProxyError::NoEndpoint(place.service.name.to_string())))
}

/// What a connection that did not come about says of the endpoint.
fn learn(mut watch: Watch, error: &ProxyError) {
    match error {
        _ if error.blames_connection() => watch.failed(FailureKind::Connection),
        // It answers; who may call is for its policies to say.
        ProxyError::StreamRefused { elsewhere: false, .. } => watch.connected(watch.elapsed()),
        ProxyError::StreamRefused { .. } => watch.failed(FailureKind::Status),
        _ => drop(watch),
    }
}

/// Carries a connection that is known to be opaque.
pub async fn carry<C: Stream>(shared: &Shared, client: C, from: SocketAddr, place: &Place) {
    let record = place.record(shared);
    match open(shared, place, from).await {
        Ok(opened) => join(shared, client, opened, Bytes::new(), record).await,
        Err(error) => refuse(&client, record, &error),
    }
}

/// Carries a TLS connection whose hello names a service to port 443 of it.
pub async fn by_name<C: Stream>(
    shared: &Shared,
    mut client: Prefixed<C>,
    from: SocketAddr,
    name: Option<&str>,
) {
    match named(shared, name).await {
        Ok(place) => carry(shared, client, from, &place).await,
        Err(error) => {
            // The one thing a TLS client understands before there is a key.
            let _gone = tokio::time::timeout(GOODBYE, client.write_all(&UNRECOGNIZED_NAME)).await;
            let _gone = tokio::time::timeout(GOODBYE, client.shutdown()).await;
            tracing::debug!(%error, "TLS for nobody");
            nowhere(shared).end(Some(error.reason()));
        }
    }
}

async fn named(shared: &Shared, name: Option<&str>) -> Result<Place, ProxyError> {
    let name = name.ok_or(ProxyError::BadRequest("the TLS hello names no host"))?;
    let namespace = shared.caller.get().map_or("", |caller| caller.namespace.as_str());
    match destination::parse(name, namespace) {
        Destination::Service { name, .. } => locate(shared, &name, HTTPS, None).await,
        _ => Err(ProxyError::UnknownService(name.to_owned())),
    }
}

/// Carries a connection to an address outside of the mesh, untouched.
pub async fn outside<C: Stream>(shared: &Shared, client: C, address: SocketAddr) {
    match connect_outside(shared, address).await {
        Ok(outside) => join_outside(shared, client, outside).await,
        Err(error) => refuse(&client, record_outside(shared), &error),
    }
}

/// Joins a client to the connection that was made for it.
pub async fn join_outside<C: Stream>(shared: &Shared, client: C, (server, left): (TcpStream, Left)) {
    keep_alive(&server);
    copy(shared, client, server, shared.config.timeouts.tcp_idle, record_outside(shared)).await;
    drop(left);
}

fn record_outside(shared: &Shared) -> ConnectionRecord {
    let source = shared.caller.get().map_or("unknown", |caller| caller.source.as_str());
    let edge = shared.metrics.edge(Direction::Outbound, source, OUTSIDE, DEFAULT_ROUTE);
    ConnectionRecord::start(edge, shared.metrics.clone())
}

/// A connection to an address outside of the mesh.
///
/// Cancel safety: safe.
///
/// # Errors
/// It did not come about in time, or leads back here.
pub async fn connect_outside(shared: &Shared, address: SocketAddr) -> Result<(TcpStream, Left), ProxyError> {
    if shared.own.contains(address) {
        return Err(ProxyError::Loop(address.to_string()));
    }
    let limit = shared.config.timeouts.connect.max(OUTSIDE_CONNECT);
    let failed = |source| ProxyError::Connect { address, source };
    let connected = tokio::time::timeout(limit, shared.leaving.connect(address)).await;
    let (tcp, left) =
        connected.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(failed)?;
    tcp.set_nodelay(true).map_err(failed)?;
    Ok((tcp, left))
}

/// It cannot be carried: a reset, for an end would be one of the server's.
pub fn refuse<C: Stream>(client: &C, record: ConnectionRecord, error: &ProxyError) {
    tracing::debug!(%error, reason = error.reason().as_str(), "connection refused");
    end_early(client, record, error.reason());
}

/// Ends a connection that was not carried to its end.
pub fn end_early<C: Stream>(client: &C, record: ConnectionRecord, reason: Reason) {
    client.abort();
    record.end(Some(reason));
}

/// Joins a client to the connection opened for it; `first` is what the server has said already.
pub async fn join<C: Stream>(
    shared: &Shared,
    client: C,
    opened: Opened,
    first: Bytes,
    record: ConnectionRecord,
) {
    let Opened { stream, idle, watch, permit } = opened;
    copy(shared, client, Prefixed::new(first, stream), idle, record).await;
    drop((watch, permit));
}

/// Copies until both are done, or until the drain has no more time for them.
async fn copy<C: Stream, S: Stream>(
    shared: &Shared,
    mut client: C,
    mut server: S,
    idle: Duration,
    mut record: ConnectionRecord,
) {
    let reason = tokio::select! {
        end = relay(&mut client, &mut server, idle, &mut record) => reason(&end),
        () = shared.outbound_drain.signalled() => Some(Reason::Drained),
    };
    if reason.is_some() {
        client.abort();
        server.abort();
    }
    record.end(reason);
}

/// Why a pair ended, where not all of it was carried.
fn reason(end: &End) -> Option<Reason> {
    match end {
        End::Complete => None,
        End::Client(_) => Some(Reason::ClientClosed),
        End::Server(_) => Some(Reason::UpstreamReset),
        End::Idle => Some(Reason::IdleTimeout),
    }
}
