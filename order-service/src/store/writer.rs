//! The writer: takes what waits, does it in one transaction, answers after the commit.
//!
//! A commit costs a flush of the disk however much it holds, so writes that arrive during one flush
//! share the next. Each write has its own savepoint: one that fails does not undo its neighbours.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use sqlx::sqlite::SqliteConnection;
use sqlx::{ConnectOptions, Connection};
use tokio::sync::mpsc;

use super::{Answer, Change, StoreError, StoreOptions, Write, rows, schema};
use crate::error::Error;
use crate::order::{Order, OrderId};

/// Time between looks for expired keys.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// The same while there is more to forget than one look may take.
const PURGE_AGAIN: Duration = Duration::from_secs(1);
/// Most keys forgotten at once, so that no write waits long behind it.
const PURGE_LIMIT: u32 = 500;

pub(super) struct Writer {
    options: StoreOptions,
    /// Absent after a failure: SQLite may have rolled back on its own, so the connection's idea of
    /// where it stands is not to be trusted.
    connection: Option<SqliteConnection>,
    queue: mpsc::Receiver<Write>,
    /// Whether the last batch failed; a failing disk is logged when it starts and when it ends.
    failing: bool,
}

impl Writer {
    pub(super) fn new(
        options: StoreOptions,
        connection: SqliteConnection,
        queue: mpsc::Receiver<Write>,
    ) -> Self {
        Self { options, connection: Some(connection), queue, failing: false }
    }

    /// Runs until every sender is gone and everything received is answered.
    pub(super) async fn run(mut self) {
        // Replicas on one file should not look at the same moment.
        let mut purge_at = tokio::time::Instant::now() + PURGE_EVERY.mul_f64(fastrand::f64());
        loop {
            tokio::select! {
                first = self.queue.recv() => match first {
                    Some(first) => self.write(first).await,
                    None => break,
                },
                () = tokio::time::sleep_until(purge_at) => purge_at = tokio::time::Instant::now() + self.purge().await,
            }
        }
        if let Some(connection) = self.connection.take() {
            let _unflushed = connection.close().await;
        }
    }

    async fn write(&mut self, first: Write) {
        let mut batch = Vec::with_capacity(self.queue.len().min(self.options.batch) + 1);
        batch.push(first);
        while batch.len() < self.options.batch
            && let Ok(next) = self.queue.try_recv()
        {
            batch.push(next);
        }
        // Nobody waits for these any more, and none has begun.
        batch.retain(|write| !write.reply.is_closed());
        if batch.is_empty() {
            return;
        }
        let result = self.commit(&batch).await;
        for (index, write) in batch.into_iter().enumerate() {
            let answer = match &result {
                Ok(answers) => answers[index].clone(),
                Err(error) => Err(*error),
            };
            let _caller_gone = write.reply.send(answer);
        }
    }

    /// Tries until the write lock is had or the time is up.
    async fn commit(&mut self, batch: &[Write]) -> Result<Vec<Result<Answer, StoreError>>, StoreError> {
        let deadline = Instant::now() + self.options.busy_timeout;
        loop {
            let result = self.attempt(batch).await;
            match self.judge(result) {
                Err(StoreError::Busy) if Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_micros(fastrand::u64(500..4000))).await;
                }
                done => return done,
            }
        }
    }

    async fn attempt(&mut self, batch: &[Write]) -> Result<Vec<Result<Answer, StoreError>>, sqlx::Error> {
        let now_ms = unix_ms();
        let key_horizon_ms = self.key_horizon_ms(now_ms);
        let mut transaction = self.connected().await?.begin_with("BEGIN IMMEDIATE").await?;
        let mut answers = Vec::with_capacity(batch.len());
        if let [only] = batch {
            // Alone in its transaction, a write needs no savepoint.
            answers.push(Ok(apply(&mut transaction, only, now_ms, key_horizon_ms).await?));
        } else {
            for write in batch {
                let mut savepoint = transaction.begin().await?;
                match apply(&mut savepoint, write, now_ms, key_horizon_ms).await {
                    Ok(answer) => {
                        savepoint.commit().await?;
                        answers.push(Ok(answer));
                    }
                    Err(error) if ends_transaction(&error) => return Err(error),
                    Err(error) => {
                        tracing::warn!(%error, "a write failed; the others of its batch go on");
                        savepoint.rollback().await?;
                        answers.push(Err(StoreError::classify(&error)));
                    }
                }
            }
        }
        transaction.commit().await?;
        Ok(answers)
    }

    /// Turns a failure into its class; drops the connection unless it only met a lock.
    fn judge<T>(&mut self, result: Result<T, sqlx::Error>) -> Result<T, StoreError> {
        match result {
            Ok(value) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("writing orders works again");
                }
                Ok(value)
            }
            Err(error) => {
                let class = StoreError::classify(&error);
                if class != StoreError::Busy {
                    self.connection = None;
                    if !std::mem::replace(&mut self.failing, true) {
                        tracing::error!(%error, "writing orders failed; reads go on");
                    }
                }
                Err(class)
            }
        }
    }

    /// Forgets some expired keys; returns when to look again.
    async fn purge(&mut self) -> Duration {
        let before_ms = self.key_horizon_ms(unix_ms());
        let result = async {
            let mut transaction = self.connected().await?.begin_with("BEGIN IMMEDIATE").await?;
            let forgotten = rows::purge(&mut transaction, before_ms, PURGE_LIMIT).await?;
            transaction.commit().await?;
            Ok(forgotten)
        }
        .await;
        match self.judge(result) {
            Ok(forgotten) if forgotten >= u64::from(PURGE_LIMIT) => PURGE_AGAIN,
            Ok(_) | Err(_) => PURGE_EVERY,
        }
    }

    async fn connected(&mut self) -> Result<&mut SqliteConnection, sqlx::Error> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => schema::writer_options(&self.options).connect().await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// Keys older than this are forgotten.
    fn key_horizon_ms(&self, now_ms: i64) -> i64 {
        now_ms - i64::try_from(self.options.idempotency_retention.as_millis()).unwrap_or(i64::MAX)
    }
}

/// Does one write, or finds that it was done before.
async fn apply(
    connection: &mut SqliteConnection,
    write: &Write,
    now_ms: i64,
    key_horizon_ms: i64,
) -> Result<Answer, sqlx::Error> {
    if let Some(keyed) = &write.keyed
        && let Some(stored) = rows::stored_answer(connection, keyed.key.as_str(), key_horizon_ms).await?
    {
        return Ok(if stored.fingerprint == keyed.fingerprint {
            stored.answer
        } else {
            refuse(&Error::KeyReused)
        });
    }
    let answer = match &write.change {
        Change::Create(order) => {
            rows::insert(connection, order).await?;
            accept(StatusCode::CREATED, order)
        }
        Change::Update { id, update } => match rows::find(&mut *connection, *id).await? {
            None => refuse(&Error::OrderNotFound(*id)),
            Some(order) => match order.updated(update, now_ms) {
                Err(refusal) => refuse(&refusal.into()),
                Ok(order) => {
                    rows::update(connection, &order).await?;
                    accept(StatusCode::OK, &order)
                }
            },
        },
    };
    // Refusals are kept too: a repeat must not succeed where the caller was told it had not.
    if let Some(keyed) = &write.keyed {
        rows::store_answer(connection, keyed, &answer, now_ms).await?;
    }
    Ok(answer)
}

fn accept(status: StatusCode, order: &Order) -> Answer {
    let body = serde_json::to_vec(order).expect("an order always serialises");
    Answer { status, order: Some(order.id), body: body.into(), replayed: false }
}

fn refuse(error: &Error) -> Answer {
    let order: Option<OrderId> = None;
    Answer { status: error.status(), order, body: error.body(), replayed: false }
}

/// Only a constraint is certain to leave the rest of the transaction standing; after a full disk, an
/// input/output error or the like SQLite may have rolled everything back.
fn ends_transaction(error: &sqlx::Error) -> bool {
    const CONSTRAINT: i32 = 19;
    let sqlx::Error::Database(error) = error else {
        // A row this release cannot read concerns that write alone.
        return !matches!(error, sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. });
    };
    let code = error.code().and_then(|code| code.parse::<i32>().ok()).unwrap_or_default();
    code & 0xff != CONSTRAINT
}

/// Milliseconds since the Unix epoch.
pub(crate) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::idempotency::{IdempotencyKey, KeyedRequest};
    use crate::order::{Item, NewOrder};
    use tokio::sync::oneshot;

    fn options(directory: &tempfile::TempDir) -> StoreOptions {
        StoreOptions {
            database: directory.path().join("orders.db"),
            queue: 8,
            batch: 8,
            readers: 1,
            busy_timeout: Duration::from_secs(5),
            max_database_bytes: 1 << 30,
            idempotency_retention: Duration::from_secs(3600),
        }
    }

    fn order() -> Order {
        let items = vec![Item { sku: "tea".into(), quantity: 1, unit_price_minor: 1 }];
        let new = NewOrder { customer: "ada".into(), currency: "EUR".into(), items, note: None };
        new.place(OrderId::random(), 1).unwrap()
    }

    async fn writer(options: StoreOptions) -> Writer {
        let connection = schema::open(&options).await.unwrap();
        let (_, queue) = mpsc::channel(1);
        Writer::new(options, connection, queue)
    }

    fn write(change: Change, keyed: Option<KeyedRequest>) -> Write {
        Write { change, keyed, reply: oneshot::channel().0 }
    }

    #[tokio::test]
    async fn a_commit_is_flushed_before_it_is_answered() {
        let directory = tempfile::TempDir::new().unwrap();
        let mut writer = writer(options(&directory)).await;
        let connection = writer.connected().await.unwrap();
        let synchronous: i64 = sqlx::query_scalar("PRAGMA synchronous").fetch_one(connection).await.unwrap();
        assert_eq!(synchronous, 2, "2 is FULL");
    }

    #[tokio::test]
    async fn one_failing_write_does_not_undo_its_neighbours() {
        let directory = tempfile::TempDir::new().unwrap();
        let mut writer = writer(options(&directory)).await;
        let (first, last) = (order(), order());
        let keyed = KeyedRequest::new(IdempotencyKey::random(), "POST", "/", b"");
        let batch = [
            write(Change::Create(first.clone()), None),
            // The same id again: the unique constraint refuses it, its key must not be kept either.
            write(Change::Create(first.clone()), Some(keyed.clone())),
            write(Change::Create(last.clone()), None),
        ];
        let answers = writer.commit(&batch).await.unwrap();
        assert!(answers[0].is_ok() && answers[2].is_ok());
        assert_eq!(answers[1], Err(StoreError::Unavailable));
        let connection = writer.connected().await.unwrap();
        assert_eq!(rows::find(&mut *connection, first.id).await.unwrap(), Some(first));
        assert_eq!(rows::find(&mut *connection, last.id).await.unwrap(), Some(last));
        assert!(rows::stored_answer(connection, keyed.key.as_str(), 0).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_repeat_in_the_same_batch_is_a_repeat() {
        let directory = tempfile::TempDir::new().unwrap();
        let mut writer = writer(options(&directory)).await;
        let keyed = Some(KeyedRequest::new(IdempotencyKey::random(), "POST", "/", b""));
        let batch = [write(Change::Create(order()), keyed.clone()), write(Change::Create(order()), keyed)];
        let answers: Vec<_> = writer.commit(&batch).await.unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!((answers[0].replayed, answers[1].replayed), (false, true));
        assert_eq!(answers[0].body, answers[1].body);
    }

    #[tokio::test]
    async fn expired_keys_are_forgotten_a_bounded_number_at_a_time() {
        let directory = tempfile::TempDir::new().unwrap();
        let mut writer = writer(options(&directory)).await;
        let answer = accept(StatusCode::CREATED, &order());
        let connection = writer.connected().await.unwrap();
        let mut transaction = connection.begin().await.unwrap();
        let fresh = KeyedRequest::new(IdempotencyKey::random(), "POST", "/", b"");
        rows::store_answer(&mut transaction, &fresh, &answer, unix_ms()).await.unwrap();
        for _ in 0..=PURGE_LIMIT {
            let old = KeyedRequest::new(IdempotencyKey::random(), "POST", "/", b"");
            rows::store_answer(&mut transaction, &old, &answer, 1).await.unwrap();
        }
        transaction.commit().await.unwrap();
        assert_eq!(writer.purge().await, PURGE_AGAIN);
        assert_eq!(writer.purge().await, PURGE_EVERY);
        let connection = writer.connected().await.unwrap();
        let left: i64 =
            sqlx::query_scalar("SELECT count(*) FROM idempotency_keys").fetch_one(connection).await.unwrap();
        assert_eq!(left, 1);
    }
}
