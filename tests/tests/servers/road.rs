//! The way from a client to servers: a dedicated local port, a sidecar, and a sidecar beside each server.

use std::net::SocketAddr;

use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::until;
use serde_json::{Value, json};

/// The service behind it.
pub(crate) const SERVICE: &str = "goods.shop";
const NAME: &str = "goods";
/// Where TLS by name goes as well.
const PORT: u16 = 443;

/// Two or more sidecars in a row.
pub(crate) struct Road {
    /// Where clients connect.
    pub(crate) at: SocketAddr,
    pub(crate) front: Sidecar,
    pub(crate) replicas: Vec<Sidecar>,
}

impl Road {
    /// To a service that says nothing of what it speaks.
    pub(crate) async fn unmarked(mesh: &Mesh, servers: &[SocketAddr]) -> Self {
        Self::with(mesh, servers, None, &json!({})).await
    }

    /// The same with a declared protocol, and with more configuration of the client's sidecar.
    pub(crate) async fn with(
        mesh: &Mesh,
        servers: &[SocketAddr],
        protocol: Option<&str>,
        extra: &Value,
    ) -> Self {
        let mut replicas = Vec::new();
        for (number, server) in servers.iter().enumerate() {
            let mut service = json!({"name": NAME, "port": PORT, "target": server});
            if let Some(protocol) = protocol {
                service["protocol"] = protocol.into();
            }
            let token = mesh.token(outrigger_tests::mesh::NAMESPACE, NAME, &[NAME]).await;
            // Looked at once, when it starts: a server's connections are those of clients then.
            let settings = json!({"services": [service], "health": {"interval": "60s"}});
            let replica = mesh.sidecar(&format!("goods-{number}")).config(&settings);
            replicas.push(replica.token(&token.expose()).start().await);
        }
        let ports = json!([{"listen": "127.0.0.1:0", "service": SERVICE, "port": PORT}]);
        let front = mesh.sidecar("front").calls(&[SERVICE]).config(&json!({"outbound": {"ports": ports}}));
        let front = front.config(extra).start().await;
        front.knows_healthy(SERVICE, servers.len()).await;
        let at = front.ports[0];
        Self { at, front, replicas }
    }

    /// How often the client's sidecar found that protocol.
    pub(crate) async fn detected(&self, protocol: &str) -> f64 {
        let labels = [("direction", "outbound"), ("protocol", protocol)];
        self.front.metrics().await.sum("mesh_protocol_detections_total", &labels)
    }

    /// Waits until both sides have counted so many connections, all of them ended by both ends' own will.
    pub(crate) async fn carried(&self, connections: u32) {
        self.counted(connections, &[("reason", "")]).await;
    }

    /// Waits until both sides have counted so many connections, all of them over. A server that does not read its
    /// client's last words breaks the connection.
    pub(crate) async fn over(&self, connections: u32) {
        self.counted(connections, &[]).await;
    }

    async fn counted(&self, connections: u32, ended: &[(&str, &str)]) {
        until(&format!("{connections} connections are counted and over {ended:?}"), || async {
            let mut inbound = Vec::new();
            for replica in &self.replicas {
                inbound.push(replica.metrics().await);
            }
            let pages = [("outbound", vec![self.front.metrics().await]), ("inbound", inbound)];
            pages.iter().all(|(direction, pages)| {
                let count = |name: &str, more: &[(&str, &str)]| {
                    let labels = [&[("direction", *direction), ("destination", SERVICE)], more].concat();
                    pages.iter().map(|page| page.sum(name, &labels)).sum::<f64>()
                };
                let expected = f64::from(connections);
                count("mesh_tcp_connections_opened_total", &[]) == expected
                    && count("mesh_tcp_connections_closed_total", ended) == expected
            })
        })
        .await;
    }
}
