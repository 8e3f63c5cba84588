//! One check of an application: connect, and ask if there is something to ask. Each on a connection of
//! its own, because that is what a caller would get.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http::header::{CONNECTION, HOST, USER_AGENT};
use http::uri::{Authority, PathAndQuery};
use http::{HeaderValue, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::TokioIo;
use outrigger_api::grpc_health::HealthCheckRequest;
use outrigger_api::grpc_health::health_check_response::ServingStatus;
use outrigger_api::grpc_health::health_client::HealthClient;
use outrigger_api::resource::Protocol;
use outrigger_common::channel::describe;
use outrigger_common::tasks::Tasks;
use outrigger_common::telemetry::chain;
use tokio::net::TcpStream;
use tonic::client::GrpcService;

use crate::config::{Check, Served};
use crate::http::exec::Executor;

/// Largest head of an answer, in bytes.
const HEAD: u32 = 16 << 10;
/// Bytes of a body that are read so that the application can finish writing it; as kubelet has it
/// (`maxRespBodyLength` of its HTTP probe).
const BODY: usize = 10 << 10;
/// Largest message of gRPC: the answer has one number.
const MESSAGE: usize = 1 << 10;
/// How the application recognises a check.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("outrigger-health/", env!("CARGO_PKG_VERSION")));

/// Why an application is not ready.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// Nobody listens.
    #[error("nobody listens there")]
    Refused,
    /// There is no connection.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// Not in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// What came is no answer.
    #[error("no answer: {0}")]
    Broken(String),
    /// An answer to the GET that is neither 2xx nor 3xx.
    #[error("it answers {0}")]
    Status(StatusCode),
    /// It said so itself, or it knows no such service.
    #[error("its gRPC health is {0}")]
    Serving(&'static str),
    /// The call failed.
    #[error("its gRPC health cannot be asked: {0}")]
    Grpc(String),
}

/// Checks once, within `limit`.
///
/// Cancel safety: the connection is closed.
///
/// # Errors
/// Why it is not ready.
pub async fn check(served: &Served, limit: Duration, tasks: &Tasks) -> Result<(), Failure> {
    let checking = async {
        let tcp = connect(served.target).await?;
        match &served.health {
            Check::Tcp => Ok(()),
            Check::Http(path) => {
                // Ready with 2xx or 3xx: what Kubernetes' kubelet takes for success. Redirects are not
                // followed: where they lead may be another application.
                match http(tcp, path, served.protocol, tasks).await? {
                    status if status.is_success() || status.is_redirection() => Ok(()),
                    status => Err(Failure::Status(status)),
                }
            }
            Check::Grpc(service) => grpc(tcp, service, tasks).await,
        }
    };
    tokio::time::timeout(limit, checking).await.unwrap_or(Err(Failure::Timeout(limit)))
}

/// What the application at `target` answers to a GET, within `limit`: its status, whatever that is.
///
/// Cancel safety: the connection is closed.
///
/// # Errors
/// Why there is no answer.
pub async fn status(
    target: SocketAddr,
    path: &PathAndQuery,
    protocol: Protocol,
    (limit, tasks): (Duration, &Tasks),
) -> Result<StatusCode, Failure> {
    let asking = async { http(connect(target).await?, path, protocol, tasks).await };
    tokio::time::timeout(limit, asking).await.unwrap_or(Err(Failure::Timeout(limit)))
}

async fn connect(target: SocketAddr) -> Result<TcpStream, Failure> {
    TcpStream::connect(target).await.map_err(|error| match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        _ => Failure::Connect(error.to_string()),
    })
}

/// GET, in HTTP/2 with prior knowledge if the application speaks that alone.
async fn http(
    tcp: TcpStream,
    path: &PathAndQuery,
    protocol: Protocol,
    tasks: &Tasks,
) -> Result<StatusCode, Failure> {
    let h2 = matches!(protocol, Protocol::Http2 | Protocol::Grpc);
    let authority = authority(&tcp)?;
    let request = Request::get(path.as_str()).header(USER_AGENT, AGENT);
    match h2 {
        false => {
            let request = request.header(HOST, authority.as_str()).header(CONNECTION, "close");
            let request = request.body(Empty::<Bytes>::new()).map_err(broken)?;
            let mut builder = http1::Builder::new();
            builder.max_buf_size(HEAD as usize);
            let (mut sender, driver) = builder.handshake(TokioIo::new(tcp)).await.map_err(broken)?;
            driven(read(async move { sender.send_request(request).await }), driver).await
        }
        true => {
            let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path.clone());
            let request = request.uri(uri.build().map_err(broken)?);
            let request = request.body(Empty::<Bytes>::new()).map_err(broken)?;
            let (mut sender, driver) =
                http2_builder(tasks).handshake(TokioIo::new(tcp)).await.map_err(broken)?;
            driven(read(async move { sender.send_request(request).await }), driver).await
        }
    }
}

/// The answer's status, with its body read to the end or up to a bound.
async fn read(
    answer: impl Future<Output = hyper::Result<Response<Incoming>>>,
) -> Result<StatusCode, Failure> {
    let mut answer = answer.await.map_err(broken)?;
    let mut left = BODY;
    while let Some(frame) = answer.body_mut().frame().await {
        let frame = frame.map_err(broken)?;
        let size = frame.data_ref().map_or(0, Buf::remaining);
        match left.checked_sub(size) {
            Some(less) => left = less,
            None => break,
        }
    }
    Ok(answer.status())
}

/// `grpc.health.v1.Health/Check` over HTTP/2 with prior knowledge.
async fn grpc(tcp: TcpStream, service: &str, tasks: &Tasks) -> Result<(), Failure> {
    let uri = Uri::builder().scheme("http").authority(authority(&tcp)?).path_and_query("/");
    let uri = uri.build().map_err(broken)?;
    let (sender, driver) = http2_builder(tasks).handshake(TokioIo::new(tcp)).await.map_err(broken)?;
    let asking = async move {
        let mut client = HealthClient::with_origin(Sender(sender), uri).max_decoding_message_size(MESSAGE);
        let request = HealthCheckRequest { service: service.to_owned() };
        client.check(request).await.map_err(|status| match status.code() {
            tonic::Code::Unimplemented => Failure::Grpc("grpc.health.v1 is not implemented there".to_owned()),
            code => Failure::Grpc(format!("{code:?}: {}", describe(&status))),
        })
    };
    let answer = driven(asking, driver).await?.into_inner();
    match answer.status() {
        ServingStatus::Serving => Ok(()),
        other => Err(Failure::Serving(other.as_str_name())),
    }
}

fn http2_builder(tasks: &Tasks) -> http2::Builder<Executor> {
    let mut builder = http2::Builder::new(Executor(tasks.clone()));
    builder.max_header_list_size(HEAD);
    builder
}

fn authority(tcp: &TcpStream) -> Result<Authority, Failure> {
    let peer = tcp.peer_addr().map_err(|error| Failure::Connect(error.to_string()))?;
    Authority::try_from(peer.to_string()).map_err(broken)
}

fn broken(error: impl std::error::Error) -> Failure {
    Failure::Broken(chain(&error))
}

/// Runs an exchange and its connection in one; what the connection ends with the exchange hears too.
async fn driven<T>(exchange: impl Future<Output = T>, driver: impl Future) -> T {
    let driver = async {
        driver.await;
        std::future::pending().await
    };
    tokio::select! {
        biased;
        result = exchange => result,
        never = driver => never,
    }
}

/// A connection as tonic wants it.
struct Sender(http2::SendRequest<tonic::body::Body>);

impl GrpcService<tonic::body::Body> for Sender {
    type ResponseBody = Incoming;
    type Error = hyper::Error;
    type Future = Pin<Box<dyn Future<Output = hyper::Result<Response<Incoming>>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<hyper::Result<()>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<tonic::body::Body>) -> Self::Future {
        request.headers_mut().insert(USER_AGENT, AGENT);
        Box::pin(self.0.send_request(request))
    }
}

#[cfg(test)]
mod tests;
