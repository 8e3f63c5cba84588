//! The whole mesh: real processes, real sockets.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod certificates;
mod discovery;
mod drain;
mod identity;
mod loss;
mod reach;
mod registry;
mod shop;
