//! Who may speak to whom: nobody without a certificate of this mesh, and nobody as someone else.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use outrigger_common::mtls::{self, ClientAuth, Svid};
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::App;
use outrigger_tests::client::{raw, request};
use outrigger_tests::mesh::Mesh;
use outrigger_tests::process::command;
use outrigger_tests::wait::{soon, until};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::shop::{ORDERS, Shop};

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: orders.shop\r\nconnection: close\r\n\r\n";

/// Believes every server: what is tested is whom the server believes.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519]
    }
}

/// A client that proves `svid`, if there is one, and believes every server.
fn tls(svid: Option<&Svid>, alpn: &[u8]) -> Arc<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer));
    let mut config = match svid {
        None => builder.with_no_client_auth(),
        Some(svid) => builder.with_client_auth_cert(svid.chain.clone(), svid.key.clone_key()).unwrap(),
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

/// A connection of one's own to a sidecar's mesh port.
pub(crate) async fn connect_tls(to: SocketAddr, sni: &str, svid: &Svid, alpn: &[u8]) -> TlsStream<TcpStream> {
    let stream = TcpStream::connect(to).await.unwrap();
    let name = ServerName::try_from(sni.to_owned()).unwrap();
    soon("a handshake", TlsConnector::from(tls(Some(svid), alpn)).connect(name, stream)).await.unwrap()
}

/// Sends `bytes` over TLS and reads what comes.
pub(crate) async fn over_tls(to: SocketAddr, sni: &str, svid: Option<&Svid>, bytes: &[u8]) -> String {
    soon("the peer closes", async {
        let stream = TcpStream::connect(to).await.unwrap();
        let name = ServerName::try_from(sni.to_owned()).unwrap();
        let Ok(mut stream) = TlsConnector::from(tls(svid, b"http/1.1")).connect(name, stream).await else {
            return String::new();
        };
        // The server's verdict comes after the client's half of the handshake.
        let _refused = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let _refused = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    })
    .await
}

/// A TLS server that shows `svid`, asks for client certificates as told, and notes every byte clients
/// send it after the handshake.
struct Impostor {
    handshakes: Arc<Mutex<Vec<bool>>>,
    received: Arc<Mutex<Vec<u8>>>,
}

impl Impostor {
    async fn listen(at: SocketAddr, svid: &Svid, clients: ClientAuth) -> (Self, SocketAddr) {
        let listener = TcpListener::bind(at).await.unwrap();
        let address = listener.local_addr().unwrap();
        let acceptor = TlsAcceptor::from(mtls::server_config(svid, clients, &[b"h2", b"http/1.1"]).unwrap());
        let impostor = Self { handshakes: Arc::default(), received: Arc::default() };
        let (handshakes, received) = (impostor.handshakes.clone(), impostor.received.clone());
        Tasks::current().spawn("impostor", async move {
            while let Ok((stream, _)) = listener.accept().await {
                let accepted = acceptor.accept(stream).await;
                let mut bytes = Vec::new();
                if let Ok(stream) = accepted {
                    let mut stream = stream;
                    let limit = Duration::from_secs(2);
                    let _ended = tokio::time::timeout(limit, stream.read_to_end(&mut bytes)).await;
                    handshakes.lock().unwrap().push(true);
                } else {
                    handshakes.lock().unwrap().push(false);
                }
                received.lock().unwrap().extend(bytes);
            }
        });
        (impostor, address)
    }

    /// Waits until someone came and went.
    async fn visited(&self) {
        until("the impostor is visited", || async { !self.handshakes.lock().unwrap().is_empty() }).await;
    }

    fn received(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().unwrap()).into_owned()
    }
}

#[tokio::test]
async fn the_mesh_port_answers_nobody_without_a_certificate_of_this_mesh() {
    let shop = Shop::open(1).await;
    let (port, app) = (shop.replicas[0].mesh, &shop.apps[0]);
    let sni = "80.orders.shop.mesh";
    let own = shop.mesh.identity("shop", "visitor", &[]).await;
    let answer = over_tls(port, sni, Some(&own), GET).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "the same with a certificate works: {answer:?}");
    app.forget();

    let other = Mesh::start().await;
    let foreign = other.identity("shop", "visitor", &[]).await;
    let admin = shop.mesh.admin_identity();
    for (who, svid) in [("nobody", None), ("another mesh", Some(&foreign)), ("the admin", Some(&admin))] {
        let answer = over_tls(port, sni, svid, GET).await;
        assert_eq!(answer, "", "{who}");
    }
    for plain in [GET, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let answer = raw(port, plain).await;
        assert!(!answer.contains("HTTP"), "{answer:?}");
    }
    assert_eq!(app.requests(), 0);
    let metrics = shop.replicas[0].metrics().await;
    let failed = metrics.sum("mesh_tls_handshakes_total", &[("direction", "inbound"), ("result", "failed")]);
    let mismatch = metrics
        .sum("mesh_tls_handshakes_total", &[("direction", "inbound"), ("result", "identity_mismatch")]);
    assert_eq!((failed, mismatch), (4.0, 1.0));
}

#[tokio::test]
async fn a_server_with_another_identity_than_registered_gets_no_byte_of_a_request() {
    let mut shop = Shop::open(1).await;
    let client = shop.front.client();
    assert_eq!(client.get(ORDERS, "/").await.unwrap().status, 200);
    // The rogue is a workload of this very mesh, at the very address.
    let rogue = shop.mesh.identity("shop", "rogue", &[]).await;
    let address = shop.replicas[0].mesh;
    shop.replicas[0].process.kill();
    let (impostor, _) = Impostor::listen(address, &rogue, ClientAuth::Required).await;
    let secret = request(Method::POST, ORDERS, "/secret", &[("authorization", "s3cret")], "s3cret body");
    let answer = client.send(secret).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "identity_mismatch"), "{}", answer.text());
    assert!(answer.text().contains("sa/rogue") && answer.text().contains("sa/orders"), "{}", answer.text());
    impostor.visited().await;
    assert_eq!(impostor.received(), "", "not one byte of HTTP");
    assert!(impostor.handshakes.lock().unwrap()[0], "TLS itself was in order");
    let metrics = shop.front.metrics().await;
    let mismatch = [("direction", "outbound"), ("result", "identity_mismatch")];
    assert!(metrics.sum("mesh_tls_handshakes_total", &mismatch) >= 1.0);
    assert_eq!(
        metrics.sum("mesh_requests_total", &[("reason", "identity_mismatch"), ("status", "503")]),
        1.0
    );
}

#[tokio::test]
async fn an_impostor_registry_never_hears_the_secret_of_a_token() {
    let mesh = Mesh::start().await;
    let other = Mesh::start().await;
    let any: SocketAddr = ([127, 0, 0, 1], 0).into();
    // One whose root is another, and one of this mesh with a workload's certificate, whose root fits.
    let strangers = other.identity("shop", "x", &[]).await;
    let workloads = mesh.identity("shop", "x", &[]).await;
    for (svid, says) in [(strangers, "UnknownIssuer"), (workloads, "not the registry")] {
        let (impostor, at) = Impostor::listen(any, &svid, ClientAuth::Optional).await;
        let front = mesh.sidecar("front").config(&json!({"registry": {"address": at}})).launch().await;
        impostor.visited().await;
        until("the sidecar says why", || async {
            let (status, text) = front.get("/ready").await;
            status == 503 && text.contains("no certificate yet") && text.contains(says)
        })
        .await;
        assert_eq!(impostor.received(), "");
    }
}

#[tokio::test]
async fn an_impostor_registry_is_refused_by_running_sidecars_and_traffic_goes_on() {
    let mut shop = Shop::open(1).await;
    let workload = shop.mesh.identity("shop", "x", &[]).await;
    let at = shop.mesh.grpc;
    shop.mesh.registry.kill();
    until("the sidecar notices", || async {
        shop.front.metrics().await.value("mesh_registry_connected") == 0.0
    })
    .await;
    let (impostor, _) = Impostor::listen(at, &workload, ClientAuth::Optional).await;
    impostor.visited().await;
    until("a log says why", || async { shop.front.process.log().contains("not the registry: refused") })
        .await;
    assert_eq!(impostor.received(), "");
    assert_eq!(shop.front.metrics().await.value("mesh_registry_connected"), 0.0);
    assert_eq!(shop.front.client().get(ORDERS, "/").await.unwrap().status, 200);
}

#[tokio::test]
async fn a_sidecar_cannot_register_what_its_token_does_not_grant() {
    let shop = Shop::open(1).await;
    let thief = App::start("thief").await;
    let token = shop.mesh.token("shop", "thief", &["thief"]).await.expose();
    let sidecar = shop.mesh.sidecar("thief-1").serves("orders", &thief).token(&token).launch().await;
    until("the sidecar says why", || async {
        let (status, text) = sidecar.get("/ready").await;
        status == 503 && text.contains("not registered") && text.contains("orders.shop")
    })
    .await;
    // Nor with the id of another's workload.
    let token = shop.mesh.token("shop", "thief", &["thief"]).await.expose();
    let impostor = shop
        .mesh
        .sidecar("thief-2")
        .serves("thief", &thief)
        .token(&token)
        .config(&json!({"workload": {"id": "orders-1"}}))
        .launch()
        .await;
    until("the sidecar says why", || async {
        let (status, text) = impostor.get("/ready").await;
        status == 503 && text.contains("not registered") && text.contains("orders-1")
    })
    .await;
    assert_eq!(shop.front.workloads(ORDERS).await, ["orders-1"]);
    for _ in 0..10 {
        assert_eq!(shop.front.client().get(ORDERS, "/").await.unwrap().text(), "app-1");
    }
    assert_eq!(thief.requests(), 0);
}

#[tokio::test]
async fn a_workloads_certificate_does_not_administer() {
    let mesh = Mesh::start().await;
    let directory = mesh.directory().join("workload");
    mesh.identity("shop", "admin", &[]).await.write_dir(&directory).unwrap();
    let registry = mesh.grpc.to_string();
    let run = |identity: &std::path::Path, args: &[&str]| {
        let connection = ["--registry", &registry, "--identity", identity.to_str().unwrap()];
        let mut command = command(&[args, &connection].concat());
        // Not a child of a mesh: an ordinary command.
        command.env_remove("OUTRIGGER_DEMO_CHILD");
        let output = command.output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let token = ["token", "--namespace", "shop", "--account", "orders"];
    let admin = mesh.data().join("admin");
    let (code, text) = run(&admin, &token);
    assert_eq!(code, Some(0), "{text}");
    for args in [&token[..], &["get", "workloads"], &["get", "tokens"]] {
        let (code, text) = run(&directory, args);
        assert!(matches!(code, Some(1 | 2)), "{args:?}: {text}");
        println!("{args:?}: {}", text.trim());
        assert!(text.contains("admin"), "{args:?}: {text}");
    }
    // No name a token may carry makes an admin or a registry.
    for (namespace, account) in [("", "admin"), ("shop", "../admin"), ("shop/sa/x/../..", "admin")] {
        let (code, text) = run(&admin, &["token", "--namespace", namespace, "--account", account]);
        assert_ne!(code, Some(0), "{namespace:?} {account:?}: {text}");
    }
}
