//! The writer: the one thread that changes the store.
//!
//! It takes what is queued, checks each transaction against the state with the earlier ones of the
//! batch over it, writes the batch with one sync, and only then lets memory, watchers and callers
//! know. The ends of leases are transactions of its own.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use prometheus::IntCounter;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::file::{Batch, Disk, Loaded};
use super::{Inner, Shared};
use crate::metrics::Metrics;
use crate::store::{Change, Condition, Entry, LeaseId, Op, Revision, StoreError, Transaction, Txn};

/// Transactions written with one sync.
const MAX_BATCH: usize = 256;
/// After a failure the disk is left alone for so long: opening the file again reads all of it.
const RETRY: Duration = Duration::from_secs(1);

type Reply = oneshot::Sender<Result<Revision, StoreError>>;

pub(super) struct Command {
    pub(super) work: Work,
    pub(super) _place: OwnedSemaphorePermit,
}

pub(super) enum Work {
    Commit(Txn, Reply),
    Revoke(LeaseId, Reply),
    /// A lease was made: look at the clock again.
    Wake,
}

pub(super) struct Writer {
    shared: Arc<Shared>,
    disk: Disk,
    spell: Option<Spell>,
    errors: IntCounter,
    expired: IntCounter,
}

/// The disk refuses: from the first failure to the next write that succeeds.
#[derive(Clone)]
struct Spell {
    error: StoreError,
    retry_at: Instant,
}

/// A transaction checked and numbered, not yet written.
struct Staged {
    revision: Revision,
    changes: Vec<Change>,
    ends: Option<LeaseId>,
    reply: Option<Reply>,
}

/// The batch in the making.
struct Stage {
    revision: Revision,
    overlay: HashMap<Arc<str>, Option<Entry>>,
    staged: Vec<Staged>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, disk: Disk, metrics: &Metrics) -> Self {
        let (errors, expired) = (metrics.store_errors.clone(), metrics.leases_expired.clone());
        Self { shared, disk, spell: None, errors, expired }
    }

    /// Works until every sender is gone and the queue is empty.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let first = match self.next_look(Instant::now()) {
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(wait) => commands.recv_timeout(wait),
            };
            if matches!(first, Err(RecvTimeoutError::Disconnected)) {
                return;
            }
            let batch = first.into_iter().chain(commands.try_iter().take(MAX_BATCH - 1)).collect();
            self.shared.lock().leases.slept(slept());
            self.turn(batch, Instant::now());
        }
    }

    /// How long until leases must be looked at; none while there are none.
    fn next_look(&self, now: Instant) -> Option<Duration> {
        let wait = self.shared.lock().leases.next_look(now)?;
        let pause = self.spell.as_ref().map(|spell| spell.retry_at.saturating_duration_since(now));
        Some(wait.max(pause.unwrap_or_default()))
    }

    /// Writes a batch and the ends of leases that are due; in a spell's pause refuses instead.
    fn turn(&mut self, batch: Vec<Command>, now: Instant) {
        if let Some(spell) = self.spell.as_ref().filter(|spell| now < spell.retry_at) {
            return self.refuse(batch, spell, now);
        }
        if let Err(error) = self.recover() {
            let spell = self.fail(error, now);
            return self.refuse(batch, &spell, now);
        }
        let stage = self.stage(batch, now);
        self.write(stage, now);
    }

    fn refuse(&self, batch: Vec<Command>, spell: &Spell, now: Instant) {
        let mut inner = self.shared.lock();
        // Leases are kept all the while, so this is no absence; those due stay due.
        inner.leases.look(now);
        for command in batch {
            if let Work::Revoke(lease, _) = &command.work {
                inner.leases.cancel_ending(*lease, spell.retry_at);
            }
            if let Work::Commit(_, reply) | Work::Revoke(_, reply) = command.work {
                let _gone = reply.send(Err(spell.error.clone()));
            }
        }
    }

    /// Counts a failure, and says so when it is the first of its spell.
    fn fail(&mut self, error: StoreError, now: Instant) -> Spell {
        self.errors.inc();
        if self.spell.is_none() {
            tracing::error!(%error, "store write failed; free space or mend the disk: the registry goes on with what it has, and tries again");
        }
        self.spell.insert(Spell { error, retry_at: now + RETRY }).clone()
    }

    /// Checks and numbers a batch; answers at once what needs no write.
    fn stage(&self, batch: Vec<Command>, now: Instant) -> Stage {
        let mut inner = self.shared.lock();
        let ended = inner.leases.look(now);
        let mut stage = Stage { revision: inner.revision, overlay: HashMap::new(), staged: Vec::new() };
        for command in batch {
            match command.work {
                Work::Wake => {}
                Work::Commit(txn, reply) => stage.commit(&inner, txn, reply),
                Work::Revoke(lease, reply) if inner.leases.start_ending(lease) => {
                    stage.end(&inner, lease, Some(reply));
                }
                Work::Revoke(lease, reply) => _ = reply.send(Err(StoreError::LeaseGone(lease))),
            }
        }
        for lease in ended {
            if inner.leases.start_ending(lease) {
                stage.end(&inner, lease, None);
            }
        }
        stage
    }

    /// Writes a batch, then publishes it; a failed write leaves everything as it was.
    fn write(&mut self, stage: Stage, now: Instant) {
        if stage.staged.is_empty() {
            return;
        }
        if let Err(error) = self.disk.write(&self.batch(&stage)) {
            let Spell { error, retry_at } = self.fail(self.shared.unavailable(&error), now);
            let mut inner = self.shared.lock();
            for staged in stage.staged {
                if let Some(lease) = staged.ends {
                    inner.leases.cancel_ending(lease, retry_at);
                }
                if let Some(reply) = staged.reply {
                    let _gone = reply.send(Err(error.clone()));
                }
            }
            return;
        }
        if self.spell.take().is_some() {
            tracing::info!("store can be written again");
        }
        let mut inner = self.shared.lock();
        let mut replies = Vec::new();
        for staged in stage.staged {
            // A lease without keys is one that its holder replaced.
            if staged.reply.is_none() && !staged.changes.is_empty() {
                self.expired.inc();
                let keys: Vec<_> = staged.changes.iter().map(|change| &*change.key).collect();
                tracing::warn!(?keys, "lease expired: not renewed within its time");
            }
            inner.apply(staged.revision, staged.changes, staged.ends);
            replies.extend(staged.reply.map(|reply| (reply, staged.revision)));
        }
        let revision = inner.revision;
        drop(inner);
        self.shared.revision.send_replace(revision);
        for (reply, revision) in replies {
            let _gone = reply.send(Ok(revision));
        }
    }

    fn batch<'a>(&self, stage: &'a Stage) -> Batch<'a> {
        let inner = self.shared.lock();
        let changes: Vec<_> = stage.staged.iter().flat_map(|staged| &staged.changes).collect();
        let leases = changes.iter().filter_map(|change| change.after.as_ref()?.lease);
        let attached: HashMap<LeaseId, Duration> =
            leases.filter_map(|lease| Some((lease, inner.leases.ttl(lease)?))).collect();
        Batch {
            revision: stage.revision,
            attached: attached.into_iter().collect(),
            ended: stage.staged.iter().filter_map(|staged| staged.ends).collect(),
            changes,
        }
    }

    /// Opens the file again after a failed write. A write that failed may still have reached the
    /// disk; what it changed is then published as one transaction.
    fn recover(&mut self) -> Result<(), StoreError> {
        let loaded = self.disk.reopen().map_err(|error| self.shared.unavailable(&error))?;
        let Some(Loaded { revision, entries, leases, .. }) = loaded else { return Ok(()) };
        let mut inner = self.shared.lock();
        if revision == inner.revision {
            return Ok(());
        }
        let now = Instant::now();
        for (lease, ttl) in leases {
            if inner.leases.ttl(lease).is_none() {
                inner.leases.grant(lease, ttl, now);
            }
        }
        let gone = inner.entries.values().filter(|entry| !entries.contains_key(&entry.key));
        let mut changes: Vec<_> = gone
            .map(|entry| Change { key: entry.key.clone(), before: Some(entry.clone()), after: None })
            .collect();
        for entry in entries.into_values() {
            let before = inner.entries.get(&entry.key).cloned();
            if before.as_ref() != Some(&entry) {
                changes.push(Change { key: entry.key.clone(), before, after: Some(entry) });
            }
        }
        inner.resume(revision, changes);
        drop(inner);
        self.shared.revision.send_replace(revision);
        Ok(())
    }
}

/// How long this machine has been suspended since it was started: `CLOCK_BOOTTIME` counts that time,
/// `CLOCK_MONOTONIC` does not (clock_gettime(2)).
fn slept() -> Duration {
    let read = |clock| {
        let time = clock_gettime(clock);
        Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
    };
    let awake = read(ClockId::Monotonic);
    read(ClockId::Boottime).saturating_sub(awake)
}

impl Shared {
    fn unavailable(&self, error: &dyn std::error::Error) -> StoreError {
        StoreError::Unavailable {
            place: self.place.clone(),
            cause: outrigger_common::telemetry::chain(error),
        }
    }
}

impl Inner {
    /// Makes a written transaction visible.
    fn apply(&mut self, revision: Revision, changes: Vec<Change>, ends: Option<LeaseId>) {
        for change in &changes {
            if let Some(lease) = change.before.as_ref().and_then(|entry| entry.lease) {
                self.leases.detach(lease, &change.key);
            }
            match &change.after {
                None => _ = self.entries.remove(&change.key),
                Some(entry) => {
                    if let Some(lease) = entry.lease {
                        self.leases.attach(lease, change.key.clone());
                    }
                    self.entries.insert(change.key.clone(), entry.clone());
                }
            }
        }
        if let Some(lease) = ends {
            self.leases.remove(lease);
        }
        self.revision = revision;
        if !changes.is_empty() {
            self.history.push(Arc::new(Transaction { revision, changes }));
        }
    }

    /// Makes what was found on disk visible. Revisions were skipped, so watchers start over.
    fn resume(&mut self, revision: Revision, changes: Vec<Change>) {
        self.apply(revision, changes, None);
        self.history = super::History::default();
    }
}

impl Stage {
    fn current<'a>(&'a self, inner: &'a Inner, key: &str) -> Option<&'a Entry> {
        self.overlay.get(key).map_or_else(|| inner.entries.get(key), Option::as_ref)
    }

    fn commit(&mut self, inner: &Inner, txn: Txn, reply: Reply) {
        if let Err(error) = self.check(inner, &txn) {
            let _gone = reply.send(Err(error));
            return;
        }
        let revision = self.revision + 1;
        let mut changes: Vec<Change> = Vec::with_capacity(txn.ops.len());
        for op in txn.ops {
            let (key, after): (Arc<str>, _) = match op {
                Op::Delete(key) => (key.into(), None),
                Op::Put { key, value, lease } => {
                    let key: Arc<str> = key.into();
                    (key.clone(), Some(Entry { key, value, revision, lease }))
                }
            };
            let before = self.current(inner, &key).cloned();
            if before.is_some() || after.is_some() {
                self.overlay.insert(key.clone(), after.clone());
                changes.push(Change { key, before, after });
            }
        }
        self.push(changes, None, Some(reply));
    }

    fn check(&self, inner: &Inner, txn: &Txn) -> Result<(), StoreError> {
        for condition in &txn.conditions {
            let (key, holds) = match condition {
                Condition::Absent(key) => (key, self.current(inner, key).is_none()),
                Condition::Unchanged(key, revision) => {
                    (key, self.current(inner, key).is_some_and(|entry| entry.revision == *revision))
                }
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !inner.leases.is_live(*lease)
            {
                return Err(StoreError::LeaseGone(*lease));
            }
        }
        Ok(())
    }

    /// Stages the end of a lease with every key attached to it, in this batch too.
    fn end(&mut self, inner: &Inner, lease: LeaseId, reply: Option<Reply>) {
        let staged = self.overlay.values().flatten().filter(|entry| entry.lease == Some(lease));
        let mut keys: Vec<Arc<str>> = staged.map(|entry| entry.key.clone()).collect();
        keys.extend(inner.leases.keys(lease));
        keys.sort_unstable();
        keys.dedup();
        let mut changes = Vec::with_capacity(keys.len());
        for key in keys {
            let before = self.current(inner, &key).filter(|entry| entry.lease == Some(lease)).cloned();
            if before.is_some() {
                self.overlay.insert(key.clone(), None);
                changes.push(Change { key, before, after: None });
            }
        }
        self.push(changes, Some(lease), reply);
    }

    /// A transaction that changes nothing has no revision of its own.
    fn push(&mut self, changes: Vec<Change>, ends: Option<LeaseId>, reply: Option<Reply>) {
        if changes.is_empty() && ends.is_none() {
            if let Some(reply) = reply {
                let _gone = reply.send(Ok(self.revision));
            }
            return;
        }
        self.revision += u64::from(!changes.is_empty());
        self.staged.push(Staged { revision: self.revision, changes, ends, reply });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Store;
    use crate::store::redb::{FILE_NAME, RedbStore, file};

    /// A store whose thread has ended, and a writer in its place that the test drives by hand.
    async fn by_hand(dir: &std::path::Path) -> (RedbStore, Writer) {
        let metrics = Metrics::new();
        let store = RedbStore::open(dir, &metrics).unwrap();
        let mut txn = Txn::default();
        txn.put("a", "1");
        store.commit(txn).await.unwrap();
        store.close();
        let (disk, _) = Disk::open(dir).unwrap();
        let writer = Writer::new(store.shared.clone(), disk, &metrics);
        (store, writer)
    }

    fn put(writer: &mut Writer, key: &str, now: Instant) -> Result<Revision, StoreError> {
        let (reply, mut answer) = oneshot::channel();
        let mut txn = Txn::default();
        txn.put(key, "2");
        let places = Arc::new(tokio::sync::Semaphore::new(1));
        let _place = places.try_acquire_owned().unwrap();
        writer.turn(vec![Command { work: Work::Commit(txn, reply), _place }], now);
        answer.try_recv().unwrap()
    }

    #[tokio::test]
    async fn a_failed_write_loses_nothing_and_the_next_one_opens_the_file_again() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = by_hand(dir.path()).await;
        let now = Instant::now();
        writer.disk.write = |_, _| Err(Box::new(redb::Error::DatabaseClosed));
        let error = put(&mut writer, "b", now).unwrap_err();
        assert!(error.to_string().contains("registry.redb cannot be written"), "{error}");
        assert_eq!(writer.errors.get(), 1);
        assert!(store.entry("b").await.unwrap().is_none() && store.entry("a").await.unwrap().is_some());
        writer.disk.write = file::write;
        assert_eq!(put(&mut writer, "b", now), Err(error), "it is left alone for a while");
        assert_eq!(put(&mut writer, "b", now + RETRY), Ok(2));
        assert!(store.entry("b").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_write_that_panics_is_a_failed_write() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = by_hand(dir.path()).await;
        let now = Instant::now();
        writer.disk.write = |_, _| panic!("a damaged page");
        let error = put(&mut writer, "b", now).unwrap_err();
        assert!(error.to_string().contains("make no sense"), "{error}");
        writer.disk.write = file::write;
        assert_eq!(put(&mut writer, "b", now + RETRY), Ok(2));
        assert!(store.entry("a").await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_disk_that_refuses_is_tried_once_a_second_whatever_is_due() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = by_hand(dir.path()).await;
        let (ttl, lease, begun) = (Duration::from_secs(10), LeaseId(7), Instant::now());
        let entry = Entry { key: "w/1".into(), value: "v".into(), revision: 1, lease: Some(lease) };
        {
            let mut inner = store.shared.lock();
            inner.leases.grant(lease, ttl, begun);
            inner.leases.attach(lease, entry.key.clone());
            inner.entries.insert(entry.key.clone(), entry);
        }
        writer.disk.write = |_, _| Err(Box::new(redb::Error::DatabaseClosed));
        let mut now = begun;
        // Due after ten seconds; then twenty of failing writes, and twenty in which the file is gone.
        let (path, away) = (dir.path().join(FILE_NAME), dir.path().join("away"));
        for (until, attempts) in [(30, 20..=21), (50, 39..=41)] {
            let mut turns = 0;
            while now < begun + Duration::from_secs(until) {
                now += writer.next_look(now).unwrap();
                writer.turn(Vec::new(), now);
                turns += 1;
            }
            assert!(
                turns < 60 && attempts.contains(&writer.errors.get()),
                "{turns}: {}",
                writer.errors.get()
            );
            if path.exists() {
                std::fs::rename(&path, &away).unwrap();
            }
        }
        std::fs::rename(&away, &path).unwrap();
        writer.disk.write = file::write;
        writer.turn(Vec::new(), now + RETRY);
        assert!(writer.spell.is_none() && store.shared.lock().leases.is_empty());
        assert_eq!(store.entry("w/1").await, Ok(None));
    }

    #[tokio::test]
    async fn a_write_that_failed_but_reached_the_disk_is_found_there() {
        let dir = tempfile::tempdir().unwrap();
        let (store, mut writer) = by_hand(dir.path()).await;
        let mut watch = store.watch(2).await.unwrap();
        let entry = Entry { key: "c".into(), value: "3".into(), revision: 2, lease: None };
        let change = Change { key: "c".into(), before: None, after: Some(entry) };
        let batch = Batch { revision: 2, changes: vec![&change], attached: vec![], ended: vec![] };
        writer.disk.write(&batch).unwrap();
        writer.disk.fail();
        writer.recover().unwrap();
        assert_eq!(store.range("", None).await.unwrap().revision, 2);
        assert!(store.entry("c").await.unwrap().is_some());
        assert!(
            matches!(watch.next().await, Err(StoreError::Compacted { .. })),
            "watchers read everything again"
        );
        assert_eq!(put(&mut writer, "d", Instant::now()), Ok(3));
    }
}
