//! The steps of a command: announced, timed, summed up at the end.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// What ran so far.
pub(crate) struct Steps {
    started: Instant,
    done: Vec<Step>,
    tests: Option<Tally>,
}

struct Step {
    name: String,
    took: Duration,
    failure: Option<String>,
}

/// Results of tests, added up over test binaries.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) ignored: u64,
    pub(crate) filtered: u64,
    /// Full names of failed tests, with the binary they are in.
    pub(crate) failures: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
        self.filtered += other.filtered;
        self.failures.extend(other.failures);
    }
}

impl Steps {
    pub(crate) fn start() -> Self {
        Self { started: Instant::now(), done: Vec::new(), tests: None }
    }

    /// Runs one step and keeps its outcome; the value is there unless it failed.
    pub(crate) fn run<T>(&mut self, name: &str, work: impl FnOnce() -> Result<T>) -> Option<T> {
        println!("\n── {name} ──");
        let started = Instant::now();
        let (value, failure) = match work() {
            Ok(value) => (Some(value), None),
            Err(error) => (None, Some(format!("{error:#}"))),
        };
        let took = started.elapsed();
        match &failure {
            None => println!("── {name}: ok, {} ──", Brief(took)),
            Some(failure) => println!("── {name}: FAILED after {} ──\n{failure}", Brief(took)),
        }
        self.done.push(Step { name: name.to_owned(), took, failure });
        value
    }

    /// Adds results of tests to the total of the last line.
    pub(crate) fn count(&mut self, tally: Tally) {
        self.tests.get_or_insert_default().add(tally);
    }

    /// Tests that passed or failed so far.
    pub(crate) fn tests_seen(&self) -> u64 {
        self.tests.as_ref().map_or(0, |tests| tests.passed + tests.failed)
    }

    /// Prints the summary; an error that names the failed steps, if any did.
    ///
    /// The last line of a command that ran tests has the form of a test binary's own last line, since that is what
    /// CI and editors read.
    pub(crate) fn finish(self) -> Result<()> {
        println!("\n── summary ──");
        for Step { name, took, failure } in &self.done {
            let outcome = if failure.is_none() { "ok" } else { "FAILED" };
            println!("{outcome:<6}  {:>8}  {name}", Brief(*took).to_string());
        }
        let failed: Vec<&str> =
            self.done.iter().filter(|step| step.failure.is_some()).map(|step| step.name.as_str()).collect();
        let tests_failed = self.tests.as_ref().is_some_and(|tests| tests.failed > 0);
        let all_ok = failed.is_empty() && !tests_failed;
        if let Some(tests) = &self.tests {
            print_tests(tests, all_ok, self.started.elapsed());
        }
        if !all_ok {
            bail!("failed: {}", if failed.is_empty() { "tests".to_owned() } else { failed.join(", ") });
        }
        Ok(())
    }
}

fn print_tests(tests: &Tally, all_ok: bool, took: Duration) {
    if !tests.failures.is_empty() {
        println!("\nfailures:");
        for failure in &tests.failures {
            println!("    {failure}");
        }
    }
    let Tally { passed, failed, ignored, filtered, .. } = tests;
    let verdict = if all_ok { "ok" } else { "FAILED" };
    println!(
        "\ntest result: {verdict}. {passed} passed; {failed} failed; {ignored} ignored; 0 measured; \
         {filtered} filtered out; finished in {:.2}s",
        took.as_secs_f64()
    );
}

/// A duration for reading: `0.4s`, `12s`, `3m05s`.
pub(crate) struct Brief(pub(crate) Duration);

impl fmt::Display for Brief {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        let text = match seconds {
            0..10 => format!("{:.1}s", self.0.as_secs_f64()),
            10..60 => format!("{seconds}s"),
            _ => format!("{}m{:02}s", seconds / 60, seconds % 60),
        };
        f.pad(&text)
    }
}
