//! What is broken and when: a pure function of the load's length, the number of replicas and the seed.

use std::time::Duration;

use fastrand::Rng;
use serde::Serialize;

use super::super::relay::{FAILING, SLOW_BY};
use super::policy::{DELAYED, DELAYED_BY_MS};

/// Time for one fault and the calm after it: long enough for attempts of a second to time out, short
/// enough for each kind once in 20 s.
const SHORTEST: Duration = Duration::from_millis(2850);
/// What a person can follow.
const LONGEST: Duration = Duration::from_secs(5);
/// When in its slot a fault begins and ends, in hundredths of it.
const BREAK: u32 = 20;
const MEND: u32 = 80;

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(in crate::demo) enum Kind {
    /// Application and sidecar of a replica are killed; mended by starting them again.
    Killed,
    /// A replica answers most requests with 503.
    Errors,
    /// The client's sidecar holds some calls back, as a policy says.
    Delay,
    /// The registry is killed; mended by starting it again.
    Registry,
    /// A replica takes requests and answers none (SIGSTOP).
    Frozen,
    /// A replica answers late.
    Slow,
    /// A replica breaks connections instead of answering.
    Reset,
}

/// The order, the same every time. `Delay` needs a registry that sidecars are connected to, so it
/// comes before `Registry`.
const ROUND: [Kind; 7] =
    [Kind::Killed, Kind::Errors, Kind::Delay, Kind::Registry, Kind::Frozen, Kind::Slow, Kind::Reset];

impl Kind {
    /// Whether a replica is broken, rather than the registry or nothing at all.
    pub(super) fn is_about_a_replica(self) -> bool {
        !matches!(self, Self::Delay | Self::Registry)
    }

    /// What happens, as a sentence about `target`.
    pub(in crate::demo) fn words(self, target: &str) -> String {
        match self {
            Self::Killed => format!("{target} killed, application and sidecar"),
            Self::Errors => format!("{target} answers {FAILING} % of its requests with 503"),
            Self::Delay => {
                format!("policy: {DELAYED} % of the calls held back {DELAYED_BY_MS} ms at {target}")
            }
            Self::Registry => "the registry killed".to_owned(),
            Self::Frozen => format!("{target} frozen: takes requests, answers none"),
            Self::Slow => format!("{target} answers {} ms late", SLOW_BY.as_millis()),
            Self::Reset => format!("{target} breaks connections instead of answering"),
        }
    }

    /// The same for a column.
    pub(in crate::demo) fn short(self, target: &str) -> String {
        match self {
            Self::Killed => format!("{target} killed"),
            Self::Errors => format!("{target} {FAILING} % 503"),
            Self::Delay => format!("delay {DELAYED} % {DELAYED_BY_MS} ms"),
            Self::Registry => "registry killed".to_owned(),
            Self::Frozen => format!("{target} frozen"),
            Self::Slow => format!("{target} {} ms late", SLOW_BY.as_millis()),
            Self::Reset => format!("{target} resets"),
        }
    }
}

/// One fault, in time from the beginning of the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) kind: Kind,
    /// Index of the replica it is about, where it is about one.
    pub(super) replica: usize,
    pub(super) break_at: Duration,
    pub(super) mend_at: Duration,
}

/// How many faults before this one are about a replica: so each hits another replica, as late as may
/// be after the last that hit the same, while the balancer does not avoid it any more.
fn earlier_replicas(index: usize) -> usize {
    let (rounds, rest) = (index / ROUND.len(), index % ROUND.len());
    let of = |kinds: &[Kind]| kinds.iter().filter(|kind| kind.is_about_a_replica()).count();
    rounds * of(&ROUND) + of(&ROUND[..rest])
}

/// Every fault of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    slot: Duration,
    /// Faults that fit; `None` without an end.
    count: Option<u32>,
    replicas: usize,
    first: usize,
}

impl Plan {
    /// Faults for a load of `duration`, or without an end. A load too short for one has one,
    /// squeezed into it. Two faults in a row are never about the same of two or more replicas.
    pub(super) fn new(duration: Option<Duration>, replicas: usize, seed: u64) -> Self {
        let kinds = u32::try_from(ROUND.len()).expect("seven is a small number");
        let slot =
            duration.map_or(LONGEST, |duration| (duration / kinds).clamp(SHORTEST, LONGEST).min(duration));
        let fitting =
            duration.map(|duration| duration.as_nanos().checked_div(slot.as_nanos()).unwrap_or_default());
        Self {
            slot,
            count: fitting.map(|fitting| u32::try_from(fitting).unwrap_or(u32::MAX)),
            replicas,
            first: Rng::with_seed(seed).usize(..replicas),
        }
    }

    /// The fault of this number, if it fits.
    pub(super) fn slot(&self, index: usize) -> Option<Slot> {
        let number = u32::try_from(index).ok()?;
        if self.count.is_some_and(|count| number >= count) {
            return None;
        }
        let at = |hundredths: u32| self.slot * number + self.slot * hundredths / 100;
        Some(Slot {
            kind: ROUND[index % ROUND.len()],
            replica: (self.first + earlier_replicas(index)) % self.replicas,
            break_at: at(BREAK),
            mend_at: at(MEND),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(seconds: u64, replicas: usize, seed: u64) -> Vec<Slot> {
        let plan = Plan::new(Some(Duration::from_secs(seconds)), replicas, seed);
        (0..).map_while(|number| plan.slot(number)).collect()
    }

    #[test]
    fn twenty_seconds_hold_each_kind_once_and_a_minute_more() {
        let kinds: Vec<_> = all(20, 3, 1).into_iter().map(|slot| slot.kind).collect();
        assert_eq!(kinds, ROUND);
        assert_eq!(all(60, 3, 1).len(), 12);
        assert_eq!(all(8, 3, 1).len(), 2);
        assert_eq!(all(1, 3, 1).len(), 1);
        assert!(Plan::new(None, 3, 1).slot(100_000).is_some());
    }

    #[test]
    fn faults_come_one_after_the_other_within_the_load() {
        for _ in 0..200 {
            let seed = fastrand::u64(..);
            let mut rng = Rng::with_seed(seed);
            let (seconds, replicas) = (rng.u64(1..200), rng.usize(2..9));
            let slots = all(seconds, replicas, seed);
            assert_eq!(slots, all(seconds, replicas, seed), "seed {seed}");
            let mut end = Duration::ZERO;
            for slot in &slots {
                assert!(end < slot.break_at && slot.break_at < slot.mend_at, "seed {seed}: {slots:?}");
                assert!(slot.replica < replicas);
                end = slot.mend_at;
            }
            assert!(!slots.is_empty() && end < Duration::from_secs(seconds), "seed {seed}: {slots:?}");
            let hit: Vec<_> =
                slots.iter().filter(|slot| slot.kind.is_about_a_replica()).map(|slot| slot.replica).collect();
            assert!(hit.windows(2).all(|pair| pair[0] != pair[1]), "seed {seed}: {hit:?}");
        }
    }
}
