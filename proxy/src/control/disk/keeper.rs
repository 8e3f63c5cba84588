//! Keeps the files up to date: on the control thread, which never waits for the disk.
//!
//! A change is written at once, the changes of the next second together. While nothing changes, the
//! snapshot's file is marked as confirmed every few seconds, as long as the registry is there.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use outrigger_api::v1;
use outrigger_common::mtls::Svid;
use tokio::sync::Notify;

use super::StateDir;
use super::file::{Head, Kind, encode_identity, encode_snapshot};
use super::mirror::Mirror;
use crate::control::state::Refused;
use crate::control::status::Status;
use crate::telemetry::metrics::Metrics;

/// Least time between two writes.
const PACE: Duration = Duration::from_secs(1);
/// How often a snapshot that does not change is marked as confirmed, and a failed write tried again.
const CONFIRM: Duration = Duration::from_secs(5);
/// Longest wait for a disk at the start and at the end of the process.
const PATIENCE: Duration = Duration::from_secs(2);

/// Writes what the control tasks learn.
#[derive(Debug)]
pub struct Keeper {
    directory: Arc<StateDir>,
    metrics: Arc<Metrics>,
    status: Arc<Status>,
    memory: Mutex<Memory>,
    changed: Notify,
    /// One writer at a time.
    turn: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct Memory {
    head: Head,
    mirror: Mirror,
    /// The file of an identity not written yet.
    identity: Option<Vec<u8>>,
    /// Whether the snapshot's file is older than this.
    stale: bool,
    /// Whether the last write failed.
    failing: bool,
}

impl Keeper {
    /// A keeper of an empty state.
    pub fn new(directory: StateDir, metrics: Arc<Metrics>, status: Arc<Status>) -> Self {
        Self {
            directory: Arc::new(directory),
            metrics,
            status,
            memory: Mutex::default(),
            changed: Notify::new(),
            turn: tokio::sync::Mutex::default(),
        }
    }

    /// The directory.
    pub fn directory(&self) -> &StateDir {
        &self.directory
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().expect("no holder of this lock panics")
    }

    /// Writes an identity had for the token named, and waits for the disk, but not long. What cannot be
    /// written is said and tried again.
    ///
    /// Cancel safety: the write goes on.
    pub async fn identity(&self, svid: &Svid, token: &str) {
        self.memory().identity = Some(encode_identity(svid, token));
        if tokio::time::timeout(PATIENCE, self.flush()).await.is_err() {
            tracing::warn!("the disk of state_dir does not answer; the identity may not be kept");
        }
    }

    /// Begins with what is on disk already, or with nothing.
    pub fn begin(&self, head: Head, changes: Vec<v1::Change>, refused: &[Refused]) {
        let mut memory = self.memory();
        memory.head = head;
        memory.mirror.fold(changes, refused, |_| true);
    }

    /// Folds in what was not `refused` of an update's changes to what is `wanted`, by service or address.
    pub fn told(&self, update: v1::Update, refused: &[Refused], wanted: impl Fn(&str) -> bool) {
        let mut memory = self.memory();
        memory.mirror.fold(update.changes, refused, wanted);
        memory.head.cursor = update.cursor;
        memory.head.revision = update.revision;
        memory.stale = true;
        self.changed.notify_one();
    }

    /// Forgets a service nobody asks for any more; its policies stay if it is `served` here.
    pub fn forget(&self, name: &str, served: bool) {
        let mut memory = self.memory();
        memory.mirror.forget(name, served);
        memory.stale = true;
        self.changed.notify_one();
    }

    /// Forgets addresses nobody asks for any more.
    pub fn forget_addresses(&self, addresses: &[SocketAddr]) {
        let mut memory = self.memory();
        for address in addresses {
            memory.mirror.forget_address(&address.to_string());
        }
        memory.stale = true;
        self.changed.notify_one();
    }

    /// Which store the registry has.
    pub fn store(&self, id: &str) {
        let mut memory = self.memory();
        if memory.head.store != id {
            id.clone_into(&mut memory.head.store);
            memory.stale = true;
            self.changed.notify_one();
        }
    }

    /// Writes for ever.
    pub async fn run(&self) {
        loop {
            tokio::select! {
                () = self.changed.notified() => self.flush().await,
                () = tokio::time::sleep(CONFIRM) => {
                    self.flush().await;
                    self.confirm().await;
                }
            }
            tokio::time::sleep(PACE).await;
        }
    }

    /// Writes what is left to write, at the end.
    pub async fn finish(&self) {
        if tokio::time::timeout(PATIENCE, self.flush()).await.is_err() {
            tracing::warn!("the disk of state_dir does not answer; the last changes may be lost");
        }
        let _late = tokio::time::timeout(PATIENCE, self.confirm()).await;
    }

    /// Marks the file as confirmed, if it is what the registry confirms.
    async fn confirm(&self) {
        let current = {
            let memory = self.memory();
            !memory.stale && !memory.failing && !memory.head.store.is_empty()
        };
        if !current || !self.status.is_connected() {
            return;
        }
        let directory = self.directory.clone();
        // The time alone: nothing is written that could fail for want of room.
        let marking = tokio::task::spawn_blocking(move || directory.confirm(SystemTime::now()));
        if let Ok(Err(error)) = marking.await {
            tracing::debug!(%error, "the time of the snapshot on disk cannot be set");
            // Somebody took the file away: write it again.
            self.memory().stale = true;
            self.changed.notify_one();
        }
    }

    async fn flush(&self) {
        let _turn = self.turn.lock().await;
        let (identity, snapshot) = self.take();
        if identity.is_none() && snapshot.is_none() {
            return;
        }
        let directory = self.directory.clone();
        let writing = tokio::task::spawn_blocking(move || {
            let mut result = Ok(());
            let mut left = identity;
            if let Some(content) = &left {
                result = directory.write(Kind::Identity, content);
                if result.is_ok() {
                    left = None;
                }
            }
            let written = snapshot.map(|content| directory.write(Kind::Snapshot, &content));
            let stale = written.as_ref().is_some_and(Result::is_err);
            (result.and(written.unwrap_or(Ok(()))), left, stale)
        });
        let Ok((result, identity, stale)) = writing.await else { return };
        let mut memory = self.memory();
        memory.stale |= stale;
        if memory.identity.is_none() {
            memory.identity = identity;
        }
        let was_failing = std::mem::replace(&mut memory.failing, result.is_err());
        drop(memory);
        self.report(result, was_failing);
    }

    /// What is to be written, taken out of memory.
    fn take(&self) -> (Option<Vec<u8>>, Option<Vec<u8>>) {
        let mut memory = self.memory();
        let identity = memory.identity.take();
        if !std::mem::take(&mut memory.stale) {
            return (identity, None);
        }
        let mut head = memory.head.clone();
        if !memory.mirror.is_whole() {
            // The registry would go on from there and never tell the rest.
            head.cursor.clear();
        }
        (identity, Some(encode_snapshot(&head, memory.mirror.changes())))
    }

    fn report(&self, result: std::io::Result<()>, was_failing: bool) {
        match result {
            Ok(()) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                self.metrics.control.state_written.set(now.as_secs_f64());
                self.status.disk(None);
                if was_failing {
                    tracing::info!("state on disk is up to date again");
                }
            }
            Err(error) => {
                self.metrics.control.state_failures.inc();
                let place = self.directory.path.display();
                if !was_failing {
                    tracing::warn!(state_dir = %place, %error, "state cannot be written; serving goes on, a restart would find it old");
                }
                self.status.disk(Some(format!(
                    "state cannot be written to {place} ({error}): a restart would find it old"
                )));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::control::disk::Found;
    use crate::control::disk::testing::Root;

    fn keeper(path: &std::path::Path) -> Keeper {
        let metrics = Arc::new(Metrics::new(10));
        Keeper::new(StateDir::open(path).unwrap(), metrics, Arc::new(Status::default()))
    }

    fn unknown(name: &str, cursor: u8) -> v1::Update {
        let change =
            v1::Change { change: Some(v1::change::Change::Unknown(name.into())), requires: Vec::new() };
        v1::Update { cursor: vec![cursor], revision: cursor.into(), changes: vec![change], nonce: 1 }
    }

    #[tokio::test]
    async fn what_is_written_fits_its_cursor_and_a_refusal_leaves_none() {
        let home = tempfile::tempdir().unwrap();
        let keeper = keeper(home.path());
        keeper.store("s1");
        keeper.told(unknown("a.shop", 1), &[], |_| true);
        keeper.told(unknown("b.shop", 2), &[], |_| true);
        keeper.flush().await;
        let saved = keeper.directory().snapshot().unwrap().unwrap();
        assert_eq!((saved.head.store.as_str(), saved.head.cursor, saved.changes.len()), ("s1", vec![2], 2));

        let refused = Refused { resource: "Service/c.shop".into(), reason: "no".into() };
        keeper.told(unknown("c.shop", 3), &[refused], |_| true);
        keeper.flush().await;
        let saved = keeper.directory().snapshot().unwrap().unwrap();
        assert_eq!((saved.head.cursor, saved.changes.len()), (vec![], 2));
    }

    #[tokio::test]
    async fn what_cannot_be_written_is_said_counted_and_written_later() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state");
        std::fs::write(&path, b"in the way").unwrap();
        let keeper = keeper(&path);
        let svid = Root::new().svid(SystemTime::now() + Duration::from_secs(600));
        keeper.identity(&svid, "t1").await;
        keeper.told(unknown("a.shop", 1), &[], |_| true);
        keeper.flush().await;
        assert_eq!(keeper.metrics.control.state_failures.get(), 2);
        let notes = keeper.status.notes(std::time::Instant::now());
        assert!(notes.iter().any(|note| note.contains("cannot be written")), "{notes:?}");

        std::fs::remove_file(&path).unwrap();
        keeper.flush().await;
        assert!(matches!(keeper.directory().identity(), Ok(Found::Good(saved)) if saved.token == "t1"));
        assert!(keeper.directory().snapshot().unwrap().is_some());
        assert!(keeper.metrics.control.state_written.get() > 0.0);
        let notes = keeper.status.notes(std::time::Instant::now());
        assert!(!notes.iter().any(|note| note.contains("cannot be written")), "{notes:?}");
    }
}
