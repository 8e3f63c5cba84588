//! The policy that is in force while things are broken, and the faults the mesh is told to make.

use std::path::Path;

use outrigger_api::document::parse_yaml;
use outrigger_api::v1;
use serde_json::{Value, json};

/// Share of the calls that are held back, in percent.
pub(super) const DELAYED: u8 = 10;
/// For how long, in milliseconds.
pub(super) const DELAYED_BY_MS: u32 = 100;

const TEXT: &str = include_str!("policy.yaml");

/// The policy as a document, such as `outrigger get` shows.
pub(in crate::demo) fn document() -> Value {
    let parsed = parse_yaml(Path::new("policy.yaml"), TEXT).ok().and_then(|parsed| parsed.into_iter().next());
    let text = parsed.expect("the built-in policy is valid, as a test shows").to_json();
    serde_json::from_str(&text).expect("a resource's JSON is JSON")
}

/// The policy in a few words.
pub(in crate::demo) fn words() -> String {
    let document = document();
    let spec = &document["spec"];
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let statuses: Vec<_> = spec["retries"]["statuses"].as_array().into_iter().flatten().map(plain).collect();
    format!(
        "{}: {} a try, {} more on {}; reads hedged after p{}, at least {}",
        plain(&document["metadata"]["name"]),
        plain(&spec["timeouts"]["perTry"]),
        plain(&spec["retries"]["attempts"]),
        statuses.join(", "),
        plain(&spec["hedging"]["quantile"]).trim_end_matches(".0"),
        plain(&spec["hedging"]["minDelay"]),
    )
}

/// The policy as the registry takes it: calm, or with calls held back at the client's sidecar.
pub(in crate::demo) fn resource(delaying: bool) -> v1::Resource {
    let mut document = document();
    if delaying {
        let duration = format!("{DELAYED_BY_MS}ms");
        document["spec"]["faults"] = json!({"delay": {"percent": DELAYED, "duration": duration}});
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    v1::Resource {
        kind: text(&document["kind"]),
        namespace: text(&document["metadata"]["namespace"]),
        name: text(&document["metadata"]["name"]),
        json: document.to_string(),
        revision: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_are_those_of_the_document() {
        assert_eq!(
            words(),
            "orders-resilient: 1s a try, 2 more on 502, 503, 504; reads hedged after p99, at least 100ms"
        );
    }

    #[test]
    fn the_policy_and_its_faults_are_valid() {
        for delaying in [false, true] {
            let resource = resource(delaying);
            assert_eq!((&*resource.kind, &*resource.namespace), ("TrafficPolicy", "shop"));
            let parsed = parse_yaml(Path::new("policy"), &resource.json).unwrap();
            assert_eq!(parsed.len(), 1);
            assert_eq!(resource.json.contains("faults"), delaying);
        }
    }
}
