//! Port 15012: gRPC over mutual TLS. Who may call what is decided in one place, [`routes`].

mod admin;
mod certificate;
mod connection;
mod discovery;
mod limits;
mod refusal;
mod registration;
mod traces;
mod watch_server;

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::TraceServiceServer;
use outrigger_api::v1::admin_server::AdminServer;
use outrigger_api::v1::certificates_server::CertificatesServer;
use outrigger_api::v1::join_server::JoinServer;
use outrigger_api::v1::registration_server::RegistrationServer;
use outrigger_common::drain::Drain;
use outrigger_common::identity::{Principal, SpiffeId, TrustDomain};
use outrigger_common::tasks::Tasks;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Status};

pub(crate) use self::connection::{Crowd, PeerInfo, Port, accept};
pub use self::limits::Limits;
use self::watch_server::WatchServer;
use crate::hub::Hub;
use crate::join::Joins;
use crate::metrics::Metrics;
use crate::registrar::Registrar;
use crate::resources::Resources;
use crate::store::Store;

/// Pings find dead streams within twice this.
const KEEPALIVE: Duration = Duration::from_secs(5);
/// Requests at once on one connection; a sidecar needs a handful.
const MAX_STREAMS: u32 = 64;
/// A first Hello with ten thousand services of the longest names fits.
const MAX_REQUEST: usize = 4 << 20;
const MAX_HEADERS: u32 = 16 << 10;

/// What the services work on.
#[derive(Clone)]
pub(crate) struct Services {
    /// State and streams.
    pub(crate) hub: Arc<Hub>,
    /// Tokens and certificates.
    pub(crate) joins: Arc<Joins>,
    /// Workloads.
    pub(crate) registrar: Arc<Registrar>,
    /// Resources.
    pub(crate) resources: Arc<Resources>,
    /// What a backup is made of.
    pub(crate) store: Arc<dyn Store>,
    /// Traces.
    pub(crate) traces: Arc<Mutex<crate::traces::Traces>>,
    /// What sidecars refused.
    pub(crate) refusals: Arc<Mutex<crate::refusals::Refusals>>,
    /// Metrics.
    pub(crate) metrics: Arc<Metrics>,
    /// Of a store restored from a backup: when every workload that lives has registered again. What
    /// the backup lacks must not be taken from sidecars that know it before.
    pub(crate) settled: Option<Instant>,
    /// Identity of the store.
    pub(crate) store_id: Arc<str>,
    /// Trust domain callers must be of.
    pub(crate) trust_domain: TrustDomain,
    /// Where streams run.
    pub(crate) tasks: Tasks,
    /// When streams end.
    pub(crate) drain: Drain,
}

/// A caller who proved an identity that may call the service.
#[derive(Clone)]
struct Caller {
    id: Arc<SpiffeId>,
    expires: SystemTime,
    watches: Arc<Semaphore>,
}

/// Who may call a service.
#[derive(Clone, Copy)]
enum Allowed {
    Workloads,
    Admin,
}

/// Lets the allowed pass, with their [`Caller`].
#[derive(Clone)]
struct Guard {
    allowed: Allowed,
    trust_domain: TrustDomain,
}

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned();
        let caller = peer.and_then(|PeerInfo { proven, watches }| {
            proven.map(|(id, expires)| Caller { id, expires, watches })
        });
        let Some(caller) = caller else {
            return Err(Status::unauthenticated(
                "no client certificate: join with a token first (`outrigger token`); nothing else answers without one",
            ));
        };
        if SystemTime::now() >= caller.expires {
            return Err(Status::unauthenticated(
                "the client certificate has expired: connect with a renewed one",
            ));
        }
        let fits = match (self.allowed, caller.id.principal()) {
            (Allowed::Workloads, Principal::Workload { .. }) | (Allowed::Admin, Principal::Admin) => true,
            (Allowed::Workloads, Principal::Admin | Principal::Registry | Principal::Nobody)
            | (Allowed::Admin, Principal::Workload { .. } | Principal::Registry | Principal::Nobody) => false,
        };
        if !fits || *caller.id.trust_domain() != self.trust_domain {
            let (who, remedy) = match self.allowed {
                Allowed::Workloads => ("workloads", "a sidecar's"),
                Allowed::Admin => ("the administrator", "the one in the registry's data directory, admin/"),
            };
            return Err(Status::permission_denied(format!(
                "{} may not call this: it answers {who} alone; use {remedy} identity",
                caller.id
            )));
        }
        request.extensions_mut().insert(caller);
        Ok(request)
    }
}

fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let caller = request.extensions().get::<Caller>().cloned();
    caller.ok_or_else(|| Status::unauthenticated("no client certificate"))
}

/// Every method of the port and who may call it. Join alone has no guard.
pub(crate) fn routes(services: &Services) -> Router {
    let guard = |allowed| Guard { allowed, trust_domain: services.trust_domain.clone() };
    let (workloads, admin) = (guard(Allowed::Workloads), guard(Allowed::Admin));
    let certificates = certificate::Certificates(services.joins.clone());
    let join = JoinServer::new(certificates.clone()).max_decoding_message_size(64 << 10);
    let discovery = WatchServer::new(discovery::Discovery(services.clone()));
    let traces =
        TraceServiceServer::new(traces::Receiver(services.clone())).max_decoding_message_size(MAX_REQUEST);
    let resources = AdminServer::new(admin::Admin(services.clone())).max_decoding_message_size(16 << 20);
    let registration = RegistrationServer::new(registration::Registration(services.registrar.clone()));
    Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .http2_max_header_list_size(MAX_HEADERS)
        .max_concurrent_streams(MAX_STREAMS)
        .add_service(join)
        .add_service(InterceptedService::new(CertificatesServer::new(certificates), workloads.clone()))
        .add_service(InterceptedService::new(registration, workloads.clone()))
        .add_service(InterceptedService::new(discovery, workloads.clone()))
        .add_service(InterceptedService::new(traces, workloads))
        .add_service(InterceptedService::new(resources, admin))
}
