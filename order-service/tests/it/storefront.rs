//! Storefront mode as a user meets it.

use std::net::SocketAddr;
use std::time::Duration;

use http::Method;
use order_service::config::{Config, Overrides};
use order_service::storefront;
use outrigger_common::drain::DrainTrigger;
use outrigger_common::tasks::Tasks;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use crate::support::{Answer, DEADLINE, Process, Proxy, Server, cart, exchange};

struct Shop {
    address: SocketAddr,
    trigger: DrainTrigger,
    tasks: Tasks,
}

impl Shop {
    async fn start(orders: &str, proxy: Option<String>) -> Self {
        let overrides = Overrides {
            listen: Some("127.0.0.1:0".parse().unwrap()),
            orders: Some(orders.to_owned()),
            proxy,
            ..Overrides::default()
        };
        let mut config = Config::load(None, overrides).unwrap().storefront;
        config.client.timeout = Duration::from_secs(1);
        let (tasks, trigger) = (Tasks::current(), DrainTrigger::new());
        let (ready, address) = oneshot::channel();
        let drain = trigger.listen();
        tasks.spawn("storefront", async move {
            storefront::run(config, |address| ready.send(address).unwrap(), drain).await.unwrap();
        });
        Self { address: address.await.unwrap(), trigger, tasks }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Answer {
        ask(self.address, method, path, headers, body).await
    }

    async fn stop(self) {
        self.trigger.start();
        assert_eq!(self.tasks.join(DEADLINE).await, 0);
    }
}

/// One request to a storefront, which has no interface document to be held against.
async fn ask(
    address: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&Value>,
) -> Answer {
    let mut request = http::Request::builder().method(method).uri(path).header("host", "shop");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    exchange(address, request.body(bytes::Bytes::from(body).into()).unwrap()).await.unwrap()
}

#[tokio::test]
async fn a_user_buys_looks_pays_and_gets() {
    let server = Server::start().await;
    let proxy = Proxy::start(server.address).await;
    let shop = Shop::start("http://orders.shop", Some(proxy.url())).await;
    let trace =
        [("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), ("cookie", "secret")];
    let bought = shop.send(Method::POST, "/checkout", &trace, Some(&cart())).await;
    assert_eq!(bought.status, 201);
    let path = bought.header("location").unwrap().to_owned();
    assert_eq!(path, format!("/orders/{}", bought.json()["id"].as_str().unwrap()));
    assert_eq!(shop.send(Method::GET, &path, &trace, None).await.body, bought.body);
    for (action, status) in [("pay", "confirmed"), ("ship", "shipped"), ("deliver", "delivered")] {
        let answer = shop.send(Method::POST, &format!("{path}/{action}"), &trace, None).await;
        assert_eq!((answer.status.as_u16(), answer.json()["status"].as_str()), (200, Some(status)));
    }
    let late = shop.send(Method::POST, &format!("{path}/cancel"), &trace, None).await;
    assert_eq!((late.status.as_u16(), late.code().as_str()), (409, "illegal_transition"));
    let list = shop.send(Method::GET, "/orders?limit=5&status=delivered", &trace, None).await;
    assert_eq!(list.json()["orders"].as_array().unwrap().len(), 1);
    for seen in proxy.seen() {
        assert!(seen.target.starts_with("http://orders.shop/v1/orders"), "{seen:?}");
        assert_eq!(seen.headers["traceparent"], trace[0].1);
        assert!(!seen.headers.contains_key("cookie"));
        assert_eq!(seen.headers.contains_key("idempotency-key"), seen.method != Method::GET);
    }
    shop.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_users_key_makes_a_checkout_repeatable() {
    let server = Server::start().await;
    let shop = Shop::start(&format!("http://{}", server.address), None).await;
    let key = [("idempotency-key", "cart-7")];
    let first = shop.send(Method::POST, "/checkout", &key, Some(&cart())).await;
    let again = shop.send(Method::POST, "/checkout", &key, Some(&cart())).await;
    assert_eq!((first.body, again.header("idempotent-replayed")), (again.body.clone(), Some("true")));
    let mut other = cart();
    other["customer"] = json!("bob");
    let reused = shop.send(Method::POST, "/checkout", &key, Some(&other)).await;
    assert_eq!((reused.status.as_u16(), reused.code().as_str()), (422, "idempotency_key_reused"));
    shop.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn what_is_wrong_is_told_from_what_is_broken() {
    let server = Server::start().await;
    let shop = Shop::start(&format!("http://{}", server.address), None).await;
    let missing = "/orders/01890a5d-ac96-774b-bcce-b302099a8057";
    for (method, path, body, status, code) in [
        (Method::GET, missing, None, 404, "order_not_found"),
        (Method::GET, "/orders/7", None, 400, "invalid_parameter"),
        (Method::GET, "/orders?limit=1000", None, 400, "invalid_parameter"),
        (Method::POST, "/orders/7/pay", None, 400, "invalid_parameter"),
        (Method::POST, "/orders/7/lose", None, 404, "no_such_path"),
        (Method::POST, "/checkout", Some(json!({ "colour": "red" })), 422, "invalid_body"),
        (Method::GET, "/checkout", None, 405, "method_not_allowed"),
    ] {
        let answer = shop.send(method.clone(), path, &[], body.as_ref()).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{method} {path}");
    }
    server.stop().await;
    let answer = shop.send(Method::GET, missing, &[], None).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (502, "orders_unreachable"));
    shop.stop().await;
}

/// A server that gives every request the same bytes.
async fn answering(bytes: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Tasks::current().spawn("answering", async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(bytes.as_bytes()).await.unwrap();
        }
    });
    address
}

#[tokio::test]
async fn answers_of_something_on_the_way_are_quoted() {
    for (bytes, status, code) in [
        ("HTTP/1.1 403 Forbidden\r\ncontent-length: 9\r\n\r\nnot today", 502, "orders_failed"),
        (
            "HTTP/1.1 503 Unavailable\r\nretry-after: 7\r\ncontent-length: 9\r\n\r\nnot today",
            503,
            "orders_unavailable",
        ),
        ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnot today", 502, "orders_failed"),
    ] {
        let shop = Shop::start(&format!("http://{}", answering(bytes).await), None).await;
        let answer = shop.send(Method::GET, "/orders", &[], None).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{bytes}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains("not today"));
        assert_eq!(answer.header("retry-after"), bytes.contains("retry-after").then_some("7"));
        shop.stop().await;
    }
}

#[tokio::test]
async fn no_answer_in_time_is_a_gateway_timeout() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let shop = Shop::start(&format!("http://{}", silent.local_addr().unwrap()), None).await;
    let answer = shop.send(Method::GET, "/orders", &[], None).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (504, "orders_timeout"));
    shop.stop().await;
}

#[tokio::test]
async fn the_binary_runs_both_modes_together() {
    let directory = tempfile::TempDir::new().unwrap();
    let server = Process::server(&directory.path().join("orders.db"));
    let orders = format!("http://{}", server.address);
    let shop =
        Process::start(&["storefront", "--listen", "127.0.0.1:0", "--output", "json", "--orders", &orders]);
    let bought = ask(shop.address, Method::POST, "/checkout", &[], Some(&cart())).await;
    assert_eq!(bought.status, 201);
    assert_eq!(ask(shop.address, Method::GET, "/healthz", &[], None).await.status, 200);
}
