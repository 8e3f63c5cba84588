//! Programs from outside, which `cargo xtask test` installs and names.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use crate::wait::until;

/// The program that an environment variable names.
///
/// # Panics
/// When it names none.
pub fn component(variable: &str) -> PathBuf {
    let program = std::env::var_os(variable).map(PathBuf::from);
    program.unwrap_or_else(|| {
        panic!(
            "{variable} names no program: run `cargo xtask test`, which installs what is needed and names it"
        )
    })
}

/// Such a program running, its output in one file. It ends with the test, however that ends.
#[derive(Debug)]
pub struct Running {
    child: Child,
    output: PathBuf,
}

impl Running {
    /// Starts it.
    ///
    /// # Panics
    /// When it is not there.
    pub fn start(variable: &str, args: &[String], output: PathBuf) -> Self {
        let mut command = bound(&[], &component(variable));
        command.args(args).stdin(Stdio::null());
        Self::spawn(command, output)
    }

    /// Starts a command made with [`bound`]. Its standard input is what the command says.
    ///
    /// # Panics
    /// When it is not there.
    pub fn spawn(mut command: Command, output: PathBuf) -> Self {
        let out = File::create(&output).expect("a file for the output");
        let child = command
            .stderr(out.try_clone().expect("a second handle of the file"))
            .stdout(out)
            .spawn()
            .unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Self { child, output }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Ends it at once (SIGKILL) and waits until it is gone, with all its sockets.
    pub fn kill(&mut self) {
        let _ended_already = self.child.kill();
        self.wait();
    }

    /// Blocks until it has ended.
    pub(crate) fn wait(&mut self) {
        let _status = self.child.wait();
    }

    /// Waits for its end; returns whether it succeeded, and all it wrote.
    pub async fn finish(mut self) -> (bool, String) {
        let mut status = None;
        until("a program ends", || {
            status = self.ended();
            let ended = status.is_some();
            async move { ended }
        })
        .await;
        (status.is_some_and(|status| status.success()), self.output())
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.output)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How it ended, if it has.
    ///
    /// # Panics
    /// Never: a child can be waited for.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("a child can be waited for")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A command that the kernel ends with the thread of the test, should that be killed. A prefix, such as
/// `ip netns exec NAME`, runs it, and must become it.
pub fn bound(prefix: &[String], program: &Path) -> Command {
    let mut words = prefix.iter().map(String::as_str).chain(["setpriv", "--pdeathsig", "KILL", "--"]);
    let mut command = Command::new(words.next().expect("there is one at least"));
    command.args(words).arg(program);
    command
}

/// Runs such a program to its end and returns what it said; fails the test when it failed.
///
/// # Panics
/// When it fails.
pub fn run(variable: &str, args: &[&str], directory: &Path, input: &str) -> String {
    let program = component(variable);
    let file = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(file.path(), input).expect("it takes bytes");
    let output = Command::new(&program)
        .args(args)
        .current_dir(directory)
        .stdin(file.reopen().expect("it is there"))
        .output()
        .unwrap_or_else(|error| panic!("cannot start {}: {error}", program.display()));
    let said =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{} {args:?} ({}):\n{said}", program.display(), output.status);
    said
}
