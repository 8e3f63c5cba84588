//! A mesh over several machines: the registry on one, `front` and `orders` on theirs with a sidecar and
//! an application each, and a machine that is not in the mesh. Everything is captured; the addresses are
//! all of one kind.

use std::fmt::Display;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;

use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::netns::{Host, Network};
use outrigger_tests::process;
use serde_json::{Value, json};

use crate::plain::{APP, PYTHON, Peer, SIDECAR};

/// What the application of orders listens on, as does that of front.
pub(crate) const APP_PORT: u16 = 8080;
/// Another port of orders' application, which speaks first and no HTTP.
pub(crate) const GREETING_PORT: u16 = 9090;
/// A port of orders' machine that no service is on.
pub(crate) const UNSERVED_PORT: u16 = 7070;
const APP_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/capture/app.py");

/// The kind of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// A host's address.
    pub(crate) fn of(self, host: &Host) -> IpAddr {
        match self {
            Self::V4 => host.v4.into(),
            Self::V6 => host.v6.into(),
        }
    }

    /// The virtual address of orders.
    pub(crate) fn virtual_address(self) -> IpAddr {
        match self {
            Self::V4 => [10, 96, 0, 10].into(),
            Self::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10].into(),
        }
    }

    /// That of front.
    pub(crate) fn own_virtual_address(self) -> IpAddr {
        match self {
            Self::V4 => [10, 96, 0, 11].into(),
            Self::V6 => [0xfd00, 0x96, 0, 0, 0, 0, 0, 0x11].into(),
        }
    }

    const fn loopback(self) -> &'static str {
        match self {
            Self::V4 => "127.0.0.1",
            Self::V6 => "[::1]",
        }
    }

    fn resources(self, more: &str) -> String {
        let service = |name: &str, address: IpAddr, ports: &str| {
            format!(
                "apiVersion: outrigger.dev/v1alpha1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {{ports: [{ports}], addresses: [\"{address}\"]}}\n---\n"
            )
        };
        let http = "{name: web, port: 80, protocol: auto}";
        let both = format!("{http}, {{name: greeting, port: 90, protocol: auto}}");
        let services = [
            service("orders", self.virtual_address(), &both),
            service("front", self.own_virtual_address(), http),
        ];
        format!(
            "{}apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {{{more}}}\n",
            services.concat()
        )
    }
}

/// See the module. Children first: they end before their machines.
pub(crate) struct Scene {
    pub(crate) family: Family,
    pub(crate) orders_sidecar: Sidecar,
    pub(crate) front_sidecar: Sidecar,
    pub(crate) mesh: Mesh,
    _apps: Vec<Peer>,
    pub(crate) front: Host,
    pub(crate) orders: Host,
    pub(crate) outside: Host,
    _registry: Host,
    _network: Network,
}

impl Scene {
    /// Everything runs, is captured by `backend`, and knows each other. `settings`: of the mesh.
    pub(crate) async fn start(family: Family, backend: &str, settings: &str) -> Self {
        let mut network = Network::create();
        let [registry, front, orders, outside] =
            ["registry", "front", "orders", "outside"].map(|name| network.host(name));
        let apps = vec![
            app(&orders, "orders"),
            app(&front, "front"),
            app(&outside, "outside"),
            Peer::serve(&orders, "greeting", &[GREETING_PORT, UNSERVED_PORT]),
            Peer::serve(&outside, "outside", &[GREETING_PORT]),
        ];
        let at = |port: u16| std::net::SocketAddr::new(family.of(&registry), port).to_string();
        let listen = json!({"grpc": {"listen": at(15012)}, "http": {"listen": at(15014)}});
        let mesh = Mesh::within(&registry.namespace.prefix(), &listen).await;
        // Sidecars run as a user of their own, and read their configuration there.
        fs::set_permissions(mesh.directory(), fs::Permissions::from_mode(0o755)).unwrap();
        mesh.apply(&family.resources(settings)).await;
        for host in [&front, &orders] {
            install(host, backend);
        }
        let orders_sidecar = sidecar(&mesh, family, &orders, "orders").await;
        let front_sidecar = sidecar(&mesh, family, &front, "front").await;
        Self {
            family,
            orders_sidecar,
            front_sidecar,
            mesh,
            _apps: apps,
            front,
            orders,
            outside,
            _registry: registry,
            _network: network,
        }
    }

    /// Settings of the mesh, in force at both sidecars.
    pub(crate) async fn configure(&self, settings: &str) {
        let revision = self.mesh.apply(&self.family.resources(settings)).await;
        self.front_sidecar.caught_up(revision).await;
        self.orders_sidecar.caught_up(revision).await;
    }

    /// How often orders' application was asked for something, as it says itself.
    pub(crate) fn hits(&self, what: &str) -> u64 {
        let page = curl(&self.orders, APP, &[&format!("http://{}:{APP_PORT}/hits", self.family.loopback())]);
        page.json[what].as_u64().unwrap_or_default()
    }
}

/// Captures a host.
pub(crate) fn install(host: &Host, backend: &str) {
    capture(host, &["install", "--uid", &SIDECAR.to_string(), "--backend", backend]);
}

/// `outrigger capture ...` on a host.
pub(crate) fn capture(host: &Host, words: &[&str]) {
    let binary = process::binary().to_string_lossy().into_owned();
    let output = host.run(&[&[binary.as_str(), "capture"], words].concat());
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// The application on a host, as a user that is not the sidecar's.
fn app(host: &Host, name: &str) -> Peer {
    app_as(host, name, APP, APP_PORT)
}

pub(crate) fn app_as(host: &Host, name: &str, uid: u32, port: u16) -> Peer {
    let (peer, first) = Peer::run(host, uid, &[PYTHON, APP_FILE, name, &port.to_string()]);
    assert_eq!(first, "listening", "{name}");
    peer
}

async fn sidecar(mesh: &Mesh, family: Family, host: &Host, name: &str) -> Sidecar {
    let address = family.of(host);
    let listen = |port: u16| json!({"listen": std::net::SocketAddr::new(address, port)});
    let probes = json!([{"path": "/healthz"}, {"path": "/broken"}]);
    let entry = |port: u16, target: u16, probes: Value| json!({"name": name, "port": port, "target": format!("{}:{target}", family.loopback()), "probes": probes});
    let mut services = vec![entry(80, APP_PORT, probes)];
    if name == "orders" {
        services.push(entry(90, GREETING_PORT, json!([])));
    }
    let settings = json!({
        "workload": {"address": address},
        "outbound": {"listen": "127.0.0.1:15001"},
        "mesh": listen(15008),
        "admin": listen(15020),
        "capture": {"enabled": true},
        "services": services,
    });
    let token = mesh.token("shop", name, &[name]).await.expose();
    mesh.sidecar(name)
        .account(name)
        .token(&token)
        .config(&settings)
        .within(&host.prefix_as(SIDECAR))
        .start()
        .await
}

/// What curl got.
#[derive(Debug)]
pub(crate) struct Got {
    /// 0: no answer.
    pub(crate) status: u16,
    /// Head and body as they came.
    pub(crate) text: String,
    /// The body, where it is JSON.
    pub(crate) json: Value,
}

impl Got {
    /// A header's value; empty when absent.
    pub(crate) fn header(&self, name: &str) -> &str {
        let head = self.text.split("\r\n\r\n").next().unwrap_or_default();
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map_or("", |(_, value)| value.trim())
    }

    /// The application that answered.
    pub(crate) fn app(&self) -> &str {
        self.json["app"].as_str().unwrap_or_default()
    }

    /// Why the mesh answered, if it did.
    pub(crate) fn reason(&self) -> &str {
        self.header("x-mesh-reason")
    }
}

/// The real curl, on a host, as a user. It follows no proxy of the environment.
pub(crate) fn curl(host: &Host, uid: u32, words: &[&str]) -> Got {
    let fixed = ["curl", "--silent", "--include", "--noproxy", "*", "--max-time", "15"];
    let output = host.run_as(uid, &[&fixed, words].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let json = serde_json::from_str(body).unwrap_or_default();
    Got { status, json, text }
}

/// A URL of an address.
pub(crate) fn url(address: IpAddr, port: u16, path: impl Display) -> String {
    format!("http://{}{path}", std::net::SocketAddr::new(address, port))
}
