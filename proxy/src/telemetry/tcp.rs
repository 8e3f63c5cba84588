//! What is counted of connections of opaque bytes, and of finding out what is spoken on a connection.

use std::sync::Arc;
use std::time::Duration;

use prometheus::{HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry};

use super::edge::Edge;
use super::metrics::{BUCKETS, EDGE, Metrics, register, seconds};
use crate::reason::Reason;
use crate::tcp::relay::Meter;

/// What is spoken on a connection, for the label `protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detected {
    /// HTTP/1.
    Http1,
    /// HTTP/2.
    H2,
    /// TLS of the application's own.
    Tls,
    /// Something else.
    Opaque,
    /// Something else, and the server spoke first.
    ServerFirst,
    /// Nothing: it ended without a byte.
    None,
}

impl Detected {
    fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2 => "h2",
            Self::Tls => "tls",
            Self::Opaque => "opaque",
            Self::ServerFirst => "server_first",
            Self::None => "none",
        }
    }
}

/// The families.
pub(super) struct TcpFamilies {
    opened: IntCounterVec,
    closed: IntCounterVec,
    received: IntCounterVec,
    sent: IntCounterVec,
    detections: IntCounterVec,
    detection: HistogramVec,
}

/// The handles of one edge.
pub(super) struct TcpEdge {
    opened: IntCounter,
    received: IntCounter,
    sent: IntCounter,
}

impl TcpFamilies {
    pub(super) fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, labels: &[&'static str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let detection = HistogramOpts::new(
            "mesh_protocol_detection_seconds",
            "From the client's first byte until it was known what it speaks; where the server spoke first, from the beginning of the connection to its first byte.",
        );
        Self {
            opened: counters(
                "mesh_tcp_connections_opened_total",
                "Connections of opaque bytes begun, those that could not be carried among them.",
                &EDGE,
            ),
            closed: counters(
                "mesh_tcp_connections_closed_total",
                "Connections of opaque bytes ended; the reason is empty where both sides were done.",
                &[EDGE.as_slice(), &["reason"]].concat(),
            ),
            received: counters(
                "mesh_tcp_received_bytes_total",
                "Opaque bytes from the client handed on to the server.",
                &EDGE,
            ),
            sent: counters(
                "mesh_tcp_sent_bytes_total",
                "Opaque bytes from the server handed on to the client.",
                &EDGE,
            ),
            detections: counters(
                "mesh_protocol_detections_total",
                "Connections by what is spoken on them, where that was not declared.",
                &["direction", "protocol"],
            ),
            detection: register(
                registry,
                HistogramVec::new(detection.buckets(BUCKETS.to_vec()), &["direction"]),
            ),
        }
    }

    pub(super) fn edge(&self, labels: [&str; 3]) -> TcpEdge {
        TcpEdge {
            opened: self.opened.with_label_values(&labels),
            received: self.received.with_label_values(&labels),
            sent: self.sent.with_label_values(&labels),
        }
    }

    pub(super) fn closed(&self) -> &IntCounterVec {
        &self.closed
    }

    pub(super) fn detected(&self, direction: &str, what: Detected, took: Duration) {
        self.detections.with_label_values(&[direction, what.as_str()]).inc();
        if what != Detected::None {
            self.detection.with_label_values(&[direction]).observe(seconds(took));
        }
    }
}

/// One connection of opaque bytes: counted when it begins, as its bytes pass, and once when it ends.
///
/// Dropped without [`ConnectionRecord::end`] it counts as left by its client.
pub struct ConnectionRecord {
    edge: Arc<Edge>,
    metrics: Arc<Metrics>,
    reason: Option<Reason>,
}

impl ConnectionRecord {
    /// It begins.
    pub fn start(edge: Arc<Edge>, metrics: Arc<Metrics>) -> Self {
        edge.tcp().opened.inc();
        metrics.activity.begin();
        Self { edge, metrics, reason: Some(Reason::ClientClosed) }
    }

    /// It ends; `None`: both sides were done.
    pub fn end(mut self, reason: Option<Reason>) {
        self.reason = reason;
    }
}

impl Meter for ConnectionRecord {
    fn to_server(&mut self, bytes: u64) {
        self.edge.tcp().received.inc_by(bytes);
    }

    fn to_client(&mut self, bytes: u64) {
        self.edge.tcp().sent.inc_by(bytes);
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        self.edge.closed(self.reason.map_or("", Reason::as_str));
        if let Some(reason) = self.reason.filter(|reason| reason.is_shed()) {
            self.edge.shed(reason);
        }
        self.metrics.activity.end();
    }
}

impl std::fmt::Debug for ConnectionRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.edge)
    }
}
