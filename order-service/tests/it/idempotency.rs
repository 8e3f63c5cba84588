//! Idempotency keys: one write however often and wherever it is sent.

use std::time::Duration;

use http::Method;
use outrigger_common::tasks::Tasks;
use serde_json::{Value, json};

use crate::support::{Answer, DEADLINE, Server, cart, eventually, send};

async fn keyed(server: &Server, method: Method, path: &str, key: &str, body: &Value) -> Answer {
    send(server.address, method, path, &[("idempotency-key", key)], Some(body)).await
}

async fn count(server: &Server) -> usize {
    server.get("/v1/orders?limit=100").await.json()["orders"].as_array().unwrap().len()
}

#[tokio::test]
async fn a_repeat_gets_the_same_answer_and_does_nothing() {
    let server = Server::start().await;
    let first = keyed(&server, Method::POST, "/v1/orders", "k1", &cart()).await;
    let again = keyed(&server, Method::POST, "/v1/orders", "k1", &cart()).await;
    assert_eq!((first.status, &first.body), (again.status, &again.body));
    assert_eq!(first.header("location"), again.header("location"));
    assert_eq!(
        (first.header("idempotent-replayed"), again.header("idempotent-replayed")),
        (None, Some("true"))
    );
    assert_eq!(count(&server).await, 1);

    let path = first.header("location").unwrap().to_owned();
    let confirm = json!({ "status": "confirmed" });
    let changed = keyed(&server, Method::PATCH, &path, "k2", &confirm).await;
    let replayed = keyed(&server, Method::PATCH, &path, "k2", &confirm).await;
    assert_eq!((changed.status.as_u16(), &changed.body), (200, &replayed.body));
    assert_eq!(server.get(&path).await.json()["version"], 2);
    server.stop().await;
}

#[tokio::test]
async fn a_refusal_is_remembered_too() {
    let server = Server::start().await;
    let path = server.place().await;
    let ship = json!({ "status": "shipped" });
    let refused = keyed(&server, Method::PATCH, &path, "k", &ship).await;
    assert_eq!(refused.status, 409);
    server.patch(&path, &json!({ "status": "confirmed" })).await;
    let again = keyed(&server, Method::PATCH, &path, "k", &ship).await;
    assert_eq!((again.status, again.body), (refused.status, refused.body));
    assert_eq!(server.get(&path).await.json()["status"], "confirmed");
    server.stop().await;
}

#[tokio::test]
async fn a_key_is_for_one_request_only() {
    let server = Server::start().await;
    let first = keyed(&server, Method::POST, "/v1/orders", "k", &cart()).await;
    let mut other = cart();
    other["customer"] = json!("bob");
    let path = first.header("location").unwrap();
    for answer in [
        keyed(&server, Method::POST, "/v1/orders", "k", &other).await,
        keyed(&server, Method::PATCH, path, "k", &json!({ "status": "confirmed" })).await,
    ] {
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (422, "idempotency_key_reused"));
    }
    assert_eq!(count(&server).await, 1);
    assert_eq!(server.get(path).await.json()["status"], "pending");
    server.stop().await;
}

#[tokio::test]
async fn keys_are_checked_and_optional() {
    let server = Server::start().await;
    assert_eq!(keyed(&server, Method::POST, "/v1/orders", &"k".repeat(255), &cart()).await.status, 201);
    for bad in ["k".repeat(256), String::new(), "a b".into()] {
        let answer = keyed(&server, Method::POST, "/v1/orders", &bad, &cart()).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "invalid_parameter"), "{bad}");
    }
    let twice = [("idempotency-key", "a"), ("idempotency-key", "b")];
    assert_eq!(send(server.address, Method::POST, "/v1/orders", &twice, Some(&cart())).await.status, 400);
    server.place().await;
    server.place().await;
    assert_eq!(count(&server).await, 3);
    server.stop().await;
}

#[tokio::test]
async fn an_expired_key_is_a_new_one() {
    let server = Server::with(|config| config.store.idempotency_retention = Duration::from_millis(20)).await;
    let first = keyed(&server, Method::POST, "/v1/orders", "k", &cart()).await;
    eventually("the key never expired", async || {
        let again = keyed(&server, Method::POST, "/v1/orders", "k", &cart()).await;
        again.header("idempotent-replayed").is_none() && again.body != first.body
    })
    .await;
    server.stop().await;
}

#[tokio::test]
async fn duplicates_at_two_replicas_at_once_make_one_order() {
    let directory = tempfile::TempDir::new().unwrap();
    let file = directory.path().join("orders.db");
    // Opened at the same time: replicas race for making the tables, too.
    let (one, two) = tokio::join!(Server::on(&file, |_| ()), Server::on(&file, |_| ()));
    for round in 0..10 {
        let tasks = Tasks::current();
        let mut answers = Vec::new();
        for index in 0..16 {
            let address = if index % 2 == 0 { one.address } else { two.address };
            answers.push(tasks.spawn_joinable("duplicate", async move {
                let key = format!("round-{round}");
                send(address, Method::POST, "/v1/orders", &[("idempotency-key", &key)], Some(&cart())).await
            }));
        }
        let mut bodies = Vec::new();
        let mut fresh = 0;
        for answer in answers {
            let answer = answer.await.unwrap();
            assert_eq!(answer.status, 201);
            fresh += usize::from(answer.header("idempotent-replayed").is_none());
            bodies.push(answer.body);
        }
        bodies.dedup();
        assert_eq!((bodies.len(), fresh), (1, 1));
        assert_eq!((count(&one).await, count(&two).await), (round + 1, round + 1));
        assert_eq!(tasks.join(DEADLINE).await, 0);
    }
    one.stop().await;
    two.stop().await;
}
