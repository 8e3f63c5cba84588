//! The application's own TLS, and CONNECT, with curl.

use std::process::{Command, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Empty;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::App;
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::tcp::TcpApp;
use outrigger_tests::wait::soon;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

const SECURE: &str = "secure.shop";

/// An application that serves HTTPS with a certificate of its own, which curl is told not to check.
async fn https() -> TcpApp {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([SECURE.to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    TcpApp::start(move |stream| {
        let acceptor = acceptor.clone();
        async move {
            // A health check says nothing.
            let Ok(mut stream) = acceptor.accept(stream).await else { return };
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret").await.unwrap();
            let _broken = stream.shutdown().await;
        }
    })
    .await
}

/// Runs curl; returns its exit code and what it printed.
async fn curl(args: &[&str]) -> (i32, String) {
    let mut command = Command::new("curl");
    command.args(["-sS", "--max-time", "15"]).args(args).stdin(Stdio::null());
    // The test's own thread serves the application.
    let running = tokio::task::spawn_blocking(move || command.output());
    let output = soon("curl ends", running).await.unwrap().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

async fn secure(mesh: &Mesh, app: &TcpApp) -> (Sidecar, Sidecar) {
    let replica = mesh
        .sidecar("secure-1")
        .serves_at("secure", 443, "auto", app.address)
        .serves_at("secure", 8443, "auto", app.address)
        .start()
        .await;
    let front = mesh.caller("front", &[SECURE]).await;
    front.knows_healthy(SECURE, 2).await;
    (replica, front)
}

#[tokio::test]
async fn tls_goes_by_the_host_its_hello_names() {
    let (mesh, app) = (Mesh::start().await, https().await);
    let (_replica, front) = secure(&mesh, &app).await;
    let to = |host: &str| format!("{host}::127.0.0.1:{}", front.outbound.port());
    let (code, text) = curl(&["-k", "--connect-to", &to(SECURE), "https://secure.shop/"]).await;
    assert_eq!((code, text.as_str()), (0, "secret"));
    let (code, text) = curl(&["-k", "--connect-to", &to("other.shop"), "https://other.shop/"]).await;
    assert!(code == 35 && text.contains("unrecognized name"), "{code}: {text}");
    let metrics = front.metrics().await;
    assert_eq!(metrics.sum("mesh_protocol_detections_total", &[("protocol", "tls")]), 2.0);
    assert_eq!(metrics.sum("mesh_tcp_connections_opened_total", &[("destination", SECURE)]), 1.0);
    assert_eq!(metrics.sum("mesh_tcp_connections_closed_total", &[("reason", "unknown_service")]), 1.0);
}

#[tokio::test]
async fn connect_leads_to_services() {
    let (mesh, app) = (Mesh::start().await, https().await);
    let (_replica, front) = secure(&mesh, &app).await;
    let plain = App::start("app").await;
    let _orders = mesh.replica("orders-1", "orders", &plain).await;
    let proxy = format!("http://{}", front.outbound);
    let (code, text) = curl(&["-k", "-x", &proxy, "https://secure.shop:8443/"]).await;
    assert_eq!((code, text.as_str()), (0, "secret"));
    // HTTP inside a tunnel is HTTP.
    let (code, text) = curl(&["-x", &proxy, "--proxytunnel", "http://orders.shop/"]).await;
    assert_eq!((code, text.as_str()), (0, "app"));
    mesh.apply("apiVersion: outrigger.dev/v1alpha1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec: {ports: [{port: 80, protocol: auto}], addresses: [10.0.9.1]}\n").await;
    let (code, text) = curl(&["-x", &proxy, "--proxytunnel", "http://[::ffff:10.0.9.1]/"]).await;
    assert_eq!((code, text.as_str()), (0, "app"), "by virtual address");
    let metrics = front.metrics().await;
    assert_eq!(metrics.sum("mesh_requests_total", &[("destination", "orders.shop"), ("status", "200")]), 2.0);
    assert_eq!(metrics.sum("mesh_tcp_connections_opened_total", &[("destination", SECURE)]), 1.0);
    for (host, status) in [
        ("nobody.nowhere.example", "404"),
        ("secure.shop:1234", "404"),
        ("localhost:9", "404"),
        ("[::ffff:127.0.0.1]:9", "404"),
        (&format!("127.0.0.1:{}", front.admin.port()), "508"),
        (&format!("[::ffff:127.0.0.1]:{}", front.admin.port()), "508"),
    ] {
        let url = format!("http://{host}/");
        let code_of = ["-x", &proxy, "--proxytunnel", "-o", "/dev/null", "-w", "%{http_connect}", &url];
        let (_, text) = curl(&code_of).await;
        assert!(text.starts_with(status), "{host}: {text}");
    }
}

#[tokio::test]
async fn connect_leads_outside_where_that_is_allowed() {
    let (mesh, app) = (
        Mesh::start().await,
        TcpApp::on("0.0.0.0:0", |mut stream| async move {
            let mut head = [0; 4];
            stream.read_exact(&mut head).await.unwrap();
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\nconnection: close\r\n\r\noutside")
                .await
                .unwrap();
            let _broken = stream.shutdown().await;
            let mut rest = Vec::new();
            let _broken = stream.read_to_end(&mut rest).await;
        })
        .await,
    );
    let front = mesh.caller("front", &[]).await;
    let proxy = format!("http://{}", front.outbound);
    // Loopback is this machine, not the outside; another of its addresses will do.
    let own = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
    own.connect("192.0.2.1:9").unwrap();
    let (address, port) = (own.local_addr().unwrap().ip(), app.address.port());
    let url = format!("http://{address}:{port}/");
    let (code, text) = curl(&["-x", &proxy, "--proxytunnel", &url]).await;
    assert_eq!((code, text.as_str()), (0, "outside"));
    let counted = [("destination", "outside"), ("source", "front.shop")];
    assert_eq!(front.metrics().await.sum("mesh_tcp_connections_opened_total", &counted), 1.0);
    mesh.apply("apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {egress: {mode: deny}}\n").await;
    outrigger_tests::wait::until("nobody gets out", || async {
        let code_of = ["-x", &proxy, "--proxytunnel", "-o", "/dev/null", "-w", "%{http_connect}", &url];
        curl(&code_of).await.1.starts_with("403")
    })
    .await;
    assert!(front.metrics().await.sum("mesh_requests_total", &[("reason", "egress_denied")]) >= 1.0);
}

#[tokio::test]
async fn connect_leads_to_services_over_http2() {
    let (mesh, app) = (Mesh::start().await, TcpApp::echo().await);
    let _replica = mesh.sidecar("echo-1").serves_at("echo", 7, "tcp", app.address).start().await;
    let front = mesh.caller("front", &["echo.shop"]).await;
    front.knows_healthy("echo.shop", 1).await;
    let tcp = TcpStream::connect(front.outbound).await.unwrap();
    let (mut sender, connection) =
        http2::handshake::<_, _, Empty<Bytes>>(TokioExecutor::new(), TokioIo::new(tcp)).await.unwrap();
    Tasks::current().spawn("client", async move {
        let _gone = connection.await;
    });
    let mut connect = async |authority: &str| {
        let request = Request::connect(authority).body(Empty::new()).unwrap();
        soon("an answer", sender.send_request(request)).await.unwrap()
    };
    // Several on one connection, each with its own end.
    for words in ["one", "two"] {
        let answer = connect("echo.shop:7").await;
        assert_eq!(answer.status(), 200);
        let mut tunnel = TokioIo::new(hyper::upgrade::on(answer).await.unwrap());
        tunnel.write_all(words.as_bytes()).await.unwrap();
        tunnel.shutdown().await.unwrap();
        let mut read = String::new();
        soon("the end", tunnel.read_to_string(&mut read)).await.unwrap();
        assert_eq!(read, words);
    }
    for (authority, status, reason) in [
        ("echo.shop:8", 404, "unknown_port"),
        ("localhost:9", 404, "unknown_service"),
        ("echo.shop", 400, "bad_request"),
    ] {
        let answer = connect(authority).await;
        let said = answer.headers().get("x-mesh-reason").map(|reason| reason.to_str().unwrap());
        assert_eq!((answer.status().as_u16(), said), (status, Some(reason)), "{authority}");
    }
    let metrics = front.metrics().await;
    assert_eq!(metrics.sum("mesh_tcp_connections_opened_total", &[("destination", "echo.shop")]), 2.0);
}

#[tokio::test]
async fn what_breaks_in_a_tunnel_is_a_reset_at_its_client() {
    let mesh = Mesh::start().await;
    let app = TcpApp::start(|mut stream| async move {
        // A health check says nothing.
        if stream.read_u8().await.is_ok() {
            stream.write_all(b"half").await.unwrap();
            stream.set_zero_linger().unwrap();
        }
    })
    .await;
    let (_replica, front) = secure(&mesh, &app).await;
    let mut client = TcpStream::connect(front.outbound).await.unwrap();
    client.write_all(b"CONNECT secure.shop:443 HTTP/1.1\r\nhost: secure.shop:443\r\n\r\n").await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the tunnel", client.read_u8()).await.unwrap());
    }
    client.write_all(b"\0").await.unwrap();
    let mut rest = Vec::new();
    let error = soon("the end", client.read_to_end(&mut rest)).await.expect_err("an orderly end");
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}
