//! Programs that know nothing of the mesh: `peer.py` on the hosts of a network.

use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Stdio};

use outrigger_tests::netns::Host;

/// The user sidecars run as.
pub(crate) const SIDECAR: u32 = 1337;
/// The user applications run as.
pub(crate) const APP: u32 = 1000;
/// The system's own: other users cannot see what is below a home directory.
pub(crate) const PYTHON: &str = "/usr/bin/python3";
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/capture/peer.py");

/// A running program, `peer.py` or another, ended when dropped.
pub(crate) struct Peer {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Peer {
    /// Starts it as a user, and waits for its first line.
    pub(crate) fn start(host: &Host, uid: u32, words: &[&str]) -> (Self, String) {
        Self::run(host, uid, &[&[PYTHON, PEER], words].concat())
    }

    /// The same with any program.
    pub(crate) fn run(host: &Host, uid: u32, words: &[&str]) -> (Self, String) {
        let mut command = host.command(&host.prefix_as(uid), words);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let mut peer = Self { child, output };
        let first = peer.line();
        (peer, first)
    }

    /// Serves ports on all addresses of a host, and says `name` to every connection.
    pub(crate) fn serve(host: &Host, name: &str, ports: &[u16]) -> Self {
        let ports: Vec<_> = ports.iter().map(u16::to_string).collect();
        let words: Vec<_> = ["serve", name].into_iter().chain(ports.iter().map(String::as_str)).collect();
        let (peer, first) = Self::start(host, APP, &words);
        assert_eq!(first, "listening", "{words:?}");
        peer
    }

    /// The next line it prints; empty at its end.
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim().to_owned()
    }

    /// Sends a line on the connection it holds and returns what comes back.
    pub(crate) fn exchange(&mut self, line: &str) -> String {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
        self.line()
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ended_already = self.child.kill();
        let _status = self.child.wait();
    }
}

/// What the other end of a new connection says first; what went wrong, if nothing.
pub(crate) fn ask(host: &Host, uid: u32, at: impl Display, port: u16) -> String {
    run(host, uid, &["ask", &at.to_string(), &port.to_string()])
}

/// What comes back over UDP.
pub(crate) fn udp(host: &Host, uid: u32, at: impl Display, port: u16) -> String {
    run(host, uid, &["udp", &at.to_string(), &port.to_string(), "datagram"])
}

fn run(host: &Host, uid: u32, words: &[&str]) -> String {
    let output = host.run_as(uid, &[&[PYTHON, PEER], words].concat());
    let said = if output.status.success() { output.stdout } else { output.stderr };
    String::from_utf8_lossy(&said).trim().to_owned()
}
