//! State on disk: key, certificate and the last snapshot, so that a restart needs neither the registry
//! nor a token.
//!
//! Two files in a directory of the sidecar's own, each written whole or not at all: `identity` (key,
//! chain, bundle) and `snapshot` (what the registry told, with the cursor that fits it). When the
//! registry last confirmed the snapshot is the time of its file's last change.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use outrigger_api::v1;

pub mod file;
pub mod keeper;
pub mod mirror;
#[cfg(test)]
pub(crate) mod testing;

use file::{Head, Kind, SavedIdentity, Unusable};

/// Why a sidecar must not use a state directory.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// Two processes would write over each other.
    #[error("state_dir {0} is in use by another process; give each sidecar a directory of its own")]
    InUse(PathBuf),
    /// A later release left it.
    #[error(
        "{path} cannot be read: {source}; start the release that wrote it, or name another state_dir and give a new token of `outrigger token`"
    )]
    Newer {
        /// The file.
        path: PathBuf,
        /// Which format it has.
        source: Unusable,
    },
}

/// What was found of an identity.
#[derive(Debug)]
pub enum Found<T> {
    /// No file.
    Nothing,
    /// A file that cannot be used, and why, with its path.
    Damaged(String),
    /// What it holds.
    Good(T),
}

/// A snapshot read from disk.
#[derive(Debug, Default)]
pub struct SavedSnapshot {
    /// Where it is from.
    pub head: Head,
    /// What was told, in full forms.
    pub changes: Vec<v1::Change>,
    /// Time since the registry last confirmed it, by the wall clock.
    pub age: Duration,
}

/// A directory that one process at a time may use.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    /// The directory itself, locked; none while it cannot be made.
    lock: Mutex<Option<File>>,
}

impl StateDir {
    /// Takes the directory; makes it (0700) when it does not exist. One that cannot be made or entered
    /// is tried again at each write: the sidecar serves without it.
    ///
    /// # Errors
    /// When another process has it.
    pub fn open(path: &Path) -> Result<Self, DiskError> {
        let directory = Self { path: path.to_owned(), lock: Mutex::new(None) };
        match directory.hold() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(DiskError::InUse(path.to_owned())),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "state_dir cannot be used; serving without it");
                Ok(directory)
            }
            Ok(()) => Ok(directory),
        }
    }

    /// Locks the directory itself, which needs no room on the disk.
    fn hold(&self) -> io::Result<()> {
        let mut lock = self.lock.lock().expect("no holder of this lock panics");
        if lock.is_some() {
            return Ok(());
        }
        DirBuilder::new().recursive(true).mode(0o700).create(&self.path)?;
        let directory = File::open(&self.path)?;
        directory.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => {
                io::Error::new(io::ErrorKind::WouldBlock, "another process uses the directory")
            }
            TryLockError::Error(error) => error,
        })?;
        *lock = Some(directory);
        Ok(())
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where a file lies.
    pub fn file(&self, kind: Kind) -> PathBuf {
        self.path.join(kind.name())
    }

    /// Reads the identity.
    ///
    /// # Errors
    /// A newer release left it. Damage is no error: it is reported as such.
    pub fn identity(&self) -> Result<Found<SavedIdentity>, DiskError> {
        self.read(Kind::Identity, file::decode_identity)
    }

    /// Reads the snapshot; one that is damaged is ignored with a warning.
    ///
    /// # Errors
    /// A newer release left it.
    pub fn snapshot(&self) -> Result<Option<SavedSnapshot>, DiskError> {
        let (head, changes) = match self.read(Kind::Snapshot, file::decode_snapshot)? {
            Found::Nothing => return Ok(None),
            Found::Damaged(why) => {
                tracing::warn!("{why}; it is ignored: requests wait for the registry");
                return Ok(None);
            }
            Found::Good(snapshot) => snapshot,
        };
        let confirmed = std::fs::metadata(self.file(Kind::Snapshot)).and_then(|data| data.modified());
        let age = confirmed.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
        Ok(Some(SavedSnapshot { head, changes, age: age.unwrap_or_default() }))
    }

    fn read<T>(
        &self,
        kind: Kind,
        decode: impl FnOnce(&[u8]) -> Result<T, Unusable>,
    ) -> Result<Found<T>, DiskError> {
        let path = self.file(kind);
        let content = match std::fs::read(&path) {
            Ok(content) => content,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Ok(Found::Damaged(format!("{} cannot be read: {error}", path.display()))),
        };
        match decode(&content) {
            Ok(good) => Ok(Found::Good(good)),
            Err(source @ Unusable::Newer(_)) => Err(DiskError::Newer { path, source }),
            Err(source) => Ok(Found::Damaged(format!("{} cannot be used: {source}", path.display()))),
        }
    }

    /// Puts a file in place of its predecessor (0600): whole or not at all, even when the machine stops.
    ///
    /// # Errors
    /// As the system says; the predecessor is still there then.
    pub fn write(&self, kind: Kind, content: &[u8]) -> io::Result<()> {
        self.hold()?;
        let temporary = self.path.join(format!("{}.new", kind.name()));
        let written = write_new(&temporary, content)
            .and_then(|()| std::fs::rename(&temporary, self.file(kind)))
            .and_then(|()| self.sync());
        if written.is_err() {
            // It takes room that a smaller file may need.
            let _gone = std::fs::remove_file(&temporary);
        }
        written
    }

    /// Removes a file; one that is not there is removed.
    ///
    /// # Errors
    /// As the system says.
    pub fn remove(&self, kind: Kind) -> io::Result<()> {
        match std::fs::remove_file(self.file(kind)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            Ok(()) | Err(_) => self.sync(),
        }
    }

    /// Notes that the snapshot as it lies there was confirmed at `now`. Needs no room on the disk.
    ///
    /// # Errors
    /// As the system says.
    pub fn confirm(&self, now: SystemTime) -> io::Result<()> {
        OpenOptions::new().write(true).open(self.file(Kind::Snapshot))?.set_modified(now)
    }

    /// A rename is only certain once its directory is on disk.
    fn sync(&self) -> io::Result<()> {
        let lock = self.lock.lock().expect("no holder of this lock panics");
        lock.as_ref().map_or(Ok(()), File::sync_all)
    }
}

fn write_new(path: &Path, content: &[u8]) -> io::Result<()> {
    // A left-over is removed, not reused: it may be open to others, or lead elsewhere.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn one_process_at_a_time_and_private() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("a/b");
        let directory = StateDir::open(&path).unwrap();
        let error = StateDir::open(&path).unwrap_err().to_string();
        assert!(error.contains("in use") && error.contains("a/b"), "{error}");
        directory.write(Kind::Identity, b"x").unwrap();
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&path), mode(&path.join("identity"))), (0o700, 0o600));
        drop(directory);
        StateDir::open(&path).unwrap();
    }

    #[test]
    fn a_place_that_is_no_directory_is_lived_without_and_taken_when_it_becomes_one() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("state");
        std::fs::write(&path, b"in the way").unwrap();
        let directory = StateDir::open(&path).unwrap();
        assert!(matches!(directory.identity(), Ok(Found::Damaged(_))));
        assert!(directory.write(Kind::Snapshot, b"x").is_err());
        std::fs::remove_file(&path).unwrap();
        directory.write(Kind::Snapshot, &file::encode_snapshot(&Head::default(), [])).unwrap();
        assert_eq!(directory.snapshot().unwrap().unwrap().head, Head::default());
        assert!(StateDir::open(&path).is_err(), "it is taken from then on");
    }

    #[test]
    fn a_damaged_snapshot_is_ignored_and_files_can_be_removed() {
        let home = tempfile::tempdir().unwrap();
        let directory = StateDir::open(home.path()).unwrap();
        assert!(directory.snapshot().unwrap().is_none());
        directory.write(Kind::Snapshot, b"rubbish").unwrap();
        assert!(directory.snapshot().unwrap().is_none());
        assert!(matches!(directory.identity(), Ok(Found::Nothing)));
        directory.remove(Kind::Snapshot).unwrap();
        directory.remove(Kind::Snapshot).unwrap();
        assert!(!directory.file(Kind::Snapshot).exists());
    }

    #[test]
    fn the_age_counts_from_the_last_confirmation() {
        let home = tempfile::tempdir().unwrap();
        let directory = StateDir::open(home.path()).unwrap();
        directory.write(Kind::Snapshot, &file::encode_snapshot(&Head::default(), [])).unwrap();
        let hour = Duration::from_secs(3600);
        directory.confirm(SystemTime::now() - hour).unwrap();
        let age = directory.snapshot().unwrap().unwrap().age;
        assert!(age >= hour && age < hour * 2, "{age:?}");
        // A clock that went back is no reason to fail.
        directory.confirm(SystemTime::now() + hour).unwrap();
        assert_eq!(directory.snapshot().unwrap().unwrap().age, Duration::ZERO);
    }
}
