//! Requests on a connection of HTTP/2: the head, the body as the peer has room for it, the response head.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::header::CONTENT_LENGTH;
use http::{HeaderValue, Method, Request, Response};
use http_body::Body as _;
use outrigger_common::tasks::Tasks;

use super::pulse::Pulse;
use crate::http::body::Body;
use crate::http::incoming::{Incoming, Received};

/// A handle to send one request with.
#[derive(Debug, Clone)]
pub struct Sender {
    requests: SendRequest<Bytes>,
    /// Told of bodies that wait for room, where one may take the room of all.
    told: Option<Arc<Pulse>>,
}

/// A request without a response.
#[derive(Debug)]
pub struct Failed {
    /// The request, if nothing of it was sent and it is at hand.
    pub unsent: Option<Request<Body>>,
    /// Nothing of it was sent.
    pub never_sent: bool,
    /// What HTTP/2 said.
    pub error: h2::Error,
}

impl Sender {
    /// Sends on the connection of `requests`; `told` hears of bodies that wait for room.
    pub fn new(requests: SendRequest<Bytes>, told: Option<Arc<Pulse>>) -> Self {
        Self { requests, told }
    }

    /// Whether the connection takes requests no more.
    pub fn is_closed(&self) -> bool {
        let mut requests = self.requests.clone();
        let mut context = Context::from_waker(std::task::Waker::noop());
        matches!(requests.poll_ready(&mut context), Poll::Ready(Err(_)))
    }

    /// Sends a request and returns the response's head, whose body follows. What of the request's body is
    /// still to be sent then is sent by a task.
    ///
    /// Cancel safety: the stream is reset with `CANCEL`.
    ///
    /// # Errors
    /// The connection or the stream ended before a head.
    pub async fn send(mut self, request: Request<Body>, tasks: &Tasks) -> Result<Response<Incoming>, Failed> {
        if let Err(error) = poll_fn(|context| self.requests.poll_ready(context)).await {
            return Err(Failed { unsent: Some(request), never_sent: true, error });
        }
        let (head, body) = request.into_parts();
        let mut head = Request::from_parts(head, ());
        say_length(&mut head, &body);
        let ended = body.is_end_stream();
        let (mut answer, stream) = match self.requests.send_request(head, ended) {
            Ok(sent) => sent,
            Err(error) => return Err(Failed { unsent: None, never_sent: true, error }),
        };
        let mut rest = (!ended).then(|| Rest::new(body, stream, self.told.take()));
        let answer = poll_fn(|context| {
            if let Some(sending) = &mut rest
                && sending.poll(context).is_ready()
            {
                rest = None;
            }
            Pin::new(&mut answer).poll(context)
        });
        let answer = answer.await.map_err(|error| Failed { unsent: None, never_sent: false, error })?;
        if let Some(mut rest) = rest {
            tasks.spawn("rest of a request", async move { poll_fn(|context| rest.poll(context)).await });
        }
        let (head, stream) = answer.into_parts();
        let body = Incoming::Stream(Received::new(stream, &head.headers));
        Ok(Response::from_parts(head, body))
    }

    /// Asks for an upgrade by extended CONNECT (RFC 8441), whose stream stays open both ways.
    ///
    /// Cancel safety: the stream is reset with `CANCEL`.
    ///
    /// # Errors
    /// The connection or the stream ended before a head.
    pub async fn open(
        mut self,
        request: Request<()>,
    ) -> Result<(Response<RecvStream>, SendStream<Bytes>), h2::Error> {
        poll_fn(|context| self.requests.poll_ready(context)).await?;
        let (answer, stream) = self.requests.send_request(request, false)?;
        Ok((answer.await?, stream))
    }

    /// Whether the peer takes extended CONNECT, once its settings are here.
    pub fn extended_connect(&self) -> bool {
        self.requests.is_extended_connect_protocol_enabled()
    }
}

/// Says how long the body is, where that is known and not said: for methods whose requests may well have a body
/// also that there is none (RFC 9110 section 8.6), as the HTTP library does.
fn say_length(head: &mut Request<()>, body: &Body) {
    let Some(length) = body.size_hint().exact() else { return };
    let meant = !matches!(*head.method(), Method::GET | Method::HEAD | Method::DELETE | Method::CONNECT);
    if (length > 0 || meant) && !head.headers().contains_key(CONTENT_LENGTH) {
        head.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// What of a request is still to be sent.
struct Rest {
    body: Body,
    stream: SendStream<Bytes>,
    /// Read from the body, and whether it is the last; not sent yet for want of room.
    held: Option<(Bytes, bool)>,
    told: Option<Arc<Pulse>>,
    /// It waits for room, and has said so.
    waits: bool,
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.waits(false);
    }
}

impl Rest {
    fn new(body: Body, stream: SendStream<Bytes>, told: Option<Arc<Pulse>>) -> Self {
        Self { body, stream, held: None, told, waits: false }
    }

    fn waits(&mut self, waits: bool) {
        if let Some(told) = &self.told
            && std::mem::replace(&mut self.waits, waits) != waits
        {
            told.wait_for_room(waits);
        }
    }

    /// Sends on, as there is room. Ready when all is sent, or nothing more can be: the response says why.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            if let Poll::Ready(_reset) = self.stream.poll_reset(context) {
                return Poll::Ready(());
            }
            if self.held.is_some() && ready!(self.poll_held(context)) {
                return Poll::Ready(());
            }
            let frame = match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => frame,
                Some(Err(_)) => {
                    self.stream.send_reset(Reason::INTERNAL_ERROR);
                    return Poll::Ready(());
                }
                None => {
                    let _over = self.stream.send_data(Bytes::new(), true);
                    return Poll::Ready(());
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let last = self.body.is_end_stream();
                    // Peers count frames with nothing in them against the connection.
                    if last || !data.is_empty() {
                        self.held = Some((data, last));
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        let _over = self.stream.send_trailers(trailers);
                    }
                    return Poll::Ready(());
                }
            }
        }
    }

    /// Sends what is held once there is room for some of it; whether that was the last.
    ///
    /// Room is asked for when there is something to send, and not before: what a body that waits for its
    /// client holds of the connection's window, the bodies beside it lack, and a peer that gives more only when
    /// all is used up would give none (hyperium/hyper#4003).
    fn poll_held(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let empty = self.held.as_ref().is_some_and(|(data, _)| data.is_empty());
        if !empty && self.stream.capacity() == 0 {
            self.stream.reserve_capacity(1);
            while self.stream.capacity() == 0 {
                match self.stream.poll_capacity(context) {
                    Poll::Ready(Some(Ok(_))) => {}
                    Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(true),
                    Poll::Pending => {
                        self.waits(true);
                        return Poll::Pending;
                    }
                }
            }
            self.waits(false);
        }
        let Some((data, last)) = self.held.take() else { return Poll::Ready(false) };
        Poll::Ready(self.stream.send_data(data, last).is_err() || last)
    }
}
