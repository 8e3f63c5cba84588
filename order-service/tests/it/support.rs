//! A server in this process, one in its own, a plain HTTP client and a recording proxy.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use order_service::config::{Config, Overrides, ServerConfig};
use order_service::order::{Item, NewOrder};
use order_service::server;
use outrigger_common::drain::DrainTrigger;
use outrigger_common::tasks::Tasks;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::contract;

/// How long anything here may take before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(30);

/// A server in this process.
pub struct Server {
    pub address: SocketAddr,
    trigger: DrainTrigger,
    tasks: Tasks,
    /// Kept so that the directory outlives the server.
    _directory: Option<TempDir>,
    pub database: PathBuf,
}

impl Server {
    /// A server on a file of its own.
    pub async fn start() -> Self {
        Self::with(|_| ()).await
    }

    /// The same with its configuration changed.
    pub async fn with(change: impl FnOnce(&mut ServerConfig)) -> Self {
        let directory = TempDir::new().unwrap();
        let mut server = Self::on(&directory.path().join("orders.db"), change).await;
        server._directory = Some(directory);
        server
    }

    /// A server on a given file.
    pub async fn on(database: &Path, change: impl FnOnce(&mut ServerConfig)) -> Self {
        let mut config = Config::load(None, Overrides::default()).unwrap().server;
        config.listen = "127.0.0.1:0".parse().unwrap();
        config.store.database = database.to_owned();
        change(&mut config);
        let (tasks, trigger) = (Tasks::current(), DrainTrigger::new());
        let (ready, address) = oneshot::channel();
        let drain = trigger.listen();
        tasks.spawn("server", async move {
            server::run(config, |address| ready.send(address).unwrap(), drain).await.unwrap();
        });
        let address = address.await.unwrap();
        Self { address, trigger, tasks, _directory: None, database: database.to_owned() }
    }

    /// Drains the server.
    pub async fn stop(self) {
        self.trigger.start();
        assert_eq!(self.tasks.join(DEADLINE).await, 0);
    }

    pub async fn get(&self, path: &str) -> Answer {
        send(self.address, Method::GET, path, &[], None).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        send(self.address, Method::POST, path, &[], Some(body)).await
    }

    pub async fn patch(&self, path: &str, body: &Value) -> Answer {
        send(self.address, Method::PATCH, path, &[], Some(body)).await
    }

    /// Places an order and returns its path.
    pub async fn place(&self) -> String {
        let answer = self.post("/v1/orders", &cart()).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        format!("/v1/orders/{}", answer.json()["id"].as_str().unwrap())
    }

    /// A connection of our own to its file, to meddle with it.
    pub async fn database(&self) -> sqlx::SqliteConnection {
        use sqlx::ConnectOptions;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&self.database);
        options.connect().await.unwrap()
    }
}

/// A whole response.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The word of a problem body.
    pub fn code(&self) -> String {
        self.json()["error"]["code"].as_str().unwrap().to_owned()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }
}

/// A cart every server accepts.
pub fn cart() -> Value {
    json!({ "customer": "ada", "currency": "EUR",
            "items": [{ "sku": "tea", "quantity": 2, "unit_price_minor": 350 }] })
}

/// The same as a value of the typed client.
pub fn new_order() -> NewOrder {
    let items = vec![Item { sku: "tea".into(), quantity: 2, unit_price_minor: 350 }];
    NewOrder { customer: "ada".into(), currency: "EUR".into(), items, note: None }
}

/// Sends one request over a connection of its own; the answer is held against the interface document.
pub async fn send(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Answer {
    let bytes = body.map(|body| Bytes::from(body.to_string()));
    send_bytes(address, method, path, headers, bytes).await
}

/// The same with a body that need not be JSON.
pub async fn send_bytes(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<Bytes>,
) -> Answer {
    let mut request = Request::builder().method(method.clone()).uri(path).header(header::HOST, "orders");
    if body.is_some() && !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header(header::CONTENT_TYPE, "application/json");
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(body.unwrap_or_default())).unwrap();
    let answer = tokio::time::timeout(DEADLINE, exchange(address, request)).await.unwrap().unwrap();
    contract::check(&method, path, &answer);
    answer
}

/// Any failure of a connection.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Sends one request over a connection of its own.
pub async fn exchange(address: SocketAddr, request: Request<Full<Bytes>>) -> Result<Answer, Failure> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    Tasks::current().spawn("test-connection", async {
        let _ended = connection.await;
    });
    let (head, body) = sender.send_request(request).await?.into_parts();
    Ok(Answer { status: head.status, headers: head.headers, body: body.collect().await?.to_bytes() })
}

/// Waits until `condition` holds, at most [`DEADLINE`].
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}");
        tokio::task::yield_now().await;
    }
}

/// A forward proxy that takes absolute-form requests only, writes them down and sends all of them to
/// one address, whatever host they name.
pub struct Proxy {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

/// A request as the proxy got it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub method: Method,
    pub target: String,
    pub headers: HeaderMap,
}

impl Proxy {
    pub async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (tasks, log) = (Tasks::current(), seen.clone());
        tasks.clone().spawn("proxy", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let log = log.clone();
                let service = service_fn(move |request| forward(request, upstream, log.clone()));
                let builder = hyper::server::conn::http1::Builder::new();
                let connection = builder.serve_connection(TokioIo::new(stream), service);
                tasks.spawn("proxy-connection", async {
                    let _ended = connection.await;
                });
            }
        });
        Self { address, seen }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

async fn forward(
    request: Request<Incoming>,
    upstream: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
) -> Result<Response<Full<Bytes>>, Failure> {
    let (mut head, body) = request.into_parts();
    let target = head.uri.to_string();
    log.lock().unwrap().push(Seen { method: head.method.clone(), target, headers: head.headers.clone() });
    assert!(head.uri.authority().is_some(), "not absolute-form: {}", head.uri);
    head.uri = head.uri.path_and_query().unwrap().as_str().parse().unwrap();
    let body = body.collect().await?.to_bytes();
    let answer = exchange(upstream, Request::from_parts(head, Full::new(body))).await?;
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

/// The binary, in a process of its own; killed when dropped.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
}

impl Process {
    /// Starts it and waits for its first line.
    pub fn start(arguments: &[&str]) -> Self {
        let mut child = command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value = serde_json::from_str(&line).unwrap_or_else(|_| panic!("first line: {line:?}"));
        Self { child, address: ready["listen"].as_str().unwrap().parse().unwrap() }
    }

    /// Server mode on `database` and a free port.
    pub fn server(database: &Path) -> Self {
        let database = database.to_str().unwrap();
        Self::start(&["server", "--listen", "127.0.0.1:0", "--output", "json", "--database", database])
    }

    /// SIGKILL: no chance to do anything more.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn terminate(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    }

    /// Its exit status, if it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _already_gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}

/// The binary with arguments, quiet.
pub fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_order-service"));
    command.args(arguments).env("RUST_LOG", "error");
    command
}
