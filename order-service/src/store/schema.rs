//! Opening the file: connection settings, tables, format number.

use std::time::{Duration, Instant};

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Connection};

use super::{OpenError, StoreError, StoreOptions};

/// The format this release writes, kept in `user_version`.
const FORMAT: i64 = 1;
/// SQLite's default page, in bytes.
const PAGE: usize = 4096;
/// What the write-ahead log is cut back to after a checkpoint, in bytes.
const WAL_KEPT: &str = "16777216";
/// How long SQLite itself waits for a lock before the writer's own retries take over. Short, because
/// SQLite's waits grow to 100 ms a step, far longer than another process takes to commit.
const WRITER_LOCK_WAIT: Duration = Duration::from_millis(5);
/// Readers meet locks only while another process opens or closes the file.
const READER_LOCK_WAIT: Duration = Duration::from_secs(1);
/// How long opening retries while other processes open the same new file.
const OPEN_WAIT: Duration = Duration::from_secs(10);

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS orders (
    -- Never used again, so that a list position stays where it was.
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    status TEXT NOT NULL,
    customer TEXT NOT NULL,
    currency TEXT NOT NULL,
    items TEXT NOT NULL,
    total_minor INTEGER NOT NULL,
    note TEXT,
    version INTEGER NOT NULL,
    created_at_ms INTEGER NOT NULL,
    updated_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS orders_by_status ON orders (status, seq);
CREATE TABLE IF NOT EXISTS idempotency_keys (
    key TEXT PRIMARY KEY,
    fingerprint BLOB NOT NULL,
    status INTEGER NOT NULL,
    order_id TEXT,
    body BLOB NOT NULL,
    created_at_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS idempotency_keys_by_age ON idempotency_keys (created_at_ms);
PRAGMA user_version = 1;
";

/// Settings of the writing connection.
pub(super) fn writer_options(options: &StoreOptions) -> SqliteConnectOptions {
    let pages = (options.max_database_bytes / PAGE).to_string();
    SqliteConnectOptions::new()
        .filename(&options.database)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(WRITER_LOCK_WAIT)
        .pragma("max_page_count", pages)
        .pragma("journal_size_limit", WAL_KEPT)
        .disable_statement_logging()
}

/// Settings of a reading connection.
pub(super) fn reader_options(options: &StoreOptions) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(&options.database)
        .read_only(true)
        .busy_timeout(READER_LOCK_WAIT)
        .disable_statement_logging()
}

/// Opens the writing connection and makes the tables if they are missing.
pub(super) async fn open(options: &StoreOptions) -> Result<SqliteConnection, OpenError> {
    let path = options.database.display().to_string();
    let deadline = Instant::now() + OPEN_WAIT;
    loop {
        match connect_and_prepare(options).await {
            Ok((connection, FORMAT)) => return Ok(connection),
            Ok((_, found)) => return Err(OpenError::Format { path, found, known: FORMAT }),
            // Replicas that start together race for the switch to WAL and for making the tables.
            Err(error) if StoreError::classify(&error) == StoreError::Busy && Instant::now() < deadline => {
                tokio::time::sleep(Duration::from_millis(fastrand::u64(5..50))).await;
            }
            Err(source) => return Err(OpenError::Sqlite { path, source }),
        }
    }
}

async fn connect_and_prepare(options: &StoreOptions) -> Result<(SqliteConnection, i64), sqlx::Error> {
    let mut connection = writer_options(options).connect().await?;
    let mut format = format_of(&mut connection).await?;
    if format == 0 {
        let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::raw_sql(TABLES).execute(&mut *transaction).await?;
        transaction.commit().await?;
        format = format_of(&mut connection).await?;
    }
    Ok((connection, format))
}

async fn format_of(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("PRAGMA user_version").fetch_one(connection).await
}
