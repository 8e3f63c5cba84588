//! `cargo xtask bench` runs this: Outrigger beside the proxies people would pick instead.
//!
//! `run` starts everything, itself included: as the application behind every proxy (`app`) and as the floor
//! (`relay`). What each scenario is and how to read the results: `bench/README.md`.

mod app;
mod certs;
mod fill;
mod fleet;
mod goals;
mod idle;
mod instructions;
mod load;
mod options;
mod outrigger;
mod proc;
mod relay;
mod report;
mod results;
mod run;
mod subject;
mod svg;
mod train;

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use outrigger_common::signal::Shutdown;

/// Measures Outrigger beside other proxies, in one run.
#[derive(Parser)]
#[command(name = "outrigger-bench", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure, and write a report.
    Run(options::Options),
    /// A registry under a simulated fleet of sidecars: memory, pushes, a restart.
    Fleet(fleet::Args),
    /// Count the instructions that a request takes, and compare them with what is recorded.
    Instructions(instructions::Options),
    /// Put load on sidecars that were built to write down what they execute.
    Train {
        /// What they do.
        #[arg(long)]
        phase: train::Phase,
    },
    /// Serve as the application.
    App {
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Carry bytes over mutual TLS, as one end of the hop.
    Relay {
        /// Which end.
        #[arg(long)]
        role: relay::Role,
        /// Where to listen.
        #[arg(long)]
        listen: SocketAddr,
        /// Where the bytes go.
        #[arg(long)]
        connect: SocketAddr,
        /// Directory of certificates.
        #[arg(long)]
        identity: PathBuf,
    },
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Run(options) => alone(measure(&options)),
        Command::Fleet(args) => fleet::run(&args),
        Command::Instructions(options) => alone(instructions::run(&options)),
        Command::Train { phase } => alone(train::run(phase)),
        Command::App { listen } => alone(app::serve(listen)),
        Command::Relay { role, listen, connect, identity } => {
            alone(relay::serve(role, listen, connect, &identity))
        }
    }
}

/// Runs on one thread: the kernel ends children with the thread that started them, and what is measured has one, too.
fn alone(work: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

async fn measure(options: &options::Options) -> Result<()> {
    let mut shutdown = Shutdown::listen()?;
    tokio::select! {
        done = run::run(options) => done,
        signal = shutdown.wait() => bail!("ended by {signal}; nothing was written"),
    }
}
