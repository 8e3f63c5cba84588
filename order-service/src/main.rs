//! The `order-service` binary: arguments in, exit code out.

use std::process::ExitCode;

use clap::Parser;
use order_service::cli::{Command, run_command};

/// Orders over HTTP/JSON, durable in SQLite, and a storefront that uses them.
#[derive(Debug, Parser)]
#[command(name = "order-service", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    run_command(&Arguments::parse().command)
}
