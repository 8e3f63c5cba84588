//! What was measured, and what it comes to: medians, spread, ratios.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::subject::Subject;

/// A quantity, and how it is read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Metric {
    /// CPU microseconds of the proxies per request, user and system.
    CpuPerRequest,
    /// CPU milliseconds of the proxies per MiB of body.
    CpuPerMib,
    /// Requests per second.
    Throughput,
    /// MiB of body per second.
    Bandwidth,
    /// Milliseconds at 50, 99 and 99.9 percent.
    P50,
    P99,
    P999,
    /// Resident memory of the proxies together, MiB: the most that was seen.
    Memory,
    /// KiB of it for each further idle connection.
    MemoryPerConnection,
}

impl Metric {
    /// Key in JSON.
    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::CpuPerRequest => "cpu_us_per_request",
            Self::CpuPerMib => "cpu_ms_per_mib",
            Self::Throughput => "requests_per_second",
            Self::Bandwidth => "mib_per_second",
            Self::P50 => "p50_ms",
            Self::P99 => "p99_ms",
            Self::P999 => "p999_ms",
            Self::Memory => "resident_mib",
            Self::MemoryPerConnection => "resident_kib_per_connection",
        }
    }

    /// Heading in reports.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::CpuPerRequest => "CPU per request, us",
            Self::CpuPerMib => "CPU per MiB, ms",
            Self::Throughput => "requests per second",
            Self::Bandwidth => "MiB per second",
            Self::P50 => "p50, ms",
            Self::P99 => "p99, ms",
            Self::P999 => "p99.9, ms",
            Self::Memory => "memory, MiB",
            Self::MemoryPerConnection => "memory per idle connection, KiB",
        }
    }

    fn more_is_better(self) -> bool {
        matches!(self, Self::Throughput | Self::Bandwidth)
    }
}

/// One measurement of one subject.
#[derive(Clone, Debug)]
pub(crate) struct Sample {
    /// `mesh`, `grpc` and so on.
    pub(crate) scenario: &'static str,
    /// What of it: `saturation`, `2,000/s`.
    pub(crate) case: String,
    /// Whose.
    pub(crate) subject: Subject,
    /// Its name in the report.
    pub(crate) label: String,
    /// From 0.
    pub(crate) repeat: u32,
    /// What was measured.
    pub(crate) values: Vec<(Metric, f64)>,
}

/// One metric of one subject over all repeats.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub(crate) subject: Subject,
    pub(crate) label: String,
    pub(crate) metric: Metric,
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) most: f64,
    /// Over the direct connection's median, where that has one.
    pub(crate) to_direct: Option<f64>,
    /// Over the median of the best peer, where there is one.
    pub(crate) to_best: Option<f64>,
}

/// One case: its summaries by metric, then in the order the subjects were measured.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) scenario: &'static str,
    pub(crate) case: String,
    pub(crate) rows: Vec<Summary>,
}

/// Sums samples up, in the order they were taken.
pub(crate) fn cases(samples: &[Sample]) -> Vec<Case> {
    let mut order: Vec<(&'static str, String)> = Vec::new();
    for sample in samples {
        let key = (sample.scenario, sample.case.clone());
        if !order.contains(&key) {
            order.push(key);
        }
    }
    order.into_iter().map(|(scenario, case)| summarise(scenario, case, samples)).collect()
}

fn summarise(scenario: &'static str, case: String, samples: &[Sample]) -> Case {
    let mut subjects: Vec<(Subject, String)> = Vec::new();
    let mut values: BTreeMap<(Metric, usize), Vec<f64>> = BTreeMap::new();
    for sample in samples.iter().filter(|sample| sample.scenario == scenario && sample.case == case) {
        let subject = (sample.subject, sample.label.clone());
        let at = subjects.iter().position(|known| *known == subject).unwrap_or_else(|| {
            subjects.push(subject);
            subjects.len() - 1
        });
        for (metric, value) in &sample.values {
            values.entry((*metric, at)).or_default().push(*value);
        }
    }
    let mut rows: Vec<Summary> = values
        .into_iter()
        .map(|((metric, at), mut values)| {
            values.sort_by(f64::total_cmp);
            Summary {
                subject: subjects[at].0,
                label: subjects[at].1.clone(),
                metric,
                median: median(&values),
                least: values.first().copied().unwrap_or_default(),
                most: values.last().copied().unwrap_or_default(),
                to_direct: None,
                to_best: None,
            }
        })
        .collect();
    relate(&mut rows);
    Case { scenario, case, rows }
}

/// Fills the ratios in.
fn relate(rows: &mut [Summary]) {
    let medians: Vec<_> = rows.iter().map(|row| (row.metric, row.subject, row.median)).collect();
    for row in rows {
        let of = |wanted: &dyn Fn(Subject) -> bool| {
            let row = (row.metric, row.metric.more_is_better());
            let found = medians.iter().filter(|(metric, subject, _)| *metric == row.0 && wanted(*subject));
            found.map(|(_, _, median)| *median).reduce(|a, b| if row.1 { a.max(b) } else { a.min(b) })
        };
        let over = |base: Option<f64>| base.filter(|base| *base > 0.0).map(|base| row.median / base);
        let (to_direct, to_best) = (over(of(&|s| s == Subject::Direct)), over(of(&Subject::is_peer)));
        (row.to_direct, row.to_best) = (to_direct, to_best);
    }
}

/// The middle of sorted values; between the two in the middle if there are two.
fn median(sorted: &[f64]) -> f64 {
    let middle = sorted.len() / 2;
    match sorted {
        [] => 0.0,
        _ if sorted.len() % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

impl Case {
    /// Metrics measured in it, the most important first.
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        let mut metrics: Vec<_> = self.rows.iter().map(|row| row.metric).collect();
        metrics.dedup();
        metrics
    }

    /// Summaries of one metric.
    pub(crate) fn of(&self, metric: Metric) -> impl Iterator<Item = &Summary> {
        self.rows.iter().filter(move |row| row.metric == metric)
    }

    pub(crate) fn to_json(&self) -> Value {
        let rows = self.rows.iter().map(|row| {
            json!({
                "subject": row.label, "metric": row.metric.key(), "median": row.median,
                "min": row.least, "max": row.most,
                "to_direct": row.to_direct, "to_best_peer": row.to_best,
            })
        });
        json!({"scenario": self.scenario, "case": self.case, "summary": rows.collect::<Vec<_>>()})
    }
}

impl Sample {
    pub(crate) fn to_json(&self) -> Value {
        let values: serde_json::Map<_, _> =
            self.values.iter().map(|(metric, value)| (metric.key().to_owned(), json!(value))).collect();
        json!({
            "scenario": self.scenario, "case": self.case, "subject": self.label,
            "repeat": self.repeat, "values": values,
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn sample(subject: Subject, repeat: u32, cpu: f64, rate: f64) -> Sample {
        let mut values = vec![(Metric::Throughput, rate)];
        if subject != Subject::Direct {
            values.push((Metric::CpuPerRequest, cpu));
        }
        let label = subject.label().to_owned();
        Sample { scenario: "mesh", case: "saturation".into(), subject, label, repeat, values }
    }

    pub(crate) fn some() -> Vec<Sample> {
        vec![
            sample(Subject::Direct, 0, 0.0, 40_000.0),
            sample(Subject::Nginx, 0, 70.0, 10_000.0),
            sample(Subject::EnvoyH1, 0, 200.0, 5_000.0),
            sample(Subject::Outrigger, 0, 36.0, 20_000.0),
            sample(Subject::Outrigger, 1, 34.0, 22_000.0),
            sample(Subject::Outrigger, 2, 35.0, 30_000.0),
        ]
    }

    #[test]
    fn medians_are_related_to_the_best_peer_and_to_direct() {
        let cases = cases(&some());
        assert_eq!(cases.len(), 1);
        let of = |metric| {
            let row = cases[0].of(metric).find(|row| row.subject == Subject::Outrigger).unwrap();
            (row.median, row.least, row.most, row.to_direct, row.to_best)
        };
        assert_eq!(of(Metric::CpuPerRequest), (35.0, 34.0, 36.0, None, Some(0.5)));
        assert_eq!(of(Metric::Throughput), (22_000.0, 20_000.0, 30_000.0, Some(0.55), Some(2.2)));
        assert_eq!(cases[0].metrics(), [Metric::CpuPerRequest, Metric::Throughput]);
    }

    #[test]
    fn an_even_number_of_values_has_its_median_in_between() {
        assert_eq!(median(&[1.0, 2.0, 4.0, 8.0]), 3.0);
        assert_eq!(median(&[]), 0.0);
    }
}
