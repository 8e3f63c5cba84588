//! The embedded store: one redb file, one writer thread.
//!
//! The newest state and the recent transactions are also held in memory, so reads and renewals
//! never touch the disk; the file is what a restart begins from. Writers queue at `writer`, which
//! puts all that is waiting into one synced redb transaction (group commit).

mod file;
mod writer;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, oneshot, watch};

use self::file::{Disk, FILE_NAME, Loaded};
pub use self::file::{OpenError, RestoreError, read, restore};
use self::writer::{Command, Writer};
use super::lease::{Leases, MAX_ATTENDANCE};
use super::{
    Entry, LeaseId, LeaseState, Range, Revision, Snapshot, Store, StoreError, Transaction, Txn, Watch,
};
use crate::metrics::Metrics;

/// Transactions remembered for watchers; a registry of this size is behind by that many at most.
const HISTORY_LIMIT: usize = 4096;
/// Bytes of values those transactions may hold.
const HISTORY_BYTES: usize = 16 << 20;
/// Transactions that may wait for the writer; more wait in their callers.
const QUEUE: usize = 1024;
/// How long nobody must have waited before it is believed that all who wanted to be are connected: the
/// longest pause a sidecar makes between two attempts.
pub const CALM: Duration = Duration::from_secs(5);
/// Longest time for which clients that wait to be connected keep all leases from ending.
pub const LONGEST_CROWD: Duration = Duration::from_secs(60);
/// Transactions handed to a watcher at once: whoever paused takes all that came meanwhile.
const WATCH_BATCH: usize = HISTORY_LIMIT;

/// The store in a data directory. Dropping it stops the writer after what is queued.
pub struct RedbStore {
    shared: Arc<Shared>,
    queue: Mutex<Option<mpsc::SyncSender<Command>>>,
    // As many permits as the queue has places: waiting for one is waiting for a place.
    places: Arc<Semaphore>,
    writer: Mutex<Option<std::thread::JoinHandle<()>>>,
    // The writer holds the sender: an error means that it has ended.
    alive: watch::Receiver<()>,
}

/// What the writer and the readers share.
struct Shared {
    id: String,
    history: String,
    place: String,
    inner: Mutex<Inner>,
    revision: watch::Sender<Revision>,
}

struct Inner {
    revision: Revision,
    entries: BTreeMap<Arc<str>, Entry>,
    leases: Leases,
    history: History,
}

/// Recent transactions, oldest first, without gaps.
#[derive(Default)]
struct History {
    transactions: VecDeque<Arc<Transaction>>,
    bytes: usize,
}

impl History {
    fn push(&mut self, transaction: Arc<Transaction>) {
        self.bytes += size(&transaction);
        self.transactions.push_back(transaction);
        while self.transactions.len() > HISTORY_LIMIT || self.bytes > HISTORY_BYTES {
            let Some(oldest) = self.transactions.pop_front() else { break };
            self.bytes -= size(&oldest);
        }
    }

    /// The first revision that can be read, given the newest.
    fn oldest(&self, newest: Revision) -> Revision {
        self.transactions.front().map_or(newest + 1, |transaction| transaction.revision)
    }
}

fn size(transaction: &Transaction) -> usize {
    let entry = |entry: &Option<Entry>| entry.as_ref().map_or(0, |entry| entry.value.len());
    let change =
        |change: &super::Change| 64 + change.key.len() + entry(&change.before) + entry(&change.after);
    transaction.changes.iter().map(change).sum()
}

impl Shared {
    /// No code panics while it holds this lock; were it to, the data would still be whole.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RedbStore {
    /// Opens the store of a data directory, making both on first use. Every known lease starts over.
    ///
    /// # Errors
    /// When the directory cannot be used, is in use, or holds a file that is not a sound store; the
    /// file is left as it is.
    pub fn open(directory: &Path, metrics: &Metrics) -> Result<Self, OpenError> {
        let (disk, loaded) = Disk::open(directory)?;
        let place = directory.join(FILE_NAME).display().to_string();
        let Loaded { id, history, revision, entries, leases: known } = loaded;
        let now = Instant::now();
        let mut leases = Leases::new(now);
        for (lease, ttl) in known {
            leases.grant(lease, ttl, now);
        }
        for entry in entries.values() {
            if let Some(lease) = entry.lease {
                leases.attach(lease, entry.key.clone());
            }
        }
        let inner = Inner { revision, entries, leases, history: History::default() };
        let (inner, revision) = (Mutex::new(inner), watch::Sender::new(revision));
        let shared = Arc::new(Shared { id, history, place, inner, revision });
        let (queue, commands) = mpsc::sync_channel(QUEUE);
        let writer = Writer::new(shared.clone(), disk, metrics);
        let (living, alive) = watch::channel(());
        let run = move || {
            let _living = living;
            writer.run(&commands);
        };
        let thread =
            std::thread::Builder::new().name("store".to_owned()).spawn(run).map_err(OpenError::Thread)?;
        let places = Arc::new(Semaphore::new(QUEUE));
        let (queue, writer) = (Mutex::new(Some(queue)), Mutex::new(Some(thread)));
        Ok(Self { shared, queue, places, writer, alive })
    }

    /// Resolves when nothing can be written any more: the store was closed, or its thread panicked.
    ///
    /// Cancel safety: safe.
    pub async fn ended(&self) {
        let mut alive = self.alive.clone();
        while alive.changed().await.is_ok() {}
    }

    /// Says for as long as it is polled that renewals are read: run it on the thread that reads them.
    /// While that thread is away no lease ends, and once it is back each has a full time again.
    /// Without this only the absence of the whole process counts. Renewals of clients that wait to be
    /// connected are not read either: while there is a `crowd` of those, and until there has been none for
    /// [`CALM`], the thread counts as away, for [`LONGEST_CROWD`] at a time, since strangers may be one.
    ///
    /// Cancel safety: safe, but leases end no more once it was polled and is dropped.
    pub async fn attend(&self, crowd: impl Fn() -> bool) {
        // When there was a crowd first, and last.
        let mut crowded: Option<(Instant, Instant)> = None;
        // Nobody is away who never was there.
        self.shared.lock().leases.attend(Instant::now());
        loop {
            let now = Instant::now();
            crowded = crowded.filter(|(_, last)| now.duration_since(*last) < CALM);
            if crowd() {
                crowded = Some((crowded.map_or(now, |(first, _)| first), now));
            }
            if crowded.is_none_or(|(first, _)| now.duration_since(first) > LONGEST_CROWD) {
                self.shared.lock().leases.attend(now);
            }
            tokio::time::sleep(MAX_ATTENDANCE).await;
        }
    }

    /// Writes what is queued and lets go of the directory; everything asked afterwards is refused.
    pub fn close(&self) {
        drop(self.queue.lock().unwrap_or_else(PoisonError::into_inner).take());
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(writer) = writer {
            // A panicked writer has said so itself.
            let _panicked = writer.join();
        }
    }

    fn enqueue(&self, command: Command) -> Result<(), StoreError> {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.as_ref().ok_or(StoreError::Closed)?.try_send(command).map_err(|_| StoreError::Closed)
    }

    async fn send<T>(
        &self,
        make: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> writer::Work,
    ) -> Result<T, StoreError> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        // A permit is a place, so the queue is never full.
        self.enqueue(Command { work: make(reply), _place: place })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.close();
    }
}

#[tonic::async_trait]
impl Store for RedbStore {
    fn id(&self) -> &str {
        &self.shared.id
    }

    fn history(&self) -> &str {
        &self.shared.history
    }

    async fn snapshot(&self) -> Result<Snapshot, StoreError> {
        let inner = self.shared.lock();
        let entries: Vec<_> = inner.entries.values().cloned().collect();
        let attached: BTreeSet<_> = entries.iter().filter_map(|entry| entry.lease).collect();
        let leases =
            attached.into_iter().filter_map(|lease| Some((lease, inner.leases.ttl(lease)?))).collect();
        Ok(Snapshot { id: self.shared.id.clone(), revision: inner.revision, entries, leases })
    }

    async fn range(&self, prefix: &str, at: Option<Revision>) -> Result<Range, StoreError> {
        let inner = self.shared.lock();
        let revision = at.unwrap_or(inner.revision).min(inner.revision);
        let mut found: BTreeMap<Arc<str>, Entry> = inner
            .entries
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, entry)| (key.clone(), entry.clone()))
            .collect();
        let oldest = inner.history.oldest(inner.revision);
        if revision + 1 < oldest {
            return Err(StoreError::Compacted { oldest: oldest.saturating_sub(1) });
        }
        let later = inner.history.transactions.iter().rev().take_while(|later| later.revision > revision);
        for change in later.flat_map(|later| &later.changes).filter(|change| change.key.starts_with(prefix)) {
            match &change.before {
                Some(entry) => _ = found.insert(change.key.clone(), entry.clone()),
                None => _ = found.remove(&change.key),
            }
        }
        Ok(Range { revision, entries: found.into_values().collect() })
    }

    async fn entry(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        Ok(self.shared.lock().entries.get(key).cloned())
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError> {
        self.send(|reply| writer::Work::Commit(txn, reply)).await
    }

    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, StoreError> {
        let revision = self.shared.revision.subscribe();
        Ok(Box::new(HistoryWatch { shared: self.shared.clone(), next: from, revision }))
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        let place = self.places.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let mut inner = self.shared.lock();
        let now = Instant::now();
        if inner.leases.is_empty() {
            inner.leases.reset_clock(now);
        }
        let mut id = LeaseId(fastrand::u64(1..));
        while inner.leases.ttl(id).is_some() {
            id = LeaseId(fastrand::u64(1..));
        }
        inner.leases.grant(id, ttl, now);
        drop(inner);
        // The writer sleeps until the next deadline it knew of.
        self.enqueue(Command { work: writer::Work::Wake, _place: place })?;
        Ok(id)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError> {
        self.shared.lock().leases.keep_alive(lease, Instant::now()).ok_or(StoreError::LeaseGone(lease))
    }

    async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError> {
        self.send(|reply| writer::Work::Revoke(lease, reply)).await
    }

    async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseState>, StoreError> {
        Ok(self.shared.lock().leases.state(lease, Instant::now()))
    }
}

/// A reader of the remembered transactions.
struct HistoryWatch {
    shared: Arc<Shared>,
    next: Revision,
    revision: watch::Receiver<Revision>,
}

impl HistoryWatch {
    fn ready(&mut self) -> Result<Vec<Arc<Transaction>>, StoreError> {
        let inner = self.shared.lock();
        if self.next > inner.revision {
            return Ok(Vec::new());
        }
        let oldest = inner.history.oldest(inner.revision);
        if self.next < oldest {
            return Err(StoreError::Compacted { oldest });
        }
        let skip = usize::try_from(self.next - oldest).unwrap_or(usize::MAX);
        let batch: Vec<_> = inner.history.transactions.iter().skip(skip).take(WATCH_BATCH).cloned().collect();
        self.next = batch.last().map_or(self.next, |last| last.revision + 1);
        Ok(batch)
    }
}

#[tonic::async_trait]
impl Watch for HistoryWatch {
    async fn next(&mut self) -> Result<Vec<Arc<Transaction>>, StoreError> {
        loop {
            self.revision.mark_unchanged();
            let batch = self.ready()?;
            if !batch.is_empty() {
                return Ok(batch);
            }
            // The sender lives in `shared`, which this holds: the error cannot happen.
            self.revision.changed().await.map_err(|_| StoreError::Closed)?;
        }
    }
}

#[cfg(test)]
mod tests;
