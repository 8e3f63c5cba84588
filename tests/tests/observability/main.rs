//! What people see of the mesh, checked with the tools they see it with: metrics against what was
//! sent, the split of delay, traces at a real collector, and everything in `deploy/prometheus` and
//! `deploy/grafana` at a real Prometheus.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod collector;
mod dashboard;
mod delay;
mod demo;
mod prometheus;
mod relay;
mod scrape;
mod traces;
mod truth;
