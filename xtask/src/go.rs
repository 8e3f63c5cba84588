//! The judges of protocols that are written in Go, built from source.
//!
//! `tools/go/go.mod` and `go.sum` pin them, and all they need, with hashes; nothing else is taken, and no other Go
//! toolchain is fetched. Building them with nothing cached takes 100 seconds of processor time. Go keeps what it
//! built in its own cache, so that another checkout on the same machine has them in seconds.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::components::Staging;
use crate::shell;
use crate::workspace::Workspace;

const MODULE: &str = include_str!("../tools/go/go.mod");
const SUMS: &str = include_str!("../tools/go/go.sum");
const MISSING: &str = "missing: go 1.26 or newer, which builds h2spec and gRPC's interop programs; Debian 12's own \
                       is too old, take the one of its backports or of go.dev/dl and put it in PATH";

/// The programs `go.mod` names as tools.
pub(crate) struct Judges {
    /// Judges a server of HTTP/2.
    pub(crate) h2spec: PathBuf,
    /// gRPC's own client for tests between implementations.
    pub(crate) grpc_client: PathBuf,
    /// The server it calls.
    pub(crate) grpc_server: PathBuf,
}

/// Builds them below `target/tools`, anew when a pin changed.
pub(crate) fn install(workspace: &Workspace) -> Result<Judges> {
    let place = workspace.tools().join("go");
    let judges = Judges::at(&place);
    // Written last, so that a build cut short is not mistaken for a whole one.
    let stamp = place.join("pins");
    let pins = [MODULE, SUMS].concat();
    if fs::read_to_string(&stamp).is_ok_and(|found| found == pins) && judges.are_there() {
        return Ok(judges);
    }
    let go = shell::which("go").context(MISSING)?;
    println!("building h2spec and gRPC's interop programs to {}", place.display());
    let staging = Staging::begin(workspace, "go")?;
    let mut build = Command::new(go);
    build
        .arg("build")
        .args(["-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags=-s -w", "-o"])
        // With the slash it is a directory for all of them.
        .arg(staging.place.join(""))
        .arg("tool")
        .current_dir(workspace.root.join("xtask/tools/go"))
        // Nothing of the machine's own settings: another flag is another build, another toolchain a download.
        .env("GOFLAGS", "")
        .env("GOWORK", "off")
        .env("GOTOOLCHAIN", "local")
        .env("CGO_ENABLED", "0");
    shell::run(&mut build).context(MISSING)?;
    fs::write(staging.place.join("pins"), &pins)?;
    staging.keep_as(&place)?;
    Ok(judges)
}

impl Judges {
    fn at(place: &Path) -> Self {
        Self {
            h2spec: place.join("h2spec"),
            grpc_client: place.join("client"),
            grpc_server: place.join("server"),
        }
    }

    fn are_there(&self) -> bool {
        [&self.h2spec, &self.grpc_client, &self.grpc_server]
            .into_iter()
            .all(|file| shell::is_executable(file))
    }
}
