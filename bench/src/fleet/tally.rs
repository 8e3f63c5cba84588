//! What the fleet counts, and what the scenario waits for.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use super::view::{Effect, Wanted};

/// How far a sidecar has come with its registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// It has no watch stream.
    Away,
    /// The registry welcomed it.
    Watching,
    /// It knows all its services in full and the registry has its lease.
    Settled,
}

/// Counters of the whole fleet.
#[derive(Debug)]
pub(super) struct Tally {
    /// What each service has when everything is settled.
    endpoints: Vec<u32>,
    stages: [AtomicUsize; 3],
    probe: Mutex<Option<Probe>>,
    errors: Mutex<BTreeMap<String, u64>>,
    counts: Counts,
    progress: Notify,
}

#[derive(Debug, Default)]
struct Counts {
    updates: AtomicU64,
    full: AtomicU64,
    emptied: AtomicU64,
    removed: AtomicU64,
    resumed: AtomicU64,
    anew: AtomicU64,
    leases_gone: AtomicU64,
}

/// The counters since they were last taken.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct Counted {
    pub(super) updates: u64,
    pub(super) services_in_full: u64,
    pub(super) services_emptied: u64,
    pub(super) endpoints_removed: u64,
    pub(super) streams_resumed: u64,
    pub(super) streams_anew: u64,
    pub(super) leases_gone: u64,
    /// Why connections and streams were lost or not had, by text.
    pub(super) errors: BTreeMap<String, u64>,
}

#[derive(Debug, Clone, Copy)]
struct Probe {
    wanted: Wanted,
    missing: u64,
    last: Instant,
}

impl Tally {
    /// Returns counters of a fleet that is away.
    pub(super) fn new(endpoints: Vec<u32>, sidecars: usize) -> Self {
        Self {
            endpoints,
            stages: [AtomicUsize::new(sidecars), AtomicUsize::new(0), AtomicUsize::new(0)],
            probe: Mutex::default(),
            errors: Mutex::default(),
            counts: Counts::default(),
            progress: Notify::new(),
        }
    }

    pub(super) fn endpoints(&self) -> &[u32] {
        &self.endpoints
    }

    pub(super) fn enter(&self, old: Stage, new: Stage) {
        self.stages[old as usize].fetch_sub(1, Relaxed);
        self.stages[new as usize].fetch_add(1, Relaxed);
        self.progress.notify_one();
    }

    /// Returns how many sidecars are at a stage.
    pub(super) fn at(&self, stage: Stage) -> usize {
        self.stages[stage as usize].load(Relaxed)
    }

    pub(super) fn lost(&self, error: &anyhow::Error) {
        let text: String = format!("{error:#}").chars().take(120).collect();
        *lock(&self.errors).entry(text).or_default() += 1;
    }

    pub(super) fn welcomed(&self, resumed: bool) {
        if resumed { &self.counts.resumed } else { &self.counts.anew }.fetch_add(1, Relaxed);
    }

    pub(super) fn lease_gone(&self) {
        self.counts.leases_gone.fetch_add(1, Relaxed);
    }

    /// Returns what the probe under way waits for.
    pub(super) fn wanted(&self) -> Option<Wanted> {
        lock(&self.probe).map(|probe| probe.wanted)
    }

    /// Counts an update that was acknowledged.
    pub(super) fn updated(&self, effect: &Effect, seen: u64) {
        self.counts.updates.fetch_add(1, Relaxed);
        self.counts.full.fetch_add(effect.full, Relaxed);
        self.counts.emptied.fetch_add(effect.emptied, Relaxed);
        self.counts.removed.fetch_add(effect.removed, Relaxed);
        if seen > 0
            && let Some(probe) = &mut *lock(&self.probe)
        {
            probe.missing = probe.missing.saturating_sub(seen);
            probe.last = Instant::now();
            self.progress.notify_one();
        }
    }

    /// Returns the counters since the last time.
    pub(super) fn take(&self) -> Counted {
        let take = |count: &AtomicU64| count.swap(0, Relaxed);
        Counted {
            updates: take(&self.counts.updates),
            services_in_full: take(&self.counts.full),
            services_emptied: take(&self.counts.emptied),
            endpoints_removed: take(&self.counts.removed),
            streams_resumed: take(&self.counts.resumed),
            streams_anew: take(&self.counts.anew),
            leases_gone: take(&self.counts.leases_gone),
            errors: std::mem::take(&mut *lock(&self.errors)),
        }
    }

    /// Says what is waited for from now on, by so many sidecars.
    pub(super) fn expect(&self, wanted: Wanted, watchers: usize) {
        *lock(&self.probe) = Some(Probe { wanted, missing: watchers as u64, last: Instant::now() });
    }

    /// Waits until everyone has what was expected; returns when the last one acknowledged it.
    ///
    /// # Errors
    /// When it takes longer than the limit.
    pub(super) async fn seen(&self, limit: Duration) -> anyhow::Result<Instant> {
        let missing = || lock(&self.probe).map_or(0, |probe| probe.missing);
        let all = self.wait(|| missing() == 0, limit).await;
        anyhow::ensure!(all, "{} sidecars did not hear of a change within {limit:?}", missing());
        Ok(lock(&self.probe).take().map_or_else(Instant::now, |probe| probe.last))
    }

    /// Waits until a condition holds; returns whether it came to that within the limit.
    pub(super) async fn wait(&self, condition: impl Fn() -> bool, limit: Duration) -> bool {
        let waiting = async {
            while !condition() {
                self.progress.notified().await;
            }
        };
        timeout(limit, waiting).await.is_ok()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
