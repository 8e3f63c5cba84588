//! One simulated sidecar: what a real one says to its registry, and nothing else of it.
//!
//! One HTTP/2 connection over mutual TLS; a watch stream that resumes at the last cursor, with
//! acknowledgements; a registration whose lease is renewed at a third of its time and at each new
//! connection; pings; a jittered back-off after a loss.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{HeaderMap, Request};
use outrigger_api::v1;
use outrigger_api::v1::watch_request::Message as Said;
use outrigger_common::backoff::Backoff;
use outrigger_common::tasks::Tasks;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use super::plan::{self, Plan};
use super::tally::{Stage, Tally};
use super::view::{View, workload_id};
use super::wire::{Frames, Told, WatchResponse, frame};

/// As the real sidecar's: connecting and the handshake, opening a stream, a call about the lease.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);
const CALL_TIMEOUT: Duration = Duration::from_secs(3);
const PING: Duration = Duration::from_secs(5);
/// As the real sidecar's HTTP library has them.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;

/// What all sidecars of a fleet share.
pub(super) struct Fleet {
    pub(super) plan: Plan,
    pub(super) registry: SocketAddr,
    /// By namespace.
    pub(super) identities: Vec<TlsConnector>,
    pub(super) tally: Tally,
    pub(super) tasks: Tasks,
}

/// One sidecar.
pub(super) struct Sidecar {
    fleet: Arc<Fleet>,
    number: usize,
    view: View,
    cursor: Vec<u8>,
    lease: Option<String>,
    /// Whether the registry confirmed the lease since the connection was made.
    renewed: bool,
    /// Between calls about the lease that failed, up to a third of its time.
    calls: Backoff,
    longest: Duration,
    stage: Stage,
}

/// An open connection with its watch stream.
struct Link {
    requests: SendRequest<Bytes>,
    pings: PingPong,
    watch: SendStream<Bytes>,
    updates: RecvStream,
    frames: Frames,
}

type Call = Pin<Box<dyn Future<Output = anyhow::Result<Lease>> + Send>>;

/// What the registry said of a lease.
enum Lease {
    Held(Option<String>, Duration),
    Gone,
}

impl Sidecar {
    pub(super) fn new(fleet: Arc<Fleet>, number: usize) -> Self {
        let view = View::new(fleet.plan.watches(number));
        Self {
            fleet,
            number,
            view,
            cursor: Vec::new(),
            lease: None,
            renewed: false,
            calls: Backoff::new(Duration::from_millis(100), Duration::from_secs(5)),
            longest: Duration::from_secs(5),
            stage: Stage::Away,
        }
    }

    /// Runs for ever.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        loop {
            let Err(error) = self.serve(&mut backoff).await;
            self.fleet.tally.lost(&error);
            self.enter(Stage::Away);
            self.renewed = false;
            tokio::time::sleep(backoff.next(fastrand::f64())).await;
        }
    }

    fn enter(&mut self, stage: Stage) {
        self.fleet.tally.enter(self.stage, stage);
        self.stage = stage;
    }

    /// One connection, until it is lost.
    async fn serve(&mut self, backoff: &mut Backoff) -> anyhow::Result<std::convert::Infallible> {
        let mut link = self.open().await?;
        // As with the real one, nobody registers before the stream is found to be open.
        let mut call: Option<Call> = None;
        let mut renew_at = Instant::now() + Duration::from_secs(3600);
        let mut ping_at = Instant::now() + PING.mul_f64(fastrand::f64());
        let mut pinged: Option<Instant> = None;
        let mut heard = Instant::now();
        loop {
            tokio::select! {
                data = link.updates.data() => {
                    let data = data.context("the registry ended the stream")??;
                    link.updates.flow_control().release_capacity(data.len())?;
                    link.frames.add(&data);
                    heard = Instant::now();
                    while let Some(message) = link.frames.next::<WatchResponse>()? {
                        backoff.reset();
                        if self.told(&mut link, message)? {
                            renew_at = Instant::now();
                        }
                    }
                }
                lease = async { call.as_mut().expect("checked by the guard").await }, if call.is_some() => {
                    call = None;
                    heard = Instant::now();
                    renew_at = Instant::now() + self.leased(lease);
                }
                () = sleep_until(renew_at), if call.is_none() => {
                    call = Some(self.renew(&link)?);
                }
                () = sleep_until(ping_at) => {
                    // As the real one's HTTP library: only after a silence.
                    if heard + PING > Instant::now() {
                        ping_at = heard + PING;
                        continue;
                    }
                    anyhow::ensure!(pinged.is_none(), "no answer to a ping");
                    link.pings.send_ping(Ping::opaque())?;
                    pinged = Some(Instant::now());
                    ping_at = Instant::now() + PING;
                }
                pong = std::future::poll_fn(|cx| link.pings.poll_pong(cx)), if pinged.is_some() => {
                    pong?;
                    pinged = None;
                }
            }
        }
    }

    async fn open(&self) -> anyhow::Result<Link> {
        let (mut requests, pings) =
            timeout(CONNECT_TIMEOUT, self.connect()).await.context("connecting")??;
        let (response, mut watch) = requests.send_request(request("Discovery/Watch"), false)?;
        let hello = v1::Hello {
            protocol_version: outrigger_api::PROTOCOL_VERSION,
            software: format!("outrigger {}", outrigger_common::build_info::VERSION),
            workload: workload_id(u32::try_from(self.number)?),
            cursor: self.cursor.clone(),
            services: self.view.names(true),
            serves: self.fleet.plan.serves(self.number).map(plan::name).collect(),
            ..v1::Hello::default()
        };
        say(&mut watch, Said::Hello(hello))?;
        let add = self.view.names(false);
        if !add.is_empty() {
            say(&mut watch, Said::Subscribe(v1::Subscribe { add, ..v1::Subscribe::default() }))?;
        }
        let response = timeout(OPEN_TIMEOUT, response).await.context("opening the stream")??;
        anyhow::ensure!(response.status() == http::StatusCode::OK, "refused: {}", response.status());
        status(response.headers())?;
        Ok(Link { requests, pings, watch, updates: response.into_body(), frames: Frames::default() })
    }

    async fn connect(&self) -> anyhow::Result<(SendRequest<Bytes>, PingPong)> {
        let stream = TcpStream::connect(self.fleet.registry).await?;
        stream.set_nodelay(true)?;
        let identity = &self.fleet.identities[self.fleet.plan.namespace_of(self.number)];
        let name = ServerName::try_from("registry.outrigger.mesh")?;
        let stream = identity.connect(name, stream).await?;
        let (requests, mut connection) = h2::client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .enable_push(false)
            .handshake(stream)
            .await?;
        let pings = connection.ping_pong().context("nobody took the pings before")?;
        self.fleet.tasks.spawn("connection", async move {
            // The stream learns of its end as well.
            let _ended = connection.await;
        });
        Ok((requests, pings))
    }

    /// Acts on one message; returns whether it is the one after which the lease is looked at.
    fn told(&mut self, link: &mut Link, message: WatchResponse) -> anyhow::Result<bool> {
        match message.message {
            None => Ok(false),
            Some(Told::Welcome(welcome)) => {
                self.fleet.tally.welcomed(welcome.resumed);
                self.enter(Stage::Watching);
                Ok(true)
            }
            Some(Told::Update(mut update)) => {
                self.cursor = std::mem::take(&mut update.cursor);
                let tally = &self.fleet.tally;
                let (effect, seen) = self.view.apply(&update, tally.wanted());
                say(&mut link.watch, Said::Ack(v1::Ack { nonce: update.nonce }))?;
                tally.updated(&effect, seen);
                self.settle();
                Ok(false)
            }
        }
    }

    /// Looks whether everything is as it should be: all services known in full, and registered.
    fn settle(&mut self) {
        let waiting = self.stage == Stage::Watching && self.renewed;
        if waiting && self.view.is_as(self.fleet.tally.endpoints()) {
            self.enter(Stage::Settled);
        }
    }

    fn renew(&self, link: &Link) -> anyhow::Result<Call> {
        let ports: Vec<usize> = self.fleet.plan.serves(self.number).collect();
        let (path, body, known) = match &self.lease {
            Some(lease) => {
                let request = v1::RenewRequest { lease: lease.clone(), healthy: vec![true; ports.len()] };
                ("Registration/Renew", frame(&request), true)
            }
            None => ("Registration/Register", frame(&self.registration(ports)?), false),
        };
        let mut requests = link.requests.clone();
        let (response, mut send) = requests.send_request(request(path), false)?;
        send.send_data(body, true)?;
        Ok(Box::pin(async move {
            timeout(CALL_TIMEOUT, answer(response, known)).await.context("no answer about the lease")?
        }))
    }

    fn registration(&self, ports: Vec<usize>) -> anyhow::Result<v1::RegisterRequest> {
        Ok(registration(u32::try_from(self.number)?, ports))
    }

    /// Notes what became of the lease; returns when to renew it.
    fn leased(&mut self, lease: anyhow::Result<Lease>) -> Duration {
        match lease {
            Err(error) => {
                // As with the real one, the stream goes on.
                self.fleet.tally.lost(&error);
                self.calls.next(fastrand::f64()).min(self.longest)
            }
            Ok(Lease::Gone) => {
                self.fleet.tally.lease_gone();
                self.lease = None;
                Duration::ZERO
            }
            Ok(Lease::Held(new, ttl)) => {
                self.calls.reset();
                self.longest = ttl / 3;
                self.lease = new.or(self.lease.take());
                self.renewed = true;
                self.settle();
                self.longest
            }
        }
    }
}

/// Returns the registration of a workload that serves these services.
pub(super) fn registration(number: u32, services: Vec<usize>) -> v1::RegisterRequest {
    let served = |service: usize| v1::ServedPort {
        service: plan::name(service),
        port: Some(v1::Port { number: 80, name: String::new(), protocol: v1::Protocol::Http.into() }),
        target_port: 8000 + u32::try_from(service % 1000).expect("below 1000"),
        healthy: true,
    };
    let [_, b, c, d] = number.to_be_bytes();
    v1::RegisterRequest {
        workload: workload_id(number),
        zone: format!("zone-{}", number % 3),
        address: format!("10.{b}.{c}.{d}"),
        mesh_port: 15008,
        ports: services.into_iter().map(served).collect(),
        weight: 0,
    }
}

async fn answer(response: ResponseFuture, known: bool) -> anyhow::Result<Lease> {
    let response = response.await?;
    if known && code(response.headers()) == Some("5") {
        return Ok(Lease::Gone);
    }
    status(response.headers())?;
    let (mut body, mut frames) = (response.into_body(), Frames::default());
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        frames.add(&data);
    }
    if let Some(trailers) = body.trailers().await? {
        status(&trailers)?;
    }
    let (lease, ttl) = if known {
        let answer: v1::RenewResponse = frames.next()?.context("an answer without a message")?;
        (None, answer.ttl_ms)
    } else {
        let answer: v1::RegisterResponse = frames.next()?.context("an answer without a message")?;
        (Some(answer.lease), answer.ttl_ms)
    };
    Ok(Lease::Held(lease, Duration::from_millis(ttl)))
}

fn request(method: &str) -> Request<()> {
    Request::post(format!("http://registry.outrigger.mesh/outrigger.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("the parts are constants")
}

fn say(watch: &mut SendStream<Bytes>, message: Said) -> anyhow::Result<()> {
    let request = v1::WatchRequest { message: Some(message) };
    Ok(watch.send_data(frame(&request), false)?)
}

fn code(headers: &HeaderMap) -> Option<&str> {
    headers.get("grpc-status").and_then(|code| code.to_str().ok())
}

/// Returns an error when the headers or trailers tell of one.
fn status(headers: &HeaderMap) -> anyhow::Result<()> {
    match code(headers) {
        None | Some("0") => Ok(()),
        Some(code) => {
            let message = headers.get("grpc-message").and_then(|text| text.to_str().ok());
            anyhow::bail!("gRPC status {code}: {}", message.unwrap_or_default())
        }
    }
}
