//! The store seam: everything the registry remembers goes through [`Store`].
//!
//! Keys are text paths, values bytes. Every transaction has a revision of its own, writes are
//! compare-and-set on revisions, and watchers see whole transactions in order. Who writes, and how
//! many replicas do, is the implementation's affair: nothing above this file assumes one writer.

pub mod lease;
pub mod redb;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

/// Number of a transaction; increases over the life of a store.
pub type Revision = u64;

/// Names a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LeaseId(pub u64);

impl LeaseId {
    /// Reads what `Display` writes.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for LeaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// A key and what it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: Arc<str>,
    /// Its value.
    pub value: Bytes,
    /// Transaction that wrote it.
    pub revision: Revision,
    /// Lease it vanishes with.
    pub lease: Option<LeaseId>,
}

/// Entries read at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The revision read at.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
}

/// Everything a store holds, read at one revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Identity of the store.
    pub id: String,
    /// The revision read at.
    pub revision: Revision,
    /// In the order of their keys.
    pub entries: Vec<Entry>,
    /// Leases with keys, and how long each lasts without renewal.
    pub leases: Vec<(LeaseId, Duration)>,
}

/// What must hold for a transaction to go ahead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last written by this revision.
    Unchanged(String, Revision),
}

/// One write of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Creates or replaces a key; without a lease it stays until deleted.
    Put {
        /// The key.
        key: String,
        /// Its new value.
        value: Bytes,
        /// Lease it vanishes with.
        lease: Option<LeaseId>,
    },
    /// Removes a key; none there is no error.
    Delete(String),
}

/// A compare-and-set transaction: all of its writes or none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// Conditions, all of which must hold.
    pub conditions: Vec<Condition>,
    /// Writes, at most one a key.
    pub ops: Vec<Op>,
}

impl Txn {
    /// Adds the condition that `key` is as it was read: the entry, or its absence.
    pub fn expect(&mut self, key: &str, read: Option<&Entry>) {
        self.conditions.push(match read {
            Some(entry) => Condition::Unchanged(key.to_owned(), entry.revision),
            None => Condition::Absent(key.to_owned()),
        });
    }

    /// Adds a write without a lease.
    pub fn put(&mut self, key: impl Into<String>, value: impl Into<Bytes>) {
        self.ops.push(Op::Put { key: key.into(), value: value.into(), lease: None });
    }
}

/// What a transaction did to one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The key.
    pub key: Arc<str>,
    /// What it held before.
    pub before: Option<Entry>,
    /// What it holds now; none: deleted.
    pub after: Option<Entry>,
}

/// A transaction as watchers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Its revision.
    pub revision: Revision,
    /// What it changed; never empty.
    pub changes: Vec<Change>,
}

/// How a lease stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseState {
    /// How long it lasts without renewal.
    pub ttl: Duration,
    /// How long it still lasts.
    pub remaining: Duration,
}

/// Why the store refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// A condition did not hold: read again and decide again.
    #[error("{key} was changed by someone else")]
    Conflict {
        /// The key of the condition.
        key: String,
    },
    /// The lease ended, or never was.
    #[error("lease {0} is gone")]
    LeaseGone(LeaseId),
    /// The revision is no longer remembered: read everything anew.
    #[error("revisions before {oldest} are no longer kept")]
    Compacted {
        /// The oldest revision remembered.
        oldest: Revision,
    },
    /// The store could not be written; nothing of the transaction was kept.
    #[error("the store at {place} cannot be written: {cause}")]
    Unavailable {
        /// Where the store is.
        place: String,
        /// What the system said.
        cause: String,
    },
    /// The registry is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// Transactions in order, from a revision on.
#[tonic::async_trait]
pub trait Watch: Send {
    /// The next transactions: at least one, as many as are ready, bounded.
    ///
    /// Fails with [`StoreError::Compacted`] when the reader fell behind what is remembered, and with
    /// [`StoreError::Closed`] at the end. Cancel safety: safe, nothing is skipped.
    async fn next(&mut self) -> Result<Vec<Arc<Transaction>>, StoreError>;
}

/// Where the registry keeps everything it must not forget.
#[tonic::async_trait]
pub trait Store: Send + Sync {
    /// Identity of the store: made with it, never changes.
    fn id(&self) -> &str;

    /// Identity of the store's history: of another one, revisions mean nothing. It changes when a
    /// backup is restored, because what was written after that backup is no part of it.
    fn history(&self) -> &str;

    /// Everything, at the newest revision: what a backup holds.
    async fn snapshot(&self) -> Result<Snapshot, StoreError>;

    /// Entries whose key starts with `prefix`, at the newest revision or at an earlier one that is
    /// still remembered.
    async fn range(&self, prefix: &str, at: Option<Revision>) -> Result<Range, StoreError>;

    /// The entry of one key.
    async fn entry(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        let range = self.range(key, None).await?;
        Ok(range.entries.into_iter().find(|entry| &*entry.key == key))
    }

    /// Applies a transaction; returns its revision once it is durable.
    ///
    /// Cancel safety: the transaction may or may not happen.
    async fn commit(&self, txn: Txn) -> Result<Revision, StoreError>;

    /// Transactions from revision `from` on, that one included.
    async fn watch(&self, from: Revision) -> Result<Box<dyn Watch>, StoreError>;

    /// Makes a lease. It outlives a restart from the first key attached to it on.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError>;

    /// Starts a lease's time over; returns its time to live. Writes nothing.
    async fn keep_alive(&self, lease: LeaseId) -> Result<Duration, StoreError>;

    /// Ends a lease and its keys, in one transaction; returns the revision after it.
    async fn revoke(&self, lease: LeaseId) -> Result<Revision, StoreError>;

    /// How a lease stands; none when it is gone.
    async fn lease(&self, lease: LeaseId) -> Result<Option<LeaseState>, StoreError>;
}
