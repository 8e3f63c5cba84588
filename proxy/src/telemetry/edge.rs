//! The metric handles of one edge and route.

use std::sync::{Arc, Mutex, OnceLock};

use prometheus::{Histogram, IntCounter, IntCounterVec, IntGauge};

use super::metrics::{
    Direction, EdgeKey, Metrics, OVERFLOW, Outcome, RetryOutcome, RetryReason, StatusClass,
};
use super::tcp::TcpEdge;
use crate::reason::Reason;

/// Combinations of status, protocol and reason an edge may have before they share one.
pub(super) const MAX_OUTCOMES: usize = 64;

/// The handles of one edge and route.
pub struct Edge {
    metrics: Arc<Metrics>,
    direction: Direction,
    source: Box<str>,
    destination: Box<str>,
    route: Box<str>,
    folded: bool,
    duration: [OnceLock<Histogram>; 5],
    /// Time in the application.
    pub processing: Histogram,
    /// Everything else.
    pub transmit: Histogram,
    /// Waiting for a connection.
    pub queue: Histogram,
    /// Begun and not ended.
    in_flight: IntGauge,
    /// Bytes of request bodies.
    pub request_bytes: IntCounter,
    /// Bytes of response bodies.
    pub response_bytes: IntCounter,
    outcomes: Mutex<Vec<(Outcome, IntCounter)>>,
    /// Of connections of opaque bytes, once there is one.
    tcp: OnceLock<TcpEdge>,
}

impl Edge {
    pub(super) fn new(metrics: &Arc<Metrics>, key: &EdgeKey, folded: bool) -> Self {
        let EdgeKey { direction, source, destination, route } = key;
        let edge = [direction.as_str(), source, destination];
        let with_route = [direction.as_str(), source, destination, route];
        Self {
            duration: Default::default(),
            processing: metrics.processing.with_label_values(&with_route),
            transmit: metrics.transmit.with_label_values(&with_route),
            queue: metrics.queue.with_label_values(&edge),
            in_flight: metrics.in_flight.with_label_values(&edge),
            request_bytes: metrics.request_bytes.with_label_values(&edge),
            response_bytes: metrics.response_bytes.with_label_values(&edge),
            outcomes: Mutex::new(Vec::new()),
            tcp: OnceLock::new(),
            metrics: metrics.clone(),
            direction: *direction,
            source: source.clone(),
            destination: destination.clone(),
            route: route.clone(),
            folded,
        }
    }

    /// Whether it stands for all edges past the bound.
    pub fn is_overflow(&self) -> bool {
        self.folded
    }

    /// A request begins, on this edge and at all.
    pub fn begin(&self) {
        self.in_flight.inc();
        self.metrics.activity.begin();
    }

    /// A request ends.
    pub fn end(&self) {
        self.in_flight.dec();
        self.metrics.activity.end();
    }

    /// Which side this sidecar is.
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The callee, `name.namespace`.
    pub fn destination(&self) -> &str {
        &self.destination
    }

    /// Counts one completed request.
    pub fn count(&self, outcome: Outcome) {
        if self.folded {
            self.metrics.folded.inc();
        }
        let mut outcomes = self.outcomes.lock().expect("no holder of this lock panics");
        // A handful of combinations: a scan beats hashing.
        if let Some((_, counter)) = outcomes.iter().find(|(known, _)| *known == outcome) {
            counter.inc();
            return;
        }
        if outcomes.len() >= MAX_OUTCOMES {
            self.metrics.folded.inc();
            self.counter(outcome.protocol.as_str(), OVERFLOW, "", outcome.mutual_tls, "").inc();
            return;
        }
        let grpc = outcome.grpc_status.map(|status| status.to_string()).unwrap_or_default();
        let reason = outcome.reason.map_or("", Reason::as_str);
        let counter = self.counter(
            outcome.protocol.as_str(),
            &outcome.status.to_string(),
            &grpc,
            outcome.mutual_tls,
            reason,
        );
        counter.inc();
        outcomes.push((outcome, counter));
    }

    fn counter(
        &self,
        protocol: &str,
        status: &str,
        grpc_status: &str,
        mutual_tls: bool,
        reason: &str,
    ) -> IntCounter {
        let tls = if mutual_tls { "mutual" } else { "none" };
        let direction = self.direction.as_str();
        let labels = [
            direction,
            &self.source,
            &self.destination,
            &self.route,
            protocol,
            status,
            grpc_status,
            tls,
            reason,
        ];
        self.metrics.requests.with_label_values(&labels)
    }

    /// The duration's histogram of a class; a class nobody saw has no series.
    pub fn duration(&self, class: StatusClass) -> &Histogram {
        self.duration[class as usize].get_or_init(|| {
            let labels =
                [self.direction.as_str(), &self.source, &self.destination, &self.route, class.as_str()];
            self.metrics.duration.with_label_values(&labels)
        })
    }

    /// Counts a failed attempt that could be repeated. Rare, so looked up by label.
    pub fn retry(&self, reason: RetryReason, outcome: RetryOutcome) {
        let labels =
            [self.direction.as_str(), &self.source, &self.destination, reason.as_str(), outcome.as_str()];
        self.metrics.retries.with_label_values(&labels).inc();
    }

    /// Counts a request refused for want of room.
    pub fn shed(&self, reason: Reason) {
        self.event(&self.metrics.policy.shed, reason.as_str());
    }

    /// Counts a second attempt: `won`, `lost` or `budget_exhausted`.
    pub fn hedge(&self, outcome: &str) {
        self.event(&self.metrics.policy.hedges, outcome);
    }

    /// Counts a fault made on purpose: `delay` or `abort`.
    pub fn fault(&self, kind: &str) {
        self.event(&self.metrics.policy.faults, kind);
    }

    /// The handles of connections of opaque bytes.
    pub(super) fn tcp(&self) -> &TcpEdge {
        self.tcp
            .get_or_init(|| self.metrics.tcp.edge([self.direction.as_str(), &self.source, &self.destination]))
    }

    /// Such a connection has ended; rare enough to be looked up by label.
    pub(super) fn closed(&self, reason: &str) {
        if self.folded {
            self.metrics.folded.inc();
        }
        self.event(self.metrics.tcp.closed(), reason);
    }

    /// Counts a copy of a request: `answered`, `failed` or `skipped`.
    pub fn mirrored(&self, outcome: &str) {
        self.event(&self.metrics.policy.mirrored, outcome);
    }

    /// Rare events are looked up by label.
    fn event(&self, family: &IntCounterVec, label: &str) {
        family.with_label_values(&[self.direction.as_str(), &self.source, &self.destination, label]).inc();
    }
}

impl std::fmt::Debug for Edge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}->{} {}", self.direction.as_str(), self.source, self.destination, self.route)
    }
}
