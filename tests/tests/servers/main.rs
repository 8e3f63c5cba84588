//! Real servers of other protocols than HTTP, called by their own clients through two sidecars.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod raw;
mod road;
mod tls;
mod unmarked;
