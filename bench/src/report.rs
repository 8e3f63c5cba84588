//! The report: Markdown for people, JSON for programs.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::goals;
use crate::results::{Case, Metric, Sample, Summary};

/// Where and with what a run was made.
#[derive(Clone, Debug, Default)]
pub(crate) struct Setting {
    /// UTC, to the second.
    pub(crate) date: String,
    /// Of the source, with `-dirty` if it was changed.
    pub(crate) commit: String,
    /// Cargo's profile of Outrigger.
    pub(crate) profile: String,
    pub(crate) repeats: u32,
    pub(crate) seconds: u32,
    /// What the machine is.
    pub(crate) machine: Vec<(String, String)>,
    /// Versions of everything.
    pub(crate) versions: Vec<(String, String)>,
}

/// What each scenario is, for the heading.
pub(crate) fn title(scenario: &str) -> &'static str {
    match scenario {
        "mesh" => "Mesh hop: HTTP/1.1, small JSON, 64 connections",
        "grpc" => "gRPC hop: unary calls, HTTP/2 in and out",
        "opaque" => "Opaque hop: the bytes of the mesh hop, carried as TCP",
        "churn" => "Churn: a new client connection for each request",
        "bulk" => "Bulk: large bodies, 4 connections",
        "idle" => "Idle: client connections after one request each",
        "many" => "Many: the mesh hop in a large mesh",
        _ => "Other",
    }
}

/// The whole report as JSON.
pub(crate) fn json(
    setting: &Setting,
    samples: &[Sample],
    cases: &[Case],
    proofs: &[(String, String)],
) -> Value {
    let object = |pairs: &[(String, String)]| {
        pairs.iter().map(|(key, value)| (key.clone(), json!(value))).collect::<serde_json::Map<_, _>>()
    };
    let proofs: Vec<_> = proofs.iter().map(|(of, what)| json!({"of": of, "proven": what})).collect();
    json!({
        "date": setting.date, "commit": setting.commit, "profile": setting.profile,
        "repeats": setting.repeats, "seconds": setting.seconds,
        "machine": object(&setting.machine), "versions": object(&setting.versions),
        "proofs": proofs,
        "goals": goals::judge(cases).iter().map(goals::Verdict::to_json).collect::<Vec<_>>(),
        "cases": cases.iter().map(Case::to_json).collect::<Vec<_>>(),
        "samples": samples.iter().map(Sample::to_json).collect::<Vec<_>>(),
    })
}

/// The whole report as Markdown. `plots` is the file name of the page of plots.
pub(crate) fn markdown(
    setting: &Setting,
    cases: &[Case],
    proofs: &[(String, String)],
    plots: &str,
) -> String {
    let mut text = format!(
        "# Outrigger beside other proxies, {}\n\nCommit `{}`, profile `{}`; {} repeats, interleaved, {} s each after a \
         warm-up; medians, with the least and the most in parentheses.\n\n",
        setting.date, setting.commit, setting.profile, setting.repeats, setting.seconds
    );
    for (key, value) in setting.machine.iter().chain(&setting.versions) {
        let _ = writeln!(text, "- {key}: {value}");
    }
    let _ = writeln!(text, "\n![plots]({plots})");
    text.push_str(&goals::table(&goals::judge(cases)));
    let mut scenario = "";
    for case in cases {
        if case.scenario != scenario {
            scenario = case.scenario;
            let _ = writeln!(text, "\n## {}", title(scenario));
        }
        let _ = writeln!(text, "\n### {}\n\n{}", case.case, table(case));
    }
    if !proofs.is_empty() {
        text.push_str("\n## That everything was on\n\n");
        for (of, what) in proofs {
            let _ = writeln!(text, "- {of}: {what}");
        }
    }
    text
}

/// A row a subject, a column a metric.
fn table(case: &Case) -> String {
    let metrics = case.metrics();
    let mut labels: Vec<&str> = Vec::new();
    for row in &case.rows {
        if !labels.contains(&row.label.as_str()) {
            labels.push(&row.label);
        }
    }
    labels.sort_by_key(|label| order(case, label));
    let mut text = "| |".to_owned();
    for metric in &metrics {
        let direct = if has_direct(case, *metric) { " × direct |" } else { "" };
        let _ = write!(text, " {} |{direct} × best peer |", metric.title());
    }
    text.push_str("\n|---|");
    for metric in &metrics {
        text.push_str(if has_direct(case, *metric) { "---:|---:|---:|" } else { "---:|---:|" });
    }
    for label in labels {
        let _ = write!(text, "\n| {label} |");
        for metric in &metrics {
            let direct = has_direct(case, *metric);
            let nothing = if direct { " | | |" } else { " | |" };
            let row = case.of(*metric).find(|row| row.label == label);
            text.push_str(&row.map_or(nothing.to_owned(), |row| cells(row, direct)));
        }
    }
    text
}

/// Without proxies there is no CPU time and no memory of them.
fn has_direct(case: &Case, metric: Metric) -> bool {
    case.of(metric).any(|row| row.to_direct.is_some())
}

/// Subjects stand in the order of their enum, variants of one in that of their names.
fn order<'a>(case: &Case, label: &'a str) -> (Option<crate::subject::Subject>, &'a str) {
    (case.rows.iter().find(|row| row.label == label).map(|row| row.subject), label)
}

fn cells(row: &Summary, direct: bool) -> String {
    let ratio = |ratio: Option<f64>| ratio.map(|ratio| format!("{ratio:.2}")).unwrap_or_default();
    let Summary { median, least, most, .. } = row;
    let value = if least == most {
        number(*median)
    } else {
        format!("{} ({} to {})", number(*median), number(*least), number(*most))
    };
    let to_direct = if direct { format!(" {} |", ratio(row.to_direct)) } else { String::new() };
    format!(" {value} |{to_direct} {} |", ratio(row.to_best))
}

/// Three digits that matter, thousands set apart.
pub(crate) fn number(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        small if small < 10.0 => format!("{value:.2}"),
        medium if medium < 1000.0 => format!("{value:.1}"),
        _ => {
            let digits = format!("{value:.0}");
            let split = digits.len() - 3;
            format!("{},{}", &digits[..split], &digits[split..])
        }
    }
}

/// One line a subject, for the terminal.
pub(crate) fn brief(sample: &Sample) -> String {
    let values = sample.values.iter().map(|(metric, value)| format!("{} {}", metric.key(), number(*value)));
    let values = values.collect::<Vec<_>>().join("  ");
    format!("{}  {:<12} {:<18} #{}  {values}", sample.scenario, sample.case, sample.label, sample.repeat + 1)
}

/// Processor, cores, memory, kernel.
pub(crate) fn machine() -> Vec<(String, String)> {
    let field = |file: &str, key: &str| {
        let text = fs::read_to_string(Path::new("/proc").join(file)).unwrap_or_default();
        let line = text.lines().find(|line| line.starts_with(key)).unwrap_or_default();
        line.split_once(':').map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        (
            "processor".to_owned(),
            format!("{} ({cores} cores for everything)", field("cpuinfo", "model name")),
        ),
        ("memory".to_owned(), field("meminfo", "MemTotal")),
        ("kernel".to_owned(), format!("Linux {}", release.trim())),
    ]
}

/// The metrics of which there is a plot.
pub(crate) const PLOTTED: [Metric; 6] = [
    Metric::CpuPerRequest,
    Metric::CpuPerMib,
    Metric::Throughput,
    Metric::P99,
    Metric::Memory,
    Metric::MemoryPerConnection,
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::results::{cases, tests::some};

    #[test]
    fn a_table_has_a_row_for_each_subject_and_its_ratios() {
        let text =
            markdown(&Setting::default(), &cases(&some()), &[("mesh".into(), "all on".into())], "p.svg");
        assert!(
            text.contains(
                "| Outrigger | 35.0 (34.0 to 36.0) | 0.50 | 22,000 (20,000 to 30,000) | 0.55 | 2.20 |"
            ),
            "{text}"
        );
        assert!(text.contains("| direct | | | 40,000 | 1.00 | 4.00 |"), "{text}");
        assert!(text.contains("- mesh: all on") && text.contains("(p.svg)"), "{text}");
    }

    #[test]
    fn numbers_are_as_long_as_they_are_exact() {
        let texts = [0.0, 0.456, 45.67, 456.7, 4567.8, 45_678.0].map(number);
        assert_eq!(texts, ["0", "0.46", "45.7", "456.7", "4,568", "45,678"]);
    }

    #[test]
    fn json_has_samples_and_summaries() {
        let samples = some();
        let report = json(&Setting::default(), &samples, &cases(&samples), &[]);
        assert_eq!(report["samples"].as_array().unwrap().len(), samples.len());
        assert_eq!(report["cases"][0]["summary"][0]["metric"], "cpu_us_per_request");
    }
}
