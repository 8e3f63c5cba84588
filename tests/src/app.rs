//! A programmable HTTP application that remembers what it saw.
//!
//! It speaks HTTP/1.1 and HTTP/2 with prior knowledge on one port. By default it answers 200 with its
//! name as body, unless the request's headers tell it otherwise:
//!
//! | Header | Effect |
//! |---|---|
//! | `x-app-status: 503` | that status |
//! | `x-app-delay-ms: 200` | the head comes that much later |
//! | `x-app-echo: 1` | the request's body and trailers come back as they arrive |
//! | `x-app-body: 1000` | a body of that many bytes |

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, Method, Request, Response, StatusCode, Uri, Version};
use http_body::{Body as _, Frame};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use outrigger_common::drain::DrainTrigger;
use outrigger_common::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::wait::until;

/// Any body.
pub type Body = BoxBody<Bytes, io::Error>;
/// What a handler returns: an error breaks the connection (HTTP/1.1) or the stream (HTTP/2) off
/// without a response.
pub type Reply = Result<Response<Body>, io::Error>;
/// Where chunks of a streamed body go.
pub type Chunks = mpsc::Sender<Result<Frame<Bytes>, io::Error>>;
type Handler = dyn Fn(Request<Incoming>) -> Pin<Box<dyn Future<Output = Reply> + Send>> + Send + Sync;

/// Longest pause a request may ask for.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// A whole body.
pub fn full(body: impl Into<Bytes>) -> Body {
    Full::new(body.into()).map_err(|never: Infallible| match never {}).boxed()
}

/// A body of chunks sent one by one; it ends when the sender is dropped.
pub fn streamed() -> (Chunks, Body) {
    let (sender, receiver) = mpsc::channel(1);
    (sender, BodyExt::boxed(StreamBody::new(ReceiverStream::new(receiver))))
}

/// 200 with a body.
pub fn ok(body: impl Into<Bytes>) -> Response<Body> {
    Response::new(full(body))
}

/// A request as the application saw it, its body read to the end.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Method.
    pub method: Method,
    /// Target.
    pub uri: Uri,
    /// HTTP version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// The body, up to where it broke off.
    pub body: Bytes,
    /// Trailers.
    pub trailers: Option<HeaderMap>,
    /// Whether the body came to its end.
    pub complete: bool,
    /// When the head arrived.
    pub at: Instant,
}

impl Seen {
    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    /// Heads that arrived, whatever became of the rest.
    heads: Mutex<Vec<(Uri, HeaderMap)>>,
    connections: Mutex<usize>,
}

/// A running application; its port closes when dropped.
pub struct App {
    /// Where it listens.
    pub address: SocketAddr,
    name: String,
    state: Arc<State>,
    handler: Arc<Handler>,
    stop: DrainTrigger,
    tasks: Tasks,
}

impl App {
    /// The application described above, on a free port.
    pub async fn start(name: &str) -> Self {
        Self::start_at(name, ([127, 0, 0, 1], 0).into()).await
    }

    /// The same on a given port.
    pub async fn start_at(name: &str, address: SocketAddr) -> Self {
        let state = Arc::new(State::default());
        let own = name.to_owned();
        let handler = {
            let state = state.clone();
            move |request| obey(own.clone(), state.clone(), request)
        };
        Self::serve(name, address, state, Arc::new(move |request| Box::pin(handler(request)))).await
    }

    /// An application of one's own; [`App::seen`] stays empty, [`App::heads`] does not.
    pub async fn with<F, Fut>(name: &str, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Reply> + Send + 'static,
    {
        let handler =
            move |request| -> Pin<Box<dyn Future<Output = Reply> + Send>> { Box::pin(handler(request)) };
        Self::serve(name, ([127, 0, 0, 1], 0).into(), Arc::default(), Arc::new(handler)).await
    }

    async fn serve(name: &str, address: SocketAddr, state: Arc<State>, handler: Arc<Handler>) -> Self {
        let listener =
            TcpListener::bind(address).await.unwrap_or_else(|error| panic!("{name} at {address}: {error}"));
        let address = listener.local_addr().expect("a bound socket has an address");
        let app = Self {
            address,
            name: name.to_owned(),
            state,
            handler,
            stop: DrainTrigger::new(),
            tasks: Tasks::current(),
        };
        app.listen(listener);
        app
    }

    fn listen(&self, listener: TcpListener) {
        let (stop, tasks) = (self.stop.listen(), self.tasks.clone());
        let (handler, state) = (self.handler.clone(), self.state.clone());
        self.tasks.spawn("app", async move {
            loop {
                let stream = tokio::select! {
                    accepted = listener.accept() => accepted,
                    () = stop.signalled() => return,
                };
                let Ok((stream, _)) = stream else { continue };
                let (stop, handler, state) = (stop.clone(), handler.clone(), state.clone());
                *state.connections.lock().expect("no holder panics") += 1;
                let inner = tasks.clone();
                tasks.spawn("app connection", async move {
                    tokio::select! {
                        () = connection(stream, handler, state, inner) => {}
                        // Dropped with whatever is under way.
                        () = stop.signalled() => {}
                    }
                });
            }
        });
    }

    /// Its name: the default body.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Requests it read to the end of the body, in the order their bodies ended.
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("no holder panics").clone()
    }

    /// The only request it saw.
    ///
    /// # Panics
    /// When it saw none, or more.
    pub fn only(&self) -> Seen {
        let seen = self.seen();
        assert_eq!(seen.len(), 1, "{}: {seen:?}", self.name);
        seen.into_iter().next().expect("it is there")
    }

    /// Heads of requests that arrived, whatever became of the rest.
    pub fn heads(&self) -> Vec<(Uri, HeaderMap)> {
        self.state.heads.lock().expect("no holder panics").clone()
    }

    /// How many requests arrived.
    pub fn requests(&self) -> usize {
        self.state.heads.lock().expect("no holder panics").len()
    }

    /// How many connections were accepted; health checks are among them.
    pub fn connections(&self) -> usize {
        *self.state.connections.lock().expect("no holder panics")
    }

    /// Forgets what it saw.
    pub fn forget(&self) {
        self.state.seen.lock().expect("no holder panics").clear();
        self.state.heads.lock().expect("no holder panics").clear();
    }

    /// Closes the port and every connection at once, as a process that dies does. Waits until the port
    /// refuses.
    pub async fn die(&mut self) {
        self.stop.start();
        let address = self.address;
        until("the application's port closes", || async move { TcpStream::connect(address).await.is_err() })
            .await;
    }

    /// Listens on the same port again.
    ///
    /// # Panics
    /// When the port was taken meanwhile.
    pub async fn revive(&mut self) {
        self.stop = DrainTrigger::new();
        let listener = TcpListener::bind(self.address).await.expect("the port is free");
        self.listen(listener);
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.stop.start();
    }
}

async fn connection(stream: TcpStream, handler: Arc<Handler>, state: Arc<State>, tasks: Tasks) {
    if stream.set_nodelay(true).is_err() {
        return;
    }
    let service = service_fn(|request: Request<Incoming>| {
        state
            .heads
            .lock()
            .expect("no holder panics")
            .push((request.uri().clone(), request.headers().clone()));
        handler(request)
    });
    let mut builder = auto::Builder::new(Spawn(tasks));
    builder.http1().timer(TokioTimer::new());
    builder.http2().timer(TokioTimer::new());
    // A handler's error ends the connection, as it should.
    let _broken = builder.serve_connection(TokioIo::new(stream), service).await;
}

/// Runs hyper's tasks as ours.
#[derive(Clone)]
pub struct Spawn(pub Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawn {
    fn execute(&self, future: F) {
        self.0.spawn("http", future);
    }
}

/// The default application.
async fn obey(name: String, state: Arc<State>, request: Request<Incoming>) -> Reply {
    let at = Instant::now();
    let (head, body) = request.into_parts();
    let number = |header: &str| -> Option<u64> { head.headers.get(header)?.to_str().ok()?.parse().ok() };
    let record = Recorder {
        state,
        seen: Seen {
            method: head.method.clone(),
            uri: head.uri.clone(),
            version: head.version,
            headers: head.headers.clone(),
            body: Bytes::new(),
            trailers: None,
            complete: false,
            at,
        },
    };
    let status =
        number("x-app-status").and_then(|status| StatusCode::from_u16(u16::try_from(status).ok()?).ok());
    let mut response = if head.headers.contains_key("x-app-echo") {
        Response::new(record.echo(body))
    } else {
        record.collect(body).await;
        let filler = number("x-app-body").and_then(|length| usize::try_from(length).ok());
        ok(filler.map_or_else(|| Bytes::from(name.clone()), |length| vec![b'x'; length].into()))
    };
    if let Some(delay) = number("x-app-delay-ms") {
        tokio::time::sleep(Duration::from_millis(delay).min(LONGEST_DELAY)).await;
    }
    *response.status_mut() = status.unwrap_or_default();
    if head.method == Method::HEAD {
        // hyper's HTTP/2 server would send it.
        let length = response.body().size_hint().exact().unwrap_or_default();
        response.headers_mut().insert(CONTENT_LENGTH, length.into());
        *response.body_mut() = full("");
    }
    if let Ok(name) = name.parse() {
        response.headers_mut().insert("x-app", name);
    }
    Ok(response)
}

/// Notes a request once its body has ended, or broken off.
struct Recorder {
    state: Arc<State>,
    seen: Seen,
}

impl Recorder {
    fn finish(self, body: Vec<u8>, trailers: Option<HeaderMap>, complete: bool) {
        let seen = Seen { body: body.into(), trailers, complete, ..self.seen };
        self.state.seen.lock().expect("no holder panics").push(seen);
    }

    async fn collect(self, mut body: Incoming) {
        let (mut bytes, mut trailers, mut complete) = (Vec::new(), None, true);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else {
                complete = false;
                break;
            };
            match frame.into_data() {
                Ok(data) => bytes.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        self.finish(bytes, trailers, complete);
    }

    /// The body that is the request's own, noted when it ends.
    fn echo(self, mut body: Incoming) -> Body {
        let (chunks, echo) = streamed();
        Tasks::current().spawn("echo", async move {
            let (mut bytes, mut trailers, mut complete) = (Vec::new(), None, true);
            while let Some(frame) = body.frame().await {
                let Ok(frame) = frame else {
                    complete = false;
                    break;
                };
                if let Some(data) = frame.data_ref() {
                    bytes.extend_from_slice(data);
                    // With HTTP/2 it may have been the last, which the echo of it would not be; after 100
                    // empty ones that are not, a client's h2 takes us for an attacker.
                    if data.is_empty() {
                        continue;
                    }
                }
                if let Some(found) = frame.trailers_ref() {
                    trailers = Some(found.clone());
                }
                if chunks.send(Ok(frame)).await.is_err() {
                    complete = false;
                    break;
                }
            }
            if !complete {
                // The other side may be gone as well.
                let _gone = chunks.send(Err(io::Error::other("the request broke off"))).await;
            }
            self.finish(bytes, trailers, complete);
        });
        echo
    }
}
