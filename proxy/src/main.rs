//! `outrigger-proxy`: the sidecar alone, without the registry's dependencies.

use std::process::ExitCode;

use clap::Parser;

/// The sidecar of the Outrigger service mesh.
#[derive(Parser)]
#[command(name = "outrigger-proxy", version)]
struct Cli {
    #[command(flatten)]
    args: outrigger_proxy::cli::Args,
}

fn main() -> ExitCode {
    outrigger_proxy::cli::main_with(&Cli::parse().args)
}
