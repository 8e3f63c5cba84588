//! One run: every scenario, its subjects in turns, then the report.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::idle::Crowd;
use crate::load::{self, Load, Outcome};
use crate::options::{Options, Scenario};
use crate::outrigger::Scale;
use crate::proc::{self, Cpu};
use crate::report::{self, Setting};
use crate::results::{self, Metric, Sample};
use crate::subject::{self, Pair, Speech, Stage, Subject};
use crate::svg;

/// Of each generator, before its measured window.
const WARM_UP: u32 = 1;
/// The fixed rate, requests per second.
const RATE: u32 = 2000;
/// Idle client connections, each step on top of the one before.
const IDLE: [usize; 3] = [1, 1_000, 10_000];
/// Open files beside those of the client's connections.
const SPARE_FILES: usize = 500;
/// After the last request of an idle step: what was needed for it is given back.
const REST: Duration = Duration::from_secs(2);
/// Between two changes in the registry, where there are any.
const CHANGE: Duration = Duration::from_millis(100);

const HOP: [Subject; 7] = [
    Subject::Direct,
    Subject::Relay,
    Subject::Nginx,
    Subject::Haproxy,
    Subject::EnvoyH1,
    Subject::EnvoyH2,
    Subject::Outrigger,
];
const GRPC: [Subject; 6] =
    [Subject::Direct, Subject::Relay, Subject::Nginx, Subject::Haproxy, Subject::EnvoyH2, Subject::Outrigger];
/// nginx carries HTTP here: what people have today.
const OPAQUE: [Subject; 6] = [
    Subject::Direct,
    Subject::Relay,
    Subject::Nginx,
    Subject::Haproxy,
    Subject::HaproxyTcp,
    Subject::OutriggerTcp,
];
const BULK: [Subject; 9] = [
    Subject::Direct,
    Subject::Relay,
    Subject::Nginx,
    Subject::Haproxy,
    Subject::HaproxyTcp,
    Subject::EnvoyH1,
    Subject::EnvoyH2,
    Subject::Outrigger,
    Subject::OutriggerTcp,
];

/// A run under way.
struct Bench<'a> {
    options: &'a Options,
    stage: Stage,
    repeats: u32,
    seconds: u32,
    samples: Vec<Sample>,
    proofs: Vec<(String, String)>,
    started: Instant,
    /// How many each process may have open.
    files: u64,
}

/// Runs what the options name and writes the report.
///
/// # Errors
/// When a process fails, or Outrigger was not what the report would say it was.
pub(crate) async fn run(options: &Options) -> Result<()> {
    let files = proc::raise_open_files();
    println!("up to {files} open files a process");
    let (repeats, seconds) = options.effort();
    let mut bench = Bench {
        options,
        stage: Stage::set().await?,
        repeats,
        seconds,
        samples: Vec::new(),
        proofs: Vec::new(),
        started: Instant::now(),
        files,
    };
    for scenario in options.scenarios() {
        bench.scenario(scenario).await.with_context(|| format!("{scenario:?}"))?;
    }
    bench.write()
}

impl Bench<'_> {
    async fn scenario(&mut self, scenario: Scenario) -> Result<()> {
        println!("── {scenario:?}, after {} s ──", self.started.elapsed().as_secs());
        let case = |name: &str, load| (name.to_owned(), load);
        let saturation = Load::Saturation { close: false };
        match scenario {
            Scenario::Mesh => {
                let cases = [case("saturation", saturation), case("2,000/s", Load::Rate { rate: RATE })];
                self.hop("mesh", &HOP, Speech::Http, &cases).await
            }
            Scenario::Grpc => {
                let cases = [1, 10].map(|connections| {
                    let load = Load::Grpc { connections, streams: 32 };
                    (format!("{connections} × 32 streams"), load)
                });
                self.hop("grpc", &GRPC, Speech::Grpc, &cases).await
            }
            Scenario::Opaque => {
                let cases = [case("saturation", saturation), case("2,000/s", Load::Rate { rate: RATE })];
                self.hop("opaque", &OPAQUE, Speech::Http, &cases).await
            }
            Scenario::Churn => {
                let cases = [case("saturation", Load::Saturation { close: true })];
                self.hop("churn", &HOP, Speech::Http, &cases).await
            }
            Scenario::Bulk => {
                let cases = [(1, false), (1, true), (64, false), (64, true)].map(|(mib, upload)| {
                    let way = if upload { "POST" } else { "GET" };
                    (format!("{way} {mib} MiB"), Load::Bulk { mib, upload })
                });
                self.hop("bulk", &BULK, Speech::Http, &cases).await
            }
            Scenario::Idle => self.idle().await,
            Scenario::Many => self.many().await,
        }
    }

    /// Starts the subjects, measures them in turns, and shows what Outrigger's counters say.
    async fn hop(
        &mut self,
        scenario: &'static str,
        subjects: &[Subject],
        speech: Speech,
        cases: &[(String, Load)],
    ) -> Result<()> {
        let mut pairs = Vec::new();
        for subject in self.options.choose(subjects) {
            let pair = subject.start(&self.stage, speech).await;
            pairs.push(pair.with_context(|| subject.label())?);
        }
        for repeat in 0..self.repeats {
            for pair in &mut pairs {
                for (case, load) in cases {
                    self.measure((scenario, case), pair, *load, repeat).await?;
                }
            }
        }
        self.prove(scenario, &pairs).await
    }

    /// The last proof: that of sampling, which needs all requests there were.
    async fn prove(&mut self, scenario: &str, pairs: &[Pair]) -> Result<()> {
        for pair in pairs {
            if let Some(mesh) = &pair.mesh {
                let proven = mesh.prove_sampled().await?;
                println!("{scenario}  {}: {proven}", pair.label);
                self.proofs.push((format!("{scenario}, {}", pair.label), proven));
            }
        }
        Ok(())
    }

    /// Warms up, measures once, and fails unless everything arrived and was counted.
    async fn measure(
        &mut self,
        (scenario, case): (&'static str, &str),
        pair: &mut Pair,
        load: Load,
        repeat: u32,
    ) -> Result<()> {
        let place = self.stage.directory.path();
        let opaque = pair.subject == Subject::OutriggerTcp;
        let warm = load.run(pair.entry, WARM_UP, place, &pair.pids).await;
        warm.with_context(|| format!("{scenario}, {case}, {}: warming up", pair.label))?;
        let counted = match &pair.mesh {
            Some(mesh) => Some(mesh.settled().await?),
            None => None,
        };
        let before = Cpu::of(&pair.pids)?;
        let run = load.run(pair.entry, self.seconds, place, &pair.pids).await?;
        let cpu = Cpu::of(&pair.pids)?.microseconds_since(before);
        let Outcome { requests, failures, .. } = run.outcome;
        ensure!(
            failures * 1000 <= requests,
            "{scenario}, {case}, {}: {failures} of {} requests failed",
            pair.label,
            requests + failures
        );
        if let (Some(mesh), Some(before)) = (&pair.mesh, counted) {
            mesh.prove_sent(before, load, opaque, &run.outcome).await?;
        }
        let values = values(load, &run, (!pair.pids.is_empty()).then_some(cpu));
        self.keep((scenario, case), pair, repeat, values);
        Ok(())
    }

    fn keep(
        &mut self,
        (scenario, case): (&'static str, &str),
        pair: &Pair,
        repeat: u32,
        values: Vec<(Metric, f64)>,
    ) {
        let (subject, label) = (pair.subject, pair.label.clone());
        let sample = Sample { scenario, case: case.to_owned(), subject, label, repeat, values };
        println!("{}", report::brief(&sample));
        self.samples.push(sample);
    }

    /// Memory by the number of idle client connections; each subject fresh each time, alone.
    async fn idle(&mut self) -> Result<()> {
        let files = self.files;
        for repeat in 0..self.repeats {
            for subject in self.options.choose(&HOP[1..]) {
                let pair = subject.start(&self.stage, Speech::Http).await?;
                let (mut crowd, mut first) = (Crowd::default(), 0.0);
                // A relay holds a connection to the application for each of the client's.
                let each = if subject == Subject::Relay { 2 } else { 1 };
                for count in IDLE.into_iter().filter(|count| (count * each + SPARE_FILES) as u64 <= files) {
                    let most = crowd.grow(pair.entry, count).await;
                    most.with_context(|| format!("{count} idle connections to {}", pair.label))?;
                    tokio::time::sleep(REST).await;
                    let resident = proc::resident(&pair.pids)? as f64;
                    let mut values = vec![(Metric::Memory, resident / MIB)];
                    if count == 1 {
                        first = resident;
                    } else {
                        let each = (resident - first) / 1024.0 / (count - 1) as f64;
                        values.push((Metric::MemoryPerConnection, each));
                    }
                    let case = if count == 1 {
                        "1 connection".into()
                    } else {
                        format!("{} connections", report::number(count as f64))
                    };
                    self.keep(("idle", &case), &pair, repeat, values);
                }
            }
        }
        Ok(())
    }

    /// The mesh hop in meshes of different sizes, side by side.
    async fn many(&mut self) -> Result<()> {
        if self.options.choose(&[Subject::Outrigger]).is_empty() {
            return Ok(());
        }
        let sizes = [
            ("1 service × 3 endpoints", Scale { services: 1, called: 1, endpoints: 3 }),
            ("1,000 services × 3 endpoints", Scale { services: 1000, called: 1, endpoints: 3 }),
            ("1 service × 300 endpoints", Scale { services: 1, called: 1, endpoints: 300 }),
            ("1 service × 20 endpoints", Scale { services: 1, called: 1, endpoints: 20 }),
            ("50 of 1,000 × 20, changing", Scale { services: 1000, called: 50, endpoints: 20 }),
        ];
        let mut pairs = Vec::new();
        for (label, scale) in sizes {
            let pair = Pair::outrigger(Subject::Outrigger, label, &self.stage, scale).await;
            pairs.push((pair.with_context(|| label)?, scale.called > 1));
            println!("many  {label}: the mesh is up, after {} s", self.started.elapsed().as_secs());
        }
        for repeat in 0..self.repeats {
            for (pair, changes) in &mut pairs {
                let cases = [
                    ("saturation", Load::Saturation { close: false }),
                    ("2,000/s", Load::Rate { rate: RATE }),
                ];
                for (case, load) in cases {
                    self.measure_changing(case, pair, load, repeat, *changes).await?;
                }
            }
        }
        let pairs: Vec<Pair> = pairs.into_iter().map(|(pair, _)| pair).collect();
        self.prove("many", &pairs).await
    }

    /// The same as [`Bench::measure`] while the registry changes an endpoint again and again.
    async fn measure_changing(
        &mut self,
        case: &str,
        pair: &mut Pair,
        load: Load,
        repeat: u32,
        changes: bool,
    ) -> Result<()> {
        let Some(mesh) = &mut pair.mesh else { return Ok(()) };
        mesh.filling.renew().await?;
        let filling = changes.then(|| std::mem::take(&mut mesh.filling));
        let Some(mut filling) = filling else {
            return self.measure(("many", case), pair, load, repeat).await;
        };
        let mut made = 0;
        let changing = async {
            let mut ticks = tokio::time::interval(CHANGE);
            loop {
                ticks.tick().await;
                if let Err(error) = filling.change().await {
                    return error;
                }
                made += 1;
            }
        };
        let measured = tokio::select! {
            measured = self.measure(("many", case), pair, load, repeat) => measured,
            error = changing => Err(error.context("changing an endpoint")),
        };
        println!("many  {made} changes meanwhile");
        if let Some(mesh) = &mut pair.mesh {
            mesh.filling = filling;
        }
        measured
    }

    /// Writes JSON, Markdown and plots.
    fn write(&self) -> Result<()> {
        let setting = Setting {
            date: self.options.date.clone(),
            commit: self.options.commit.clone(),
            profile: self.options.profile.clone(),
            repeats: self.repeats,
            seconds: self.seconds,
            machine: report::machine(),
            versions: subject::versions().into_iter().chain(load::versions()).collect(),
        };
        let cases = results::cases(&self.samples);
        let part = self.options.part();
        let name = format!("{}-{}{part}", setting.date, setting.commit);
        let place = |kind: &str| self.options.results.join(format!("{name}.{kind}"));
        fs::create_dir_all(&self.options.results)?;
        let json = report::json(&setting, &self.samples, &cases, &self.proofs);
        save(&place("json"), &format!("{json:#}\n"))?;
        let plots = format!("{name}.svg");
        save(&place("md"), &report::markdown(&setting, &cases, &self.proofs, &plots))?;
        save(&place("svg"), &svg::page(&setting, &cases))
    }
}

const MIB: f64 = (1 << 20) as f64;

fn save(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("write {}", path.display()))?;
    println!("wrote {}", path.display());
    Ok(())
}

/// What a run comes to. Without proxies there is no CPU time and no memory of them.
fn values(load: Load, run: &load::Run, cpu: Option<f64>) -> Vec<(Metric, f64)> {
    let outcome = &run.outcome;
    let per_second = |count: f64| count / outcome.seconds.max(f64::EPSILON);
    let requests = outcome.requests as f64;
    let mut values = Vec::new();
    if let Load::Bulk { mib, .. } = load {
        let mib = requests * f64::from(mib);
        values.extend(cpu.map(|cpu| (Metric::CpuPerMib, cpu / 1000.0 / mib)));
        values.push((Metric::Bandwidth, per_second(mib)));
    } else {
        values.extend(cpu.map(|cpu| (Metric::CpuPerRequest, cpu / requests)));
        values.push((Metric::Throughput, per_second(requests)));
    }
    if let Some([p50, p99, p999]) = outcome.latency_ms {
        values.extend([(Metric::P50, p50), (Metric::P99, p99), (Metric::P999, p999)]);
    }
    values.extend(cpu.map(|_| (Metric::Memory, run.resident as f64 / MIB)));
    values
}
