//! The sidecar's own configuration: raw serde form, then checked values.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::uri::PathAndQuery;
use outrigger_api::resource::Protocol;
use outrigger_api::token::Token;
use outrigger_common::config::{ConfigError, Key, Origin};
use outrigger_common::name::{ServiceName, check_label};
use outrigger_common::telemetry::LogFormat;

mod raw;

pub use raw::{Drain, Health, Limits, Pool, Timeouts};
use raw::{Raw, RawCheck, RawJoin, RawLocalPort, RawProbe, RawService, RawWorkers};

/// Every key, for environment variables and `docs/configuration.md`.
pub const KEYS: &[Key] = &[
    Key::new("registry.address", "host:port", "127.0.0.1:15012", "any", "Where the registry's gRPC port is."),
    Key::new(
        "join.token",
        "text",
        "-",
        "a token of `outrigger token`",
        "Proof for the first certificate. Prefer the file: process listings and dumps do not show it.",
    ),
    Key::new("join.token_file", "path", "-", "a readable file", "File that holds the join token."),
    Key::new(
        "workload.id",
        "text",
        "-",
        "1 to 128 letters, digits, '.', '_' and '-'",
        "Unique id of this workload. Default: the host's name and a random suffix.",
    ),
    Key::new(
        "workload.address",
        "IP address",
        "-",
        "an address peers can reach",
        "Address to register. Default: mesh.listen's, or the one the route to the registry starts from.",
    ),
    Key::new("workload.zone", "text", "-", "up to 63 characters", "Failure zone of this workload."),
    Key::new(
        "workload.weight",
        "number",
        "100",
        "1 to 1000",
        "Share of requests relative to the other workloads of its services.",
    ),
    Key::new(
        "state_dir",
        "path",
        "-",
        "a directory of its own; made (0700) when it does not exist",
        "Where key, certificate and last snapshot are kept, so that a restart needs neither the registry nor a token. Default: STATE_DIRECTORY, which systemd sets; without it nothing is kept.",
    ),
    Key::new(
        "services",
        "list",
        "[]",
        "entries of name, port, protocol, target, health, probes",
        "What the application serves. name: label within the namespace of the certificate; port: as callers name it; protocol: auto (what the client turns out to speak), http (the client's version), http1, http2, grpc or tcp; target: the application's ip:port; health: how it is checked; probes: paths that are answered without mTLS.",
    ),
    Key::new(
        "upstreams",
        "list",
        "[]",
        "name.namespace",
        "Services to subscribe to at start. Others are subscribed to at the first request.",
    ),
    Key::new(
        "outbound.listen",
        "ip:port",
        "127.0.0.1:15001",
        "loopback addresses",
        "Where the application sends its calls.",
    ),
    Key::new(
        "mesh.listen",
        "ip:port",
        "0.0.0.0:15008",
        "any",
        "Where other sidecars connect, with mutual TLS; 0.0.0.0 means IPv6, too.",
    ),
    Key::new(
        "admin.listen",
        "ip:port",
        "127.0.0.1:15020",
        "any",
        "Health, metrics and state of this sidecar.",
    ),
    Key::new(
        "workers",
        "threads",
        "1",
        "1 to 256, or auto",
        "Threads that carry requests. auto: the CPU quota of the cgroup.",
    ),
    Key::new("timeouts.connect", "duration", "1s", "10ms to 1m", "Connecting to an endpoint, TLS included."),
    Key::new(
        "timeouts.request",
        "duration",
        "30s",
        "10ms to 1h",
        "From the last request byte sent to the response head.",
    ),
    Key::new(
        "timeouts.idle",
        "duration",
        "5m",
        "1s to 24h",
        "A request or response body that does not move for this long is ended, as is a client's connection without a request.",
    ),
    Key::new(
        "timeouts.discovery",
        "duration",
        "1s",
        "10ms to 1m",
        "Longest wait of a first request for the registry's answer.",
    ),
    Key::new(
        "pool.idle_timeout",
        "duration",
        "90s",
        "1s to 24h",
        "A connection to another sidecar without requests for this long is closed.",
    ),
    Key::new(
        "pool.app_idle_timeout",
        "duration",
        "3s",
        "100ms to 1h",
        "The same for connections to the application; keep it below the application's own.",
    ),
    Key::new(
        "pool.max_age",
        "duration",
        "10m",
        "1s to 24h",
        "A connection to another sidecar takes no new requests after this age, shortened by up to a fifth at random.",
    ),
    Key::new(
        "limits.header_bytes",
        "size",
        "64KiB",
        "8KiB to 1MiB",
        "Largest head of a request; above it the answer is 431.",
    ),
    Key::new(
        "limits.replay_bytes",
        "size",
        "64KiB",
        "0B to 16MiB",
        "Request bodies up to this size are kept for a retry.",
    ),
    Key::new(
        "limits.connections",
        "connections",
        "10000",
        "1 to 1000000",
        "Client connections of each listener; others wait in the accept queue.",
    ),
    Key::new(
        "limits.edges",
        "edges",
        "1000",
        "1 to 100000",
        "Pairs of source and destination with metrics of their own; others share the label `overflow`.",
    ),
    Key::new(
        "health.interval",
        "duration",
        "1s",
        "100ms to 10m",
        "Time between two checks of each application port.",
    ),
    Key::new("health.timeout", "duration", "1s", "10ms to 1m", "Limit of one check."),
    Key::new(
        "health.unhealthy_after",
        "checks",
        "3",
        "1 to 100",
        "Failures in a row that make a port unhealthy; a refused connection does at once.",
    ),
    Key::new("health.healthy_after", "checks", "1", "1 to 100", "Successes in a row that make it healthy."),
    Key::new(
        "drain.acknowledge",
        "duration",
        "5s",
        "0s to 30s",
        "Longest wait, after deregistering, until callers know.",
    ),
    Key::new(
        "drain.deadline",
        "duration",
        "30s",
        "0s to 1h",
        "Longest wait for requests in flight before the process ends.",
    ),
    Key::new(
        "timeouts.detect",
        "duration",
        "10ms",
        "1ms to 1s",
        "How long a client may be silent before its destination is dialled, for the server may speak first; and the longest pause in words that could be any protocol's.",
    ),
    Key::new(
        "timeouts.tcp_idle",
        "duration",
        "1h",
        "1s to 168h",
        "A connection of opaque bytes that does not move for this long is ended, where no policy says otherwise.",
    ),
    Key::new(
        "outbound.ports",
        "list",
        "[]",
        "entries of listen, service, port",
        "Local ports that lead to one port of a service each, whatever is spoken. listen: a loopback ip:port; service: name.namespace.",
    ),
    Key::new(
        "capture.enabled",
        "boolean",
        "false",
        "true or false",
        "Whether connections are redirected to this sidecar by the kernel, see `outrigger capture`. It then listens at outbound.listen for both kinds of addresses, and at inbound.listen.",
    ),
    Key::new(
        "inbound.listen",
        "ip:port",
        "0.0.0.0:15006",
        "any",
        "Where captured connections to the application arrive, with capture.enabled; 0.0.0.0 means IPv6, too.",
    ),
    Key::new("log_format", "text", "text", "text or json", "Form of log lines on standard error."),
];

/// One port the application serves.
#[derive(Debug, Clone)]
pub struct Served {
    /// The service's label; its namespace is that of the certificate.
    pub name: String,
    /// Port as callers name it.
    pub port: u16,
    /// How the application is spoken to.
    pub protocol: Protocol,
    /// Where the application listens.
    pub target: SocketAddr,
    /// How it says that it is ready.
    pub health: Check,
    /// Paths whose GET is answered without mutual TLS, by status alone.
    pub probes: Vec<PathAndQuery>,
}

/// How an application is checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// It accepts connections.
    Tcp,
    /// It answers a GET of this path with 2xx or 3xx.
    Http(PathAndQuery),
    /// `grpc.health.v1.Health/Check` says that this service is SERVING; empty: the server as a whole.
    Grpc(String),
}

impl std::fmt::Display for Check {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp => write!(f, "TCP connect"),
            Self::Http(path) => write!(f, "GET {path}"),
            Self::Grpc(service) if service.is_empty() => write!(f, "gRPC health"),
            Self::Grpc(service) => write!(f, "gRPC health of {service}"),
        }
    }
}

/// A local port that leads to one port of a service.
#[derive(Debug, Clone)]
pub struct LocalPort {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
}

/// How many threads carry requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workers {
    /// That many.
    Fixed(usize),
    /// The CPU quota.
    Auto,
}

/// A checked configuration.
#[derive(Debug, Clone)]
pub struct Config {
    /// `host:port` of the registry.
    pub registry: String,
    /// The join token; none only when there may be an identity in `state_dir`.
    pub token: Option<Token>,
    /// Unique id of the workload.
    pub workload: String,
    /// Address to register, if given.
    pub address: Option<IpAddr>,
    /// Failure zone, or empty.
    pub zone: String,
    /// Share of requests relative to other workloads.
    pub weight: u32,
    /// Where state is kept, if it is.
    pub state_dir: Option<PathBuf>,
    /// What the application serves.
    pub services: Vec<Served>,
    /// Services to subscribe to at start.
    pub upstreams: Vec<ServiceName>,
    /// The application's side.
    pub outbound: SocketAddr,
    /// Local ports that lead to one service port each.
    pub local_ports: Vec<LocalPort>,
    /// The peers' side.
    pub mesh: SocketAddr,
    /// The operator's side.
    pub admin: SocketAddr,
    /// Whether connections are redirected to this sidecar.
    pub capture: bool,
    /// Where those to the application arrive.
    pub inbound: SocketAddr,
    /// Threads that carry requests.
    pub workers: Workers,
    /// Limits in time.
    pub timeouts: Timeouts,
    /// How long connections are kept.
    pub pool: Pool,
    /// Limits in size and number.
    pub limits: Limits,
    /// Checks of the application.
    pub health: Health,
    /// The end.
    pub drain: Drain,
    /// Form of log lines.
    pub log_format: LogFormat,
}

impl Config {
    /// Checks what was read.
    ///
    /// # Errors
    /// The first key that is wrong, with its place and what would be right.
    pub fn load(origin: &Origin) -> Result<Self, ConfigError> {
        let raw: Raw = origin.load()?;
        check_ranges(origin, &raw)?;
        check_loopback(origin, "outbound.listen", raw.outbound.listen)?;
        let workers = match raw.workers {
            RawWorkers::Number(number) if (1..=256).contains(&number) => Workers::Fixed(number),
            RawWorkers::Word(ref word) if word == "auto" => Workers::Auto,
            RawWorkers::Number(_) | RawWorkers::Word(_) => {
                return Err(origin.error("workers", "use 1 to 256, or auto"));
            }
        };
        let state_dir = state_dir(origin, raw.state_dir);
        let token = token(origin, &raw.join, state_dir.is_some())?;
        let workload = workload_id(origin, raw.workload.id)?;
        if raw.workload.zone.len() > 63 {
            return Err(origin.error("workload.zone", "use up to 63 characters"));
        }
        let services = services(origin, raw.services)?;
        let mut upstreams: Vec<_> = raw
            .upstreams
            .iter()
            .map(|name| {
                ServiceName::parse(name)
                    .map_err(|error| origin.error("upstreams", format!("{error} (write name.namespace)")))
            })
            .collect::<Result<_, _>>()?;
        let local_ports = local_ports(origin, raw.outbound.ports)?;
        // Known before the first connection, which may be one whose server speaks first.
        upstreams.extend(local_ports.iter().map(|local| local.service.clone()));
        Ok(Self {
            registry: raw.registry.address,
            token,
            workload,
            address: raw.workload.address,
            zone: raw.workload.zone,
            weight: raw.workload.weight,
            state_dir,
            services,
            upstreams,
            outbound: raw.outbound.listen,
            local_ports,
            mesh: raw.mesh.listen,
            admin: raw.admin.listen,
            capture: raw.capture.enabled,
            inbound: raw.inbound.listen,
            workers,
            timeouts: raw.timeouts,
            pool: raw.pool,
            limits: raw.limits,
            health: raw.health,
            drain: raw.drain,
            log_format: raw.log_format,
        })
    }
}

fn check_ranges(origin: &Origin, raw: &Raw) -> Result<(), ConfigError> {
    const MS: Duration = Duration::from_millis(1);
    const S: Duration = Duration::from_secs(1);
    const HOUR: Duration = Duration::from_secs(3600);
    const ZERO: Duration = Duration::ZERO;
    let durations = [
        ("timeouts.connect", raw.timeouts.connect, 10 * MS, 60 * S),
        ("timeouts.request", raw.timeouts.request, 10 * MS, HOUR),
        ("timeouts.idle", raw.timeouts.idle, S, 24 * HOUR),
        ("timeouts.discovery", raw.timeouts.discovery, 10 * MS, 60 * S),
        ("timeouts.detect", raw.timeouts.detect, MS, S),
        ("timeouts.tcp_idle", raw.timeouts.tcp_idle, S, 168 * HOUR),
        ("pool.idle_timeout", raw.pool.idle_timeout, S, 24 * HOUR),
        ("pool.app_idle_timeout", raw.pool.app_idle_timeout, 100 * MS, HOUR),
        ("pool.max_age", raw.pool.max_age, S, 24 * HOUR),
        ("health.interval", raw.health.interval, 100 * MS, 600 * S),
        ("health.timeout", raw.health.timeout, 10 * MS, 60 * S),
        ("drain.acknowledge", raw.drain.acknowledge, ZERO, 30 * S),
        ("drain.deadline", raw.drain.deadline, ZERO, HOUR),
    ];
    let wide = |number: u32| usize::try_from(number).unwrap_or(usize::MAX);
    let numbers = [
        ("workload.weight", wide(raw.workload.weight), 1, 1000),
        ("limits.header_bytes", raw.limits.header_bytes, 8 << 10, 1 << 20),
        ("limits.replay_bytes", raw.limits.replay_bytes, 0, 16 << 20),
        ("limits.connections", raw.limits.connections, 1, 1_000_000),
        ("limits.edges", raw.limits.edges, 1, 100_000),
        ("health.unhealthy_after", wide(raw.health.unhealthy_after), 1, 100),
        ("health.healthy_after", wide(raw.health.healthy_after), 1, 100),
    ];
    let range = |name: &str| KEYS.iter().find(|key| key.path == name).map_or("", |key| key.range);
    let outside = durations
        .iter()
        .filter(|(_, value, low, high)| value < low || value > high)
        .map(|(name, ..)| *name)
        .chain(
            numbers
                .iter()
                .filter(|(_, value, low, high)| value < low || value > high)
                .map(|(name, ..)| *name),
        )
        .next();
    outside.map_or(Ok(()), |name| Err(origin.error(name, format!("out of range; use {}", range(name)))))
}

/// An empty path keeps nothing, whatever systemd offers.
fn state_dir(origin: &Origin, given: Option<PathBuf>) -> Option<PathBuf> {
    let offered = || {
        // systemd.exec(5): several directories are separated by colons.
        let first = origin.variable("STATE_DIRECTORY")?.split(':').next()?;
        Some(PathBuf::from(first))
    };
    given.or_else(offered).filter(|path| !path.as_os_str().is_empty())
}

fn token(origin: &Origin, join: &RawJoin, has_state: bool) -> Result<Option<Token>, ConfigError> {
    let parse =
        |key: &str, text: &str| Token::parse(text).map(Some).map_err(|error| origin.error(key, error));
    match (&join.token, &join.token_file) {
        (Some(text), None) => parse("join.token", text),
        (None, Some(path)) => {
            let text = std::fs::read_to_string(path)
                .map_err(|error| origin.error("join.token_file", format!("cannot read {}: {error}", path.display())))?;
            parse("join.token_file", &text)
        }
        (Some(_), Some(_)) => Err(origin.error("join.token", "give either join.token or join.token_file")),
        (None, None) if has_state => Ok(None),
        (None, None) => Err(origin.error(
            "join.token",
            "missing: a sidecar needs a join token for its first certificate; make one with `outrigger token`",
        )),
    }
}

fn workload_id(origin: &Origin, given: Option<String>) -> Result<String, ConfigError> {
    let id = given.unwrap_or_else(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host =
            host.trim().split('.').next().filter(|host| !host.is_empty()).unwrap_or("workload").to_owned();
        format!("{host}-{:06x}", fastrand::u32(..1 << 24))
    });
    let valid =
        (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if valid {
        Ok(id)
    } else {
        Err(origin.error("workload.id", "use 1 to 128 letters, digits, '.', '_' and '-'"))
    }
}

fn services(origin: &Origin, raw: Vec<RawService>) -> Result<Vec<Served>, ConfigError> {
    let mut seen = std::collections::HashSet::new();
    for (index, service) in raw.iter().enumerate() {
        let key = |field| format!("services[{index}].{field}");
        check_label(&service.name).map_err(|error| origin.error(&key("name"), error))?;
        if service.port == 0 {
            return Err(origin.error(&key("port"), "0 is not a port; use 1 to 65535"));
        }
        if service.target.port() == 0 || service.target.ip().is_unspecified() {
            return Err(
                origin.error(&key("target"), format!("{} is not an address to connect to", service.target))
            );
        }
        if !seen.insert((service.name.clone(), service.port)) {
            return Err(
                origin.error(&key("port"), format!("{}:{} appears twice", service.name, service.port))
            );
        }
    }
    let checked = |(index, raw): (usize, RawService)| {
        let health = check(&raw.health)
            .map_err(|message| origin.error(&format!("services[{index}].health"), message))?;
        let probes = probes(raw.probes)
            .map_err(|message| origin.error(&format!("services[{index}].probes"), message))?;
        let RawService { name, port, protocol, target, .. } = raw;
        Ok(Served { name, port, protocol, target, health, probes })
    };
    raw.into_iter().enumerate().map(checked).collect()
}

/// Longest path, or name of a service of gRPC, in bytes.
const CHECK_LENGTH: usize = 1024;

fn check(raw: &RawCheck) -> Result<Check, String> {
    match (&raw.http, &raw.grpc, raw.tcp) {
        (None, None, None | Some(true)) => Ok(Check::Tcp),
        (Some(text), None, None) => PathAndQuery::try_from(text.as_str())
            .ok()
            // Not cut off at a fragment.
            .filter(|path| path == text && text.starts_with('/') && text.len() <= CHECK_LENGTH)
            .map(Check::Http)
            .ok_or_else(|| format!("http: {text:?} is not a path; write /ready, up to {CHECK_LENGTH} bytes")),
        (None, Some(service), None) if service.len() <= CHECK_LENGTH => Ok(Check::Grpc(service.clone())),
        (None, Some(_), None) => Err(format!("grpc: use up to {CHECK_LENGTH} bytes")),
        _ => Err("use one of http: /path, grpc: service and tcp: true".to_owned()),
    }
}

fn check_loopback(origin: &Origin, key: &str, listen: SocketAddr) -> Result<(), ConfigError> {
    if listen.ip().is_loopback() {
        return Ok(());
    }
    Err(origin.error(
        key,
        format!(
            "{} is not a loopback address: anyone who reaches it would act as this workload; use 127.0.0.1",
            listen.ip()
        ),
    ))
}

fn local_ports(origin: &Origin, raw: Vec<RawLocalPort>) -> Result<Vec<LocalPort>, ConfigError> {
    let checked = raw.into_iter().enumerate().map(|(index, RawLocalPort { listen, service, port })| {
        let key = |field| format!("outbound.ports[{index}].{field}");
        check_loopback(origin, &key("listen"), listen)?;
        let service = ServiceName::parse(&service)
            .map_err(|error| origin.error(&key("service"), format!("{error} (write name.namespace)")))?;
        if port == 0 {
            return Err(origin.error(&key("port"), "0 is not a port; use 1 to 65535"));
        }
        Ok(LocalPort { listen, service, port })
    });
    checked.collect()
}

/// Exact paths: without a query, so that nothing an outsider chooses reaches the application.
fn probes(raw: Vec<RawProbe>) -> Result<Vec<PathAndQuery>, String> {
    let checked = |RawProbe { path }: RawProbe| {
        let parsed = PathAndQuery::try_from(path.as_str()).ok();
        let exact = |parsed: &PathAndQuery| {
            parsed == &path && !path.contains('?') && path.starts_with('/') && path.len() <= CHECK_LENGTH
        };
        parsed.filter(exact).ok_or_else(|| {
            format!("{path:?} is not a path; write /healthz, up to {CHECK_LENGTH} bytes, without a query")
        })
    };
    raw.into_iter().map(checked).collect()
}

#[cfg(test)]
mod tests;
