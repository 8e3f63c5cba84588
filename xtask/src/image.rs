//! Container images: a static binary in an empty root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::shell;
use crate::sidecar;
use crate::workspace::Workspace;

/// What image to make.
pub(crate) struct Order<'a> {
    /// The static binary in it.
    pub(crate) binary: &'a Path,
    /// Name inside the archive.
    pub(crate) tag: &'a str,
    /// The OCI archive to write.
    pub(crate) output: &'a Path,
    /// Take the network away from `podman build` altogether, to prove that it needs none. Root only.
    pub(crate) offline: bool,
}

/// Builds the image around a binary.
pub(crate) fn build(workspace: &Workspace, order: &Order<'_>) -> Result<()> {
    let binary = order.binary;
    let name = binary.file_name().and_then(|name| name.to_str()).context("the binary has a name")?;
    let scratch = tempfile::tempdir()?;
    let context = scratch.path().join("context");
    fs::create_dir(&context)?;
    fs::copy(binary, context.join(name)).with_context(|| format!("copy {}", binary.display()))?;
    fs::set_permissions(context.join(name), fs::Permissions::from_mode(0o755))?;

    let podman = Podman { storage: scratch.path(), offline: order.offline };
    let mut build = podman.command(&["build", "--quiet", "--network=none", "--pull=never"]);
    build
        .args(["--tag", order.tag])
        .arg(format!("--timestamp={}", commit_time(workspace)))
        .arg(format!("--build-arg=VERSION={}", env!("CARGO_PKG_VERSION")))
        .arg(format!("--build-arg=REVISION={}", revision(workspace)))
        .arg("--file")
        .arg(workspace.root.join("deploy").join(containerfile(name)))
        .arg(&context);
    shell::run(&mut build)?;

    // podman refuses to write into an archive that is there already.
    let fresh = scratch.path().join("oci.tar");
    let mut save = podman.command(&["save", "--quiet", "--format=oci-archive"]);
    shell::run(save.arg("--output").arg(&fresh).arg(order.tag))?;
    let directory = order.output.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    fs::copy(&fresh, order.output).with_context(|| format!("write {}", order.output.display()))?;

    println!("binary  {} bytes  {}", fs::metadata(binary)?.len(), binary.display());
    println!("image   {} bytes  {}  ({})", fs::metadata(&fresh)?.len(), order.output.display(), order.tag);
    println!("load it with: podman load -i {}", order.output.display());
    Ok(())
}

/// What an image of this binary is made by.
fn containerfile(binary: &str) -> &'static str {
    if binary == sidecar::PACKAGE { "Containerfile.sidecar" } else { "Containerfile" }
}

/// A binary of the same name as its package, for this machine's own target, linked statically.
pub(crate) struct StaticBuild<'a> {
    /// The package.
    pub(crate) package: &'a str,
    /// Cargo's profile.
    pub(crate) profile: &'a str,
    /// More flags of the compiler.
    pub(crate) flags: &'a str,
}

impl StaticBuild<'_> {
    /// The command that builds it, and where the binary is then.
    ///
    /// The explicit target keeps these flags away from build scripts and from the artifacts of every other command.
    fn command(&self, workspace: &Workspace) -> Result<(Command, PathBuf)> {
        let Self { package, profile, flags } = self;
        let target = host_target()?;
        let mut cargo = workspace.cargo(["build", "--locked", "--package", package, "--bin", package]);
        cargo
            .args(["--target", &target, "--profile", profile])
            .env_remove("CARGO_ENCODED_RUSTFLAGS")
            .env("RUSTFLAGS", format!("-C target-feature=+crt-static {flags}").trim_end());
        let directory = if *profile == "dev" { "debug" } else { profile };
        Ok((cargo, workspace.target.join(target).join(directory).join(package)))
    }
}

/// Builds it.
pub(crate) fn static_binary(workspace: &Workspace, build: &StaticBuild<'_>) -> Result<PathBuf> {
    let (mut command, binary) = build.command(workspace)?;
    shell::run(&mut command)?;
    Ok(binary)
}

/// A static build that is under way.
pub(crate) struct Building {
    child: Child,
    command: String,
    binary: PathBuf,
}

impl Building {
    /// Begins to build with what nobody else wants of the processors.
    pub(crate) fn begin(workspace: &Workspace, build: &StaticBuild<'_>) -> Result<Self> {
        let (mut command, binary) = build.command(workspace)?;
        command.arg("--quiet");
        let mut idle = shell::idle(&command);
        let line = shell::line(&idle);
        println!("$ {line} &");
        let child = idle.stdin(Stdio::null()).spawn().with_context(|| line.clone())?;
        Ok(Self { child, command: line, binary })
    }

    /// The binary, once it is there.
    pub(crate) fn end(mut self) -> Result<PathBuf> {
        println!("$ wait    # for {}", self.command);
        let status = self.child.wait().with_context(|| self.command.clone())?;
        ensure!(status.success(), "`{}` failed with {status}", self.command);
        Ok(self.binary.clone())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // Ended already, or not wanted any more.
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

/// The target triple of the installed compiler.
pub(crate) fn host_target() -> Result<String> {
    let version = shell::capture(Command::new("rustc").arg("-vV"))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("rustc -vV names no host")
}

/// podman with storage of its own, which neither needs nor changes that of the machine.
struct Podman<'a> {
    storage: &'a Path,
    offline: bool,
}

impl Podman<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = if self.offline {
            let mut unshare = Command::new("unshare");
            unshare.args(["--net", "--", "podman"]);
            unshare
        } else {
            Command::new("podman")
        };
        // vfs: no mounts, so that it works inside a container and leaves nothing behind.
        command.args(["--storage-driver=vfs", "--root"]).arg(self.storage.join("root"));
        command.arg("--runroot").arg(self.storage.join("run")).args(arguments);
        command
    }
}

/// Seconds since the epoch of the commit, so that the same source gives the same image; 0 outside a checkout.
fn commit_time(workspace: &Workspace) -> String {
    git(workspace, &["log", "-1", "--format=%ct"]).unwrap_or_else(|| "0".to_owned())
}

fn revision(workspace: &Workspace) -> String {
    git(workspace, &["describe", "--always", "--dirty", "--abbrev=40"])
        .unwrap_or_else(|| "unknown".to_owned())
}

fn git(workspace: &Workspace, arguments: &[&str]) -> Option<String> {
    let answer = shell::capture(Command::new("git").args(arguments).current_dir(&workspace.root)).ok()?;
    Some(answer.trim().to_owned()).filter(|answer| !answer.is_empty())
}
