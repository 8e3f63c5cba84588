//! `--chaos`: what is broken and when, while the load goes on.

use std::time::Duration;

use outrigger_common::drain::Drain;
use serde::Serialize;
use tokio::time::{Instant, sleep_until};

use super::mesh::Mesh;
use super::observer::Observer;
use super::table::Events;
use crate::failure::Failure;

/// One round: a replica goes and comes back, then the registry.
const ROUND: Duration = Duration::from_secs(10);
/// When within a round, in hundredths of it.
const KILL_REPLICA: u32 = 20;
const RESTART_REPLICA: u32 = 35;
const KILL_REGISTRY: u32 = 60;
const RESTART_REGISTRY: u32 = 70;

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Event {
    /// Seconds since the load began.
    pub(super) at_s: f64,
    pub(super) event: String,
}

/// Length of a round: a load shorter than one has one, squeezed into it.
fn round_length(duration: Option<Duration>) -> Duration {
    duration.map_or(ROUND, |duration| duration.min(ROUND))
}

/// Whether there is time for round `number` before the load ends.
fn fits(number: u32, length: Duration, duration: Option<Duration>) -> bool {
    duration.is_none_or(|duration| length * (number + 1) <= duration)
}

/// Breaks and mends until the time is up or `end` starts; always leaves the mesh whole.
pub(super) async fn run(
    mesh: &mut Mesh,
    observer: &Observer,
    events: &Events,
    duration: Option<Duration>,
    end: &Drain,
) -> Result<(), Failure> {
    let start = Instant::now();
    let length = round_length(duration);
    for round in (0..).take_while(|round| fits(*round, length, duration)) {
        let at = |hundredths| start + length * round + length * hundredths / 100;
        let replica = usize::try_from(round).unwrap_or_default() % mesh.orders.len();
        let id = mesh.orders[replica].id.clone();

        if !until(at(KILL_REPLICA), end).await {
            return Ok(());
        }
        observer.look_at(&id).await;
        mesh.kill_replica(replica).await;
        observer.killed(&id);
        events.add(start, format!("killed {id}, application and sidecar"));
        until(at(RESTART_REPLICA), end).await;
        mesh.restart_replica(replica).await?;
        events.add(start, format!("started {id} again"));

        if !until(at(KILL_REGISTRY), end).await {
            return Ok(());
        }
        mesh.kill_registry().await;
        events.add(start, "killed the registry".to_owned());
        until(at(RESTART_REGISTRY), end).await;
        mesh.restart_registry().await?;
        events.add(start, "started the registry again".to_owned());
    }
    Ok(())
}

/// Waits until `at`; returns false when `end` came first.
async fn until(at: Instant, end: &Drain) -> bool {
    tokio::select! {
        biased;
        () = end.signalled() => false,
        () = sleep_until(at) => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_fill_the_load_and_a_short_one_still_has_one() {
        let secs = Duration::from_secs;
        let rounds =
            |duration| (0..100).take_while(|round| fits(*round, round_length(duration), duration)).count();
        assert_eq!(rounds(Some(secs(20))), 2);
        assert_eq!(rounds(Some(secs(29))), 2);
        assert_eq!(rounds(Some(secs(4))), 1);
        assert_eq!(rounds(None), 100);
    }
}
