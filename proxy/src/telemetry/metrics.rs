//! The metric families of `docs/metrics.md`, and the handles of each edge resolved ahead.
//!
//! An *edge* is a pair of source and destination in one direction. Its handles are looked up when a
//! snapshot is built or the edge is first seen, never by label on the request path. The number of
//! edges is bounded: past the bound they share one edge labelled `overflow`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::{
    HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
};

use super::control::ControlFamilies;
use super::edge::Edge;
use super::tcp::{Detected, TcpFamilies};
use crate::control::owners::Lookup;
use crate::reason::Reason;

/// Upper bounds in seconds, seven a decade from 100 us to 60 s: neighbouring bounds differ by at
/// most half, so a quantile read from them is off by less than that.
pub(super) const BUCKETS: [f64; 41] = [
    0.0001, 0.00015, 0.0002, 0.0003, 0.0004, 0.0005, 0.0007, 0.001, 0.0015, 0.002, 0.003, 0.004, 0.005,
    0.007, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0,
    4.0, 5.0, 7.0, 10.0, 15.0, 20.0, 30.0, 45.0, 60.0,
];
pub(super) const OVERFLOW: &str = "overflow";
pub(super) const EDGE: [&str; 3] = ["direction", "source", "destination"];

/// Which side of an edge this sidecar is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Beside the server.
    Inbound,
    /// Beside the client.
    Outbound,
}

impl Direction {
    /// The label's value.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Inbound => "inbound",
            Self::Outbound => "outbound",
        }
    }
}

/// How a request was spoken, for the label `protocol`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WireProtocol {
    /// HTTP/1.x.
    Http1,
    /// HTTP/2.
    H2,
    /// gRPC.
    Grpc,
}

impl WireProtocol {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::H2 => "h2",
            Self::Grpc => "grpc",
        }
    }
}

/// The class of an outcome, for the label `status_class`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StatusClass {
    /// 1xx and 2xx.
    Success,
    /// 3xx.
    Redirection,
    /// 4xx.
    ClientError,
    /// 5xx.
    ServerError,
    /// No whole response, or a gRPC status that means failure.
    Error,
}

impl StatusClass {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Success => "2xx",
            Self::Redirection => "3xx",
            Self::ClientError => "4xx",
            Self::ServerError => "5xx",
            Self::Error => "error",
        }
    }
}

/// Why an attempt was repeated, for the label `reason` of retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryReason {
    /// Certainly never reached the application.
    Undelivered,
    /// The connection broke, and the request may be repeated.
    Reset,
    /// The endpoint's sidecar reported that its application broke the connection.
    AppReset,
    /// A status that the policy says to retry on.
    Status,
    /// A gRPC code that the policy says to retry on.
    GrpcStatus,
    /// The attempt took longer than the policy allows one.
    TryTimeout,
}

impl RetryReason {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Undelivered => "undelivered",
            Self::Reset => "reset",
            Self::AppReset => "app_reset",
            Self::Status => "status",
            Self::GrpcStatus => "grpc_status",
            Self::TryTimeout => "try_timeout",
        }
    }
}

/// What became of a wish to retry, for the label `outcome`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RetryOutcome {
    /// Another attempt was made.
    Sent,
    /// The retry budget has nothing left.
    BudgetExhausted,
    /// The server asked for longer than the policy waits, or not to be asked again.
    Pushback,
    /// The body was no longer at hand, or the request may not be repeated.
    NotReplayable,
}

impl RetryOutcome {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Sent => "sent",
            Self::BudgetExhausted => "budget_exhausted",
            Self::Pushback => "pushback",
            Self::NotReplayable => "not_replayable",
        }
    }
}

/// The labels of `mesh_requests_total` that differ from request to request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// How it was spoken.
    pub protocol: WireProtocol,
    /// Status code sent to the client; 0 when none was.
    pub status: u16,
    /// gRPC status, when there was one.
    pub grpc_status: Option<u8>,
    /// Whether the hop between the sidecars was mutual TLS.
    pub mutual_tls: bool,
    /// Why the mesh answered, if it did.
    pub reason: Option<Reason>,
}

/// All families of one sidecar.
pub struct Metrics {
    registry: Registry,
    pub(super) requests: IntCounterVec,
    pub(super) duration: HistogramVec,
    pub(super) processing: HistogramVec,
    pub(super) transmit: HistogramVec,
    pub(super) queue: HistogramVec,
    pub(super) in_flight: IntGaugeVec,
    pub(super) request_bytes: IntCounterVec,
    pub(super) response_bytes: IntCounterVec,
    pub(super) retries: IntCounterVec,
    pub(super) policy: PolicyFamilies,
    pub(super) tcp: TcpFamilies,
    breaker_transitions: IntCounterVec,
    /// Endpoints ejected now; set at each scrape.
    pub breaker_open: IntGauge,
    handshakes: IntCounterVec,
    /// What the control thread does.
    pub control: ControlFamilies,
    /// Spans handed to the collector.
    pub spans_exported: IntCounter,
    spans_dropped: IntCounterVec,
    pub(super) folded: IntCounter,
    edges: Mutex<HashMap<EdgeKey, Arc<Edge>>>,
    max_edges: usize,
    /// For the drain, over all edges.
    pub activity: Activity,
}

/// The families of what policies do.
pub(super) struct PolicyFamilies {
    pub(super) shed: IntCounterVec,
    pub(super) hedges: IntCounterVec,
    pub(super) faults: IntCounterVec,
    pub(super) mirrored: IntCounterVec,
    inheritance: IntCounterVec,
}

impl PolicyFamilies {
    fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, labels: &[&'static str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let with = |label: &'static str| [EDGE.as_slice(), &[label]].concat();
        Self {
            shed: counters(
                "mesh_requests_shed_total",
                "Requests refused at once for want of room.",
                &with("reason"),
            ),
            hedges: counters(
                "mesh_hedges_total",
                "Second attempts before the first had failed: won, lost, or budget_exhausted.",
                &with("outcome"),
            ),
            faults: counters(
                "mesh_faults_injected_total",
                "Faults made on purpose: delay or abort.",
                &with("kind"),
            ),
            mirrored: counters(
                "mesh_mirrored_requests_total",
                "Copies of requests: answered, failed, or skipped for want of room.",
                &with("outcome"),
            ),
            inheritance: counters(
                "mesh_deadline_inheritance_total",
                "Calls made while the application worked under a deadline or a retry: exact, by_trace, or no_context where the call carries no trace context that is known.",
                &["result"],
            ),
        }
    }
}

/// Whether anything goes on, over all edges.
#[derive(Debug, Default)]
pub struct Activity {
    begun: AtomicU64,
    ended: AtomicU64,
}

impl Activity {
    /// A request begins.
    pub fn begin(&self) {
        self.begun.fetch_add(1, Ordering::Relaxed);
    }

    /// A request ends.
    pub fn end(&self) {
        self.ended.fetch_add(1, Ordering::Relaxed);
    }

    /// Requests begun since the start, if none of them is still in flight.
    pub fn idle_after(&self) -> Option<u64> {
        let ended = self.ended.load(Ordering::Relaxed);
        let begun = self.begun.load(Ordering::Relaxed);
        (begun == ended).then_some(begun)
    }
}

#[derive(PartialEq, Eq, Hash, Clone)]
pub(super) struct EdgeKey {
    pub(super) direction: Direction,
    pub(super) source: Box<str>,
    pub(super) destination: Box<str>,
    pub(super) route: Box<str>,
}

impl Metrics {
    /// Registers every family.
    ///
    /// # Panics
    /// Never: names and labels are constants, checked by a test.
    pub fn new(max_edges: usize) -> Self {
        let registry = Registry::new();
        let with = |labels: &[&'static str]| [EDGE.as_slice(), labels].concat();
        let counters = |name: &str, help: &str, labels: &[&'static str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let histograms = |name: &str, help: &str, labels: &[&'static str]| {
            let options = HistogramOpts::new(name, help).buckets(BUCKETS.to_vec());
            register(&registry, HistogramVec::new(options, &with(labels)))
        };
        let int_gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        Self {
            requests: counters(
                "mesh_requests_total",
                "Requests completed.",
                &with(&["route", "protocol", "status", "grpc_status", "tls", "reason"]),
            ),
            duration: histograms(
                "mesh_request_duration_seconds",
                "From the request head read to the last response byte handed on.",
                &["route", "status_class"],
            ),
            processing: histograms(
                "mesh_request_processing_seconds",
                "Time in the application: from the last request byte handed over to the response head, as the server's sidecar reports it.",
                &["route"],
            ),
            transmit: histograms(
                "mesh_request_transmit_seconds",
                "Duration minus processing: wire, both sidecars, queues, earlier attempts.",
                &["route"],
            ),
            queue: histograms("mesh_request_queue_seconds", "Waiting for a connection.", &[]),
            in_flight: register(
                &registry,
                IntGaugeVec::new(
                    Opts::new("mesh_requests_in_flight", "Requests begun and not ended."),
                    &EDGE,
                ),
            ),
            request_bytes: counters("mesh_request_body_bytes_total", "Bytes of request bodies.", &EDGE),
            response_bytes: counters("mesh_response_body_bytes_total", "Bytes of response bodies.", &EDGE),
            retries: counters(
                "mesh_retries_total",
                "Attempts that failed and could be repeated.",
                &with(&["reason", "outcome"]),
            ),
            policy: PolicyFamilies::new(&registry),
            tcp: TcpFamilies::new(&registry),
            breaker_transitions: counters(
                "mesh_circuit_breaker_transitions_total",
                "Endpoints ejected (open), probed (half_open) and returned (closed).",
                &["to"],
            ),
            breaker_open: int_gauge("mesh_circuit_breaker_open", "Endpoints ejected now."),
            handshakes: counters(
                "mesh_tls_handshakes_total",
                "TLS handshakes with other sidecars.",
                &["direction", "result"],
            ),
            control: ControlFamilies::new(&registry),
            spans_exported: register(
                &registry,
                IntCounter::new("mesh_spans_exported_total", "Spans a collector accepted."),
            ),
            spans_dropped: counters(
                "mesh_spans_dropped_total",
                "Spans lost: queue_full or export_failed.",
                &["reason"],
            ),
            folded: register(
                &registry,
                IntCounter::new(
                    "mesh_metrics_folded_total",
                    "Requests counted under an overflow label for want of room.",
                ),
            ),
            edges: Mutex::new(HashMap::new()),
            max_edges,
            activity: Activity::default(),
            registry,
        }
    }

    /// Counts a look for the owner of an address.
    pub fn address_lookup(&self, result: Lookup) {
        self.control.address_lookups.with_label_values(&[result.as_str()]).inc();
    }

    /// The handles of one edge and route; made at first use.
    pub fn edge(
        self: &Arc<Self>,
        direction: Direction,
        source: &str,
        destination: &str,
        route: &str,
    ) -> Arc<Edge> {
        let key = EdgeKey {
            direction,
            source: source.into(),
            destination: destination.into(),
            route: route.into(),
        };
        let mut edges = self.edges.lock().expect("no holder of this lock panics");
        if let Some(edge) = edges.get(&key) {
            return edge.clone();
        }
        if edges.len() < self.max_edges {
            let edge = Arc::new(Edge::new(self, &key, false));
            edges.insert(key, edge.clone());
            return edge;
        }
        // One more than the bound: where all others meet.
        let [source, destination, route] = [OVERFLOW.into(), OVERFLOW.into(), OVERFLOW.into()];
        let key = EdgeKey { direction, source, destination, route };
        edges.entry(key.clone()).or_insert_with(|| Arc::new(Edge::new(self, &key, true))).clone()
    }

    /// Counts a handshake. `result` is `ok`, `failed`, `identity_mismatch`, `limited` or `timeout`.
    pub fn handshake(&self, direction: Direction, result: &str) {
        self.handshakes.with_label_values(&[direction.as_str(), result]).inc();
    }

    /// Whether a port the application serves is healthy. `service` is its label.
    pub fn application_healthy(&self, service: &str, port: u16, healthy: bool) {
        let gauge = self.control.application_healthy.with_label_values(&[service, port.to_string().as_str()]);
        gauge.set(i64::from(healthy));
    }

    /// Counts a call by how it found the request it is made under. `result` is `exact`, `by_trace` or
    /// `no_context`.
    pub fn inherited(&self, result: &str) {
        self.policy.inheritance.with_label_values(&[result]).inc();
    }

    /// Whether a registry is there that is not believed, and why: one of `reasons`.
    pub fn foreign(&self, reason: Option<&str>, reasons: &[&'static str]) {
        for known in reasons {
            self.control.registry_foreign.with_label_values(&[known]).set((reason == Some(known)).into());
        }
    }

    /// Counts endpoints set aside and taken back.
    pub fn breaker_transition(&self, to: &str) {
        self.breaker_transitions.with_label_values(&[to]).inc();
    }

    /// Counts a connection by what is spoken on it, and how long it took to know.
    pub fn detected(&self, direction: Direction, what: Detected, took: Duration) {
        self.tcp.detected(direction.as_str(), what, took);
    }

    /// Counts spans that no collector will see.
    pub fn spans_lost(&self, reason: &str, count: usize) {
        self.spans_dropped.with_label_values(&[reason]).inc_by(u64::try_from(count).unwrap_or(u64::MAX));
    }

    /// Everything in the Prometheus text form.
    pub fn text(&self) -> String {
        prometheus::TextEncoder::new().encode_to_string(&self.registry.gather()).unwrap_or_default()
    }

    /// Names of all families, for the documentation's test.
    #[cfg(test)]
    fn touch_all_for_documentation(self: &Arc<Self>) -> Vec<String> {
        let edge = self.edge(Direction::Outbound, "a", "b", "c");
        let outcome = Outcome {
            protocol: WireProtocol::Http1,
            status: 200,
            grpc_status: None,
            mutual_tls: true,
            reason: None,
        };
        edge.count(outcome);
        edge.duration(StatusClass::Success).observe(0.0);
        edge.retry(RetryReason::Reset, RetryOutcome::Sent);
        edge.shed(Reason::Overloaded);
        edge.hedge("won");
        edge.fault("delay");
        edge.mirrored("answered");
        self.inherited("exact");
        self.handshake(Direction::Inbound, "ok");
        self.breaker_transition("open");
        self.detected(Direction::Outbound, Detected::Opaque, Duration::ZERO);
        edge.tcp();
        edge.closed("");
        self.foreign(None, &["unknown_root"]);
        self.spans_lost("queue_full", 0);
        self.registry.gather().iter().map(|family| family.name().to_owned()).collect()
    }
}

impl std::fmt::Debug for Metrics {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Metrics")
    }
}

pub(super) fn register<C: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    family: prometheus::Result<C>,
) -> C {
    let family = family.expect("metric names and labels are valid constants");
    registry.register(Box::new(family.clone())).expect("each family is registered once");
    family
}

/// Seconds as Prometheus counts them.
pub fn seconds(duration: Duration) -> f64 {
    duration.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::super::edge::MAX_OUTCOMES;
    use super::*;

    fn outcome(status: u16) -> Outcome {
        Outcome { protocol: WireProtocol::Http1, status, grpc_status: None, mutual_tls: true, reason: None }
    }

    #[test]
    fn edges_past_the_bound_share_one_and_are_counted() {
        let metrics = Arc::new(Metrics::new(1));
        metrics.edge(Direction::Outbound, "a.x", "b.x", "default").count(outcome(200));
        for name in ["c.x", "d.x"] {
            metrics.edge(Direction::Outbound, "a.x", name, "default").count(outcome(200));
        }
        let text = metrics.text();
        assert!(text.contains("destination=\"b.x\"") && text.contains("destination=\"overflow\""));
        assert!(!text.contains("c.x") && !text.contains("d.x"), "{text}");
        assert!(text.contains("mesh_metrics_folded_total 2"), "{text}");
    }

    #[test]
    fn outcomes_of_an_edge_are_bounded() {
        let metrics = Arc::new(Metrics::new(10));
        let edge = metrics.edge(Direction::Inbound, "a.x", "b.x", "default");
        for status in 100..600 {
            edge.count(outcome(status));
        }
        let series = metrics.text().lines().filter(|line| line.starts_with("mesh_requests_total{")).count();
        assert_eq!(series, MAX_OUTCOMES + 1);
    }

    #[test]
    fn buckets_rise_and_are_dense() {
        assert!(BUCKETS.windows(2).all(|pair| pair[0] < pair[1] && pair[1] / pair[0] <= 1.51));
    }

    #[test]
    fn the_catalogue_names_every_family() {
        let catalogue = include_str!("../../../docs/metrics.md");
        for name in Arc::new(Metrics::new(10)).touch_all_for_documentation() {
            assert!(catalogue.contains(&format!("`{name}`")), "docs/metrics.md lacks {name}");
        }
        for reason in Reason::ALL {
            assert!(
                catalogue.contains(&format!("`{}`", reason.as_str())),
                "docs/metrics.md lacks the reason {}",
                reason.as_str()
            );
        }
    }
}
