//! The mechanisms of policies: how much is retried, let in, waited for and allowed.
//!
//! Everything here decides and nothing here acts: the clock and the random generator are arguments.
//! The exceptions are [`limit::Waiting`], which waits for a turn on a tokio timer, and the permit
//! that gives the turn on when it is dropped.
//!
//! ```text
//! OUTBOUND  budget::RetryBudget     may this be sent again?     limit::Bound   is there room?
//! INBOUND   authz::Authorization    may this peer call?         budget::ServerBudget
//!           limit::Concurrency      whose turn is it?
//! ```

pub mod authz;
pub mod backoff;
pub mod budget;
pub mod deadline;
pub mod hedge;
pub mod inherited;
pub mod limit;
pub mod rate;
