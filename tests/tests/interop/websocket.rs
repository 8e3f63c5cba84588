//! Python's `websockets`, a client and a server of WebSocket, through two sidecars.

use std::net::SocketAddr;
use std::path::Path;

use outrigger_tests::component::{Running, run};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::until;
use serde_json::{Value, json};

use crate::shop::Shop;

/// A Python with `websockets`.
const PYTHON: &str = "OUTRIGGER_TEST_HTTP_PYTHON";
/// At once.
const MANY: usize = 20;

fn script() -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/interop/websocket.py").to_string_lossy().into_owned()
}

fn seen(said: &str) -> Vec<Value> {
    let lines = said.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The mesh, and a server behind one of its sidecars. Dropped in this order.
struct Chat {
    shop: Shop,
    server: Running,
}

impl Chat {
    async fn open(protocol: &str) -> Self {
        let mesh = Mesh::start().await;
        let mut server =
            Running::start(PYTHON, &[script(), "serve".into()], mesh.directory().join("server.txt"));
        let mut port = 0;
        until("the server listens", || {
            let said = server.output();
            assert!(server.ended().is_none(), "the server ended: {said}");
            let line = said.lines().find_map(|line| line.strip_prefix("port ")).map(str::to_owned);
            port = line.and_then(|line| line.parse().ok()).unwrap_or(0);
            async move { port != 0 }
        })
        .await;
        let shop = Shop::open(mesh, protocol, SocketAddr::from(([127, 0, 0, 1], port))).await;
        Self { shop, server }
    }

    fn road(&self, road: &str) -> String {
        let at = if road == "port" { self.shop.dedicated() } else { self.shop.front.outbound };
        at.to_string()
    }

    /// Runs a client to its end; returns what it saw.
    fn client(&self, kind: &str, road: &str, extra: &[&str]) -> Value {
        let (script, at) = (script(), self.road(road));
        let args = [&[script.as_str(), kind, road, &at], extra].concat();
        let said = run(PYTHON, &args, self.shop.mesh.directory(), "");
        seen(&said).pop().unwrap_or_else(|| panic!("{said}"))
    }

    /// The ends of connections the server has seen, once there are so many.
    async fn ended(&self, count: usize) -> Vec<Value> {
        until(&format!("the server has seen {count} connections end"), || async {
            seen(&self.server.output()).len() >= count
        })
        .await;
        seen(&self.server.output())
    }
}

#[tokio::test]
async fn messages_pings_and_close_codes_pass_both_ways_on_every_road() {
    for (protocol, roads) in [("http1", &["host", "port", "proxy"] as &[&str]), ("auto", &["host"])] {
        let chat = Chat::open(protocol).await;
        let mut ended = 0;
        for road in roads {
            let said = chat.client("call", road, &[]);
            let wanted = json!({
                "subprotocol": "v1.orders", "extensions": "permessage-deflate", "no subprotocol": null,
                "same": [true, true, true, true, true, true], "fragments": true,
                "pinged": "the client answered", "own": [3999, "enough"], "normal": 1000,
                "/close": [4001, "caf\u{e9}"], "/fail": [1011, "failed"], "/large": said["/large"],
            });
            assert_eq!(said, wanted, "{protocol} {road}");
            assert_eq!(said["/large"][0], 1009, "{said}");
            // The codes of the client at the server, and its own sent back. It hears nothing more from whom it
            // sent 1009 to, with no mesh between either.
            let ends = chat.ended(ended + 5).await.split_off(ended);
            ended += 5;
            for (path, code) in
                [("/talk", 3999), ("/ping", 1000), ("/close", 4001), ("/fail", 1011), ("/large", 1006)]
            {
                let end = ends.iter().find(|end| end["path"] == path).unwrap_or_else(|| panic!("{ends:?}"));
                assert_eq!(end["code"], code, "{protocol} {road}: {end}");
                let front =
                    "By=spiffe://mesh.local/ns/shop/sa/orders;URI=spiffe://mesh.local/ns/shop/sa/front";
                assert_eq!(end["from"], json!([front]));
                let subprotocol = if path == "/talk" { json!("v1.orders") } else { Value::Null };
                assert_eq!(end["subprotocol"], subprotocol, "{end}");
            }
            let talk = ends.iter().find(|end| end["path"] == "/talk").unwrap();
            assert_eq!(talk["reason"], "enough");
        }
        chat.shop.rests().await;
        for (sidecar, direction) in [(&chat.shop.front, "outbound"), (&chat.shop.replica, "inbound")] {
            let upgraded = [("direction", direction), ("status", "101")];
            let count = sidecar.metrics().await.sum("mesh_requests_total", &upgraded);
            assert_eq!(count, ended as f64, "{protocol} {direction}");
        }
    }
}

#[tokio::test]
async fn a_refused_handshake_is_the_applications_answer() {
    let chat = Chat::open("http1").await;
    for road in ["host", "port", "proxy"] {
        let said = chat.client("refused", road, &[]);
        assert_eq!(said["/private"], json!([401, "who are you?", null]), "{road}: {said}");
        assert_eq!((&said["/talk"][0], &said["/talk"][2]), (&json!(400), &Value::Null), "{road}: {said}");
    }
    chat.shop.rests().await;
}

#[tokio::test]
async fn many_connections_at_once_do_not_mix() {
    let chat = Chat::open("http1").await;
    let said = chat.client("many", "host", &[&MANY.to_string()]);
    assert_eq!(said["codes"], json!(vec![1000; MANY]), "{said}");
    let ends = chat.ended(MANY).await;
    assert!(ends.len() == MANY && ends.iter().all(|end| end["code"] == 1000), "{ends:?}");
    chat.shop.rests().await;
}

#[tokio::test]
async fn a_side_that_is_killed_is_no_orderly_end_at_the_other() {
    let mut chat = Chat::open("http1").await;
    let begin = |number: usize| {
        let args = [script(), "broken".into(), "host".into(), chat.road("host")];
        Running::start(PYTHON, &args, chat.shop.mesh.directory().join(format!("client-{number}.txt")))
    };
    let (mut leaves, stays) = (begin(1), begin(2));
    for client in [&leaves, &stays] {
        until("a client is connected", || async { client.output().starts_with("connected") }).await;
    }
    leaves.kill();
    let ends = chat.ended(1).await;
    assert_eq!((ends.len(), &ends[0]["code"]), (1, &json!(1006)), "the other goes on: {ends:?}");
    chat.server.kill();
    let (succeeded, said) = stays.finish().await;
    assert!(succeeded, "{said}");
    assert_eq!(seen(&said), [json!({"code": 1006, "heard": null})]);
    chat.shop.rests().await;
}
