//! What Outrigger means to reach, and whether a run did.

use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::report::number;
use crate::results::{Case, Metric};

const NGINX: &[&str] = &["nginx"];
const HAPROXY: &[&str] = &["HAProxy"];
const ENVOY: &[&str] = &["Envoy, h1 between", "Envoy, h2 between"];
const CLASSIC: &[&str] = &["nginx", "HAProxy"];
const PEERS: &[&str] = &["nginx", "HAProxy", "Envoy, h1 between", "Envoy, h2 between"];
/// Not a ratio.
const ABSOLUTE: &[&str] = &[];

const OURS: &str = "Outrigger";
const OPAQUE: &str = "Outrigger, TCP";
/// Meshes of `many` that differ in one number from the first.
const SMALL: &[&str] = &["1 service × 3 endpoints"];

/// A metric of ours, at most so many times the best of some others', or at most so much.
struct Goal {
    scenario: &'static str,
    case: &'static str,
    ours: &'static str,
    metric: Metric,
    limit: f64,
    over: &'static [&'static str],
}

const fn goal(
    (scenario, case): (&'static str, &'static str),
    ours: &'static str,
    metric: Metric,
    limit: f64,
    over: &'static [&'static str],
) -> Goal {
    Goal { scenario, case, ours, metric, limit, over }
}

const GOALS: &[Goal] = &[
    goal(("mesh", "saturation"), OURS, Metric::CpuPerRequest, 0.65, CLASSIC),
    goal(("mesh", "saturation"), OURS, Metric::CpuPerRequest, 0.33, ENVOY),
    goal(("mesh", "saturation"), OURS, Metric::Memory, 24.0, ABSOLUTE),
    goal(("mesh", "2,000/s"), OURS, Metric::CpuPerRequest, 1.0, PEERS),
    goal(("mesh", "2,000/s"), OURS, Metric::P99, 1.0, PEERS),
    goal(("grpc", "1 × 32 streams"), OURS, Metric::CpuPerRequest, 0.25, ENVOY),
    goal(("grpc", "1 × 32 streams"), OURS, Metric::CpuPerRequest, 1.0, HAPROXY),
    goal(("grpc", "10 × 32 streams"), OURS, Metric::CpuPerRequest, 0.25, ENVOY),
    goal(("grpc", "10 × 32 streams"), OURS, Metric::CpuPerRequest, 1.0, HAPROXY),
    goal(("opaque", "saturation"), OPAQUE, Metric::CpuPerRequest, 0.55, NGINX),
    goal(("opaque", "2,000/s"), OPAQUE, Metric::CpuPerRequest, 0.55, NGINX),
    goal(("churn", "saturation"), OURS, Metric::CpuPerRequest, 0.8, NGINX),
    goal(("bulk", "GET 1 MiB"), OURS, Metric::CpuPerMib, 0.6, CLASSIC),
    goal(("bulk", "POST 1 MiB"), OURS, Metric::CpuPerMib, 0.6, CLASSIC),
    goal(("idle", "1 connection"), OURS, Metric::Memory, 16.0, ABSOLUTE),
    goal(("idle", "10,000 connections"), OURS, Metric::MemoryPerConnection, 12.0, ABSOLUTE),
    goal(("many", "saturation"), "1,000 services × 3 endpoints", Metric::CpuPerRequest, 1.05, SMALL),
    goal(("many", "saturation"), "1 service × 300 endpoints", Metric::CpuPerRequest, 1.05, SMALL),
    goal(("many", "2,000/s"), "1,000 services × 3 endpoints", Metric::CpuPerRequest, 1.05, SMALL),
    goal(("many", "2,000/s"), "1 service × 300 endpoints", Metric::CpuPerRequest, 1.05, SMALL),
];

/// A goal that the run has figures for.
pub(crate) struct Verdict {
    goal: &'static Goal,
    measured: f64,
}

/// How the run stands to each goal that it measured.
pub(crate) fn judge(cases: &[Case]) -> Vec<Verdict> {
    GOALS.iter().filter_map(|goal| Some(Verdict { goal, measured: goal.measure(cases)? })).collect()
}

impl Goal {
    fn measure(&self, cases: &[Case]) -> Option<f64> {
        let case = cases.iter().find(|case| case.scenario == self.scenario && case.case == self.case)?;
        let median = |label: &str| case.of(self.metric).find(|row| row.label == label).map(|row| row.median);
        let ours = median(self.ours)?;
        if self.over.is_empty() {
            return Some(ours);
        }
        let best = self.over.iter().filter_map(|label| median(label)).reduce(f64::min)?;
        (best > 0.0).then(|| ours / best)
    }
}

impl Verdict {
    fn met(&self) -> bool {
        self.measured <= self.goal.limit
    }

    fn base(&self) -> String {
        if self.goal.over.is_empty() { String::new() } else { format!(" × {}", self.goal.over.join(" or ")) }
    }

    pub(crate) fn to_json(&self) -> Value {
        let Goal { scenario, case, ours, metric, limit, over } = self.goal;
        json!({
            "scenario": scenario, "case": case, "subject": ours, "metric": metric.key(), "at_most": limit,
            "times_the_best_of": over, "measured": self.measured, "met": self.met(),
        })
    }
}

/// The verdicts as a table; empty when there are none.
pub(crate) fn table(verdicts: &[Verdict]) -> String {
    if verdicts.is_empty() {
        return String::new();
    }
    let mut text = "\n## Goals\n\n| | at most | measured | |\n|---|---|---:|---|\n".to_owned();
    for verdict in verdicts {
        let Goal { scenario, case, ours, metric, limit, .. } = verdict.goal;
        let _ = writeln!(
            text,
            "| {scenario}, {case}, {ours}: {} | {}{} | {} | {} |",
            metric.title(),
            number(*limit),
            verdict.base(),
            number(verdict.measured),
            if verdict.met() { "met" } else { "missed" }
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{cases, tests::some};

    #[test]
    fn a_goal_is_judged_by_the_best_of_those_it_names() {
        let verdicts = judge(&cases(&some()));
        let ratios: Vec<_> = verdicts.iter().map(|verdict| (verdict.measured, verdict.met())).collect();
        // Beside nginx at 70 us, beside Envoy at 200.
        assert_eq!(ratios, [(0.5, true), (0.175, true)]);
        assert!(table(&verdicts).contains("| 0.65 × nginx or HAProxy | 0.50 | met |"));
        assert_eq!(table(&judge(&[])), "");
    }
}
