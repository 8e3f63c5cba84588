//! A registry and sidecars, each a process of its own.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use outrigger_api::document::parse_yaml;
use outrigger_api::resource::Resource;
use outrigger_api::token::Token;
use outrigger_api::v1;
use outrigger_api::v1::admin_client::AdminClient;
use outrigger_api::v1::join_client::JoinClient;
use outrigger_common::channel::{self, Trust};
use outrigger_common::mtls::{KeyRequest, Svid};
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tonic::transport::Channel;

use crate::app::App;
use crate::client::{Client, raw};
use crate::metrics::Metrics;
use crate::process::{self, Process};
use crate::wait::{soon, until};

/// Namespace of everything, unless a test says otherwise.
pub const NAMESPACE: &str = "shop";
const ANY: &str = "127.0.0.1:0";
/// Lines of each log shown when a test fails.
const TAIL: usize = 40;

/// A registry, and the directory in which everything of one test lives.
pub struct Mesh {
    /// gRPC address of the registry.
    pub grpc: SocketAddr,
    /// HTTP address of the registry.
    pub http: SocketAddr,
    /// The registry's process.
    pub registry: Process,
    config: PathBuf,
    prefix: Vec<String>,
    // Last: children are gone before their directory.
    directory: Logs,
}

/// A directory that shows the logs in it when a test fails.
struct Logs(tempfile::TempDir);

impl Drop for Logs {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for (name, log) in logs(self.0.path()) {
                let lines: Vec<_> = log.lines().collect();
                println!("--- the end of {name} ({} lines)", lines.len());
                println!("{}", lines[lines.len().saturating_sub(TAIL)..].join("\n"));
            }
        }
    }
}

fn logs(directory: &Path) -> Vec<(String, String)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut logs: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.path().extension().is_some_and(|extension| extension == "log"))
        .filter_map(|entry| {
            let text = std::fs::read(entry.path()).ok()?;
            Some((
                entry.file_name().to_string_lossy().into_owned(),
                String::from_utf8_lossy(&text).into_owned(),
            ))
        })
        .collect();
    logs.sort();
    logs
}

impl Mesh {
    /// A registry with the default configuration on free ports.
    pub async fn start() -> Self {
        Self::with(&json!({}), &[]).await
    }

    /// A registry with more configuration and environment.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn with(extra: &Value, environment: &[(String, String)]) -> Self {
        Self::launch(extra, environment, &[]).await
    }

    /// The same run by a command, such as `ip netns exec NAME`.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn within(prefix: &[String], extra: &Value) -> Self {
        Self::launch(extra, &[], prefix).await
    }

    async fn launch(extra: &Value, environment: &[(String, String)], prefix: &[String]) -> Self {
        let directory = Logs(tempfile::tempdir().expect("a temporary directory"));
        let path = directory.0.path();
        let mut settings = json!({
            "data_dir": path.join("registry"),
            "grpc": {"listen": ANY},
            "http": {"listen": ANY},
        });
        merge(&mut settings, extra);
        let config = write(path, "registry.yaml", &settings);
        let mut registry = start_registry(&config, environment, (prefix, path));
        let at = registry.announced().await;
        let (grpc, http) = (address(&at, "grpc"), address(&at, "http"));
        // Started again, it listens on the same ports.
        merge(&mut settings, &json!({"grpc": {"listen": grpc}, "http": {"listen": http}}));
        write(path, "registry.yaml", &settings);
        Self { grpc, http, registry, config, prefix: prefix.to_vec(), directory }
    }

    /// Where everything of the test lies.
    pub fn directory(&self) -> &Path {
        self.directory.0.path()
    }

    /// The registry's data directory.
    pub fn data(&self) -> PathBuf {
        self.directory().join("registry")
    }

    /// Starts the registry again, on the same ports and data.
    pub async fn restart_registry(&mut self) {
        self.registry.kill();
        self.registry = start_registry(&self.config, &[], (&self.prefix, self.directory.0.path()));
        self.registry.announced().await;
    }

    /// All logs there are, by file name.
    pub fn logs(&self) -> Vec<(String, String)> {
        logs(self.directory())
    }

    /// A configured sidecar named `id`; not started.
    pub fn sidecar(&self, id: &str) -> SidecarBuilder<'_> {
        SidecarBuilder {
            mesh: self,
            id: id.to_owned(),
            namespace: NAMESPACE.to_owned(),
            account: None,
            services: Vec::new(),
            upstreams: Vec::new(),
            extra: json!({}),
            token: None,
            environment: Vec::new(),
            prefix: Vec::new(),
        }
    }

    /// A started sidecar in front of an application that serves port 80 of `service`; its account is
    /// the service's name.
    pub async fn replica(&self, id: &str, service: &str, app: &App) -> Sidecar {
        self.sidecar(id).serves(service, app).start().await
    }

    /// A started sidecar for a client that calls these services.
    pub async fn caller(&self, id: &str, upstreams: &[&str]) -> Sidecar {
        self.sidecar(id).calls(upstreams).start().await
    }

    /// A started order service (`outrigger order-service server`) with a database of its own, and where
    /// it listens.
    pub async fn order_service(&self, id: &str) -> (Process, SocketAddr) {
        let settings =
            json!({"server": {"listen": ANY, "database": self.directory().join(format!("{id}.db"))}});
        let config = write(self.directory(), &format!("{id}.yaml"), &settings);
        let args = ["order-service", "server", "--config", &config.to_string_lossy(), "--output", "json"];
        let mut process = Process::start(id, &args, &[], self.directory());
        let at = process.announced().await;
        (process, address(&at, "listen"))
    }

    /// The admin's identity, as it is now.
    ///
    /// # Panics
    /// When the registry has not written it.
    pub fn admin_identity(&self) -> Svid {
        Svid::read_dir(&self.data().join("admin")).expect("the registry writes the admin's identity")
    }

    /// The registry's admin interface.
    pub fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel(self.admin_identity()))
    }

    /// A channel to the registry that proves an identity.
    ///
    /// # Panics
    /// Never: an address is valid.
    pub fn channel(&self, svid: Svid) -> Channel {
        let cell = Arc::new(ArcSwapOption::from_pointee(svid));
        channel::registry(&self.grpc.to_string(), Trust::Svid(cell)).expect("an address is part of a URI")
    }

    /// A token good for an hour.
    ///
    /// # Panics
    /// When the registry refuses.
    pub async fn token(&self, namespace: &str, account: &str, services: &[&str]) -> Token {
        self.token_for(namespace, account, services, 3600).await
    }

    /// A token with a time to live in seconds; 0: for one use.
    ///
    /// # Panics
    /// When the registry refuses.
    pub async fn token_for(
        &self,
        namespace: &str,
        account: &str,
        services: &[&str],
        ttl_seconds: u64,
    ) -> Token {
        let request = v1::CreateTokenRequest {
            namespace: namespace.to_owned(),
            account: account.to_owned(),
            services: services.iter().map(|service| (*service).to_owned()).collect(),
            ttl_seconds,
        };
        let answer = self.admin().create_token(request).await.expect("the registry makes tokens");
        Token::parse(&answer.into_inner().token).expect("the registry makes good tokens")
    }

    /// A workload's identity, as a sidecar gets it.
    ///
    /// # Panics
    /// When the registry refuses.
    pub async fn identity(&self, namespace: &str, account: &str, services: &[&str]) -> Svid {
        let token = self.token(namespace, account, services).await;
        let key = KeyRequest::generate().expect("a key");
        let channel = channel::registry(&self.grpc.to_string(), Trust::Pin(token.pin.as_str().into()));
        let mut client = JoinClient::new(channel.expect("an address is part of a URI"));
        let request = v1::JoinRequest { token_id: token.id, secret: token.secret, csr: key.csr.to_vec() };
        let answer = soon("join", client.join(request)).await.expect("a good token joins").into_inner();
        let der = |ders: Vec<Vec<u8>>| ders.into_iter().map(CertificateDer::from).collect();
        key.complete(der(answer.chain), der(answer.bundle)).expect("the answer is an identity")
    }

    /// Applies resources as `outrigger apply` does, and returns the revision from which on all of them
    /// hold: see [`Sidecar::caught_up`].
    ///
    /// # Panics
    /// When they are malformed or the registry refuses.
    pub async fn apply(&self, yaml: &str) -> u64 {
        self.try_apply(yaml).await.unwrap_or_else(|error| panic!("cannot apply: {error}\n{yaml}"))
    }

    /// The same, with what is said against them.
    ///
    /// # Errors
    /// The first error of reading, or the registry's, as text.
    pub async fn try_apply(&self, yaml: &str) -> Result<u64, String> {
        let resources = rows(yaml)?;
        let mut admin = self.admin();
        let request = v1::ApplyRequest { resources: resources.clone(), ..Default::default() };
        admin.apply(request).await.map_err(|status| status.message().to_owned())?;
        let mut revision = 0;
        for row in resources {
            let request = v1::GetRequest { kind: row.kind, namespace: row.namespace, name: row.name };
            let found = admin.get(request).await.map_err(|status| status.to_string())?.into_inner();
            revision = found.resources.into_iter().map(|row| row.revision).fold(revision, u64::max);
        }
        Ok(revision)
    }

    /// Deletes the resources that the text names; what they say does not matter.
    ///
    /// # Panics
    /// When they are malformed or the registry refuses.
    pub async fn delete(&self, yaml: &str) {
        let resources = rows(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
        let request = v1::ApplyRequest { resources, delete: true, ..Default::default() };
        self.admin().apply(request).await.expect("the registry deletes what there is");
    }

    /// Runs a command of `outrigger` as the admin; returns whether it succeeded, and its output.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn command(&self, args: &[&str]) -> (bool, String) {
        let identity = self.data().join("admin");
        let output = process::command(args)
            .args(["--registry", &self.grpc.to_string(), "--identity"])
            .arg(identity)
            // A command ends by itself; it need not watch over its standard input.
            .env_remove(process::PARENT_VARIABLE)
            .output()
            .expect("the binary runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// A page of the registry.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.http, path).await
    }

    /// The registry's metrics.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").await.1)
    }
}

fn rows(yaml: &str) -> Result<Vec<v1::Resource>, String> {
    let resources = parse_yaml(Path::new("test.yaml"), yaml).map_err(|error| error.to_string())?;
    let row = |resource: Resource| v1::Resource {
        kind: resource.kind().to_owned(),
        namespace: resource.namespace().to_owned(),
        name: resource.name().to_owned(),
        json: resource.to_json(),
        revision: 0,
    };
    Ok(resources.into_iter().map(row).collect())
}

/// Runs a command that is done when it ends.
///
/// # Panics
/// When it fails.
pub fn execute(args: &[&str]) {
    // No child of a mesh, which would watch its standard input.
    let output =
        process::command(args).env_remove(process::PARENT_VARIABLE).output().expect("the binary starts");
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn start_registry(
    config: &Path,
    environment: &[(String, String)],
    (prefix, directory): (&[String], &Path),
) -> Process {
    let config = config.to_string_lossy();
    let args = ["registry", "--config", &config, "--output", "json"];
    let mut command = process::command_within(prefix, &args);
    command.envs(environment.iter().map(|(key, value)| (key, value)));
    Process::spawn("registry", command, directory)
}

/// A sidecar's configuration.
pub struct SidecarBuilder<'a> {
    mesh: &'a Mesh,
    id: String,
    namespace: String,
    account: Option<String>,
    services: Vec<Value>,
    upstreams: Vec<String>,
    extra: Value,
    token: Option<String>,
    environment: Vec<(String, String)>,
    prefix: Vec<String>,
}

impl SidecarBuilder<'_> {
    /// Serves port 80 of a service, whatever is spoken there.
    #[must_use]
    pub fn serves(self, service: &str, app: &App) -> Self {
        self.serves_at(service, 80, "auto", app.address)
    }

    /// Serves a port of a service.
    #[must_use]
    pub fn serves_at(mut self, service: &str, port: u16, protocol: &str, target: SocketAddr) -> Self {
        self.services.push(json!({"name": service, "port": port, "protocol": protocol, "target": target}));
        self
    }

    /// Subscribes to services (`name.namespace`) at start.
    #[must_use]
    pub fn calls(mut self, upstreams: &[&str]) -> Self {
        self.upstreams.extend(upstreams.iter().map(|upstream| (*upstream).to_owned()));
        self
    }

    /// Another namespace than [`NAMESPACE`].
    #[must_use]
    pub fn namespace(mut self, namespace: &str) -> Self {
        namespace.clone_into(&mut self.namespace);
        self
    }

    /// Another account than the first service's name, or the id of one that serves nothing.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        self.account = Some(account.to_owned());
        self
    }

    /// More configuration, merged over the rest.
    #[must_use]
    pub fn config(mut self, extra: &Value) -> Self {
        merge(&mut self.extra, extra);
        self
    }

    /// A token of one's own instead of a fitting one.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// An environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.environment.push((key.to_owned(), value.to_owned()));
        self
    }

    /// Runs it by a command, such as `ip netns exec NAME`.
    #[must_use]
    pub fn within(mut self, prefix: &[String]) -> Self {
        self.prefix = prefix.to_vec();
        self
    }

    /// Starts it and waits until it is ready.
    pub async fn start(self) -> Sidecar {
        let sidecar = self.launch().await;
        sidecar.ready().await;
        sidecar
    }

    /// Starts it and waits until its sockets are open.
    pub async fn launch(self) -> Sidecar {
        let served: Vec<_> = self.services.iter().filter_map(|service| service["name"].as_str()).collect();
        let account = self.account.as_deref().or(served.first().copied()).unwrap_or(&self.id);
        let token = match &self.token {
            Some(token) => token.clone(),
            None => self.mesh.token(&self.namespace, account, &served).await.expose(),
        };
        let mut settings = json!({
            "registry": {"address": self.mesh.grpc},
            "join": {"token": token},
            "workload": {"id": self.id, "address": "127.0.0.1"},
            "services": self.services,
            "upstreams": self.upstreams,
            "outbound": {"listen": ANY},
            "mesh": {"listen": ANY},
            "admin": {"listen": ANY},
            "health": {"interval": "200ms"},
        });
        merge(&mut settings, &self.extra);
        let directory = self.mesh.directory().to_owned();
        let how = How { environment: self.environment, prefix: self.prefix, directory };
        Sidecar::launch(&self.id, settings, how).await
    }
}

/// How a process is run.
#[derive(Clone)]
struct How {
    environment: Vec<(String, String)>,
    prefix: Vec<String>,
    directory: PathBuf,
}

/// A sidecar's process.
pub struct Sidecar {
    /// Workload id, and name of the process.
    pub id: String,
    /// Where its application sends calls.
    pub outbound: SocketAddr,
    /// Where other sidecars connect.
    pub mesh: SocketAddr,
    /// Health, metrics, state.
    pub admin: SocketAddr,
    /// Local ports of `outbound.ports`, in their order.
    pub ports: Vec<SocketAddr>,
    /// The process.
    pub process: Process,
    settings: Value,
    how: How,
}

impl Sidecar {
    async fn launch(id: &str, mut settings: Value, how: How) -> Self {
        let config = write(&how.directory, &format!("{id}.yaml"), &settings);
        let args = ["--config", &config.to_string_lossy(), "--output", "json"];
        let mut command = process::sidecar_within(&how.prefix, &args);
        command.envs(how.environment.iter().map(|(key, value)| (key, value)));
        let mut process = Process::spawn(id, command, &how.directory);
        let at = process.announced().await;
        let [outbound, mesh, admin] = ["outbound", "mesh", "admin"].map(|name| address(&at, name));
        let ports = at["ports"].as_array().into_iter().flatten();
        let ports = ports.filter_map(|port| port.as_str()?.parse().ok()).collect();
        // Started again, it listens on the same ports.
        let same =
            json!({"outbound": {"listen": outbound}, "mesh": {"listen": mesh}, "admin": {"listen": admin}});
        merge(&mut settings, &same);
        Self { id: id.to_owned(), outbound, mesh, admin, ports, process, settings, how }
    }

    /// Kills it if it runs, and starts it again on the same ports with the same token.
    #[must_use]
    pub async fn restart(mut self) -> Self {
        self.start_again().await;
        self
    }

    /// The same in place.
    pub async fn start_again(&mut self) {
        self.process.kill();
        let id = self.id.clone();
        *self = Self::launch(&id, self.settings.clone(), self.how.clone()).await;
        self.ready().await;
    }

    /// The same with more configuration, and without waiting until it is ready.
    #[must_use]
    pub async fn relaunch(mut self, extra: &Value) -> Self {
        self.process.kill();
        merge(&mut self.settings, extra);
        Self::launch(&self.id, self.settings, self.how).await
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.how.directory.join(format!("{}.yaml", self.id))
    }

    /// Waits until `/ready` says so.
    pub async fn ready(&self) {
        until(&format!("{} is ready", self.id), || async { self.get("/ready").await.0 == 200 }).await;
    }

    /// An HTTP/1.1 client of the application beside it.
    pub fn client(&self) -> Client {
        Client::http1(self.outbound)
    }

    /// The same with HTTP/2.
    pub fn client_http2(&self) -> Client {
        Client::http2(self.outbound)
    }

    /// A page of the admin port: status and body; status 0 when it does not answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        get(self.admin, path).await
    }

    /// Asks for the drain as an operator does; returns the status.
    pub async fn post_drain(&self) -> u16 {
        exchange(self.admin, "POST", "/drain").await.0
    }

    /// Its metrics.
    pub async fn metrics(&self) -> Metrics {
        Metrics::parse(&self.get("/metrics").await.1)
    }

    /// What governs its calls of port 80 of a service, for `route`: `default`, or the label of a rule.
    /// An object of `policy` and `from`; null when there is no such thing.
    pub async fn policy(&self, service: &str, route: &str) -> Value {
        let page: Value = serde_json::from_str(&self.get("/policies").await.1).unwrap_or_default();
        let services = page["services"].as_array().cloned().unwrap_or_default();
        let port = services.into_iter().find(|found| found["service"] == service && found["port"] == 80);
        let in_force = port.and_then(|port| port["in_force"].as_array().cloned()).unwrap_or_default();
        in_force.into_iter().find(|found| found["route"] == route).unwrap_or_default()
    }

    /// Waits until what was applied at a revision that concerns it is in force here.
    pub async fn caught_up(&self, revision: u64) {
        until(&format!("{} is at revision {revision}", self.id), || async {
            let page: Value = serde_json::from_str(&self.get("/policies").await.1).unwrap_or_default();
            page["revision"].as_u64().is_some_and(|at| at >= revision)
        })
        .await;
    }

    /// Waits until nothing that governs its calls comes from a resource, such as
    /// `TrafficPolicy shop/orders`, or is labelled so, as rules of routes are.
    pub async fn forgot(&self, what: &str) {
        let quoted = format!("\"{what}\"");
        until(&format!("{} forgets {what}", self.id), || async {
            let (status, page) = self.get("/policies").await;
            status == 200 && !page.contains(&quoted)
        })
        .await;
    }

    /// What it knows of the endpoints of a service (`name.namespace`).
    pub async fn endpoints(&self, service: &str) -> Vec<Value> {
        let (_, body) = self.get("/endpoints").await;
        let page: Value = serde_json::from_str(&body).unwrap_or_default();
        let services = page["services"].as_array().cloned().unwrap_or_default();
        let of_service = services.into_iter().filter(|found| found["service"] == service);
        of_service.flat_map(|found| found["endpoints"].as_array().cloned().unwrap_or_default()).collect()
    }

    /// Their workload ids, sorted.
    pub async fn workloads(&self, service: &str) -> Vec<String> {
        let endpoints = self.endpoints(service).await;
        let mut ids: Vec<_> = endpoints
            .iter()
            .filter_map(|endpoint| endpoint["workload"].as_str())
            .map(str::to_owned)
            .collect();
        ids.sort();
        ids
    }

    /// Waits until it knows exactly these workloads of a service.
    pub async fn knows(&self, service: &str, ids: &[&str]) {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        let what = format!("{} knows {ids:?} of {service}", self.id);
        until(&what, || async { self.workloads(service).await == ids }).await;
    }

    /// Waits until it knows that many healthy endpoints of a service.
    pub async fn knows_healthy(&self, service: &str, count: usize) {
        until(&format!("{} knows {count} healthy endpoints of {service}", self.id), || async {
            let endpoints = self.endpoints(service).await;
            endpoints.iter().filter(|endpoint| endpoint["healthy"] == true).count() == count
        })
        .await;
    }
}

/// GET over a connection of its own.
pub async fn get(at: SocketAddr, path: &str) -> (u16, String) {
    exchange(at, "GET", path).await
}

async fn exchange(at: SocketAddr, method: &str, path: &str) -> (u16, String) {
    if TcpStream::connect(at).await.is_err() {
        return (0, String::new());
    }
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n");
    let answer = raw(at, request.as_bytes()).await;
    let Some((head, body)) = answer.split_once("\r\n\r\n") else { return (0, answer) };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    (status, body.to_owned())
}

/// An address in what a child announced.
pub(crate) fn address(announced: &Value, name: &str) -> SocketAddr {
    let text = announced[name].as_str().unwrap_or_default();
    text.parse().unwrap_or_else(|error| panic!("{name} in {announced}: {error}"))
}

/// Writes a configuration; JSON is YAML.
fn write(directory: &Path, name: &str, settings: &Value) -> PathBuf {
    let path = directory.join(name);
    std::fs::write(&path, format!("{settings:#}\n")).expect("the directory takes files");
    path
}

/// Lays `over` over `base`, objects key by key.
pub(crate) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => base.clone_from(over),
    }
}
