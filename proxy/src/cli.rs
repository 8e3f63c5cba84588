//! The command line of the sidecar, shared by `outrigger-proxy` and `outrigger proxy`.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args as ClapArgs, ValueEnum};
use outrigger_common::config::Origin;
use outrigger_common::telemetry::{chain, init_logging};

use crate::app::Proxy;
use crate::config::{Config, KEYS};

/// Exit code for a wrong command line or configuration.
const USAGE: u8 = 2;

/// Options of the sidecar.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Configuration file (YAML); without one, defaults and OUTRIGGER_* variables.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to print on standard output once the sockets are open.
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// The form of what is printed on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Nothing: the log says it.
    Text,
    /// One object of addresses on one line.
    Json,
}

/// Runs a sidecar until SIGTERM, SIGINT or SIGHUP has drained it. Exit codes: 0 drained, 1 failed,
/// 2 wrong configuration.
pub fn main_with(args: &Args) -> ExitCode {
    let config = Origin::read(args.config.as_deref(), KEYS).and_then(|origin| Config::load(&origin));
    let config = match config {
        Ok(config) => config,
        Err(error) => {
            complain(&error);
            return ExitCode::from(USAGE);
        }
    };
    init_logging(config.log_format);
    match run(config, args.output) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(error.as_ref());
            ExitCode::FAILURE
        }
    }
}

fn run(config: Config, output: Output) -> Result<(), Box<dyn std::error::Error>> {
    let proxy = Proxy::bind(config)?;
    // Before anybody learns that we are there: a signal must drain, not kill.
    let mut shutdown = proxy.listen_for_signals()?;
    let own = proxy.addresses();
    tracing::info!(outbound = %own.outbound, mesh = %own.mesh, admin = %own.admin, workload = proxy.workload(), "listening");
    if output == Output::Json {
        let line = serde_json::json!({
            "outbound": own.outbound.to_string(),
            "mesh": own.mesh.to_string(),
            "admin": own.admin.to_string(),
            "ports": own.local_ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "workload": proxy.workload(),
        });
        writeln!(std::io::stdout().lock(), "{line}")?;
    }
    proxy.run(async move {
        let signal = shutdown.wait().await;
        tracing::info!(signal, "asked to end");
    })?;
    Ok(())
}

fn complain(error: &dyn std::error::Error) {
    // Standard error may be closed; there is nobody to tell then.
    let _closed = writeln!(std::io::stderr().lock(), "error: {}", chain(error));
}
