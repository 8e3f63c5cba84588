//! The processes of the demo's mesh: a registry, replicas of the order service and a storefront, each
//! application with its own sidecar. Starting, killing, restarting and stopping them.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_api::v1::{self, ApplyRequest, CreateTokenRequest};
use outrigger_common::drain::Drain;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::child::{ORDER_SERVICE, RELAY};
use super::http::get_json;
use super::is_ready;
use super::processes::Process;
use super::relay::Illness;
use crate::admin::Admin;
use crate::failure::Failure;
use crate::output::Progress;

/// Namespace of everything in the demo.
pub(super) const NAMESPACE: &str = "shop";
/// Label of the order service; callers say `orders.shop`.
pub(super) const ORDERS: &str = "orders";
/// Label and account of the storefront.
pub(super) const STOREFRONT: &str = "storefront";
/// The port callers name.
const ORDERS_PORT: u16 = 80;
/// Longest wait for the whole mesh to see itself.
const CONVERGENCE_LIMIT: Duration = Duration::from_secs(20);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(10);
/// How long the processes may take to end: sidecars and applications first, then the registry.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
const REGISTRY_LIMIT: Duration = Duration::from_millis(1500);
/// A port given back may be taken for a moment by somebody's outgoing connection.
const RESTARTS: usize = 10;
const RESTART_PAUSE: Duration = Duration::from_millis(100);

/// Where a registry listens; its readiness line.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct RegistryAddresses {
    pub(super) grpc: SocketAddr,
    pub(super) http: SocketAddr,
}

/// Where a sidecar listens; its readiness line.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct SidecarAddresses {
    pub(super) outbound: SocketAddr,
    pub(super) mesh: SocketAddr,
    pub(super) admin: SocketAddr,
}

#[derive(Debug, Deserialize)]
struct AppAddress {
    listen: SocketAddr,
}

/// An application and its sidecar.
#[derive(Debug)]
pub(super) struct Replica {
    /// Id of the workload, such as `orders-1`.
    pub(super) id: String,
    pub(super) at: SidecarAddresses,
    /// Where the application listens.
    pub(super) app_at: SocketAddr,
    app: Process,
    sidecar: Process,
    /// Between the two, where there is chaos.
    relay: Option<Relay>,
}

#[derive(Debug)]
struct Relay {
    at: SocketAddr,
    process: Process,
}

/// What chaos needs of a mesh from the beginning.
#[derive(Debug)]
pub(super) struct Chaos {
    /// In force before the first sidecar comes.
    pub(super) policy: v1::Resource,
    /// Of the relays' chances.
    pub(super) seed: u64,
}

/// A running mesh. Dropping it kills every process.
#[derive(Debug)]
pub(super) struct Mesh {
    pub(super) orders: Vec<Replica>,
    pub(super) storefront: Replica,
    pub(super) registry_at: RegistryAddresses,
    registry: Process,
    directory: PathBuf,
    admin: Admin,
}

/// What `--keep --output json` says first.
#[derive(Debug, Serialize)]
pub(super) struct Addresses {
    registry: Value,
    services: Vec<Value>,
    /// For `outrigger get --registry … --identity …`.
    identity: PathBuf,
    /// Logs, configuration and data of every process.
    directory: PathBuf,
}

const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

impl Mesh {
    /// Starts everything and waits until the storefront's sidecar knows every replica.
    pub(super) async fn start(
        directory: &Path,
        replicas: u32,
        chaos: Option<Chaos>,
        progress: &Progress,
    ) -> Result<Self, Failure> {
        progress.show("starting the registry and the order service ...");
        let mut registry = start_registry(directory, ANY, ANY)?;
        // The applications know nothing of the mesh and need not wait for it.
        let ids: Vec<_> = (1..=replicas).map(|number| format!("{ORDERS}-{number}")).collect();
        let apps =
            ids.iter().map(|id| start_orders_app(directory, id, ANY)).collect::<Result<Vec<_>, _>>()?;
        let registry_at: RegistryAddresses = registry.ready().await?;
        let admin = Admin::new(&registry_at.grpc.to_string(), &identity(directory))?;

        if let Some(chaos) = &chaos {
            apply(&admin, &chaos.policy).await?;
        }

        progress.show("starting the sidecars ...");
        let starter = Starter { directory, registry: registry_at.grpc, admin: &admin };
        let id = format!("{STOREFRONT}-1");
        let mut caller = starter.sidecar(&id, None, None).await?;
        let mut started = Vec::new();
        for (id, mut app) in ids.into_iter().zip(apps) {
            let app_at = app.ready::<AppAddress>().await?.listen;
            let relay = match &chaos {
                Some(chaos) => Some(start_relay(directory, &id, app_at, chaos.seed).await?),
                None => None,
            };
            let serves = relay.as_ref().map_or(app_at, |relay| relay.at);
            let sidecar = starter.sidecar(&id, Some(serves), None).await?;
            started.push((id, app, app_at, sidecar, relay));
        }
        let at: SidecarAddresses = caller.ready().await?;
        let mut app = start_storefront_app(directory, &id, at.outbound)?;
        let mut orders = Vec::new();
        for (id, app, app_at, mut sidecar, relay) in started {
            let at = sidecar.ready().await?;
            orders.push(Replica { id, at, app_at, app, sidecar, relay });
        }
        let app_at = app.ready::<AppAddress>().await?.listen;
        let storefront = Replica { id, at, app_at, app, sidecar: caller, relay: None };

        let mut mesh =
            Self { orders, storefront, registry_at, registry, directory: directory.to_owned(), admin };
        progress.show("waiting until the sidecars know each other ...");
        mesh.converge().await?;
        Ok(mesh)
    }

    /// Waits until every process is ready and the storefront's sidecar holds every replica.
    async fn converge(&mut self) -> Result<(), Failure> {
        let deadline = Instant::now() + CONVERGENCE_LIMIT;
        loop {
            let Some(waiting_for) = self.not_ready().await else { return Ok(()) };
            if let Some(failure) = self.death() {
                return Err(failure);
            }
            if Instant::now() >= deadline {
                let limit = CONVERGENCE_LIMIT.as_secs();
                return Err(Failure::job(format!("after {limit} s the mesh still waits for {waiting_for}")));
            }
            sleep(POLL).await;
        }
    }

    /// What is not ready yet.
    async fn not_ready(&self) -> Option<String> {
        for replica in self.replicas() {
            if !is_ready(replica.at.admin).await {
                return Some(format!("the sidecar of {}", replica.id));
            }
        }
        let known: Value = get_json(self.storefront.at.admin, "/endpoints").await.unwrap_or_default();
        let missing = self.orders.iter().find(|replica| !holds(&known, &replica.id));
        missing.map(|replica| format!("the storefront to know {}", replica.id))
    }

    fn replicas(&self) -> impl Iterator<Item = &Replica> {
        self.orders.iter().chain([&self.storefront])
    }

    fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let replicas = self.orders.iter_mut().chain([&mut self.storefront]);
        let processes = replicas.flat_map(|replica| {
            let relay = replica.relay.as_mut().map(|relay| &mut relay.process);
            [&mut replica.app, &mut replica.sidecar].into_iter().chain(relay)
        });
        processes.chain([&mut self.registry])
    }

    /// A process that ended though nobody asked it to.
    pub(super) fn death(&mut self) -> Option<Failure> {
        self.processes().find_map(|process| {
            let status = process.ended()?;
            Some(process.failed(&format!("ended unasked ({status})")))
        })
    }

    /// Kills a replica, application and sidecar, without warning.
    pub(super) async fn kill_replica(&mut self, index: usize) {
        let replica = &mut self.orders[index];
        replica.sidecar.kill().await;
        replica.app.kill().await;
    }

    /// Starts a killed replica again, on the same ports.
    pub(super) async fn restart_replica(&mut self, index: usize) -> Result<(), Failure> {
        let starter =
            Starter { directory: &self.directory, registry: self.registry_at.grpc, admin: &self.admin };
        let replica = &mut self.orders[index];
        let mut result = Ok(());
        for _ in 0..RESTARTS {
            result = starter.restart(replica).await;
            if result.is_ok() {
                break;
            }
            sleep(RESTART_PAUSE).await;
        }
        result
    }

    /// Makes a replica's application look sick, or well again.
    pub(super) async fn make(&mut self, index: usize, illness: Illness) -> Result<(), Failure> {
        self.relay(index)?.process.order(illness.byte()).await
    }

    /// Makes a replica take requests and answer none, by stopping what stands before its application:
    /// the application itself might stop while it holds the lock of the database all of them share.
    pub(super) fn freeze(&mut self, index: usize) -> Result<(), Failure> {
        self.relay(index).map(|relay| relay.process.freeze())
    }

    /// Ends [`Mesh::freeze`].
    pub(super) fn thaw(&mut self, index: usize) -> Result<(), Failure> {
        self.relay(index).map(|relay| relay.process.thaw())
    }

    fn relay(&mut self, index: usize) -> Result<&mut Relay, Failure> {
        let missing =
            || Failure::job("nothing stands before this replica: the mesh was started without chaos");
        self.orders[index].relay.as_mut().ok_or_else(missing)
    }

    /// Writes a resource to the registry, as its administrator.
    pub(super) async fn apply(&self, resource: &v1::Resource) -> Result<(), Failure> {
        let mut result = Ok(());
        for _ in 0..RESTARTS {
            result = apply(&self.admin, resource).await;
            if result.is_ok() {
                break;
            }
            sleep(RESTART_PAUSE).await;
        }
        result
    }

    /// Kills the registry without warning.
    pub(super) async fn kill_registry(&mut self) {
        self.registry.kill().await;
    }

    /// Starts the killed registry again, on the same ports and data.
    pub(super) async fn restart_registry(&mut self) -> Result<(), Failure> {
        let mut result = Ok(());
        for _ in 0..RESTARTS {
            self.registry = start_registry(&self.directory, self.registry_at.grpc, self.registry_at.http)?;
            result = self.registry.ready::<RegistryAddresses>().await.map(|_| ());
            if result.is_ok() {
                break;
            }
            sleep(RESTART_PAUSE).await;
        }
        result
    }

    pub(super) fn addresses(&self) -> Addresses {
        let replica = |replica: &Replica| {
            let SidecarAddresses { outbound, mesh, admin } = replica.at;
            json!({"id": replica.id, "app": replica.app_at, "outbound": outbound, "mesh": mesh, "admin": admin})
        };
        let service = |name: &str, replicas: Vec<Value>| json!({"name": name, "namespace": NAMESPACE, "replicas": replicas});
        Addresses {
            registry: json!({"grpc": self.registry_at.grpc, "http": self.registry_at.http}),
            services: vec![
                service(ORDERS, self.orders.iter().map(replica).collect()),
                service(STOREFRONT, vec![replica(&self.storefront)]),
            ],
            identity: identity(&self.directory),
            directory: self.directory.clone(),
        }
    }

    /// Where everything is, for people.
    pub(super) fn words(&self) -> String {
        let heading = ["", "APPLICATION", "OUTBOUND", "MESH", "ADMIN"].map(str::to_owned).to_vec();
        let row = |replica: &Replica| {
            let SidecarAddresses { outbound, mesh, admin } = replica.at;
            let addresses = [replica.app_at, outbound, mesh, admin].map(|address| address.to_string());
            [vec![format!("  {}", replica.id)], addresses.to_vec()].concat()
        };
        let rows: Vec<_> = std::iter::once(heading).chain(self.replicas().map(row)).collect();
        let (grpc, identity) = (self.registry_at.grpc, identity(&self.directory));
        format!(
            "{}\nTry:\n  curl -H 'Host: {ORDERS}.{NAMESPACE}' http://{}/v1/orders\n  curl http://{}/metrics\n  outrigger get workloads --registry {grpc} --identity {}\nCtrl-C ends it.\n",
            crate::output::columns(&rows),
            self.storefront.at.outbound,
            self.storefront.at.admin,
            identity.display()
        )
    }

    /// Ends everything in order: callers, replicas, registry; each on its own account if it can within
    /// the limit, killed otherwise or at once when `hurry` starts.
    pub(super) async fn stop(&mut self, hurry: &Drain) {
        tokio::select! {
            () = self.finish() => {}
            () = hurry.signalled() => {}
        }
        for process in self.processes() {
            process.kill().await;
        }
    }

    async fn finish(&mut self) {
        let mut serving: Vec<_> = self
            .orders
            .iter_mut()
            .chain([&mut self.storefront])
            .flat_map(|replica| [&mut replica.app, &mut replica.sidecar])
            .collect();
        serving.iter().for_each(|process| process.terminate());
        let deadline = Instant::now() + DRAIN_LIMIT;
        for process in &mut serving {
            process.finish(deadline - Instant::now()).await;
        }
        self.registry.terminate();
        self.registry.finish(REGISTRY_LIMIT).await;
    }
}

/// What a sidecar needs to be started.
struct Starter<'a> {
    directory: &'a Path,
    registry: SocketAddr,
    admin: &'a Admin,
}

impl Starter<'_> {
    /// Starts a sidecar with a token of its own: for a replica of the order service when it has an
    /// application to serve, for the storefront otherwise.
    async fn sidecar(
        &self,
        id: &str,
        serves: Option<SocketAddr>,
        at: Option<SidecarAddresses>,
    ) -> Result<Process, Failure> {
        let account = if serves.is_some() { ORDERS } else { STOREFRONT };
        let token = self.admin.create_token(CreateTokenRequest {
            namespace: NAMESPACE.to_owned(),
            account: account.to_owned(),
            services: serves.iter().map(|_| ORDERS.to_owned()).collect(),
            ttl_seconds: 0,
        });
        let token_file = self.directory.join(format!("{id}.token"));
        write_private(&token_file, &token.await?.token)?;
        let at = at.unwrap_or(SidecarAddresses { outbound: ANY, mesh: ANY, admin: ANY });
        let services = serves.map(|target| json!({"name": ORDERS, "port": ORDERS_PORT, "target": target}));
        let upstreams = if serves.is_some() { vec![] } else { vec![format!("{ORDERS}.{NAMESPACE}")] };
        let config = json!({
            "registry": {"address": self.registry.to_string()},
            "join": {"token_file": token_file},
            "workload": {"id": id, "address": "127.0.0.1"},
            "services": services.into_iter().collect::<Vec<_>>(),
            "upstreams": upstreams,
            "outbound": {"listen": at.outbound},
            "mesh": {"listen": at.mesh},
            "admin": {"listen": at.admin},
            "drain": {"acknowledge": "1s", "deadline": "2s"},
        });
        start(self.directory, &format!("{id}-proxy"), &["proxy"], &config)
    }

    /// Starts both processes of a replica again, where they were.
    async fn restart(&self, replica: &mut Replica) -> Result<(), Failure> {
        replica.app = start_orders_app(self.directory, &replica.id, replica.app_at)?;
        replica.app.ready::<AppAddress>().await?;
        let serves = replica.relay.as_ref().map_or(replica.app_at, |relay| relay.at);
        replica.sidecar = self.sidecar(&replica.id, Some(serves), Some(replica.at)).await?;
        replica.sidecar.ready::<SidecarAddresses>().await?;
        Ok(())
    }
}

fn identity(directory: &Path) -> PathBuf {
    directory.join("registry").join("admin")
}

fn start_registry(directory: &Path, grpc: SocketAddr, http: SocketAddr) -> Result<Process, Failure> {
    let config = json!({
        "data_dir": directory.join("registry"),
        "grpc": {"listen": grpc},
        "http": {"listen": http},
    });
    start(directory, "registry", &["registry"], &config)
}

fn start_orders_app(directory: &Path, id: &str, listen: SocketAddr) -> Result<Process, Failure> {
    let config = json!({
        "drain_timeout": "2s",
        "server": {"listen": listen, "database": directory.join("orders.db")},
    });
    start(directory, &format!("{id}-app"), &[ORDER_SERVICE, "server"], &config)
}

fn start_storefront_app(directory: &Path, id: &str, proxy: SocketAddr) -> Result<Process, Failure> {
    let config = json!({
        "drain_timeout": "2s",
        "storefront": {
            "listen": ANY,
            "orders": format!("http://{ORDERS}.{NAMESPACE}"),
            "proxy": format!("http://{proxy}"),
        },
    });
    start(directory, &format!("{id}-app"), &[ORDER_SERVICE, "storefront"], &config)
}

async fn start_relay(directory: &Path, id: &str, app: SocketAddr, seed: u64) -> Result<Relay, Failure> {
    let args = [RELAY, &app.to_string(), &seed.to_string()];
    let mut process = Process::start(&format!("{id}-relay"), &args, directory)?;
    let at = process.ready::<AppAddress>().await?.listen;
    Ok(Relay { at, process })
}

async fn apply(admin: &Admin, resource: &v1::Resource) -> Result<(), Failure> {
    let request = ApplyRequest { resources: vec![resource.clone()], delete: false, dry_run: false };
    admin.apply(request).await.map(|_| ())
}

/// Writes a configuration (JSON is YAML) and starts a child with it.
fn start(directory: &Path, name: &str, command: &[&str], config: &Value) -> Result<Process, Failure> {
    let file = directory.join(format!("{name}.yaml"));
    write_private(&file, &format!("{config:#}\n"))?;
    let file = file.to_string_lossy();
    let args = [command, &["--config", &file, "--output", "json"]].concat();
    Process::start(name, &args, directory)
}

fn write_private(path: &Path, text: &str) -> Result<(), Failure> {
    let write = |path: &Path| -> io::Result<()> {
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)?
            .write_all(text.as_bytes())
    };
    write(path).map_err(|error| Failure::job(format!("cannot write {}: {error}", path.display())))
}

/// Whether a piece of JSON mentions a workload.
fn holds(value: &Value, id: &str) -> bool {
    match value {
        Value::String(text) => text == id,
        Value::Array(values) => values.iter().any(|value| holds(value, id)),
        Value::Object(map) => map.iter().any(|(key, value)| key == id || holds(value, id)),
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
    }
}
