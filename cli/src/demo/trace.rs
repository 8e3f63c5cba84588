//! Reading a trace back from the registry: the proof that spans of both sidecars arrived.

use std::net::SocketAddr;
use std::time::Duration;

use serde::Deserialize;
use tokio::time::{Instant, sleep};

use super::http::get_json;
use super::mesh::{NAMESPACE, ORDERS, STOREFRONT};

/// Longest wait: sidecars send spans in batches, about once a second.
const LIMIT: Duration = Duration::from_secs(6);
const POLL: Duration = Duration::from_millis(50);

#[derive(Debug, Deserialize)]
struct Trace {
    spans: Vec<Span>,
}

#[derive(Debug, Deserialize)]
struct Span {
    /// SPIFFE id of the sidecar that sent it.
    sender: String,
}

/// Waits until one of these traces holds a span of the storefront's sidecar and one of a replica's.
///
/// # Errors
/// What is missing, for the judgement.
pub(super) async fn read_back(registry: SocketAddr, ids: &[String]) -> Result<(), String> {
    if ids.is_empty() {
        return Err("no request with a sampled trace succeeded".to_owned());
    }
    let deadline = Instant::now() + LIMIT;
    loop {
        let mut most = 0;
        for id in ids {
            let Ok(trace) = get_json::<Trace>(registry, &format!("/v1/traces/{id}")).await else { continue };
            if holds_both(&trace) {
                return Ok(());
            }
            most = most.max(trace.spans.len());
        }
        if Instant::now() >= deadline {
            let (count, limit) = (ids.len(), LIMIT.as_secs());
            return Err(format!(
                "none of {count} sampled traces read back within {limit} s held the spans of both sidecars (the fullest had {most} spans)"
            ));
        }
        sleep(POLL).await;
    }
}

fn holds_both(trace: &Trace) -> bool {
    let from = |account: &str| {
        let path = format!("/ns/{NAMESPACE}/sa/{account}");
        trace.spans.iter().any(|span| span.sender.ends_with(&path))
    };
    from(STOREFRONT) && from(ORDERS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sidecars_must_have_sent_a_span() {
        let trace = |accounts: &[&str]| Trace {
            spans: accounts
                .iter()
                .map(|a| Span { sender: format!("spiffe://mesh.local/ns/shop/sa/{a}") })
                .collect(),
        };
        assert!(holds_both(&trace(&["storefront", "orders"])));
        assert!(!holds_both(&trace(&["storefront", "storefront"])));
        assert!(!holds_both(&trace(&["orders"])));
    }
}
