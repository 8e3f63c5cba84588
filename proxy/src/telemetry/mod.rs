//! What a sidecar tells about its requests: metrics, one record a request, and spans.

pub mod control;
pub mod edge;
pub mod environment;
pub mod metrics;
pub mod record;
pub mod spans;
pub mod tcp;
pub mod trace;
