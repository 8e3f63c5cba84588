//! The families of what the control thread does: certificate, snapshot, state on disk, health.

use prometheus::{Gauge, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry};

use super::metrics::register;

/// What the control thread does.
pub struct ControlFamilies {
    /// Unix time at which the certificate expires.
    pub certificate_expiry: Gauge,
    /// Revision of the registry's state in force.
    pub snapshot_version: IntGauge,
    /// Seconds since the registry last confirmed the snapshot; set at each scrape.
    pub snapshot_age: Gauge,
    /// 1 while the watch stream is up.
    pub registry_connected: IntGauge,
    pub(super) registry_foreign: IntGaugeVec,
    /// Writes of state that failed.
    pub state_failures: IntCounter,
    /// Unix time of the last write of state.
    pub state_written: Gauge,
    pub(super) application_healthy: IntGaugeVec,
    /// Seconds by which the wall clock is ahead of the registry's.
    pub clock_offset: Gauge,
    /// Addresses whose owner is known; set at each scrape.
    pub addresses_known: IntGauge,
    /// Connections whose owner was looked up by address.
    pub address_lookups: IntCounterVec,
}

impl ControlFamilies {
    pub(super) fn new(registry: &Registry) -> Self {
        let counters = |name: &str, help: &str, labels: &[&'static str]| {
            register(registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str| register(registry, Gauge::new(name, help));
        let int_gauge = |name: &str, help: &str| register(registry, IntGauge::new(name, help));
        Self {
            certificate_expiry: gauge(
                "mesh_certificate_expiry_timestamp_seconds",
                "When this sidecar's certificate expires, Unix time.",
            ),
            snapshot_version: int_gauge(
                "mesh_snapshot_version",
                "Revision of the registry's state in force.",
            ),
            snapshot_age: gauge(
                "mesh_snapshot_age_seconds",
                "Time since the registry last confirmed the snapshot.",
            ),
            registry_connected: int_gauge(
                "mesh_registry_connected",
                "1 while the watch stream to the registry is up.",
            ),
            registry_foreign: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("mesh_registry_foreign", "1 while the registry is not believed, by reason."),
                    &["reason"],
                ),
            ),
            application_healthy: register(
                registry,
                IntGaugeVec::new(
                    Opts::new("mesh_application_healthy", "1 while a port of the application is healthy."),
                    &["service", "port"],
                ),
            ),
            state_failures: register(
                registry,
                IntCounter::new("mesh_state_write_failures_total", "Writes of state to disk that failed."),
            ),
            state_written: gauge(
                "mesh_state_last_written_timestamp_seconds",
                "When state was last written to disk, Unix time; 0: not yet.",
            ),
            clock_offset: gauge(
                "mesh_clock_offset_seconds",
                "How far this machine's clock is ahead of the registry's.",
            ),
            addresses_known: int_gauge(
                "mesh_addresses_known",
                "Addresses whose owner the registry told, nobody's among them.",
            ),
            address_lookups: counters(
                "mesh_address_lookups_total",
                "Looks for the owner of an address: known, asked, unanswered, away or unasked.",
                &["result"],
            ),
        }
    }
}
