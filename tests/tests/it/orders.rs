//! The reference application behind the mesh, with nothing in it that knows of the mesh.

use http::Method;
use outrigger_tests::client::request;
use outrigger_tests::mesh::Mesh;
use serde_json::{Value, json};

use crate::shop::ORDERS;

#[tokio::test]
async fn an_order_made_through_the_mesh_is_made_once_and_can_be_read_back() {
    let mesh = Mesh::start().await;
    let (_app, at) = mesh.order_service("orders-app").await;
    let _replica = mesh.sidecar("orders-1").serves_at("orders", 80, "http", at).start().await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let items = [json!({"sku": "tea", "quantity": 2, "unit_price_minor": 350})];
    let order = json!({"customer": "ada", "currency": "EUR", "items": items});
    let headers = [("idempotency-key", "k-1"), ("content-type", "application/json")];
    let mut made = Vec::new();
    for client in [front.client(), front.client_http2()] {
        let post = request(Method::POST, ORDERS, "/v1/orders", &headers, order.to_string());
        let answer = client.send(post).await.unwrap();
        assert!(answer.status.is_success(), "{} {}", answer.status, answer.text());
        made.push(serde_json::from_slice::<Value>(&answer.body).unwrap());
    }
    assert_eq!(made[0]["id"], made[1]["id"], "the same key is the same order");
    let id = made[0]["id"].as_str().unwrap();
    let answer = front.client().get(ORDERS, &format!("/v1/orders/{id}")).await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(serde_json::from_slice::<Value>(&answer.body).unwrap()["customer"], made[0]["customer"]);
    let answer = front.client().get(ORDERS, "/v1/orders/none").await.unwrap();
    assert!(answer.status.is_client_error() && answer.reason().is_empty(), "the application's own answer");
}
