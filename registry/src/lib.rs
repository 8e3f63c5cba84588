//! The registry: who runs where, who is who, and what the rules are.
//!
//! ```text
//! sidecar, administrator ──mTLS── grpc ──► join · registrar · resources ──► store (redb, one writer)
//!                                  │                                          │ transactions
//!                                  └── watch streams ◄── hub ◄── state ◄── follow
//! people, Prometheus ──HTTP── http ──► hub · store · traces · metrics
//! ```
//!
//! Writes are compare-and-set transactions on the [`store`] seam. [`follow`] folds what was written
//! into an immutable [`state::State`]; the [`hub`] wakes the streams it concerns, and [`watch`] works
//! out what each must hear. [`app`] is the whole from start to end.

pub mod app;
pub mod backup;
pub mod ca;
pub mod cli;
pub mod config;
pub mod error;
pub mod follow;
mod grpc;
mod http;
pub mod hub;
pub mod join;
pub mod metrics;
pub mod model;
pub mod owners;
pub mod policies;
pub mod refusals;
pub mod registrar;
pub mod resources;
pub mod sent;
pub mod state;
pub mod store;
pub mod traces;
pub mod watch;

pub use app::Registry;
pub use config::Config;
pub use error::StartError;
pub use grpc::Limits;
