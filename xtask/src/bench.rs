//! `cargo xtask bench`: Outrigger beside the proxies people would pick instead.
//!
//! Peers and load generators are found or put below `target/tools`, `outrigger` and the bench are built, and
//! `outrigger-bench run` does the rest. It learns from the environment where everything is.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::rivals::{self, Rivals};
use crate::shell;
use crate::sidecar;
use crate::steps::Steps;
use crate::workspace::Workspace;

/// What to measure.
#[derive(clap::Args)]
pub(crate) struct BenchArgs {
    /// Run only these scenarios, separated by commas: mesh, grpc, opaque, churn, bulk, idle, many.
    #[arg(long, value_name = "NAMES")]
    scenario: Option<String>,
    /// Measure only these, separated by commas: direct, relay, nginx, haproxy, haproxy-tcp, envoy-h1, envoy-h2,
    /// outrigger, outrigger-tcp.
    #[arg(long, value_name = "NAMES")]
    subject: Option<String>,
    /// How often each is measured, in turns [default: 3].
    #[arg(long, value_name = "N")]
    repeats: Option<u32>,
    /// Seconds of each measurement [default: 5].
    #[arg(long, value_name = "S")]
    duration: Option<u32>,
    /// Once and for two seconds: shows that everything works, measures little.
    #[arg(long, conflicts_with_all = ["repeats", "duration"])]
    quick: bool,
    /// The sidecar: `dist` is what its image carries, laid out by a profile; any other of cargo's profiles builds in a
    /// fraction of the time.
    #[arg(long, default_value = "dist")]
    profile: String,
    /// Directory for the report [default: bench/results].
    #[arg(long, value_name = "DIRECTORY")]
    results: Option<PathBuf>,
}

/// Installs, builds and measures; outcomes are in `steps`.
pub(crate) fn run(workspace: &Workspace, steps: &mut Steps, args: &BenchArgs) {
    let Some(rivals) = steps.run("setup", || rivals::install(workspace)) else { return };
    let built = steps.run("build", || {
        build(workspace, "outrigger", "release")?;
        build(workspace, "outrigger-bench", "release")?;
        sidecar(workspace, &rivals, args)
    });
    if let Some(sidecar) = built {
        steps.run("bench", || measure(workspace, &rivals, args, &sidecar));
    }
}

fn build(workspace: &Workspace, package: &str, profile: &str) -> Result<()> {
    let mut cargo = workspace.cargo(["build", "--locked", "--package", package, "--bin", package]);
    shell::run(cargo.args(["--profile", profile]))
}

/// The sidecar to measure: as images carry it, or as one builds it in a hurry.
fn sidecar(workspace: &Workspace, rivals: &Rivals, args: &BenchArgs) -> Result<PathBuf> {
    if args.profile == "dist" {
        return sidecar::build(workspace, rivals.generators());
    }
    build(workspace, sidecar::PACKAGE, &args.profile)?;
    let directory = if args.profile == "dev" { "debug" } else { &args.profile };
    Ok(workspace.target.join(directory).join(sidecar::PACKAGE))
}

fn measure(workspace: &Workspace, rivals: &Rivals, args: &BenchArgs, sidecar: &Path) -> Result<()> {
    let results = args.results.clone().unwrap_or_else(|| workspace.root.join("bench/results"));
    // It ends with this process, in order, however that ends.
    let mut bench = Command::new("setpriv");
    bench
        .args(["--pdeathsig", "TERM", "--"])
        .arg(workspace.target.join("release/outrigger-bench"))
        .arg("run")
        .args(["--commit", &commit(workspace), "--profile", &args.profile, "--date", &date()?])
        .arg("--results")
        .arg(results)
        .envs(rivals.environment())
        .env("OUTRIGGER_TEST_BIN", workspace.target.join("release/outrigger"))
        .env("OUTRIGGER_TEST_SIDECAR", sidecar)
        // What people run, not what tests want to see.
        .env("OUTRIGGER_TEST_LOG", "info");
    let words = [("--scenario", &args.scenario), ("--subject", &args.subject)];
    for (flag, value) in words.into_iter().filter_map(|(flag, value)| Some((flag, value.as_ref()?))) {
        bench.args([flag, value]);
    }
    let numbers = [("--repeats", args.repeats), ("--duration", args.duration)];
    for (flag, value) in numbers.into_iter().filter_map(|(flag, value)| Some((flag, value?))) {
        bench.args([flag, &value.to_string()]);
    }
    if args.quick {
        bench.arg("--quick");
    }
    shell::run(&mut bench)
}

/// The commit, with `-dirty` where the source is not it; results that are not committed yet do not count.
fn commit(workspace: &Workspace) -> String {
    let git =
        |arguments: &[&str]| shell::capture(Command::new("git").args(arguments).current_dir(&workspace.root));
    let Ok(commit) = git(&["rev-parse", "--short=10", "HEAD"]) else { return "unknown".to_owned() };
    let changed = git(&["status", "--porcelain", "--", ".", ":!bench/results"]);
    let dirty = if changed.is_ok_and(|changed| changed.trim().is_empty()) { "" } else { "-dirty" };
    format!("{}{dirty}", commit.trim())
}

/// Today in UTC: `2026-05-04`.
fn date() -> Result<String> {
    let date = shell::capture(Command::new("date").args(["-u", "+%Y-%m-%d"])).context("the date")?;
    Ok(date.trim().to_owned())
}
