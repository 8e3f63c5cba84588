//! What every Outrigger process does around its work: configuration, identity, tasks, drain,
//! signals and telemetry set-up.
//!
//! Charter: a thing lives here when at least two binaries need it *and* it knows nothing of routes,
//! endpoints or the watch protocol. Everything that touches certificates or gRPC is behind the
//! `mesh` feature, so that an application (the order service) does not compile it.

#![warn(missing_docs)]

pub mod backoff;
pub mod build_info;
pub mod config;
pub mod drain;
pub mod identity;
pub mod listen;
pub mod name;
pub mod signal;
pub mod tasks;
pub mod telemetry;

#[cfg(feature = "mesh")]
pub mod channel;
#[cfg(feature = "mesh")]
pub mod mtls;
#[cfg(feature = "mesh")]
pub mod resolve;
