//! A registry under a simulated fleet of sidecars, each with a connection, a watch stream and a lease of
//! its own: what the registry costs at rest, how fast a change is everywhere, and what a restart does.

mod identity;
mod plan;
mod process;
mod report;
mod scenario;
mod sidecar;
mod tally;
mod view;
mod wire;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use self::plan::Plan;

/// Arguments.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Args {
    /// Simulated sidecars, each with one connection and one watch stream.
    #[arg(long, default_value_t = 10_000)]
    sidecars: usize,
    /// Services.
    #[arg(long, default_value_t = 1_000)]
    services: usize,
    /// Endpoints in all, registered by the sidecars themselves.
    #[arg(long, default_value_t = 100_000)]
    endpoints: usize,
    /// Services each sidecar watches; the first service is watched by all.
    #[arg(long, default_value_t = 20)]
    watch: usize,
    /// Sidecars that start in a second; after a restart of the registry all come at once.
    #[arg(long, default_value_t = 400)]
    start_rate: usize,
    /// Changes of each kind to time.
    #[arg(long, default_value_t = 10)]
    changes: usize,
    /// Times the registry is killed and started again.
    #[arg(long, default_value_t = 1)]
    restarts: usize,
    /// Lease of the registrations, in seconds; the registry's default is 10.
    #[arg(long, default_value_t = 10)]
    lease_ttl: u64,
    /// The binary to run as the registry, or `outrigger-registry` [default: `outrigger` beside this one].
    #[arg(long, value_name = "FILE")]
    outrigger: Option<PathBuf>,
    /// Where the registry's data goes [default: a directory that is removed afterwards].
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
    /// A table, or one JSON object.
    #[arg(long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

/// Form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Output {
    Text,
    Json,
}

/// Runs the scenario and prints what was measured.
///
/// # Errors
/// What kept it from being measured; a goal that was missed.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let plan = Plan {
        sidecars: args.sidecars,
        services: args.services,
        endpoints: args.endpoints,
        watch: args.watch,
    };
    let plan = plan.check()?;
    raise_file_limit(args.sidecars as u64 + 256)?;
    let binary = match &args.outrigger {
        Some(binary) => binary.clone(),
        None => std::env::current_exe()?.with_file_name("outrigger"),
    };
    let temporary = tempfile::tempdir()?;
    let directory = args.directory.clone().unwrap_or_else(|| temporary.path().to_owned());
    std::fs::create_dir_all(&directory)?;
    let course = scenario::Course {
        plan,
        binary,
        directory,
        lease_ttl: Duration::from_secs(args.lease_ttl),
        start_rate: args.start_rate.max(1),
        changes: args.changes,
        restarts: args.restarts,
    };
    // The fleet must not be what is waited for: it takes what the registry leaves of two cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let measured = runtime.block_on(scenario::run(&course))?;
    let report = report::Report::new(&course, measured);
    match args.output {
        Output::Text => print!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string(&report).context("plain data serialises")?),
    }
    anyhow::ensure!(report.reached(), "a goal was missed");
    Ok(())
}

/// Raises the limit of open files; the registry inherits it.
fn raise_file_limit(needed: u64) -> anyhow::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    anyhow::ensure!(
        maximum >= needed,
        "{needed} files are to be open at once, and the limit is {maximum}: raise it (ulimit -Hn), or use fewer sidecars"
    );
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}
