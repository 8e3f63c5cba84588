//! Container images: a static binary in an empty root.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

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

/// Builds it.
///
/// The explicit target keeps these flags away from build scripts and from the artifacts of every other command.
pub(crate) fn static_binary(workspace: &Workspace, build: &StaticBuild<'_>) -> Result<PathBuf> {
    let StaticBuild { package, profile, flags } = build;
    let target = host_target()?;
    let mut cargo = workspace.cargo(["build", "--locked", "--package", package, "--bin", package]);
    cargo
        .args(["--target", &target, "--profile", profile])
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("RUSTFLAGS", format!("-C target-feature=+crt-static {flags}").trim_end());
    shell::run(&mut cargo)?;
    let directory = if *profile == "dev" { "debug" } else { profile };
    Ok(workspace.target.join(target).join(directory).join(package))
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
