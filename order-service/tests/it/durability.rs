//! What is answered is kept: through SIGKILL, a full database, a lock and a queue that is full.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use outrigger_common::tasks::Tasks;
use serde_json::json;
use tempfile::TempDir;

use crate::support::{Process, Server, cart, eventually, exchange, send};

#[tokio::test]
async fn every_answered_order_survives_sigkill_and_every_unanswered_one_can_be_repeated() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("orders.db");
    let process = Process::server(&file);
    let address = process.address;
    let tasks = Tasks::current();
    let answered = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let writers: Vec<_> = (0..8)
        .map(|writer| {
            let answered = answered.clone();
            tasks.spawn_joinable("writer", async move {
                let mut outcomes = Vec::new();
                for index in 0..10_000 {
                    let key = format!("{writer}-{index}");
                    // The connection breaks when the process is killed, at whatever point it is then.
                    let body = try_create(address, &key).await;
                    let broken = body.is_none();
                    outcomes.push((key, body));
                    if broken {
                        return outcomes;
                    }
                    answered.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                }
                outcomes
            })
        })
        .collect();
    eventually("no orders were answered", async || answered.load(std::sync::atomic::Ordering::Relaxed) > 50)
        .await;
    process.kill();

    let process = Process::server(&file);
    let mut all = 0;
    for writer in writers {
        for (key, body) in writer.await.unwrap() {
            let headers = [("idempotency-key", key.as_str())];
            let again = send(process.address, Method::POST, "/v1/orders", &headers, Some(&cart())).await;
            assert_eq!(again.status, 201);
            if let Some(body) = body {
                assert_eq!(again.body, body, "{key} was answered and then forgotten");
            }
            let path = again.header("location").unwrap();
            assert_eq!(send(process.address, Method::GET, path, &[], None).await.body, again.body);
            all += 1;
        }
    }
    let (mut listed, mut path) = (0, "/v1/orders?limit=100".to_owned());
    loop {
        let page = send(process.address, Method::GET, &path, &[], None).await.json();
        listed += page["orders"].as_array().unwrap().len();
        let Some(cursor) = page["next_cursor"].as_str() else { break };
        path = format!("/v1/orders?limit=100&cursor={cursor}");
    }
    assert_eq!(listed, all, "one order a key, neither more nor less");
}

/// The body of the answer, or nothing when the connection broke.
async fn try_create(address: std::net::SocketAddr, key: &str) -> Option<Bytes> {
    let request = Request::post("/v1/orders")
        .header("host", "orders")
        .header("content-type", "application/json")
        .header("idempotency-key", key)
        .body(Full::new(Bytes::from(cart().to_string())))
        .unwrap();
    let answer = exchange(address, request).await.ok()?;
    assert_eq!(answer.status, 201);
    Some(answer.body)
}

#[tokio::test]
async fn an_order_made_at_one_replica_is_found_at_the_others() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("orders.db");
    let (one, two) = (Process::server(&file), Process::server(&file));
    for _ in 0..20 {
        let placed = send(one.address, Method::POST, "/v1/orders", &[], Some(&cart())).await;
        let path = placed.header("location").unwrap();
        assert_eq!(send(two.address, Method::GET, path, &[], None).await.body, placed.body);
        let confirm = json!({ "status": "confirmed" });
        assert_eq!(send(two.address, Method::PATCH, path, &[], Some(&confirm)).await.status, 200);
        assert_eq!(send(one.address, Method::GET, path, &[], None).await.json()["status"], "confirmed");
    }
}

#[tokio::test]
async fn the_file_is_a_write_ahead_log_database_of_this_format() {
    let server = Server::start().await;
    let mut connection = server.database().await;
    let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
    assert_eq!(mode, "wal");
    sqlx::query("PRAGMA user_version = 99").execute(&mut connection).await.unwrap();
    let database = server.database.to_str().unwrap();
    let output =
        crate::support::command(&["server", "--listen", "127.0.0.1:0", "--database", database]).output();
    let output = output.unwrap();
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1));
    assert!(message.contains("format 99") && message.contains("use a newer release"), "{message}");
    server.stop().await;
}

#[tokio::test]
async fn a_full_database_refuses_writes_whole_and_serves_reads() {
    let server = Server::with(|config| config.store.max_database_bytes = 96 * 1024).await;
    let path = server.place().await;
    let mut big = cart();
    big["note"] = json!("n".repeat(500));
    let mut stored = 1;
    let refused = loop {
        let answer = server.post("/v1/orders", &big).await;
        if answer.status != 201 {
            break answer;
        }
        stored += 1;
        assert!(stored < 10_000, "the bound does not hold");
    };
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (507, "storage_full"));
    assert_eq!(refused.header("retry-after"), Some("60"));
    assert_eq!(server.get(&path).await.status, 200);
    assert_eq!(server.get("/healthz").await.status, 200);
    let mut connection = server.database().await;
    let rows: i64 =
        sqlx::query_scalar("SELECT count(*) FROM orders").fetch_one(&mut connection).await.unwrap();
    assert_eq!(rows, stored, "a refused order must leave nothing behind");
    // Room made by hand is used at once: the writer finds its way back.
    sqlx::query("DELETE FROM orders WHERE note IS NOT NULL").execute(&mut connection).await.unwrap();
    assert_eq!(server.post("/v1/orders", &cart()).await.status, 201);
    server.stop().await;
}

#[tokio::test]
async fn another_writers_lock_is_waited_for_and_then_reported() {
    use sqlx::Connection;
    let server = Server::with(|config| {
        config.store.busy_timeout = Duration::from_millis(200);
        config.store.queue = 1;
        config.store.batch = 1;
    })
    .await;
    let path = server.place().await;
    let mut connection = server.database().await;
    let lock = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let address = server.address;
    let tasks = Tasks::current();
    let writes: Vec<_> = (0..4)
        .map(|_| {
            tasks.spawn_joinable("write", async move {
                let answer = send(address, Method::POST, "/v1/orders", &[], Some(&cart())).await;
                (answer.status.as_u16(), answer.code(), answer.header("retry-after").map(str::to_owned))
            })
        })
        .collect();
    let mut codes = Vec::new();
    for write in writes {
        let (status, code, retry_after) = write.await.unwrap();
        assert_eq!((status, retry_after.as_deref()), (503, Some("1")));
        codes.push(code);
    }
    codes.sort();
    codes.dedup();
    assert_eq!(codes, ["overloaded", "storage_busy"]);
    assert_eq!(server.get(&path).await.status, 200, "reads must not wait for writers");
    lock.rollback().await.unwrap();
    assert_eq!(server.post("/v1/orders", &cart()).await.status, 201);
    server.stop().await;
}
