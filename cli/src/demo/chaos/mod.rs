//! `--chaos`: breaking things and mending them while the load goes on, and writing down what came of it.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`plan`] | what is broken and when |
//! | [`policy`] | what the mesh is told: how to carry calls, and which faults to make itself |
//! | [`incident`] | each fault, what the mesh did and what the client noticed, as data |
//! | [`words`] | the same for people |

mod incident;
mod plan;
pub(super) mod policy;
mod words;

use std::time::Duration;

use outrigger_common::drain::Drain;
use tokio::time::{Instant, sleep_until};

pub(super) use incident::{Incident, Incidents};
use plan::{Kind, Plan, Slot};
pub(super) use words::{live, table};

use super::load::Load;
use super::mesh::Mesh;
use super::observer::Observer;
use super::relay::Illness;
use super::repairs::Repairs;
use crate::failure::Failure;

/// How often it is looked at what the mesh does.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Who looks on, and where it is written down.
#[derive(Clone, Copy)]
pub(super) struct Stage<'a> {
    pub(super) load: &'a Load,
    pub(super) observer: &'a Observer,
    pub(super) incidents: &'a Incidents,
}

/// Breaks and mends, as planned for a load of `duration`, until the plan is done and `end` starts;
/// always leaves the mesh whole.
pub(super) async fn run(
    mesh: &mut Mesh,
    stage: Stage<'_>,
    (duration, seed): (Option<Duration>, u64),
    end: &Drain,
) -> Result<(), Failure> {
    let start = Instant::now();
    let plan = Plan::new(duration, mesh.orders.len(), seed);
    let mut last: Option<Watching> = None;
    for (number, slot) in (0..).map_while(|number| Some((number, plan.slot(number)?))) {
        // What the last fault led to goes on until this one begins.
        if !stage.follow(last.as_ref(), Some(start + slot.break_at), end).await {
            break;
        }
        stage.observer.look().await;
        if let Some(last) = &last {
            stage.note(last);
        }
        let watching = Watching {
            number,
            before: stage.observer.repairs(),
            served: stage.observer.served(),
            since: Instant::now(),
        };
        stage.load.tally().watch();
        stage.incidents.add(Incident::new(slot.kind, target(mesh, slot), start.elapsed()));
        do_break(mesh, stage.observer, slot).await?;
        stage.follow(Some(&watching), Some(start + slot.mend_at), end).await;
        stage.observer.look().await;
        stage.note_share(&watching);
        mend(mesh, slot).await?;
        stage.load.tally().watch_no_more();
        stage.note(&watching);
        stage.incidents.change(|incident| incident.lasted = Some(watching.since.elapsed()));
        last = Some(watching);
    }
    stage.follow(last.as_ref(), None, end).await;
    stage.observer.look().await;
    if let Some(last) = &last {
        stage.note(last);
    }
    // Answers may have come in after the next fault had begun.
    let tally = stage.load.tally().clone();
    stage.incidents.change_all(|number, incident| incident.client = tally.noticed(number));
    Ok(())
}

/// What is compared to tell what a fault led to.
struct Watching {
    number: usize,
    before: Repairs,
    served: Vec<(String, f64)>,
    since: Instant,
}

impl Stage<'_> {
    /// Writes down what the fault watched led to, again and again, until `at` or for ever; returns
    /// false when `end` came first.
    async fn follow(&self, watching: Option<&Watching>, at: Option<Instant>, end: &Drain) -> bool {
        loop {
            let next = Instant::now() + LOOK_EVERY;
            let next = at.map_or(next, |at| at.min(next));
            tokio::select! {
                biased;
                () = end.signalled() => return false,
                () = sleep_until(next) => {}
            }
            if at.is_some_and(|at| at <= Instant::now()) {
                return true;
            }
            if let Some(watching) = watching {
                self.observer.look_at_client().await;
                self.note(watching);
            }
        }
    }

    fn note(&self, watching: &Watching) {
        let repairs = self.observer.repairs().since(&watching.before);
        let client = self.load.tally().noticed(watching.number);
        let since = watching.since.elapsed();
        self.incidents.change(|incident| incident.update(repairs, client, since));
    }

    fn note_share(&self, watching: &Watching) {
        let served = self.observer.served();
        self.incidents.change(|incident| {
            incident.target_share = share_of(&incident.target, &watching.served, &served);
        });
    }
}

/// Which share of what the replicas served between two looks this one did, if it is one of them.
fn share_of(id: &str, before: &[(String, f64)], after: &[(String, f64)]) -> Option<f64> {
    let of = |served: &[(String, f64)]| served.iter().find(|(known, _)| known == id).map(|(_, count)| *count);
    let all = |served: &[(String, f64)]| served.iter().map(|(_, count)| count).sum::<f64>();
    let total = all(after) - all(before);
    (total > 0.0).then_some((of(after)? - of(before)?) / total)
}

/// What a fault is about.
fn target(mesh: &Mesh, slot: Slot) -> String {
    match slot.kind {
        Kind::Registry => "registry".to_owned(),
        Kind::Delay => mesh.storefront.id.clone(),
        _ => mesh.orders[slot.replica].id.clone(),
    }
}

async fn do_break(mesh: &mut Mesh, observer: &Observer, slot: Slot) -> Result<(), Failure> {
    match slot.kind {
        Kind::Killed => {
            let id = mesh.orders[slot.replica].id.clone();
            mesh.kill_replica(slot.replica).await;
            observer.killed(&id);
        }
        Kind::Errors => mesh.make(slot.replica, Illness::Errors).await?,
        Kind::Slow => mesh.make(slot.replica, Illness::Slow).await?,
        Kind::Reset => mesh.make(slot.replica, Illness::Reset).await?,
        Kind::Frozen => mesh.freeze(slot.replica)?,
        Kind::Delay => mesh.apply(&policy::resource(true)).await?,
        Kind::Registry => mesh.kill_registry().await,
    }
    Ok(())
}

async fn mend(mesh: &mut Mesh, slot: Slot) -> Result<(), Failure> {
    match slot.kind {
        Kind::Killed => mesh.restart_replica(slot.replica).await,
        Kind::Errors | Kind::Slow | Kind::Reset => mesh.make(slot.replica, Illness::None).await,
        Kind::Frozen => mesh.thaw(slot.replica),
        Kind::Delay => mesh.apply(&policy::resource(false)).await,
        Kind::Registry => mesh.restart_registry().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_that_of_a_replica_between_two_looks() {
        let served = |one: f64, two: f64| vec![("orders-1".to_owned(), one), ("orders-2".to_owned(), two)];
        assert_eq!(share_of("orders-2", &served(100.0, 50.0), &served(190.0, 60.0)), Some(0.1));
        assert_eq!(share_of("registry", &served(1.0, 1.0), &served(2.0, 2.0)), None);
        assert_eq!(share_of("orders-1", &served(1.0, 1.0), &served(1.0, 1.0)), None);
    }
}
