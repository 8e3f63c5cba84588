//! The `outrigger` binary: every command people type, and the whole mesh in one file.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`args`] | the command line |
//! | [`capture`] | the redirect to the sidecar: rules, nft, iptables |
//! | [`commands`] | one file a command: parse, call, print |
//! | [`admin`] | the registry's admin interface, with errors that name the remedy |
//! | [`demo`] | a whole mesh on one machine: processes, load, chaos, judgement |
//! | [`failure`], [`output`] | exit codes; standard output and error |

mod admin;
mod args;
mod capture;
mod commands;
mod demo;
mod failure;
mod output;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // Before anything else: a child must not outlive the demo, however early either of them dies.
    match demo::child::bind_to_parent() {
        demo::child::Role::OrderService => demo::child::run_order_service(),
        demo::child::Role::Relay => demo::relay::run(),
        demo::child::Role::Command => commands::run(args::Args::parse().command),
    }
}
