//! What most tests begin with: replicas of one service, and a caller.

use http::{Method, Request};
use outrigger_tests::app::{App, Body};
use outrigger_tests::client::request;
use outrigger_tests::mesh::{Mesh, Sidecar};
use serde_json::{Value, json};

pub(crate) const ORDERS: &str = "orders.shop";

/// Replicas of `orders.shop` named `orders-1`…, their applications `app-1`…, and a caller `front`.
/// Dropped in this order.
pub(crate) struct Shop {
    pub(crate) front: Sidecar,
    pub(crate) replicas: Vec<Sidecar>,
    pub(crate) apps: Vec<App>,
    pub(crate) mesh: Mesh,
}

impl Shop {
    pub(crate) async fn open(replicas: usize) -> Self {
        Self::with(replicas, &json!({}), &json!({})).await
    }

    /// With more configuration of the registry and of every sidecar.
    pub(crate) async fn with(count: usize, registry: &Value, sidecar: &Value) -> Self {
        let mesh = Mesh::with(registry, &[]).await;
        let (mut replicas, mut apps) = (Vec::new(), Vec::new());
        for n in 1..=count {
            let app = App::start(&format!("app-{n}")).await;
            let builder = mesh.sidecar(&format!("orders-{n}")).serves("orders", &app);
            replicas.push(builder.config(sidecar).launch().await);
            apps.push(app);
        }
        let front = mesh.sidecar("front").calls(&[ORDERS]).config(sidecar).start().await;
        for replica in &replicas {
            replica.ready().await;
        }
        front.knows_healthy(ORDERS, count).await;
        Self { front, replicas, apps, mesh }
    }

    /// Applies resources and waits until the caller goes by them.
    pub(crate) async fn apply(&self, yaml: &str) {
        self.front.caught_up(self.mesh.apply(yaml).await).await;
    }

    /// Puts a policy of one's own in force for the calls of `orders`, in place of the one before.
    pub(crate) async fn govern(&self, spec: &str) {
        self.apply(&policy("orders", spec)).await;
    }

    /// How often the applications read a request with this `x-id` to its end.
    pub(crate) fn executions(&self, id: &str) -> usize {
        self.apps.iter().flat_map(App::seen).filter(|seen| seen.complete && seen.header("x-id") == id).count()
    }
}

/// A TrafficPolicy on a service, named like it; `spec` in YAML, without its targets.
pub(crate) fn policy(service: &str, spec: &str) -> String {
    let spec = spec.trim().lines().map(|line| format!("\n  {}", line.trim())).collect::<String>();
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {service}, namespace: shop}}\n\
         spec:\n  targetRefs: [{{kind: Service, name: {service}}}]{spec}\n"
    )
}

/// An HTTPRoute of `orders`; `rules` in YAML, each line an element.
pub(crate) fn route(name: &str, rules: &str) -> String {
    let rules = rules.trim().lines().map(|line| format!("\n    {}", line.trim())).collect::<String>();
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec:\n  parentRefs: [{{name: orders}}]\n  rules:{rules}\n"
    )
}

/// A call of gRPC, without a message.
pub(crate) fn grpc(path: &str, headers: &[(&str, &str)]) -> Request<Body> {
    let all = [&[("content-type", "application/grpc"), ("te", "trailers")], headers].concat();
    request(Method::POST, ORDERS, path, &all, "")
}

/// Two GETs, then a POST with an idempotency key.
pub(crate) fn repeatable(n: u64) -> Request<Body> {
    let id = n.to_string();
    if n % 3 == 2 {
        request(Method::POST, ORDERS, "/keyed", &[("idempotency-key", &id), ("x-id", &id)], "an order")
    } else {
        request(Method::GET, ORDERS, "/", &[("x-id", &id)], "")
    }
}

/// A POST that must not be executed twice.
pub(crate) fn unkeyed(n: u64) -> Request<Body> {
    request(Method::POST, ORDERS, "/unkeyed", &[("x-id", &format!("u{n}"))], "an order")
}
