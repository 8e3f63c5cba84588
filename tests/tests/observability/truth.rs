//! What the counters say is what was sent, at both ends alike.

use std::collections::BTreeMap;

use http::{HeaderMap, Method};
use http_body::Frame;
use outrigger_common::mtls;
use outrigger_tests::app::{App, ok, streamed};
use outrigger_tests::client::{Client, request, stream_request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::metrics::Metrics;
use outrigger_tests::wait::{soon, until};
use rustls_pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// Requests by some of their labels.
type Outcomes = BTreeMap<Vec<String>, f64>;

/// What a sidecar counted from `front.shop` to `orders.shop`, by these labels.
fn outcomes(metrics: &Metrics, direction: &str, labels: &[&str]) -> Outcomes {
    let mut outcomes = Outcomes::new();
    for sample in metrics.matching("mesh_requests_total", &edge(direction)) {
        let key = labels.iter().map(|label| sample.labels[*label].clone()).collect();
        *outcomes.entry(key).or_default() += sample.value;
    }
    outcomes
}

fn edge(direction: &str) -> [(&str, &str); 3] {
    [("direction", direction), ("source", "front.shop"), ("destination", "orders.shop")]
}

/// Waits until both ends have counted so many requests; an answer is there a moment before it is
/// counted.
async fn counted(ends: [(&Sidecar, &str); 2], requests: f64) {
    for (sidecar, direction) in ends {
        until(&format!("{} has counted {requests}", sidecar.id), || async {
            sidecar.metrics().await.sum("mesh_requests_total", &[("direction", direction)]) >= requests
        })
        .await;
    }
}

async fn statuses(client: &Client, status: &str, count: u32) {
    for _ in 0..count {
        let request = request(Method::GET, "orders.shop", "/", &[("x-app-status", status)], "");
        assert_eq!(client.send(request).await.unwrap().status.as_str(), status);
    }
}

/// A gRPC call answered with this status.
async fn grpc(client: &Client, status: &'static str) {
    let (chunks, body) = streamed();
    let headers = [("content-type", "application/grpc"), ("te", "trailers"), ("x-app-echo", "1")];
    let call = stream_request(Method::POST, "orders.shop", "/shop.Orders/List", &headers, body);
    let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
    let sending = async {
        chunks.send(Ok(Frame::data("12345".into()))).await.unwrap();
        chunks.send(Ok(Frame::trailers(trailers))).await.unwrap();
        drop(chunks);
    };
    let (answer, ()) = tokio::join!(client.send(call), sending);
    assert_eq!(answer.unwrap().trailers.unwrap()["grpc-status"], status);
}

#[tokio::test]
async fn both_ends_count_every_request_once_and_alike() {
    let mesh = Mesh::start().await;
    let app = App::start("orders").await;
    let back = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    let (http1, h2) = (front.client(), front.client_http2());
    statuses(&http1, "200", 7).await;
    statuses(&http1, "404", 2).await;
    statuses(&http1, "503", 4).await;
    statuses(&http1, "302", 1).await;
    statuses(&h2, "200", 5).await;
    let upload = [("x-app-body", "5000"), ("x-app-status", "201")];
    for _ in 0..3 {
        let post = request(Method::POST, "orders.shop", "/", &upload, vec![b'x'; 1000]);
        assert_eq!(http1.send(post).await.unwrap().body.len(), 5000);
    }
    grpc(&h2, "0").await;
    grpc(&h2, "5").await;
    let requests = 7 + 2 + 4 + 1 + 5 + 3 + 2;
    counted([(&front, "outbound"), (&back, "inbound")], f64::from(requests)).await;

    let row = |status: &str, grpc: &str, count: u32| {
        (["default", status, grpc, "mutual", ""].map(str::to_owned).to_vec(), f64::from(count))
    };
    let expected = Outcomes::from([
        row("200", "", 7 + 5),
        row("201", "", 3),
        row("302", "", 1),
        row("404", "", 2),
        row("503", "", 4),
        row("200", "0", 1),
        row("200", "5", 1),
    ]);
    let body = "orders".len() * (7 + 2 + 4 + 1 + 5);
    for (sidecar, direction) in [(&front, "outbound"), (&back, "inbound")] {
        let metrics = sidecar.metrics().await;
        let sum =
            |name: &str, labels: &[(&str, &str)]| metrics.sum(name, &[&edge(direction), labels].concat());
        let labels = ["route", "status", "grpc_status", "tls", "reason"];
        assert_eq!(outcomes(&metrics, direction, &labels), expected, "{direction}");
        // Nothing is counted anywhere else.
        assert_eq!(metrics.sum("mesh_requests_total", &[]), f64::from(requests), "{direction}");
        for (class, count) in [("2xx", 7 + 3 + 5 + 1), ("3xx", 1), ("4xx", 2), ("5xx", 4), ("error", 1)] {
            let observed = sum("mesh_request_duration_seconds_count", &[("status_class", class)]);
            assert_eq!(observed, f64::from(count), "{direction} {class}");
        }
        assert_eq!(sum("mesh_request_processing_seconds_count", &[]), f64::from(requests));
        assert_eq!(sum("mesh_request_body_bytes_total", &[]), f64::from(3 * 1000 + 2 * 5), "{direction}");
        let sent = u32::try_from(body + 3 * 5000 + 2 * 5).unwrap();
        assert_eq!(sum("mesh_response_body_bytes_total", &[]), f64::from(sent), "{direction}");
        assert_eq!(sum("mesh_requests_in_flight", &[]), 0.0, "{direction}");
        assert_eq!(metrics.sum("mesh_retries_total", &[]), 0.0);
        assert_eq!(metrics.value("mesh_metrics_folded_total"), 0.0);
        let handshakes = [("direction", direction), ("result", "ok")];
        assert!(metrics.sum("mesh_tls_handshakes_total", &handshakes) >= 1.0);
    }
    let metrics = front.metrics().await;
    // The client's own protocol, whatever runs between the sidecars.
    let protocols =
        [("grpc", 2.0), ("h2", 5.0), ("http1", 17.0)].map(|(name, count)| (vec![name.to_owned()], count));
    assert_eq!(outcomes(&metrics, "outbound", &["protocol"]), protocols.into());
    let transmit = metrics.sum("mesh_request_transmit_seconds_count", &edge("outbound"));
    let queue = metrics.sum("mesh_request_queue_seconds_count", &edge("outbound"));
    assert_eq!([transmit, queue], [f64::from(requests); 2]);
}

#[tokio::test]
async fn requests_are_in_flight_from_head_to_last_byte() {
    let mesh = Mesh::start().await;
    let gate = std::sync::Arc::new(Semaphore::new(0));
    let app = {
        let gate = gate.clone();
        App::with("orders", move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.map_err(std::io::Error::other)?.forget();
                Ok(ok("orders"))
            }
        })
        .await
    };
    let back = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    let client = front.client();
    let flights = async || {
        let (outbound, inbound) = (front.metrics().await, back.metrics().await);
        let count = |metrics: &Metrics, direction| metrics.sum("mesh_requests_in_flight", &edge(direction));
        [count(&outbound, "outbound"), count(&inbound, "inbound")]
    };
    let watching = async {
        until("three are in flight at both ends", || async { flights().await == [3.0; 2] }).await;
        gate.add_permits(1);
        until("two are", || async { flights().await == [2.0; 2] }).await;
        gate.add_permits(2);
    };
    let call = async || client.get("orders.shop", "/").await.unwrap().status;
    let ((), one, two, three) = tokio::join!(watching, call(), call(), call());
    assert_eq!([one, two, three], [200; 3]);
    until("none is", || async { flights().await == [0.0; 2] }).await;
}

#[tokio::test]
async fn what_the_mesh_answers_is_counted_with_its_reason() {
    let mesh = Mesh::start().await;
    let mut app = App::start("orders").await;
    let back = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    front.knows("orders.shop", &["orders-1"]).await;
    app.die().await;
    let client = front.client();
    let mut refused = Vec::new();
    for (service, status) in [("orders.shop", 503), ("orders.shop:81", 404), ("nowhere.shop", 404)] {
        let answer = client.get(service, "/").await.unwrap();
        assert_eq!(answer.status, status, "{answer:?}");
        refused.push(answer.reason().to_owned());
    }
    counted([(&front, "outbound"), (&back, "inbound")], 1.0).await;
    until("all are counted", || async { front.metrics().await.sum("mesh_requests_total", &[]) == 3.0 }).await;
    let metrics = front.metrics().await;
    let reasons = |destination: &str| -> Vec<_> {
        let labels = [("destination", destination)];
        let series = metrics.matching("mesh_requests_total", &labels);
        series.map(|sample| (sample.labels["reason"].clone(), sample.labels["status"].clone())).collect()
    };
    assert_eq!(reasons("orders.shop"), [(refused[0].clone(), "503".to_owned())]);
    let mut unknown = reasons("unknown");
    unknown.sort();
    assert_eq!(unknown, [("unknown_port".into(), "404".into()), ("unknown_service".into(), "404".into())]);
    assert_eq!(refused[1..], ["unknown_port", "unknown_service"]);
}

#[tokio::test]
async fn a_client_chooses_no_label() {
    let mesh = Mesh::start().await;
    let app = App::start("orders").await;
    let back = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    let client = front.client();
    let marker = "chosenbytheclient";
    let hosts = ["NAME", "NAME.shop", "NAME.example.org", "orders.NAME", "NAME:80", "orders.shop.NAME"];
    for host in hosts {
        let answer = client.get(&host.replace("NAME", marker), "/").await.unwrap();
        assert_eq!(answer.status, 404, "{host}: {answer:?}");
    }
    // One name in every form there is, is one destination.
    for host in
        ["orders", "orders.shop", "orders.shop.mesh", "orders.shop.svc.cluster.local", "ORDERS.shop:80"]
    {
        assert_eq!(client.get(host, "/").await.unwrap().status, 200, "{host}");
    }
    let odd = request(
        Method::from_bytes(b"CHOSENBYTHECLIENT").unwrap(),
        "orders.shop",
        "/chosenbytheclient",
        &[],
        "",
    );
    assert_eq!(client.send(odd).await.unwrap().status, 200);
    let own = [
        ("x-mesh-source", "chosenbytheclient.shop"),
        ("x-mesh-reason", marker),
        ("x-mesh-processing-us", "1"),
    ];
    let answer = client.send(request(Method::GET, "orders.shop", "/", &own, "")).await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.reason()), (200, ""));
    let requests = 5 + 1 + 1;
    counted([(&front, "outbound"), (&back, "inbound")], f64::from(requests)).await;
    until("the rest too", || async {
        front.metrics().await.sum("mesh_requests_total", &[]) == f64::from(requests) + 6.0
    })
    .await;
    let (outbound, inbound) = (front.metrics().await, back.metrics().await);
    for page in [&outbound, &inbound] {
        assert!(!page.text().to_lowercase().contains(marker), "{}", page.text());
    }
    let unknown = [("destination", "unknown"), ("source", "front.shop"), ("tls", "none")];
    assert_eq!(outbound.sum("mesh_requests_total", &unknown), 6.0);
    assert_eq!(outbound.sum("mesh_requests_total", &edge("outbound")), f64::from(requests));
    assert_eq!(inbound.sum("mesh_requests_total", &edge("inbound")), f64::from(requests));
}

/// Sends a request as a sidecar of this identity would, with a source of its own choice.
async fn claim(mesh: &Mesh, back: &Sidecar, namespace: &str, account: &str, source: &str) {
    let svid = mesh.identity(namespace, account, &[]).await;
    let config = mtls::client_config(&svid, &[b"http/1.1"]).expect("the registry gives good identities");
    let name = ServerName::try_from("80.orders.shop.mesh").expect("a DNS name");
    let exchange = async {
        let tcp = TcpStream::connect(back.mesh).await.unwrap();
        let mut tls = TlsConnector::from(config).connect(name, tcp).await.unwrap();
        let request = format!(
            "GET / HTTP/1.1\r\nhost: orders.shop\r\nx-mesh-source: {source}\r\nconnection: close\r\n\r\n"
        );
        tls.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        // Closed without a goodbye, once everything is there.
        let _end = tls.read_to_string(&mut answer).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    };
    soon("an answer over mutual TLS", exchange).await;
}

#[tokio::test]
async fn a_source_is_believed_within_the_namespace_proved() {
    let mesh = Mesh::start().await;
    let app = App::start("orders").await;
    let back = mesh.replica("orders-1", "orders", &app).await;
    claim(&mesh, &back, "shop", "account", "storefront.shop").await;
    claim(&mesh, &back, "elsewhere", "thief", "storefront.shop").await;
    claim(&mesh, &back, "elsewhere", "mute", "").await;
    claim(&mesh, &back, "elsewhere", "garbled", "a\"}b.elsewhere").await;
    until("all are counted", || async { back.metrics().await.sum("mesh_requests_total", &[]) == 4.0 }).await;
    let metrics = back.metrics().await;
    let sources: BTreeMap<_, _> = metrics
        .matching("mesh_requests_total", &[("direction", "inbound"), ("destination", "orders.shop")])
        .map(|sample| (sample.labels["source"].as_str(), sample.value))
        .collect();
    let expected = ["garbled.elsewhere", "mute.elsewhere", "storefront.shop", "thief.elsewhere"];
    assert_eq!(sources, expected.map(|source| (source, 1.0)).into());
}
