//! What reaches an application without mutual TLS.

use std::io::ErrorKind;
use std::net::SocketAddr;

use outrigger_tests::client::raw;
use outrigger_tests::mesh::Sidecar;
use outrigger_tests::wait::{soon, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::plain::{APP, Peer, ask};
use crate::scene::{APP_PORT, Family, GREETING_PORT, Got, Scene, UNSERVED_PORT, curl, url};

fn from_outside(scene: &Scene, words: &[&str]) -> Got {
    curl(&scene.outside, APP, words)
}

async fn refused(sidecar: &Sidecar) -> [f64; 2] {
    let metrics = sidecar.metrics().await;
    let labels = [("direction", "inbound"), ("reason", "plaintext_refused")];
    ["mesh_requests_total", "mesh_tcp_connections_closed_total"].map(|name| metrics.sum(name, &labels))
}

#[tokio::test]
async fn a_strict_mesh_answers_declared_probes_alone_over_ipv4() {
    a_strict_mesh_answers_declared_probes_alone(Family::V4, "iptables").await;
}

#[tokio::test]
async fn a_strict_mesh_answers_declared_probes_alone_over_ipv6() {
    a_strict_mesh_answers_declared_probes_alone(Family::V6, "nft").await;
}

async fn a_strict_mesh_answers_declared_probes_alone(family: Family, backend: &str) {
    let scene = Scene::start(family, backend, "").await;
    let orders = family.of(&scene.orders);
    for (path, status) in [("/healthz", 200), ("/broken", 500)] {
        let got = from_outside(&scene, &[&url(orders, APP_PORT, path)]);
        assert_eq!(got.status, status, "{got:?}");
        assert_eq!((got.header("x-app"), got.header("server"), got.reason()), ("", "", ""), "{got:?}");
        assert!(got.text.ends_with("\r\n\r\n"), "no body: {got:?}");
    }
    let probes = [scene.hits("GET /healthz"), scene.hits("GET /broken")];
    assert_eq!(probes, [1, 1], "the application was asked");

    let at = |port: u16, path: &str| url(orders, port, path);
    let health = at(APP_PORT, "/healthz");
    let refusals: [&[&str]; 17] = [
        &[&at(APP_PORT, "/")],
        &[&at(APP_PORT, "/healthz/")],
        &["--path-as-is", &at(APP_PORT, "//healthz")],
        &["--path-as-is", &at(APP_PORT, "/healthz/../secret")],
        &["--path-as-is", &at(APP_PORT, "/./healthz")],
        &[&at(APP_PORT, "/healthz?x")],
        &["--path-as-is", &at(APP_PORT, "/%68ealthz")],
        &["--path-as-is", &at(APP_PORT, "/healthz%2f..%2fsecret")],
        &["--request-target", "http://orders.shop/healthz", &health],
        &["--head", &health],
        &["--request", "POST", "--data", "x", &health],
        &["--request", "PUT", &health],
        &["--request", "GET", "--data", "x", &health],
        &["--http2-prior-knowledge", &health],
        &[&at(GREETING_PORT, "/healthz")],
        &[&at(UNSERVED_PORT, "/healthz")],
        &[&at(15006, "/healthz")],
    ];
    for words in refusals {
        let got = from_outside(&scene, words);
        // Of HEAD, and of HTTP/2, curl prints the head alike.
        assert_eq!((got.status, got.reason()), (403, "plaintext_refused"), "{words:?}: {got:?}");
    }
    let [requests, _] = refused(&scene.orders_sidecar).await;
    assert_eq!(requests, 17.0, "each counted");

    // One request a connection: what comes after the probe is nobody's.
    let twice = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\nGET /secret HTTP/1.1\r\nhost: x\r\n\r\n";
    let answer = raw(SocketAddr::new(orders, APP_PORT), twice).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    // Neither does TLS, nor anything else.
    let got =
        from_outside(&scene, &["--insecure", &format!("https://{}/", SocketAddr::new(orders, APP_PORT))]);
    assert_eq!(got.status, 0, "{got:?}");
    let silent = ask(&scene.outside, APP, orders, GREETING_PORT);
    assert!(silent.contains("Connection reset by peer"), "{silent}");
    assert_eq!(refused(&scene.orders_sidecar).await, [17.0, 2.0]);

    assert_eq!(scene.hits("GET /healthz"), 2, "the probe of the pair, and no other");
    for path in ["GET /secret", "GET /", "POST /healthz", "HEAD /healthz", "GET /healthz/", "GET //healthz"] {
        assert_eq!(scene.hits(path), 0, "{path}");
    }
    // All the while the mesh goes in.
    let got = curl(&scene.front, APP, &[&url(family.virtual_address(), 80, "/")]);
    assert_eq!(got.app(), "orders", "{got:?}");
}

#[tokio::test]
async fn a_permissive_mesh_lets_plaintext_in_as_nobody() {
    let scene = Scene::start(Family::V4, "nft", "mtls: {mode: permissive}").await;
    let orders = scene.family.of(&scene.orders);
    let at = url(orders, APP_PORT, "/x");
    let forged = "x-forwarded-client-cert: By=a;URI=spiffe://mesh.local/ns/shop/sa/front";
    let words =
        ["--header", forged, "--header", "x-mesh-source: front.shop", "--header", "x-mesh-attempt: 9", &at];
    let got = from_outside(&scene, &words);
    assert_eq!((got.status, got.app()), (200, "orders"), "{got:?}");
    for header in ["x-forwarded-client-cert", "x-mesh-source", "x-mesh-attempt"] {
        assert!(got.json["headers"][header].is_null(), "{header} is believed: {got:?}");
    }
    let got = from_outside(&scene, &["--data", "said", &at]);
    assert_eq!(got.json["body"], "said", "{got:?}");
    let got = from_outside(&scene, &["--http2-prior-knowledge", &at]);
    assert_eq!(got.app(), "", "the application speaks HTTP/1 alone: {got:?}");
    let labels = [("direction", "inbound"), ("source", "unknown"), ("tls", "none"), ("status", "200")];
    let counted = scene.orders_sidecar.metrics().await;
    assert_eq!(counted.sum("mesh_requests_total", &labels), 2.0);
    // Whatever it speaks, and where no service is.
    assert_eq!(ask(&scene.outside, APP, orders, GREETING_PORT), "greeting");
    assert_eq!(ask(&scene.outside, APP, orders, UNSERVED_PORT), "greeting");
    let got = from_outside(&scene, &[&url(orders, 15006, "/")]);
    assert_eq!(
        (got.status, got.reason()),
        (403, "plaintext_refused"),
        "no service of the sidecar's: {got:?}"
    );

    let policy = "apiVersion: outrigger.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: shop, namespace: shop}\nspec: {action: Allow, rules: [{namespaces: [shop]}]}\n";
    let revision = scene.mesh.apply(policy).await;
    scene.orders_sidecar.caught_up(revision).await;
    let got = from_outside(&scene, &[&at]);
    assert_eq!((got.status, got.reason()), (403, "denied"), "who proves nothing is in no namespace: {got:?}");
    let reset = ask(&scene.outside, APP, orders, GREETING_PORT);
    assert!(reset.contains("Connection reset by peer"), "{reset}");
    let got = curl(&scene.front, APP, &[&url(scene.family.virtual_address(), 80, "/")]);
    assert_eq!(got.app(), "orders", "{got:?}");
    scene.mesh.delete(policy).await;
    scene.orders_sidecar.forgot("AuthorizationPolicy shop/shop").await;

    let (mut upgraded, mut half) = upgrades_in_plaintext(SocketAddr::new(orders, APP_PORT)).await;
    half.write_all(b"heard\n").await.unwrap();
    until("the application hears", async || scene.hits("heard") == 1).await;

    // What was let in ends when the mesh becomes strict.
    let hold =
        |port: u16| Peer::start(&scene.outside, APP, &["hold", &orders.to_string(), &port.to_string()]);
    let mut held = [hold(GREETING_PORT), hold(UNSERVED_PORT)];
    for (peer, greeting) in &mut held {
        assert_eq!((greeting.as_str(), peer.exchange("still").as_str()), ("greeting", "still"));
    }
    scene.configure("mtls: {mode: strict}").await;
    for (peer, _) in &mut held {
        assert_eq!(peer.exchange("no more"), "", "it was reset");
    }
    assert_eq!(end_of(&mut upgraded).await, Err(ErrorKind::ConnectionReset));
    until("the application of a half hears of it", async || scene.hits("broken") == 1).await;
    until("its client does", || {
        let written = half.try_write(b"late\n");
        async move { written.is_err_and(|error| error.kind() != ErrorKind::WouldBlock) }
    })
    .await;
    assert_eq!([scene.hits("late"), scene.hits("ended")], [0, 0]);
    assert_eq!(from_outside(&scene, &[&at]).reason(), "plaintext_refused");
}

/// Upgrades connections of nobody's; returns one that was, and one whose application has ended its side.
async fn upgrades_in_plaintext(at: SocketAddr) -> (TcpStream, TcpStream) {
    let ask = |path: &str, to: &str| {
        format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: {to}\r\n\r\n")
    };
    // What it sends at once comes after the answer.
    let (mut early, head) = upgraded(at, &(ask("/", "echo") + "early\n")).await;
    assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("\r\nupgrade: echo\r\n"), "{head}");
    assert!(!head.contains("x-mesh"), "{head}");
    early.write_all(b"late\n").await.unwrap();
    early.shutdown().await.unwrap();
    assert_eq!(end_of(&mut early).await.as_deref(), Ok("early\nlate\n"));
    let (mut broken, _) = upgraded(at, &ask("/", "echo")).await;
    broken.write_all(b"die\n").await.unwrap();
    assert_eq!(end_of(&mut broken).await, Err(ErrorKind::ConnectionReset), "no orderly end");
    // One that the application does not heed is a request like others, and so is the next.
    let twice = ask("/unheeded", "other") + "GET /next HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let answer = raw(at, twice.as_bytes()).await;
    assert_eq!(answer.matches("HTTP/1.1 200 ").count(), 2, "{answer}");
    let (mut half, _) = upgraded(at, &ask("/", "echo")).await;
    half.write_all(b"fin\n").await.unwrap();
    assert_eq!(end_of(&mut half).await.as_deref(), Ok(""));
    let (stays, _) = upgraded(at, &ask("/", "echo")).await;
    (stays, half)
}

/// Asks for an upgrade; returns the connection behind the head of the answer.
async fn upgraded(at: SocketAddr, words: &str) -> (TcpStream, String) {
    let mut stream = TcpStream::connect(at).await.unwrap();
    stream.write_all(words.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the head", stream.read_u8()).await.unwrap());
    }
    (stream, String::from_utf8(head).unwrap())
}

/// What a connection still says, or how it breaks.
async fn end_of(stream: &mut TcpStream) -> Result<String, ErrorKind> {
    let mut text = String::new();
    soon("the end", stream.read_to_string(&mut text)).await.map_err(|error| error.kind())?;
    Ok(text)
}
