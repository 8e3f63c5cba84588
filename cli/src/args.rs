//! What people type.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};
use outrigger_common::config::parse_duration;

/// A service mesh in one binary: the registry, the sidecars and what administers them.
///
/// Start with `outrigger demo`.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version, propagate_version = false, disable_help_subcommand = true)]
#[command(
    after_help = "Exit codes: 0 done, 1 it did not work, 2 the arguments, a file or the identity are wrong."
)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole mesh on this machine, under load, and judge it
    Demo(DemoArgs),
    /// Run a sidecar
    Proxy(outrigger_proxy::cli::Args),
    /// Run the registry, or back it up and restore it
    Registry(RegistryArgs),
    /// Create, change or delete resources: all of them in one transaction, or none
    Apply(ApplyArgs),
    /// Show resources and what runs
    Get(GetArgs),
    /// Make a token a sidecar can join with, or revoke one
    Token(TokenArgs),
    /// Redirect an application's connections to its sidecar, or stop doing so
    Capture(crate::capture::args::CaptureArgs),
    /// Say what this binary is
    Version(VersionArgs),
    /// Print a completion script for a shell
    Completions(CompletionsArgs),
}

/// Without a command the registry runs, until SIGTERM. It keeps everything in its data_dir, the
/// mesh's root and its private key among it: losing that directory without a backup means that every
/// sidecar must join again.
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
pub(crate) struct RegistryArgs {
    #[command(subcommand)]
    pub(crate) command: Option<RegistryCommand>,
    #[command(flatten)]
    pub(crate) run: outrigger_registry::cli::Args,
}

#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Write everything the registry holds to a file that must be kept secret
    ///
    /// The file holds the mesh's root with its PRIVATE KEY: whoever reads it can be any workload of
    /// the mesh, and the registry. It is written with mode 0600. Keep it as you keep the root of any
    /// CA: encrypted, away from this machine, readable by nobody but those who restore it.
    ///
    /// The registry may go on running: the backup is what it held at one moment.
    Backup(BackupArgs),
    /// Make a data directory from a backup; the registry must not run on it
    ///
    /// The mesh is the same afterwards: same root, same store, so that sidecars connect again by
    /// themselves. What was changed after the backup is lost: resources applied since are to be
    /// applied again, tokens revoked since are valid again and must be revoked again, sidecars that
    /// joined since need a new token.
    Restore(RestoreArgs),
}

#[derive(Debug, clap::Args)]
pub(crate) struct BackupArgs {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// Data directory of a registry that does not run, instead of asking one that does
    #[arg(long, value_name = "DIR", conflicts_with_all = ["registry", "identity"])]
    pub(crate) data_dir: Option<PathBuf>,
    /// A new file, or - for standard output (to encrypt it, say), which must not be a terminal
    #[arg(long, value_name = "FILE|-")]
    pub(crate) out: PathBuf,
}

#[derive(Debug, clap::Args)]
pub(crate) struct RestoreArgs {
    /// The backup, or - for standard input
    #[arg(long, value_name = "FILE|-")]
    pub(crate) from: PathBuf,
    /// The registry's data_dir: empty, or not there yet
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: PathBuf,
}

/// Where the registry is and as whom to speak to it.
#[derive(Debug, clap::Args)]
pub(crate) struct Connection {
    /// The registry's gRPC address, as host:port
    #[arg(long, env = "OUTRIGGER_REGISTRY", default_value = "127.0.0.1:15012", value_name = "HOST:PORT")]
    pub(crate) registry: String,
    /// Directory of the admin identity, which the registry writes to <data_dir>/admin
    #[arg(long, env = "OUTRIGGER_IDENTITY", default_value = "./outrigger-data/admin", value_name = "DIR")]
    pub(crate) identity: PathBuf,
}

/// What a command prints on standard output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// For people
    #[default]
    Text,
    /// For programs
    Json,
}

/// The same for what lists things.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum ListOutput {
    /// For people
    #[default]
    Table,
    /// One array
    Json,
    /// One document a resource, as `apply` reads them
    Yaml,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DemoArgs {
    /// How long the load runs, such as 20s; without it, until Ctrl-C on a terminal and 10s elsewhere
    #[arg(long, value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Requests per second, sent when they are due whatever became of those before; 0 sends none
    /// and judges nothing
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub(crate) rate: u32,
    /// Replicas of the order service, each behind its own sidecar
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=32))]
    pub(crate) replicas: u32,
    /// Break things while the load runs, and show what the mesh did about it
    ///
    /// One thing after the other: a replica is killed, answers 80% of its requests with 503, is
    /// frozen, answers 500 ms late, breaks connections instead of answering; the registry is killed;
    /// the mesh itself holds 10% of the calls back for 100 ms. Each is mended again: in 20 s each
    /// happens once, the seed says to which replicas. The policy orders-resilient is in force: a second a
    /// try, two more tries, again on 502, 503 and 504, reads hedged after the 99th percentile. The JSON
    /// summary holds it as chaos_policy and, as chaos, what each fault led to: attempts that failed,
    /// retries by reason and outcome, hedges, sheds, ejections and when, and what the client noticed.
    /// As without chaos, the exit code is 0 only if every request succeeded.
    #[arg(long)]
    pub(crate) chaos: bool,
    /// Leave the mesh up until Ctrl-C and print the addresses to look at
    #[arg(long)]
    pub(crate) keep: bool,
    /// Seed of the load; the same seed sends the same mix, and breaks the same replicas
    #[arg(long)]
    pub(crate) seed: Option<u64>,
    /// What to print: text, or one JSON object
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct ApplyArgs {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// YAML files, directories of them (*.yaml, *.yml), or - for standard input
    #[arg(short = 'f', long = "file", required = true, num_args = 1.., value_name = "FILE|DIR|-")]
    pub(crate) files: Vec<PathBuf>,
    /// Check everything and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Delete the resources named instead of writing them
    #[arg(long)]
    pub(crate) delete: bool,
    /// What to print
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// What `get` shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    /// Services and their ports
    #[value(alias = "service")]
    Services,
    /// The settings of the mesh
    #[value(alias = "meshconfigs")]
    Meshconfig,
    /// What runs: one line a workload
    #[value(alias = "workload")]
    Workloads,
    /// Join tokens, without their secrets
    #[value(alias = "token")]
    Tokens,
    /// How calls are carried, as applied
    #[value(alias = "trafficpolicy")]
    Trafficpolicies,
    /// Who may call, as applied
    #[value(alias = "authorizationpolicy")]
    Authorizationpolicies,
    /// Where HTTP requests go
    #[value(alias = "httproute")]
    Httproutes,
    /// Where gRPC calls go
    #[value(alias = "grpcroute")]
    Grpcroutes,
    /// What is in force for the service named, setting by setting, and where it comes from
    #[value(alias = "policy")]
    Policies,
}

/// Which calls `get policies` is about.
#[derive(Debug, clap::Args)]
pub(crate) struct PolicyArgs {
    /// With `policies`: only this port of the service
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// With `policies`: for callers of this namespace; without it, of the service's own
    #[arg(long, value_name = "NAMESPACE")]
    pub(crate) from: Option<String>,
    /// With `policies`: only this route, or one of its rules by name or index
    #[arg(long, value_name = "KIND/NAMESPACE/NAME[/RULE]")]
    pub(crate) route: Option<String>,
}

impl PolicyArgs {
    /// Whether any of them is given.
    pub(crate) fn is_any(&self) -> bool {
        self.port.is_some() || self.from.is_some() || self.route.is_some()
    }
}

#[derive(Debug, clap::Args)]
pub(crate) struct GetArgs {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// What to show
    #[arg(value_enum)]
    pub(crate) kind: Kind,
    /// Only the one of this name; with `policies`, the service, such as orders.shop
    pub(crate) name: Option<String>,
    /// Only this namespace
    #[arg(short, long)]
    pub(crate) namespace: Option<String>,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    /// What to print
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: ListOutput,
}

#[derive(Debug, clap::Args)]
pub(crate) struct TokenArgs {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// Namespace of the workload
    #[arg(short, long, required_unless_present = "revoke")]
    pub(crate) namespace: Option<String>,
    /// Account of the workload; with the namespace, its identity
    #[arg(long, required_unless_present = "revoke")]
    pub(crate) account: Option<String>,
    /// A service of that namespace the workload may register; repeat for more, leave out for a
    /// workload that only calls
    #[arg(long = "service", value_name = "NAME")]
    pub(crate) services: Vec<String>,
    /// How long the token can be used, any number of times; without it, once, within a day
    #[arg(long, value_parser = duration)]
    pub(crate) ttl: Option<Duration>,
    /// Make the token with this id useless instead, and end what it granted: whoever joined with it can
    /// neither renew nor register any more
    #[arg(long, value_name = "ID", conflicts_with_all = ["namespace", "account", "services", "ttl"])]
    pub(crate) revoke: Option<String>,
    /// What to print: the token alone, or an object
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct VersionArgs {
    /// What to print
    #[arg(long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, clap::Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

fn duration(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration.is_zero() { Err("must be longer than nothing".to_owned()) } else { Ok(duration) }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn there_are_these_commands_and_no_others() {
        let names: Vec<_> = Args::command().get_subcommands().map(|c| c.get_name().to_owned()).collect();
        assert_eq!(
            names,
            ["demo", "proxy", "registry", "apply", "get", "token", "capture", "version", "completions"]
        );
    }
}
