//! The course of the measurement: start, rest, changes, restarts.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use outrigger_api::v1;
use outrigger_api::v1::registration_client::RegistrationClient;
use outrigger_common::tasks::Tasks;
use serde::Serialize;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::transport::Channel;

use super::identity;
use super::plan::Plan;
use super::process::{Registry, Usage, usage};
use super::sidecar::{Fleet, Sidecar, registration};
use super::tally::{Counted, Stage, Tally};
use super::view::{Wanted, workload_id};

/// Longest time until a fleet has settled.
const SETTLE_LIMIT: Duration = Duration::from_secs(300);
const CHANGE_LIMIT: Duration = Duration::from_secs(60);
/// At rest for so long.
const REST: Duration = Duration::from_secs(10);
/// Before each change that is timed.
const QUIET: Duration = Duration::from_secs(1);
/// Numbers of the probes' workloads, above every sidecar's.
const PROBES: u32 = 4_000_000;

/// What is to be done.
pub(super) struct Course {
    pub(super) plan: Plan,
    pub(super) binary: PathBuf,
    pub(super) directory: PathBuf,
    pub(super) lease_ttl: Duration,
    /// Sidecars a second.
    pub(super) start_rate: usize,
    pub(super) changes: usize,
    pub(super) restarts: usize,
}

/// What was measured.
#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) start: Settling,
    pub(super) rest: Rest,
    pub(super) changes: Vec<Change>,
    pub(super) removal: Removal,
    pub(super) restarts: Vec<Settling>,
    /// The fleet's own process, for comparison.
    pub(super) fleet: Usage,
}

/// From the start of a registry to the last sidecar that settled.
#[derive(Debug, Serialize)]
pub(super) struct Settling {
    /// Until the registry said that it serves.
    pub(super) ready_s: f64,
    /// Until the last sidecar had a stream.
    pub(super) watching_s: f64,
    /// Until the last sidecar knew all its services and had its lease.
    pub(super) settled_s: f64,
    pub(super) registry: Usage,
    pub(super) counted: Counted,
}

/// The registry while nothing changes but leases that are renewed.
#[derive(Debug, Serialize)]
pub(super) struct Rest {
    pub(super) registry: Usage,
    /// CPU seconds a second.
    pub(super) cpu_rate: f64,
    pub(super) fleet_cpu_rate: f64,
}

/// Changes of one kind.
#[derive(Debug, Serialize)]
pub(super) struct Change {
    pub(super) kind: &'static str,
    pub(super) subscribers: usize,
    /// From the request to the acknowledgement of the last subscriber, in order.
    pub(super) last_ack_s: Vec<f64>,
    /// Of the registry, above what it uses at rest.
    pub(super) cpu_s_per_change: f64,
}

/// A removal that waits until everyone knows.
#[derive(Debug, Serialize)]
pub(super) struct Removal {
    pub(super) subscribers: u32,
    pub(super) acknowledged: u32,
    pub(super) answered_s: f64,
}

/// Measures.
///
/// # Errors
/// What kept it from being measured.
pub(super) async fn run(course: &Course) -> anyhow::Result<Measured> {
    let begun = Instant::now();
    let mut registry = Registry::start(&course.binary, &course.directory, course.lease_ttl).await?;
    let ready = begun.elapsed();
    let plan = course.plan;
    let mut identities = identity::join(&registry, &plan).await?;
    let fleet = Arc::new(Fleet {
        plan,
        registry: registry.grpc(),
        identities: identities.iter().map(identity::connector).collect::<Result<_, _>>()?,
        tally: Tally::new(plan.endpoints_by_service(), plan.sidecars),
        tasks: Tasks::current(),
    });
    let say = |text: String| eprintln!("{:7.1} s  {text}", begun.elapsed().as_secs_f64());
    say(format!("registry ready; {} sidecars start", plan.sidecars));
    let started = Instant::now();
    for number in 0..plan.sidecars {
        sleep_until(started + Duration::from_secs_f64(number as f64 / course.start_rate as f64)).await;
        let sidecar = Sidecar::new(fleet.clone(), number);
        fleet.tasks.spawn("sidecar", sidecar.run());
    }
    let start = settle(&fleet, &registry, started, ready).await?;
    say(format!("settled after {:.1} s: {:?}", start.settled_s, start.counted.errors));
    let rest = rest(&registry).await?;
    say(format!("at rest: {:.0} MiB, {:.2} CPU", rest.registry.resident_mib, rest.cpu_rate));
    let probes = Probes {
        fleet: &fleet,
        registry: &registry,
        client: RegistrationClient::new(identity::channel(&registry, identities.swap_remove(0))?),
        cpu_at_rest: rest.cpu_rate,
        repeats: course.changes,
    };
    let (changes, removal) = probes.run().await?;
    say("changes timed".to_owned());
    let mut restarts = Vec::new();
    for _ in 0..course.restarts {
        restarts.push(restart(&fleet, &mut registry).await?);
        let last = restarts.last().context("just pushed")?;
        say(format!("settled {:.1} s after a restart: {:?}", last.settled_s, last.counted.errors));
    }
    Ok(Measured { start, rest, changes, removal, restarts, fleet: usage("self")? })
}

/// Waits until everyone has settled.
async fn settle(
    fleet: &Fleet,
    registry: &Registry,
    since: Instant,
    ready: Duration,
) -> anyhow::Result<Settling> {
    let (tally, all) = (&fleet.tally, fleet.plan.sidecars);
    tally.wait(|| tally.at(Stage::Away) == 0, SETTLE_LIMIT).await;
    let watching = since.elapsed();
    let settled = tally.wait(|| tally.at(Stage::Settled) == all, SETTLE_LIMIT).await;
    let settled_s = since.elapsed().as_secs_f64();
    let counted = tally.take();
    anyhow::ensure!(
        settled,
        "{} of {all} sidecars settled within {SETTLE_LIMIT:?}: {counted:?}",
        tally.at(Stage::Settled)
    );
    Ok(Settling {
        ready_s: ready.as_secs_f64(),
        watching_s: watching.as_secs_f64(),
        settled_s,
        registry: registry.usage()?,
        counted,
    })
}

async fn rest(registry: &Registry) -> anyhow::Result<Rest> {
    // What the start left to do is done first.
    sleep(REST / 2).await;
    let (before, own) = (registry.usage()?, usage("self")?);
    sleep(REST).await;
    let (after, own_after) = (registry.usage()?, usage("self")?);
    Ok(Rest {
        registry: after,
        cpu_rate: (after.cpu_s - before.cpu_s) / REST.as_secs_f64(),
        fleet_cpu_rate: (own_after.cpu_s - own.cpu_s) / REST.as_secs_f64(),
    })
}

/// Kills the registry, starts it again and waits until everyone is back.
async fn restart(fleet: &Fleet, registry: &mut Registry) -> anyhow::Result<Settling> {
    fleet.tally.take();
    registry.kill().await?;
    let killed = Instant::now();
    let tally = &fleet.tally;
    let away = || tally.at(Stage::Away) == fleet.plan.sidecars;
    anyhow::ensure!(tally.wait(away, CHANGE_LIMIT).await, "sidecars hold on to a registry that is gone");
    registry.again().await?;
    settle(fleet, registry, killed, killed.elapsed()).await
}

struct Probes<'a> {
    fleet: &'a Fleet,
    registry: &'a Registry,
    client: RegistrationClient<Channel>,
    cpu_at_rest: f64,
    repeats: usize,
}

/// One step of a probe's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Added,
    Sick,
    Removed,
}

const STEPS: [(Step, &str); 3] =
    [(Step::Added, "added"), (Step::Sick, "health changed"), (Step::Removed, "removed")];

impl Probes<'_> {
    /// Times changes of the service everyone calls, and of an ordinary one.
    async fn run(mut self) -> anyhow::Result<(Vec<Change>, Removal)> {
        let mut changes = Vec::new();
        // A connection of its own is made first, outside the measurement.
        let warm = self.register(PROBES, 0).await?;
        self.fleet.tally.wait(|| false, Duration::from_secs(1)).await;
        let removal = self.removal(warm).await?;
        let mut services = vec![0];
        services.extend((self.fleet.plan.services > 1).then_some(1));
        for service in services {
            let subscribers = self.fleet.plan.watchers(service);
            let mut times: [(Vec<f64>, f64); 3] = Default::default();
            for repeat in 0..self.repeats {
                let number = PROBES + 1 + u32::try_from(repeat)?;
                let mut lease = String::new();
                for ((step, _), (times, cpu)) in STEPS.into_iter().zip(&mut times) {
                    let (took, used) = self.step(step, number, service, &mut lease).await?;
                    times.push(took);
                    *cpu += used;
                }
            }
            for ((_, kind), (mut last_ack_s, cpu)) in STEPS.into_iter().zip(times) {
                last_ack_s.sort_by(f64::total_cmp);
                let cpu_s_per_change = cpu / self.repeats.max(1) as f64;
                changes.push(Change { kind, subscribers, last_ack_s, cpu_s_per_change });
            }
        }
        Ok((changes, removal))
    }

    /// Returns how long a step took until the last acknowledgement, and the CPU it cost.
    async fn step(
        &mut self,
        step: Step,
        number: u32,
        service: usize,
        lease: &mut String,
    ) -> anyhow::Result<(f64, f64)> {
        let healthy = match step {
            Step::Added => Some(true),
            Step::Sick => Some(false),
            Step::Removed => None,
        };
        let watchers = self.fleet.plan.watchers(service);
        // One change, not many in a row: those would be told together.
        sleep(QUIET).await;
        let before = self.registry.usage()?.cpu_s;
        let begun = Instant::now();
        self.fleet.tally.expect(Wanted { workload: number, healthy }, watchers);
        match step {
            Step::Added => *lease = self.register(number, service).await?,
            Step::Sick => {
                let request = v1::RenewRequest { lease: lease.clone(), healthy: vec![false] };
                self.client.renew(request).await?;
            }
            Step::Removed => {
                let request = v1::DeregisterRequest { lease: lease.clone(), wait_ms: 0 };
                self.client.deregister(request).await?;
            }
        }
        let last = self.fleet.tally.seen(CHANGE_LIMIT).await?;
        // The clock of the CPU ticks a hundred times a second: what follows the last one counts as well.
        sleep(Duration::from_millis(200)).await;
        let cpu = self.registry.usage()?.cpu_s - before;
        let at_rest = self.cpu_at_rest * begun.elapsed().as_secs_f64();
        Ok((last.duration_since(begun).as_secs_f64(), (cpu - at_rest).max(0.0)))
    }

    async fn register(&mut self, number: u32, service: usize) -> anyhow::Result<String> {
        let answer = self.client.register(registration(number, vec![service])).await;
        Ok(answer.with_context(|| workload_id(number))?.into_inner().lease)
    }

    /// A removal as a sidecar that stops makes it: the registry waits for the acknowledgements.
    async fn removal(&mut self, lease: String) -> anyhow::Result<Removal> {
        let begun = Instant::now();
        let request = v1::DeregisterRequest { lease, wait_ms: 30_000 };
        let answer = self.client.deregister(request).await?.into_inner();
        Ok(Removal {
            subscribers: answer.subscribers,
            acknowledged: answer.acknowledged,
            answered_s: begun.elapsed().as_secs_f64(),
        })
    }
}
