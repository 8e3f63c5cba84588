//! Starting the binary, reading what it says, and waiting for conditions with a deadline.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Longest wait for anything: CI's machines are slow, and a condition that holds ends it early.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// The binary, with nothing of the caller's environment that would change what it does.
pub(crate) fn outrigger(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_outrigger"));
    command.args(args).stdin(Stdio::null());
    for (name, _) in std::env::vars_os() {
        let name_text = name.to_string_lossy();
        if name_text.starts_with("OUTRIGGER_") || name_text.starts_with("OTEL_") {
            command.env_remove(&name);
        }
    }
    command
}

/// Runs a command to its end.
pub(crate) fn run(args: &[&str]) -> Output {
    outrigger(args).output().unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// A running process of the binary; killed when the test is over.
pub(crate) struct Running {
    child: Child,
    lines: mpsc::Receiver<String>,
    /// Its temporary files live here.
    pub(crate) directory: tempfile::TempDir,
}

impl Running {
    pub(crate) fn start(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = outrigger(args);
        command.env("TMPDIR", directory.path()).current_dir(directory.path());
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { child, lines, directory }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of standard output.
    pub(crate) fn line(&self) -> String {
        self.lines.recv_timeout(LIMIT).expect("a line of output before the deadline")
    }

    pub(crate) fn json_line(&self) -> Value {
        let line = self.line();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// What is left of standard output, to its end.
    pub(crate) fn rest(&self) -> Vec<String> {
        self.lines.iter().collect()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        send(self.pid(), signal);
    }

    /// Waits for the end; the exit code, or none after a signal.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let mut status = None;
        until("the process ends", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code()
    }

    /// What is left in its temporary directory.
    pub(crate) fn leftovers(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

pub(crate) fn send(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(pid.cast_signed()).unwrap(), signal).unwrap();
}

/// Waits until `condition` holds.
pub(crate) fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < deadline, "waited {LIMIT:?} until {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// Processes a demo has started and that still run: those with its mark in their environment.
pub(crate) fn children_of_demo(demo: u32) -> Vec<u32> {
    let mark = format!("OUTRIGGER_DEMO_CHILD={demo}\0");
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        let mut environment = Vec::new();
        let read = std::fs::File::open(format!("/proc/{pid}/environ"))
            .and_then(|mut file| file.read_to_end(&mut environment));
        // A process that has ended has no environment any more.
        read.is_ok() && environment.windows(mark.len()).any(|window| window == mark.as_bytes())
    })
    .collect()
}

/// A registry of its own, on free ports.
pub(crate) struct Registry {
    pub(crate) process: Running,
    pub(crate) grpc: String,
    pub(crate) identity: PathBuf,
}

impl Registry {
    pub(crate) fn start() -> Self {
        let directory = tempfile::tempdir().unwrap().keep();
        let config = directory.join("registry.yaml");
        let text = format!(
            "data_dir: {}\ngrpc:\n  listen: 127.0.0.1:0\nhttp:\n  listen: 127.0.0.1:0\n",
            directory.join("data").display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Running::start(&["registry", "--config", config.to_str().unwrap(), "--output", "json"]);
        let ready = process.json_line();
        let grpc = ready["grpc"].as_str().unwrap().to_owned();
        Self { process, grpc, identity: directory.join("data").join("admin") }
    }

    /// Runs a command as this registry's administrator.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        let identity = self.identity.to_str().unwrap();
        run(&[args, &["--registry", &self.grpc, "--identity", identity]].concat())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let directory = self.identity.parent().and_then(Path::parent).unwrap();
        let _gone = std::fs::remove_dir_all(directory);
    }
}

/// A file with this text.
pub(crate) fn file(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}
