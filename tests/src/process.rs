//! The `outrigger` binary as a child that ends with the test, however that ends.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, getpid, kill_process};
use serde_json::Value;

use crate::component;
use crate::wait::{soon, until};

/// Names the `outrigger` binary to test; `cargo xtask test` sets it.
const BINARY_VARIABLE: &str = "OUTRIGGER_TEST_BIN";
/// Names a sidecar's own binary, to run in place of `outrigger proxy`.
const SIDECAR_VARIABLE: &str = "OUTRIGGER_TEST_SIDECAR";
/// Makes the binary end with the process that started it.
pub const PARENT_VARIABLE: &str = "OUTRIGGER_DEMO_CHILD";
/// `RUST_LOG` of the children.
const LOG_VARIABLE: &str = "OUTRIGGER_TEST_LOG";
const LOG_DEFAULT: &str = "info,outrigger_proxy=debug,outrigger_registry=debug";
/// Variables of these families would reach into the children's configuration.
const FOREIGN: [&str; 2] = ["OUTRIGGER_", "OTEL_"];

/// The binary under test.
///
/// # Panics
/// When there is none.
pub fn binary() -> PathBuf {
    if let Some(binary) = std::env::var_os(BINARY_VARIABLE) {
        return binary.into();
    }
    // target/debug/deps/<test> -> target/debug/outrigger
    let test = std::env::current_exe().expect("a process has an executable");
    let binary = test.ancestors().nth(2).expect("a test lies in target/<profile>/deps").join("outrigger");
    assert!(
        binary.exists(),
        "{} does not exist: run `cargo build -p outrigger`, or set {BINARY_VARIABLE}",
        binary.display()
    );
    binary
}

/// The binary with an environment of nothing but what tests say.
pub fn command(args: &[&str]) -> Command {
    command_within(&[], args)
}

/// The same run by another command, such as `ip netns exec NAME`.
pub fn command_within(prefix: &[String], args: &[&str]) -> Command {
    let mut words = prefix.iter().map(PathBuf::from).chain([binary()]);
    let mut command = Command::new(words.next().expect("the binary is one"));
    command.args(words).args(args);
    settle(&mut command);
    command
}

/// A sidecar with `args`, run by the command `prefix` if that is one.
pub fn sidecar_within(prefix: &[String], args: &[&str]) -> Command {
    let Some(program) = std::env::var_os(SIDECAR_VARIABLE) else {
        return command_within(prefix, &[&["proxy"], args].concat());
    };
    // It knows nothing of parents: the kernel ends it.
    let mut command = component::bound(prefix, Path::new(&program));
    command.args(args);
    settle(&mut command);
    command
}

/// Leaves the command an environment of nothing but what tests say.
fn settle(command: &mut Command) {
    for (variable, _) in std::env::vars_os() {
        if FOREIGN.iter().any(|family| variable.as_encoded_bytes().starts_with(family.as_bytes())) {
            command.env_remove(variable);
        }
    }
    let log = std::env::var(LOG_VARIABLE).unwrap_or_else(|_| LOG_DEFAULT.to_owned());
    command.env("RUST_LOG", log).env(PARENT_VARIABLE, getpid().as_raw_nonzero().to_string());
}

/// A child, killed when dropped. It also ends when the thread that started it does, and when its
/// standard input closes.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    directory: PathBuf,
}

impl Process {
    /// Starts the binary with `args`; standard output and error go to `<name>.out` and `<name>.log` in
    /// `directory`.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn start(name: &str, args: &[&str], environment: &[(String, String)], directory: &Path) -> Self {
        let mut command = command(args);
        command.envs(environment.iter().map(|(key, value)| (key, value)));
        Self::spawn(name, command, directory)
    }

    /// Starts any command in the same way. Nothing but its own doing ends it with the test.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn spawn(name: &str, mut command: Command, directory: &Path) -> Self {
        let out = File::create(directory.join(format!("{name}.out"))).expect("a file for the output");
        let log = File::options().create(true).append(true).open(directory.join(format!("{name}.log")));
        command.current_dir(directory).stdin(Stdio::piped()).stdout(out);
        let child = command
            .stderr(log.expect("a file for the log"))
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {name} ({command:?}): {error}"));
        Self { name: name.to_owned(), child, directory: directory.to_owned() }
    }

    /// Waits for the line of JSON a child prints when it is ready.
    ///
    /// # Panics
    /// When it ends instead, or says something else.
    pub async fn announced(&mut self) -> Value {
        soon(&format!("{} announces itself", self.name), async {
            loop {
                let text = self.stdout();
                if let Some((line, _)) = text.split_once('\n') {
                    return serde_json::from_str(line)
                        .unwrap_or_else(|error| panic!("{} said {line:?}: {error}", self.name));
                }
                if let Some(status) = self.ended() {
                    panic!("{} ended ({status}) instead of starting; its log:\n{}", self.name, self.log());
                }
                tokio::time::sleep(Duration::from_millis(4)).await;
            }
        })
        .await
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Panics
    /// When the child has been waited for.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot send {signal:?}: {error}"));
    }

    /// How it ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }

    /// Waits for its end.
    pub async fn end(&mut self) -> ExitStatus {
        let name = self.name.clone();
        let mut status = None;
        until(&format!("{name} ends"), || {
            status = self.ended();
            let ended = status.is_some();
            async move { ended }
        })
        .await;
        status.expect("the wait was for it")
    }

    /// Ends it at once (SIGKILL) and waits until it is gone, with all its sockets.
    pub fn kill(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }

    /// What it wrote to standard output.
    pub fn stdout(&self) -> String {
        read(&self.directory.join(format!("{}.out", self.name)))
    }

    /// What it wrote to standard error, under the same name in earlier lives too.
    pub fn log(&self) -> String {
        read(&self.directory.join(format!("{}.log", self.name)))
    }

    /// Memory in use: `VmRSS` in bytes.
    ///
    /// # Panics
    /// When it has ended.
    pub fn resident_bytes(&self) -> u64 {
        let status = read(Path::new(&format!("/proc/{}/status", self.pid())));
        let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        kib.and_then(|kib| kib.trim().parse::<u64>().ok()).expect("a living process has VmRSS") * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A file's text; empty when it cannot be read.
pub(crate) fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
