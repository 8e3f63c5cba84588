//! Upgrades, in the forms of HTTP/1.1 and of HTTP/2 at either end.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::service::service_fn;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::Spawn;
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::{soon, until};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::client::{End, Raw};
use crate::pair::{ORDERS, settled};
use crate::upstream::{OK, head_end};

/// RFC 6455 section 1.3.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const PROOF: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
const HANDSHAKE: &str = "GET /chat HTTP/1.1\r\nHost: orders.shop\r\nConnection: keep-alive, Upgrade\r\n\
    Upgrade: WebSocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const AGREED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nX-Kept: 1\r\n\r\n";

/// An application that hands out its connections, and the sidecars. Dropped in this order.
struct Bare {
    front: Sidecar,
    replica: Sidecar,
    listener: TcpListener,
    mesh: Mesh,
}

impl Bare {
    async fn start() -> Self {
        Self::with(&json!({})).await
    }

    /// With more configuration of both sidecars.
    async fn with(extra: &Value) -> Self {
        let mesh = Mesh::start().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let replica = mesh.sidecar("orders-1").serves_at("orders", 80, "http1", address).config(extra);
        let replica = replica.start().await;
        let front = mesh.sidecar("front").calls(&[ORDERS]).config(extra).start().await;
        front.knows_healthy(ORDERS, 1).await;
        Self { front, replica, listener, mesh }
    }

    /// A client's connection and the application's, upgraded.
    async fn upgraded(&self) -> (Raw, TcpStream) {
        let mut client = Raw::connect(self.front.outbound).await;
        client.send(HANDSHAKE.as_bytes()).await;
        let (mut app, _) = self.accept().await;
        app.write_all(AGREED).await.unwrap();
        let response = client.response("GET").await.unwrap();
        assert_eq!(response.status, 101, "{}", response.head);
        (client, app)
    }

    /// The application's next connection, and the head of its request.
    async fn accept(&self) -> (TcpStream, Vec<u8>) {
        soon("the application is asked", async {
            loop {
                let (mut stream, _) = self.listener.accept().await.unwrap();
                let mut head = Vec::new();
                while head_end(&head).is_none() {
                    if stream.read_buf(&mut head).await.unwrap() == 0 {
                        break;
                    }
                }
                // What connects and says nothing asks whether the application is there.
                if !head.is_empty() {
                    return (stream, head);
                }
            }
        })
        .await
    }

    async fn in_flight(&self, count: f64) {
        for sidecar in [&self.front, &self.replica] {
            until(&format!("{count} in flight at {}", sidecar.id), || async {
                sidecar.metrics().await.sum("mesh_requests_in_flight", &[]) == count
            })
            .await;
        }
    }
}

async fn sidecars(mesh: &Mesh, protocol: &str, address: SocketAddr) -> (Sidecar, Sidecar) {
    let replica = mesh.sidecar("orders-1").serves_at("orders", 80, protocol, address).start().await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    (front, replica)
}

#[tokio::test]
async fn an_upgraded_connection_carries_bytes_both_ways_and_counts_until_it_ends() {
    let bare = Bare::start().await;
    let mut client = Raw::connect(bare.front.outbound).await;
    client.send(HANDSHAKE.as_bytes()).await;
    let (mut app, head) = bare.accept().await;
    let asked = "GET /chat HTTP/1.1\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-version: 13\r\nhost: orders.shop\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
    let mut lines: Vec<_> = asked.split_inclusive('\n').collect();
    let head = String::from_utf8(settled(&head)).unwrap();
    let mut got: Vec<_> = head.split_inclusive('\n').collect();
    lines.sort_unstable();
    got.sort_unstable();
    assert_eq!(got, lines);
    // With bytes of its own in the same breath.
    app.write_all(&[AGREED, b"hello"].concat()).await.unwrap();
    let response = client.response("GET").await.unwrap();
    assert_eq!((response.status, response.header("x-kept")), (101, Some("1")));
    assert_eq!(
        (response.header("connection"), response.header("upgrade")),
        (Some("upgrade"), Some("websocket"))
    );
    assert_eq!(response.header("sec-websocket-accept"), Some(PROOF.to_ascii_lowercase().as_str()));
    assert!(response.header("content-length").is_none() && response.header("x-mesh-upgrade").is_none());
    assert_eq!(client.bytes(5).await.unwrap(), b"hello");
    client.send(b"\x00\xff bytes").await;
    let mut bytes = [0; 8];
    soon("bytes at the application", app.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"\x00\xff bytes");
    bare.in_flight(1.0).await;
    // Half of it ends; the other half goes on.
    client.stream.shutdown().await.unwrap();
    assert_eq!(soon("the end at the application", app.read(&mut bytes)).await.unwrap(), 0);
    app.write_all(b"more").await.unwrap();
    assert_eq!(client.bytes(4).await.unwrap(), b"more");
    drop(app);
    assert_eq!(client.rest().await, (Vec::new(), End::Closed));
    bare.in_flight(0.0).await;
    for (sidecar, direction) in [(&bare.front, "outbound"), (&bare.replica, "inbound")] {
        let metrics = sidecar.metrics().await;
        let labels = [("direction", direction), ("status", "101"), ("reason", "")];
        assert_eq!(metrics.sum("mesh_requests_total", &labels), 1.0, "{direction}");
        assert_eq!(metrics.sum("mesh_request_body_bytes_total", &[("direction", direction)]), 8.0);
        assert_eq!(metrics.sum("mesh_response_body_bytes_total", &[("direction", direction)]), 9.0);
    }
}

#[tokio::test]
async fn what_breaks_one_side_of_a_tunnel_breaks_the_other() {
    let bare = Bare::start().await;
    let (mut client, app) = bare.upgraded().await;
    app.set_zero_linger().unwrap();
    drop(app);
    assert_eq!(client.rest().await.1, End::Reset, "the application broke");
    let (client, mut app) = bare.upgraded().await;
    client.stream.set_zero_linger().unwrap();
    drop(client);
    let broken = soon("the application's side", app.read(&mut [0; 8])).await;
    assert!(broken.is_err(), "the client broke: {broken:?}");
    let (mut client, mut app) = bare.upgraded().await;
    let Bare { mut replica, front: _front, listener: _listener, mesh: _mesh } = bare;
    replica.process.kill();
    assert_eq!(client.rest().await.1, End::Reset, "the sidecar between was killed");
    let broken = soon("the application's side", app.read(&mut [0; 8])).await;
    assert!(broken.is_err(), "the sidecar was killed: {broken:?}");
}

#[tokio::test]
async fn a_refused_upgrade_is_a_response_like_any_other() {
    let bare = Bare::start().await;
    for (refusal, status) in [
        ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nplain", 200),
        ("HTTP/1.1 426 Upgrade Required\r\nUpgrade: other\r\nContent-Length: 5\r\n\r\nplain", 426),
        ("HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nplain\r\n0\r\n\r\n", 400),
    ] {
        let mut client = Raw::connect(bare.front.outbound).await;
        client.send(HANDSHAKE.as_bytes()).await;
        let (mut app, _) = bare.accept().await;
        app.write_all(refusal.as_bytes()).await.unwrap();
        let response = client.response("GET").await.unwrap();
        assert_eq!((response.status, response.header("x-mesh-reason")), (status, None), "{}", response.head);
        let plain = response.body == b"plain" || response.body == b"5\r\nplain\r\n0\r\n\r\n";
        assert!(plain, "{:?}", String::from_utf8_lossy(&response.body));
        drop(app);
        // The connection is good for more.
        client.send(b"GET / HTTP/1.1\r\nHost: orders.shop\r\n\r\n").await;
        let (mut app, _) = bare.accept().await;
        app.write_all(OK).await.unwrap();
        assert_eq!(client.response("GET").await.unwrap().body, b"ok");
    }
    bare.in_flight(0.0).await;
}

#[tokio::test]
async fn a_switch_that_nobody_asked_for_is_an_error() {
    let bare = Bare::start().await;
    let mut client = Raw::connect(bare.front.outbound).await;
    client.send(b"POST / HTTP/1.1\r\nHost: orders.shop\r\nContent-Length: 1\r\n\r\na").await;
    let (mut app, _) = bare.accept().await;
    app.write_all(AGREED).await.unwrap();
    let response = client.response("POST").await.unwrap();
    assert_eq!((response.status, response.header("x-mesh-reason")), (502, Some("app_reset")));
}

#[tokio::test]
async fn a_policy_that_no_longer_lets_the_caller_in_ends_a_tunnel() {
    let bare = Bare::start().await;
    let (mut client, mut app) = bare.upgraded().await;
    bare.mesh
        .apply(
            "apiVersion: outrigger.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: denied, namespace: \
             shop}\nspec: {targetRefs: [{kind: Service, name: orders}], action: Deny, rules: [{identities: \
             [\"spiffe://mesh.local/ns/shop/sa/front\"]}]}\n",
        )
        .await;
    assert_eq!(client.rest().await.1, End::Reset);
    assert!(soon("the application's side", app.read(&mut [0; 8])).await.is_err());
    bare.in_flight(0.0).await;
}

#[tokio::test]
async fn an_idle_time_ends_a_tunnel_begun_under_it() {
    let bare = Bare::start().await;
    let (mut earlier, mut app_of_earlier) = bare.upgraded().await;
    let revision = bare
        .mesh
        .apply(
            "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: idle, namespace: \
             shop}\nspec: {targetRefs: [{kind: Service, name: orders}], timeouts: {streamIdle: 1s}}\n",
        )
        .await;
    bare.front.caught_up(revision).await;
    let (mut client, mut app) = bare.upgraded().await;
    client.send(b"last").await;
    let mut bytes = [0; 8];
    soon("bytes at the application", app.read_exact(&mut bytes[..4])).await.unwrap();
    assert_eq!(client.rest().await, (Vec::new(), End::Reset));
    let broken = soon("the application's side", app.read(&mut bytes)).await;
    assert!(broken.is_err(), "{broken:?}");
    // What was agreed on before stands, and is idle for longer still.
    bare.in_flight(1.0).await;
    app_of_earlier.write_all(b"here").await.unwrap();
    assert_eq!(earlier.bytes(4).await.unwrap(), b"here");
    earlier.send(b"too").await;
    soon("bytes at the application", app_of_earlier.read_exact(&mut bytes[..3])).await.unwrap();
    assert_eq!(&bytes[..3], b"too");
    let (front, replica) = (bare.front.metrics().await, bare.replica.metrics().await);
    // Both measure it; the other one may hear of it first.
    let idle = [("status", "101"), ("reason", "idle_timeout")];
    let found = [&front, &replica].map(|metrics| metrics.sum("mesh_requests_total", &idle));
    assert!(found[0] + found[1] >= 1.0, "{found:?}");
    assert_eq!(front.sum("mesh_requests_total", &[]), 1.0, "nothing else has ended");
}

#[tokio::test]
async fn a_drain_waits_for_a_tunnel_until_its_deadline() {
    const CUT: &str = "the deadline ended requests in flight";
    for leaves in ["orders-1", "front"] {
        let mut bare = Bare::with(&json!({"drain": {"deadline": "500ms"}})).await;
        let (mut client, mut app) = bare.upgraded().await;
        let leaving = if leaves == "front" { &mut bare.front } else { &mut bare.replica };
        leaving.process.signal(Signal::TERM);
        assert!(leaving.process.end().await.success(), "{leaves}");
        let log = leaving.process.log();
        assert!(log.contains(CUT), "{leaves}: {log}");
        assert_eq!(client.rest().await, (Vec::new(), End::Reset), "{leaves}");
        let broken = soon("the application's side", app.read(&mut [0; 8])).await;
        assert!(broken.is_err(), "{leaves}: {broken:?}");

        let mut bare = Bare::start().await;
        let (mut client, mut app) = bare.upgraded().await;
        let leaving = if leaves == "front" { &mut bare.front } else { &mut bare.replica };
        leaving.process.signal(Signal::TERM);
        until(&format!("{leaves} drains"), || async { leaving.get("/ready").await.0 == 503 }).await;
        app.write_all(b"still").await.unwrap();
        assert_eq!(client.bytes(5).await.unwrap(), b"still", "{leaves}");
        drop(app);
        client.stream.shutdown().await.unwrap();
        assert_eq!(client.rest().await, (Vec::new(), End::Closed), "{leaves}");
        assert!(leaving.process.end().await.success(), "{leaves}");
        assert!(!leaving.process.log().contains(CUT), "{leaves}: {}", leaving.process.log());
    }
}

/// An application that speaks HTTP/2 alone, and echoes what extended CONNECT brings.
async fn http2_app() -> (SocketAddr, mpsc::Receiver<Request<()>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, requests) = mpsc::channel(16);
    let tasks = Tasks::current();
    Tasks::current().spawn("app", async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (asked, spawn) = (asked.clone(), tasks.clone());
            let service = service_fn(move |mut request: Request<Incoming>| {
                let (asked, tasks) = (asked.clone(), spawn.clone());
                async move {
                    let on = hyper::upgrade::on(&mut request);
                    let head = request.map(drop);
                    let is_connect = head.method() == Method::CONNECT;
                    asked.send(head).await.unwrap();
                    if is_connect {
                        tasks.spawn("echo", async move {
                            let (mut read, mut write) = tokio::io::split(TokioIo::new(on.await.unwrap()));
                            let _ended = tokio::io::copy(&mut read, &mut write).await;
                            let _gone = write.shutdown().await;
                        });
                    }
                    Ok::<_, std::convert::Infallible>(Response::new(Empty::<Bytes>::new()))
                }
            });
            let mut builder = hyper::server::conn::http2::Builder::new(Spawn(tasks.clone()));
            builder.enable_connect_protocol();
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tasks.spawn("app connection", async move {
                let _ended = connection.await;
            });
        }
    });
    (address, requests)
}

/// Asks for a WebSocket by extended CONNECT.
async fn extended_connect(to: SocketAddr) -> (Response<Incoming>, Option<TokioIo<Upgraded>>) {
    let stream = TcpStream::connect(to).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(Spawn(Tasks::current()), TokioIo::new(stream)).await.unwrap();
    let (known, settings) = tokio::sync::oneshot::channel();
    Tasks::current().spawn("client connection", async move {
        let mut connection = Box::pin(connection);
        // The library does not say when the settings come.
        while !connection.is_extended_connect_protocol_enabled() {
            let _pending = tokio::time::timeout(Duration::from_millis(1), connection.as_mut()).await;
        }
        known.send(()).unwrap();
        let _ended = connection.await;
    });
    soon("the sidecar takes extended CONNECT", settings).await.unwrap();
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri("http://orders.shop/chat?a=1")
        .header("sec-websocket-version", "13")
        .extension(Protocol::from_static("websocket"))
        .body(Empty::<Bytes>::new())
        .unwrap();
    let mut response = soon("the answer", sender.send_request(request)).await.unwrap();
    if response.status() != StatusCode::OK {
        return (response, None);
    }
    let upgraded = hyper::upgrade::on(&mut response).await.unwrap();
    (response, Some(TokioIo::new(upgraded)))
}

/// Something goes there and comes back, and so does the end.
async fn echoed(mut io: TokioIo<Upgraded>) {
    for size in [5, 100_000] {
        let sent = vec![7; size];
        let (mut read, mut write) = tokio::io::split(io);
        let mut got = vec![0; size];
        let both = async { tokio::try_join!(write.write_all(&sent), read.read_exact(&mut got)).unwrap() };
        soon("the echo", both).await;
        assert!(got == sent);
        io = read.unsplit(write);
    }
    io.shutdown().await.unwrap();
    let mut rest = Vec::new();
    soon("the end comes back", io.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
}

#[tokio::test]
async fn extended_connect_reaches_an_application_of_http2() {
    let mesh = Mesh::start().await;
    let (address, mut asked) = http2_app().await;
    let (front, _replica) = sidecars(&mesh, "http2", address).await;
    let (response, io) = extended_connect(front.outbound).await;
    let request = asked.recv().await.unwrap();
    assert_eq!(request.method(), Method::CONNECT);
    assert_eq!(request.extensions().get::<Protocol>().map(Protocol::as_str), Some("websocket"));
    assert_eq!(request.uri().path_and_query().unwrap(), "/chat?a=1");
    assert!(!response.headers().contains_key("sec-websocket-accept"), "{response:?}");
    echoed(io.unwrap()).await;

    // The same from a client of HTTP/1.1, which wants the proof.
    let mut client = Raw::connect(front.outbound).await;
    client.send(HANDSHAKE.as_bytes()).await;
    let response = client.response("GET").await.unwrap();
    assert_eq!((response.status, response.header("upgrade")), (101, Some("websocket")));
    assert_eq!(response.header("sec-websocket-accept"), Some(PROOF.to_ascii_lowercase().as_str()));
    assert!(!asked.recv().await.unwrap().headers().contains_key("sec-websocket-key"));
    client.send(b"hello").await;
    assert_eq!(client.bytes(5).await.unwrap(), b"hello");
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, (Vec::new(), End::Closed));
}

#[tokio::test]
async fn extended_connect_reaches_an_application_of_http1() {
    let bare = Bare::start().await;
    for answer in ["right", "wrong", "refusal"] {
        let app = async {
            let (mut app, head) = bare.accept().await;
            let head = String::from_utf8(head).unwrap();
            assert!(
                head.starts_with("GET /chat?a=1 HTTP/1.1\r\n") && head.contains("\r\nupgrade: websocket\r\n")
            );
            let key = head.lines().find_map(|line| line.strip_prefix("sec-websocket-key: ")).unwrap();
            assert_ne!(key, KEY);
            let agreed = String::from_utf8_lossy(AGREED).replace(PROOF, &proof(key));
            let refused = "HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno";
            let bytes = if answer == "refusal" { refused.as_bytes() } else { agreed.as_bytes() };
            app.write_all(bytes).await.unwrap();
            app
        };
        let asked = extended_connect(bare.front.outbound);
        if answer == "wrong" {
            // A handshake may be repeated like any GET.
            let again = async {
                loop {
                    let (mut app, _) = bare.accept().await;
                    app.write_all(AGREED).await.unwrap();
                }
            };
            let (response, _) = tokio::select! {
                answered = asked => answered,
                () = again => unreachable!(),
            };
            assert_eq!(
                (response.status().as_u16(), &response.headers()["x-mesh-reason"]),
                (502, &"app_reset".parse().unwrap())
            );
            continue;
        }
        let (mut app, (response, io)) = tokio::join!(app, asked);
        match answer {
            "right" => {
                assert!(response.headers()["x-kept"] == "1" && !response.headers().contains_key("upgrade"));
                Tasks::current().spawn("echo", async move {
                    let (mut read, mut write) = app.split();
                    let _ended = tokio::io::copy(&mut read, &mut write).await;
                });
                echoed(io.unwrap()).await;
            }
            _ => assert_eq!(response.status(), 403),
        }
    }
}

/// By the system's own tools, not ours.
fn proof(key: &str) -> String {
    let script = "import base64,hashlib,sys;print(base64.b64encode(hashlib.sha1((sys.argv[1]+'258EAFA5-E914-47DA-95CA-C5AB0DC85B11').encode()).digest()).decode())";
    let output = std::process::Command::new("python3").args(["-c", script, key]).output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}
