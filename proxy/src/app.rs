//! A sidecar's life: bind, join, serve, drain.

use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use http::HeaderValue;
use opentelemetry::KeyValue;
use outrigger_common::channel::{self, Trust};
use outrigger_common::drain::{Drain, DrainTrigger};
use outrigger_common::identity::SpiffeId;
use outrigger_common::listen::{self, ListenError};
use outrigger_common::name::ServiceName;
use outrigger_common::signal::Shutdown;
use outrigger_common::tasks::Tasks;
use outrigger_common::telemetry::chain;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::admin::Admin;
use crate::capture::listen::bind_pair;
use crate::config::{Config, LocalPort};
use crate::control::certs::{self, JoinError, Renewal};
use crate::control::directory::Directory;
use crate::control::disk::file::SavedIdentity;
use crate::control::disk::keeper::Keeper;
use crate::control::disk::{DiskError, Found, SavedSnapshot, StateDir};
use crate::control::first::{self, First};
use crate::control::health::{self, Health};
use crate::control::link::Link;
use crate::control::owners::Owners;
use crate::control::register::Registrar;
use crate::control::status::Status;
use crate::control::watch::Watch;
use crate::inbound::served::ServedPorts;
use crate::outbound::entry::Target;
use crate::outbound::mirror;
use crate::policy::inherited::{self, Inherited};
use crate::policy::limit::{Bound, BoundByIdentity};
use crate::pool::connector::Connector;
use crate::shared::{Caller, OwnAddresses, Shared};
use crate::telemetry::environment::Environment;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::spans::{self, FinishedSpan};
use crate::{inbound, listener, outbound, runtime};

/// Why a sidecar did not start, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A listener could not be opened.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The registry's address is not one.
    #[error("registry.address: {address:?} is not host:port")]
    Registry {
        /// What was given.
        address: String,
        /// What is wrong with it.
        #[source]
        source: tonic::transport::Error,
    },
    /// A target of `services` is the sidecar itself.
    #[error("services: target {0} is this sidecar's own port; name the application's")]
    OwnTarget(std::net::SocketAddr),
    /// The system refused something.
    #[error("cannot start")]
    System(#[from] std::io::Error),
    /// The state directory must not be used.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The registry refused the sidecar.
    #[error(transparent)]
    Join(#[from] JoinError),
}

/// A sidecar with its sockets open.
pub struct Proxy {
    data: Runtime,
    control: Runtime,
    shared: Arc<Shared>,
    status: Arc<Status>,
    listeners: Listeners,
    wanted: mpsc::Receiver<ServiceName>,
    spans: mpsc::Receiver<FinishedSpan>,
    drains: Drains,
    state: OnDisk,
}

/// What an earlier process left.
struct OnDisk {
    directory: Option<StateDir>,
    identity: Found<SavedIdentity>,
    snapshot: Option<SavedSnapshot>,
}

struct Listeners {
    data: DataListeners,
    admin: std::net::TcpListener,
}

struct DataListeners {
    /// One, or one a kind of addresses where connections are captured.
    outbound: Vec<TcpListener>,
    /// Where captured connections to the application arrive: none, or as many.
    inbound: Vec<TcpListener>,
    mesh: Vec<TcpListener>,
    local_ports: Vec<(TcpListener, Target)>,
}

#[derive(Default)]
struct Drains {
    inbound: DrainTrigger,
    outbound: DrainTrigger,
}

impl Proxy {
    /// Opens every socket first: what cannot listen must not register.
    ///
    /// # Errors
    /// A port or state directory in use, or a system out of resources.
    pub fn bind(config: Config) -> Result<Self, Error> {
        let state = OnDisk::read(config.state_dir.as_deref())?;
        let (data, control) = (runtime::data_plane(config.workers)?, runtime::control()?);
        let (listeners, own) = data.block_on(open(&config))?;
        if let Some(served) = config.services.iter().find(|served| own.contains(served.target)) {
            return Err(Error::OwnTarget(served.target));
        }
        let metrics = Arc::new(Metrics::new(config.limits.edges));
        let telemetry = Environment::read(|name| std::env::var(name).ok());
        for ignored in &telemetry.ignored {
            tracing::warn!("ignored: {ignored}");
        }
        let (sink, spans) = spans::queue(&telemetry, metrics.clone());
        let (directory, wanted) = Directory::new(Owners::new(own.clone(), metrics.clone()));
        let drains = Drains::default();
        let tasks = Tasks::on(data.handle().clone());
        let tls = Arc::new(ArcSwapOption::empty());
        let connector = Connector {
            tls: tls.clone(),
            metrics: metrics.clone(),
            tasks: tasks.clone(),
            header_bytes: config.limits.header_bytes,
            max_age: config.pool.max_age,
        };
        let shared = Arc::new(Shared {
            own,
            directory,
            tls,
            connector,
            inherited: Inherited::new(inherited::CAPACITY),
            leaving: Arc::default(),
            copies: Bound::new(mirror::COPIES),
            // Half of what the listener takes: whatever one identity does, others get in.
            peers: BoundByIdentity::new(config.limits.connections.div_ceil(2)),
            svid: Arc::new(ArcSwapOption::empty()),
            caller: OnceLock::new(),
            served: OnceLock::new(),
            stalled: Arc::default(),
            metrics,
            spans: sink,
            telemetry,
            tasks,
            connections: Tasks::on(data.handle().clone()),
            inbound_drain: drains.inbound.listen(),
            outbound_drain: drains.outbound.listen(),
            config,
        });
        let status = Arc::new(Status::default());
        Ok(Self { data, control, shared, status, listeners, wanted, spans, drains, state })
    }

    /// Takes SIGTERM, SIGINT and SIGHUP over, from now on.
    ///
    /// # Errors
    /// When the process may not install signal handlers.
    pub fn listen_for_signals(&self) -> std::io::Result<Shutdown> {
        self.control.block_on(async { Shutdown::listen() })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &OwnAddresses {
        &self.shared.own
    }

    /// The workload's id.
    pub fn workload(&self) -> &str {
        &self.shared.config.workload
    }

    /// Joins and serves until `shutdown` resolves or the admin port asks, then drains.
    ///
    /// # Errors
    /// The registry refuses this sidecar, or the system a thread.
    pub fn run(self, shutdown: impl Future<Output = ()> + Send + 'static) -> Result<(), Error> {
        let Self { data, control, shared, status, listeners, wanted, spans, drains, state } = self;
        let (joined, identity) = oneshot::channel();
        let (finished, ended) = oneshot::channel();
        // A channel belongs to the runtime it is made in.
        let link =
            control.block_on(async { Link::new(&shared.config.registry, Trust::Svid(shared.svid.clone())) });
        let link =
            link.map_err(|source| Error::Registry { address: shared.config.registry.clone(), source })?;
        let OnDisk { directory, identity: saved, snapshot } = state;
        let keeper = directory.map(|at| Keeper::new(at, shared.metrics.clone(), status.clone()));
        let controller = Controller {
            shared: shared.clone(),
            status,
            link: Arc::new(link),
            drains,
            keeper: keeper.map(Arc::new),
        };
        let inputs = Inputs { admin: listeners.admin, wanted, spans, joined, saved, snapshot };
        let thread = std::thread::Builder::new().name("control".into()).spawn(move || {
            let result = control.block_on(controller.run(inputs, shutdown));
            // The data plane ends when the control thread has.
            let _gone = finished.send(());
            control.shutdown_timeout(Duration::from_secs(1));
            result
        })?;
        data.block_on(serve(shared, listeners.data, identity, ended));
        data.shutdown_timeout(Duration::from_millis(100));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl OnDisk {
    fn read(path: Option<&Path>) -> Result<Self, DiskError> {
        let Some(path) = path else {
            return Ok(Self { directory: None, identity: Found::Nothing, snapshot: None });
        };
        let directory = StateDir::open(path)?;
        let (identity, snapshot) = (directory.identity()?, directory.snapshot()?);
        Ok(Self { directory: Some(directory), identity, snapshot })
    }
}

async fn open(config: &Config) -> Result<(Listeners, OwnAddresses), Error> {
    let (outbound, inbound) = if config.capture {
        (
            bind_pair(config.outbound, "outbound.listen").await?,
            bind_pair(config.inbound, "inbound.listen").await?,
        )
    } else {
        (vec![listen::bind(config.outbound, "outbound.listen").await?], Vec::new())
    };
    let mesh = if config.mesh.ip().is_unspecified() {
        bind_pair(config.mesh, "mesh.listen").await?
    } else {
        vec![listen::bind(config.mesh, "mesh.listen").await?]
    };
    let admin = listen::bind(config.admin, "admin.listen").await?;
    let mut local_ports = Vec::new();
    for LocalPort { listen, service, port } in &config.local_ports {
        let target = Target::Service { name: service.clone(), port: *port };
        local_ports.push((listen::bind(*listen, "outbound.ports").await?, target));
    }
    let own = OwnAddresses {
        outbound: outbound[0].local_addr()?,
        inbound: inbound.first().map(TcpListener::local_addr).transpose()?,
        mesh: mesh[0].local_addr()?,
        admin: admin.local_addr()?,
        local_ports: local_ports
            .iter()
            .map(|(listener, _)| listener.local_addr())
            .collect::<Result<_, _>>()?,
    };
    // Registered with the control thread's runtime later.
    let admin = admin.into_std()?;
    Ok((Listeners { data: DataListeners { outbound, inbound, mesh, local_ports }, admin }, own))
}

/// The data plane: the outbound side at once, so that early calls get an answer; the mesh side once
/// there is an identity to prove.
async fn serve(
    shared: Arc<Shared>,
    listeners: DataListeners,
    identity: oneshot::Receiver<()>,
    ended: oneshot::Receiver<()>,
) {
    let DataListeners { outbound, inbound, mesh, local_ports } = listeners;
    let tasks = shared.tasks.clone();
    let drain = shared.outbound_drain.clone();
    let stalled = shared.stalled.clone();
    tasks.spawn("stalled responses", async move { stalled.run().await });
    let permits = listener::permits(&shared);
    for listener in outbound {
        let (drain, socket) = (drain.clone(), (listener, permits.clone()));
        tasks.spawn(
            "outbound listener",
            listener::accept(shared.clone(), socket, drain, "outbound connection", outbound::serve),
        );
    }
    for (listener, target) in local_ports {
        let serve = move |shared, stream| outbound::serve_to(shared, stream, target.clone());
        let (drain, socket) = (drain.clone(), (listener, listener::permits(&shared)));
        tasks.spawn(
            "local port",
            listener::accept(shared.clone(), socket, drain, "local port connection", serve),
        );
    }
    let spawner = tasks.clone();
    tasks.spawn("listeners of peers", async move {
        if identity.await.is_ok() {
            let permits = listener::permits(&shared);
            for listener in inbound {
                let (drain, socket) = (shared.inbound_drain.clone(), (listener, permits.clone()));
                let serve = inbound::plain::serve;
                spawner.spawn(
                    "inbound listener",
                    listener::accept(shared.clone(), socket, drain, "inbound connection", serve),
                );
            }
            let permits = listener::permits(&shared);
            for listener in mesh {
                let (drain, socket) = (shared.inbound_drain.clone(), (listener, permits.clone()));
                spawner.spawn(
                    "mesh listener",
                    listener::accept(shared.clone(), socket, drain, "mesh connection", inbound::serve),
                );
            }
        }
    });
    // An error means that the control thread is gone, which ends us as well.
    let _gone = ended.await;
}

/// What the control thread owns.
struct Controller {
    shared: Arc<Shared>,
    status: Arc<Status>,
    link: Arc<Link>,
    drains: Drains,
    /// Keeps state on disk, if any is kept.
    keeper: Option<Arc<Keeper>>,
}

/// What the control thread takes over.
struct Inputs {
    admin: std::net::TcpListener,
    wanted: mpsc::Receiver<ServiceName>,
    spans: mpsc::Receiver<FinishedSpan>,
    joined: oneshot::Sender<()>,
    saved: Found<SavedIdentity>,
    snapshot: Option<SavedSnapshot>,
}

impl Controller {
    async fn run(self, inputs: Inputs, shutdown: impl Future<Output = ()>) -> Result<(), Error> {
        let Inputs { admin, wanted, spans, joined, saved, snapshot } = inputs;
        let tasks = Tasks::current();
        let (ask, mut asked) = mpsc::channel(1);
        let health = Arc::new(Health::new(self.shared.config.services.len()));
        let admin_port = Admin {
            shared: self.shared.clone(),
            status: self.status.clone(),
            health: health.clone(),
            drain: ask,
        };
        tasks.spawn("admin", admin_port.serve(TcpListener::from_std(admin)?, tasks.clone()));
        let shutdown = async {
            tokio::select! {
                () = shutdown => {}
                Some(()) = asked.recv() => {}
            }
        };
        tokio::pin!(shutdown);
        // What is on disk is in force before anybody is let in.
        let (token, snapshot) = tokio::select! {
            result = self.join(saved, snapshot) => result?,
            () = &mut shutdown => return Ok(()),
        };
        let keeper = self.keeper.clone();
        let mut watch =
            Watch::new(self.shared.clone(), self.status.clone(), self.link.clone(), wanted, keeper.clone());
        watch.restore(snapshot);
        // The mesh listener waits for this; if it is gone, so are we.
        let _gone = joined.send(());
        let registrar = Arc::new(Registrar::new(
            self.shared.clone(),
            self.status.clone(),
            self.link.clone(),
            health.clone(),
        ));
        let config = &self.shared.config;
        let how = health::How::new(&config.health, self.shared.metrics.clone(), tasks.clone());
        health::start(&health, &config.services, &how);
        tasks.spawn("watch", watch.run());
        if let Some(keeper) = keeper.clone() {
            tasks.spawn("state on disk", async move { keeper.run().await });
        }
        let renewal = Renewal {
            shared: self.shared.clone(),
            link: self.link.clone(),
            status: self.status.clone(),
            keeper,
            token,
        };
        tasks.spawn("certificates", certs::renew_forever(renewal));
        let registering = registrar.clone();
        tasks.spawn("registration", async move { registering.run().await });
        let finish = DrainTrigger::new();
        let exporting = export(self.shared.clone(), self.link.clone(), spans, finish.listen());
        let exporting = tasks.spawn_joinable("spans", exporting);
        shutdown.await;
        self.drain(&registrar).await;
        if let Some(keeper) = &self.keeper {
            keeper.finish().await;
        }
        // The last spans, if the collector takes them at once.
        finish.start();
        let _late = tokio::time::timeout(LAST_SPANS, exporting).await;
        Ok(())
    }

    /// Gets the first certificate, from disk or by joining, and says who we are from then on. Returns
    /// the id of the token it began with, and the snapshot that goes with it.
    async fn join(
        &self,
        saved: Found<SavedIdentity>,
        snapshot: Option<SavedSnapshot>,
    ) -> Result<(String, Option<SavedSnapshot>), Error> {
        let said = std::cell::Cell::new(false);
        let before = match &saved {
            Found::Good(saved) => saved.token.clone(),
            Found::Nothing | Found::Damaged(_) => String::new(),
        };
        let directory = self.keeper.as_ref().map(|keeper| keeper.directory());
        let first = first::identity(&self.shared, directory, saved, snapshot, |why| {
            // Once in the log, and in `/ready` for as long as it lasts.
            if !said.replace(true) {
                tracing::warn!("{why}; trying again");
            }
            self.status.trouble(why);
        })
        .await?;
        let First { svid, joined, snapshot } = first;
        if let (Some(keeper), Some(token)) = (&self.keeper, &joined) {
            keeper.identity(&svid, token).await;
        }
        let registry = self.shared.config.registry.clone();
        let identity = |source| JoinError::Identity { registry: registry.clone(), source };
        let caller = caller(&self.shared.config, svid.id.clone()).ok_or_else(|| JoinError::Refused {
            registry: registry.clone(),
            message: format!("{} is not the identity of a workload", svid.id),
        })?;
        let served = ServedPorts::new(
            &self.shared.config,
            &caller.namespace,
            &self.shared.metrics,
            &self.shared.tasks,
        );
        let served = served
            .map_err(|error| JoinError::Refused { registry: registry.clone(), message: error.to_string() })?;
        certs::install(&self.shared, svid).map_err(identity)?;
        // Set once: this is the only caller, and it runs once.
        let _first = (self.shared.caller.set(caller), self.shared.served.set(served));
        self.status.certified();
        Ok((joined.unwrap_or(before), snapshot))
    }

    /// Leaves in order: nobody calls us any more, then what is under way ends, then the application's
    /// own calls, all within the deadline.
    async fn drain(&self, registrar: &Registrar) {
        let config = &self.shared.config.drain;
        tracing::info!("draining");
        self.status.draining();
        registrar.deregister(config.acknowledge).await;
        self.drains.inbound.start();
        let deadline = Instant::now() + config.deadline;
        let quiet = self.quiet(deadline).await;
        self.drains.outbound.start();
        // Whatever came in after that look is served as well; idle connections end at once.
        let left = deadline.saturating_duration_since(Instant::now()).max(GOODBYE);
        let connections = self.shared.connections.join(left).await;
        if quiet && connections == 0 {
            tracing::info!("drained");
        } else {
            tracing::warn!(connections, "the deadline ended requests in flight");
        }
    }

    /// Waits until no request is in flight and none has come for a while: an application that is
    /// still at work calls again. `false`: the deadline came first.
    async fn quiet(&self, deadline: Instant) -> bool {
        let activity = &self.shared.metrics.activity;
        let (mut seen, mut since) = (activity.idle_after(), Instant::now());
        loop {
            let now = Instant::now();
            let idle = activity.idle_after();
            if idle.is_none() || idle != seen {
                (seen, since) = (idle, now);
            }
            if idle.is_some() && now.saturating_duration_since(since) >= QUIET {
                return true;
            }
            if now >= deadline {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(10).min(deadline.saturating_duration_since(now))).await;
        }
    }
}

/// Time without any request after which an application counts as done.
const QUIET: Duration = Duration::from_millis(500);
/// Time for the last GOAWAY and `Connection: close` to be written, even past the deadline.
const GOODBYE: Duration = Duration::from_millis(100);
/// Time for the last spans to leave.
const LAST_SPANS: Duration = Duration::from_secs(1);

fn caller(config: &Config, id: SpiffeId) -> Option<Caller> {
    let namespace = id.namespace()?.to_owned();
    let name = config.services.first().map_or(id.account()?, |served| served.name.as_str());
    let source = ServiceName::new(&namespace, name).ok()?;
    let source_header = HeaderValue::try_from(source.as_str()).ok()?;
    Some(Caller { namespace, source, source_header, id })
}

/// Exports spans to the collector of the environment, else to the registry.
async fn export(shared: Arc<Shared>, link: Arc<Link>, spans: mpsc::Receiver<FinishedSpan>, finish: Drain) {
    let telemetry = &shared.telemetry;
    let target = match &telemetry.collector {
        None => spans::Target::Registry(link),
        Some(address) => match channel::plaintext(address) {
            Ok(channel) => spans::Target::Collector(channel),
            Err(error) => {
                tracing::error!(
                    address,
                    error = chain(&error),
                    "the collector's address is not host:port; no traces are exported"
                );
                return;
            }
        },
    };
    let Some(caller) = shared.caller.get() else { return };
    let attributes = vec![
        KeyValue::new("service.namespace", caller.namespace.clone()),
        KeyValue::new("service.instance.id", shared.config.workload.clone()),
    ];
    let service = telemetry.service.clone().unwrap_or_else(|| caller.source.name().to_owned());
    let identity = spans::Identity { service, attributes };
    let exporter =
        spans::Exporter { target, batching: telemetry.batching, metrics: shared.metrics.clone(), finish };
    exporter.run(identity, spans).await;
}
