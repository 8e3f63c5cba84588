//! An application that is a process of its own: what tests kill, freeze and break.
//!
//! It speaks HTTP/1.1 and HTTP/2 with prior knowledge on one port and answers 200 with its name; on
//! another port `/fault/<name>` switches a fault on, `/tally` says what it did. Its only argument is an
//! object of JSON:
//!
//! | Key | Meaning |
//! |---|---|
//! | `name` | answered in `x-app` |
//! | `listen` | `ip:port` |
//! | `journal` | a file: a line for every request with `x-id` that was executed, written before the answer |
//! | `permits`, `work_ms` | capacity: so many requests at once, each for so long; absent: without limit |
//! | `idle_close_ms` | an idle connection is closed after a random time up to this; absent: never |
//!
//! | Fault | Effect |
//! |---|---|
//! | `healthy` | none |
//! | `slow` | answers come 500 ms later |
//! | `unavailable` | half of the answers, at random, are 503 |
//! | `refuse` | the port is closed, connections end after what is under way on them |
//! | `reset-before-head` | requests are executed, then the connection is reset |
//! | `reset-mid-response` | the same after half of the response, with a length and chunked in turn |

use std::fs::File;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::{Reply, Spawn, full, ok, streamed};
use rustix::process::{Signal, set_parent_process_death_signal};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};

/// What `slow` adds.
const SLOWNESS: Duration = Duration::from_millis(500);
/// Between the half of a response and its reset: the half is to arrive.
const HALF_TIME: Duration = Duration::from_millis(20);
/// Bytes of a response that is reset.
const CUT_LENGTH: usize = 1000;
/// After SIGTERM, for requests under way.
const DRAIN: Duration = Duration::from_secs(10);

fn main() {
    let text = std::env::args().nth(1).expect("one argument: the settings, as JSON");
    let settings: Value = serde_json::from_str(&text).expect("the settings are JSON");
    set_parent_process_death_signal(Some(Signal::KILL)).expect("the kernel ends it with its test");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(&settings));
}

async fn run(settings: &Value) {
    let text = |key: &str| settings[key].as_str().unwrap_or_default().to_owned();
    let journal = File::options().create(true).append(true).open(text("journal")).expect("the journal opens");
    let permits = settings["permits"].as_u64().and_then(|permits| usize::try_from(permits).ok());
    let app = Arc::new(App {
        name: text("name"),
        journal: Mutex::new(journal),
        work: permits.map(Semaphore::new),
        work_time: Duration::from_millis(settings["work_ms"].as_u64().unwrap_or_default()),
        idle_close: settings["idle_close_ms"].as_u64().map(Duration::from_millis),
        fault: watch::Sender::new(Fault::Healthy),
        leaving: watch::Sender::new(false),
        connections: AtomicU64::new(0),
        requests: AtomicU64::new(0),
        executed: AtomicU64::new(0),
        tasks: Tasks::current(),
    });
    let address: SocketAddr = text("listen").parse().expect("listen is ip:port");
    let listener = TcpListener::bind(address).await.expect("the port is free");
    let control = TcpListener::bind((address.ip(), 0)).await.expect("there is a free port");
    let at = |listener: &TcpListener| listener.local_addr().expect("a bound socket has an address");
    println!("{}", json!({"listen": at(&listener), "control": at(&control)}));
    app.tasks.spawn("control", obey(app.clone(), control));
    let serving = Tasks::current();
    serving.spawn("serve", serve(app.clone(), listener, serving.clone()));
    signal(SignalKind::terminate()).expect("signals can be waited for").recv().await;
    app.leaving.send_replace(true);
    serving.join(DRAIN).await;
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Fault {
    Healthy,
    Slow,
    Unavailable,
    Refuse,
    ResetBeforeHead,
    ResetMidResponse,
}

impl Fault {
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "healthy" => Self::Healthy,
            "slow" => Self::Slow,
            "unavailable" => Self::Unavailable,
            "refuse" => Self::Refuse,
            "reset-before-head" => Self::ResetBeforeHead,
            "reset-mid-response" => Self::ResetMidResponse,
            _ => return None,
        })
    }
}

struct App {
    name: String,
    journal: Mutex<File>,
    work: Option<Semaphore>,
    work_time: Duration,
    idle_close: Option<Duration>,
    fault: watch::Sender<Fault>,
    leaving: watch::Sender<bool>,
    connections: AtomicU64,
    requests: AtomicU64,
    executed: AtomicU64,
    tasks: Tasks,
}

impl App {
    /// Ends when the port may be open.
    async fn opening(&self) {
        // The sender lives as long as the application.
        let mut fault = self.fault.subscribe();
        let _open = fault.wait_for(|fault| *fault != Fault::Refuse).await;
    }

    /// Ends when the port has to close, and says whether for ever.
    async fn closing(&self) -> bool {
        let (mut fault, mut leaving) = (self.fault.subscribe(), self.leaving.subscribe());
        // The senders live as long as the application.
        tokio::select! {
            _ = fault.wait_for(|fault| *fault == Fault::Refuse) => false,
            _ = leaving.wait_for(|leaving| *leaving) => true,
        }
    }

    /// The work of a request; goes on when nobody waits for it any more, as in a pool of threads.
    async fn execute(self: Arc<Self>, id: Option<String>) {
        if let Some(work) = &self.work {
            let _permit = work.acquire().await;
            tokio::time::sleep(self.work_time).await;
        }
        self.executed.fetch_add(1, Ordering::Relaxed);
        if let Some(id) = id {
            let line = format!("{id}\n");
            let mut journal = self.journal.lock().expect("no holder panics");
            journal.write_all(line.as_bytes()).expect("the journal takes lines");
        }
    }
}

async fn serve(app: Arc<App>, listener: TcpListener, tasks: Tasks) {
    let address = listener.local_addr().expect("a bound socket has an address");
    let mut listener = Some(listener);
    loop {
        let Some(open) = &listener else {
            app.opening().await;
            listener = Some(TcpListener::bind(address).await.expect("nobody took the port"));
            continue;
        };
        tokio::select! {
            accepted = open.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                app.connections.fetch_add(1, Ordering::Relaxed);
                tasks.spawn("connection", connection(app.clone(), stream));
            }
            for_ever = app.closing() => {
                listener = None;
                if for_ever {
                    return;
                }
            }
        }
    }
}

async fn connection(app: Arc<App>, stream: TcpStream) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let reset = Arc::new(AtomicBool::new(false));
    let socket = Socket { stream, reset: reset.clone() };
    let service = service_fn(|request| answer(app.clone(), reset.clone(), request));
    let mut builder = auto::Builder::new(Spawn(app.tasks.clone()));
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    let mut served = pin!(builder.serve_connection(TokioIo::new(socket), service));
    let tired = async {
        match app.idle_close {
            Some(longest) => tokio::time::sleep(longest.mul_f64(fastrand::f64())).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        // A reset is reported as an error.
        _ended = served.as_mut() => return,
        _ = app.closing() => {}
        () = tired => {}
    }
    served.as_mut().graceful_shutdown();
    let _ended = served.await;
}

async fn answer(app: Arc<App>, reset: Arc<AtomicBool>, request: Request<Incoming>) -> Reply {
    let number = app.requests.fetch_add(1, Ordering::Relaxed);
    let fault = *app.fault.borrow();
    let (head, body) = request.into_parts();
    let id = head.headers.get("x-id").and_then(|id| id.to_str().ok()).map(str::to_owned);
    body.collect().await.map_err(io::Error::other)?;
    let work = app.tasks.spawn_joinable("work", app.clone().execute(id));
    work.await.map_err(io::Error::other)?;
    let mut response = match fault {
        Fault::Slow => {
            tokio::time::sleep(SLOWNESS).await;
            ok(app.name.clone())
        }
        Fault::Unavailable if fastrand::bool() => {
            let mut response = Response::new(full("out of order"));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            response
        }
        Fault::ResetBeforeHead => {
            reset.store(true, Ordering::Relaxed);
            return Err(io::Error::other("reset"));
        }
        Fault::ResetMidResponse => half(&app, reset, number.is_multiple_of(2)),
        Fault::Healthy | Fault::Unavailable | Fault::Refuse => ok(app.name.clone()),
    };
    // Whoever gets less than this got no complete response.
    let length = if fault == Fault::ResetMidResponse { CUT_LENGTH } else { app.name.len() };
    if response.status().is_success() {
        response.headers_mut().insert("x-app-length", length.into());
    }
    response.headers_mut().insert("x-app", app.name.parse().map_err(io::Error::other)?);
    Ok(response)
}

/// A response that is reset in the middle.
fn half(app: &App, reset: Arc<AtomicBool>, with_length: bool) -> Response<outrigger_tests::app::Body> {
    let (chunks, body) = streamed();
    app.tasks.spawn("half a response", async move {
        // Where the client is gone already there is nothing to reset.
        let _gone = chunks.send(Ok(Frame::data(Bytes::from(vec![b'x'; CUT_LENGTH / 2])))).await;
        tokio::time::sleep(HALF_TIME).await;
        reset.store(true, Ordering::Relaxed);
        let _gone = chunks.send(Err(io::Error::other("reset"))).await;
    });
    let mut response = Response::new(body);
    if with_length {
        response.headers_mut().insert("content-length", CUT_LENGTH.into());
    }
    response
}

/// Takes orders from the test.
async fn obey(app: Arc<App>, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let app = app.clone();
        app.tasks.clone().spawn("order", async move {
            let service = service_fn(|request: Request<Incoming>| order(app.clone(), request));
            let connection =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ended = connection.await;
        });
    }
}

async fn order(app: Arc<App>, request: Request<Incoming>) -> Reply {
    let path = request.uri().path();
    if let Some(fault) = path.strip_prefix("/fault/").and_then(Fault::parse) {
        app.fault.send_replace(fault);
        return Ok(ok(""));
    }
    if path == "/tally" {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let tally = json!({
            "connections": count(&app.connections),
            "requests": count(&app.requests),
            "executed": count(&app.executed),
        });
        return Ok(ok(tally.to_string()));
    }
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::NOT_FOUND;
    Ok(response)
}

/// A connection that can be reset: closed with RST, and what was not sent yet forgotten.
struct Socket {
    stream: TcpStream,
    reset: Arc<AtomicBool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.reset.load(Ordering::Relaxed) {
            // A socket the other side has reset first refuses.
            let _reset_already = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.reset.load(Ordering::Relaxed) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
