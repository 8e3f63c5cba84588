//! `cargo xtask instructions`: what a request takes, counted and held to what is recorded.

use std::process::Command;

use anyhow::{Context, Result};

use crate::components;
use crate::image::{self, StaticBuild};
use crate::shell;
use crate::workspace::Workspace;

/// What to do with the count.
#[derive(clap::Args)]
pub(crate) struct InstructionsArgs {
    /// Record what is counted in `bench/instructions.json`.
    #[arg(long)]
    update: bool,
}

/// Counts with the binary of the test image, which is built by now or quickly.
pub(crate) fn run(workspace: &Workspace, args: &InstructionsArgs) -> Result<()> {
    components::install_system_packages()?;
    let build = StaticBuild { package: "outrigger", profile: "release", flags: "" };
    let outrigger = image::static_binary(workspace, &build)?;
    let mut build = workspace.cargo(["build", "--locked", "--package", "outrigger-bench"]);
    shell::run(&mut build)?;
    let version = shell::capture(Command::new("rustc").arg("--version")).context("the compiler's version")?;
    let mut count = Command::new(workspace.target.join("debug/outrigger-bench"));
    count
        .arg("instructions")
        .arg("--record")
        .arg(workspace.root.join("bench/instructions.json"))
        .args(["--compiler", version.trim()])
        .env("OUTRIGGER_TEST_BIN", outrigger)
        .env("OUTRIGGER_TEST_LOG", "warn");
    if args.update {
        count.arg("--update");
    }
    shell::run(&mut count)
}

/// The same as a check.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    run(workspace, &InstructionsArgs { update: false })
}
