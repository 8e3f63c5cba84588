//! `outrigger demo`: a whole mesh on this machine from nothing, under load, judged.
//!
//! ```text
//! load ─► storefront ─► its sidecar ═ mutual TLS ═► sidecar ─► order service   (N replicas, one SQLite file)
//!                            ╚═══════ registry ═══════╝
//! ```
//!
//! Every box is a process of its own: this binary started again.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`child`] | the half of the bond with the demo that runs in its children |
//! | [`relay`] | a child that makes an application look sick |
//! | [`processes`], [`mesh`] | starting, breaking and stopping them |
//! | [`load`] | open-loop requests, every answer checked |
//! | [`observer`], [`metrics`], [`repairs`], [`trace`] | what sidecars and registry say about it |
//! | [`chaos`] | what is broken meanwhile, and what came of it |
//! | [`table`], [`report`] | how it goes, how it went, and the judgement |

mod chaos;
pub(crate) mod child;
mod http;
mod load;
mod mesh;
mod metrics;
mod observer;
mod processes;
pub(crate) mod relay;
mod repairs;
mod report;
mod table;
mod trace;

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use ::http::StatusCode;
use fastrand::Rng;
use outrigger_common::drain::{Drain, DrainTrigger};
use outrigger_common::signal::Shutdown;
use outrigger_common::tasks::Tasks;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::args::{DemoArgs, Output};
use crate::failure::Failure;
use crate::output::{self, Progress};
use chaos::{Incidents, Stage};
use load::Load;
use mesh::{Chaos, Mesh};
use observer::Observer;
use report::{Facts, Summary};
use table::Table;

/// Length of a load nobody watches, unless one is given.
const DEFAULT_DURATION: Duration = Duration::from_secs(10);
/// How often the sidecars' metrics are read.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often it is checked that every process lives.
const ALIVE_EVERY: Duration = Duration::from_millis(250);
/// Longest wait, after the last answer, for the sidecars to have counted it.
const COUNT_LIMIT: Duration = Duration::from_secs(1);

/// Refuses what makes no sense together.
pub(crate) fn check(args: &DemoArgs) -> Result<(), Failure> {
    if args.chaos && args.rate == 0 {
        return Err(Failure::usage("--chaos breaks things under load: leave out --rate 0"));
    }
    if args.chaos && args.replicas < 2 {
        return Err(Failure::usage("--chaos kills a replica: use --replicas 2 or more"));
    }
    Ok(())
}

/// The first signal ends the demo in order, the second at once.
struct Signals {
    stop: Drain,
    hurry: Drain,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let mut shutdown = Shutdown::listen()
            .map_err(|error| Failure::job(format!("cannot listen for signals: {error}")))?;
        let (stop, hurry) = (DrainTrigger::new(), DrainTrigger::new());
        let signals = Self { stop: stop.listen(), hurry: hurry.listen() };
        Tasks::current().spawn("signals", async move {
            shutdown.wait().await;
            stop.start();
            shutdown.wait().await;
            hurry.start();
        });
        Ok(signals)
    }
}

/// Runs the demo. Must run on the main thread: the kernel binds each child to the thread that started it.
pub(crate) async fn run(args: &DemoArgs) -> Result<(), Failure> {
    let signals = Signals::listen()?;
    let mut builder = tempfile::Builder::new();
    builder.prefix("outrigger-demo-").permissions(std::fs::Permissions::from_mode(0o700));
    let directory =
        builder.tempdir().map_err(|error| Failure::job(format!("cannot make a directory: {error}")))?;
    let result = session(args, &directory, &signals).await;
    let interrupted = signals.stop.started() && !args.keep;
    if args.keep || (result.is_err() && !interrupted) {
        let kept = directory.keep();
        output::say(&format!("Logs, configuration and data are kept in {}", kept.display()));
    }
    result
}

async fn session(args: &DemoArgs, directory: &TempDir, signals: &Signals) -> Result<(), Failure> {
    let progress = Progress::new();
    let begin = Instant::now();
    let seed = args.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    let chaos = args.chaos.then(|| Chaos { policy: chaos::policy::resource(false), seed });
    let mut mesh = tokio::select! {
        biased;
        // What has been started ends with the future that holds it.
        () = signals.stop.signalled() => return Err(Failure::job("interrupted before the mesh was up")),
        started = Mesh::start(directory.path(), args.replicas, chaos, &progress) => started?,
    };
    progress.clear();
    let outcome = tokio::select! {
        biased;
        () = signals.hurry.signalled() => Err(Failure::job("interrupted")),
        outcome = lead((args, seed), &mut mesh, begin.elapsed(), signals) => outcome,
    };
    progress.show("ending every process ...");
    mesh.stop(&signals.hurry).await;
    outcome
}

/// What happens between the mesh coming up and going down.
async fn lead(
    (args, seed): (&DemoArgs, u64),
    mesh: &mut Mesh,
    up_after: Duration,
    signals: &Signals,
) -> Result<(), Failure> {
    announce(args, mesh, up_after)?;
    let duration = match (args.duration, args.keep) {
        (Some(duration), _) => Some(duration),
        (None, true) => None,
        (None, false) if args.output == Output::Text && output::on_terminal() => None,
        (None, false) => Some(DEFAULT_DURATION),
    };
    if args.rate == 0 {
        let limit = if args.keep { None } else { duration };
        stay_up(mesh, limit, &signals.stop).await?;
        if !args.keep && args.output == Output::Json {
            output::print_json(&Summary::without_load())?;
        }
        return Ok(());
    }
    let summary = load_and_judge(args, mesh, (duration, seed), signals).await?;
    let silent = args.keep && args.duration.is_none() && args.output == Output::Json;
    if !silent {
        match args.output {
            Output::Json => output::print_json(&summary)?,
            Output::Text => output::print(&format!("\n{}", summary.words()))?,
        }
    }
    if args.keep {
        stay_up(mesh, None, &signals.stop).await?;
    }
    match summary.failed_judgements() {
        [] => Ok(()),
        _ if silent => Ok(()),
        failed => Err(Failure::job(format!("the mesh did not do its job: {}", failed.join("; ")))),
    }
}

/// Says that the mesh is up and, with `--keep`, where.
fn announce(args: &DemoArgs, mesh: &Mesh, up_after: Duration) -> Result<(), Failure> {
    match (args.output, args.keep) {
        (Output::Json, true) => output::print_json(&mesh.addresses())?,
        (Output::Json, false) => {}
        (Output::Text, keep) => {
            let seconds = up_after.as_secs_f64();
            output::print_line(&format!(
                "A registry, {} replicas of the order service and a storefront, each with its own sidecar: up after {seconds:.1} s.",
                mesh.orders.len()
            ))?;
            output::print_line(&format!("  registry    http://{}/v1/services", mesh.registry_at.http))?;
            output::print_line(&format!("  storefront  http://{}/orders", mesh.storefront.app_at))?;
            if args.chaos {
                output::print_line(&format!("  policy      {}", chaos::policy::words()))?;
            }
            if keep {
                output::print(&mesh.words())?;
            }
            output::print_line("")?;
        }
    }
    Ok(())
}

/// Leaves the mesh up until `stop`, or for so long. A process that ends meanwhile is an error.
async fn stay_up(mesh: &mut Mesh, limit: Option<Duration>, stop: &Drain) -> Result<(), Failure> {
    let over = async {
        match limit {
            Some(limit) => sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = stop.signalled() => Ok(()),
        () = over => Ok(()),
        death = watch_over(mesh) => Err(death),
    }
}

/// Returns when a process has ended unasked.
async fn watch_over(mesh: &mut Mesh) -> Failure {
    loop {
        if let Some(death) = mesh.death() {
            return death;
        }
        sleep(ALIVE_EVERY).await;
    }
}

async fn load_and_judge(
    args: &DemoArgs,
    mesh: &mut Mesh,
    (duration, seed): (Option<Duration>, u64),
    signals: &Signals,
) -> Result<Summary, Failure> {
    let load = Load::new(mesh.storefront.app_at);
    let (observer, incidents) = (Observer::new(mesh), Incidents::default());
    // Seeds of the load itself are `seed` and the one after; this is another.
    load.make_first_orders(&mut Rng::with_seed(!seed)).await?;
    observer.look().await;
    let (counts_before, edge_before) = (observer.totals(), observer.edge());

    let table =
        (args.output == Output::Text && output::on_terminal()).then(|| Table::new(args.rate, &observer));
    let sent_for = under_load(
        args,
        mesh,
        &Run { stage: Stage { load: &load, observer: &observer, incidents: &incidents }, duration, seed },
        table,
        &signals.stop,
    )
    .await?;

    let progress = Progress::new();
    progress.show("reading a trace back ...");
    let tally = load.tally().clone();
    let trace = trace::read_back(mesh.registry_at.http, &tally.traces()).await;
    settle(&observer, counts_before.outbound + load::as_float(tally.succeeded)).await;
    let facts = Facts {
        tally: &tally,
        rate: args.rate,
        seed,
        sent_for,
        planned: duration,
        totals: observer.totals(),
        during: observer.totals().since(counts_before),
        edge: observer.edge().since(&edge_before),
        served: observer.served(),
        traces_exported: observer.client().spans,
        trace,
        chaos: args.chaos.then(|| incidents.all()),
    };
    Ok(Summary::new(&facts))
}

struct Run<'a> {
    stage: Stage<'a>,
    duration: Option<Duration>,
    seed: u64,
}

/// Sends the load, looks at the sidecars and breaks things, all at once, until the load is over.
/// Returns how long requests were sent.
async fn under_load(
    args: &DemoArgs,
    mesh: &mut Mesh,
    run: &Run<'_>,
    mut table: Option<Table>,
    stop: &Drain,
) -> Result<Duration, Failure> {
    let Stage { load, observer, incidents } = run.stage;
    let over = DrainTrigger::new();
    let end = over.listen();
    let sending = async {
        let sent_for = load.run(args.rate, run.duration, run.seed, stop).await?;
        over.start();
        Ok(sent_for)
    };
    let progress = Progress::new();
    let looking = async {
        let start = Instant::now();
        while !end.started() {
            tokio::select! {
                () = end.signalled() => {}
                () = sleep(LOOK_EVERY) => {}
            }
            observer.look().await;
            match &mut table {
                Some(table) => table.draw(load, observer, incidents),
                None => progress.show(&format!(
                    "load: {} s, {} requests ...",
                    start.elapsed().as_secs(),
                    load.tally().issued
                )),
            }
        }
        Ok(())
    };
    let disturbing = async {
        if args.chaos {
            chaos::run(mesh, run.stage, (run.duration, run.seed), &end).await?;
        }
        tokio::select! {
            () = end.signalled() => Ok(()),
            death = watch_over(mesh) => Err(death),
        }
    };
    let (sent_for, (), ()) = tokio::try_join!(sending, looking, disturbing)?;
    Ok(sent_for)
}

/// Waits until the sidecars have counted what the client saw: an answer is there a moment before it
/// is counted.
async fn settle(observer: &Observer, expected: f64) {
    let deadline = Instant::now() + COUNT_LIMIT;
    loop {
        observer.look().await;
        let totals = observer.totals();
        if (totals.outbound >= expected && totals.inbound >= totals.outbound) || Instant::now() >= deadline {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Whether a server on this machine says it is ready.
async fn is_ready(address: std::net::SocketAddr) -> bool {
    matches!(http::get(address, "/ready").await, Ok((StatusCode::OK, _)))
}
