//! Child processes: this binary started again, bound to this process, talking to files.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process};
use serde::de::DeserializeOwned;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, ChildStdin, Command};
use tokio::time::{Instant, sleep, timeout};

use super::child::PARENT_VARIABLE;
use crate::failure::Failure;

/// Longest wait for a child's readiness line.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often its output is looked at meanwhile.
const START_POLL: Duration = Duration::from_millis(4);
/// Lines of its log that are shown when it does not start.
const TAIL: usize = 15;
/// Variables of these families would reach into the children's configuration.
const FOREIGN: [&str; 2] = ["OUTRIGGER_", "OTEL_"];

/// This binary. Where its file was replaced or removed since this process started, the kernel still has
/// it: a child of another build than the rest of the mesh is not what is to be shown.
fn program() -> PathBuf {
    std::env::current_exe()
        .ok()
        .filter(|path| path.exists())
        .unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// A running child.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    child: Child,
    // Closing this ends the child (see `child`).
    lifeline: Option<ChildStdin>,
    out: PathBuf,
    log: PathBuf,
}

impl Process {
    /// Starts this binary with `args`, its output in `directory`. Must be called on the main thread:
    /// the kernel binds a child to the thread that started it.
    pub(super) fn start(name: &str, args: &[&str], directory: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::job(format!("cannot start {name}: {error}"));
        let (out, log) = (directory.join(format!("{name}.out")), directory.join(format!("{name}.log")));
        let stdout = File::create(&out).map_err(failed)?;
        let stderr = File::options().create(true).append(true).open(&log).map_err(failed)?;
        let mut command = Command::new(program());
        command.args(args).current_dir(directory).stdin(Stdio::piped()).stdout(stdout).stderr(stderr);
        for (variable, _) in std::env::vars_os() {
            if FOREIGN.iter().any(|family| variable.as_encoded_bytes().starts_with(family.as_bytes())) {
                command.env_remove(variable);
            }
        }
        command.env(PARENT_VARIABLE, getpid().as_raw_nonzero().to_string());
        // Its own group: Ctrl-C reaches the demo alone, which then ends the others in order.
        command.process_group(0).kill_on_drop(true);
        let mut child = command.spawn().map_err(failed)?;
        let lifeline = child.stdin.take();
        Ok(Self { name: name.to_owned(), child, lifeline, out, log })
    }

    /// Waits for the line of JSON a child prints when it is ready.
    pub(super) async fn ready<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        let deadline = Instant::now() + START_LIMIT;
        loop {
            let text = std::fs::read_to_string(&self.out).unwrap_or_default();
            if let Some((line, _)) = text.split_once('\n') {
                return serde_json::from_str(line)
                    .map_err(|error| self.failed(&format!("said {line:?} when it was ready ({error})")));
            }
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(&format!("did not start ({status})")));
            }
            if Instant::now() >= deadline {
                return Err(self.failed(&format!("was not ready within {} s", START_LIMIT.as_secs())));
            }
            sleep(START_POLL).await;
        }
    }

    /// An error that shows the end of the child's log.
    pub(super) fn failed(&self, what: &str) -> Failure {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(TAIL)..].join("\n  ");
        let tail = if tail.is_empty() { "(its log is empty)" } else { &tail };
        Failure::job(format!("{} {what}; the end of {}:\n  {tail}", self.name, self.log.display()))
    }

    /// How the child ended, if it has.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Asks the child to finish.
    pub(super) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops the child where it stands: it keeps its sockets and does nothing.
    pub(super) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets a frozen child go on.
    pub(super) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)) {
            // It may have ended meanwhile.
            let _gone = kill_process(pid, signal);
        }
    }

    /// Writes one byte to the child's lifeline.
    pub(super) async fn order(&mut self, byte: u8) -> Result<(), Failure> {
        let written = match &mut self.lifeline {
            Some(lifeline) => lifeline.write_all(&[byte]).await,
            None => Err(io::ErrorKind::BrokenPipe.into()),
        };
        written.map_err(|error| self.failed(&format!("took no orders ({error})")))
    }

    /// Waits until the child has ended, at most `limit`, then ends it. Returns whether it went by itself.
    pub(super) async fn finish(&mut self, limit: Duration) -> bool {
        if timeout(limit, self.child.wait()).await.is_ok() {
            return true;
        }
        self.kill().await;
        false
    }

    /// Ends the child at once and waits until it is gone.
    pub(super) async fn kill(&mut self) {
        // Fails only when the child has ended already.
        let _gone = self.child.kill().await;
    }
}
