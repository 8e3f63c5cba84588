//! The registry as a program of its own.

use std::process::ExitCode;

use clap::Parser;

/// Outrigger's registry: services, identities and recent traces of one mesh.
#[derive(Parser)]
#[command(name = "outrigger-registry", version)]
struct Cli {
    #[command(flatten)]
    args: outrigger_registry::cli::Args,
}

fn main() -> ExitCode {
    outrigger_registry::cli::main_with(&Cli::parse().args)
}
