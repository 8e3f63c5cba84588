//! HTTP byte by byte: what a client sends to its sidecar, what the application receives from its own,
//! and back. Both ends are bare sockets, so that no library of theirs corrects anything.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod client;
mod h2;
mod pair;
mod requests;
mod responses;
mod table;
mod upgrades;
mod upstream;
