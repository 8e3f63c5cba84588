//! The redb file: opening it safely, reading all of it, writing one batch.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition};

use crate::store::{Change, Entry, LeaseId, Revision, Snapshot};

/// The store's file within the data directory.
pub(super) const FILE_NAME: &str = "registry.redb";
const NEW_FILE_NAME: &str = "registry.redb.new";
const LOCK_NAME: &str = "lock";

/// Version of the tables below.
const FORMAT: &str = "1";
const META: TableDefinition<'_, &str, &str> = TableDefinition::new("meta");
/// Key of [`META`]: names the restoration the store began with, if it did.
const RESTORED: &str = "restored";
/// Key to: revision (8 bytes, big endian), lease (8 bytes, 0 for none), value.
const ENTRIES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("entries");
/// Lease to time to live in milliseconds.
const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");

const CACHE_BYTES: usize = 4 << 20;

/// Why a data directory cannot be used. The text names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The directory or a file in it cannot be used.
    #[error(
        "cannot use {path}: make it a directory that this user may read and write, or set data_dir to another"
    )]
    Access {
        /// The directory or file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Another registry has it open.
    #[error("{path} is in use by another registry; stop that one, or set data_dir to another directory")]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// The file is not a sound store.
    #[error(
        "{path} is damaged or is not a registry's store ({cause}); it was left as it is: restore a backup (`outrigger registry restore`), or move it away to start an empty mesh with a new root (every sidecar must then join again)"
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The writer's thread could not be started.
    #[error("cannot start the store's thread")]
    Thread(#[source] io::Error),
}

/// Why a backup cannot be put into a data directory. The text names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError {
    /// Something is there.
    #[error(
        "{path} is not empty (it holds {found}): name an empty or new directory with --data-dir, or move this one away first"
    )]
    NotEmpty {
        /// The directory.
        path: PathBuf,
        /// One of the files in it.
        found: String,
    },
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// Everything a store held when it was opened.
pub(super) struct Loaded {
    pub(super) id: String,
    pub(super) history: String,
    pub(super) revision: Revision,
    pub(super) entries: BTreeMap<Arc<str>, Entry>,
    pub(super) leases: Vec<(LeaseId, Duration)>,
}

/// One batch to be written: all of it or nothing.
pub(super) struct Batch<'a> {
    pub(super) revision: Revision,
    pub(super) changes: Vec<&'a Change>,
    /// Leases that may have got their first key.
    pub(super) attached: Vec<(LeaseId, Duration)>,
    pub(super) ended: Vec<LeaseId>,
}

/// The open file. After a failed write it is opened anew before the next one, because redb refuses
/// to go on with a file that failed.
pub(super) struct Disk {
    path: PathBuf,
    database: Option<Database>,
    /// Tests put writes that fail in its place.
    pub(super) write: fn(&Database, &Batch<'_>) -> Result<(), Box<redb::Error>>,
    // Held as long as the store is open; the kernel frees it however the process ends.
    _lock: File,
}

impl Disk {
    pub(super) fn open(directory: &Path) -> Result<(Self, Loaded), OpenError> {
        let lock = lock(directory)?;
        let path = directory.join(FILE_NAME);
        let access = |path: &Path, source| OpenError::Access { path: path.to_owned(), source };
        if !path.try_exists().map_err(|source| access(&path, source))? {
            create(directory, &path, initialise)?;
        }
        // Opened once by hand, for an error about access rather than about the format.
        OpenOptions::new().read(true).write(true).open(&path).map_err(|source| access(&path, source))?;
        let (database, loaded) = open_sound(&path)?;
        Ok((Self { path, database: Some(database), write, _lock: lock }, loaded))
    }

    /// Writes a batch and syncs it. redb may panic on a file that another program damaged; that is a
    /// failed write, for which the file is opened and checked again.
    pub(super) fn write(&mut self, batch: &Batch<'_>) -> Result<(), Box<redb::Error>> {
        let database = self.database.take().ok_or(redb::Error::DatabaseClosed)?;
        let panicked = |_| Err(boxed(redb::Error::Io(io::Error::other("its contents make no sense"))));
        catch_unwind(AssertUnwindSafe(|| (self.write)(&database, batch))).unwrap_or_else(panicked)?;
        self.database = Some(database);
        Ok(())
    }

    /// Behaves as after a failed write.
    #[cfg(test)]
    pub(super) fn fail(&mut self) {
        self.database = None;
    }

    /// Opens the file again after a failure; returns what it holds when it had to.
    pub(super) fn reopen(&mut self) -> Result<Option<Loaded>, OpenError> {
        if self.database.is_some() {
            return Ok(None);
        }
        let (database, loaded) = open_sound(&self.path)?;
        self.database = Some(database);
        Ok(Some(loaded))
    }
}

/// Makes the directory (0700) if there is none, and takes it for this process.
fn lock(directory: &Path) -> Result<File, OpenError> {
    let access = |path: &Path| {
        let path = path.to_owned();
        move |source| OpenError::Access { path, source }
    };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(access(directory))?;
    let path = directory.join(LOCK_NAME);
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(access(&path))?;
    match lock.try_lock() {
        Ok(()) => Ok(lock),
        Err(TryLockError::WouldBlock) => Err(OpenError::InUse { path: directory.to_owned() }),
        Err(TryLockError::Error(source)) => Err(access(&path)(source)),
    }
}

/// Makes a store under another name first, so that a file under its own name is always whole.
fn create(
    directory: &Path,
    path: &Path,
    fill: impl FnOnce(&Database) -> Result<(), Box<redb::Error>>,
) -> Result<(), OpenError> {
    let new = directory.join(NEW_FILE_NAME);
    let access = |source| OpenError::Access { path: new.clone(), source };
    // redb would make the file readable by others.
    OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new).map_err(access)?;
    let failed = |error: redb::Error| access(io::Error::other(error));
    let database = Database::create(&new).map_err(|error| failed(error.into()))?;
    fill(&database).map_err(|error| failed(*error))?;
    drop(database);
    std::fs::rename(&new, path).map_err(access)?;
    File::open(directory).and_then(|directory| directory.sync_all()).map_err(access)
}

fn initialise(database: &Database) -> Result<(), Box<redb::Error>> {
    let write = database.begin_write().map_err(boxed)?;
    {
        let mut meta = write.open_table(META).map_err(boxed)?;
        let id = format!("{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..));
        for (key, value) in [("format", FORMAT), ("id", &id), ("revision", "0")] {
            meta.insert(key, value).map_err(boxed)?;
        }
        write.open_table(ENTRIES).map_err(boxed)?;
        write.open_table(LEASES).map_err(boxed)?;
    }
    write.commit().map_err(boxed)
}

/// Reads the store of a data directory that no registry uses.
///
/// # Errors
/// When there is none, it is in use, or it is not sound; nothing is made.
pub fn read(directory: &Path) -> Result<Snapshot, OpenError> {
    let path = directory.join(FILE_NAME);
    std::fs::metadata(&path).map_err(|source| OpenError::Access { path, source })?;
    let (_, loaded) = Disk::open(directory)?;
    let Loaded { id, revision, entries, leases, .. } = loaded;
    let entries: Vec<_> = entries.into_values().collect();
    let attached = |lease| entries.iter().any(|entry| entry.lease == Some(lease));
    let leases = leases.into_iter().filter(|(lease, _)| attached(*lease)).collect();
    Ok(Snapshot { id, revision, entries, leases })
}

/// Makes a store that holds what a backup does, with its id, under a history of its own. The
/// directory must be empty or not there yet; after an error it holds nothing of ours.
///
/// # Errors
/// When the directory is not empty or cannot be written.
pub fn restore(directory: &Path, snapshot: &Snapshot) -> Result<(), RestoreError> {
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            // A fresh file system has a directory of its own in it.
            let mut names = entries.flatten().map(|entry| entry.file_name());
            if let Some(found) = names.find(|name| name != "lost+found") {
                let found = found.to_string_lossy().into_owned();
                return Err(RestoreError::NotEmpty { path: directory.to_owned(), found });
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(OpenError::Access { path: directory.to_owned(), source }.into()),
    }
    let _lock = lock(directory)?;
    let made = create(directory, &directory.join(FILE_NAME), |database| refill(database, snapshot));
    let leftovers = if made.is_err() { &[NEW_FILE_NAME, LOCK_NAME][..] } else { &[] };
    for name in leftovers {
        let _never_made = std::fs::remove_file(directory.join(name));
    }
    Ok(made?)
}

fn refill(database: &Database, snapshot: &Snapshot) -> Result<(), Box<redb::Error>> {
    let write = database.begin_write().map_err(boxed)?;
    {
        let mut meta = write.open_table(META).map_err(boxed)?;
        // Random: one backup may be restored twice, and each goes its own way from there.
        let restored = format!("{:016x}", fastrand::u64(..));
        let revision = snapshot.revision.to_string();
        let rows = [("format", FORMAT), ("id", &snapshot.id), ("revision", &revision), (RESTORED, &restored)];
        for (key, value) in rows {
            meta.insert(key, value).map_err(boxed)?;
        }
        let mut entries = write.open_table(ENTRIES).map_err(boxed)?;
        for entry in &snapshot.entries {
            entries.insert(&*entry.key, encode(entry).as_slice()).map_err(boxed)?;
        }
        let mut leases = write.open_table(LEASES).map_err(boxed)?;
        for (lease, ttl) in &snapshot.leases {
            let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            leases.insert(lease.0, millis).map_err(boxed)?;
        }
    }
    write.commit().map_err(boxed)
}

/// Opens an existing file, checks all of it and reads it. redb may panic on a file that another
/// program damaged; that too is an error about the file, not about this process.
fn open_sound(path: &Path) -> Result<(Database, Loaded), OpenError> {
    let corrupt = |cause: String| OpenError::Corrupt { path: path.to_owned(), cause };
    let opened = catch_unwind(|| {
        let empty = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
        if empty {
            return Err(corrupt("it is empty".to_owned()));
        }
        let database = Database::builder()
            .set_cache_size(CACHE_BYTES)
            .set_check_integrity_on_open(true)
            .open(path)
            .map_err(|error| open_error(path, error))?;
        let loaded = load(&database).map_err(corrupt)?;
        Ok((database, loaded))
    });
    opened.unwrap_or_else(|_| Err(corrupt("its contents make no sense".to_owned())))
}

fn open_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse { path: path.to_owned() },
        DatabaseError::Storage(StorageError::Io(source))
            if source.kind() != io::ErrorKind::InvalidData
                && source.kind() != io::ErrorKind::UnexpectedEof =>
        {
            OpenError::Access { path: path.to_owned(), source }
        }
        other => OpenError::Corrupt { path: path.to_owned(), cause: other.to_string() },
    }
}

fn load(database: &Database) -> Result<Loaded, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let read = database.begin_read().map_err(|e| text(&e))?;
    let meta = read.open_table(META).map_err(|e| text(&e))?;
    let field = |key: &str| -> Result<String, String> {
        let value = meta.get(key).map_err(|e| text(&e))?;
        value.map(|value| value.value().to_owned()).ok_or_else(|| format!("it has no {key}"))
    };
    let format = field("format")?;
    if format != FORMAT {
        return Err(format!("its format is {format}, this registry reads {FORMAT}"));
    }
    let revision = field("revision")?.parse().map_err(|e| text(&e))?;
    let mut entries = BTreeMap::new();
    for row in read.open_table(ENTRIES).map_err(|e| text(&e))?.iter().map_err(|e| text(&e))? {
        let (key, value) = row.map_err(|e| text(&e))?;
        let key: Arc<str> = key.value().into();
        let entry = decode(key.clone(), value.value()).ok_or_else(|| format!("{key} is cut short"))?;
        entries.insert(key, entry);
    }
    let mut leases = Vec::new();
    for row in read.open_table(LEASES).map_err(|e| text(&e))?.iter().map_err(|e| text(&e))? {
        let (lease, ttl) = row.map_err(|e| text(&e))?;
        leases.push((LeaseId(lease.value()), Duration::from_millis(ttl.value())));
    }
    let id = field("id")?;
    let restored = meta.get(RESTORED).map_err(|e| text(&e))?;
    let history = restored.map_or_else(|| id.clone(), |restored| format!("{id}.{}", restored.value()));
    Ok(Loaded { id, history, revision, entries, leases })
}

pub(super) fn write(database: &Database, batch: &Batch<'_>) -> Result<(), Box<redb::Error>> {
    let write = database.begin_write().map_err(boxed)?;
    {
        let mut entries = write.open_table(ENTRIES).map_err(boxed)?;
        for change in &batch.changes {
            match &change.after {
                Some(entry) => _ = entries.insert(&*change.key, encode(entry).as_slice()).map_err(boxed)?,
                None => _ = entries.remove(&*change.key).map_err(boxed)?,
            }
        }
        let mut leases = write.open_table(LEASES).map_err(boxed)?;
        for (lease, ttl) in &batch.attached {
            let millis = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
            leases.insert(lease.0, millis).map_err(boxed)?;
        }
        for lease in &batch.ended {
            leases.remove(lease.0).map_err(boxed)?;
        }
        let mut meta = write.open_table(META).map_err(boxed)?;
        meta.insert("revision", batch.revision.to_string().as_str()).map_err(boxed)?;
    }
    write.commit().map_err(boxed)
}

/// redb's error is large; it is only ever turned into text.
fn boxed(error: impl Into<redb::Error>) -> Box<redb::Error> {
    Box::new(error.into())
}

fn encode(entry: &Entry) -> Vec<u8> {
    let mut row = Vec::with_capacity(16 + entry.value.len());
    row.extend_from_slice(&entry.revision.to_be_bytes());
    row.extend_from_slice(&entry.lease.map_or(0, |lease| lease.0).to_be_bytes());
    row.extend_from_slice(&entry.value);
    row
}

fn decode(key: Arc<str>, row: &[u8]) -> Option<Entry> {
    let (revision, rest) = row.split_first_chunk::<8>()?;
    let (lease, value) = rest.split_first_chunk::<8>()?;
    let lease = u64::from_be_bytes(*lease);
    Some(Entry {
        key,
        value: Bytes::copy_from_slice(value),
        revision: u64::from_be_bytes(*revision),
        lease: (lease != 0).then_some(LeaseId(lease)),
    })
}
