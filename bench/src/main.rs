//! `cargo xtask bench` runs this: Outrigger beside the proxies people would pick instead.

mod fleet;

use clap::{Parser, Subcommand};

/// Measures Outrigger beside other proxies, in one run.
#[derive(Parser)]
#[command(name = "outrigger-bench", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// A registry under a simulated fleet of sidecars: memory, pushes, a restart.
    Fleet(fleet::Args),
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Fleet(args) => fleet::run(&args),
    }
}
