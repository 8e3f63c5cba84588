//! Create, read, list, update: what is accepted, what is refused, and how.

use bytes::Bytes;
use http::Method;
use order_service::order::Status;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Server, cart, send, send_bytes};

#[tokio::test]
async fn an_order_is_placed_read_changed_and_listed() {
    let server = Server::start().await;
    let placed = server.post("/v1/orders", &cart()).await;
    assert_eq!(placed.status, 201);
    let order = placed.json();
    let path = format!("/v1/orders/{}", order["id"].as_str().unwrap());
    assert_eq!(placed.header("location"), Some(path.as_str()));
    assert_eq!((order["status"].as_str(), &order["total_minor"]), (Some("pending"), &json!(700)));
    assert_eq!(server.get(&path).await.json(), order);

    let changed = server.patch(&path, &json!({ "status": "confirmed", "note": "gift", "version": 1 })).await;
    assert_eq!(changed.status, 200);
    let after = changed.json();
    assert_eq!(
        (&after["status"], &after["note"], &after["version"]),
        (&json!("confirmed"), &json!("gift"), &json!(2))
    );
    assert_eq!(server.get(&path).await.json(), after);
    assert_eq!(server.get("/v1/orders").await.json(), json!({ "orders": [after] }));

    let stale = server.patch(&path, &json!({ "note": "late", "version": 1 })).await;
    assert_eq!((stale.status.as_u16(), stale.code().as_str()), (409, "version_conflict"));
    server.stop().await;
}

#[tokio::test]
async fn every_state_change_is_legal_or_refused_over_http() {
    let ways: [(Status, &[&str]); 5] = [
        (Status::Pending, &[]),
        (Status::Confirmed, &["confirmed"]),
        (Status::Shipped, &["confirmed", "shipped"]),
        (Status::Delivered, &["confirmed", "shipped", "delivered"]),
        (Status::Cancelled, &["cancelled"]),
    ];
    let server = Server::start().await;
    for (from, way) in ways {
        for to in Status::ALL {
            let path = server.place().await;
            for step in way {
                assert_eq!(server.patch(&path, &json!({ "status": step })).await.status, 200);
            }
            let before = server.get(&path).await.json();
            let answer = server.patch(&path, &json!({ "status": to })).await;
            if from.successors().contains(&to) {
                assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (200, &json!(to)));
                continue;
            }
            assert_eq!(
                (answer.status.as_u16(), answer.code().as_str()),
                (409, "illegal_transition"),
                "{from} {to}"
            );
            let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
            let names_all = from.successors().iter().all(|next| message.contains(next.as_str()));
            assert!(message.contains(from.as_str()) && names_all, "{message}");
            assert_eq!(server.get(&path).await.json(), before, "a refused change must change nothing");
        }
    }
    server.stop().await;
}

#[tokio::test]
async fn lists_are_newest_first_in_pages_and_by_status() {
    let server = Server::start().await;
    let mut newest_first = Vec::new();
    for index in 0..7 {
        let path = server.place().await;
        if index % 2 == 0 {
            server.patch(&path, &json!({ "status": "cancelled" })).await;
        }
        newest_first.insert(0, path.rsplit('/').next().unwrap().to_owned());
    }
    assert_eq!(ids_of_all_pages(&server, "limit=3").await, (newest_first.clone(), 3));
    assert_eq!(ids_of_all_pages(&server, "limit=7").await, (newest_first.clone(), 1));
    let cancelled: Vec<_> = newest_first.iter().step_by(2).cloned().collect();
    assert_eq!(ids_of_all_pages(&server, "status=cancelled&limit=3").await, (cancelled, 2));
    server.stop().await;
}

/// The ids on all pages of a list and the number of pages.
async fn ids_of_all_pages(server: &Server, query: &str) -> (Vec<String>, usize) {
    let (mut ids, mut pages, mut path) = (Vec::new(), 0, format!("/v1/orders?{query}"));
    loop {
        let page = server.get(&path).await.json();
        pages += 1;
        let orders = page["orders"].as_array().unwrap();
        ids.extend(orders.iter().map(|order| order["id"].as_str().unwrap().to_owned()));
        match page["next_cursor"].as_str() {
            Some(cursor) => path = format!("/v1/orders?{query}&cursor={cursor}"),
            None => return (ids, pages),
        }
    }
}

#[tokio::test]
async fn what_is_wrong_is_refused_with_its_name() {
    let server = Server::start().await;
    let path = server.place().await;
    let with = |name: &str, value: Value| {
        let mut cart = cart();
        cart[name] = value;
        cart
    };
    let missing = "/v1/orders/01890a5d-ac96-774b-bcce-b302099a8057";
    let cases = [
        (Method::POST, "/v1/orders", with("colour", json!("red")), 422, "invalid_body", "colour"),
        (Method::POST, "/v1/orders", with("items", json!([])), 422, "invalid_body", "items"),
        (Method::POST, "/v1/orders", with("items", json!([{ "sku": "a" }])), 422, "invalid_body", "quantity"),
        (Method::POST, "/v1/orders", with("currency", json!("euro")), 422, "invalid_body", "currency"),
        (Method::POST, "/v1/orders", with("customer", json!(7)), 422, "invalid_body", "string"),
        (Method::PATCH, &path, json!({}), 422, "invalid_body", "status"),
        (Method::PATCH, &path, json!({ "status": "lost" }), 422, "invalid_body", "lost"),
        (Method::PATCH, &path, json!({ "items": [] }), 422, "invalid_body", "items"),
        (Method::PATCH, missing, json!({ "status": "confirmed" }), 404, "order_not_found", "01890a5d"),
        (Method::PATCH, "/v1/orders/7", json!({ "status": "confirmed" }), 400, "invalid_parameter", "UUID"),
        (Method::GET, "/v1/orders/7", json!(null), 400, "invalid_parameter", "UUID"),
        (Method::GET, "/v1/orders/%ff", json!(null), 400, "invalid_parameter", "UTF-8"),
        (Method::GET, missing, json!(null), 404, "order_not_found", "01890a5d"),
        (Method::GET, "/v1/orders?limit=0", json!(null), 400, "invalid_parameter", "limit"),
        (Method::GET, "/v1/orders?limit=101", json!(null), 400, "invalid_parameter", "limit"),
        (Method::GET, "/v1/orders?cursor=7", json!(null), 400, "invalid_parameter", "cursor"),
        (Method::GET, "/v1/orders?status=lost", json!(null), 400, "invalid_parameter", "lost"),
        (Method::GET, "/v1/orders?page=2", json!(null), 400, "invalid_parameter", "page"),
        (Method::GET, "/nothing", json!(null), 404, "no_such_path", "openapi"),
        (Method::DELETE, "/v1/orders", json!(null), 405, "method_not_allowed", "allow"),
    ];
    for (method, path, body, status, code, part) in cases {
        let body = Some(&body).filter(|body| !body.is_null());
        let answer = send(server.address, method.clone(), path, &[], body).await;
        assert_eq!(
            (answer.status.as_u16(), answer.code().as_str()),
            (status, code),
            "{method} {path} {body:?}"
        );
        let message = answer.json()["error"]["message"].as_str().unwrap().to_owned();
        assert!(message.contains(part), "{method} {path} {body:?}: {message}");
    }
    let allow = send(server.address, Method::DELETE, "/v1/orders", &[], None).await;
    assert!(allow.header("allow").is_some_and(|methods| methods.contains("POST") && methods.contains("GET")));
    server.stop().await;
}

#[tokio::test]
async fn bodies_must_be_small_labelled_json() {
    let server = Server::start().await;
    let post = async |headers: &'static [(&'static str, &'static str)], body: &[u8]| {
        let body = Some(Bytes::copy_from_slice(body));
        let answer = send_bytes(server.address, Method::POST, "/v1/orders", headers, body).await;
        (answer.status.as_u16(), answer.code())
    };
    assert_eq!(post(&[], b"{").await, (400, "invalid_json".into()));
    assert_eq!(post(&[("content-type", "text/plain")], b"{}").await, (415, "unsupported_media_type".into()));
    assert_eq!(post(&[], &[b' '; 64 * 1024]).await, (400, "invalid_json".into()));
    for size in [64 * 1024 + 1, 512 * 1024] {
        assert_eq!(post(&[], &vec![b' '; size]).await, (413, "body_too_large".into()));
    }
    server.stop().await;
}

#[tokio::test]
async fn a_body_of_unknown_length_is_bounded_too() {
    let server = Server::start().await;
    let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let head = "POST /v1/orders HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = format!("2000\r\n{}\r\n", " ".repeat(0x2000));
    for _ in 0..9 {
        stream.write_all(chunk.as_bytes()).await.unwrap();
    }
    stream.write_all(b"0\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    stream.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 413");
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_spoken_too() {
    use http_body_util::{BodyExt, Empty};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    let server = Server::start().await;
    let stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    outrigger_common::tasks::Tasks::current().spawn("h2", async {
        let _ended = connection.await;
    });
    let request =
        http::Request::get(format!("http://{}/healthz", server.address)).body(Empty::<Bytes>::new()).unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), r#"{"status":"ok"}"#);
    drop(sender);
    server.stop().await;
}
