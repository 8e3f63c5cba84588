//! What an application reaches whose connections are captured.

use outrigger_tests::netns::Host;
use outrigger_tests::wait::until;

use crate::plain::{APP, Peer, SIDECAR, ask};
use crate::scene::{APP_PORT, Family, GREETING_PORT, Got, Scene, curl, url};

/// The identity that orders' application sees.
const FRONT: &str = "spiffe://mesh.local/ns/shop/sa/front";

#[tokio::test]
async fn calls_go_where_their_address_belongs_over_ipv4() {
    calls_go_where_their_address_belongs(Family::V4, "nft").await;
}

#[tokio::test]
async fn calls_go_where_their_address_belongs_over_ipv6() {
    calls_go_where_their_address_belongs(Family::V6, "iptables").await;
}

async fn calls_go_where_their_address_belongs(family: Family, backend: &str) {
    let scene = Scene::start(family, backend, "").await;
    in_the_mesh(&scene).await;
    oneself(&scene).await;
    outside_allowed(&scene).await;
    outside_denied(&scene).await;
}

fn by_front(scene: &Scene, words: &[&str]) -> Got {
    curl(&scene.front, APP, words)
}

fn seen(got: &Got, header: &str) -> String {
    got.json["headers"][header].as_str().unwrap_or_default().to_owned()
}

async fn in_the_mesh(scene: &Scene) {
    let (family, orders) = (scene.family, scene.family.of(&scene.orders));
    // By virtual address; by the endpoint's own, whose port is the application's.
    for at in [url(family.virtual_address(), 80, "/a"), url(orders, APP_PORT, "/a")] {
        let got = by_front(scene, &[&at]);
        assert_eq!((got.status, got.app()), (200, "orders"), "{at}: {got:?}");
        let caller = seen(&got, "x-forwarded-client-cert");
        assert!(caller.contains(FRONT), "{at}: not over mutual TLS: {got:?}");
    }
    // Whatever Host says, and it is passed on as it was written.
    let at = url(family.virtual_address(), 80, "/a");
    let got = by_front(scene, &["--header", "Host: www.example.com", &at]);
    assert_eq!((got.app(), seen(&got, "host").as_str()), ("orders", "www.example.com"), "{got:?}");
    let got = by_front(scene, &["--http1.0", &at]);
    assert_eq!(got.app(), "orders", "{got:?}");
    // Where the server speaks first, and no HTTP.
    for (at, port) in [(family.virtual_address(), 90), (orders, GREETING_PORT)] {
        assert_eq!(ask(&scene.front, APP, at, port), "greeting", "{at} {port}");
    }
    let counted = scene.front_sidecar.metrics().await;
    let labels = [("destination", "orders.shop"), ("tls", "mutual"), ("status", "200")];
    assert!(counted.sum("mesh_requests_total", &labels) >= 4.0);
    let labels = [("destination", "orders.shop"), ("direction", "outbound")];
    assert_eq!(counted.sum("mesh_tcp_connections_opened_total", &labels), 2.0);
    // A port of the virtual address that the service does not have is nobody's.
    let got = by_front(scene, &["--connect-timeout", "2", &url(family.virtual_address(), 81, "/")]);
    assert_eq!(got.app(), "", "{got:?}");
}

async fn oneself(scene: &Scene) {
    let family = scene.family;
    let own = family.of(&scene.front);
    let got = by_front(scene, &[&url(family.own_virtual_address(), 80, "/")]);
    assert_eq!(got.app(), "front", "its own service: {got:?}");
    assert!(seen(&got, "x-forwarded-client-cert").contains(FRONT), "like any other: {got:?}");
    // What never leaves the machine is never captured.
    let before = mesh_requests(scene).await;
    let loopback = format!("http://localhost:{APP_PORT}/");
    for at in [url(own, APP_PORT, "/"), loopback] {
        let got = by_front(scene, &[&at]);
        assert_eq!(got.app(), "front", "{at}: {got:?}");
        assert_eq!(seen(&got, "x-forwarded-client-cert"), "", "{at}: {got:?}");
    }
    assert_eq!(mesh_requests(scene).await, before);
}

async fn mesh_requests(scene: &Scene) -> f64 {
    scene.front_sidecar.metrics().await.sum("mesh_requests_total", &[])
}

/// Connections that left the mesh through front's sidecar, and their bytes.
async fn left(scene: &Scene) -> [f64; 2] {
    let metrics = scene.front_sidecar.metrics().await;
    let labels = [("destination", "outside"), ("direction", "outbound")];
    ["mesh_tcp_connections_opened_total", "mesh_tcp_sent_bytes_total"].map(|name| metrics.sum(name, &labels))
}

async fn outside_allowed(scene: &Scene) {
    let at = url(scene.family.of(&scene.outside), APP_PORT, "/somewhere");
    let [before, _] = left(scene).await;
    let got = by_front(scene, &["--header", "x-mesh-reason: mine", &at]);
    assert_eq!((got.status, got.app()), (200, "outside"), "{got:?}");
    // Untouched: as curl sent it, and nothing more.
    assert_eq!(seen(&got, "x-mesh-reason"), "mine");
    assert_eq!(seen(&got, "traceparent"), "");
    assert_eq!(ask(&scene.front, APP, scene.family.of(&scene.outside), GREETING_PORT), "outside");
    until("both are counted", || async { left(scene).await[0] == before + 2.0 }).await;
    assert!(left(scene).await[1] > 0.0);
    // The sidecar's own user goes past it.
    let got = curl(&scene.front, SIDECAR, &[&at]);
    assert_eq!(got.app(), "outside", "{got:?}");
    assert_eq!(left(scene).await[0], before + 2.0);
}

async fn outside_denied(scene: &Scene) {
    let outside = scene.family.of(&scene.outside);
    let (mut held, greeting) =
        Peer::start(&scene.front, APP, &["hold", &outside.to_string(), &GREETING_PORT.to_string()]);
    assert_eq!(greeting, "outside");
    scene.configure("egress: {mode: deny}").await;
    let at = url(outside, APP_PORT, "/denied");
    let got = by_front(scene, &[&at]);
    assert_eq!((got.status, got.reason()), (403, "egress_denied"), "{got:?}");
    let reset = ask(&scene.front, APP, outside, GREETING_PORT);
    assert!(reset.contains("Connection reset by peer"), "{reset}");
    let hits = outside_hits(&scene.outside);
    assert!(!hits.contains("/denied"), "{hits}");
    let counted = scene.front_sidecar.metrics().await;
    assert_eq!(counted.sum("mesh_requests_total", &[("reason", "egress_denied"), ("status", "403")]), 1.0);
    assert_eq!(counted.sum("mesh_tcp_connections_closed_total", &[("reason", "egress_denied")]), 1.0);
    // What was let out before stays, and the mesh is as it was.
    assert_eq!(held.exchange("before"), "before");
    assert_eq!(by_front(scene, &[&url(scene.family.virtual_address(), 80, "/")]).app(), "orders");
}

fn outside_hits(outside: &Host) -> String {
    curl(outside, APP, &[&format!("http://localhost:{APP_PORT}/hits")]).text
}
