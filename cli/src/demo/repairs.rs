//! What sidecars did about failures, by their own metrics.

use std::collections::BTreeMap;

use serde::Serialize;
use serde::ser::SerializeSeq;

use super::metrics::Scrape;

/// Counts of one sidecar, or of several added up.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Repairs {
    /// Attempts that failed and could be repeated, by reason, and whether they were (`sent`) or why not.
    #[serde(serialize_with = "retries")]
    pub(super) retries: Groups,
    /// Second attempts before the first had failed, by outcome.
    #[serde(serialize_with = "named")]
    pub(super) hedges: Groups,
    /// Requests refused at once, by reason.
    #[serde(serialize_with = "named")]
    pub(super) sheds: Groups,
    /// Faults the mesh made because a policy says so, by kind.
    #[serde(serialize_with = "named")]
    pub(super) injected: Groups,
    /// Replicas set aside.
    #[serde(serialize_with = "whole")]
    pub(super) ejections: f64,
}

/// Counts by the values of labels.
type Groups = BTreeMap<Vec<String>, f64>;

impl Repairs {
    /// What a sidecar's metrics say.
    pub(super) fn read(scrape: &Scrape) -> Self {
        Self {
            retries: scrape.grouped("mesh_retries_total", &["reason", "outcome"]),
            hedges: scrape.grouped("mesh_hedges_total", &["outcome"]),
            sheds: scrape.grouped("mesh_requests_shed_total", &["reason"]),
            injected: scrape.grouped("mesh_faults_injected_total", &["kind"]),
            ejections: scrape.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]),
        }
    }

    pub(super) fn plus(self, other: &Self) -> Self {
        let add = |mut groups: Groups, others: &Groups| {
            others.iter().for_each(|(key, count)| *groups.entry(key.clone()).or_default() += count);
            groups
        };
        Self {
            retries: add(self.retries, &other.retries),
            hedges: add(self.hedges, &other.hedges),
            sheds: add(self.sheds, &other.sheds),
            injected: add(self.injected, &other.injected),
            ejections: self.ejections + other.ejections,
        }
    }

    /// What was done since `earlier`; what was not is left out.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        let subtract = |groups: &Groups, others: &Groups| -> Groups {
            let left = |key: &Vec<String>, count: &f64| count - others.get(key).copied().unwrap_or_default();
            groups.iter().map(|(key, n)| (key.clone(), left(key, n))).filter(|(_, n)| *n > 0.0).collect()
        };
        Self {
            retries: subtract(&self.retries, &earlier.retries),
            hedges: subtract(&self.hedges, &earlier.hedges),
            sheds: subtract(&self.sheds, &earlier.sheds),
            injected: subtract(&self.injected, &earlier.injected),
            ejections: (self.ejections - earlier.ejections).max(0.0),
        }
    }

    /// Attempts that failed, repeated or not.
    pub(super) fn failed_attempts(&self) -> u64 {
        total(&self.retries)
    }

    /// Attempts that were repeated.
    pub(super) fn retried(&self) -> u64 {
        self.retries.iter().filter(|(key, _)| key[1] == "sent").map(|(_, count)| count_of(*count)).sum()
    }

    /// Second attempts before the first had failed.
    pub(super) fn hedged(&self) -> u64 {
        let sent =
            |(key, count): (&Vec<String>, &f64)| if key[0] == "budget_exhausted" { 0.0 } else { *count };
        count_of(self.hedges.iter().map(sent).sum())
    }

    /// All of it but the ejections, in a few words each; nothing where there is nothing to say.
    pub(super) fn words(&self) -> Vec<String> {
        let about = |what: &str, parts: Vec<String>| match parts.is_empty() {
            true => None,
            false => Some(format!("{what} {}", parts.join(", "))),
        };
        let retries = |sent: bool| {
            let these = self.retries.iter().filter(move |(key, _)| (key[1] == "sent") == sent);
            these.map(move |(key, count)| match (plain(&key[0]), plain(&key[1])) {
                (reason, _) if sent => format!("{} after {reason}", count_of(*count)),
                (reason, why) => format!("{} after {reason} ({why})", count_of(*count)),
            })
        };
        let list = |groups: &Groups| {
            groups.iter().map(|(key, count)| format!("{} {}", count_of(*count), plain(&key[0]))).collect()
        };
        let said = [
            about("retried", retries(true).collect()),
            about("not retried", retries(false).collect()),
            about("hedges", list(&self.hedges)),
            about("shed", list(&self.sheds)),
            about(
                "injected",
                self.injected
                    .iter()
                    .map(|(kind, count)| format!("{} {}s", count_of(*count), kind[0]))
                    .collect(),
            ),
        ];
        said.into_iter().flatten().collect()
    }
}

/// A label's value as words.
fn plain(value: &str) -> String {
    value.replace('_', " ")
}

/// All of them together.
fn total(groups: &Groups) -> u64 {
    groups.values().map(|count| count_of(*count)).sum()
}

/// A count the sidecars keep, as the whole number it is.
pub(super) fn count_of(count: f64) -> u64 {
    count.max(0.0).round() as u64
}

fn retries<S: serde::Serializer>(groups: &Groups, serializer: S) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Retry<'a> {
        reason: &'a str,
        outcome: &'a str,
        count: u64,
    }
    let mut list = serializer.serialize_seq(Some(groups.len()))?;
    for (key, count) in groups {
        list.serialize_element(&Retry { reason: &key[0], outcome: &key[1], count: count_of(*count) })?;
    }
    list.end()
}

fn named<S: serde::Serializer>(groups: &Groups, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(groups.iter().map(|(key, count)| (&key[0], count_of(*count))))
}

fn whole<S: serde::Serializer>(count: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(count_of(*count))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"
mesh_retries_total{destination="a",reason="status",outcome="sent"} 3
mesh_retries_total{destination="b",reason="status",outcome="sent"} 2
mesh_retries_total{destination="a",reason="reset",outcome="budget_exhausted"} 1
mesh_hedges_total{outcome="won"} 4
mesh_hedges_total{outcome="lost"} 1
mesh_hedges_total{outcome="budget_exhausted"} 9
mesh_requests_shed_total{reason="overloaded"} 0
mesh_faults_injected_total{kind="delay"} 7
mesh_circuit_breaker_transitions_total{to="open"} 2
mesh_circuit_breaker_transitions_total{to="closed"} 1
"#;

    #[test]
    fn what_was_done_since_is_told_apart_by_reason_and_outcome() {
        let now = Repairs::read(&Scrape::parse(TEXT));
        assert_eq!((now.failed_attempts(), now.retried(), now.ejections), (6, 5, 2.0));
        let earlier = Repairs::read(&Scrape::parse(&TEXT.replace("} 3", "} 1").replace("} 7", "} 4")));
        let since = now.since(&earlier);
        assert_eq!(
            serde_json::to_value(&since).unwrap(),
            serde_json::json!({
                "retries": [{"reason": "status", "outcome": "sent", "count": 2}],
                "hedges": {}, "sheds": {}, "injected": {"delay": 3}, "ejections": 0
            })
        );
        assert_eq!(since.words(), ["retried 2 after status", "injected 3 delays"]);
        assert_eq!(now.words()[1], "not retried 1 after reset (budget exhausted)");
        assert_eq!((now.hedged(), &*now.words()[2]), (5, "hedges 9 budget exhausted, 1 lost, 4 won"));
        assert_eq!(now.since(&now), Repairs::default());
        assert_eq!(now.clone().plus(&now).retried(), 10);
    }
}
