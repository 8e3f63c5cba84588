//! What a run comes to: the summary as one JSON object and in words, and the judgement.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::chaos::{self, Incident};
use super::load::{FIRST_ORDERS, Tally, as_float};
use super::metrics::{DelayMs, round};
use super::observer::{Counts, EdgeTimes};
use super::repairs::count_of;
use super::table::ms;

/// Answers that arrive within this time of the load's end belong to its seconds; later ones lengthen them.
const GRACE: Duration = Duration::from_millis(100);

/// Everything that was measured.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) tally: &'a Tally,
    pub(super) rate: u32,
    pub(super) seed: u64,
    /// How long requests were sent.
    pub(super) sent_for: Duration,
    /// How long they should have been, if there was an end to it.
    pub(super) planned: Option<Duration>,
    /// All sidecars since the mesh came up.
    pub(super) totals: Counts,
    /// All sidecars since the load began.
    pub(super) during: Counts,
    /// The storefront's edge since the load began.
    pub(super) edge: EdgeTimes,
    /// Requests each replica served since the mesh came up.
    pub(super) served: Vec<(String, f64)>,
    pub(super) traces_exported: f64,
    /// Whether a trace read back holds the spans of both sidecars, or why none does.
    pub(super) trace: Result<(), String>,
    /// What was broken meanwhile; `None` where nothing was to be.
    pub(super) chaos: Option<Vec<Incident>>,
}

/// The one object of `--output json`.
#[derive(Debug, Default, Serialize)]
pub(super) struct Summary {
    requests: u64,
    succeeded: u64,
    throughput_rps: f64,
    /// From when a request was due to its whole answer, at the load generator; of requests that succeeded.
    delay_ms: DelayMs,
    /// Of the calls from the storefront to the orders, by the storefront's sidecar.
    transmit_ms: DelayMs,
    processing_ms: DelayMs,
    retries: u64,
    ejections: u64,
    /// Share of all requests the sidecars counted that went over mutual TLS; null without requests.
    mtls: Option<f64>,
    /// Replicas of the order service that served requests.
    endpoints: usize,
    traces_exported: u64,
    /// What each served since the mesh came up, the first orders included.
    replicas: Vec<ReplicaSummary>,
    /// Orders made before the load, so that there was something to read.
    first_orders: usize,
    edges: Vec<EdgeSummary>,
    failures: BTreeMap<String, u64>,
    rate: u32,
    duration_s: f64,
    seed: u64,
    /// What was broken, what the mesh did about it, what the client noticed.
    #[serde(skip_serializing_if = "Option::is_none")]
    chaos: Option<Vec<Incident>>,
    /// The policy that was in force meanwhile, as `outrigger apply` takes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    chaos_policy: Option<Value>,
    /// Whether the mesh did its job; the judgements that failed say why not.
    ok: bool,
    failed_judgements: Vec<String>,
}

#[derive(Debug, Serialize)]
struct ReplicaSummary {
    id: String,
    requests: u64,
}

#[derive(Debug, Serialize)]
struct EdgeSummary {
    source: String,
    destination: &'static str,
    requests: u64,
    duration_ms: DelayMs,
    transmit_ms: DelayMs,
    processing_ms: DelayMs,
}

impl Summary {
    pub(super) fn new(facts: &Facts<'_>) -> Self {
        let seconds = seconds_of_load(facts.sent_for, facts.tally.last_success);
        let per_second = if seconds > 0.0 { as_float(facts.tally.succeeded) / seconds } else { 0.0 };
        let failed_judgements = judge(facts);
        let edge = &facts.edge;
        let (transmit_ms, processing_ms) = (edge.transmit.delay(), edge.processing.delay());
        Self {
            requests: facts.tally.issued,
            succeeded: facts.tally.succeeded,
            throughput_rps: round(per_second),
            delay_ms: facts.tally.delay(),
            transmit_ms,
            processing_ms,
            retries: count_of(facts.during.retries),
            ejections: count_of(facts.during.ejections),
            mtls: (facts.totals.requests > 0.0).then(|| facts.totals.mutual / facts.totals.requests),
            endpoints: facts.served.iter().filter(|(_, requests)| *requests > 0.0).count(),
            traces_exported: count_of(facts.traces_exported),
            replicas: facts
                .served
                .iter()
                .map(|(id, n)| ReplicaSummary { id: id.clone(), requests: count_of(*n) })
                .collect(),
            first_orders: FIRST_ORDERS,
            edges: vec![EdgeSummary {
                source: edge.source.clone(),
                destination: "orders.shop",
                requests: count_of(edge.duration.count),
                duration_ms: edge.duration.delay(),
                transmit_ms,
                processing_ms,
            }],
            failures: facts.tally.failures.clone(),
            rate: facts.rate,
            duration_s: round(seconds),
            seed: facts.seed,
            chaos_policy: facts.chaos.is_some().then(chaos::policy::document),
            chaos: facts.chaos.clone(),
            ok: failed_judgements.is_empty(),
            failed_judgements,
        }
    }

    /// Of a mesh that was up and had nothing to do: all zeros, nothing judged.
    pub(super) fn without_load() -> Self {
        Self { mtls: None, ok: true, ..Self::default() }
    }

    pub(super) fn failed_judgements(&self) -> &[String] {
        &self.failed_judgements
    }

    /// The same in words.
    pub(super) fn words(&self) -> String {
        let mut text = String::new();
        let mut line = |words: String| {
            // A String takes every text.
            let _always = writeln!(text, "{words}");
        };
        let outcome = match self.requests - self.succeeded {
            0 => "all succeeded".to_owned(),
            failed => format!("{} succeeded, {failed} did not", self.succeeded),
        };
        line(format!(
            "{} requests in {:.1} s: {outcome}; {:.1} per second.",
            self.requests, self.duration_s, self.throughput_rps
        ));
        for (kind, count) in &self.failures {
            line(format!("  {count} x {kind}"));
        }
        line(format!("Delay from when each was due:   {}", delay(&self.delay_ms)));
        for edge in &self.edges {
            line(format!("Inside, {} -> {}:", edge.source, edge.destination));
            line(format!("  transmit (wire, sidecars)     {}", delay(&edge.transmit_ms)));
            line(format!("  processing (application)      {}", delay(&edge.processing_ms)));
        }
        line("Means of transmit and processing add up to the edge's mean; quantiles do not.".to_owned());
        let share = self.mtls.map_or("no requests".to_owned(), |share| format!("{:.2} %", share * 100.0));
        line(format!("Mutual TLS, by the sidecars' own counts: {share} of requests."));
        let served: Vec<_> = self.replicas.iter().map(|r| format!("{} {}", r.id, r.requests)).collect();
        line(format!("Requests served, {} first orders included: {}.", self.first_orders, served.join(", ")));
        line(format!(
            "Retries {}, ejections {}, traces exported {}. Seed {}.",
            self.retries, self.ejections, self.traces_exported, self.seed
        ));
        self.chaos_words(&mut line);
        match self.ok {
            true => line("The mesh did its job.".to_owned()),
            false => {
                line("The mesh did not do its job:".to_owned());
                self.failed_judgements.iter().for_each(|judgement| line(format!("  - {judgement}")));
            }
        }
        text
    }

    fn chaos_words(&self, line: &mut impl FnMut(String)) {
        let Some(incidents) = self.chaos.as_ref().filter(|incidents| !incidents.is_empty()) else { return };
        line("\nWhat was broken, what the mesh did about it, what the client noticed:".to_owned());
        chaos::table(incidents).lines().for_each(|row| line(row.to_owned()));
        line(format!("Policy {}.", chaos::policy::words()));
        line(
            "Every request of the load may be repeated: reads as such, writes because each carries an"
                .to_owned(),
        );
        line("Idempotency-Key, so that sending one again does not do it twice.\n".to_owned());
    }
}

fn delay(delay: &DelayMs) -> String {
    let [mean, p50, p90, p99, p999] = [delay.mean, delay.p50, delay.p90, delay.p99, delay.p999].map(ms);
    format!("mean {mean}, p50 {p50}, p90 {p90}, p99 {p99}, p99.9 {p999}")
}

/// The seconds to divide by: those in which requests were sent, and what the last answers took beyond.
fn seconds_of_load(sent_for: Duration, last_success: Duration) -> f64 {
    if last_success > sent_for + GRACE { last_success } else { sent_for }.as_secs_f64()
}

/// The judgements that failed, each with its figures.
fn judge(facts: &Facts<'_>) -> Vec<String> {
    let mut failed = Vec::new();
    let tally = facts.tally;
    if let Some(planned) = facts.planned.filter(|planned| facts.sent_for < *planned) {
        let (sent, planned) = (facts.sent_for.as_secs_f64(), planned.as_secs_f64());
        failed.push(format!("interrupted after {sent:.1} s of {planned:.1} s of load"));
    }
    if tally.issued == 0 {
        failed.push("no request was sent".to_owned());
    }
    if tally.succeeded < tally.issued {
        let worst = tally.failures.iter().max_by_key(|(_, count)| **count);
        let worst = worst.map_or(String::new(), |(kind, count)| format!(", {count} of them: {kind}"));
        failed.push(format!(
            "{} of {} requests did not succeed{worst}",
            tally.issued - tally.succeeded,
            tally.issued
        ));
    }
    let Counts { requests, mutual, .. } = facts.totals;
    if requests <= 0.0 {
        failed.push("the sidecars counted no request".to_owned());
    } else if mutual < requests {
        failed.push(format!("{} of {requests} requests did not go over mutual TLS", requests - mutual));
    }
    let idle: Vec<_> = facts.served.iter().filter(|(_, n)| *n <= 0.0).map(|(id, _)| id.as_str()).collect();
    if !idle.is_empty() {
        failed.push(format!("{} served no request", idle.join(", ")));
    }
    if let Err(why) = &facts.trace {
        failed.push(why.clone());
    }
    failed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::load::Load;

    fn facts(tally: &Tally) -> Facts<'_> {
        Facts {
            tally,
            rate: 10,
            seed: 1,
            sent_for: Duration::from_secs(2),
            planned: Some(Duration::from_secs(2)),
            totals: Counts { requests: 4.0, mutual: 4.0, ..Counts::default() },
            during: Counts::default(),
            edge: EdgeTimes::default(),
            served: vec![("orders-1".into(), 4.0)],
            traces_exported: 1.0,
            trace: Ok(()),
            chaos: None,
        }
    }

    #[tokio::test]
    async fn each_judgement_says_what_failed() {
        let load = Load::new("127.0.0.1:1".parse().unwrap());
        let mut tally = load.tally();
        (tally.issued, tally.succeeded) = (4, 4);
        assert_eq!(judge(&facts(&tally)), Vec::<String>::new());
        type Break = fn(&mut Facts<'_>);
        let cases: [(Break, &str); 5] = [
            (|f| f.totals.mutual = 3.0, "1 of 4 requests did not go over mutual TLS"),
            (|f| f.totals = Counts::default(), "counted no request"),
            (|f| f.served.push(("orders-2".into(), 0.0)), "orders-2 served no request"),
            (|f| f.trace = Err("no trace".into()), "no trace"),
            (|f| f.planned = Some(Duration::from_secs(3)), "interrupted after 2.0 s of 3.0 s"),
        ];
        for (break_it, words) in cases {
            let mut facts = facts(&tally);
            break_it(&mut facts);
            let failed = judge(&facts);
            assert!(failed.len() == 1 && failed[0].contains(words), "{failed:?}");
        }
        tally.succeeded = 3;
        tally.failures.insert("status 503".into(), 1);
        assert_eq!(judge(&facts(&tally)), ["1 of 4 requests did not succeed, 1 of them: status 503"]);
    }

    #[tokio::test]
    async fn the_object_has_the_keys_scripts_rely_on() {
        let load = Load::new("127.0.0.1:1".parse().unwrap());
        let tally = load.tally();
        let summary = Summary::new(&facts(&tally));
        let json = serde_json::to_value(&summary).unwrap();
        for key in [
            "requests",
            "succeeded",
            "throughput_rps",
            "delay_ms",
            "transmit_ms",
            "processing_ms",
            "retries",
            "ejections",
            "mtls",
            "endpoints",
            "traces_exported",
        ] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["mean", "p50", "p90", "p99", "p999"] {
            assert!(json["delay_ms"].get(key).is_some() && json["transmit_ms"].get(key).is_some(), "{key}");
        }
        assert_eq!(json["mtls"], 1.0);
        assert_eq!(json["endpoints"], 1);
        assert!(summary.words().contains("did not do its job"), "no request was sent");
    }

    #[test]
    fn late_answers_lengthen_the_load() {
        let ms = Duration::from_millis;
        assert_eq!(seconds_of_load(ms(2000), ms(2050)), 2.0);
        assert_eq!(seconds_of_load(ms(2000), ms(2500)), 2.5);
    }
}
