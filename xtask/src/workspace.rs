//! Where the source and the build output are, and how cargo is called.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::shell;

/// The checkout this `xtask` works on.
pub(crate) struct Workspace {
    /// Directory of the workspace's `Cargo.toml`.
    pub(crate) root: PathBuf,
    /// Cargo's output directory, wherever the user's configuration puts it.
    pub(crate) target: PathBuf,
}

impl Workspace {
    /// Asks cargo, so that `CARGO_TARGET_DIR` and configuration files count.
    pub(crate) fn find() -> Result<Self> {
        let mut ask = Command::new(cargo_program());
        ask.args(["metadata", "--no-deps", "--format-version=1"]);
        let answer: Value = serde_json::from_str(&shell::capture(&mut ask)?).context("cargo metadata")?;
        let path = |key: &str| {
            answer[key].as_str().map(PathBuf::from).with_context(|| format!("cargo metadata has no {key}"))
        };
        Ok(Self { root: path("workspace_root")?, target: path("target_directory")? })
    }

    /// A cargo command with these arguments, run at the workspace's root.
    pub(crate) fn cargo<const N: usize>(&self, args: [&str; N]) -> Command {
        let mut cargo = Command::new(cargo_program());
        cargo.args(args).current_dir(&self.root);
        cargo
    }

    /// Where components for the tests are kept.
    pub(crate) fn tools(&self) -> PathBuf {
        self.target.join("tools")
    }
}

/// The cargo that started this process, else the one in `PATH`.
fn cargo_program() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}
