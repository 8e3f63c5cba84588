//! `oha`: HTTP/1.1 at a fixed rate, and a fixed number of large bodies.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;
use serde_json::Value;

use super::{CONNECTIONS, Outcome, host_header};

/// Connections that carry large bodies.
const BULK_CONNECTIONS: u32 = 4;

fn common() -> Vec<String> {
    let mut arguments = ["--no-tui", "--output-format", "json", "-H"].map(str::to_owned).to_vec();
    arguments.push(host_header());
    arguments
}

/// Latencies are counted from when a request was due, not from when there was a connection for it.
pub(super) fn at_rate(to: SocketAddr, seconds: u32, rate: u32) -> Vec<String> {
    let mut arguments = common();
    arguments.extend(["--latency-correction", "--wait-ongoing-requests-after-deadline"].map(str::to_owned));
    arguments.extend(["-c".to_owned(), CONNECTIONS.to_string(), "-q".to_owned(), rate.to_string()]);
    arguments.extend(["-z".to_owned(), format!("{seconds}s"), format!("http://{to}/v1/orders/1")]);
    arguments
}

pub(super) fn bulk(
    to: SocketAddr,
    count: u32,
    (mib, upload): (u32, bool),
    directory: &Path,
) -> Result<Vec<String>> {
    let bytes = mib << 20;
    let mut arguments = common();
    arguments.extend(["-c".to_owned(), BULK_CONNECTIONS.to_string(), "-n".to_owned(), count.to_string()]);
    if upload {
        let body = directory.join(format!("body-{mib}"));
        if !body.exists() {
            fs::write(&body, vec![b'o'; bytes as usize])?;
        }
        arguments.extend(["-m".to_owned(), "POST".to_owned(), "-D".to_owned(), body.display().to_string()]);
        arguments.push(format!("http://{to}/v1/orders"));
    } else {
        arguments.push(format!("http://{to}/bytes/{bytes}"));
    }
    Ok(arguments)
}

/// Reads its JSON. Latencies are of interest only where the load is open.
pub(super) fn read(said: &str, open: bool) -> Option<Outcome> {
    let report: Value = serde_json::from_str(said.get(said.find('{')?..)?).ok()?;
    let codes = report["statusCodeDistribution"].as_object()?;
    let errors = report["errorDistribution"].as_object()?;
    let sum = |success: bool| -> u64 {
        let counted = codes.iter().filter(|(code, _)| code.starts_with('2') == success);
        counted.filter_map(|(_, count)| count.as_u64()).sum()
    };
    let percentile = |name: &str| report["latencyPercentiles"][name].as_f64().map(|seconds| seconds * 1e3);
    let latency_ms = match (percentile("p50"), percentile("p99"), percentile("p99.9")) {
        (Some(p50), Some(p99), Some(p999)) if open => Some([p50, p99, p999]),
        _ => None,
    };
    Some(Outcome {
        requests: sum(true),
        failures: sum(false) + errors.values().filter_map(Value::as_u64).sum::<u64>(),
        unfinished: 0,
        seconds: report["summary"]["total"].as_f64()?,
        latency_ms,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = r#"{"summary": {"successRate": 1.0, "total": 2.0, "requestsPerSec": 2000.0},
        "latencyPercentiles": {"p50": 0.0005, "p99": 0.002, "p99.9": 0.01},
        "statusCodeDistribution": {"200": 3990, "503": 10}, "errorDistribution": {"connection closed": 2}}"#;

    #[test]
    fn statuses_and_errors_are_told_apart() {
        let outcome = read(REPORT, true).unwrap();
        assert_eq!((outcome.requests, outcome.failures, outcome.seconds), (3990, 12, 2.0));
        assert_eq!(outcome.latency_ms, Some([0.5, 2.0, 10.0]));
        assert_eq!(read(REPORT, false).unwrap().latency_ms, None);
    }

    #[test]
    fn other_text_is_no_report() {
        assert_eq!(read("no route to host", true), None);
    }
}
