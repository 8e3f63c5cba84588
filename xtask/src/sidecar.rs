//! The sidecar's own binary as images carry it: linked statically, and laid out by what it does under load.
//!
//! Profile-guided optimisation: a first build writes down what it executes, the bench's load is put on it, and the
//! compiler optimises a second build by that. The linker puts what was executed in one place, so that a sidecar has
//! little else in memory. What both are worth: docs/performance.md.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::components::apt_install;
use crate::image::{StaticBuild, host_target, static_binary};
use crate::rivals::Generators;
use crate::shell;
use crate::workspace::Workspace;

/// The sidecar alone.
pub(crate) const PACKAGE: &str = "outrigger-proxy";

/// Builds it and returns where it is. What is as it was is not made again.
pub(crate) fn build(workspace: &Workspace, generators: &Generators) -> Result<PathBuf> {
    let place = workspace.target.join("sidecar");
    fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
    // First, for it may be missing.
    let merger = merger()?;
    // The load ends it gently, and it writes its profile then; the path is the environment's.
    let writing = StaticBuild { package: PACKAGE, profile: "dist", flags: "-Cprofile-generate" };
    let recorder = static_binary(workspace, &writing)?;
    // Named by what it is of: cargo looks at flags, not into files they name.
    let profile = place.join(format!("{:016x}.profdata", digest(&recorder)?));
    if !profile.exists() {
        train(workspace, generators, &recorder, (&merger, &profile))?;
    }
    let order = profile.with_extension("order");
    if !order.exists() {
        write_order(&merger, &profile, &order)?;
    }
    let flags = guided_by(&profile, &order);
    let guided = static_binary(workspace, &StaticBuild { flags: &flags, ..writing })?;
    // One that runs may not be written over.
    let (sidecar, new) = (place.join(PACKAGE), place.join("new"));
    fs::copy(&guided, &new).with_context(|| format!("copy {}", guided.display()))?;
    fs::rename(&new, &sidecar).with_context(|| format!("write {}", sidecar.display()))?;
    Ok(sidecar)
}

/// What tells compiler and linker.
fn guided_by(profile: &Path, order: &Path) -> String {
    // What the load never reached is not an oversight.
    let mut flags =
        format!("-Cprofile-use={} -Cllvm-args=-pgo-warn-missing-function=false", profile.display());
    // There the compiler brings its linker along; the system's, which it calls elsewhere, knows no such order.
    if cfg!(target_arch = "x86_64") {
        flags += &format!(" -Clink-arg=-Wl,--symbol-ordering-file={}", order.display());
        // The compiler has inlined some of them.
        flags += " -Clink-arg=-Wl,--no-warn-symbol-ordering";
        // 400 kB of relocations less, all of which would be read at the start, and stay in memory.
        flags += " -Clink-arg=-Wl,-z,pack-relative-relocs";
    }
    flags
}

/// Writes the names of all functions that were executed: first those of which an idle sidecar has need, then
/// those of load alone; of both the most frequent first.
fn write_order(merger: &Path, profile: &Path, order: &Path) -> Result<()> {
    let functions = |profile: &Path| {
        let mut show = Command::new(merger);
        let said = shell::capture(show.args(["show", "--all-functions", "--counts"]).arg(profile))?;
        anyhow::Ok(executed(&said).into_iter().map(str::to_owned).collect::<Vec<_>>())
    };
    let idle: HashSet<_> = functions(&profile.with_extension("idle"))?.into_iter().collect();
    ensure!(!idle.is_empty(), "idle sidecars executed nothing");
    let (first, then): (Vec<_>, Vec<_>) =
        functions(profile)?.into_iter().partition(|name| idle.contains(name));
    let new = order.with_extension("new");
    fs::write(&new, [first, then].concat().join("\n") + "\n")
        .with_context(|| format!("write {}", new.display()))?;
    fs::rename(&new, order).with_context(|| format!("write {}", order.display()))
}

/// Reads what `llvm-profdata show --all-functions --counts` says of each function:
///
/// ```text
///   crate.1234-cgu.0;_ZN4name17h0123E:
///     Hash: 0x07df0bf8f630cf37
///     Counters: 2
///     Block counts: [17, 0]
/// ```
fn executed(said: &str) -> Vec<&str> {
    let mut functions = Vec::new();
    let mut name = "";
    for line in said.lines() {
        if let Some(counts) = line.trim_start().strip_prefix("Block counts: [") {
            let counts = counts.trim_end_matches(']').split(", ");
            let most = counts.filter_map(|count| count.parse::<u64>().ok()).max();
            functions.extend(most.filter(|most| *most > 0).map(|most| (most, name)));
        } else if let Some(function) = line.strip_prefix("  ").and_then(|line| line.strip_suffix(':')) {
            // What is local to a file is named with it.
            name = function.rsplit(';').next().unwrap_or(function);
        }
    }
    functions.sort_by(|one, other| other.cmp(one));
    functions.into_iter().map(|(_, name)| name).collect()
}

/// Lets two sidecars rest, then puts load on two, and merges what they wrote down.
fn train(
    workspace: &Workspace,
    generators: &Generators,
    recorder: &Path,
    (merger, profile): (&Path, &Path),
) -> Result<()> {
    shell::run(&mut workspace.cargo([
        "build",
        "--locked",
        "--release",
        "--package",
        "outrigger",
        "--package",
        "outrigger-bench",
    ]))?;
    let release = workspace.target.join("release");
    let (idle, load) = (tempfile::tempdir()?, tempfile::tempdir()?);
    for (phase, raw) in [("idle", &idle), ("load", &load)] {
        let mut bench = Command::new(release.join("outrigger-bench"));
        bench
            .args(["train", "--phase", phase])
            .envs(generators.environment())
            .env("OUTRIGGER_TEST_BIN", release.join("outrigger"))
            .env("OUTRIGGER_TEST_SIDECAR", recorder)
            .env("OUTRIGGER_TEST_LOG", "info")
            .env("LLVM_PROFILE_FILE", raw.path().join("%p.profraw"));
        shell::run(&mut bench)?;
    }
    merge(merger, &[&idle], &profile.with_extension("idle"))?;
    merge(merger, &[&idle, &load], profile)
}

/// Merges the profiles in these directories.
fn merge(merger: &Path, directories: &[&TempDir], into: &Path) -> Result<()> {
    let mut files = Vec::new();
    for directory in directories {
        let before = files.len();
        files.extend(fs::read_dir(directory.path())?.filter_map(|entry| Some(entry.ok()?.path())));
        ensure!(files.len() > before, "the sidecars wrote no profile to {}", directory.path().display());
    }
    // Whole or not at all: a file with the name counts as done.
    let merged = into.with_extension("new");
    shell::run(Command::new(merger).args(["merge", "--sparse", "--output"]).arg(&merged).args(&files))?;
    fs::rename(&merged, into).with_context(|| format!("write {}", into.display()))
}

/// `llvm-profdata` of the LLVM that is in the compiler: the format changes with each.
fn merger() -> Result<PathBuf> {
    let version = shell::capture(Command::new("rustc").arg("-vV"))?;
    let llvm = version.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = llvm.and_then(|llvm| llvm.split('.').next()).context("rustc -vV names no LLVM")?;
    let sysroot = shell::capture(Command::new("rustc").args(["--print", "sysroot"]))?;
    let own = Path::new(sysroot.trim()).join("lib/rustlib").join(host_target()?).join("bin/llvm-profdata");
    if shell::is_executable(&own) {
        return Ok(own);
    }
    let (program, package) = (format!("llvm-profdata-{major}"), format!("llvm-{major}"));
    if shell::which(&program).is_none()
        && let Err(error) = apt_install(&[&package])
    {
        bail!(
            "no llvm-profdata of LLVM {major}: run `rustup component add llvm-tools`, or install {package} ({error:#})"
        );
    }
    shell::which(&program).with_context(|| format!("{package} brought no {program}"))
}

fn digest(file: &Path) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    hasher.write(&fs::read(file).with_context(|| format!("read {}", file.display()))?);
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_executed_comes_in_order() {
        let said = "Counters:
  _ZN4idle17h1E:
    Hash: 0x07df0bf8f630cf37
    Counters: 2
    Block counts: [0, 0]
  proxy.6d22-cgu.0;_ZN4rare17h2E:
    Hash: 0x0ec30a34de3dd313
    Counters: 1
    Block counts: [3]
  _ZN5often17h3E:
    Hash: 0x0a4d0ad3efffffff
    Counters: 3
    Block counts: [0, 41, 7]
Instrumentation level: IR
";
        assert_eq!(executed(said), ["_ZN5often17h3E", "_ZN4rare17h2E"]);
    }
}
