//! A Prometheus with the configuration we ship, given targets and nothing else, and what it is asked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use outrigger_tests::client::Client;
use outrigger_tests::wait::{soon, until};
use serde_json::{Value, json};
use tempfile::TempDir;

use outrigger_tests::component::{Running, run};

const PROGRAM: &str = "OUTRIGGER_TEST_PROMETHEUS";
/// Names promtool.
pub(crate) const PROMTOOL: &str = "OUTRIGGER_TEST_PROMTOOL";

/// `deploy/prometheus`.
pub(crate) fn shipped() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus"))
}

/// A running Prometheus.
pub(crate) struct Prometheus {
    client: Client,
    running: Running,
    _directory: TempDir,
}

/// One series of an answer.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) labels: Value,
    pub(crate) value: f64,
}

impl Prometheus {
    /// Starts it on what is shipped, with these targets in place of those shipped.
    pub(crate) async fn start(sidecars: &[(String, SocketAddr)], registry: SocketAddr) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path();
        std::fs::create_dir(path.join("targets")).unwrap();
        for file in ["prometheus.yml", "rules.yml"] {
            std::fs::copy(shipped().join(file), path.join(file)).unwrap();
        }
        // A target may say how often it is scraped; JSON is YAML.
        let often = |workload: &str| json!({"workload": workload, "__scrape_interval__": "1s", "__scrape_timeout__": "1s"});
        let groups: Vec<_> = sidecars
            .iter()
            .map(|(workload, at)| json!({"targets": [at.to_string()], "labels": often(workload)}))
            .collect();
        std::fs::write(path.join("targets/sidecars.yml"), json!(groups).to_string()).unwrap();
        let group = json!([{"targets": [registry.to_string()], "labels": often("registry")}]);
        std::fs::write(path.join("targets/registry.yml"), group.to_string()).unwrap();
        run(PROMTOOL, &["check", "config", "prometheus.yml"], path, "");

        let argument = |name: &str, value: &str| format!("--{name}={value}");
        let args = [
            argument("config.file", &path.join("prometheus.yml").to_string_lossy()),
            argument("storage.tsdb.path", &path.join("data").to_string_lossy()),
            argument("web.listen-address", "127.0.0.1:0"),
        ];
        let mut running = Running::start(PROGRAM, &args, path.join("prometheus.out"));
        let address = soon("Prometheus says where it listens", async {
            loop {
                let output = running.output();
                let listening = output.lines().find(|line| line.contains("msg=\"Listening on\""));
                if let Some((_, address)) = listening.and_then(|line| line.split_once("address=")) {
                    return address.trim().parse().expect("an address");
                }
                if let Some(status) = running.ended() {
                    panic!("Prometheus ended ({status}):\n{}", running.output());
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        let client = Client::http1(address.await);
        let prometheus = Self { client, running, _directory: directory };
        until("Prometheus is ready", || async { prometheus.get("/-/ready", &[]).await.is_some() }).await;
        prometheus
    }

    /// Waits until every target has been scraped.
    pub(crate) async fn scrapes(&self, targets: usize) {
        until("every target is up", || async {
            self.query("up == 1").await.is_ok_and(|up| up.len() == targets)
        })
        .await;
    }

    /// What an expression says now.
    ///
    /// # Errors
    /// Prometheus does not understand it.
    pub(crate) async fn query(&self, expression: &str) -> Result<Vec<Sample>, String> {
        let answer = self.api("/api/v1/query", &[("query", expression)]).await?;
        let result = answer["result"].as_array().cloned().unwrap_or_default();
        let sample = |series: &Value| Sample {
            labels: series["metric"].clone(),
            value: series["value"][1].as_str().and_then(|value| value.parse().ok()).unwrap_or(f64::NAN),
        };
        Ok(result.iter().map(sample).collect())
    }

    /// `data` of a page of the API.
    ///
    /// # Errors
    /// What Prometheus has against it.
    pub(crate) async fn api(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value, String> {
        let body = self
            .get(path, parameters)
            .await
            .ok_or_else(|| format!("no answer:\n{}", self.running.output()))?;
        let answer: Value = serde_json::from_str(&body).map_err(|error| format!("{error}: {body}"))?;
        if answer["status"] == "success" { Ok(answer["data"].clone()) } else { Err(body) }
    }

    async fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Option<String> {
        let pairs: Vec<_> =
            parameters.iter().map(|(key, value)| format!("{key}={}", encoded(value))).collect();
        let answer = self.client.get("prometheus", &format!("{path}?{}", pairs.join("&"))).await.ok()?;
        (path != "/-/ready" || answer.status == 200).then(|| answer.text())
    }
}

/// Percent-encoding of everything that is not unreserved (RFC 3986 section 2.3).
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    };
    text.bytes().map(byte).collect()
}
