//! `cargo xtask test`: every test there is.
//!
//! Everything is built once, then the test binaries are run one after the other. Running them from here and not with
//! several `cargo test` commands keeps one set of features, hence one build, and lets whole-mesh tests have the
//! machine to themselves.
//!
//! Tests learn from the environment what they may use: `OUTRIGGER_TEST_BIN` is the `outrigger` binary,
//! `OUTRIGGER_TEST_IMAGE` the container image as an OCI archive (image tests only, which are those of the target `image`
//! of `xtask`); components are listed in [`Components::environment`]. `OUTRIGGER_TEST_REQUIRED` makes a test that lacks
//! one of them fail.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::components::{self, Components};
use crate::image::{self, Building, StaticBuild};
use crate::shell;
use crate::steps::{Brief, Steps, Tally};
use crate::workspace::Workspace;

/// A test binary that runs longer than this hangs.
const TIME_LIMIT: Duration = Duration::from_secs(15 * 60);
/// After so long without a line of output, say what is being waited for.
const SILENCE: Duration = Duration::from_secs(30);
/// How often a silent test binary is looked at.
const GLANCE: Duration = Duration::from_millis(250);

/// Installs, builds and tests; outcomes are in `steps`.
pub(crate) fn run(workspace: &Workspace, steps: &mut Steps, filter: Option<&str>) {
    let setup =
        steps.run("setup", || components::install_all(workspace).inspect(|found| println!("{found}")));
    let Some(components) = setup else { return };
    let Some(built) = steps.run("build tests and binaries", || build(workspace)) else { return };
    let run = Run { workspace, components: &components, binary: &built.outrigger, filter };
    // Tests wait more than they compute: a build fits in between, which takes CI minutes by itself.
    let image = run.begin_image(&built.of(Kind::Image));

    run.all(steps, "unit tests", &built.of(Kind::Unit), &[]);
    // They start many processes each and measure time.
    run.all(steps, "whole-mesh tests", &built.of(Kind::WholeMesh), &["--test-threads=1"]);
    // Last of those, since it takes longest; its figures are shown.
    run.all(steps, "chaos tests", &built.of(Kind::Chaos), &["--test-threads=1", "--show-output"]);
    run.documentation(steps);
    if let Some(building) = image {
        run.image(steps, building, &built);
    }
    if steps.tests_seen() == 0 {
        steps.run("any test at all", || -> Result<()> { bail!("no test was run{}", run.filter_note()) });
    }
}

/// When and how a test binary is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Unit,
    WholeMesh,
    Chaos,
    Image,
}

struct TestBinary {
    /// Directory of its package, relative to the workspace: `proxy`.
    package: PathBuf,
    /// Name of the cargo target: `it`.
    target: String,
    executable: PathBuf,
}

impl TestBinary {
    fn kind(&self) -> Kind {
        match (self.package.to_str(), self.target.as_str()) {
            (Some("tests"), "chaos") => Kind::Chaos,
            (Some("tests"), _) => Kind::WholeMesh,
            (Some("xtask"), "image") => Kind::Image,
            _ => Kind::Unit,
        }
    }

    fn name(&self) -> String {
        format!("{}:{}", self.package.display(), self.target)
    }
}

/// What the one build made.
struct Built {
    outrigger: PathBuf,
    tests: Vec<TestBinary>,
}

impl Built {
    fn of(&self, kind: Kind) -> Vec<&TestBinary> {
        self.tests.iter().filter(|test| test.kind() == kind).collect()
    }
}

fn build(workspace: &Workspace) -> Result<Built> {
    let mut cargo = workspace.cargo(["build", "--workspace", "--bins", "--tests", "--locked"]);
    cargo.arg("--message-format=json-render-diagnostics").stdin(Stdio::null()).stdout(Stdio::piped());
    println!("$ {}", shell::line(&cargo));
    let mut child = cargo.spawn().with_context(|| shell::line(&cargo))?;
    let messages = child.stdout.take().context("cargo's output")?;
    let (mut outrigger, mut tests) = (None, Vec::new());
    for message in BufReader::new(messages).lines() {
        let message: Value = serde_json::from_str(&message?).context("a message of cargo build")?;
        let (Some(executable), Some(target)) =
            (message["executable"].as_str(), message["target"]["name"].as_str())
        else {
            continue;
        };
        if message["profile"]["test"] == true {
            let manifest = Path::new(message["manifest_path"].as_str().unwrap_or_default());
            let directory = manifest.parent().unwrap_or(manifest);
            let package = directory.strip_prefix(&workspace.root).unwrap_or(directory).to_owned();
            tests.push(TestBinary { package, target: target.to_owned(), executable: executable.into() });
        } else if target == "outrigger" {
            outrigger = Some(PathBuf::from(executable));
        }
    }
    ensure!(child.wait()?.success(), "the build failed");
    tests.sort_by(|a, b| (&a.package, &a.target).cmp(&(&b.package, &b.target)));
    Ok(Built { outrigger: outrigger.context("the build made no binary outrigger")?, tests })
}

/// What all test binaries of one run share.
struct Run<'a> {
    workspace: &'a Workspace,
    components: &'a Components,
    binary: &'a Path,
    filter: Option<&'a str>,
}

impl Run<'_> {
    /// Runs these test binaries as one step, which fails if one test does.
    fn all(&self, steps: &mut Steps, step: &str, tests: &[&TestBinary], arguments: &[&str]) {
        let mut total = Tally::default();
        steps.run(step, || {
            for test in tests.iter().filter(|test| self.is_wanted(test)) {
                println!("\n{}", test.name());
                let mut command = self.command(test);
                total.add(watch(&test.name(), command.args(arguments))?);
            }
            none_failed(&total)
        });
        steps.count(total);
    }

    /// Documentation examples of all packages.
    fn documentation(&self, steps: &mut Steps) {
        let mut cargo = self.workspace.cargo(["test", "--workspace", "--doc", "--locked"]);
        if let Some(filter) = self.filter {
            cargo.args(["--", filter]);
        }
        let mut total = Tally::default();
        steps.run("documentation tests", || {
            total = watch("documentation", cargo.envs(self.components.environment()))?;
            none_failed(&total)
        });
        steps.count(total);
    }

    /// Begins with the binary of the image, unless the filter leaves out all tests of it.
    fn begin_image(&self, tests: &[&TestBinary]) -> Option<Result<Building>> {
        // dist is the same with another optimisation, and takes CI minutes longer.
        let build = StaticBuild { package: "outrigger", profile: "release", flags: "" };
        tests.iter().any(|test| self.is_wanted(test)).then(|| Building::begin(self.workspace, &build))
    }

    /// Builds the image and tests it, and what only its optimised binary is to be tested for.
    fn image(&self, steps: &mut Steps, building: Result<Building>, built: &Built) {
        let Some(binary) = steps.run("static binary", || building?.end()) else { return };
        let optimised = Run { binary: &binary, filter: Some("bodies_larger_than_memory_pass"), ..*self };
        if self.filter.is_none() {
            optimised.all(steps, "bodies of 1 GiB", &built.of(Kind::WholeMesh), &[]);
        }
        let output = self.archive();
        let order = image::Order {
            binary: &binary,
            tag: "localhost/outrigger:test",
            output: &output,
            offline: shell::is_root(),
        };
        if steps.run("image", || image::build(self.workspace, &order)).is_some() {
            self.all(steps, "image tests", &built.of(Kind::Image), &[]);
        }
    }

    fn archive(&self) -> PathBuf {
        self.workspace.target.join("image/outrigger-test.tar")
    }

    /// The test binary, started as `cargo test` would.
    fn command(&self, test: &TestBinary) -> Command {
        let directory = self.workspace.root.join(&test.package);
        let mut command = Command::new(&test.executable);
        command
            .current_dir(&directory)
            .env("CARGO_MANIFEST_DIR", &directory)
            .env("OUTRIGGER_TEST_BIN", self.binary)
            .env("OUTRIGGER_TEST_IMAGE", self.archive())
            .envs(self.components.environment())
            .args(self.filter);
        command
    }

    /// False if the filter leaves nothing of this binary.
    fn is_wanted(&self, test: &TestBinary) -> bool {
        self.filter.is_none()
            || shell::capture(self.command(test).args(["--list", "--format=terse"]))
                .is_ok_and(|list| list.lines().any(|line| line.ends_with(": test")))
    }

    fn filter_note(&self) -> String {
        self.filter.map(|filter| format!(": none has {filter} in its name")).unwrap_or_default()
    }
}

fn none_failed(tally: &Tally) -> Result<()> {
    ensure!(tally.failed == 0, "{} of {} tests failed", tally.failed, tally.failed + tally.passed);
    Ok(())
}

/// Runs a test binary with its output shown as it comes, and adds up its result lines.
///
/// A binary that ends badly without saying which test failed counts as one failure, as does one that hangs.
fn watch(name: &str, command: &mut Command) -> Result<Tally> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("start {}", shell::line(command)))?;
    let lines = lines_of(&mut child)?;
    let mut tally = Tally::default();
    let ended_in_time = follow(name, &mut child, &lines, &mut tally)?;
    let status = child.wait()?;
    if !ended_in_time {
        tally.fail(name, &format!("still running after {}", Brief(TIME_LIMIT)));
    } else if !status.success() && tally.failed == 0 {
        tally.fail(name, &format!("ended with {status}"));
    }
    Ok(tally)
}

/// Copies output until the child ends, or kills it at the time limit: then false.
fn follow(name: &str, child: &mut Child, lines: &Receiver<String>, tally: &mut Tally) -> Result<bool> {
    let started = Instant::now();
    let mut last_sign = started;
    loop {
        match lines.recv_timeout(GLANCE) {
            Ok(line) => {
                println!("{line}");
                tally.read(name, &line);
                last_sign = Instant::now();
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(true),
            // Ended, yet something it started still holds its output.
            Err(RecvTimeoutError::Timeout) if child.try_wait()?.is_some() => return Ok(true),
            Err(RecvTimeoutError::Timeout) if last_sign.elapsed() >= SILENCE => {
                println!("… {name} is running, {}", Brief(started.elapsed()));
                last_sign = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if started.elapsed() >= TIME_LIMIT {
            child.kill()?;
            return Ok(false);
        }
    }
}

/// The child's output line by line. The thread ends with the output, or with the receiver.
fn lines_of(child: &mut Child) -> Result<Receiver<String>> {
    let output = child.stdout.take().context("the output of a child")?;
    let (sender, receiver) = sync_channel(1024);
    std::thread::spawn(move || {
        let mut reader = BufReader::new(output);
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let text = String::from_utf8_lossy(&line);
            if sender.send(text.trim_end_matches(['\r', '\n']).to_owned()).is_err() {
                return;
            }
            line.clear();
        }
    });
    Ok(receiver)
}

impl Tally {
    /// Takes in one line of a test binary's output.
    fn read(&mut self, binary: &str, line: &str) {
        if let Some(counts) = line.strip_prefix("test result: ") {
            let count =
                |what: &str| counts.split([';', '.']).find_map(|part| number_of(part, what)).unwrap_or(0);
            self.passed += count("passed");
            self.failed += count("failed");
            self.ignored += count("ignored");
            self.filtered += count("filtered out");
        } else if let Some(name) =
            line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED"))
        {
            self.failures.push(format!("{binary}  {name}"));
        }
    }

    fn fail(&mut self, binary: &str, why: &str) {
        println!("{binary}: {why}");
        self.failed += 1;
        self.failures.push(format!("{binary}  ({why})"));
    }
}

/// `12` for ` 12 passed`.
fn number_of(part: &str, what: &str) -> Option<u64> {
    part.trim().strip_suffix(what)?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Tally {
        watch("sh", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn result_lines_of_one_run_add_up() {
        let tally = shell(
            "echo 'test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s'
             echo 'test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s'",
        );
        assert_eq!(tally, Tally { passed: 7, ignored: 1, filtered: 2, ..Tally::default() });
    }

    #[test]
    fn failed_tests_are_named() {
        let tally = shell(
            "echo 'test route::longest_prefix_wins ... FAILED'
             echo 'test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s'
             exit 101",
        );
        assert_eq!((tally.failed, tally.failures), (1, vec!["sh  route::longest_prefix_wins".to_owned()]));
    }

    #[test]
    fn a_crash_without_a_result_line_is_a_failure() {
        assert_eq!(shell("echo 'running 1 test'; kill -SEGV $$").failed, 1);
    }

    #[test]
    fn a_grandchild_that_keeps_the_output_open_does_not_hold_us_up() {
        let started = Instant::now();
        let tally = shell(
            "sleep 20 &
             echo 'test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.0s'",
        );
        assert_eq!(tally.passed, 1);
        assert!(started.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn whole_mesh_and_image_tests_have_their_own_steps() {
        let kind = |package: &str, target: &str| {
            TestBinary { package: package.into(), target: target.into(), executable: PathBuf::new() }.kind()
        };
        assert_eq!(kind("tests", "mesh"), Kind::WholeMesh);
        assert_eq!(kind("tests", "chaos"), Kind::Chaos);
        assert_eq!(kind("xtask", "image"), Kind::Image);
        assert_eq!(kind("xtask", "xtask"), Kind::Unit);
        assert_eq!(kind("proxy", "it"), Kind::Unit);
    }
}
