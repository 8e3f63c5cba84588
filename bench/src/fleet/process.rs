//! The registry under test: the real binary in a process of its own.

use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

/// Longest start: it reads its whole store.
const START_LIMIT: Duration = Duration::from_secs(60);

/// A registry process and its directory.
pub(super) struct Registry {
    binary: PathBuf,
    directory: PathBuf,
    lease_ttl: Duration,
    child: Option<Child>,
    addresses: Addresses,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Addresses {
    grpc: SocketAddr,
    http: SocketAddr,
}

/// What a process has used so far.
#[derive(Debug, Clone, Copy, Serialize)]
pub(super) struct Usage {
    /// Seconds of CPU, user and system.
    pub(super) cpu_s: f64,
    /// Resident memory.
    pub(super) resident_mib: f64,
    /// The most it ever was.
    pub(super) peak_mib: f64,
}

impl Registry {
    /// Starts one on free ports with a new store in `directory`.
    ///
    /// # Errors
    /// When it does not start; its log is in the directory.
    pub(super) async fn start(binary: &Path, directory: &Path, lease_ttl: Duration) -> anyhow::Result<Self> {
        let free = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut registry = Self {
            binary: binary.to_owned(),
            directory: directory.to_owned(),
            lease_ttl,
            child: None,
            addresses: Addresses { grpc: free, http: free },
        };
        registry.again().await?;
        Ok(registry)
    }

    /// Starts it again, at the same addresses and with the same store.
    ///
    /// # Errors
    /// As [`Registry::start`].
    pub(super) async fn again(&mut self) -> anyhow::Result<()> {
        let Addresses { grpc, http } = self.addresses;
        let (data, ttl) = (self.directory.join("data"), self.lease_ttl.as_millis());
        let text = format!(
            "data_dir: {}\nlease_ttl: {ttl}ms\ngrpc: {{listen: \"{grpc}\"}}\nhttp: {{listen: \"{http}\"}}\n",
            data.display()
        );
        let config = self.directory.join("registry.yaml");
        std::fs::write(&config, text)?;
        let log = File::options().create(true).append(true).open(self.log())?;
        let alone = self.binary.file_stem().is_some_and(|name| name == "outrigger-registry");
        let subcommand = if alone { None } else { Some("registry") };
        let mut child = Command::new(&self.binary)
            .args(subcommand)
            .args(["--output", "json", "--config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        let mut line = String::new();
        let mut output = BufReader::new(child.stdout.take().context("its output is a pipe")?);
        tokio::time::timeout(START_LIMIT, output.read_line(&mut line)).await.context("starting")??;
        self.addresses = serde_json::from_str(&line)
            .with_context(|| format!("the registry did not start: see {}", self.log().display()))?;
        self.child = Some(child);
        Ok(())
    }

    /// Kills it, without a chance to say good-bye.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub(super) async fn kill(&mut self) -> anyhow::Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Returns where sidecars connect.
    pub(super) fn grpc(&self) -> SocketAddr {
        self.addresses.grpc
    }

    /// Returns the directory of the administrator's identity.
    pub(super) fn admin(&self) -> PathBuf {
        self.directory.join("data/admin")
    }

    fn log(&self) -> PathBuf {
        self.directory.join("registry.log")
    }

    /// Returns what it has used so far.
    ///
    /// # Errors
    /// When it is not running.
    pub(super) fn usage(&self) -> anyhow::Result<Usage> {
        let id = self.child.as_ref().and_then(Child::id).context("the registry is not running")?;
        usage(&id.to_string())
    }
}

/// Returns what a process has used so far, by its id or `self`.
///
/// # Errors
/// When there is none.
pub(super) fn usage(process: &str) -> anyhow::Result<Usage> {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{process}/{file}"));
    let stat = read("stat")?;
    // After the name, which is in brackets: the fields from the third on (proc_pid_stat(5)).
    let (_, fields) = stat.rsplit_once(')').context("/proc/PID/stat has a name in brackets")?;
    let ticks: u64 =
        fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
    let status = read("status")?;
    let mib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
        kib.map_or(0.0, |kib| kib / 1024.0)
    };
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Ok(Usage { cpu_s: ticks as f64 / per_second, resident_mib: mib("VmRSS:"), peak_mib: mib("VmHWM:") })
}
