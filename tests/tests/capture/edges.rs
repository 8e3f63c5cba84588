//! Where capture meets what it was not made for.

use std::net::SocketAddr;

use outrigger_tests::mesh::Mesh;
use outrigger_tests::netns::Network;
use outrigger_tests::wait::until;
use serde_json::json;

use crate::plain::{APP, Peer, SIDECAR, ask, udp};
use crate::scene::{APP_PORT, Family, GREETING_PORT, Scene, app_as, capture, curl, install, url};

#[tokio::test]
async fn an_application_under_the_sidecars_user_makes_it_unready() {
    let mut network = Network::create();
    let (registry, host) = (network.host("registry"), network.host("host"));
    let at = |port: u16| json!({"listen": SocketAddr::new(registry.v4.into(), port)});
    let mesh =
        Mesh::within(&registry.namespace.prefix(), &json!({"grpc": at(15012), "http": at(15014)})).await;
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(mesh.directory(), open).unwrap();
    let impostor = app_as(&host, "orders", SIDECAR, APP_PORT);
    let settings = json!({
        "workload": {"address": host.v4},
        "mesh": {"listen": SocketAddr::new(host.v4.into(), 15008)},
        "admin": {"listen": SocketAddr::new(host.v4.into(), 15020)},
        "capture": {"enabled": true},
    });
    let target = SocketAddr::from(([127, 0, 0, 1], APP_PORT));
    let sidecar = mesh.sidecar("orders").serves_at("orders", 80, "auto", target).config(&settings);
    let sidecar = sidecar.within(&host.prefix_as(SIDECAR)).launch().await;
    until("nothing else is missing", || async {
        let (status, text) = sidecar.get("/ready").await;
        status == 503 && text.contains("user 1337") && text.contains("port 8080") && !text.contains("yet")
    })
    .await;
    // What else that user runs is no application of this sidecar's.
    let _another = app_as(&host, "another", SIDECAR, 8081);
    drop(impostor);
    sidecar.ready().await;
    let _app = app_as(&host, "orders", APP, APP_PORT);
    sidecar.ready().await;
}

#[tokio::test]
async fn what_is_older_than_capture_and_what_outlives_it_goes_on() {
    let scene = Scene::start(Family::V4, "nft", "").await;
    let outside = scene.family.of(&scene.outside);
    capture(&scene.front, &["remove"]);
    let hold = || Peer::start(&scene.front, APP, &["hold", &outside.to_string(), &GREETING_PORT.to_string()]);
    let (mut older, _) = hold();
    let at = url(scene.family.virtual_address(), 80, "/");
    assert_eq!(
        curl(&scene.front, APP, &["--connect-timeout", "1", &at]).app(),
        "",
        "there is no such machine"
    );
    install(&scene.front, "nft");
    assert_eq!(curl(&scene.front, APP, &[&at]).app(), "orders");
    assert_eq!(older.exchange("on"), "on");
    assert_eq!(udp(&scene.front, APP, outside, GREETING_PORT), "datagram");
    // With the sidecar gone, what is captured fails at once: nobody leaves the mesh by accident.
    let Scene { mut front_sidecar, front, outside: machine, .. } = scene;
    front_sidecar.process.kill();
    let refused = ask(&front, APP, outside, GREETING_PORT);
    assert!(refused.contains("Connection refused"), "{refused}");
    assert_eq!(older.exchange("and on"), "and on");
    capture(&front, &["remove"]);
    assert_eq!(ask(&front, APP, outside, GREETING_PORT), "outside");
    drop(machine);
}

#[tokio::test]
async fn a_sidecar_that_is_captured_itself_says_so_instead_of_calling_itself() {
    let scene = Scene::start(Family::V4, "nft", "").await;
    let at = url(scene.family.of(&scene.outside), APP_PORT, "/");
    assert_eq!(curl(&scene.front, APP, &[&at]).app(), "outside");
    // Of another user, by mistake.
    capture(&scene.front, &["install", "--uid", "4242"]);
    let got = curl(&scene.front, APP, &[&at]);
    assert_eq!((got.status, got.reason()), (508, "loop"), "{got:?}");
    let log = scene.front_sidecar.process.log();
    assert!(log.contains("--uid 1337"), "the log names the remedy");
}

#[tokio::test]
async fn nobody_leaves_before_the_mesh_has_said_whether_one_may() {
    let scene = Scene::start(Family::V4, "nft", "egress: {mode: deny}").await;
    let outside = scene.family.of(&scene.outside);
    let Scene { mut mesh, front_sidecar, front, outside: _machine, .. } = scene;
    mesh.registry.kill();
    // It kept nothing of its earlier life.
    let sidecar = front_sidecar.relaunch(&json!({"timeouts": {"discovery": "100ms"}})).await;
    let egress = async || {
        let (_, text) = sidecar.get("/addresses").await;
        let page: serde_json::Value = serde_json::from_str(&text).unwrap();
        page["egress"]["mode"].as_str().unwrap_or_default().to_owned()
    };
    assert_eq!(egress().await, "unknown");
    let refused = ask(&front, APP, outside, GREETING_PORT);
    assert!(refused.contains("Connection reset by peer"), "{refused}");
    let got = curl(&front, APP, &[&url(outside, APP_PORT, "/")]);
    let told = (got.status, got.reason(), got.header("connection"));
    assert_eq!(told, (503, "discovery_unavailable", "close"), "{got:?}");
    let got = curl(&front, APP, &["--http2-prior-knowledge", &url(outside, APP_PORT, "/")]);
    assert_eq!((got.status, got.reason()), (503, "discovery_unavailable"), "{got:?}");
    let labels = [("reason", "discovery_unavailable")];
    for (name, count) in [("mesh_tcp_connections_closed_total", 1.0), ("mesh_requests_total", 2.0)] {
        assert_eq!(sidecar.metrics().await.sum(name, &labels), count, "{name}");
    }
    mesh.restart_registry().await;
    until("it is told", || async { egress().await == "deny" }).await;
    let got = curl(&front, APP, &[&url(outside, APP_PORT, "/")]);
    assert_eq!((got.status, got.reason()), (403, "egress_denied"), "{got:?}");
}
