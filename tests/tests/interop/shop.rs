//! A mesh of two sidecars with a server of somebody else's behind one of them.

use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Command, Output};

use outrigger_tests::app::App;
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::process::Process;
use outrigger_tests::wait::until;
use serde_json::json;
use tokio::net::TcpStream;

/// The service all of it is about.
pub(crate) const ORDERS: &str = "orders.shop";

/// A sidecar that serves [`ORDERS`] and one that calls it. Dropped in this order.
pub(crate) struct Shop {
    pub(crate) front: Sidecar,
    pub(crate) replica: Sidecar,
    pub(crate) mesh: Mesh,
}

impl Shop {
    /// `protocol` as the service declares it; `target` is where its application listens.
    pub(crate) async fn open(mesh: Mesh, protocol: &str, target: SocketAddr) -> Self {
        let replica = mesh.sidecar("orders-1").serves_at("orders", 80, protocol, target).start().await;
        let ports = json!([{"listen": "127.0.0.1:0", "service": ORDERS, "port": 80}]);
        let front = mesh.sidecar("front").calls(&[ORDERS]).config(&json!({"outbound": {"ports": ports}}));
        let front = front.start().await;
        front.knows_healthy(ORDERS, 1).await;
        Self { front, replica, mesh }
    }

    /// The same with the application of these tests.
    pub(crate) async fn with_app(protocol: &str) -> (Self, App) {
        let app = App::start("app").await;
        (Self::open(Mesh::start().await, protocol, app.address).await, app)
    }

    /// The local port of the caller that is for [`ORDERS`] alone, whatever a request names.
    pub(crate) fn dedicated(&self) -> SocketAddr {
        self.front.ports[0]
    }

    /// Waits until neither sidecar has a request under way.
    pub(crate) async fn rests(&self) {
        for sidecar in [&self.front, &self.replica] {
            until(&format!("nothing is left in flight at {}", sidecar.id), || async {
                sidecar.metrics().await.sum("mesh_requests_in_flight", &[]) == 0.0
            })
            .await;
        }
    }
}

/// `nghttpd`, nghttp2's server, which serves the files of a directory and sends uploads back.
pub(crate) struct Nghttpd {
    pub(crate) address: SocketAddr,
    _process: Process,
}

impl Nghttpd {
    pub(crate) async fn start(directory: &Path, extra: &[&str]) -> Self {
        let address = free_address();
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--", "nghttpd", "--no-tls", "--echo-upload", "--address"]);
        command.arg(address.ip().to_string()).args(extra).arg("--htdocs").arg(directory);
        command.arg(address.port().to_string());
        let process = Process::spawn("nghttpd", command, directory);
        listens(address).await;
        Self { address, _process: process }
    }
}

/// Waits until somebody accepts connections there.
pub(crate) async fn listens(address: SocketAddr) {
    until(&format!("{address} listens"), || async move { TcpStream::connect(address).await.is_ok() }).await;
}

/// An address nobody listens on, for servers that cannot choose one themselves and tell.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port")
}

/// Runs a client to its end, at most a minute, in a directory of its own; it may fail.
pub(crate) fn client(directory: &Path, program: &str, args: &[&str]) -> Output {
    Command::new("timeout")
        .args(["60", program])
        .args(args)
        .current_dir(directory)
        .env_remove("http_proxy")
        .output()
        .unwrap_or_else(|error| panic!("cannot start {program}: {error}"))
}

/// What a client said, on both outputs.
pub(crate) fn said(output: &Output) -> String {
    [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat()
}
