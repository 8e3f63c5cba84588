//! `outrigger.v1.Discovery` for tonic, in the place of the generated server. That one encodes every
//! message anew, and keeps for each stream a buffer of the largest one ever sent on it: with thousands
//! of streams that are told of many endpoints once, it is most of the memory.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::Frame;
use outrigger_api::v1;
use prost::Message;
use tokio::sync::mpsc::Receiver;
use tonic::body::Body;
use tonic::codec::{BufferSettings, DecodeBuf, Decoder};
use tonic::codegen::{BoxFuture, Service, http};
use tonic::metadata::{GRPC_CONTENT_TYPE, MetadataMap};
use tonic::server::NamedService;
use tonic::{Request, Status, Streaming};

use super::MAX_REQUEST;
use super::discovery::{Discovery, Reply};

/// An acknowledgement fits; what does not makes the buffer grow.
const BUFFER: usize = 512;

/// The service.
#[derive(Clone)]
pub(super) struct WatchServer(Arc<Discovery>);

impl WatchServer {
    pub(super) fn new(discovery: Discovery) -> Self {
        Self(Arc::new(discovery))
    }

    fn watch(&self, request: http::Request<Body>) -> http::Response<Body> {
        let (parts, body) = request.into_parts();
        let asked = Streaming::new_request(Asked, body, None, Some(MAX_REQUEST));
        let metadata = MetadataMap::from_headers(parts.headers);
        match self.0.watch(Request::from_parts(metadata, parts.extensions, asked)) {
            Err(status) => status.into_http(),
            Ok(replies) => {
                let told = Told { replies, pieces: VecDeque::new(), over: false };
                let mut response = http::Response::new(Body::new(told));
                response.headers_mut().insert(http::header::CONTENT_TYPE, GRPC_CONTENT_TYPE);
                response
            }
        }
    }
}

impl NamedService for WatchServer {
    const NAME: &'static str = v1::discovery_server::SERVICE_NAME;
}

impl Service<http::Request<Body>> for WatchServer {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let response = match request.uri().path() {
            "/outrigger.v1.Discovery/Watch" => self.watch(request),
            _ => Status::unimplemented("").into_http(),
        };
        Box::pin(std::future::ready(Ok(response)))
    }
}

/// What a stream is told, as the body of its response.
struct Told {
    replies: Receiver<Reply>,
    /// Of the message under way.
    pieces: VecDeque<Bytes>,
    over: bool,
}

impl http_body::Body for Told {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            if self.over {
                return Poll::Ready(None);
            }
            let end = match ready!(self.replies.poll_recv(cx)) {
                Some(Ok(reply)) => {
                    self.pieces = reply.pieces();
                    continue;
                }
                Some(Err(status)) => status,
                None => Status::ok(""),
            };
            self.over = true;
            let mut trailers = http::HeaderMap::new();
            // Its text may be none that a header can hold; its code always is.
            if end.add_header(&mut trailers).is_err() {
                trailers.insert(Status::GRPC_STATUS, (end.code() as i32).into());
            }
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
    }
}

/// Reads what sidecars say, with a small buffer.
struct Asked;

impl Decoder for Asked {
    type Item = v1::WatchRequest;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<v1::WatchRequest>, Status> {
        v1::WatchRequest::decode(buffer).map(Some).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER, BUFFER)
    }
}
