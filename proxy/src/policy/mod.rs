//! The mechanisms of policies: how much is retried, let in, waited for and allowed.
//!
//! Everything here decides and nothing here acts: the clock and the random generator are arguments.
//! The exceptions are [`limit::Waiting`], which waits for a turn on a tokio timer, and the permit
//! that gives the turn on when it is dropped.
//!
//! ```text
//! OUTBOUND  inherited::Inherited    the deadline and attempt of the request the call is made for
//!           budget::RetryBudget     may this be sent again?     backoff    how soon?
//!           limit::Bound            is there room?              hedge      when a second attempt?
//!           classify                what does the answer say of the endpoint?
//! INBOUND   authz::Authorization    may this peer call?
//!           budget::ServerBudget    is it one retry too many?
//!           rate                    is it too soon?
//!           limit::Concurrency      whose turn is it?
//!           inherited::Inherited    remembers deadline and attempt while the application works
//! BOTH      deadline                how deadlines travel
//! ```

pub mod authz;
pub mod backoff;
pub mod budget;
pub mod classify;
pub mod deadline;
pub mod hedge;
pub mod inherited;
pub mod limit;
pub mod rate;
