//! HTTP/2 frame by frame: malformed requests, and floods.

use outrigger_common::tasks::Tasks;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::tcp::TcpApp;

use crate::client::Raw;
use crate::pair::{ORDERS, Pair};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
/// `:status: 200` in HPACK's static table (RFC 7541 appendix A).
const STATUS_200: u8 = 0x88;
/// The same of 400.
const STATUS_400: u8 = 0x8c;
const PROTOCOL_ERROR: u32 = 1;
const INTERNAL_ERROR: u32 = 2;
const REFUSED_STREAM: u32 = 7;
const CANCEL: u32 = 8;
const ENHANCE_YOUR_CALM: u32 = 11;
const COMPRESSION_ERROR: u32 = 9;
const GOOD: [(&str, &str); 4] =
    [(":method", "GET"), (":scheme", "http"), (":authority", "orders.shop"), (":path", "/a")];

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Literals without indexing (RFC 7541 section 6.2.2), of less than 127 bytes.
fn block(headers: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    headers.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect()
}

/// The first frame that says what becomes of a request, by its kind, and what it says; `None` when the
/// connection ends.
async fn verdict(raw: &mut Raw) -> Option<(u8, Vec<u8>)> {
    let mut read = Vec::new();
    loop {
        while read.len() < 9 {
            read.extend(raw.bytes(1).await.ok()?);
        }
        let length = usize::from(read[0]) << 16 | usize::from(read[1]) << 8 | usize::from(read[2]);
        while read.len() < 9 + length {
            read.extend(raw.bytes(1).await.ok()?);
        }
        let rest = read.split_off(9 + length);
        let kind = read[3];
        if matches!(kind, HEADERS | RST_STREAM | GOAWAY) {
            return Some((kind, read.split_off(9)));
        }
        read = rest;
    }
}

#[tokio::test]
async fn malformed_requests_are_refused_and_reach_nobody() {
    let pair = Pair::start().await;
    let with = |extra: &[(&'static str, &'static str)]| block(&[&GOOD, extra].concat());
    let without = |name: &str| block(&GOOD.into_iter().filter(|(own, _)| *own != name).collect::<Vec<_>>());
    let but = |name: &str, value: &'static str| {
        block(&GOOD.map(|(own, good)| (own, if own == name { value } else { good })))
    };
    let mut raw = pair.connect().await;
    raw.send(&[PREFACE, &frame(HEADERS, END_STREAM | END_HEADERS, 1, &with(&[]))].concat()).await;
    let (kind, payload) = verdict(&mut raw).await.unwrap();
    assert_eq!((kind, payload[0]), (HEADERS, STATUS_200), "a good one passes");
    assert_eq!(pair.received().await.len(), 1);
    for (what, block) in [
        ("no :method", without(":method")),
        ("no :path", without(":path")),
        ("an empty :path", but(":path", "")),
        ("a space in :path", but(":path", "/a b")),
        ("a CR and LF in :path", but(":path", "/a\r\nx: 1")),
        ("a NUL in :path", but(":path", "/a\0b")),
        ("no slash in :path", but(":path", "a")),
        ("a method that is no token", but(":method", "GE T")),
        ("an empty :authority", but(":authority", "")),
        ("user information in :authority", but(":authority", "a@orders.shop")),
        ("a path in :authority", but(":authority", "orders.shop/a")),
        ("two of :method", with(&[(":method", "POST")])),
        ("two of :path", with(&[(":path", "/b")])),
        ("an unknown pseudo-header", with(&[(":other", "1")])),
        ("a pseudo-header of responses", with(&[(":status", "200")])),
        ("a late pseudo-header", block(&[GOOD[0], GOOD[1], GOOD[2], ("x-a", "1"), GOOD[3]])),
        ("capitals in a name", with(&[("X-A", "1")])),
        ("a space in a name", with(&[("x a", "1")])),
        ("an empty name", with(&[("", "1")])),
        ("a colon in a name", with(&[("x:a", "1")])),
        ("connection", with(&[("connection", "close")])),
        ("transfer-encoding", with(&[("transfer-encoding", "chunked")])),
        ("upgrade", with(&[("upgrade", "websocket")])),
        ("keep-alive", with(&[("keep-alive", "5")])),
        ("proxy-connection", with(&[("proxy-connection", "close")])),
        ("te other than trailers", with(&[("te", "gzip")])),
        ("a CR in a value", with(&[("x-a", "1\r2")])),
        ("a LF in a value", with(&[("x-a", "1\nx-b: 2")])),
        ("a NUL in a value", with(&[("x-a", "1\0")])),
        ("a length without a body", with(&[("content-length", "5")])),
        ("two lengths", with(&[("content-length", "0"), ("content-length", "5")])),
        ("another host", with(&[("host", "admin.shop")])),
        ("two hosts", with(&[("host", "orders.shop"), ("host", "orders.shop")])),
        ("a block that is none", vec![0xff; 12]),
    ] {
        let mut raw = pair.connect().await;
        raw.send(&[PREFACE, &frame(HEADERS, END_STREAM | END_HEADERS, 1, &block)].concat()).await;
        let (kind, payload) = verdict(&mut raw).await.unwrap_or_else(|| panic!("{what}: no word"));
        let code = || u32::from_be_bytes(payload[payload.len().min(8) - 4..][..4].try_into().unwrap());
        match kind {
            HEADERS => assert_eq!(payload[0], STATUS_400, "{what}"),
            RST_STREAM => assert_eq!(code(), PROTOCOL_ERROR, "{what}"),
            _ => assert!([PROTOCOL_ERROR, COMPRESSION_ERROR].contains(&code()), "{what}: {}", code()),
        }
        let received = pair.received().await;
        assert!(received.is_empty(), "{what}: {received:?}");
    }
}

#[tokio::test]
async fn floods_end_their_connection_and_nothing_else() {
    const FRAMES: usize = 20_000;
    let pair = Pair::start().await;
    let good = block(&GOOD);
    let reset = |n: usize| {
        let stream = u32::try_from(n * 2 + 1).unwrap();
        let begun = frame(HEADERS, END_STREAM | END_HEADERS, stream, &good);
        [begun, frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    };
    let begun = frame(HEADERS, END_STREAM, 1, &good);
    let floods: [(&str, Vec<u8>); 4] = [
        ("requests reset at once", (0..FRAMES).flat_map(reset).collect()),
        ("a head without end", [begun, frame(CONTINUATION, 0, 1, &[0; 1000]).repeat(FRAMES)].concat()),
        ("settings", frame(SETTINGS, 0, 0, &[]).repeat(FRAMES)),
        ("pings", frame(PING, 0, 0, &[0; 8]).repeat(FRAMES)),
    ];
    for (what, flood) in floods {
        let before = pair.front.process.resident_bytes();
        let mut raw = pair.connect().await;
        raw.send(&[PREFACE, &flood].concat()).await;
        if what != "settings" && what != "pings" {
            // Those are answered, as long as the client reads.
            while !matches!(verdict(&mut raw).await, None | Some((GOAWAY, _))) {}
        }
        // Others are served, and hardly any of it reaches the application.
        let received = pair.received().await.len();
        println!("{what}: the application received {received} requests");
        assert!(received <= FRAMES / 10, "{what}: {received}");
        let grown = pair.front.process.resident_bytes().saturating_sub(before) >> 20;
        println!("{what}: the sidecar grew by {grown} MiB");
        assert!(grown < 32, "{what}: {grown} MiB");
    }
}

/// An application that begins an answer and, once the request has ended, resets it with the code that is the
/// request's path.
async fn resetting() -> TcpApp {
    let tasks = Tasks::current();
    TcpApp::start(move |stream| {
        let tasks = tasks.clone();
        async move {
            // A health check says nothing.
            let Ok(mut connection) = h2::server::handshake(stream).await else { return };
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tasks.spawn("answer", async move {
                    let code: u32 = request.uri().path()[1..].parse().unwrap();
                    let mut answer = respond.send_response(http::Response::new(()), false).unwrap();
                    answer.send_data("part".into(), false).unwrap();
                    let mut body = request.into_body();
                    while body.data().await.is_some() {}
                    answer.send_reset(code.into());
                });
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_reset_of_the_application_is_one_at_its_client() {
    let (mesh, app) = (Mesh::start().await, resetting().await);
    let _replica = mesh.sidecar("orders-1").serves_at("orders", 80, "http2", app.address).start().await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    for code in [INTERNAL_ERROR, REFUSED_STREAM, CANCEL, ENHANCE_YOUR_CALM] {
        let mut raw = Raw::connect(front.outbound).await;
        let path = format!("/{code}");
        let head = GOOD.map(|(name, good)| match name {
            ":method" => (name, "POST"),
            ":path" => (name, path.as_str()),
            _ => (name, good),
        });
        raw.send(&[PREFACE, &frame(HEADERS, END_HEADERS, 1, &block(&head))].concat()).await;
        let (kind, payload) = verdict(&mut raw).await.unwrap();
        assert_eq!((kind, payload[0]), (HEADERS, STATUS_200), "{code}");
        raw.send(&frame(DATA, END_STREAM, 1, b"all")).await;
        let (kind, payload) = verdict(&mut raw).await.unwrap();
        assert_eq!(kind, RST_STREAM, "{code}");
        assert_eq!(u32::from_be_bytes(payload.try_into().unwrap()), code, "as the application has it");
    }
}
