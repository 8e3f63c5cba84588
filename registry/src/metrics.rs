//! What the registry counts, in its own Prometheus registry.

use std::time::SystemTime;

use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};

use crate::state::State;

/// Content type of [`Metrics::text`].
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// From half a millisecond to the longest lease anyone waits for.
const CONVERGENCE_BUCKETS: &[f64] =
    &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];

/// Every metric of the registry.
pub struct Metrics {
    registry: Registry,
    endpoints: IntGaugeVec,
    services: IntGauge,
    /// Open watch streams.
    pub streams: IntGauge,
    /// Updates sent.
    pub pushes: IntCounter,
    /// Resources refused by sidecars.
    pub nacks: IntCounter,
    /// Transaction to the last subscriber's acknowledgement.
    pub convergence: Histogram,
    /// Writes that failed.
    pub store_errors: IntCounter,
    /// Leases that ended without being asked to.
    pub leases_expired: IntCounter,
    /// Certificates issued, by kind of identity.
    pub certificates_issued: IntCounterVec,
    /// End of validity, by certificate.
    pub certificate_expiry: IntGaugeVec,
    handshakes: IntCounterVec,
    handshakes_failed: IntCounterVec,
    /// Joins refused.
    pub joins_refused: IntCounter,
    /// Spans received.
    pub spans_received: IntCounter,
    /// Spans that were dropped, being malformed or one too many.
    pub spans_dropped: IntCounter,
    /// Spans and traces kept now.
    pub spans_stored: IntGauge,
    /// Traces kept now.
    pub traces_stored: IntGauge,
}

/// Why handshakes fail.
const HANDSHAKE_FAILURES: [&str; 6] =
    ["other_root", "expired", "certificate", "timeout", "broken", "protocol"];

impl Metrics {
    /// All metrics, at zero.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| register(&registry, IntCounter::new(name, help));
        let gauge = |name: &str, help: &str| register(&registry, IntGauge::new(name, help));
        let gauges = |name: &str, help: &str, label: &str| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), &[label]))
        };
        let counters = |name: &str, help: &str, label: &str| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), &[label]))
        };
        let convergence = HistogramOpts::new(
            "mesh_registry_convergence_seconds",
            "From a change in the store to the acknowledgement of the last stream it concerns.",
        )
        .buckets(CONVERGENCE_BUCKETS.to_vec());
        let metrics = Self {
            endpoints: gauges(
                "mesh_registry_endpoints",
                "Endpoints listed, by health of their application.",
                "health",
            ),
            services: gauge("mesh_registry_services", "Services known."),
            streams: gauge("mesh_registry_streams", "Watch streams open."),
            pushes: counter("mesh_registry_pushes_total", "Updates sent to sidecars."),
            nacks: counter("mesh_registry_nacks_total", "Resources that sidecars refused."),
            convergence: register(&registry, Histogram::with_opts(convergence)),
            store_errors: counter("mesh_registry_store_errors_total", "Writes to the store that failed."),
            leases_expired: counter(
                "mesh_registry_leases_expired_total",
                "Leases of workloads that stopped renewing without deregistering.",
            ),
            certificates_issued: counters(
                "mesh_registry_certificates_issued_total",
                "Certificates issued, by kind of identity: workload, registry, admin.",
                "kind",
            ),
            certificate_expiry: gauges(
                "mesh_certificate_expiry_timestamp_seconds",
                "End of validity of the registry's own certificates: root, registry, admin.",
                "certificate",
            ),
            handshakes: counters(
                "mesh_registry_handshakes_total",
                "TLS handshakes with clients, by result: mutual, anonymous, refused (one anonymous connection too many), failed.",
                "result",
            ),
            handshakes_failed: counters(
                "mesh_registry_handshakes_failed_total",
                "TLS handshakes with clients that failed, by reason: other_root, expired, certificate, timeout, broken, protocol.",
                "reason",
            ),
            joins_refused: counter(
                "mesh_registry_joins_refused_total",
                "Attempts to join that were refused, whatever the reason.",
            ),
            spans_received: counter("mesh_registry_spans_received_total", "Spans received from sidecars."),
            spans_dropped: counter(
                "mesh_registry_spans_dropped_total",
                "Spans not kept: malformed, or beyond what one trace may hold.",
            ),
            spans_stored: gauge("mesh_registry_spans_stored", "Spans kept."),
            traces_stored: gauge("mesh_registry_traces_stored", "Traces kept."),
            registry,
        };
        // Seen from the start, so that an alert on one has a zero to rise from.
        for reason in HANDSHAKE_FAILURES {
            metrics.handshakes_failed.with_label_values(&[reason]);
        }
        metrics
    }

    /// Counts a handshake.
    pub fn handshake(&self, result: &str) {
        self.handshakes.with_label_values(&[result]).inc();
    }

    /// Counts a handshake that failed.
    pub fn handshake_failed(&self, reason: &str) {
        self.handshake("failed");
        self.handshakes_failed.with_label_values(&[reason]).inc();
    }

    /// Notes the end of a certificate's validity.
    pub fn expiry(&self, certificate: &str, at: SystemTime) {
        let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        self.certificate_expiry
            .with_label_values(&[certificate])
            .set(i64::try_from(seconds).unwrap_or(i64::MAX));
    }

    /// Everything in Prometheus's text format; what can be counted is counted now.
    pub fn text(&self, state: &State) -> String {
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let endpoints = || state.services.values().flat_map(|service| service.endpoints.values());
        let healthy = endpoints().filter(|endpoint| endpoint.endpoint.healthy).count();
        self.endpoints.with_label_values(&["healthy"]).set(count(healthy));
        self.endpoints.with_label_values(&["unhealthy"]).set(count(endpoints().count() - healthy));
        self.services.set(count(state.services.len()));
        let mut text = Vec::new();
        TextEncoder::new()
            .encode(&self.registry.gather(), &mut text)
            .expect("metrics of one registry are consistent and a Vec takes them");
        String::from_utf8(text).expect("the text format is UTF-8")
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn register<M: prometheus::core::Collector + Clone + 'static>(
    registry: &Registry,
    metric: prometheus::Result<M>,
) -> M {
    let metric = metric.expect("metric names and labels are constants");
    registry.register(Box::new(metric.clone())).expect("each metric is registered once");
    metric
}
