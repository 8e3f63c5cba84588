//! `outrigger demo` as a child, left up until the test is over.

use std::net::SocketAddr;

use outrigger_tests::client::Client;
use outrigger_tests::process::Process;
use serde_json::Value;
use tempfile::TempDir;

/// A running demo. Its processes end with it.
pub(crate) struct Demo {
    /// HTTP port of the registry.
    pub(crate) registry: SocketAddr,
    /// Workload and admin port of every sidecar.
    pub(crate) sidecars: Vec<(String, SocketAddr)>,
    /// As an application beside the storefront's sidecar.
    pub(crate) storefront: Client,
    /// The demo itself.
    pub(crate) process: Process,
    _directory: TempDir,
}

impl Demo {
    /// Starts it with these arguments besides `--keep`, and waits until it is up.
    pub(crate) async fn start(args: &[&str]) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let args = [&["demo", "--keep", "--output", "json"], args].concat();
        // What --keep leaves behind goes with the test.
        let environment = [("TMPDIR".to_owned(), directory.path().to_string_lossy().into_owned())];
        let mut process = Process::start("demo", &args, &environment, directory.path());
        let up = process.announced().await;
        let address = |value: &Value| -> SocketAddr {
            let text = value.as_str().unwrap_or_default();
            text.parse().unwrap_or_else(|error| panic!("{text:?} in {up}: {error}"))
        };
        let replicas = |service: &Value| service["replicas"].as_array().cloned().unwrap_or_default();
        let replicas: Vec<_> = up["services"].as_array().into_iter().flatten().flat_map(replicas).collect();
        let sidecars = replicas.iter().map(|replica| {
            let id = replica["id"].as_str().expect("every replica has an id");
            (id.to_owned(), address(&replica["admin"]))
        });
        let storefront =
            replicas.iter().find(|replica| replica["id"] == "storefront-1").expect("a storefront");
        Self {
            registry: address(&up["registry"]["http"]),
            sidecars: sidecars.collect(),
            storefront: Client::http1(address(&storefront["outbound"])),
            process,
            _directory: directory,
        }
    }
}
