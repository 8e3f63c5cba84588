//! Two sidecars between a bare client and a bare application.

use outrigger_tests::mesh::{Mesh, Sidecar};

use crate::client::Raw;
use crate::upstream::{Received, Upstream};

pub(crate) const ORDERS: &str = "orders.shop";

/// Dropped in this order.
pub(crate) struct Pair {
    pub(crate) front: Sidecar,
    _replica: Sidecar,
    pub(crate) upstream: Upstream,
    _mesh: Mesh,
}

impl Pair {
    pub(crate) async fn start() -> Self {
        let mesh = Mesh::start().await;
        let upstream = Upstream::start().await;
        let replica =
            mesh.sidecar("orders-1").serves_at("orders", 80, "http1", upstream.address).start().await;
        let front = mesh.caller("front", &[ORDERS]).await;
        front.knows_healthy(ORDERS, 1).await;
        Self { front, _replica: replica, upstream, _mesh: mesh }
    }

    pub(crate) async fn connect(&self) -> Raw {
        Raw::connect(self.front.outbound).await
    }

    /// What the application has received, once it has also received a request that is sent now, which
    /// is left out: what was sent before it has arrived by then, or will not. With what differs from
    /// time to time made the same.
    pub(crate) async fn received(&self) -> Vec<Received> {
        let mut raw = self.connect().await;
        raw.send(b"GET /last HTTP/1.1\r\nhost: orders.shop\r\n\r\n").await;
        assert!(raw.response("GET").await.is_ok());
        let mut received = self.upstream.take();
        received.retain(|one| !one.bytes.starts_with(b"GET /last "));
        for one in &mut received {
            one.bytes = settled(&one.bytes);
        }
        received
    }
}

/// Without what the mesh adds to every request, which is checked to be there, once.
pub(crate) fn settled(bytes: &[u8]) -> Vec<u8> {
    const CERT: &str = "x-forwarded-client-cert: By=spiffe://mesh.local/ns/shop/sa/orders;URI=spiffe://mesh.local/ns/shop/sa/front\r\n";
    let end = crate::upstream::head_end(bytes).unwrap_or(bytes.len());
    let (mut kept, mut added) = (Vec::new(), Vec::new());
    for line in bytes[..end].split_inclusive(|byte| *byte == b'\n') {
        let text = String::from_utf8_lossy(line);
        let name = text.split(':').next().unwrap_or_default();
        if ["traceparent", "x-request-id", "x-forwarded-client-cert"].contains(&name) {
            added.push(name.to_owned());
            assert!(name != "x-forwarded-client-cert" || text == CERT, "{text}");
        } else {
            kept.extend_from_slice(line);
        }
    }
    if end < bytes.len() || bytes.ends_with(b"\r\n\r\n") {
        added.sort_unstable();
        let wanted = ["traceparent", "x-forwarded-client-cert", "x-request-id"];
        assert_eq!(added, wanted, "{}", String::from_utf8_lossy(bytes));
    }
    kept.extend_from_slice(&bytes[end..]);
    kept
}
