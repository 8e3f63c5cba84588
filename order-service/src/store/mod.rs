//! Orders and idempotency keys in one SQLite file that several processes may share.
//!
//! Writes go through one connection of this process (`writer`), which commits whatever waits as one
//! transaction; reads use a few connections of their own and never wait for a writer (WAL). A write is
//! answered after its commit is on disk (`synchronous=FULL`), never before.

mod rows;
mod schema;
mod writer;

use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use outrigger_common::tasks::Tasks;
use sqlx::SqlitePool;
use sqlx::sqlite::SqlitePoolOptions;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::idempotency::KeyedRequest;
use crate::order::{Order, OrderId, OrderPage, OrderUpdate, Status};
use writer::Writer;

pub(crate) use writer::unix_ms;

/// How long a read waits for a free connection.
const READER_WAIT: Duration = Duration::from_secs(2);

/// Where the store is and how far it may go.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// The database file; made when missing.
    pub database: PathBuf,
    /// Writes that may wait; one more is refused with [`StoreError::QueueFull`].
    pub queue: usize,
    /// Most writes in one transaction.
    pub batch: usize,
    /// Connections for reading.
    pub readers: u32,
    /// How long a write waits for other processes that write to the same file.
    pub busy_timeout: Duration,
    /// Largest database file, in bytes: beyond it writes fail with [`StoreError::Full`].
    pub max_database_bytes: usize,
    /// How long a key is remembered.
    pub idempotency_retention: Duration,
}

/// The store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// SQLite refused.
    #[error("cannot open the database {path} (server.database)")]
    Sqlite {
        /// The file.
        path: String,
        /// What SQLite said.
        #[source]
        source: sqlx::Error,
    },
    /// The file was written by a later release.
    #[error("the database {path} has format {found}; this release knows up to {known}: use a newer release")]
    Format {
        /// The file.
        path: String,
        /// Its format.
        found: i64,
        /// The newest format known here.
        known: i64,
    },
}

/// The store could not do what was asked; nothing was half done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// Too many writes wait already.
    #[error("too many writes are waiting; try again")]
    QueueFull,
    /// Other processes held the write lock for too long.
    #[error("the database is locked by another writer; try again")]
    Busy,
    /// No room on the disk or in the database.
    #[error("no room for more data; reads still work")]
    Full,
    /// Anything else: input/output errors, a damaged file. The log has the cause.
    #[error("the storage does not work; try again later")]
    Unavailable,
}

impl StoreError {
    /// The word for programs.
    pub fn code(self) -> &'static str {
        match self {
            Self::QueueFull => "overloaded",
            Self::Busy => "storage_busy",
            Self::Full => "storage_full",
            Self::Unavailable => "storage_unavailable",
        }
    }

    /// Classes of SQLite's result codes; the low byte is the primary code.
    fn classify(error: &sqlx::Error) -> Self {
        const BUSY: i32 = 5;
        const LOCKED: i32 = 6;
        const FULL: i32 = 13;
        match error {
            sqlx::Error::PoolTimedOut => Self::Busy,
            sqlx::Error::Database(error) => {
                let code = error.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or_default();
                match code & 0xff {
                    BUSY | LOCKED => Self::Busy,
                    FULL => Self::Full,
                    _ => Self::Unavailable,
                }
            }
            _ => Self::Unavailable,
        }
    }
}

/// A write.
#[derive(Debug, Clone)]
pub enum Change {
    /// Keep this order.
    Create(Order),
    /// Change that order.
    Update {
        /// Which one.
        id: OrderId,
        /// To what.
        update: OrderUpdate,
    },
}

/// The answer to a write, as it is stored with its key and given again to a repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// HTTP status.
    pub status: StatusCode,
    /// The order made or changed.
    pub order: Option<OrderId>,
    /// JSON.
    pub body: Bytes,
    /// Whether it was given before.
    pub replayed: bool,
}

/// A handle to the store; cheap to clone.
#[derive(Debug, Clone)]
pub struct Store {
    readers: SqlitePool,
    writes: mpsc::Sender<Write>,
}

/// A write on its way to the writer.
#[derive(Debug)]
struct Write {
    change: Change,
    keyed: Option<KeyedRequest>,
    reply: oneshot::Sender<Result<Answer, StoreError>>,
}

/// The writer of an open store; it ends when the last [`Store`] is dropped.
#[derive(Debug)]
pub struct WriterTask(JoinHandle<()>);

/// Which orders to list.
#[derive(Debug, Clone, Copy, Default)]
pub struct Selection {
    /// Only orders older than this position.
    pub before: Option<i64>,
    /// Only orders in this status.
    pub status: Option<Status>,
    /// Most orders, at least 1.
    pub limit: u32,
}

impl Store {
    /// Opens the file, brings its tables into being and starts the writer.
    ///
    /// # Errors
    /// When the file cannot be opened or is of a later format.
    pub async fn open(options: StoreOptions, tasks: &Tasks) -> Result<(Self, WriterTask), OpenError> {
        let path = options.database.display().to_string();
        let connection = schema::open(&options).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(options.readers)
            .acquire_timeout(READER_WAIT)
            .idle_timeout(None)
            .max_lifetime(None)
            // A local file does not go away the way a server does.
            .test_before_acquire(false)
            .connect_with(schema::reader_options(&options))
            .await
            .map_err(|source| OpenError::Sqlite { path, source })?;
        let (writes, queue) = mpsc::channel(options.queue);
        let writer = Writer::new(options, connection, queue);
        let task = tasks.spawn_joinable("order-writer", writer.run());
        Ok((Self { readers, writes }, WriterTask(task)))
    }

    /// Does a write and returns once it is on disk.
    ///
    /// # Errors
    /// When the queue is full or the storage refuses; then nothing was written, unless the process is
    /// killed while answering: a caller that wants to know repeats the request under the same key.
    ///
    /// Cancel safety: a write whose caller is gone is skipped if it has not begun, else done.
    pub async fn write(&self, change: Change, keyed: Option<KeyedRequest>) -> Result<Answer, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writes.try_send(Write { change, keyed, reply }).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => StoreError::QueueFull,
            mpsc::error::TrySendError::Closed(_) => StoreError::Unavailable,
        })?;
        answer.await.unwrap_or(Err(StoreError::Unavailable))
    }

    /// One order.
    ///
    /// # Errors
    /// When the storage cannot be read.
    pub async fn order(&self, id: OrderId) -> Result<Option<Order>, StoreError> {
        rows::find(&self.readers, id).await.map_err(|error| read_failed(&error))
    }

    /// Orders, newest first.
    ///
    /// # Errors
    /// When the storage cannot be read.
    pub async fn list(&self, selection: Selection) -> Result<OrderPage, StoreError> {
        // One more than asked for tells whether there is a next page.
        let mut found = rows::list(&self.readers, selection).await.map_err(|error| read_failed(&error))?;
        let limit = usize::try_from(selection.limit).unwrap_or(usize::MAX);
        let more = found.len() > limit;
        found.truncate(limit);
        let next_cursor = found.last().filter(|_| more).map(|(position, _)| encode_cursor(*position));
        Ok(OrderPage { orders: found.into_iter().map(|(_, order)| order).collect(), next_cursor })
    }

    /// Whether orders can be read.
    ///
    /// # Errors
    /// When they cannot.
    pub async fn check(&self) -> Result<(), StoreError> {
        rows::probe(&self.readers).await.map_err(|error| read_failed(&error))
    }

    /// Lets go of the file: waits at most `limit` for the writer to finish what it has.
    pub async fn close(self, writer: WriterTask, limit: Duration) {
        let Self { readers, writes } = self;
        drop(writes);
        if tokio::time::timeout(limit, writer.0).await.is_err() {
            tracing::warn!("the writer did not finish in time");
        }
        readers.close().await;
    }
}

/// The text form of a list position; callers must not read anything into it.
fn encode_cursor(position: i64) -> String {
    format!("c{position:x}")
}

/// The position a cursor stands for.
pub fn decode_cursor(cursor: &str) -> Option<i64> {
    let digits = cursor.strip_prefix('c')?;
    if digits.starts_with(['+', '-']) {
        return None;
    }
    i64::from_str_radix(digits, 16).ok()
}

fn read_failed(error: &sqlx::Error) -> StoreError {
    tracing::warn!(%error, "reading orders failed");
    StoreError::classify(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_survive_a_round_trip_and_nothing_else_is_one() {
        for position in [0, 1, 255, i64::MAX] {
            assert_eq!(decode_cursor(&encode_cursor(position)), Some(position));
        }
        for bad in ["", "c", "7", "c-1", "c+1", "cg", "c8000000000000000"] {
            assert_eq!(decode_cursor(bad), None, "{bad}");
        }
    }
}
