//! The statements: orders and keys to rows and back. No decisions here.

use http::StatusCode;
use sqlx::sqlite::{Sqlite, SqliteConnection, SqlitePool};
use sqlx::{Error, Executor};

use super::{Answer, Selection};
use crate::idempotency::KeyedRequest;
use crate::order::{Order, OrderId, Status};

type OrderRow = (i64, String, String, String, String, String, i64, Option<String>, i64, i64, i64);

/// A stored answer and the fingerprint of the request it was for.
pub(super) struct StoredAnswer {
    pub(super) fingerprint: Vec<u8>,
    pub(super) answer: Answer,
}

pub(super) async fn find<'e, E>(executor: E, id: OrderId) -> Result<Option<Order>, Error>
where
    E: Executor<'e, Database = Sqlite>,
{
    let row: Option<OrderRow> = sqlx::query_as(
        "SELECT seq, id, status, customer, currency, items, total_minor, note, version, created_at_ms, updated_at_ms
         FROM orders WHERE id = ?",
    )
    .bind(id.to_string())
    .fetch_optional(executor)
    .await?;
    row.map(|row| decode(row).map(|(_, order)| order)).transpose()
}

/// Up to one more order than the selection's limit, each with its position.
pub(super) async fn list(pool: &SqlitePool, selection: Selection) -> Result<Vec<(i64, Order)>, Error> {
    let before = selection.before.unwrap_or(i64::MAX);
    let query = match selection.status {
        None => sqlx::query_as(
            "SELECT seq, id, status, customer, currency, items, total_minor, note, version, created_at_ms, updated_at_ms
             FROM orders WHERE seq < ? ORDER BY seq DESC LIMIT ?",
        )
        .bind(before),
        Some(status) => sqlx::query_as(
            "SELECT seq, id, status, customer, currency, items, total_minor, note, version, created_at_ms, updated_at_ms
             FROM orders WHERE status = ? AND seq < ? ORDER BY seq DESC LIMIT ?",
        )
        .bind(status.as_str())
        .bind(before),
    };
    let rows: Vec<OrderRow> = query.bind(i64::from(selection.limit) + 1).fetch_all(pool).await?;
    rows.into_iter().map(decode).collect()
}

pub(super) async fn probe(pool: &SqlitePool) -> Result<(), Error> {
    sqlx::query("SELECT seq FROM orders LIMIT 1").fetch_optional(pool).await?;
    Ok(())
}

pub(super) async fn insert(connection: &mut SqliteConnection, order: &Order) -> Result<(), Error> {
    let items = serde_json::to_string(&order.items).expect("items always serialise");
    sqlx::query(
        "INSERT INTO orders
         (id, status, customer, currency, items, total_minor, note, version, created_at_ms, updated_at_ms)
         VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
    )
    .bind(order.id.to_string())
    .bind(order.status.as_str())
    .bind(&order.customer)
    .bind(&order.currency)
    .bind(items)
    .bind(order.total_minor)
    .bind(&order.note)
    .bind(order.version)
    .bind(order.created_at_ms)
    .bind(order.updated_at_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// Writes back the fields an update can change.
pub(super) async fn update(connection: &mut SqliteConnection, order: &Order) -> Result<(), Error> {
    sqlx::query("UPDATE orders SET status = ?, note = ?, version = ?, updated_at_ms = ? WHERE id = ?")
        .bind(order.status.as_str())
        .bind(&order.note)
        .bind(order.version)
        .bind(order.updated_at_ms)
        .bind(order.id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

/// The answer stored under a key since `not_before_ms`.
pub(super) async fn stored_answer(
    connection: &mut SqliteConnection,
    key: &str,
    not_before_ms: i64,
) -> Result<Option<StoredAnswer>, Error> {
    type Row = (Vec<u8>, i64, Option<String>, Vec<u8>);
    let row: Option<Row> = sqlx::query_as(
        "SELECT fingerprint, status, order_id, body FROM idempotency_keys WHERE key = ? AND created_at_ms >= ?",
    )
    .bind(key)
    .bind(not_before_ms)
    .fetch_optional(connection)
    .await?;
    let Some((fingerprint, status, order, body)) = row else { return Ok(None) };
    let status = u16::try_from(status)
        .ok()
        .and_then(|status| StatusCode::from_u16(status).ok())
        .ok_or_else(|| damaged("status"))?;
    let order = order.map(|id| OrderId::parse(&id).map_err(|_| damaged("order_id"))).transpose()?;
    Ok(Some(StoredAnswer {
        fingerprint,
        answer: Answer { status, order, body: body.into(), replayed: true },
    }))
}

/// Remembers an answer; an expired one under the same key makes room.
pub(super) async fn store_answer(
    connection: &mut SqliteConnection,
    keyed: &KeyedRequest,
    answer: &Answer,
    now_ms: i64,
) -> Result<(), Error> {
    sqlx::query(
        "INSERT OR REPLACE INTO idempotency_keys (key, fingerprint, status, order_id, body, created_at_ms)
         VALUES (?, ?, ?, ?, ?, ?)",
    )
    .bind(keyed.key.as_str())
    .bind(&keyed.fingerprint)
    .bind(i64::from(answer.status.as_u16()))
    .bind(answer.order.map(|id| id.to_string()))
    .bind(answer.body.as_ref())
    .bind(now_ms)
    .execute(connection)
    .await?;
    Ok(())
}

/// Forgets at most `limit` keys older than `before_ms`; returns how many.
pub(super) async fn purge(
    connection: &mut SqliteConnection,
    before_ms: i64,
    limit: u32,
) -> Result<u64, Error> {
    let done = sqlx::query(
        "DELETE FROM idempotency_keys WHERE rowid IN
         (SELECT rowid FROM idempotency_keys WHERE created_at_ms < ? ORDER BY created_at_ms LIMIT ?)",
    )
    .bind(before_ms)
    .bind(limit)
    .execute(connection)
    .await?;
    Ok(done.rows_affected())
}

fn decode(row: OrderRow) -> Result<(i64, Order), Error> {
    let (
        seq,
        id,
        status,
        customer,
        currency,
        items,
        total_minor,
        note,
        version,
        created_at_ms,
        updated_at_ms,
    ) = row;
    let order = Order {
        id: OrderId::parse(&id).map_err(|_| damaged("id"))?,
        status: Status::parse(&status).ok_or_else(|| damaged("status"))?,
        customer,
        currency,
        items: serde_json::from_str(&items).map_err(|_| damaged("items"))?,
        total_minor,
        note,
        version,
        created_at_ms,
        updated_at_ms,
    };
    Ok((seq, order))
}

fn damaged(column: &'static str) -> Error {
    Error::Decode(format!("column {column} holds something this release never writes").into())
}
