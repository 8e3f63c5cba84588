//! `cargo xtask`: the commands of people who work on Outrigger, with nothing else to install first.
//!
//! `check` is what CI runs and contains `test`; `test` contains `setup` and the image. Each command prints its steps
//! with their durations, and its exit code is the truth about them.

mod bench;
mod budget;
mod check;
mod components;
mod go;
mod image;
mod instructions;
mod rivals;
mod shell;
mod sidecar;
mod steps;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use image::StaticBuild;
use steps::Steps;
use workspace::Workspace;

/// Builds, tests and packages Outrigger.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the tests need and the machine lacks, and say where each component is.
    ///
    /// Debian packages come from the machine's own apt sources and need root; everything else goes to
    /// `target/tools`. A second run finds everything in place and takes a second or two.
    Setup,
    /// Run every test: units, whole meshes of real processes, documentation, container image.
    ///
    /// Installs what is missing first (see `setup`), so it passes on a fresh machine. A component that is still
    /// missing is a failure, never a skipped test.
    Test(TestArgs),
    /// Run what CI runs: format, lints, documentation, dependencies, size budget, then every test.
    ///
    /// All checks run even when one fails; the summary names those that did.
    Check,
    /// Count the instructions a request takes in each sidecar, and compare them with what is recorded.
    ///
    /// Part of `check`. Counted by callgrind, so that what else the machine does plays no part; compared only under the
    /// compiler and on the processor of the record.
    Instructions(instructions::InstructionsArgs),
    /// Build the container image: one static binary, no base image, not root.
    ///
    /// `podman build` runs without any network. The result is an OCI archive for `podman load -i`, a registry or a
    /// cluster; no image is left in the local container storage. `--sidecar` makes that of the sidecar alone, whose
    /// binary is laid out by what it does under the bench's load: that takes three builds and a minute of load.
    Image(ImageArgs),
    /// Measure Outrigger beside nginx, HAProxy and Envoy, in turns, and write a report with plots.
    ///
    /// Installs what is missing first. The generators, the application and the proxies share the machine: leave it alone
    /// meanwhile. Everything it starts ends with it.
    Bench(bench::BenchArgs),
}

#[derive(Args)]
struct TestArgs {
    /// Run only the tests whose name contains this text.
    #[arg(long, value_name = "TEXT")]
    filter: Option<String>,
}

#[derive(Args)]
struct ImageArgs {
    /// The image of the sidecar alone instead of that of everything.
    #[arg(long, conflicts_with = "profile")]
    sidecar: bool,
    /// Where to write the OCI archive [default: target/image/outrigger.tar, or outrigger-proxy.tar].
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Name the image carries inside the archive [default: localhost/outrigger:VERSION, or outrigger-proxy].
    #[arg(long)]
    tag: Option<String>,
    /// Cargo profile of the binary: `dist` is the smallest and fastest, `release` builds in half the time.
    #[arg(long, default_value = "dist")]
    profile: String,
}

fn main() -> ExitCode {
    let mut steps = Steps::start();
    let done = run(Cli::parse().command, &mut steps);
    match done.and_then(|()| steps.finish()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Builds a binary and the image around it.
fn make_image(workspace: &Workspace, steps: &mut Steps, args: &ImageArgs) {
    let package = if args.sidecar { sidecar::PACKAGE } else { "outrigger" };
    let binary = if args.sidecar {
        let generators = steps.run("setup", || rivals::install_generators(workspace));
        generators.and_then(|generators| steps.run("sidecar", || sidecar::build(workspace, &generators)))
    } else {
        let build = StaticBuild { package, profile: &args.profile, flags: "" };
        steps.run("build", || image::static_binary(workspace, &build))
    };
    let Some(binary) = binary else { return };
    let named = || format!("localhost/{package}:{}", env!("CARGO_PKG_VERSION"));
    let tag = args.tag.clone().unwrap_or_else(named);
    let archive = || workspace.target.join(format!("image/{package}.tar"));
    let output = args.output.clone().unwrap_or_else(archive);
    let order = image::Order { binary: &binary, tag: &tag, output: &output, offline: false };
    steps.run("image", || image::build(workspace, &order));
}

/// Runs one command; a failed step is kept in `steps`, an error means that there was no point in going on.
fn run(command: Command, steps: &mut Steps) -> anyhow::Result<()> {
    let workspace = Workspace::find()?;
    match command {
        Command::Setup => {
            steps.run("setup", || components::install_all(&workspace).map(|found| println!("{found}")));
        }
        Command::Test(args) => test::run(&workspace, steps, args.filter.as_deref()),
        Command::Check => check::run(&workspace, steps),
        Command::Instructions(args) => {
            steps.run("instructions", || instructions::run(&workspace, &args));
        }
        Command::Image(args) => make_image(&workspace, steps, &args),
        Command::Bench(args) => bench::run(&workspace, steps, &args),
    }
    Ok(())
}
