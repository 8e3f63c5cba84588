//! Real servers of other protocols than HTTP, and in [`clients`] their own clients.
//!
//! `cargo xtask test` unpacks or installs them and says where. Each listens on a free port with a directory of its own
//! and ends with the test.

pub mod clients;
pub mod work;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::component::{Running, bound, component};
use crate::wait::soon;

/// Names the root of the tree that Debian's packages were unpacked to.
const TREE: &str = "OUTRIGGER_TEST_SERVERS";
const NATS: &str = "OUTRIGGER_TEST_NATS_SERVER";
const POSTGRES: &str = "usr/lib/postgresql/15/bin";
/// What delivers a letter: a file of its own beside the script, complete when it has its name.
const DELIVER: &str = "letter=$(mktemp \"$0.XXXXXX\")\n{ echo \"for $*\"; cat; } >\"$letter\"\nmv \"$letter\" \"$letter.mail\"\n";
/// They take no port 0, so a free port may be gone when they want it.
const STARTS: usize = 5;

/// Where servers and clients run.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where their files go.
    pub directory: PathBuf,
    /// Where servers listen.
    pub ip: IpAddr,
    /// On which port; 0: on a free one.
    pub port: u16,
    /// What runs them, such as `ip netns exec NAME`.
    pub prefix: Vec<String>,
}

impl Place {
    /// Free ports of 127.0.0.1.
    pub fn loopback(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), ip: Ipv4Addr::LOCALHOST.into(), port: 0, prefix: Vec::new() }
    }

    /// A directory in it with this beginning of a name, that nobody else uses.
    ///
    /// # Panics
    /// When it cannot be made.
    fn room(&self, name: &str) -> PathBuf {
        let room = tempfile::Builder::new().prefix(&format!("{name}-")).tempdir_in(&self.directory);
        // It goes with the directory it is in.
        room.expect("a directory").keep()
    }

    /// A program of the unpacked tree, which finds the libraries unpacked with it.
    fn command(&self, program: &str) -> Command {
        let tree = component(TREE);
        let mut command = bound(&self.prefix, &tree.join(program));
        with_libraries(&mut command, &tree);
        command.current_dir(&self.directory).stdin(Stdio::null());
        command
    }

    /// The same as somebody who is not root, which is what PostgreSQL's server insists on. In a user namespace root
    /// goes by another number there and still owns its files, wherever they are.
    fn command_not_root(&self, program: &str) -> Command {
        if !rustix::process::geteuid().is_root() {
            return self.command(program);
        }
        let not_root = ["unshare", "--user", "--map-user=1000", "--map-group=1000", "--"].map(str::to_owned);
        Self { prefix: [self.prefix.as_slice(), &not_root].concat(), ..self.clone() }.command(program)
    }

    fn free_port(&self) -> u16 {
        if self.port != 0 {
            return self.port;
        }
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|socket| socket.local_addr());
        free.expect("a free port").port()
    }
}

fn with_libraries(command: &mut Command, tree: &Path) {
    let libraries = tree.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
    command.env("LD_LIBRARY_PATH", libraries);
}

/// A running server.
#[derive(Debug)]
pub struct Daemon {
    /// Where it listens.
    pub address: SocketAddr,
    /// Its own directory.
    pub directory: PathBuf,
    /// What ends it without leaving anything behind.
    end: Signal,
    running: Running,
}

/// How one is known to be up.
enum Up {
    /// It writes this.
    Says(&'static str),
    /// It says nothing, and listens.
    Listens,
}

impl Daemon {
    async fn start(
        place: &Place,
        directory: PathBuf,
        up: Up,
        mut command: impl FnMut(SocketAddr) -> Command,
    ) -> Self {
        for attempt in 0..STARTS {
            let address = SocketAddr::new(place.ip, place.free_port());
            let output = directory.join(format!("output-{attempt}.log"));
            let mut running = Running::spawn(command(address), output);
            let started = soon("a server is up or ends", async {
                loop {
                    if running.ended().is_some() {
                        return false;
                    }
                    let is_up = match up {
                        Up::Says(text) => running.output().contains(text),
                        Up::Listens => listens(running.pid(), address.port()),
                    };
                    if is_up {
                        return true;
                    }
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
            if started.await {
                return Self { address, directory, end: Signal::KILL, running };
            }
            println!("it did not start:\n{}", running.output());
        }
        panic!("it did not start {STARTS} times");
    }

    /// What it wrote so far.
    pub fn output(&self) -> String {
        self.running.output()
    }

    /// Ends it at once, as a crash would, and waits until it is gone.
    pub fn kill(&mut self) {
        self.running.kill();
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// When it has ended.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.running.pid()).ok().and_then(Pid::from_raw).expect("a process id");
        kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot send {signal:?}: {error}"));
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if self.running.ended().is_none() {
            self.signal(self.end);
            // One that a test stopped hears nothing else.
            self.signal(Signal::CONT);
            self.running.wait();
        }
    }
}

/// Whether somebody listens on a TCP port where that process runs.
fn listens(pid: u32, port: u16) -> bool {
    /// `TCP_LISTEN` of Linux' include/net/tcp_states.h.
    const LISTEN: &str = "0A";
    ["tcp", "tcp6"].iter().any(|table| {
        let table = std::fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        table.lines().any(|line| {
            let mut words = line.split_whitespace().skip(1);
            let local = words.next().and_then(|local| local.rsplit_once(':'));
            local.is_some_and(|(_, hex)| u16::from_str_radix(hex, 16) == Ok(port))
                && words.nth(1) == Some(LISTEN)
        })
    })
}

/// Runs something that ends soon.
fn prepare(mut command: Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&said));
}

/// MariaDB: user `root` without a password, database `test`. The server speaks first.
///
/// # Panics
/// When it does not start.
pub async fn mariadb(place: &Place) -> Daemon {
    let room = place.room("mariadb");
    let tree = component(TREE);
    let [base, data] = [("basedir", tree.join("usr")), ("datadir", room.join("data"))]
        .map(|(name, path)| format!("--{name}={}", path.display()));
    let mut install = Command::new(tree.join("usr/bin/mariadb-install-db"));
    with_libraries(&mut install, &tree);
    install.args(["--no-defaults", &base, &data, "--user=root", "--skip-name-resolve"]);
    prepare({
        install.arg("--auth-root-authentication-method=normal");
        install
    });
    let socket = format!("--socket={}", room.join("socket").display());
    Daemon::start(place, room.clone(), Up::Says("ready for connections"), |at| {
        let mut command = place.command("usr/sbin/mariadbd");
        command.args(["--no-defaults", &base, &data, &socket, "--user=root", "--skip-name-resolve"]);
        command.arg(format!("--pid-file={}", room.join("pid").display()));
        command.args([format!("--bind-address={}", at.ip()), format!("--port={}", at.port())]);
        // A test's data need not outlive a crash, and its machine is small.
        command.args(["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=16M"]);
        command
    })
    .await
}

/// PostgreSQL: user `mesh` without a password, database `postgres`; with TLS if there is a certificate.
/// The client speaks first.
///
/// # Panics
/// When it does not start.
pub async fn postgres(place: &Place, tls: Option<&Certificate>) -> Daemon {
    let room = place.room("postgres");
    let data = room.join("data").display().to_string();
    let mut initdb = place.command_not_root(&format!("{POSTGRES}/initdb"));
    initdb.args(["--pgdata", &data, "--no-sync", "--auth=trust", "--username=mesh"]);
    prepare({
        initdb.args(["--encoding=UTF8", "--locale=C"]);
        initdb
    });
    let access = "host all all all trust\n";
    std::fs::write(Path::new(&data).join("pg_hba.conf"), access).expect("the data directory takes files");
    let mut settings = ["unix_socket_directories=", "fsync=off", "jit=off", "shared_buffers=16MB"]
        .map(str::to_owned)
        .to_vec();
    if let Some(certificate) = tls {
        settings.push("ssl=on".to_owned());
        settings.push(format!("ssl_cert_file={}", certificate.chain.display()));
        settings.push(format!("ssl_key_file={}", certificate.key.display()));
    }
    let up = Up::Says("database system is ready to accept connections");
    let mut server = Daemon::start(place, room, up, |at| {
        let mut command = place.command_not_root(&format!("{POSTGRES}/postgres"));
        command.args(["-D", &data]);
        let listen = [format!("listen_addresses={}", at.ip()), format!("port={}", at.port())];
        for setting in listen.iter().chain(&settings) {
            command.args(["-c", setting]);
        }
        command
    })
    .await;
    // Its immediate shutdown: its other processes end, and the shared memory of System V goes.
    server.end = Signal::QUIT;
    server
}

/// Redis, with nothing kept. The client speaks first.
///
/// # Panics
/// When it does not start.
pub async fn redis(place: &Place) -> Daemon {
    let room = place.room("redis");
    Daemon::start(place, room.clone(), Up::Says("Ready to accept connections"), |at| {
        let mut command = place.command("usr/bin/redis-server");
        command.args(["--bind", &at.ip().to_string(), "--port", &at.port().to_string()]);
        // Nobody but tests calls it, from whichever network they made.
        command.args(["--save", "", "--protected-mode", "no"]).arg("--dir").arg(&room);
        command
    })
    .await
}

/// NATS. The server speaks first.
///
/// # Panics
/// When it does not start.
pub async fn nats(place: &Place) -> Daemon {
    let room = place.room("nats");
    Daemon::start(place, room, Up::Says("Server is ready"), |at| {
        let mut command = bound(&place.prefix, &component(NATS));
        command.args(["--addr", &at.ip().to_string(), "--port", &at.port().to_string()]);
        command.stdin(Stdio::null());
        command
    })
    .await
}

/// msmtpd, an SMTP server; what it took is in [`letters`]. The server speaks first.
///
/// # Panics
/// When it does not start.
pub async fn smtp(place: &Place) -> Daemon {
    let room = place.room("smtp");
    let script = room.join("letter");
    std::fs::write(&script, DELIVER).expect("a directory takes files");
    Daemon::start(place, room, Up::Listens, |at| {
        let mut command = place.command("usr/bin/msmtpd");
        command.args([format!("--interface={}", at.ip()), format!("--port={}", at.port())]);
        command.arg(format!("--command=sh {}", script.display()));
        command
    })
    .await
}

/// The letters an SMTP server took: a line `for` with their recipients, then what was sent.
pub fn letters(server: &Daemon) -> Vec<String> {
    let entries = std::fs::read_dir(&server.directory).into_iter().flatten().filter_map(Result::ok);
    let paths = entries.map(|entry| entry.path());
    let letters = paths.filter(|path| path.extension().is_some_and(|extension| extension == "mail"));
    letters.map(|letter| crate::process::read(&letter)).collect()
}

/// A TLS server of OpenSSL for one name; it serves the files in its directory over HTTP.
///
/// # Panics
/// When it does not start.
pub async fn tls(place: &Place, certificate: &Certificate) -> Daemon {
    let room = place.room("tls");
    Daemon::start(place, room.clone(), Up::Says("ACCEPT"), |at| {
        let mut command = bound(&place.prefix, Path::new("openssl"));
        command.args(["s_server", "-WWW", "-accept", &at.to_string()]);
        command.arg("-cert").arg(&certificate.chain).arg("-key").arg(&certificate.key);
        command.current_dir(&room).stdin(Stdio::null());
        command
    })
    .await
}

/// A certificate that only who has it in hand trusts.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// PEM.
    pub chain: PathBuf,
    /// PEM.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes one for a DNS name, with OpenSSL.
    ///
    /// # Panics
    /// When that fails.
    pub fn new(name: &str, directory: &Path) -> Self {
        let file = |extension: &str| directory.join(format!("{name}.{extension}"));
        let certificate = Self { chain: file("pem"), key: file("key") };
        let mut openssl = Command::new("openssl");
        openssl.args(["req", "-x509", "-noenc", "-days", "2", "-newkey", "ec", "-pkeyopt"]);
        openssl.args(["ec_paramgen_curve:prime256v1", "-subj", &format!("/CN={name}")]);
        openssl.args(["-addext", &format!("subjectAltName=DNS:{name}")]);
        openssl.arg("-keyout").arg(&certificate.key).arg("-out").arg(&certificate.chain);
        prepare(openssl);
        certificate
    }
}
