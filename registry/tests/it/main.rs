//! The registry as its clients meet it: real sockets, real TLS, real files, and the real process.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not the harness they share.

mod addresses;
mod admin;
mod crowd;
mod harness;
mod http;
mod identity;
mod policies;
mod process;
mod registration;
mod startup;
mod stream;
