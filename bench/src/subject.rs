//! What is measured: a pair of processes in both roles, or nothing in between.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use outrigger_tests::component::{Running, bound, component};
use tokio::net::TcpStream;

use crate::load::{version, with_libraries};
use crate::outrigger::{Outrigger, Scale};

/// Longest wait until a process accepts connections.
const START: Duration = Duration::from_secs(20);

/// A proxy, or what it is compared with.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, ValueEnum)]
pub(crate) enum Subject {
    /// No proxy.
    Direct,
    /// Two TLS byte relays without HTTP: the floor.
    Relay,
    /// nginx.
    Nginx,
    /// HAProxy.
    Haproxy,
    /// HAProxy that carries bytes.
    HaproxyTcp,
    /// Envoy, HTTP/1.1 between the two.
    EnvoyH1,
    /// Envoy, HTTP/2 between the two.
    EnvoyH2,
    /// Outrigger.
    Outrigger,
    /// Outrigger, the service's port declared `tcp`.
    OutriggerTcp,
}

/// What is spoken at both ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Speech {
    /// HTTP/1.1.
    Http,
    /// HTTP/2 without TLS.
    Grpc,
}

/// What all subjects share.
pub(crate) struct Stage {
    /// Scratch: certificates, configurations, logs.
    pub(crate) directory: tempfile::TempDir,
    /// Where the application listens.
    pub(crate) app: SocketAddr,
    // Ends with the stage.
    _app: Running,
}

/// A started subject.
pub(crate) struct Pair {
    /// What it is.
    pub(crate) subject: Subject,
    /// Its name in the report.
    pub(crate) label: String,
    /// Where clients connect.
    pub(crate) entry: SocketAddr,
    /// The proxies; none for [`Subject::Direct`].
    pub(crate) pids: Vec<u32>,
    /// The mesh around it, if it is Outrigger.
    pub(crate) mesh: Option<Outrigger>,
    // They end with the pair.
    _running: Vec<Running>,
}

impl Subject {
    /// Its name in reports.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Relay => "TLS byte relays",
            Self::Nginx => "nginx",
            Self::Haproxy => "HAProxy",
            Self::HaproxyTcp => "HAProxy, TCP",
            Self::EnvoyH1 => "Envoy, h1 between",
            Self::EnvoyH2 => "Envoy, h2 between",
            Self::Outrigger => "Outrigger",
            Self::OutriggerTcp => "Outrigger, TCP",
        }
    }

    /// Whether it is a proxy that people would pick instead.
    pub(crate) fn is_peer(self) -> bool {
        match self {
            Self::Nginx | Self::Haproxy | Self::HaproxyTcp | Self::EnvoyH1 | Self::EnvoyH2 => true,
            Self::Direct | Self::Relay | Self::Outrigger | Self::OutriggerTcp => false,
        }
    }

    /// Starts it and waits until it accepts connections.
    ///
    /// # Errors
    /// When a process does not start; its output is in the error.
    pub(crate) async fn start(self, stage: &Stage, speech: Speech) -> Result<Pair> {
        if matches!(self, Self::Outrigger | Self::OutriggerTcp) {
            return Pair::outrigger(self, self.label(), stage, Scale::default()).await;
        }
        let mut pair = Pair {
            subject: self,
            label: self.label().to_owned(),
            entry: stage.app,
            pids: Vec::new(),
            mesh: None,
            _running: Vec::new(),
        };
        if self == Self::Direct {
            return Ok(pair);
        }
        let (outbound, inbound) = (free_port()?, free_port()?);
        for (role, listen, connect) in [("inbound", inbound, stage.app), ("outbound", outbound, inbound)] {
            let place = stage.directory.path();
            let (variable, args) = self.command(speech, role, (listen, connect), place)?;
            let program = variable.map_or_else(std::env::current_exe, |variable| Ok(component(variable)))?;
            let name = format!("{self:?}-{role}.out").to_lowercase();
            let running = start(&program, &args, listen, place.join(name)).await?;
            pair.pids.push(running.pid());
            pair._running.push(running);
        }
        pair.entry = outbound;
        Ok(pair)
    }

    /// The variable that names the program, this one if there is none, and its arguments.
    fn command(
        self,
        speech: Speech,
        role: &str,
        (listen, connect): (SocketAddr, SocketAddr),
        place: &Path,
    ) -> Result<(Option<&'static str>, Vec<String>)> {
        let path = place.display().to_string();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        let fill = |name: &str| {
            let values = self.values(speech, (listen, connect), &path);
            let text = render(template(name), &values);
            let file = place.join(format!("{self:?}-{role}-{name}").to_lowercase());
            fs::write(&file, text).map(|()| file.display().to_string())
        };
        Ok(match self {
            Self::Direct | Self::Outrigger | Self::OutriggerTcp => (None, Vec::new()),
            Self::Relay => {
                let (listen, connect) = (listen.to_string(), connect.to_string());
                (
                    None,
                    words(&[
                        "relay",
                        "--role",
                        role,
                        "--listen",
                        &listen,
                        "--connect",
                        &connect,
                        "--identity",
                        &path,
                    ]),
                )
            }
            Self::Nginx => {
                let grpc = if speech == Speech::Grpc { "grpc-" } else { "" };
                let file = fill(&format!("nginx-{grpc}{role}.conf"))?;
                let errors = format!("{path}/nginx-{role}.err");
                (Some("OUTRIGGER_BENCH_NGINX"), words(&["-e", &errors, "-p", &path, "-c", &file]))
            }
            Self::Haproxy => (
                Some("OUTRIGGER_BENCH_HAPROXY"),
                words(&["-db", "-f", &fill(&format!("haproxy-{role}.cfg"))?]),
            ),
            Self::HaproxyTcp => (
                Some("OUTRIGGER_BENCH_HAPROXY"),
                words(&["-db", "-f", &fill(&format!("haproxy-tcp-{role}.cfg"))?]),
            ),
            Self::EnvoyH1 | Self::EnvoyH2 => {
                let file = fill(&format!("envoy-{role}.yaml"))?;
                let flags =
                    ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c", &file];
                (Some("OUTRIGGER_BENCH_ENVOY"), words(&flags))
            }
        })
    }

    /// What stands for the placeholders of its configuration.
    fn values(
        self,
        speech: Speech,
        (listen, connect): (SocketAddr, SocketAddr),
        directory: &str,
    ) -> Vec<(&'static str, String)> {
        let grpc = speech == Speech::Grpc;
        let h2_between = grpc || self == Self::EnvoyH2;
        let options = |h2: bool| if h2 { "http2_protocol_options" } else { "http_protocol_options" };
        vec![
            ("listen", listen.to_string()),
            ("connect", connect.to_string()),
            ("listen_port", listen.port().to_string()),
            ("connect_port", connect.port().to_string()),
            ("directory", directory.to_owned()),
            ("alpn", if h2_between { "h2" } else { "http/1.1" }.to_owned()),
            ("upstream", options(h2_between).to_owned()),
            ("app_upstream", options(grpc).to_owned()),
            ("accept", if grpc { "proto h2" } else { "" }.to_owned()),
            ("app", if grpc { "proto h2" } else { "" }.to_owned()),
            ("between", if grpc { "alpn h2" } else { "" }.to_owned()),
        ]
    }
}

impl Stage {
    /// Makes certificates and starts the application.
    ///
    /// # Errors
    /// When either fails.
    pub(crate) async fn set() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        crate::certs::write(directory.path())?;
        let app = free_port()?;
        let args = ["app", "--listen", &app.to_string()].map(str::to_owned);
        let output = directory.path().join("app.out");
        let running = start(&std::env::current_exe()?, &args, app, output).await?;
        Ok(Self { directory, app, _app: running })
    }
}

impl Pair {
    /// Outrigger in a mesh of a certain size.
    ///
    /// # Errors
    /// When the mesh does not come up.
    pub(crate) async fn outrigger(
        subject: Subject,
        label: &str,
        stage: &Stage,
        scale: Scale,
    ) -> Result<Self> {
        let mesh = Outrigger::start(stage.app, scale).await?;
        let entry = match subject {
            Subject::OutriggerTcp => mesh.tcp_entry()?,
            _ => mesh.front.outbound,
        };
        Ok(Self {
            subject,
            label: label.to_owned(),
            entry,
            pids: vec![mesh.front.process.pid(), mesh.back.process.pid()],
            mesh: Some(mesh),
            _running: Vec::new(),
        })
    }
}

/// Starts a program and waits until it accepts connections.
async fn start(program: &Path, args: &[String], listen: SocketAddr, output: PathBuf) -> Result<Running> {
    let mut command = bound(&[], program);
    with_libraries(&mut command).args(args).stdin(Stdio::null());
    let mut running = Running::spawn(command, output);
    let started = Instant::now();
    while TcpStream::connect(listen).await.is_err() {
        if let Some(status) = running.ended() {
            anyhow::bail!("{} {args:?} ended with {status}:\n{}", program.display(), running.output());
        }
        let said = || format!("{} {args:?} does not listen:\n{}", program.display(), running.output());
        ensure!(started.elapsed() < START, said());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Ok(running)
}

/// A port of the loopback address that nobody uses at the moment.
pub(crate) fn free_port() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").context("a free port")?;
    Ok(listener.local_addr()?)
}

fn render(template: &str, values: &[(&str, String)]) -> String {
    values
        .iter()
        .fold(template.to_owned(), |text, (key, value)| text.replace(&format!("{{{{{key}}}}}"), value))
}

fn template(name: &str) -> &'static str {
    match name {
        "nginx-outbound.conf" => include_str!("../config/nginx-outbound.conf"),
        "nginx-inbound.conf" => include_str!("../config/nginx-inbound.conf"),
        "nginx-grpc-outbound.conf" => include_str!("../config/nginx-grpc-outbound.conf"),
        "nginx-grpc-inbound.conf" => include_str!("../config/nginx-grpc-inbound.conf"),
        "haproxy-outbound.cfg" => include_str!("../config/haproxy-outbound.cfg"),
        "haproxy-inbound.cfg" => include_str!("../config/haproxy-inbound.cfg"),
        "haproxy-tcp-outbound.cfg" => include_str!("../config/haproxy-tcp-outbound.cfg"),
        "haproxy-tcp-inbound.cfg" => include_str!("../config/haproxy-tcp-inbound.cfg"),
        "envoy-outbound.yaml" => include_str!("../config/envoy-outbound.yaml"),
        _ => include_str!("../config/envoy-inbound.yaml"),
    }
}

/// Versions of the peers, for the report.
pub(crate) fn versions() -> Vec<(String, String)> {
    [
        ("nginx", "OUTRIGGER_BENCH_NGINX", "-v"),
        ("HAProxy", "OUTRIGGER_BENCH_HAPROXY", "-v"),
        ("Envoy", "OUTRIGGER_BENCH_ENVOY", "--version"),
    ]
    .map(|(name, variable, flag)| {
        // Envoy begins with the path it was started by, nginx and HAProxy with their names.
        let said = version(variable, flag);
        let said = said.rsplit("version: ").next().unwrap_or_default().trim();
        (name.to_owned(), said.trim_start_matches("HAProxy version ").trim_start_matches("nginx/").to_owned())
    })
    .to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_placeholder_is_left_in_any_configuration() {
        let at = "127.0.0.1:1".parse().unwrap();
        for subject in
            [Subject::Nginx, Subject::Haproxy, Subject::HaproxyTcp, Subject::EnvoyH1, Subject::EnvoyH2]
        {
            for speech in [Speech::Http, Speech::Grpc] {
                for role in ["inbound", "outbound"] {
                    let place = tempfile::tempdir().unwrap();
                    let (_, args) = subject.command(speech, role, (at, at), place.path()).unwrap();
                    let text = fs::read_to_string(args.last().unwrap()).unwrap();
                    assert!(text.contains("127.0.0.1") && !text.contains("{{"), "{text}");
                }
            }
        }
    }
}
