//! The order service as its users meet it: real sockets, real SQLite files, real processes.

#![allow(clippy::unwrap_used, reason = "all of this is test code")]
#![allow(unreachable_pub, reason = "a test binary has no outside")]

mod client;
mod contract;
mod durability;
mod idempotency;
mod orders;
mod process;
mod storefront;
mod support;
