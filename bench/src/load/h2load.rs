//! `h2load`: unary gRPC over HTTP/2 with prior knowledge, at saturation.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use anyhow::Result;

use super::Outcome;
use crate::certs::NAME;

/// A gRPC message: not compressed, 32 bytes.
fn message() -> Vec<u8> {
    let mut message = vec![0, 0, 0, 0, 32];
    message.extend([b'o'; 32]);
    message
}

pub(super) fn arguments(
    to: SocketAddr,
    seconds: u32,
    (connections, streams): (u32, u32),
    directory: &Path,
) -> Result<Vec<String>> {
    let data = directory.join("message.grpc");
    fs::write(&data, message())?;
    Ok(vec![
        "--threads=1".to_owned(),
        format!("--clients={connections}"),
        format!("--max-concurrent-streams={streams}"),
        format!("--duration={seconds}"),
        format!("--data={}", data.display()),
        "--header=content-type: application/grpc".to_owned(),
        "--header=te: trailers".to_owned(),
        format!("--header=:authority: {NAME}"),
        format!("http://{to}/shop.Orders/Find"),
    ])
}

/// Reads `finished in 5.00s, …` and `requests: N total, N started, N done, N succeeded, N failed, …`.
pub(super) fn read(said: &str) -> Option<Outcome> {
    let seconds = said.lines().find_map(|line| line.strip_prefix("finished in "))?.split(',').next()?;
    let seconds = match seconds.strip_suffix("ms") {
        Some(milliseconds) => milliseconds.parse::<f64>().ok()? / 1e3,
        None => seconds.strip_suffix('s')?.parse().ok()?,
    };
    let line = said.lines().find_map(|line| line.strip_prefix("requests: "))?;
    let count = |what: &str| {
        line.split(',').find_map(|part| part.trim().strip_suffix(what)?.trim().parse::<u64>().ok())
    };
    let (started, done, succeeded) = (count("started")?, count("done")?, count("succeeded")?);
    Some(Outcome {
        requests: succeeded,
        failures: done.saturating_sub(succeeded),
        unfinished: started.saturating_sub(done),
        seconds,
        latency_ms: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_under_way_at_the_end_is_no_failure() {
        let report = "\nfinished in 5.00s, 40000.20 req/s, 3.3MB/s
requests: 200001 total, 200033 started, 200001 done, 200000 succeeded, 1 failed, 0 errored, 0 timeout
status codes: 200000 2xx, 0 3xx, 0 4xx, 1 5xx\n";
        let outcome = read(report).unwrap();
        assert_eq!((outcome.requests, outcome.failures, outcome.unfinished), (200_000, 1, 32));
        assert_eq!(outcome.seconds, 5.0);
        assert_eq!(read("connection refused"), None);
    }

    #[test]
    fn a_message_says_its_own_length() {
        let message = message();
        let length = u32::from_be_bytes(message[1..5].try_into().unwrap());
        assert_eq!(message.len() - 5, length as usize);
    }
}
