//! `wrk`: HTTP/1.1 at saturation.

use std::net::SocketAddr;

use super::{CONNECTIONS, Outcome, host_header};

pub(super) fn arguments(to: SocketAddr, seconds: u32, close: bool) -> Vec<String> {
    let mut arguments = vec![
        "--threads=1".to_owned(),
        format!("--connections={CONNECTIONS}"),
        format!("--duration={seconds}s"),
        "--timeout=30s".to_owned(),
        format!("--header={}", host_header()),
    ];
    if close {
        arguments.push("--header=connection: close".to_owned());
    }
    arguments.push(format!("http://{to}/v1/orders/1"));
    arguments
}

/// Reads `1234 requests in 5.00s, 1.2MB read` and the lines of errors, which are there only if there are any.
pub(super) fn read(said: &str) -> Option<Outcome> {
    let line = said.lines().find(|line| line.contains(" requests in "))?;
    let (requests, rest) = line.trim().split_once(" requests in ")?;
    let requests: u64 = requests.trim().parse().ok()?;
    let mut failures = 0;
    for line in said.lines().map(str::trim) {
        if let Some(count) = line.strip_prefix("Non-2xx or 3xx responses:") {
            failures += count.trim().parse::<u64>().ok()?;
        } else if let Some(errors) = line.strip_prefix("Socket errors:") {
            for error in errors.split(',') {
                failures += error.split_whitespace().last()?.parse::<u64>().ok()?;
            }
        }
    }
    Some(Outcome {
        requests: requests.saturating_sub(failures),
        failures,
        unfinished: CONNECTIONS.into(),
        seconds: duration(rest.split(',').next()?)?,
        latency_ms: None,
    })
}

/// `5.00s`, `1.50m`, `900.00ms`.
fn duration(text: &str) -> Option<f64> {
    let split = text.find(|character: char| character.is_ascii_alphabetic())?;
    let (value, unit) = text.split_at(split);
    let scale = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        _ => return None,
    };
    Some(value.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "Running 5s test @ http://127.0.0.1:80/
  1 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.47ms    1.15ms  22.31ms   91.66%
    Req/Sec    18.56k     1.19k   20.43k    80.00%
  92343 requests in 5.02s, 25.71MB read
Requests/sec:  18384.22
Transfer/sec:      5.12MB
";

    #[test]
    fn a_clean_report_has_no_failures() {
        let outcome = read(REPORT).unwrap();
        assert_eq!((outcome.requests, outcome.failures, outcome.seconds), (92_343, 0, 5.02));
    }

    #[test]
    fn every_kind_of_failure_counts() {
        let report = REPORT.replace(
            "Requests/sec",
            "  Socket errors: connect 1, read 2, write 3, timeout 4\n  Non-2xx or 3xx responses: 90\nRequests/sec",
        );
        let outcome = read(&report).unwrap();
        assert_eq!((outcome.requests, outcome.failures), (92_243, 100));
    }

    #[test]
    fn other_text_is_no_report() {
        assert_eq!(read("unable to connect to 127.0.0.1:80 Connection refused"), None);
        assert_eq!(duration("1.50m"), Some(90.0));
        assert_eq!(duration("5"), None);
    }
}
