//! What is printed: a table for people, an object for programs.

use std::fmt::Write;
use std::process::Command;

use serde::Serialize;

use super::scenario::{Course, Measured, Settling};

/// Goals for the whole fleet; a smaller one must reach them as well.
const MEMORY_MIB: f64 = 1024.0;
const LAST_ACK_S: f64 = 1.0;
const SETTLED_S: f64 = 60.0;

/// Everything measured, and where.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    commit: String,
    machine: Machine,
    sidecars: usize,
    services: usize,
    endpoints: usize,
    watch: usize,
    lease_ttl_s: f64,
    measured: Measured,
}

#[derive(Debug, Serialize)]
struct Machine {
    processor: String,
    cores: usize,
    memory_gib: f64,
    kernel: String,
}

impl Report {
    /// Returns the report of a run.
    pub(super) fn new(course: &Course, measured: Measured) -> Self {
        let plan = course.plan;
        Self {
            commit: commit(),
            machine: Machine::this(),
            sidecars: plan.sidecars,
            services: plan.services,
            endpoints: plan.endpoints,
            watch: plan.watch,
            lease_ttl_s: course.lease_ttl.as_secs_f64(),
            measured,
        }
    }

    /// Returns whether every goal was reached.
    pub(super) fn reached(&self) -> bool {
        self.lines().iter().all(|line| line.reached != Some(false))
    }

    /// Returns the table.
    pub(super) fn table(&self) -> String {
        let Machine { processor, cores, memory_gib, kernel } = &self.machine;
        let mut text = format!(
            "{} sidecars watch {} of {} services each, {} endpoints, leases of {} s\n{} | {cores} cores, {processor}, {memory_gib:.0} GiB, Linux {kernel}\n\n",
            self.sidecars, self.watch, self.services, self.endpoints, self.lease_ttl_s, self.commit
        );
        for Line { what, value, goal, reached } in self.lines() {
            let verdict = match reached {
                None => "",
                Some(true) => "reached",
                Some(false) => "MISSED",
            };
            let line = format!("{what:<52} {value:>26}  {goal:<10} {verdict}");
            _ = writeln!(text, "{}", line.trim_end());
        }
        text
    }

    fn lines(&self) -> Vec<Line> {
        let Measured { start, rest, changes, removal, restarts, fleet } = &self.measured;
        let mut lines = vec![
            Line::new("start: last stream open, everyone settled", times(start)),
            Line::new("start: CPU of the registry", format!("{:.1} s", start.registry.cpu_s)),
            Line::new("memory at rest", mib(rest.registry.resident_mib))
                .goal("1 GiB", rest.registry.resident_mib <= MEMORY_MIB),
            Line::new("memory, most so far", mib(rest.registry.peak_mib))
                .goal("1 GiB", rest.registry.peak_mib <= MEMORY_MIB),
            Line::new("CPU at rest (renewals and pings)", format!("{:.1}%", rest.cpu_rate * 100.0)),
        ];
        for change in changes {
            let what = format!("endpoint {}, {} subscribers", change.kind, change.subscribers);
            let (middle, most) = (median(&change.last_ack_s), change.last_ack_s.last().copied());
            let most = most.unwrap_or_default();
            let value = format!("{:.0} ms, at most {:.0} ms", middle * 1e3, most * 1e3);
            lines.push(Line::new(&format!("{what}: last ack"), value).goal("1 s", most < LAST_ACK_S));
            let value = format!("{:.0} ms", change.cpu_s_per_change * 1e3);
            lines.push(Line::new(&format!("{what}: CPU"), value));
        }
        let value = format!(
            "{} of {} in {:.0} ms",
            removal.acknowledged,
            removal.subscribers,
            removal.answered_s * 1e3
        );
        let reached = removal.acknowledged == removal.subscribers && removal.answered_s < LAST_ACK_S;
        lines.push(Line::new("removal that waits for acknowledgements", value).goal("1 s", reached));
        for settling in restarts {
            lines.push(
                Line::new("restart: last stream open, everyone settled", times(settling))
                    .goal("60 s", settling.settled_s < SETTLED_S),
            );
            let lost = settling.counted.services_emptied + settling.counted.endpoints_removed;
            lines.push(
                Line::new("restart: services or endpoints lost", lost.to_string()).goal("none", lost == 0),
            );
            let value = settling.counted.services_in_full.to_string();
            lines.push(Line::new("restart: services sent in full again", value));
            let errors: u64 = settling.counted.errors.values().sum();
            let tries = errors.saturating_sub(self.sidecars as u64);
            lines.push(Line::new("restart: attempts that failed", tries.to_string()));
            lines.push(Line::new("restart: CPU", format!("{:.1} s", settling.registry.cpu_s)));
            lines.push(
                Line::new("restart: memory, most so far", mib(settling.registry.peak_mib))
                    .goal("1 GiB", settling.registry.peak_mib <= MEMORY_MIB),
            );
        }
        lines.push(Line::new("the fleet itself: memory, most", mib(fleet.peak_mib)));
        lines
    }
}

struct Line {
    what: String,
    value: String,
    goal: &'static str,
    reached: Option<bool>,
}

impl Line {
    fn new(what: &str, value: String) -> Self {
        Self { what: what.to_owned(), value, goal: "", reached: None }
    }

    fn goal(self, goal: &'static str, reached: bool) -> Self {
        Self { goal, reached: Some(reached), ..self }
    }
}

fn times(settling: &Settling) -> String {
    format!("{:.1} s, {:.1} s", settling.watching_s, settling.settled_s)
}

fn mib(mib: f64) -> String {
    format!("{mib:.0} MiB")
}

fn median(sorted: &[f64]) -> f64 {
    sorted.get(sorted.len() / 2).copied().unwrap_or_default()
}

impl Machine {
    fn this() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, key: &str| {
            let line = text.lines().find(|line| line.starts_with(key));
            line.and_then(|line| line.split_once(':'))
                .map_or(String::new(), |(_, value)| value.trim().to_owned())
        };
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let kib: f64 = memory.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or_default();
        Self {
            processor: field(&read("/proc/cpuinfo"), "model name"),
            cores: std::thread::available_parallelism().map_or(0, Into::into),
            memory_gib: kib / f64::from(1 << 20),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
        }
    }
}

/// The commit of the tree this is run in, with a mark if it was changed; empty outside of one.
fn commit() -> String {
    let output = Command::new("git").args(["describe", "--always", "--dirty"]).output();
    let output = output.ok().filter(|output| output.status.success());
    output.map_or(String::new(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
