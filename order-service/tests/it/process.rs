//! The binary: arguments, exit codes, readiness, drain.

use http::Method;
use serde_json::json;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Process, cart, command, eventually, send};

fn run(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command(arguments).output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_bad_configuration_is_refused_with_its_place() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("orders.yaml");
    std::fs::write(&file, "server:\n  listen: 127.0.0.1:0\n  colour: red\n").unwrap();
    let file = file.to_str().unwrap();
    for mode in ["server", "storefront"] {
        let (code, message) = run(&[mode, "--config", file]);
        assert_eq!(code, Some(2));
        assert!(message.contains(&format!("{file}:3")) && message.contains("colour"), "{message}");
    }
    let (code, message) = run(&["storefront", "--proxy", "127.0.0.1:15001"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("storefront.proxy"), "{message}");
    let (code, message) = run(&["server", "--config", "/nowhere.yaml"]);
    assert_eq!(code, Some(2));
    assert!(message.contains("/nowhere.yaml"), "{message}");
}

#[test]
fn an_address_in_use_and_a_bad_database_are_refused_with_a_remedy() {
    let directory = TempDir::new().unwrap();
    let database = directory.path().join("orders.db");
    let database = database.to_str().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let (code, message) = run(&["server", "--listen", &address, "--database", database]);
    assert_eq!(code, Some(1));
    assert!(message.contains(&address) && message.contains("choose another port"), "{message}");
    let (code, message) = run(&["storefront", "--listen", &address]);
    assert_eq!(code, Some(1));
    assert!(message.contains("storefront.listen"), "{message}");

    let (code, message) = run(&["server", "--listen", "127.0.0.1:0", "--database", "/nowhere/orders.db"]);
    assert_eq!(code, Some(1));
    assert!(message.contains("/nowhere/orders.db") && message.contains("server.database"), "{message}");
    std::fs::write(database, "this is no database, and long enough to be looked at: ".repeat(100)).unwrap();
    let (code, message) = run(&["server", "--listen", "127.0.0.1:0", "--database", database]);
    assert_eq!(code, Some(1));
    assert!(message.contains("not a database"), "{message}");
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight_and_exits_with_success() {
    let directory = TempDir::new().unwrap();
    let file = directory.path().join("orders.db");
    let mut process = Process::server(&file);
    let address = process.address;
    // An idle connection must not hold the drain up.
    let mut idle = TcpStream::connect(address).await.unwrap();
    idle.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut start = [0; 12];
    idle.read_exact(&mut start).await.unwrap();
    assert_eq!(&start, b"HTTP/1.1 200");

    let mut stream = TcpStream::connect(address).await.unwrap();
    let body = cart().to_string();
    let (first, rest) = body.split_at(10);
    let head = format!(
        "POST /v1/orders HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    // The interim answer says that the request is being handled.
    let mut interim = [0; 25];
    stream.read_exact(&mut interim).await.unwrap();
    assert_eq!(&interim, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(first.as_bytes()).await.unwrap();
    process.terminate();
    eventually("the listener stayed open", async || TcpStream::connect(address).await.is_err()).await;
    stream.write_all(rest.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    let mut status = None;
    eventually("the process did not end", async || {
        status = process.ended();
        status.is_some()
    })
    .await;
    assert_eq!(status.unwrap().code(), Some(0));
    let id = answer.split("/v1/orders/").nth(1).unwrap()[..36].to_owned();
    let process = Process::server(&file);
    let order = send(process.address, Method::GET, &format!("/v1/orders/{id}"), &[], None).await;
    assert_eq!(order.json()["status"], json!("pending"));
}
