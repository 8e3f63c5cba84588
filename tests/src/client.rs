//! HTTP through a sidecar's outbound port: HTTP/1.1, HTTP/2 with prior knowledge, and raw bytes.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::app::{Body, Spawn, full};
use crate::wait::soon;

/// Longest exchange.
const LIMIT: Duration = Duration::from_secs(30);

/// A complete response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// HTTP version.
    pub version: Version,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
    /// Trailers.
    pub trailers: Option<HeaderMap>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A header as text; empty when absent.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// `x-mesh-reason`; empty when the application answered.
    pub fn reason(&self) -> &str {
        self.header("x-mesh-reason")
    }
}

/// Why there is no complete response.
#[derive(Debug, Clone)]
pub enum Broken {
    /// No head.
    Head(String),
    /// A head, but not all of the body.
    Body {
        /// Status of the head.
        status: StatusCode,
        /// What arrived.
        got: usize,
        /// What went wrong.
        error: String,
    },
    /// Nothing within the limit.
    Timeout,
}

struct Connections {
    to: SocketAddr,
    http1: Vec<(SocketAddr, http1::SendRequest<Body>)>,
    http2: Option<http2::SendRequest<Body>>,
}

/// What keeps an HTTP/1.1 connection in use, and where it goes.
type Http1 = Option<(SocketAddr, http1::SendRequest<Body>)>;

/// An application's HTTP client, set to use a sidecar. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct Client {
    http2: bool,
    limit: Duration,
    tasks: Tasks,
    connections: Arc<Mutex<Connections>>,
}

impl Client {
    /// HTTP/1.1, connections kept.
    pub fn http1(to: SocketAddr) -> Self {
        let connections = Connections { to, http1: Vec::new(), http2: None };
        Self {
            http2: false,
            limit: LIMIT,
            tasks: Tasks::current(),
            connections: Arc::new(Mutex::new(connections)),
        }
    }

    /// HTTP/2 with prior knowledge, one connection.
    pub fn http2(to: SocketAddr) -> Self {
        Self { http2: true, ..Self::http1(to) }
    }

    /// Another limit of an exchange than 30 s.
    #[must_use]
    pub fn limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    /// Sends what begins from now on to another sidecar; what is under way goes on.
    pub fn turn_to(&self, to: SocketAddr) {
        *self.connections.lock().expect("no holder panics") =
            Connections { to, http1: Vec::new(), http2: None };
    }

    /// GET of `http://{service}{path}`.
    ///
    /// # Errors
    /// There is no complete response.
    pub async fn get(&self, service: &str, path: &str) -> Result<Answer, Broken> {
        self.send(request(Method::GET, service, path, &[], "")).await
    }

    /// POST of a text.
    ///
    /// # Errors
    /// There is no complete response.
    pub async fn post(&self, service: &str, path: &str, body: &str) -> Result<Answer, Broken> {
        self.send(request(Method::POST, service, path, &[], body.to_owned())).await
    }

    /// Sends a request of [`request`] and reads the whole response.
    ///
    /// # Errors
    /// There is no complete response.
    pub async fn send(&self, request: Request<Body>) -> Result<Answer, Broken> {
        let exchange = async {
            let (response, sender) = self.open(request).await.map_err(Broken::Head)?;
            let answer = read(response).await?;
            self.keep(sender);
            Ok(answer)
        };
        tokio::time::timeout(self.limit, exchange).await.unwrap_or(Err(Broken::Timeout))
    }

    /// Sends a request and returns at the response head. The connection ends with the body.
    ///
    /// # Errors
    /// There is no head.
    pub async fn head(&self, request: Request<Body>) -> Result<Response<Incoming>, Broken> {
        let opened =
            tokio::time::timeout(self.limit, self.open(request)).await.map_err(|_| Broken::Timeout)?;
        let (response, sender) = opened.map_err(Broken::Head)?;
        // Its driver ends the connection once the body has been read.
        drop(sender);
        Ok(response)
    }

    async fn open(&self, mut request: Request<Body>) -> Result<(Response<Incoming>, Http1), String> {
        if self.http2 {
            *request.version_mut() = Version::HTTP_2;
            let mut sender = self.http2_sender().await?;
            return match sender.send_request(request).await {
                Ok(response) => Ok((response, None)),
                Err(error) => Err(format!("{error:?}")),
            };
        }
        let mut request = origin_form(request);
        loop {
            let ((to, mut sender), fresh) = match self.idle() {
                Some(sender) => (sender, false),
                None => (self.http1_sender().await?, true),
            };
            if let Err(error) = sender.ready().await {
                if fresh {
                    return Err(format!("{error:?}"));
                }
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, Some((to, sender)))),
                Err(mut failed) => match failed.take_message() {
                    // The sidecar closed an idle connection as we reached for it.
                    Some(unsent) if !fresh => request = unsent,
                    Some(_) | None => return Err(format!("{:?}", failed.error())),
                },
            }
        }
    }

    fn idle(&self) -> Http1 {
        self.connections.lock().expect("no holder panics").http1.pop()
    }

    fn keep(&self, sender: Http1) {
        let Some((to, sender)) = sender.filter(|(_, sender)| !sender.is_closed()) else { return };
        let mut connections = self.connections.lock().expect("no holder panics");
        if connections.to == to {
            connections.http1.push((to, sender));
        }
    }

    fn to(&self) -> SocketAddr {
        self.connections.lock().expect("no holder panics").to
    }

    async fn tcp(&self, to: SocketAddr) -> Result<TokioIo<TcpStream>, String> {
        let stream = TcpStream::connect(to).await.map_err(|error| format!("connect: {error}"))?;
        stream.set_nodelay(true).map_err(|error| error.to_string())?;
        Ok(TokioIo::new(stream))
    }

    async fn http1_sender(&self) -> Result<(SocketAddr, http1::SendRequest<Body>), String> {
        let to = self.to();
        let (sender, driver) =
            http1::handshake(self.tcp(to).await?).await.map_err(|error| format!("{error:?}"))?;
        self.tasks.spawn("client connection", async move {
            let _ended = driver.await;
        });
        Ok((to, sender))
    }

    async fn http2_sender(&self) -> Result<http2::SendRequest<Body>, String> {
        let existing = self.connections.lock().expect("no holder panics").http2.clone();
        if let Some(sender) = existing.filter(|sender| !sender.is_closed()) {
            return Ok(sender);
        }
        let (sender, driver) = http2::Builder::new(Spawn(self.tasks.clone()))
            .timer(TokioTimer::new())
            .handshake(self.tcp(self.to()).await?)
            .await
            .map_err(|error| format!("{error:?}"))?;
        self.tasks.spawn("client connection", async move {
            let _ended = driver.await;
        });
        self.connections.lock().expect("no holder panics").http2 = Some(sender.clone());
        Ok(sender)
    }
}

/// Reads a response to its end.
///
/// # Errors
/// The body breaks off.
pub async fn read(response: Response<Incoming>) -> Result<Answer, Broken> {
    let (head, mut incoming) = response.into_parts();
    let (mut body, mut trailers) = (Vec::new(), None);
    while let Some(frame) = incoming.frame().await {
        match frame {
            Err(error) => {
                return Err(Broken::Body {
                    status: head.status,
                    got: body.len(),
                    error: format!("{error:?}"),
                });
            }
            Ok(frame) => match frame.into_data() {
                Ok(data) => body.extend_from_slice(&data),
                Err(frame) => trailers = frame.into_trailers().ok(),
            },
        }
    }
    let (status, version, headers) = (head.status, head.version, head.headers);
    Ok(Answer { status, version, headers, body: body.into(), trailers })
}

/// A request for `http://{service}{path}`.
///
/// # Panics
/// When something in it is malformed.
pub fn request(
    method: Method,
    service: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Request<Body> {
    stream_request(method, service, path, headers, full(body))
}

/// The same with a body of one's own.
///
/// # Panics
/// When something in it is malformed.
pub fn stream_request(
    method: Method,
    service: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: Body,
) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(format!("http://{service}{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(body).expect("a well-formed request")
}

/// HTTP/1.1 names the host in a header.
fn origin_form(request: Request<Body>) -> Request<Body> {
    let (mut head, body) = request.into_parts();
    if let Some(host) = head.uri.authority().and_then(|authority| authority.as_str().parse().ok()) {
        head.headers.entry(HOST).or_insert(host);
    }
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    head.uri = path.parse().expect("the path of a valid URI");
    Request::from_parts(head, body)
}

/// Sends bytes on a connection of their own and reads what comes until the other side closes.
///
/// # Panics
/// When it does not close soon.
pub async fn raw(to: SocketAddr, bytes: &[u8]) -> String {
    let exchange = async {
        let mut stream = TcpStream::connect(to).await.expect("the port accepts");
        // The other side may close before it has read everything.
        let _early = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _reset = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    soon("the other side closes", exchange).await
}
