//! The typed client: through a proxy, with keys, with trace headers, over connections that break.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{HeaderMap, HeaderValue, StatusCode};
use order_service::client::{Call, Client, ClientError, ClientOptions, TraceHeaders};
use order_service::idempotency::IdempotencyKey;
use order_service::order::{OrderId, OrderUpdate, Status};
use order_service::routes::ListQuery;
use outrigger_common::tasks::Tasks;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::support::{Proxy, Server, new_order};

fn confirm() -> OrderUpdate {
    OrderUpdate { status: Some(Status::Confirmed), ..OrderUpdate::default() }
}

fn direct(address: std::net::SocketAddr) -> ClientOptions {
    ClientOptions::direct(format!("http://{address}").parse().unwrap())
}

#[tokio::test]
async fn every_call_works_and_writes_always_carry_a_key() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address).await;
    let options = ClientOptions {
        proxy: Some(proxy.url().parse().unwrap()),
        ..ClientOptions::direct("http://orders.shop".parse().unwrap())
    };
    let client = Client::new(options);
    let call = Call::default();
    let placed = client.create(&new_order(), &call).await.unwrap();
    let id = placed.value.id;
    assert_eq!(client.get(id, &call).await.unwrap(), placed.value);
    let changed = client.update(id, &confirm(), &call).await.unwrap();
    assert_eq!((changed.value.status, changed.replayed), (Status::Confirmed, false));
    let query = ListQuery { limit: Some(1), status: Some(Status::Confirmed), ..ListQuery::default() };
    assert_eq!(client.list(&query, &call).await.unwrap().orders, [changed.value]);

    let seen = proxy.seen();
    let lines: Vec<_> = seen.iter().map(|seen| format!("{} {}", seen.method, seen.target)).collect();
    assert_eq!(
        lines,
        [
            "POST http://orders.shop/v1/orders".to_owned(),
            format!("GET http://orders.shop/v1/orders/{id}"),
            format!("PATCH http://orders.shop/v1/orders/{id}"),
            "GET http://orders.shop/v1/orders?limit=1&status=confirmed".to_owned(),
        ]
    );
    assert!(seen.iter().all(|seen| seen.headers["host"] == "orders.shop"));
    let keys: Vec<_> = seen.iter().map(|seen| seen.headers.get("idempotency-key").cloned()).collect();
    assert_eq!(keys[0].as_ref().unwrap(), placed.key.as_str());
    assert!(keys[1].is_none() && keys[2].is_some() && keys[3].is_none() && keys[0] != keys[2]);
    server.stop().await;
}

#[tokio::test]
async fn the_callers_own_key_makes_a_write_repeatable() {
    let server = Server::start().await;
    let client = Client::new(direct(server.address));
    let call = Call { key: Some(IdempotencyKey::parse(b"mine").unwrap()), ..Call::default() };
    let first = client.create(&new_order(), &call).await.unwrap();
    let again = client.create(&new_order(), &call).await.unwrap();
    assert_eq!((first.replayed, again.replayed), (false, true));
    assert_eq!(first.value, again.value);
    server.stop().await;
}

#[tokio::test]
async fn trace_headers_are_passed_on() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address).await;
    let options = ClientOptions { proxy: Some(proxy.url().parse().unwrap()), ..direct(server.address) };
    let mut incoming = HeaderMap::new();
    for name in ["traceparent", "tracestate", "baggage", "b3", "x-b3-sampled", "x-request-id"] {
        incoming.insert(name, HeaderValue::from_static("value"));
    }
    let call = Call { trace: TraceHeaders::from_headers(&incoming), ..Call::default() };
    let client = Client::new(options);
    let placed = client.create(&new_order(), &call).await.unwrap();
    client.get(placed.value.id, &call).await.unwrap();
    for seen in proxy.seen() {
        assert!(incoming.keys().all(|name| seen.headers[name] == "value"), "{seen:?}");
    }
    server.stop().await;
}

#[tokio::test]
async fn refusals_are_told_from_other_failures() {
    let server = Server::start().await;
    let client = Client::new(direct(server.address));
    let error = client.get(OrderId::random(), &Call::default()).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Refused { status: StatusCode::NOT_FOUND, code, .. } if code == "order_not_found"),
        "{error}"
    );
    server.stop().await;

    let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = free.local_addr().unwrap();
    let slow = Client::new(ClientOptions { timeout: Duration::from_millis(20), ..direct(address) });
    let error = slow.get(OrderId::random(), &Call::default()).await.unwrap_err();
    assert_eq!(error, ClientError::Timeout(Duration::from_millis(20)));
    drop(free);
    let error = Client::new(direct(address)).get(OrderId::random(), &Call::default()).await.unwrap_err();
    assert!(
        matches!(&error, ClientError::Connect { address: named, .. } if *named == address.to_string()),
        "{error}"
    );
}

/// A server that answers one request a connection and then closes it without having said so, like one
/// whose idle time is over at the wrong moment.
async fn one_answer_a_connection(requests: Arc<AtomicUsize>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Tasks::current().spawn("closing-server", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            requests.fetch_add(1, Ordering::Relaxed);
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\n{\"orders\":[]}";
            stream.write_all(answer).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn a_kept_connection_that_was_closed_costs_nothing_but_a_new_one() {
    let requests = Arc::new(AtomicUsize::new(0));
    let client = Client::new(direct(one_answer_a_connection(requests.clone()).await));
    for _ in 0..50 {
        client.list(&ListQuery::default(), &Call::default()).await.unwrap();
    }
    assert_eq!(requests.load(Ordering::Relaxed), 50);
}

#[tokio::test]
async fn connections_are_kept_and_bounded() {
    let server = Server::with(|config| config.max_connections = 2).await;
    let client = Client::new(ClientOptions { max_connections: 2, ..direct(server.address) });
    let tasks = Tasks::current();
    let calls: Vec<_> = (0..100)
        .map(|_| {
            let client = client.clone();
            tasks.spawn_joinable("call", async move { client.create(&new_order(), &Call::default()).await })
        })
        .collect();
    // More connections than the server takes, or one that is never given back, would hang here.
    for call in calls {
        call.await.unwrap().unwrap();
    }
    drop(client);
    server.stop().await;
}
