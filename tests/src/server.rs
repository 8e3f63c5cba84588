//! The application `outrigger-test-app`, a process of its own that can be killed, frozen and broken.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};

use crate::mesh::{address, get, merge};
use crate::process::{Process, read};

/// What an application counted.
#[derive(Debug, Clone, Copy)]
pub struct Tally {
    /// Connections it accepted; health checks are among them.
    pub connections: u64,
    /// Requests whose head arrived.
    pub requests: u64,
    /// Requests it worked on to the end.
    pub executed: u64,
}

/// A running `outrigger-test-app`.
pub struct Server {
    /// Where it listens.
    pub address: SocketAddr,
    /// The process.
    pub process: Process,
    control: SocketAddr,
    name: String,
    settings: Value,
    prefix: Vec<String>,
    directory: PathBuf,
}

impl Server {
    /// Starts it on a free port; `extra` are more of its settings.
    pub async fn start(name: &str, extra: &Value, directory: &Path) -> Self {
        Self::within(&[], name, extra, directory).await
    }

    /// The same run by a command, such as `ip netns exec NAME`.
    pub async fn within(prefix: &[String], name: &str, extra: &Value, directory: &Path) -> Self {
        let mut settings =
            json!({"name": name, "listen": "127.0.0.1:0", "journal": journal(directory, name)});
        merge(&mut settings, extra);
        Self::launch(name, settings, prefix.to_vec(), directory.to_owned()).await
    }

    async fn launch(name: &str, mut settings: Value, prefix: Vec<String>, directory: PathBuf) -> Self {
        let mut words = prefix.clone();
        words.push(program().to_string_lossy().into_owned());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).arg(settings.to_string());
        let mut process = Process::spawn(name, command, &directory);
        let at = process.announced().await;
        let (listen, control) = (address(&at, "listen"), address(&at, "control"));
        // Started again, it listens on the same port.
        merge(&mut settings, &json!({"listen": listen}));
        Self { address: listen, process, control, name: name.to_owned(), settings, prefix, directory }
    }

    /// Kills it if it runs, and starts it again on the same port.
    pub async fn start_again(&mut self) {
        self.process.kill();
        let (settings, prefix, directory) =
            (self.settings.clone(), self.prefix.clone(), self.directory.clone());
        let name = self.name.clone();
        *self = Self::launch(&name, settings, prefix, directory).await;
    }

    /// Switches a fault on, and the one before off.
    ///
    /// # Panics
    /// When there is no such fault.
    pub async fn fault(&self, fault: &str) {
        assert_eq!(get(self.control, &format!("/fault/{fault}")).await.0, 200, "{fault}");
    }

    /// What it counted in this life.
    ///
    /// # Panics
    /// When it does not say.
    pub async fn tally(&self) -> Tally {
        let (_, page) = get(self.control, "/tally").await;
        let tally: Value = serde_json::from_str(&page).unwrap_or_default();
        let count = |what: &str| tally[what].as_u64().unwrap_or_else(|| panic!("{}: {page:?}", self.name));
        Tally { connections: count("connections"), requests: count("requests"), executed: count("executed") }
    }

    /// How often it executed each request that has an `x-id`, in all its lives.
    pub fn executions(&self) -> HashMap<String, usize> {
        let mut executions = HashMap::new();
        for id in read(&journal(&self.directory, &self.name)).lines() {
            *executions.entry(id.to_owned()).or_default() += 1;
        }
        executions
    }
}

fn journal(directory: &Path, name: &str) -> PathBuf {
    directory.join(format!("{name}.journal"))
}

/// `target/<profile>/outrigger-test-app`: cargo builds it with every test of this package.
fn program() -> PathBuf {
    let test = std::env::current_exe().expect("a process has an executable");
    test.ancestors().nth(2).expect("a test lies in target/<profile>/deps").join("outrigger-test-app")
}
