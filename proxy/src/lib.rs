//! The sidecar: carries an application's calls to other sidecars, and theirs to the application.
//!
//! A request's way, each step a module, in the order it runs:
//!
//! ```text
//! OUTBOUND  listener -> outbound (HTTP/1.1 or HTTP/2) -> outbound::handle
//!             destination   what the authority names
//!             directory     the service, from the snapshot or the registry
//!             route         which rule applies
//!             retry         attempts on endpoints not yet tried
//!               balance     power of two choices over peak-EWMA
//!               pool        a stream to the endpoint's sidecar, identity checked
//!           <- http::body   counts, times and finishes the request's record
//! INBOUND   listener -> inbound (mutual TLS, SNI) -> inbound::handle
//!             served        the port SNI names, or nothing
//!             pool::app     a connection to the application
//!           <- the response with its processing time
//! CONTROL   control::{certs, register, watch} on a thread of their own -> directory
//! ```

pub mod admin;
pub mod app;
pub mod balance;
pub mod cli;
pub mod config;
pub mod control;
pub mod error;
pub mod http;
pub mod inbound;
pub mod listener;
pub mod outbound;
pub mod policy;
pub mod pool;
pub mod reason;
pub mod respond;
pub mod route;
pub mod runtime;
pub mod shared;
pub mod telemetry;
pub mod tls;
