//! A registry in this process, and clients as sidecars and the administrator are.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use outrigger_api::token::Token;
use outrigger_api::v1;
use outrigger_api::v1::admin_client::AdminClient;
use outrigger_api::v1::certificates_client::CertificatesClient;
use outrigger_api::v1::change::Change as Kind;
use outrigger_api::v1::discovery_client::DiscoveryClient;
use outrigger_api::v1::join_client::JoinClient;
use outrigger_api::v1::registration_client::RegistrationClient;
use outrigger_api::v1::watch_request::Message as Asked;
use outrigger_api::v1::watch_response::Message as Told;
use outrigger_common::channel::{self, Trust};
use outrigger_common::config::Origin;
use outrigger_common::mtls::{KeyRequest, Svid};
use outrigger_common::tasks::Tasks;
use outrigger_registry::{Config, Limits, Registry, StartError, config::KEYS};
use rustls_pki_types::CertificateDer;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Longest wait for anything.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// Fails the test when the future does not end.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what}: not within {DEADLINE:?}"))
}

/// Asks again until the answer is yes.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut ask: impl FnMut() -> F) {
    soon(what, async {
        while !ask().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A configuration on free ports; `extra` is more YAML.
pub(crate) fn config(dir: &Path, extra: &str) -> Config {
    let text = format!(
        "data_dir: {}\ngrpc:\n  listen: 127.0.0.1:0\nhttp:\n  listen: 127.0.0.1:0\n{extra}",
        dir.display()
    );
    Config::from_origin(&Origin::new(None, text, Vec::new(), KEYS)).unwrap()
}

/// A registry that serves.
pub(crate) struct Mesh {
    pub(crate) grpc: String,
    pub(crate) http: SocketAddr,
    pub(crate) data: PathBuf,
    // Both absent for a registry in another process.
    stop: Option<oneshot::Sender<()>>,
    done: Option<tokio::task::JoinHandle<()>>,
    _dir: Option<tempfile::TempDir>,
}

impl Mesh {
    pub(crate) async fn start(extra: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut mesh = Self::start_in(&dir.path().join("data"), extra).await.unwrap();
        mesh._dir = Some(dir);
        mesh
    }

    pub(crate) async fn start_in(data: &Path, extra: &str) -> Result<Self, StartError> {
        Ok(Self::run(Registry::bind(config(data, extra)).await?, data))
    }

    pub(crate) async fn start_with(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::bind(config(dir.path(), "")).await.unwrap().with_limits(limits);
        let mesh = Self::run(registry, dir.path());
        Self { _dir: Some(dir), ..mesh }
    }

    fn run(registry: Registry, data: &Path) -> Self {
        let (grpc, http) = (registry.grpc_address().to_string(), registry.http_address());
        let (stop, stopped) = oneshot::channel::<()>();
        let run = async move { registry.run(async move { _ = stopped.await }).await.unwrap() };
        let done = Tasks::current().spawn_joinable("registry", run);
        Self { grpc, http, data: data.to_owned(), stop: Some(stop), done: Some(done), _dir: None }
    }

    /// One that runs elsewhere.
    pub(crate) fn at(grpc: &str, http: SocketAddr, data: &Path) -> Self {
        Self { grpc: grpc.to_owned(), http, data: data.to_owned(), stop: None, done: None, _dir: None }
    }

    pub(crate) async fn stop(mut self) {
        drop(self.stop.take());
        soon("registry stops", self.done.take().unwrap()).await.unwrap();
    }

    pub(crate) fn admin_svid(&self) -> Svid {
        Svid::read_dir(&self.data.join("admin")).unwrap()
    }

    pub(crate) fn admin(&self) -> AdminClient<Channel> {
        AdminClient::new(self.channel(self.admin_svid()))
    }

    /// A channel that proves an identity.
    pub(crate) fn channel(&self, svid: Svid) -> Channel {
        let cell = Arc::new(ArcSwapOption::from_pointee(svid));
        channel::registry(&self.grpc, Trust::Svid(cell)).unwrap()
    }

    /// A channel without a certificate.
    pub(crate) fn anonymous(&self, pin: &str) -> Channel {
        channel::registry(&self.grpc, Trust::Pin(pin.into())).unwrap()
    }

    pub(crate) async fn token(
        &self,
        namespace: &str,
        account: &str,
        services: &[&str],
        ttl_seconds: u64,
    ) -> Token {
        let request = v1::CreateTokenRequest {
            namespace: namespace.into(),
            account: account.into(),
            services: services.iter().map(|s| (*s).to_owned()).collect(),
            ttl_seconds,
        };
        Token::parse(&self.admin().create_token(request).await.unwrap().into_inner().token).unwrap()
    }

    pub(crate) async fn join(&self, token: &Token) -> Result<Svid, Status> {
        self.join_with(token, KeyRequest::generate().unwrap()).await
    }

    pub(crate) async fn join_with(&self, token: &Token, key: KeyRequest) -> Result<Svid, Status> {
        let answer = self.join_csr(token, key.csr.to_vec()).await?;
        Ok(complete(key, answer))
    }

    pub(crate) async fn join_csr(
        &self,
        token: &Token,
        csr: Vec<u8>,
    ) -> Result<v1::CertificateResponse, Status> {
        let request = v1::JoinRequest { token_id: token.id.clone(), secret: token.secret.clone(), csr };
        let mut client = JoinClient::new(self.anonymous(&token.pin));
        Ok(soon("join", client.join(request)).await?.into_inner())
    }

    /// A sidecar that joined.
    pub(crate) async fn sidecar(&self, namespace: &str, account: &str, services: &[&str]) -> Sidecar {
        let token = self.token(namespace, account, services, 0).await;
        self.sidecar_as(self.join(&token).await.unwrap())
    }

    pub(crate) fn sidecar_as(&self, svid: Svid) -> Sidecar {
        Sidecar { channel: self.channel(svid) }
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.http("GET", path).await;
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// One HTTP/1.1 exchange.
    pub(crate) async fn http(&self, method: &str, path: &str) -> (u16, String) {
        let exchange = async {
            let mut stream = tokio::net::TcpStream::connect(self.http).await.unwrap();
            let request = format!("{method} {path} HTTP/1.1\r\nhost: registry\r\nconnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = soon("http", exchange).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(!head.to_ascii_lowercase().contains("transfer-encoding"), "{head}");
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    /// The value of one series of `/metrics`.
    pub(crate) async fn metric(&self, series: &str) -> f64 {
        let (_, text) = self.http("GET", "/metrics").await;
        let line =
            text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    }
}

pub(crate) fn complete(key: KeyRequest, answer: v1::CertificateResponse) -> Svid {
    let der = |ders: Vec<Vec<u8>>| ders.into_iter().map(CertificateDer::from).collect();
    key.complete(der(answer.chain), der(answer.bundle)).unwrap()
}

/// A sidecar's calls.
#[derive(Clone)]
pub(crate) struct Sidecar {
    pub(crate) channel: Channel,
}

impl Sidecar {
    pub(crate) fn registration(&self) -> RegistrationClient<Channel> {
        RegistrationClient::new(self.channel.clone())
    }

    pub(crate) fn certificates(&self) -> CertificatesClient<Channel> {
        CertificatesClient::new(self.channel.clone())
    }

    pub(crate) async fn register(
        &self,
        request: v1::RegisterRequest,
    ) -> Result<v1::RegisterResponse, Status> {
        Ok(soon("register", self.registration().register(request)).await?.into_inner())
    }

    pub(crate) async fn renew(&self, lease: &str, healthy: &[bool]) -> Result<u64, Status> {
        let request = v1::RenewRequest { lease: lease.to_owned(), healthy: healthy.to_vec() };
        Ok(soon("renew", self.registration().renew(request)).await?.into_inner().ttl_ms)
    }

    pub(crate) async fn deregister(
        &self,
        lease: &str,
        wait_ms: u64,
    ) -> Result<v1::DeregisterResponse, Status> {
        let request = v1::DeregisterRequest { lease: lease.to_owned(), wait_ms };
        Ok(soon("deregister", self.registration().deregister(request)).await?.into_inner())
    }

    pub(crate) async fn watch(&self, services: &[&str]) -> Watcher {
        let mut watcher = self.hello(hello(&[], &[])).await.unwrap();
        watcher.update().await;
        if !services.is_empty() {
            watcher.subscribe(services, &[]).await;
            watcher.update().await;
        }
        watcher
    }

    pub(crate) async fn hello(&self, hello: v1::Hello) -> Result<Watcher, Status> {
        let (requests, stream) = mpsc::channel(64);
        requests.send(v1::WatchRequest { message: Some(Asked::Hello(hello)) }).await.unwrap();
        let mut client = DiscoveryClient::new(self.channel.clone());
        let mut answers = soon("watch", client.watch(ReceiverStream::new(stream))).await?.into_inner();
        let first = soon("welcome", answers.message()).await?.and_then(|first| first.message);
        let Some(Told::Welcome(welcome)) = first else { panic!("no welcome: {first:?}") };
        Ok(Watcher {
            requests,
            answers,
            welcome,
            held: BTreeMap::new(),
            policies: BTreeMap::new(),
            cursor: Vec::new(),
            sampling: None,
            defaults: String::new(),
            modes: None,
            owners: BTreeMap::new(),
        })
    }
}

pub(crate) fn hello(cursor: &[u8], services: &[&str]) -> v1::Hello {
    v1::Hello {
        protocol_version: outrigger_api::PROTOCOL_VERSION,
        software: "test".into(),
        workload: "w".into(),
        cursor: cursor.to_vec(),
        services: services.iter().map(|s| (*s).to_owned()).collect(),
        ..Default::default()
    }
}

/// The sidecar's end of a watch stream.
pub(crate) struct Watcher {
    pub(crate) requests: mpsc::Sender<v1::WatchRequest>,
    pub(crate) answers: Streaming<v1::WatchResponse>,
    pub(crate) welcome: v1::Welcome,
    /// None: told that it does not exist.
    pub(crate) held: BTreeMap<String, Option<v1::Service>>,
    /// What governs a service, as last told.
    pub(crate) policies: BTreeMap<String, Vec<v1::Resource>>,
    pub(crate) cursor: Vec<u8>,
    pub(crate) sampling: Option<f64>,
    pub(crate) defaults: String,
    pub(crate) modes: Option<(v1::MtlsMode, v1::EgressMode)>,
    /// Whose addresses are: `service port workload`, or nothing.
    pub(crate) owners: BTreeMap<String, String>,
}

impl Watcher {
    pub(crate) async fn ask(&self, message: Asked) {
        self.requests.send(v1::WatchRequest { message: Some(message) }).await.unwrap();
    }

    pub(crate) async fn subscribe(&self, add: &[&str], remove: &[&str]) {
        let own = |names: &[&str]| names.iter().map(|s| (*s).to_owned()).collect();
        let (add, remove) = (own(add), own(remove));
        self.ask(Asked::Subscribe(v1::Subscribe { add, remove, ..Default::default() })).await;
    }

    /// Asks whose addresses are, and no longer about others.
    pub(crate) async fn ask_about(&self, add: &[&str], remove: &[&str]) {
        let own = |texts: &[&str]| texts.iter().map(|s| (*s).to_owned()).collect();
        let (add_addresses, remove_addresses) = (own(add), own(remove));
        let asked = v1::Subscribe { add_addresses, remove_addresses, ..Default::default() };
        self.ask(Asked::Subscribe(asked)).await;
    }

    /// Applies updates until an address is whose it should be.
    pub(crate) async fn owned_by(&mut self, address: &str, owner: &str) {
        while self.owners.get(address).map(String::as_str) != Some(owner) {
            self.update().await;
        }
    }

    pub(crate) async fn ack(&self, nonce: u64) {
        self.ask(Asked::Ack(v1::Ack { nonce })).await;
    }

    /// The next update, applied and acknowledged.
    pub(crate) async fn update(&mut self) -> v1::Update {
        let update = self.update_unacknowledged().await;
        self.ack(update.nonce).await;
        update
    }

    pub(crate) async fn update_unacknowledged(&mut self) -> v1::Update {
        let answer = soon("update", self.answers.message()).await.unwrap().and_then(|answer| answer.message);
        let Some(Told::Update(update)) = answer else { panic!("no update: {answer:?}") };
        self.apply(&update);
        update
    }

    fn apply(&mut self, update: &v1::Update) {
        self.cursor.clone_from(&update.cursor);
        for change in &update.changes {
            match change.change.clone().unwrap() {
                Kind::Service(service) => _ = self.held.insert(service.name.clone(), Some(service)),
                Kind::Unknown(name) => _ = self.held.insert(name, None),
                Kind::Mesh(mesh) => {
                    self.sampling = Some(mesh.trace_sampling_ratio);
                    self.modes = Some((mesh.mtls_mode(), mesh.egress_mode()));
                    self.defaults = mesh.traffic_defaults;
                }
                Kind::Address(told) => {
                    let owner = match told.service.as_str() {
                        "" => String::new(),
                        service => format!("{service} {} {}", told.port, told.workload),
                    };
                    self.owners.insert(told.address, owner);
                }
                Kind::Policies(set) => _ = self.policies.insert(set.service, set.resources),
                Kind::Delta(delta) => {
                    let service = self.held.get_mut(&delta.name).unwrap().as_mut().unwrap();
                    let key = |e: &v1::Endpoint| (e.workload.clone(), e.port);
                    for gone in delta.remove {
                        service.endpoints.retain(|e| key(e) != (gone.workload.clone(), gone.port));
                    }
                    for new in delta.upsert {
                        service.endpoints.retain(|e| key(e) != key(&new));
                        service.endpoints.push(new);
                    }
                }
            }
        }
    }

    /// Applies updates until the service looks as wanted.
    pub(crate) async fn until(&mut self, name: &str, wanted: impl Fn(Option<&v1::Service>) -> bool) {
        while !self.held.get(name).is_some_and(|held| wanted(held.as_ref())) {
            self.update().await;
        }
    }

    /// Applies updates until a service is governed by these, each `<kind>/<namespace>/<name>`.
    pub(crate) async fn governed_by(&mut self, service: &str, wanted: &[&str]) {
        while self.governing(service).as_deref().is_none_or(|held| held != wanted) {
            self.update().await;
        }
    }

    /// What a service is governed by, if anything was told.
    pub(crate) fn governing(&self, service: &str) -> Option<Vec<String>> {
        let place = |r: &v1::Resource| format!("{}/{}/{}", r.kind, r.namespace, r.name);
        self.policies.get(service).map(|set| set.iter().map(place).collect())
    }

    pub(crate) fn workloads(&self, name: &str) -> Vec<String> {
        let service = self.held[name].as_ref().unwrap();
        let mut ids: Vec<_> = service.endpoints.iter().map(|e| e.workload.clone()).collect();
        ids.sort();
        ids
    }

    /// What ended the stream.
    pub(crate) async fn end(&mut self) -> Status {
        soon("end of stream", async {
            loop {
                match self.answers.message().await {
                    Ok(Some(answer)) => {
                        if let Some(Told::Update(update)) = answer.message {
                            self.apply(&update);
                        }
                    }
                    Ok(None) => return Status::ok("ended"),
                    Err(status) => return status,
                }
            }
        })
        .await
    }
}

/// A workload that serves one port of one service.
pub(crate) fn workload(id: &str, service: &str, port: u32) -> v1::RegisterRequest {
    v1::RegisterRequest {
        workload: id.into(),
        zone: "z1".into(),
        address: "127.0.0.1".into(),
        mesh_port: 15008,
        ports: vec![served(service, port, v1::Protocol::Http1)],
        weight: 0,
    }
}

pub(crate) fn served(service: &str, port: u32, protocol: v1::Protocol) -> v1::ServedPort {
    v1::ServedPort {
        service: service.into(),
        port: Some(v1::Port { number: port, name: String::new(), protocol: protocol.into() }),
        target_port: 8080,
        healthy: true,
    }
}

/// The code and text of a refusal.
pub(crate) fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code, words: &str) {
    let status = result.expect_err("should be refused");
    assert_eq!(status.code(), code, "{status:?}");
    assert!(status.message().contains(words), "{:?} lacks {words:?}", status.message());
}
