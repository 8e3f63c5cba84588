//! The two subcommands, for this crate's own binary and for any other that wants to start them.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};
use outrigger_common::drain::DrainTrigger;
use outrigger_common::signal::Shutdown;
use outrigger_common::tasks::Tasks;
use outrigger_common::telemetry::{chain, init_logging};

use crate::config::{Config, Overrides};
use crate::{server, storefront};

/// Exit code of a configuration that is refused; the same as for wrong arguments.
const EXIT_CONFIG: u8 = 2;

/// What to run.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Serve orders over HTTP/JSON.
    Server(ServerArguments),
    /// Serve a shop that calls the order service.
    Storefront(StorefrontArguments),
}

/// Arguments of server mode; each wins over file and environment.
#[derive(Debug, Clone, Args)]
pub struct ServerArguments {
    /// Arguments of both modes.
    #[command(flatten)]
    pub common: CommonArguments,
    /// SQLite file (server.database).
    #[arg(long, value_name = "PATH")]
    pub database: Option<PathBuf>,
}

/// Arguments of storefront mode; each wins over file and environment.
#[derive(Debug, Clone, Args)]
pub struct StorefrontArguments {
    /// Arguments of both modes.
    #[command(flatten)]
    pub common: CommonArguments,
    /// The order service, such as `http://orders.shop` (storefront.orders).
    #[arg(long, value_name = "URL")]
    pub orders: Option<String>,
    /// Forward proxy for calls to it, such as http://127.0.0.1:15001 (storefront.proxy).
    #[arg(long, value_name = "URL")]
    pub proxy: Option<String>,
}

/// Arguments of both modes.
#[derive(Debug, Clone, Args)]
pub struct CommonArguments {
    /// Configuration file (YAML).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Address to listen on; port 0 picks a free one.
    #[arg(long, value_name = "HOST:PORT")]
    pub listen: Option<SocketAddr>,
    /// How to announce readiness on standard output.
    #[arg(long, value_enum, default_value_t)]
    pub output: Output,
}

/// Form of standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// A sentence.
    #[default]
    Text,
    /// One object, `{"listen":"127.0.0.1:8080"}`.
    Json,
}

/// Runs a command on a runtime of one thread until SIGTERM, SIGINT or SIGHUP has been drained.
///
/// Exit codes: 0 drained, 1 could not start, 2 configuration refused. Failures are written to
/// standard error.
///
/// # Panics
/// On a thread that already runs a tokio runtime.
pub fn run_command(command: &Command) -> ExitCode {
    let (common, overrides) = match command {
        Command::Server(server) => {
            let database = server.database.clone();
            (&server.common, Overrides { listen: server.common.listen, database, ..Overrides::default() })
        }
        Command::Storefront(shop) => {
            let (orders, proxy) = (shop.orders.clone(), shop.proxy.clone());
            (&shop.common, Overrides { listen: shop.common.listen, orders, proxy, ..Overrides::default() })
        }
    };
    let output = common.output;
    let config = match Config::load(common.config.as_deref(), overrides) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    init_logging(config.log_format);
    // One thread: hashing, parsing and SQLite's own threads leave little that a second would do.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map(|runtime| runtime.block_on(run(command, config, output))) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(message)) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("error: cannot start the runtime: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: &Command, config: Config, output: Output) -> Result<(), String> {
    let mut shutdown = Shutdown::listen().map_err(|error| format!("cannot listen for signals: {error}"))?;
    let trigger = DrainTrigger::new();
    let drain = trigger.listen();
    Tasks::current().spawn("signals", async move {
        let signal = shutdown.wait().await;
        tracing::info!(signal, "draining");
        trigger.start();
    });
    let ready = |address| announce(address, output);
    match command {
        Command::Server(_) => server::run(config.server, ready, drain).await.map_err(|error| chain(&error)),
        Command::Storefront(_) => {
            storefront::run(config.storefront, ready, drain).await.map_err(|error| chain(&error))
        }
    }
}

/// Says where requests are answered, at once even through a pipe.
fn announce(address: SocketAddr, output: Output) {
    let mut out = std::io::stdout().lock();
    let line = match output {
        Output::Text => format!("listening on http://{address}"),
        Output::Json => format!(r#"{{"listen":"{address}"}}"#),
    };
    // Nobody reading standard output is no reason not to serve.
    let _closed = writeln!(out, "{line}").and_then(|()| out.flush());
}
