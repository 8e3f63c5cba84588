//! Load from generators people know: what they are asked for, and what they report.

mod h2load;
mod oha;
mod wrk;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use outrigger_tests::component::{Running, bound, component};

use crate::certs::NAME;
use crate::proc;

/// Names a directory of libraries that unpacked programs need and the machine may lack.
const LIBRARIES: &str = "OUTRIGGER_BENCH_LIBRARIES";
/// Connections of every load that does not say otherwise.
pub(crate) const CONNECTIONS: u32 = 64;
/// A generator that takes this much longer than it was asked to hangs.
const GRACE: Duration = Duration::from_secs(60);
/// How often a running generator, and the memory of what it loads, is looked at.
const GLANCE: Duration = Duration::from_millis(50);

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Load {
    /// HTTP/1.1, as many requests as will go: `wrk`.
    Saturation {
        /// A new connection for each request.
        close: bool,
    },
    /// HTTP/1.1 at a fixed rate, each latency counted from when its request was due: `oha`.
    Rate {
        /// Requests per second.
        rate: u32,
    },
    /// Unary gRPC, as many calls as will go: `h2load`.
    Grpc {
        /// Connections.
        connections: u32,
        /// Calls at once on each.
        streams: u32,
    },
    /// Large bodies, a fixed number of them: `oha`.
    Bulk {
        /// Size of a body.
        mib: u32,
        /// Sent with POST; else fetched with GET.
        upload: bool,
    },
}

/// What a generator reported.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Outcome {
    /// Answered with success.
    pub(crate) requests: u64,
    /// Everything else, but for what was under way when time was up.
    pub(crate) failures: u64,
    /// How many may have been under way when time was up: neither of both, and yet counted on the way.
    pub(crate) unfinished: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// Milliseconds at 50, 99 and 99.9 percent, where the load is open.
    pub(crate) latency_ms: Option<[f64; 3]>,
}

/// A run, and the most memory that what it loaded took.
pub(crate) struct Run {
    pub(crate) outcome: Outcome,
    pub(crate) resident: u64,
}

impl Load {
    /// Runs the generator against an address; looks at the memory of `pids` meanwhile.
    ///
    /// # Errors
    /// When the generator fails, hangs, or says what cannot be read.
    pub(crate) async fn run(
        self,
        to: SocketAddr,
        seconds: u32,
        directory: &Path,
        pids: &[u32],
    ) -> Result<Run> {
        let (variable, args) = self.command(to, seconds, directory)?;
        let mut command = bound(&[], &component(variable));
        // One thread, since what is measured shares the machine.
        with_libraries(&mut command).args(&args).stdin(Stdio::null()).env("TOKIO_WORKER_THREADS", "1");
        let started = Instant::now();
        let limit = Duration::from_secs(seconds.into()) + GRACE;
        let mut running = Running::spawn(command, directory.join("generator.out"));
        let mut resident = 0;
        let status = loop {
            if let Some(status) = running.ended() {
                break status;
            }
            ensure!(started.elapsed() < limit, "{variable} {args:?} hangs:\n{}", running.output());
            resident = resident.max(proc::resident(pids)?);
            tokio::time::sleep(GLANCE).await;
        };
        let said = running.output();
        ensure!(status.success(), "{variable} {args:?} failed with {status}:\n{said}");
        let outcome = self.read(&said).with_context(|| format!("{variable} {args:?} said:\n{said}"))?;
        Ok(Run { outcome, resident: resident.max(proc::resident(pids)?) })
    }

    fn command(self, to: SocketAddr, seconds: u32, directory: &Path) -> Result<(&'static str, Vec<String>)> {
        Ok(match self {
            Self::Saturation { close } => ("OUTRIGGER_BENCH_WRK", wrk::arguments(to, seconds, close)),
            Self::Rate { rate } => ("OUTRIGGER_BENCH_OHA", oha::at_rate(to, seconds, rate)),
            Self::Grpc { connections, streams } => {
                let arguments = h2load::arguments(to, seconds, (connections, streams), directory)?;
                ("OUTRIGGER_BENCH_H2LOAD", arguments)
            }
            Self::Bulk { mib, upload } => {
                ("OUTRIGGER_BENCH_OHA", oha::bulk(to, bodies(mib, seconds), (mib, upload), directory)?)
            }
        })
    }

    fn read(self, said: &str) -> Result<Outcome> {
        let outcome = match self {
            Self::Saturation { .. } => wrk::read(said),
            Self::Rate { .. } | Self::Bulk { .. } => oha::read(said, matches!(self, Self::Rate { .. })),
            Self::Grpc { .. } => h2load::read(said),
        };
        let outcome = outcome.context("not the report that was expected")?;
        if outcome.requests == 0 {
            bail!("not one request succeeded");
        }
        Ok(outcome)
    }
}

/// How many bodies of a size make about so many seconds, at a rate that every proxy reaches.
fn bodies(mib: u32, seconds: u32) -> u32 {
    /// MiB per second.
    const PACE: u32 = 200;
    (PACE * seconds / mib).max(4)
}

/// Versions of the generators, for the report.
pub(crate) fn versions() -> Vec<(String, String)> {
    [
        ("wrk", "OUTRIGGER_BENCH_WRK", "-v"),
        ("h2load", "OUTRIGGER_BENCH_H2LOAD", "--version"),
        ("oha", "OUTRIGGER_BENCH_OHA", "--version"),
    ]
    .map(|(name, variable, flag)| (name.to_owned(), version(variable, flag)))
    .to_vec()
}

/// The first line a program says of its version.
pub(crate) fn version(variable: &str, flag: &str) -> String {
    let mut command = Command::new(component(variable));
    let Ok(output) = with_libraries(&mut command).arg(flag).output() else { return String::new() };
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&said).trim().lines().next().unwrap_or_default().to_owned()
}

/// The command, told where its libraries are.
pub(crate) fn with_libraries(command: &mut Command) -> &mut Command {
    if let Some(libraries) = std::env::var_os(LIBRARIES) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

/// The host every request names. In capitals, for otherwise wrk adds one of its own.
fn host_header() -> String {
    format!("Host: {NAME}")
}
