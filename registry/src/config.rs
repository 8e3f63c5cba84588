//! The registry's configuration: `config/registry.yaml` lists every key.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use outrigger_common::config::{ConfigError, Key, Origin, bytes, duration, format_duration};
use outrigger_common::identity::TrustDomain;
use outrigger_common::telemetry::LogFormat;
use serde::Deserialize;

/// A checked configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where the store and the administrator's identity live.
    pub data_dir: PathBuf,
    /// Trust domain of every identity.
    pub trust_domain: TrustDomain,
    /// Where sidecars and the administrator connect, over mutual TLS.
    pub grpc_listen: SocketAddr,
    /// Where people and Prometheus read, in plaintext.
    pub http_listen: SocketAddr,
    /// How long a silent workload is believed.
    pub lease_ttl: Duration,
    /// Lifetime of certificates.
    pub certificate_lifetime: Duration,
    /// Spans kept.
    pub trace_spans: usize,
    /// Memory for them, in bytes.
    pub trace_bytes: usize,
    /// How log lines look.
    pub log_format: LogFormat,
}

/// Every key of the configuration.
pub const KEYS: &[Key] = &[
    Key {
        path: "data_dir",
        unit: "path",
        default: "./outrigger-data",
        range: "a directory; made (0700) when it does not exist",
        doc: "Where the store, the mesh's root and the administrator's identity live.",
    },
    Key {
        path: "trust_domain",
        unit: "name",
        default: "mesh.local",
        range: "1 to 255 lower-case letters, digits, '.', '-' and '_'",
        doc: "Trust domain of every identity; fixed once the data directory has a root.",
    },
    Key {
        path: "grpc.listen",
        unit: "ip:port",
        default: "0.0.0.0:15012",
        range: "port 0 picks a free one",
        doc: "Where sidecars and `outrigger apply|get|token` connect, over mutual TLS.",
    },
    Key {
        path: "http.listen",
        unit: "ip:port",
        default: "127.0.0.1:15014",
        range: "port 0 picks a free one",
        doc: "Where people and Prometheus read, in plaintext and without login: this machine only unless you say otherwise.",
    },
    Key {
        path: "lease_ttl",
        unit: "duration",
        default: "10s",
        range: "1s to 10m",
        doc: "How long a workload that stopped renewing stays listed.",
    },
    Key {
        path: "certificates.lifetime",
        unit: "duration",
        default: "24h",
        range: "2s to 720h",
        doc: "Lifetime of the certificates issued; each is renewed at about two thirds of it.",
    },
    Key {
        path: "traces.max_spans",
        unit: "count",
        default: "20000",
        range: "0 to 10000000; 0 keeps none",
        doc: "Spans kept for /v1/traces; the oldest trace goes first.",
    },
    Key {
        path: "traces.max_bytes",
        unit: "size",
        default: "32MiB",
        range: "0B to 4GiB",
        doc: "Memory those spans may take.",
    },
    Key {
        path: "log_format",
        unit: "text or json",
        default: "text",
        range: "text, json",
        doc: "How log lines look; RUST_LOG says which there are.",
    },
];

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    data_dir: PathBuf,
    trust_domain: String,
    grpc: RawGrpc,
    http: RawHttp,
    #[serde(deserialize_with = "duration")]
    lease_ttl: Duration,
    certificates: RawCertificates,
    traces: RawTraces,
    log_format: LogFormat,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawGrpc {
    listen: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawHttp {
    listen: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawCertificates {
    #[serde(deserialize_with = "duration")]
    lifetime: Duration,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct RawTraces {
    max_spans: usize,
    #[serde(deserialize_with = "bytes")]
    max_bytes: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Self {
            data_dir: "./outrigger-data".into(),
            trust_domain: "mesh.local".to_owned(),
            grpc: RawGrpc::default(),
            http: RawHttp::default(),
            lease_ttl: Duration::from_secs(10),
            certificates: RawCertificates::default(),
            traces: RawTraces::default(),
            log_format: LogFormat::default(),
        }
    }
}

impl Default for RawGrpc {
    fn default() -> Self {
        Self { listen: "0.0.0.0:15012".to_owned() }
    }
}

impl Default for RawHttp {
    fn default() -> Self {
        Self { listen: "127.0.0.1:15014".to_owned() }
    }
}

impl Default for RawCertificates {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(24 * 3600) }
    }
}

impl Default for RawTraces {
    fn default() -> Self {
        Self { max_spans: 20_000, max_bytes: 32 << 20 }
    }
}

impl Config {
    /// Reads a file (none: defaults) with the environment over it, and checks it.
    ///
    /// # Errors
    /// The first thing wrong, with its place.
    pub fn read(file: Option<&Path>) -> Result<Self, ConfigError> {
        Self::from_origin(&Origin::read(file, KEYS)?)
    }

    /// The same from values, for tests and for programs that start a registry of their own.
    ///
    /// # Errors
    /// The first thing wrong, with its place.
    pub fn from_origin(origin: &Origin) -> Result<Self, ConfigError> {
        let raw: Raw = origin.load()?;
        let trust_domain =
            TrustDomain::new(&raw.trust_domain).map_err(|error| origin.error("trust_domain", error))?;
        if raw.data_dir.as_os_str().is_empty() {
            return Err(origin.error("data_dir", "empty; name a directory"));
        }
        let spans = 0..=10_000_000;
        if !spans.contains(&raw.traces.max_spans) {
            return Err(origin.error(
                "traces.max_spans",
                format!("{} is out of range; use 0 to 10000000", raw.traces.max_spans),
            ));
        }
        if raw.traces.max_bytes > 4 << 30 {
            return Err(origin.error("traces.max_bytes", "out of range; use at most 4GiB"));
        }
        Ok(Self {
            data_dir: raw.data_dir,
            trust_domain,
            grpc_listen: address(origin, "grpc.listen", &raw.grpc.listen)?,
            http_listen: address(origin, "http.listen", &raw.http.listen)?,
            lease_ttl: within(origin, "lease_ttl", raw.lease_ttl, 1, 600)?,
            certificate_lifetime: within(
                origin,
                "certificates.lifetime",
                raw.certificates.lifetime,
                2,
                720 * 3600,
            )?,
            trace_spans: raw.traces.max_spans,
            trace_bytes: raw.traces.max_bytes,
            log_format: raw.log_format,
        })
    }
}

fn address(origin: &Origin, key: &str, text: &str) -> Result<SocketAddr, ConfigError> {
    text.parse().map_err(|_| origin.error(key, format!("{text:?} is not ip:port, such as 0.0.0.0:15012")))
}

fn within(
    origin: &Origin,
    key: &str,
    value: Duration,
    least: u64,
    most: u64,
) -> Result<Duration, ConfigError> {
    let (least, most) = (Duration::from_secs(least), Duration::from_secs(most));
    if (least..=most).contains(&value) {
        return Ok(value);
    }
    let [value, least, most] = [value, least, most].map(format_duration);
    Err(origin.error(key, format!("{value} is out of range; use {least} to {most}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXAMPLE: &str = include_str!("../../config/registry.yaml");

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::from_origin(&Origin::new(Some("registry.yaml".into()), text.to_owned(), Vec::new(), KEYS))
    }

    #[test]
    fn the_example_file_sets_every_key_to_its_default() {
        assert_eq!(parse(EXAMPLE).unwrap(), parse("").unwrap());
        for key in KEYS {
            let leaf = key.path.rsplit('.').next().unwrap();
            let line = format!("{leaf}: {}", key.default);
            let set = EXAMPLE.lines().any(|text| text.trim() == line);
            assert!(set, "config/registry.yaml lacks `{line}` for {}", key.path);
        }
    }

    #[test]
    fn values_out_of_range_name_their_line_and_what_is_right() {
        for (text, words) in [
            ("lease_ttl: 500ms\n", "1s to 10m"),
            ("certificates:\n  lifetime: 1s\n", "2s to 720h"),
            ("grpc:\n  listen: localhost\n", "ip:port"),
            ("trust_domain: Mesh\n", "lower-case"),
            ("traces:\n  max_spans: 99999999\n", "10000000"),
            ("data_dir: ''\n", "directory"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.place.starts_with("registry.yaml:"), "{error}");
            assert!(error.message.contains(words), "{error}");
        }
    }
}
