//! Picks an endpoint and learns from how it did: balancing algorithms, circuit breaker, slow start,
//! zones. Pure: the clock and the randomness come in as arguments.
//!
//! A [`Group`] holds the endpoints of one service port. [`Group::pick`] hands out a [`Pick`];
//! [`Group::report`] takes it back with an [`Outcome`]. What is learned lives in each endpoint's
//! [`EndpointState`] and survives snapshots; what belongs to all of them survives through
//! [`Group::new`]'s `previous`.

mod breaker;
mod draw;
mod endpoint;
mod ewma;
mod floor;
mod group;
mod hash;
mod pick;
mod settings;

pub use breaker::Status;
pub use endpoint::{EndpointState, FAILURE_COST, FailureKind, Look, Outcome};
pub use group::{Group, Transition};
pub use pick::{Ask, Pick};
pub use settings::{Algorithm, BreakerSettings, Settings, ZoneSettings};

/// What the balancer needs to know of an endpoint.
pub trait Candidate {
    /// What is remembered of it.
    fn state(&self) -> &EndpointState;
    /// Whether its sidecar reaches its application, by the registry's word.
    fn healthy(&self) -> bool;
    /// Names it for the hash algorithms: the same at every caller, now and later.
    fn key(&self) -> &str;
    /// Its share relative to others, 1 to 1000.
    fn weight(&self) -> u32 {
        100
    }
    /// Where it runs, if known.
    fn zone(&self) -> Option<&str> {
        None
    }
}

#[cfg(test)]
mod tests;
