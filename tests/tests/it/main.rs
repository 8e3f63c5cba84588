//! The whole mesh: real processes, real sockets.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod authorization;
mod backup;
mod certificates;
mod deadlines;
mod discovery;
mod drain;
mod full;
mod http;
mod identity;
mod inputs;
mod keepalive;
mod loss;
mod memory;
mod orders;
mod overload;
mod paused;
mod policies;
mod rates;
mod reach;
mod refusals;
mod registry;
mod retries;
mod routing;
mod shop;
mod state;
