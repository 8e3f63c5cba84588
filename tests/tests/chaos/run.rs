//! One run: the load, the times at which things happen, the figures, and what every run has to show.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::time::{Duration, Instant};

use http::Method;
use outrigger_tests::client::{Client, request};
use outrigger_tests::load::{Load, Report, Sample};
use outrigger_tests::mesh::Sidecar;
use outrigger_tests::metrics::Metrics;

use crate::cluster::{Cluster, ORDERS};

/// Requests a second: four in five may be repeated.
const GETS: f64 = 256.0;
const POSTS: f64 = 64.0;
/// Length of every run, from first to last request.
pub(crate) const LENGTH: u64 = 20;
const EXPIRY: &str = "mesh_certificate_expiry_timestamp_seconds";
/// Responses that were under way, with their heads sent, when a process was killed.
const FEW: usize = 3;
const SHOWN: usize = 5;

/// A load under way.
pub(crate) struct Run {
    what: &'static str,
    pub(crate) client: Client,
    gets: Load,
    posts: Load,
    begun: Instant,
    phases: Vec<(Duration, String)>,
    before: Metrics,
    /// When each sidecar's certificate expires.
    expiries: Vec<(String, u32, f64)>,
}

/// What became of it.
pub(crate) struct Outcome {
    pub(crate) what: &'static str,
    /// GET: may be repeated.
    pub(crate) gets: Report,
    /// POST without a key: may not.
    pub(crate) posts: Report,
    /// What the caller's sidecar repeated, by reason and outcome.
    pub(crate) retries: BTreeMap<(String, String), f64>,
    pub(crate) ejections: f64,
    phases: Vec<(String, Range<Duration>)>,
    /// How often each POST was executed.
    executions: HashMap<String, usize>,
}

impl Run {
    /// Starts the load; the first phase is called `before`.
    pub(crate) async fn start(what: &'static str, cluster: &Cluster) -> Self {
        let client = cluster.front.client();
        let before = cluster.front.metrics().await;
        let expiries = expiries(cluster).await;
        let gets = Load::start(&client, GETS, |n| {
            request(Method::GET, ORDERS, "/", &[("x-id", &format!("g{n}"))], "")
        });
        let posts = Load::start(&client, POSTS, |n| {
            request(Method::POST, ORDERS, "/unkeyed", &[("x-id", &format!("u{n}"))], "an order")
        });
        let begun = gets.begun();
        let phases = vec![(Duration::ZERO, "before".to_owned())];
        Self { what, client, gets, posts, begun, phases, before, expiries }
    }

    /// Waits until so many seconds after the start, when a phase begins.
    pub(crate) async fn at(&mut self, second: u64, phase: &str) {
        tokio::time::sleep_until((self.begun + Duration::from_secs(second)).into()).await;
        self.phase(phase);
    }

    /// A phase begins now.
    pub(crate) fn phase(&mut self, phase: &str) {
        self.phases.push((self.begun.elapsed(), phase.to_owned()));
    }

    /// Ends the load once it has lasted, prints the figures, and judges what holds in every run: nothing
    /// is executed twice, and what succeeded was executed.
    pub(crate) async fn finish(self, cluster: &Cluster) -> Outcome {
        let end = self.begun + Duration::from_secs(LENGTH);
        tokio::time::sleep_until(end.into()).await;
        let after = cluster.front.metrics().await;
        self.judged(cluster, &after).await
    }

    /// The same with the metrics of a caller's sidecar that is gone.
    pub(crate) async fn judged(self, cluster: &Cluster, after: &Metrics) -> Outcome {
        let (gets, posts) = (self.gets.stop().await, self.posts.stop().await);
        let mut executions = HashMap::new();
        for replica in &cluster.replicas {
            for (id, count) in replica.app.executions() {
                *executions.entry(id).or_default() += count;
            }
        }
        let ends =
            self.phases.iter().skip(1).map(|(at, _)| *at).chain([gets.lasted + Duration::from_secs(1)]);
        let phases = self.phases.iter().zip(ends).map(|((at, name), end)| (name.clone(), *at..end));
        let ejected =
            |metrics: &Metrics| metrics.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]);
        let outcome = Outcome {
            what: self.what,
            phases: phases.collect(),
            retries: retries(&self.before, after),
            ejections: ejected(after) - ejected(&self.before),
            gets,
            posts,
            executions,
        };
        outcome.print();
        outcome.assert_executed_once();
        for (id, pid, before) in self.expiries {
            let Some(sidecar) = cluster.sidecars().find(|sidecar| sidecar.id == id) else { continue };
            if sidecar.process.pid() == pid {
                let now = expiry(sidecar).await;
                assert!(now > before, "{}: {id} has had one certificate all the time", self.what);
            }
        }
        outcome
    }
}

async fn expiry(sidecar: &Sidecar) -> f64 {
    sidecar.metrics().await.value(EXPIRY)
}

async fn expiries(cluster: &Cluster) -> Vec<(String, u32, f64)> {
    let mut expiries = Vec::new();
    for sidecar in cluster.sidecars() {
        expiries.push((sidecar.id.clone(), sidecar.process.pid(), expiry(sidecar).await));
    }
    expiries
}

fn retries(before: &Metrics, after: &Metrics) -> BTreeMap<(String, String), f64> {
    let mut retries = BTreeMap::new();
    for (metrics, sign) in [(before, -1.0), (after, 1.0)] {
        for sample in metrics.matching("mesh_retries_total", &[]) {
            let label = |name: &str| sample.labels.get(name).cloned().unwrap_or_default();
            *retries.entry((label("reason"), label("outcome"))).or_insert(0.0) += sign * sample.value;
        }
    }
    retries.retain(|_, count| *count > 0.0);
    retries
}

impl Outcome {
    /// A phase's part of the run.
    pub(crate) fn part(&self, phase: &str) -> Range<Duration> {
        let found = self.phases.iter().find(|(name, _)| name == phase);
        found.unwrap_or_else(|| panic!("no phase {phase}")).1.clone()
    }

    /// Failed attempts that called for another, whether there was one or not.
    pub(crate) fn failed_attempts(&self) -> f64 {
        self.retries.values().sum()
    }

    /// Requests of either kind in a phase.
    pub(crate) fn during_both(&self, phase: &str) -> f64 {
        let part = self.part(phase);
        let count = self.gets.during(&part).count() + self.posts.during(&part).count();
        f64::from(u32::try_from(count).unwrap())
    }

    fn print(&self) {
        println!(
            "\n== {}: {} requests that may be repeated, {} that may not",
            self.what, self.gets.sent, self.posts.sent
        );
        for (name, part) in &self.phases {
            let failed = |report: &Report| report.during(part).filter(|sample| !sample.succeeded).count();
            println!(
                "   {:>5.1} s  {name:<34} {:>5} sent, {:>3} failed, p50 {:>6.1?}, p99 {:>6.1?}; not repeatable: {:>4} sent, {:>3} failed",
                part.start.as_secs_f64(),
                self.gets.during(part).count(),
                failed(&self.gets),
                self.gets.quantile(part, 0.5),
                self.gets.quantile(part, 0.99),
                self.posts.during(part).count(),
                failed(&self.posts),
            );
        }
        println!("   failures: {:?}; not repeatable: {:?}", self.gets.kinds(), self.posts.kinds());
        let retries: Vec<_> = self
            .retries
            .iter()
            .map(|((reason, outcome), count)| format!("{reason} {outcome} {count}"))
            .collect();
        println!("   failed attempts: {}; {} ejections", retries.join(", "), self.ejections);
    }

    fn assert_executed_once(&self) {
        let twice: Vec<_> = self
            .executions
            .iter()
            .filter(|(id, count)| id.starts_with('u') && **count > 1)
            .take(SHOWN)
            .collect();
        assert!(twice.is_empty(), "{}: executed twice: {twice:?}", self.what);
        let never = |sample: &&Sample| {
            sample.succeeded && !self.executions.contains_key(&format!("u{}", sample.number))
        };
        let never: Vec<_> = self.posts.samples.iter().filter(never).take(SHOWN).collect();
        assert!(never.is_empty(), "{}: succeeded and not executed: {never:?}", self.what);
    }

    /// The fault was one: attempts failed.
    pub(crate) fn assert_fault_shown(&self) {
        assert!(self.failed_attempts() > 0.0, "{}: no attempt failed", self.what);
    }

    /// Nothing that may be repeated failed; a few responses may have been cut where a process died.
    pub(crate) fn assert_repeatable_clean(&self, killed: bool) {
        if killed {
            self.gets.assert_clean_but_for_cuts(self.what);
            assert!(self.gets.cut() <= FEW, "{}: {} responses cut", self.what, self.gets.cut());
        } else {
            self.gets.assert_clean(self.what);
        }
    }

    /// No request of any kind failed.
    pub(crate) fn assert_all_clean(&self) {
        self.gets.assert_clean(self.what);
        self.posts.assert_clean(self.what);
    }
}
