//! The command line, shared by `outrigger-registry` and `outrigger registry`.

use std::path::PathBuf;
use std::process::ExitCode;

use outrigger_common::signal::Shutdown;
use outrigger_common::telemetry::{chain, init_logging};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;

use crate::app::Registry;
use crate::config::Config;
use crate::error::StartError;
use crate::grpc::Limits;

/// Exit code when the configuration is refused, as clap's for arguments.
const EXIT_CONFIG: u8 = 2;

/// Arguments of the registry.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Configuration file; without one, defaults and OUTRIGGER_* variables.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to print on standard output once ready: nothing, or one line of JSON with the addresses.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people: the log on standard error.
    Text,
    /// For scripts: one object on standard output.
    Json,
}

/// Runs a registry until SIGTERM, SIGINT or SIGHUP: 0 after an orderly end, 2 when the configuration is
/// refused, 1 when it cannot start or cannot go on.
pub fn main_with(args: &Args) -> ExitCode {
    let config = match Config::read(args.config.as_deref()) {
        Ok(config) => config,
        Err(error) => return refuse(&error, EXIT_CONFIG),
    };
    init_logging(config.log_format);
    raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return refuse(&error, 1),
    };
    match runtime.block_on(run(config, args.output)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ StartError::Config(_)) => refuse(&error, EXIT_CONFIG),
        Err(error) => refuse(&error, 1),
    }
}

/// Lets this process open as many files as it may: systems start programs with a limit of 1024 or so
/// for the sake of those that use select(2), and each sidecar's connection is a file.
fn raise_file_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: maximum, maximum };
    let limit = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => maximum,
        Err(error) => {
            tracing::debug!(%error, "the limit of open files stays as it is");
            current
        }
    };
    let wanted = Limits::default().connections as u64;
    if let Some(limit) = limit.filter(|limit| *limit < wanted) {
        tracing::info!(
            limit,
            "open files are limited: about so many connections at once; a sidecar has one, and two for moments"
        );
    }
}

async fn run(config: Config, output: Output) -> Result<(), StartError> {
    let mut signals = Shutdown::listen()?;
    let data_dir = config.data_dir.display().to_string();
    let registry = Registry::bind(config).await?;
    if output == Output::Json {
        let (grpc, http) = (registry.grpc_address().to_string(), registry.http_address().to_string());
        println!("{}", json!({ "grpc": grpc, "http": http, "data_dir": data_dir }));
    }
    let shutdown = async {
        let signal = signals.wait().await;
        tracing::info!(signal, "stopping");
    };
    registry.run(shutdown).await
}

fn refuse(error: &dyn std::error::Error, code: u8) -> ExitCode {
    eprintln!("outrigger registry: {}", chain(error));
    ExitCode::from(code)
}
