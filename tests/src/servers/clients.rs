//! The servers' own clients. Each returns at once; [`Running::finish`] waits for what it says.

use std::io::{Seek, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::Place;
use crate::component::{Running, bound, component};

const NATS_PYTHON: &str = "OUTRIGGER_TEST_NATS_PYTHON";

/// `mariadb` with statements; rows are lines with tabs between their columns.
pub fn mariadb(place: &Place, to: SocketAddr, statements: &str) -> Running {
    let mut command = place.command("usr/bin/mariadb");
    command.args(["--no-defaults", "--protocol=tcp", "--user=root", "--batch", "--skip-column-names"]);
    command.args([format!("--host={}", to.ip()), format!("--port={}", to.port())]);
    spawn(place, command, statements)
}

/// `psql` with statements and with more of a connection string, such as `sslmode=disable`; rows are lines with `|`
/// between their columns.
pub fn psql(place: &Place, to: SocketAddr, options: &str, statements: &str) -> Running {
    let mut command = place.command(&format!("{}/psql", super::POSTGRES));
    let base = format!("hostaddr={} port={} user=mesh dbname=postgres", to.ip(), to.port());
    command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", &format!("{base} {options}")]);
    spawn(place, command, statements)
}

/// `redis-cli` with commands, one a line, sent one after the other on one connection.
pub fn redis(place: &Place, to: SocketAddr, commands: &str) -> Running {
    redis_with(place, to, &[], commands)
}

/// The same with more arguments, such as `--pipe`, which sends raw protocol without waiting for replies.
pub fn redis_with(place: &Place, to: SocketAddr, args: &[&str], input: &str) -> Running {
    let mut command = place.command("usr/bin/redis-cli");
    command.args(["-h", &to.ip().to_string(), "-p", &to.port().to_string()]).args(args);
    spawn(place, command, input)
}

/// `msmtp`, which sends one letter: headers, an empty line, text.
pub fn msmtp(place: &Place, to: SocketAddr, recipients: &[&str], letter: &str) -> Running {
    let mut command = place.command("usr/bin/msmtp");
    command.args([format!("--host={}", to.ip()), format!("--port={}", to.port())]);
    command.args(["--from=orders@shop.mesh", "--tls=off", "--auth=off", "--"]).args(recipients);
    spawn(place, command, letter)
}

/// NATS' client for Python doing what `servers/nats_peer.py` describes. It prints one line of JSON.
pub fn nats(place: &Place, to: SocketAddr, order: &Value) -> Running {
    let mut command = bound(&place.prefix, &component(NATS_PYTHON));
    command.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/servers/nats_peer.py"));
    command.arg(format!("nats://{to}"));
    spawn(place, command, &order.to_string())
}

/// Starts a command made with [`bound`] with this input; its output goes to a file of its own.
///
/// # Panics
/// When it is not there.
pub fn spawn(place: &Place, mut command: Command, input: &str) -> Running {
    // A file, so that nobody needs to feed it.
    let mut file = tempfile::tempfile().expect("a temporary file");
    file.write_all(input.as_bytes()).expect("it takes bytes");
    file.rewind().expect("a file can be read again");
    let output = tempfile::Builder::new().prefix("client-").tempfile_in(&place.directory);
    let (_, output) = output.expect("a temporary file").keep().expect("it may stay");
    command.stdin(Stdio::from(file));
    Running::spawn(command, output)
}
