//! The whole mesh: real processes, real sockets.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod addresses;
mod authorization;
mod backup;
mod balancing;
mod certificates;
mod connections;
mod deadlines;
mod discovery;
mod drain;
mod full;
mod health;
mod hedging;
mod http;
mod identity;
mod inputs;
mod keepalive;
mod lifecycle;
mod loss;
mod memory;
mod opaque;
mod orders;
mod overload;
mod paused;
mod policies;
mod rates;
mod reach;
mod refusals;
mod registry;
mod repeats;
mod resting;
mod retries;
mod routing;
mod shop;
mod stalled;
mod state;
mod timeouts;
mod tunnels;
