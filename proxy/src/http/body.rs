//! The one body type of the proxy, and the response body that finishes a request's record.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Sleep;

use super::headers;
use super::replay::RequestBody;
use crate::balance::EndpointState;
use crate::pool::Lease;
use crate::reason::Reason;
use crate::telemetry::record::RequestRecord;

/// Any body the proxy sends.
#[derive(Debug)]
pub enum Body {
    /// Nothing.
    Empty,
    /// A text of the mesh's own.
    Full(Option<Bytes>),
    /// A client's body on its way up.
    Request(RequestBody),
    /// An upstream's body on its way down.
    Response(Box<ResponseBody>),
}

/// A boxed error: hyper only shows it.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match self.get_mut() {
            Self::Empty => Poll::Ready(None),
            Self::Full(text) => Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Self::Request(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Response(body) => body.poll(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Full(text) => text.is_none(),
            Self::Request(body) => body.is_end_stream(),
            Self::Response(body) => body.upstream.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Full(text) => SizeHint::with_exact(
                text.as_ref().map_or(0, |text| u64::try_from(text.len()).unwrap_or(u64::MAX)),
            ),
            Self::Request(body) => body.size_hint(),
            Self::Response(body) => body.upstream.size_hint(),
        }
    }
}

/// Counts a request as in flight at an endpoint until dropped.
#[derive(Debug)]
pub struct InFlight(Arc<dyn HasState>);

/// Something with an endpoint's state in it.
pub trait HasState: Send + Sync + std::fmt::Debug {
    /// The state.
    fn endpoint_state(&self) -> &EndpointState;
}

impl InFlight {
    /// Begins to count.
    pub fn begin(endpoint: Arc<dyn HasState>) -> Self {
        endpoint.endpoint_state().begin();
        Self(endpoint)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.endpoint_state().end();
    }
}

/// An upstream's body: counted, timed, and the owner of what ends with it.
#[derive(Debug)]
pub struct ResponseBody {
    upstream: Incoming,
    record: RequestRecord,
    idle: Duration,
    timer: Option<Pin<Box<Sleep>>>,
    /// Freed when the body ends: the endpoint's count and the connection.
    _in_flight: Option<InFlight>,
    lease: Option<Lease>,
}

impl ResponseBody {
    /// Passes `upstream` on; a body that stands still for `idle` fails.
    pub fn new(
        upstream: Incoming,
        record: RequestRecord,
        idle: Duration,
        in_flight: Option<InFlight>,
        lease: Option<Lease>,
    ) -> Self {
        let mut body = Self { upstream, record, idle, timer: None, _in_flight: in_flight, lease };
        if body.upstream.is_end_stream() {
            body.end();
        }
        body
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match Pin::new(&mut self.upstream).poll_frame(context) {
            Poll::Pending => {
                let idle = self.idle;
                let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(idle)));
                match timer.as_mut().poll(context) {
                    Poll::Pending => Poll::Pending,
                    Poll::Ready(()) => {
                        self.record.explained(Reason::IdleTimeout);
                        Poll::Ready(Some(Err(format!("the response body did not move for {idle:?}").into())))
                    }
                }
            }
            Poll::Ready(Some(Ok(frame))) => {
                self.timer = None;
                let frame = match frame.into_trailers() {
                    Ok(mut trailers) => {
                        self.record.grpc_status(&trailers);
                        headers::strip_claims(&mut trailers);
                        Frame::trailers(trailers)
                    }
                    Err(frame) => frame,
                };
                if let Some(data) = frame.data_ref() {
                    self.record.response_bytes += u64::try_from(data.remaining()).unwrap_or(u64::MAX);
                }
                // After the last announced byte nobody may ask for the end of the stream.
                if self.upstream.is_end_stream() || self.upstream.size_hint().exact() == Some(0) {
                    self.end();
                }
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.record.explained(Reason::UpstreamReset);
                self.lease = None;
                Poll::Ready(Some(Err(error.into())))
            }
            Poll::Ready(None) => {
                self.end();
                Poll::Ready(None)
            }
        }
    }

    fn end(&mut self) {
        self.record.completed();
        if let Some(lease) = self.lease.take() {
            lease.give_back();
        }
    }
}
