//! One record a request: filled on the way, and turned into metrics and a span once, when dropped.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use http::header::HOST;
use http::uri::Authority;
use opentelemetry::trace::SpanKind;

use super::edge::Edge;
use super::metrics::{Direction, Outcome, StatusClass, WireProtocol, seconds};
use super::spans::{FinishedSpan, SpanSink, text};
use super::trace::{TraceContext, new_span_id};
use crate::http::headers;
use crate::http::replay::Replay;
use crate::reason::Reason;

/// What is known of a request. Dropping it emits everything, exactly once.
#[derive(Debug)]
pub struct RequestRecord {
    edge: Arc<Edge>,
    started: Instant,
    protocol: WireProtocol,
    http2: bool,
    mutual_tls: bool,
    status: Option<StatusCode>,
    grpc_status: Option<u8>,
    reason: Option<Reason>,
    processing: Option<Duration>,
    complete: bool,
    request: Option<Replay>,
    /// Bytes of the request that are not those of its body.
    pub request_bytes: u64,
    /// Bytes of the response body so far.
    pub response_bytes: u64,
    /// Where the request stands in its trace.
    pub trace: TraceContext,
    /// This hop's span; the parent of the next hop when sampled.
    pub span_id: u64,
    span: Option<Box<SpanDetails>>,
}

/// How the client spoke: to its own sidecar, whatever runs between the sidecars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spoken {
    /// For the metric's label.
    pub protocol: WireProtocol,
    /// Its HTTP version.
    pub http2: bool,
}

impl Spoken {
    /// Whether it is gRPC.
    pub fn is_grpc(self) -> bool {
        self.protocol == WireProtocol::Grpc
    }
}

/// The port of an authority, 80 where it names none.
fn port_of(authority: &str) -> i64 {
    authority.parse::<Authority>().ok().and_then(|authority| authority.port_u16()).unwrap_or(80).into()
}

/// Kept for sampled requests alone.
#[derive(Debug)]
struct SpanDetails {
    sink: SpanSink,
    started: SystemTime,
    method: String,
    path: String,
    /// Host and port as the client named them.
    authority: String,
    version: &'static str,
    peer: Option<String>,
}

impl RequestRecord {
    /// Begins a record; `now` is when the request head had been read.
    pub fn start(edge: Arc<Edge>, now: Instant, spoken: Spoken, trace: TraceContext) -> Self {
        edge.begin();
        Self {
            edge,
            started: now,
            protocol: spoken.protocol,
            http2: spoken.http2,
            mutual_tls: false,
            status: None,
            grpc_status: None,
            reason: None,
            processing: None,
            complete: false,
            request: None,
            request_bytes: 0,
            response_bytes: 0,
            trace,
            span_id: if trace.sampled { new_span_id() } else { trace.parent_id },
            span: None,
        }
    }

    /// Keeps what a span needs; call for sampled requests alone, unsampled ones must not pay.
    pub fn with_span(&mut self, sink: &SpanSink, request: &http::request::Parts) {
        if !self.trace.sampled {
            return;
        }
        if sink.disabled() {
            // No span of ours stands between the caller's and the next.
            self.span_id = self.trace.parent_id;
            return;
        }
        let host = || request.headers.get(HOST).and_then(|host| host.to_str().ok());
        let authority = request.uri.authority().map(Authority::as_str).or_else(host).unwrap_or_default();
        self.span = Some(Box::new(SpanDetails {
            sink: sink.clone(),
            started: SystemTime::now(),
            method: request.method.to_string(),
            path: request.uri.path().to_owned(),
            authority: authority.to_owned(),
            version: if self.http2 { "2" } else { "1.1" },
            peer: None,
        }));
    }

    /// The parent to tell the next hop: this hop's span, or the caller's where there is none. A trace
    /// that starts here unsampled still needs a parent on the wire.
    pub fn parent_for_next_hop(&self) -> u64 {
        if self.span_id == 0 { new_span_id() } else { self.span_id }
    }

    /// The hop between the sidecars is mutual TLS, with this peer.
    pub fn secured(&mut self, peer: impl FnOnce() -> String) {
        self.mutual_tls = true;
        if let Some(span) = &mut self.span {
            span.peer = Some(peer());
        }
    }

    /// The request's body; its bytes are counted at the end, for it may outlast the response head.
    pub fn request_body(&mut self, body: Replay) {
        self.request = Some(body);
    }

    /// The status the client gets.
    pub fn responded(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The mesh itself answered, or ended the exchange.
    pub fn explained(&mut self, reason: Reason) {
        self.reason = Some(reason);
    }

    /// Time in the application, as measured or reported.
    pub fn processed(&mut self, processing: Duration) {
        self.processing = Some(processing);
    }

    /// Reads `grpc-status` where it is: the head of a trailers-only response, or the trailers.
    pub fn grpc_status(&mut self, map: &http::HeaderMap) {
        if self.is_grpc() {
            self.grpc_status = headers::grpc_status(map).or(self.grpc_status);
        }
    }

    /// Whether the client speaks gRPC.
    pub fn is_grpc(&self) -> bool {
        self.protocol == WireProtocol::Grpc
    }

    /// The gRPC status the mesh itself answers with.
    pub fn grpc_code(&mut self, code: u8) {
        self.grpc_status = Some(code);
    }

    /// The last byte of the response was handed on.
    pub fn completed(&mut self) {
        self.complete = true;
    }

    /// The mesh ended the response before it was read.
    pub fn broken_off(&mut self, reason: Reason) {
        self.complete = false;
        self.reason = Some(reason);
    }

    /// The edge it is counted on.
    pub fn edge(&self) -> &Arc<Edge> {
        &self.edge
    }

    fn class(&self) -> StatusClass {
        let failed_grpc = self.grpc_status.is_some_and(|status| status != 0);
        match self.status {
            Some(status) if self.complete && !failed_grpc => match status.as_u16() / 100 {
                3 => StatusClass::Redirection,
                4 => StatusClass::ClientError,
                5.. => StatusClass::ServerError,
                _ => StatusClass::Success,
            },
            Some(_) | None => StatusClass::Error,
        }
    }

    fn finish_span(&mut self, duration: Duration) {
        let Some(span) = self.span.take() else { return };
        let status = self.status.map_or(0, |status| status.as_u16());
        let kind = match self.edge.direction() {
            Direction::Outbound => SpanKind::Client,
            Direction::Inbound => SpanKind::Server,
        };
        let mut attributes = vec![
            text("http.request.method", span.method.clone()),
            text("url.scheme", "http"),
            text("url.path", span.path.clone()),
            text("server.address", self.edge.destination().to_owned()),
            text("server.port", port_of(&span.authority)),
            text("network.protocol.name", "http"),
            text("network.protocol.version", span.version),
        ];
        if kind == SpanKind::Client {
            // Without the query: it may hold what no collector should see.
            attributes.push(text("url.full", format!("http://{}{}", span.authority, span.path)));
        }
        if status != 0 {
            attributes.push(text("http.response.status_code", i64::from(status)));
        }
        if let Some(code) = self.grpc_status {
            attributes.push(text("rpc.grpc.status_code", i64::from(code)));
        }
        if let Some(peer) = span.peer {
            attributes.push(text("outrigger.peer.identity", peer));
        }
        if let Some(processing) = self.processing {
            attributes.push(text("outrigger.processing_ms", seconds(processing) * 1000.0));
        }
        // A server's 4xx is the client's error, not the server's (HTTP semantic conventions).
        let failed = match self.class() {
            StatusClass::Error | StatusClass::ServerError => true,
            StatusClass::ClientError => kind == SpanKind::Client,
            StatusClass::Success | StatusClass::Redirection => false,
        };
        let error = failed
            .then(|| self.reason.map_or_else(|| status.to_string(), |reason| reason.as_str().to_owned()));
        if let Some(error) = &error {
            attributes.push(text("error.type", error.clone()));
        }
        span.sink.send(FinishedSpan {
            context: self.trace,
            span_id: self.span_id,
            kind,
            name: format!("{} {}", span.method, self.edge.destination()),
            times: (span.started, span.started + duration),
            attributes,
            error,
        });
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        let duration = self.started.elapsed();
        if !self.complete && self.reason.is_none() {
            // Nobody said why the response ended early: whoever dropped it did, and that is the client.
            self.reason = Some(Reason::ClientClosed);
        }
        let edge = &self.edge;
        edge.end();
        edge.request_bytes.inc_by(self.request_bytes + self.request.as_ref().map_or(0, Replay::bytes));
        edge.response_bytes.inc_by(self.response_bytes);
        edge.count(Outcome {
            protocol: self.protocol,
            status: self.status.map_or(0, |status| status.as_u16()),
            grpc_status: self.grpc_status,
            mutual_tls: self.mutual_tls,
            reason: self.reason,
        });
        edge.duration(self.class()).observe(seconds(duration));
        if let Some(processing) = self.processing {
            edge.processing.observe(seconds(processing));
            if edge.direction() == Direction::Outbound {
                edge.transmit.observe(seconds(duration.saturating_sub(processing)));
            }
        }
        self.finish_span(duration);
    }
}
