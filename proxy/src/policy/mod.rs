//! The mechanisms of policies: how much is retried, let in, waited for and allowed. Everything here
//! decides and nothing here acts: the clock and the random generator are arguments.

pub mod authz;
pub mod budget;
