//! The upstream of every scenario: one thread, as little work a request as HTTP allows.
//!
//! | Request | Answer |
//! |---|---|
//! | GET, any path | a small object of JSON |
//! | GET `/bytes/N` | N bytes |
//! | POST | drained; an object that says how many bytes there were |
//! | `content-type: application/grpc` | drained; one small message and `grpc-status: 0` in the trailers |
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge on one port.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use anyhow::Result;
use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use outrigger_common::tasks::Tasks;
use tokio::net::{TcpListener, TcpStream};

/// About as much as an order in JSON.
pub(crate) const SMALL: &str = r#"{"id":"0190f2a1-7c1e-7d2b-9f64-5f1d2c3b4a59","customer":"ada","status":"confirmed","items":[{"sku":"paddle-2","quantity":2}],"total_cents":12950}"#;
/// A gRPC message: not compressed, five bytes.
const MESSAGE: &[u8] = b"\0\0\0\0\x05\x0a\x03yes";
/// A body is made of slices of one such piece.
const PIECE: usize = 64 << 10;
static ZEROS: [u8; PIECE] = [0; PIECE];

/// Serves until the process is ended.
pub(crate) async fn serve(listen: SocketAddr) -> Result<()> {
    let listener = TcpListener::bind(listen).await?;
    let tasks = Tasks::current();
    loop {
        // A client that is gone already is its own affair.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tasks.spawn("connection", connection(stream));
    }
}

async fn connection(stream: TcpStream) {
    let _cost_only = stream.set_nodelay(true);
    let mut builder = auto::Builder::new(Spawn(Tasks::current()));
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
    let _ended = builder.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
}

/// Runs what hyper starts for HTTP/2.
#[derive(Clone)]
struct Spawn(Tasks);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawn {
    fn execute(&self, future: F) {
        self.0.spawn("stream", future);
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Answer>, Infallible> {
    if request.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == "application/grpc") {
        drain(request.into_body()).await;
        let mut response =
            Response::new(Answer { left: 0, small: Bytes::from_static(MESSAGE), trailers: true });
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        return Ok(response);
    }
    let body = match request.uri().path().strip_prefix("/bytes/").and_then(|count| count.parse().ok()) {
        Some(count) if request.method() == Method::GET => {
            Answer { left: count, small: Bytes::new(), trailers: false }
        }
        _ if request.method() == Method::POST => {
            let count = drain(request.into_body()).await;
            Answer { left: 0, small: format!("{{\"bytes\":{count}}}").into(), trailers: false }
        }
        _ => Answer { left: 0, small: Bytes::from_static(SMALL.as_bytes()), trailers: false },
    };
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

async fn drain(mut body: Incoming) -> u64 {
    let mut count = 0;
    while let Some(Ok(frame)) = body.frame().await {
        count += frame.data_ref().map_or(0, |data| data.len() as u64);
    }
    count
}

/// A body: the small part, then so many zeros, then the trailers of gRPC.
struct Answer {
    left: u64,
    small: Bytes,
    trailers: bool,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        if !this.small.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.small)))));
        }
        if this.left > 0 {
            let size = usize::try_from(this.left).map_or(PIECE, |left| left.min(PIECE));
            this.left -= size as u64;
            return Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&ZEROS[..size])))));
        }
        if std::mem::take(&mut this.trailers) {
            let mut trailers = HeaderMap::with_capacity(1);
            trailers.insert("grpc-status", HeaderValue::from_static("0"));
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.small.is_empty() && self.left == 0 && !self.trailers
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.small.len() as u64 + self.left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_body_has_the_length_it_says() {
        let body = Answer { left: PIECE as u64 * 2 + 1, small: Bytes::from_static(b"abc"), trailers: true };
        let said = body.size_hint().exact().unwrap();
        let all = body.collect().await.unwrap();
        assert_eq!(all.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(all.to_bytes().len() as u64, said);
    }
}
