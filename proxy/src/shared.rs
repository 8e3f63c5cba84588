//! What every connection of this sidecar shares.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use outrigger_common::drain::Drain;
use outrigger_common::identity::SpiffeId;
use outrigger_common::mtls::Svid;
use outrigger_common::name::ServiceName;
use outrigger_common::tasks::Tasks;

use crate::capture::leaving::Leaving;
use crate::config::Config;
use crate::control::directory::Directory;
use crate::control::snapshot::Snapshot;
use crate::http::stalled::Stalled;
use crate::inbound::served::ServedPorts;
use crate::policy::inherited::Inherited;
use crate::policy::limit::{Bound, BoundByIdentity};
use crate::pool::connector::Connector;
use crate::telemetry::environment::{Environment, Sampling};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::SpanSink;
use crate::tls::TlsConfigs;

/// The one `Arc` every connection gets.
#[derive(Debug)]
pub struct Shared {
    /// The checked configuration.
    pub config: Config,
    /// Where the sidecar itself listens.
    pub own: OwnAddresses,
    /// Services, as the registry tells of them.
    pub directory: Directory,
    /// TLS with the current certificate; none before the first.
    pub tls: Arc<ArcSwapOption<TlsConfigs>>,
    /// What connecting to other sidecars needs.
    pub connector: Connector,
    /// The requests the application works on, for the calls it makes for them.
    pub inherited: Arc<Inherited>,
    /// Connections of this sidecar's own that leave the mesh.
    pub leaving: Arc<Leaving>,
    /// Copies of requests under way.
    pub copies: Arc<Bound>,
    /// Connections of other sidecars, by who they are.
    pub peers: Arc<BoundByIdentity>,
    /// The current identity; none before the first.
    pub svid: Arc<ArcSwapOption<Svid>>,
    /// Who this workload is; set with the first certificate, and the same from then on.
    pub caller: OnceLock<Caller>,
    /// What the application serves; set with [`Shared::caller`].
    pub served: OnceLock<ServedPorts>,
    /// Responses on their way, for the sweep that ends those nobody reads.
    pub stalled: Arc<Stalled>,
    /// Metric families.
    pub metrics: Arc<Metrics>,
    /// Where spans of sampled requests go.
    pub spans: SpanSink,
    /// What the `OTEL_*` variables ask for.
    pub telemetry: Environment,
    /// Spawns on the data plane.
    pub tasks: Tasks,
    /// The same for the connections of clients, whose end the drain awaits.
    pub connections: Tasks,
    /// Heard by the mesh listener and its connections.
    pub inbound_drain: Drain,
    /// Heard, later, by the outbound listener and its connections.
    pub outbound_drain: Drain,
}

impl Shared {
    /// Who decides on sampling: the environment of this sidecar, else the mesh.
    pub fn sampling(&self, snapshot: &Snapshot) -> Sampling {
        if self.telemetry.disabled {
            return Sampling::parent_based(0.0);
        }
        self.telemetry.sampling.unwrap_or(Sampling::parent_based(snapshot.sampling))
    }
}

/// The listeners' addresses.
#[derive(Debug, Clone)]
pub struct OwnAddresses {
    /// The application's side.
    pub outbound: SocketAddr,
    /// The peers' side.
    pub mesh: SocketAddr,
    /// The operator's side.
    pub admin: SocketAddr,
    /// Where captured connections to the application arrive, if they are captured.
    pub inbound: Option<SocketAddr>,
    /// Local ports that lead to one service port each, in the order of the configuration.
    pub local_ports: Vec<SocketAddr>,
}

impl OwnAddresses {
    fn all(&self) -> impl Iterator<Item = SocketAddr> {
        let always = [self.outbound, self.mesh, self.admin].into_iter();
        always.chain(self.inbound).chain(self.local_ports.iter().copied())
    }

    /// Whether connecting to `target` reaches the sidecar itself.
    pub fn contains(&self, target: SocketAddr) -> bool {
        self.all().any(|own| {
            own.port() == target.port()
                && (own.ip() == target.ip()
                    || (own.ip().is_unspecified() && is_local(target.ip()))
                    || (own.ip().is_loopback() && target.ip().is_loopback()))
        })
    }

    /// Whether `target` is exactly one of these, as written: one that listens on all addresses of this
    /// machine says nothing about those of others.
    pub fn is(&self, target: SocketAddr) -> bool {
        [self.outbound, self.mesh, self.admin].contains(&target)
    }

    /// Whether an address of this machine with `port` is one of the sidecar's own.
    pub fn has_port(&self, port: u16) -> bool {
        self.all().any(|own| own.port() == port)
    }
}

/// Whether an address is one of this machine's: only then can a socket have it (bind(2)).
fn is_local(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

/// Who this workload is towards others.
#[derive(Debug)]
pub struct Caller {
    /// Its namespace: what a bare service name refers to.
    pub namespace: String,
    /// `name.namespace` of its first service, else of its account: the source of its calls.
    pub source: ServiceName,
    /// The same, ready for a header.
    pub source_header: HeaderValue,
    /// Its identity.
    pub id: SpiffeId,
}
