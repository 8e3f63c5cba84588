use std::convert::Infallible;

use http::{HeaderMap, Method};
use http_body::Frame;
use http_body_util::{Full, StreamBody};
use hyper::service::service_fn;
use outrigger_api::grpc_health::HealthCheckResponse;
use outrigger_api::grpc_health::health_server::{Health, HealthServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;

/// Longer than a check takes, however busy the machine.
const LONG: Duration = Duration::from_secs(20);
/// For what never comes.
const SHORT: Duration = Duration::from_millis(100);

fn served(target: SocketAddr, protocol: Protocol, health: Check) -> Served {
    Served { name: "orders".into(), port: 80, protocol, target, health, probes: Vec::new() }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    (listener, at)
}

fn ready() -> Check {
    Check::Http(PathAndQuery::from_static("/ready?deep=1"))
}

/// Answers one connection with bytes of one's own, closes it if asked, and returns what it read.
async fn answer(listener: TcpListener, bytes: Vec<u8>, close: bool) -> String {
    let (mut stream, _) = listener.accept().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    // The check may have seen enough before all of it.
    let _early = stream.write_all(&bytes).await;
    if !close {
        while stream.read_u8().await.is_ok() {}
    }
    String::from_utf8(head).unwrap()
}

/// The result of a GET that is answered so.
async fn get(bytes: &str, close: bool, limit: Duration) -> Result<(), Failure> {
    let (listener, at) = listen().await;
    let tasks = Tasks::current();
    let _server = tasks.spawn_joinable("application", answer(listener, bytes.as_bytes().to_vec(), close));
    check(&served(at, Protocol::Http, ready()), limit, &tasks).await
}

#[tokio::test]
async fn a_port_is_asked_as_kubelet_asks() {
    let (listener, at) = listen().await;
    let tasks = Tasks::current();
    let bytes = b"HTTP/1.1 204 No Content\r\n\r\n".to_vec();
    let server = tasks.spawn_joinable("application", answer(listener, bytes, false));
    assert_eq!(check(&served(at, Protocol::Http, ready()), LONG, &tasks).await, Ok(()));
    let head = server.await.unwrap().to_lowercase();
    let mut lines = head.trim_end().lines();
    assert_eq!(lines.next(), Some("get /ready?deep=1 http/1.1"));
    let lines: Vec<_> = lines.collect();
    assert!(
        lines.contains(&format!("host: {at}").as_str()) && lines.contains(&"connection: close"),
        "{head}"
    );
    assert!(lines.iter().any(|line| line.starts_with("user-agent: outrigger-health/")), "{head}");
}

#[tokio::test]
async fn two_and_three_hundreds_are_ready_and_nothing_else_is() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
    let redirect = "HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n";
    let early = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for good in [ok, redirect, early] {
        assert_eq!(get(good, false, LONG).await, Ok(()), "{good}");
    }
    // More than anybody reads: it does not wait for the end.
    let long = format!("HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n{}", "x".repeat(20_000));
    assert_eq!(get(&long, false, LONG).await, Ok(()));
    for status in [404, 500, 503] {
        let bad = format!("HTTP/1.1 {status} No\r\ncontent-length: 0\r\n\r\n");
        let expected = StatusCode::from_u16(status).unwrap();
        assert_eq!(get(&bad, false, LONG).await, Err(Failure::Status(expected)));
    }
}

#[tokio::test]
async fn what_is_no_answer_is_not_ready() {
    let huge = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "x".repeat(100_000));
    for bad in ["", "SSH-2.0-OpenSSH_9.2\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nno", &huge] {
        let result = get(bad, true, LONG).await;
        assert!(matches!(result, Err(Failure::Broken(_))), "{:.40}: {result:?}", bad);
    }
    for hang in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nno"] {
        assert_eq!(get(hang, false, SHORT).await, Err(Failure::Timeout(SHORT)), "{hang}");
    }
}

#[tokio::test]
async fn a_port_nobody_listens_on_is_refused_whatever_is_asked() {
    let (listener, at) = listen().await;
    let tasks = Tasks::current();
    assert_eq!(check(&served(at, Protocol::Http, Check::Tcp), LONG, &tasks).await, Ok(()));
    drop(listener);
    for what in [Check::Tcp, ready(), Check::Grpc(String::new())] {
        let result = check(&served(at, Protocol::Http, what), LONG, &tasks).await;
        assert_eq!(result, Err(Failure::Refused));
    }
}

/// Serves one connection of HTTP/2 with prior knowledge.
async fn serve_h2<S, B>(listener: TcpListener, service: S)
where
    S: hyper::service::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>,
    S::Future: Send + 'static,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let (stream, _) = listener.accept().await.unwrap();
    let builder = hyper::server::conn::http2::Builder::new(Executor(Tasks::current()));
    let _ended = builder.serve_connection(TokioIo::new(stream), service).await;
}

#[tokio::test]
async fn an_application_of_http2_is_asked_in_http2() {
    for (status, expected) in [(200, Ok(())), (503, Err(Failure::Status(StatusCode::SERVICE_UNAVAILABLE)))] {
        let (listener, at) = listen().await;
        let tasks = Tasks::current();
        let service = service_fn(move |request: Request<Incoming>| async move {
            assert_eq!((request.method(), request.uri().path()), (&Method::GET, "/ready"));
            assert_eq!(request.uri().authority().unwrap().as_str(), at.to_string());
            let mut answer = Response::new(Full::new(Bytes::from_static(b"state")));
            *answer.status_mut() = StatusCode::from_u16(status).unwrap();
            Ok(answer)
        });
        tasks.spawn("application", serve_h2(listener, service));
        assert_eq!(check(&served(at, Protocol::Http2, ready()), LONG, &tasks).await, expected);
    }
}

/// As an application has it: a server of tonic's.
struct Answers(i32);

#[tonic::async_trait]
impl Health for Answers {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, tonic::Status> {
        match request.get_ref().service.as_str() {
            "" | "shop.Orders" => Ok(tonic::Response::new(HealthCheckResponse { status: self.0 })),
            other => Err(tonic::Status::not_found(format!("no service {other}"))),
        }
    }
}

async fn grpc_health(service: &str, status: i32) -> Result<(), Failure> {
    let (listener, at) = listen().await;
    let tasks = Tasks::current();
    let service_of_app = service_fn(move |request: Request<Incoming>| {
        assert!(request.headers()[USER_AGENT].to_str().unwrap().starts_with("outrigger-health/"));
        GrpcService::call(&mut HealthServer::new(Answers(status)), request)
    });
    tasks.spawn("application", serve_h2(listener, service_of_app));
    check(&served(at, Protocol::Grpc, Check::Grpc(service.into())), LONG, &tasks).await
}

#[tokio::test]
async fn an_application_of_grpc_says_so_itself() {
    let serving = ServingStatus::Serving as i32;
    assert_eq!(grpc_health("", serving).await, Ok(()));
    assert_eq!(grpc_health("shop.Orders", serving).await, Ok(()));
    for (status, name) in [(0, "UNKNOWN"), (2, "NOT_SERVING"), (3, "SERVICE_UNKNOWN")] {
        assert_eq!(grpc_health("shop.Orders", status).await, Err(Failure::Serving(name)));
    }
    let unknown = grpc_health("shop.Payments", serving).await.unwrap_err().to_string();
    assert!(unknown.contains("NotFound") && unknown.contains("no service shop.Payments"), "{unknown}");
}

/// The result when calls are answered with these trailers in place of a head and a message.
async fn grpc_raw(status: StatusCode, frames: Vec<Frame<Bytes>>) -> Result<(), Failure> {
    let (listener, at) = listen().await;
    let tasks = Tasks::current();
    let service = service_fn(move |_: Request<Incoming>| {
        let frames: Vec<_> = frames
            .iter()
            .map(|frame| match frame.data_ref() {
                Some(data) => Frame::data(data.clone()),
                None => Frame::trailers(frame.trailers_ref().cloned().unwrap_or_default()),
            })
            .map(Ok::<_, Infallible>)
            .collect();
        let mut answer = Response::new(StreamBody::new(tokio_stream::iter(frames)));
        *answer.status_mut() = status;
        answer.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        async move { Ok::<_, Infallible>(answer) }
    });
    tasks.spawn("application", serve_h2(listener, service));
    check(&served(at, Protocol::Grpc, Check::Grpc(String::new())), LONG, &tasks).await
}

#[tokio::test]
async fn what_is_no_answer_of_grpc_is_not_ready() {
    let trailers = |code: &'static str| {
        let mut map = HeaderMap::new();
        map.insert("grpc-status", HeaderValue::from_static(code));
        Frame::trailers(map)
    };
    let message = |bytes: &'static [u8]| Frame::data(Bytes::from_static(bytes));
    // The control: the same bytes as tonic would send.
    let good = vec![message(&[0, 0, 0, 0, 2, 8, 1]), trailers("0")];
    assert_eq!(grpc_raw(StatusCode::OK, good).await, Ok(()));
    let unimplemented = grpc_raw(StatusCode::OK, vec![trailers("12")]).await.unwrap_err();
    assert!(unimplemented.to_string().contains("not implemented"), "{unimplemented}");
    for (status, frames) in [
        (StatusCode::OK, vec![trailers("0")]),
        (StatusCode::OK, vec![message(&[0, 0, 0, 0, 2, 8, 1]), trailers("14")]),
        (StatusCode::OK, vec![message(b"<html>"), trailers("0")]),
        (StatusCode::OK, vec![message(&[0, 0, 1, 0, 0, 8, 1]), trailers("0")]),
        (StatusCode::NOT_FOUND, Vec::new()),
    ] {
        let what = format!("{status} {frames:?}");
        let result = grpc_raw(status, frames).await;
        assert!(matches!(result, Err(Failure::Grpc(_))), "{what}: {result:?}");
    }
}

#[tokio::test]
async fn an_application_that_speaks_no_http2_is_not_ready() {
    for (bytes, close, limit) in
        [("HTTP/1.1 400 Bad\r\n\r\n", true, LONG), ("", true, LONG), ("", false, SHORT)]
    {
        let (listener, at) = listen().await;
        let tasks = Tasks::current();
        let _server = tasks.spawn_joinable("application", answer(listener, bytes.as_bytes().to_vec(), close));
        let result = check(&served(at, Protocol::Grpc, Check::Grpc(String::new())), limit, &tasks).await;
        match result {
            Err(Failure::Timeout(_)) => assert!(!close),
            Err(Failure::Grpc(_) | Failure::Broken(_)) => assert!(close),
            other => panic!("{other:?}"),
        }
    }
}
