//! Configuration of both modes: one file, `OUTRIGGER_*` over it, then our own checks.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::Uri;
use outrigger_common::config::{ConfigError, Key, Origin, bytes, duration};
use outrigger_common::telemetry::LogFormat;
use serde::Deserialize;

use crate::client::ClientOptions;
use crate::store::StoreOptions;

/// Every key.
pub const KEYS: &[Key] = &[
    Key::new("log_format", "word", "text", "text, json", "Form of the log lines on standard error."),
    Key::new(
        "drain_timeout",
        "duration",
        "10s",
        "0s..10m",
        "How long requests in flight may take after SIGTERM.",
    ),
    Key::new(
        "server.listen",
        "host:port",
        "127.0.0.1:8080",
        "port 0 picks a free one",
        "Where orders are served.",
    ),
    Key::new(
        "server.database",
        "path",
        "orders.db",
        "a file on a local disk",
        "The SQLite file; replicas on one machine may share it.",
    ),
    Key::new(
        "server.max_connections",
        "number",
        "1024",
        "1..65536",
        "Most connections at once; more wait in the kernel's queue.",
    ),
    Key::new(
        "server.queue",
        "number",
        "1024",
        "1..65536",
        "Writes that may wait for the writer; one more is answered 503.",
    ),
    Key::new("server.batch", "number", "64", "1..1024", "Most writes committed together."),
    Key::new("server.readers", "number", "2", "1..64", "Connections for reading; each has a thread."),
    Key::new(
        "server.busy_timeout",
        "duration",
        "2s",
        "10ms..1m",
        "How long a write waits for other replicas' writes before it is answered 503.",
    ),
    Key::new(
        "server.body_timeout",
        "duration",
        "10s",
        "10ms..10m",
        "How long a request body may take before it is answered 408.",
    ),
    Key::new(
        "server.max_database",
        "size",
        "16GiB",
        "64KiB..16384GiB",
        "Largest database file; beyond it writes are answered 507 and reads go on.",
    ),
    Key::new(
        "server.idempotency_retention",
        "duration",
        "24h",
        "1s..720h",
        "How long an Idempotency-Key is remembered.",
    ),
    Key::new(
        "storefront.listen",
        "host:port",
        "127.0.0.1:8081",
        "port 0 picks a free one",
        "Where the storefront is served.",
    ),
    Key::new("storefront.orders", "URL", "http://orders.shop", "http, no path", "The order service."),
    Key::new(
        "storefront.proxy",
        "URL",
        "-",
        "http, no path",
        "Forward proxy for calls to the order service; none: call it directly.",
    ),
    Key::new(
        "storefront.timeout",
        "duration",
        "10s",
        "1ms..10m",
        "How long one call to the order service may take.",
    ),
    Key::new(
        "storefront.max_connections",
        "number",
        "1024",
        "1..65536",
        "Most connections from users at once; more wait in the kernel's queue.",
    ),
    Key::new(
        "storefront.max_upstream_connections",
        "number",
        "128",
        "1..65536",
        "Most connections to the order service (or the proxy); more calls wait within their timeout.",
    ),
];

/// What the file says, unchecked.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RawConfig {
    /// See [`KEYS`].
    pub log_format: LogFormat,
    /// See [`KEYS`].
    pub drain_timeout: RawDuration,
    /// Server mode.
    pub server: RawServer,
    /// Storefront mode.
    pub storefront: RawStorefront,
}

/// A duration whose default is that of `drain_timeout`.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(transparent)]
pub struct RawDuration(#[serde(deserialize_with = "duration")] Duration);

impl Default for RawDuration {
    fn default() -> Self {
        Self(Duration::from_secs(10))
    }
}

/// The `server` section, unchecked; see [`KEYS`].
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RawServer {
    pub listen: SocketAddr,
    pub database: PathBuf,
    pub max_connections: usize,
    pub queue: usize,
    pub batch: usize,
    pub readers: u32,
    #[serde(deserialize_with = "duration")]
    pub busy_timeout: Duration,
    #[serde(deserialize_with = "duration")]
    pub body_timeout: Duration,
    #[serde(deserialize_with = "bytes")]
    pub max_database: usize,
    #[serde(deserialize_with = "duration")]
    pub idempotency_retention: Duration,
}

impl Default for RawServer {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8080)),
            database: PathBuf::from("orders.db"),
            max_connections: 1024,
            queue: 1024,
            batch: 64,
            readers: 2,
            busy_timeout: Duration::from_secs(2),
            body_timeout: Duration::from_secs(10),
            max_database: 16 << 30,
            idempotency_retention: Duration::from_secs(24 * 3600),
        }
    }
}

/// The `storefront` section, unchecked; see [`KEYS`].
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs)]
pub struct RawStorefront {
    pub listen: SocketAddr,
    pub orders: String,
    pub proxy: Option<String>,
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    pub max_connections: usize,
    pub max_upstream_connections: usize,
}

impl Default for RawStorefront {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 8081)),
            orders: "http://orders.shop".to_owned(),
            proxy: None,
            timeout: Duration::from_secs(10),
            max_connections: 1024,
            max_upstream_connections: 128,
        }
    }
}

/// Checked configuration of both modes.
#[derive(Debug, Clone)]
pub struct Config {
    /// Form of the log.
    pub log_format: LogFormat,
    /// Server mode.
    pub server: ServerConfig,
    /// Storefront mode.
    pub storefront: StorefrontConfig,
}

/// Checked configuration of server mode.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where orders are served; port 0 picks a free one.
    pub listen: SocketAddr,
    /// Where and how they are kept.
    pub store: StoreOptions,
    /// Most connections at once.
    pub max_connections: usize,
    /// How long a request body may take.
    pub body_timeout: Duration,
    /// How long requests in flight may take after the drain has started.
    pub drain_timeout: Duration,
}

/// Checked configuration of storefront mode.
#[derive(Debug, Clone)]
pub struct StorefrontConfig {
    /// Where the storefront is served; port 0 picks a free one.
    pub listen: SocketAddr,
    /// How the order service is called.
    pub client: ClientOptions,
    /// Most connections from users at once.
    pub max_connections: usize,
    /// How long requests in flight may take after the drain has started.
    pub drain_timeout: Duration,
}

/// Values from the command line; what is absent comes from the file.
#[derive(Debug, Clone, Default)]
pub struct Overrides {
    /// `server.listen` or `storefront.listen`: of whichever mode runs.
    pub listen: Option<SocketAddr>,
    /// `server.database`.
    pub database: Option<PathBuf>,
    /// `storefront.orders`.
    pub orders: Option<String>,
    /// `storefront.proxy`.
    pub proxy: Option<String>,
}

impl Config {
    /// Reads `file` (none: defaults), the environment and `overrides`, in this order.
    ///
    /// # Errors
    /// A file that cannot be read, unknown keys, wrong types and values out of range.
    pub fn load(file: Option<&Path>, overrides: Overrides) -> Result<Self, ConfigError> {
        Self::from_origin(&Origin::read(file, KEYS)?, overrides)
    }

    /// The same from values.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn from_origin(origin: &Origin, overrides: Overrides) -> Result<Self, ConfigError> {
        let mut raw: RawConfig = origin.load()?;
        raw.server.listen = overrides.listen.unwrap_or(raw.server.listen);
        raw.storefront.listen = overrides.listen.unwrap_or(raw.storefront.listen);
        raw.server.database = overrides.database.unwrap_or(raw.server.database);
        raw.storefront.orders = overrides.orders.unwrap_or(raw.storefront.orders);
        raw.storefront.proxy = overrides.proxy.or(raw.storefront.proxy);
        let drain_timeout = raw.drain_timeout.0;
        within(origin, "drain_timeout", drain_timeout, Duration::ZERO, MINUTE * 10)?;
        Ok(Self {
            log_format: raw.log_format,
            server: check_server(origin, raw.server, drain_timeout)?,
            storefront: check_storefront(origin, &raw.storefront, drain_timeout)?,
        })
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const MILLISECOND: Duration = Duration::from_millis(1);

fn check_server(
    origin: &Origin,
    raw: RawServer,
    drain_timeout: Duration,
) -> Result<ServerConfig, ConfigError> {
    if raw.database.as_os_str().is_empty() {
        return Err(origin.error("server.database", "must name a file"));
    }
    count(origin, "server.max_connections", raw.max_connections, 65_536)?;
    count(origin, "server.queue", raw.queue, 65_536)?;
    count(origin, "server.batch", raw.batch, 1024)?;
    count(origin, "server.readers", usize::try_from(raw.readers).unwrap_or(usize::MAX), 64)?;
    within(origin, "server.busy_timeout", raw.busy_timeout, MILLISECOND * 10, MINUTE)?;
    within(origin, "server.body_timeout", raw.body_timeout, MILLISECOND * 10, MINUTE * 10)?;
    let retention = raw.idempotency_retention;
    within(origin, "server.idempotency_retention", retention, MILLISECOND * 1000, MINUTE * 60 * 720)?;
    if !(64 << 10..=16_384 << 30).contains(&raw.max_database) {
        return Err(origin.error("server.max_database", "must be 64KiB to 16384GiB"));
    }
    let store = StoreOptions {
        database: raw.database,
        queue: raw.queue,
        batch: raw.batch,
        readers: raw.readers,
        busy_timeout: raw.busy_timeout,
        max_database_bytes: raw.max_database,
        idempotency_retention: retention,
    };
    Ok(ServerConfig {
        listen: raw.listen,
        store,
        max_connections: raw.max_connections,
        body_timeout: raw.body_timeout,
        drain_timeout,
    })
}

fn check_storefront(
    origin: &Origin,
    raw: &RawStorefront,
    drain_timeout: Duration,
) -> Result<StorefrontConfig, ConfigError> {
    count(origin, "storefront.max_connections", raw.max_connections, 65_536)?;
    count(origin, "storefront.max_upstream_connections", raw.max_upstream_connections, 65_536)?;
    within(origin, "storefront.timeout", raw.timeout, MILLISECOND, MINUTE * 10)?;
    let proxy = raw.proxy.as_deref().map(|proxy| url(origin, "storefront.proxy", proxy)).transpose()?;
    let client = ClientOptions {
        orders: url(origin, "storefront.orders", &raw.orders)?,
        proxy,
        timeout: raw.timeout,
        max_connections: raw.max_upstream_connections,
    };
    Ok(StorefrontConfig { listen: raw.listen, client, max_connections: raw.max_connections, drain_timeout })
}

fn count(origin: &Origin, key: &str, value: usize, max: usize) -> Result<(), ConfigError> {
    if (1..=max).contains(&value) { Ok(()) } else { Err(origin.error(key, format!("must be 1 to {max}"))) }
}

fn within(
    origin: &Origin,
    key: &str,
    value: Duration,
    min: Duration,
    max: Duration,
) -> Result<(), ConfigError> {
    use outrigger_common::config::format_duration;
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(origin.error(key, format!("must be {} to {}", format_duration(min), format_duration(max))))
}

/// Parses `http://host[:port]`.
fn url(origin: &Origin, key: &str, text: &str) -> Result<Uri, ConfigError> {
    let refuse =
        || origin.error(key, format!("{text:?} must be http://host or http://host:port, without a path"));
    let uri: Uri = text.parse().map_err(|_| refuse())?;
    let user_info = uri.authority().is_none_or(|authority| authority.as_str().contains('@'));
    if uri.scheme_str() != Some("http") || user_info || uri.path() != "/" || uri.query().is_some() {
        return Err(refuse());
    }
    Ok(uri)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, env: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let env = env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let origin = Origin::new(Some("orders.yaml".into()), text.to_owned(), env, KEYS);
        Config::from_origin(&origin, Overrides::default())
    }

    #[test]
    fn the_example_file_sets_every_key_to_its_default() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config/order-service.yaml");
        let text = std::fs::read_to_string(&path).unwrap();
        let config = load(&text, &[]).unwrap();
        let mut defaults = load("", &[]).unwrap();
        assert_eq!(config.storefront.client.proxy, Some(Uri::from_static("http://127.0.0.1:15001")));
        defaults.storefront.client.proxy.clone_from(&config.storefront.client.proxy);
        assert_eq!(format!("{config:?}"), format!("{defaults:?}"));
        for key in KEYS {
            let last = key.path.rsplit('.').next().unwrap();
            let line = if key.path.contains('.') { format!("\n  {last}: ") } else { format!("\n{last}: ") };
            let default = if key.default == "-" { "" } else { key.default };
            assert!(text.contains(&format!("{line}{default}")), "{} is not set to {default:?}", key.path);
        }
    }

    #[test]
    fn every_key_can_be_set_from_the_environment() {
        let values: &[(&str, &str)] = &[
            ("OUTRIGGER_LOG_FORMAT", "json"),
            ("OUTRIGGER_DRAIN_TIMEOUT", "1s"),
            ("OUTRIGGER_SERVER_LISTEN", "127.0.0.1:1"),
            ("OUTRIGGER_SERVER_DATABASE", "other.db"),
            ("OUTRIGGER_SERVER_MAX_CONNECTIONS", "2"),
            ("OUTRIGGER_SERVER_QUEUE", "3"),
            ("OUTRIGGER_SERVER_BATCH", "4"),
            ("OUTRIGGER_SERVER_READERS", "5"),
            ("OUTRIGGER_SERVER_BUSY_TIMEOUT", "50ms"),
            ("OUTRIGGER_SERVER_BODY_TIMEOUT", "60ms"),
            ("OUTRIGGER_SERVER_MAX_DATABASE", "1MiB"),
            ("OUTRIGGER_SERVER_IDEMPOTENCY_RETENTION", "1h"),
            ("OUTRIGGER_STOREFRONT_LISTEN", "127.0.0.1:2"),
            ("OUTRIGGER_STOREFRONT_ORDERS", "http://127.0.0.1:3"),
            ("OUTRIGGER_STOREFRONT_PROXY", "http://127.0.0.1:4"),
            ("OUTRIGGER_STOREFRONT_TIMEOUT", "7s"),
            ("OUTRIGGER_STOREFRONT_MAX_CONNECTIONS", "8"),
            ("OUTRIGGER_STOREFRONT_MAX_UPSTREAM_CONNECTIONS", "9"),
        ];
        assert_eq!(values.len(), KEYS.len());
        let defaults = format!("{:?}", load("", &[]).unwrap());
        for (name, value) in values {
            assert!(KEYS.iter().any(|key| key.env() == *name), "{name}");
            let changed = format!("{:?}", load("", &[(name, value)]).unwrap());
            assert_ne!(changed, defaults, "{name}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (text, place, part) in [
            ("server:\n  colour: red\n", "orders.yaml:2", "colour"),
            ("server:\n  queue: 0\n", "orders.yaml:2", "server.queue: must be 1 to 65536"),
            ("server:\n  listen: here\n", "orders.yaml:2", "socket address"),
            ("server:\n  busy_timeout: 5\n", "orders.yaml:2", "duration"),
            ("server:\n  busy_timeout: 2m\n", "orders.yaml:2", "server.busy_timeout: must be 10ms to 1m"),
            ("server:\n  max_database: 1KiB\n", "orders.yaml:2", "64KiB"),
            ("server:\n  database: ''\n", "orders.yaml:2", "must name a file"),
            ("storefront:\n  orders: https://orders.shop\n", "orders.yaml:2", "storefront.orders"),
            ("storefront:\n  orders: http://orders.shop/v1\n", "orders.yaml:2", "without a path"),
            ("storefront:\n  proxy: 'http://a@b'\n", "orders.yaml:2", "storefront.proxy"),
        ] {
            let error = load(text, &[]).unwrap_err();
            assert_eq!(error.place, place, "{text}: {error}");
            assert!(error.message.contains(part), "{text}: {error}");
        }
        let error = load("", &[("OUTRIGGER_SERVER_QUEUE", "many")]).unwrap_err();
        assert_eq!(error.place, "OUTRIGGER_SERVER_QUEUE");
    }
}
