//! What the tests break: replicas of one service, each a sidecar and an application that are processes
//! of their own, and the sidecar of a caller.

use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::server::Server;
use rustix::process::Signal;
use serde_json::{Value, json};

pub(crate) const ORDERS: &str = "orders.shop";

/// One of the replicas.
pub(crate) struct Replica {
    pub(crate) sidecar: Sidecar,
    pub(crate) app: Server,
}

impl Replica {
    /// Both at once, as a machine fails.
    pub(crate) fn kill(&mut self) {
        self.sidecar.process.kill();
        self.app.process.kill();
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.sidecar.process.signal(signal);
        self.app.process.signal(signal);
    }

    pub(crate) async fn start_again(&mut self) {
        self.app.start_again().await;
        self.sidecar.start_again().await;
    }
}

/// Replicas of `orders.shop` named `orders-1`…, their applications `app-1`…, and a caller `front`.
pub(crate) struct Cluster {
    pub(crate) front: Sidecar,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) mesh: Mesh,
}

/// How a cluster differs from the usual one.
pub(crate) struct Plan {
    pub(crate) replicas: usize,
    pub(crate) policy: &'static str,
    /// Settings of the registry, of every sidecar and of every application.
    pub(crate) registry: Value,
    pub(crate) sidecar: Value,
    pub(crate) app: Value,
    /// Environment of the sidecars of the caller and of the first replica.
    pub(crate) front_environment: Vec<(String, String)>,
    pub(crate) first_environment: Vec<(String, String)>,
    /// What the first replica's processes are run by, and its sidecar's further settings.
    pub(crate) first_within: Vec<String>,
    pub(crate) first_sidecar: Value,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            replicas: 3,
            policy: "suite.yaml",
            // A certificate is renewed 12.6 to 15.4 s after its issue.
            registry: json!({"lease_ttl": "4s", "certificates": {"lifetime": "21s"}}),
            // Connections are replaced often, so that every certificate is used.
            sidecar: json!({"pool": {"max_age": "5s"}, "health": {"interval": "1s"}}),
            app: json!({}),
            front_environment: Vec::new(),
            first_environment: Vec::new(),
            first_within: Vec::new(),
            first_sidecar: json!({}),
        }
    }
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        Self::with(Plan::default()).await
    }

    pub(crate) async fn with(plan: Plan) -> Self {
        let mesh = Mesh::with(&plan.registry, &[]).await;
        administer(&mesh, &["apply", "-f", &policy(plan.policy)]);
        let mut replicas = Vec::new();
        for n in 1..=plan.replicas {
            let first = n == 1;
            let within: &[String] = if first { &plan.first_within } else { &[] };
            let app = Server::within(within, &format!("app-{n}"), &plan.app, mesh.directory()).await;
            let mut builder = mesh
                .sidecar(&format!("orders-{n}"))
                .serves_at("orders", 80, "http", app.address)
                .config(&plan.sidecar)
                .within(within);
            if first {
                builder = builder.config(&plan.first_sidecar);
                for (key, value) in &plan.first_environment {
                    builder = builder.env(key, value);
                }
            }
            replicas.push(Replica { sidecar: builder.launch().await, app });
        }
        let mut front = mesh.sidecar("front").calls(&[ORDERS]).config(&plan.sidecar);
        for (key, value) in &plan.front_environment {
            front = front.env(key, value);
        }
        let front = front.start().await;
        for replica in &replicas {
            replica.sidecar.ready().await;
        }
        front.knows_healthy(ORDERS, plan.replicas).await;
        Self { front, replicas, mesh }
    }

    /// All sidecars there are.
    pub(crate) fn sidecars(&self) -> impl Iterator<Item = &Sidecar> {
        self.replicas.iter().map(|replica| &replica.sidecar).chain([&self.front])
    }
}

/// Runs a command as the mesh's administrator.
pub(crate) fn administer(mesh: &Mesh, args: &[&str]) {
    let (done, said) = mesh.command(args);
    assert!(done, "{args:?}: {said}");
}

/// A file of `policies/`.
fn policy(name: &str) -> String {
    format!("{}/tests/chaos/policies/{name}", env!("CARGO_MANIFEST_DIR"))
}
