//! The registry from start to end: everything that can fail first, then serving, then the end.
//!
//! One thread serves: what a registry does per request is microseconds of maps and, for a join, one
//! signature. The one slow thing, syncing the disk, has a thread of its own in the store.

use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use outrigger_common::backoff::Backoff;
use outrigger_common::drain::{Drain, DrainTrigger};
use outrigger_common::identity::SpiffeId;
use outrigger_common::listen;
use outrigger_common::mtls::{ClientAuth, server_config};
use outrigger_common::tasks::Tasks;
use tokio::net::TcpListener;
use tokio_rustls::rustls::ServerConfig;
use tokio_stream::wrappers::ReceiverStream;

use crate::ca::Authority;
use crate::config::Config;
use crate::error::StartError;
use crate::follow;
use crate::grpc::{self, Crowd, Limits, Port, Services};
use crate::http::{self, Pages};
use crate::hub::Hub;
use crate::join::Joins;
use crate::metrics::Metrics;
use crate::refusals::Refusals;
use crate::registrar::Registrar;
use crate::resources::Resources;
use crate::state::Fold;
use crate::store::redb::RedbStore;
use crate::store::{Store, Watch};
use crate::traces::Traces;

/// The administrator's identity within the data directory.
pub const ADMIN_DIRECTORY: &str = "admin";
/// How long the end waits for answers under way.
const END_LIMIT: Duration = Duration::from_secs(1);
/// The wall clock may jump: the time to renew is looked at anew at least this often.
const RENEWAL_CHECK: Duration = Duration::from_secs(30);
const ALPN: &[&[u8]] = &[b"h2"];

/// A registry that has everything it needs and does not serve yet.
pub struct Registry {
    config: Config,
    grpc: TcpListener,
    http: TcpListener,
    addresses: (SocketAddr, SocketAddr),
    store: Arc<RedbStore>,
    hub: Arc<Hub>,
    fold: Fold,
    watch: Box<dyn Watch>,
    own: Own,
    metrics: Arc<Metrics>,
    limits: Limits,
}

/// The registry's own identities.
struct Own {
    authority: Arc<Authority>,
    tls: Arc<ArcSwap<ServerConfig>>,
    admin: PathBuf,
    metrics: Arc<Metrics>,
    renew_at: SystemTime,
}

impl Registry {
    /// Opens the store, the CA and both listeners.
    ///
    /// # Errors
    /// The first thing that cannot be had, with its place and the remedy. Nothing is served then.
    pub async fn bind(config: Config) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::new());
        let store = Arc::new(RedbStore::open(&config.data_dir, &metrics)?);
        let authority = Authority::open(
            &*store,
            &config.data_dir,
            config.trust_domain.clone(),
            config.certificate_lifetime,
            metrics.clone(),
        )
        .await?;
        let grpc = listen::bind(config.grpc_listen, "grpc.listen").await?;
        let http = listen::bind(config.http_listen, "http.listen").await?;
        let addresses = (grpc.local_addr()?, http.local_addr()?);
        let own = Own::new(Arc::new(authority), config.data_dir.join(ADMIN_DIRECTORY), metrics.clone())?;
        let mut fold = Fold::new(store.history());
        let hub = Arc::new(Hub::new(fold.state().clone(), metrics.convergence.clone()));
        let watch = follow::load(&*store, &hub, &mut fold).await?;
        let limits = Limits::default();
        Ok(Self { config, grpc, http, addresses, store, hub, fold, watch, own, metrics, limits })
    }

    /// Other limits than the default ones. Not in the configuration: their documentation says why the
    /// default ones do for any mesh one registry serves; tests want smaller ones.
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Where sidecars connect.
    pub fn grpc_address(&self) -> SocketAddr {
        self.addresses.0
    }

    /// Where people read.
    pub fn http_address(&self) -> SocketAddr {
        self.addresses.1
    }

    /// Where the administrator's identity is, for `--identity`.
    pub fn admin_directory(&self) -> PathBuf {
        self.own.admin.clone()
    }

    /// Serves until `shutdown` resolves; then ends streams and closes the store. Sidecars go on with
    /// what they have.
    ///
    /// Cancel safety: dropping it stops serving without order; nothing written is lost.
    ///
    /// # Errors
    /// When the store ended by itself: a registry that cannot write must be started again, not left
    /// to look alive.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), StartError> {
        let tasks = Tasks::current();
        let trigger = DrainTrigger::new();
        let drain = trigger.listen();
        let store: Arc<dyn Store> = self.store.clone();
        let traces = Arc::new(Mutex::new(Traces::new(self.config.trace_spans, self.config.trace_bytes)));
        let refusals = Arc::new(Mutex::new(Refusals::default()));
        let pages = Pages {
            hub: self.hub.clone(),
            store: store.clone(),
            metrics: self.metrics.clone(),
            traces: traces.clone(),
            refusals: refusals.clone(),
        };
        let services = Services {
            hub: self.hub.clone(),
            joins: Arc::new(Joins::new(store.clone(), self.own.authority.clone(), &self.metrics)),
            registrar: Arc::new(Registrar::new(store.clone(), self.hub.clone(), self.config.lease_ttl)),
            resources: Arc::new(Resources::new(store.clone())),
            store: store.clone(),
            traces,
            refusals,
            metrics: self.metrics.clone(),
            settled: (self.store.history() != self.store.id())
                .then(|| tokio::time::Instant::now() + self.config.lease_ttl),
            store_id: self.store.id().into(),
            trust_domain: self.config.trust_domain.clone(),
            tasks: tasks.clone(),
            drain: drain.clone(),
        };
        let port = Port {
            listener: self.grpc,
            tls: self.own.tls.clone(),
            limits: self.limits,
            metrics: self.metrics.clone(),
            crowd: Crowd::default(),
        };
        let crowd = port.crowd.clone();
        serve_grpc(&services, port);
        serve_http(&services, self.http, pages);
        tasks.spawn(
            "follow the store",
            until(drain.clone(), follow::follow(store, self.hub, self.fold, self.watch)),
        );
        let readers = self.store.clone();
        tasks.spawn(
            "attend leases",
            until(drain.clone(), async move { readers.attend(|| crowd.is_there()).await }),
        );
        tasks.spawn("renew own certificates", until(drain, self.own.keep_renewing()));
        tracing::info!(grpc = %self.addresses.0, http = %self.addresses.1, data_dir = %self.config.data_dir.display(), "registry ready");
        let ended = tokio::select! {
            () = shutdown => Ok(()),
            () = self.store.ended() => Err(StartError::StoreEnded { place: self.config.data_dir }),
        };
        trigger.start();
        let left = tasks.join(END_LIMIT).await;
        if left > 0 {
            tracing::debug!(left, "requests were still under way");
        }
        self.store.close();
        tracing::info!("registry stopped");
        ended
    }
}

async fn until(drain: Drain, work: impl Future<Output = ()>) {
    tokio::select! {
        () = work => {}
        () = drain.signalled() => {}
    }
}

fn serve_grpc(services: &Services, port: Port) {
    let (tasks, drain) = (services.tasks.clone(), services.drain.clone());
    let (accepting, connections) = grpc::accept(port, tasks.clone(), drain.clone());
    tasks.spawn("accept", accepting);
    let serving =
        grpc::routes(services).serve_with_incoming_shutdown(ReceiverStream::new(connections), async move {
            drain.signalled().await;
        });
    tasks.spawn("grpc", async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "gRPC server stopped");
        }
    });
}

fn serve_http(services: &Services, listener: TcpListener, pages: Pages) {
    let drain = services.drain.clone();
    let serving = http::serve(listener, pages, async move {
        drain.signalled().await;
    });
    services.tasks.spawn("http", async move {
        if let Err(error) = serving.await {
            tracing::error!(%error, "HTTP server stopped");
        }
    });
}

impl Own {
    fn new(authority: Arc<Authority>, admin: PathBuf, metrics: Arc<Metrics>) -> Result<Self, StartError> {
        metrics.expiry("root", authority.root_expiry());
        let (config, renew_at) = make(&authority, &admin, &metrics)?;
        Ok(Self { authority, tls: Arc::new(ArcSwap::new(config)), admin, metrics, renew_at })
    }

    /// Renews both certificates at their time, for as long as the registry runs.
    async fn keep_renewing(mut self) {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            while let Ok(remaining) = self.renew_at.duration_since(SystemTime::now()) {
                tokio::time::sleep((remaining + Duration::from_millis(1)).min(RENEWAL_CHECK)).await;
            }
            match make(&self.authority, &self.admin, &self.metrics) {
                Ok((config, renew_at)) => {
                    self.tls.store(config);
                    self.renew_at = renew_at;
                    backoff.reset();
                    tracing::debug!("renewed the registry's and the administrator's certificates");
                }
                Err(error) => {
                    tracing::error!(
                        error = outrigger_common::telemetry::chain(&error),
                        "cannot renew own certificates"
                    );
                    // Full jitter may be nothing at all; this must not spin.
                    let pause = backoff.next(fastrand::f64()).max(Duration::from_millis(200));
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }
}

/// New certificates for the registry and the administrator, and when to renew them: two thirds of
/// the way from issue to expiry, up to a tenth earlier.
fn make(
    authority: &Authority,
    admin: &std::path::Path,
    metrics: &Metrics,
) -> Result<(Arc<ServerConfig>, SystemTime), StartError> {
    let now = SystemTime::now();
    let registry = authority.own(&SpiffeId::registry(authority.trust_domain().clone()), now)?;
    let administrator = authority.own(&SpiffeId::admin(authority.trust_domain().clone()), now)?;
    let config = server_config(&registry, ClientAuth::Optional, ALPN)?;
    administrator.write_dir(admin)?;
    metrics.expiry("registry", registry.not_after);
    metrics.expiry("admin", administrator.not_after);
    let jitter = fastrand::f64() * 0.1;
    Ok((config, now + registry.remaining(now).mul_f64(2.0 / 3.0 - jitter)))
}

#[cfg(test)]
mod tests {
    use outrigger_common::config::Origin;

    use super::*;
    use crate::config::KEYS;

    #[tokio::test]
    async fn a_registry_whose_store_ended_does_not_go_on() {
        let dir = tempfile::tempdir().unwrap();
        let text = format!(
            "data_dir: {}\ngrpc:\n  listen: 127.0.0.1:0\nhttp:\n  listen: 127.0.0.1:0\n",
            dir.path().display()
        );
        let config = Config::from_origin(&Origin::new(None, text, Vec::new(), KEYS)).unwrap();
        let registry = Registry::bind(config).await.unwrap();
        // To those who wait for it, a thread that panicked looks like one that was closed.
        registry.store.close();
        let run = registry.run(std::future::pending());
        let error = tokio::time::timeout(Duration::from_secs(20), run).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("start it again"), "{error}");
    }
}
