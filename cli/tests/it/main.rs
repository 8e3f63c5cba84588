//! The `outrigger` binary as people and scripts use it: real processes, free ports, nothing but loopback.

#![allow(clippy::unwrap_used)]

mod admin;
mod commands;
mod demo;
mod harness;
