//! Outrigger with everything on, and the proof that it was.
//!
//! Mutual TLS, metrics, 1% of the requests sampled and their spans sent to a collector, retry budget, circuit
//! breaker, authorization. A run in which the sidecars' own figures or the collector's disagree fails.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use outrigger_tests::component::{Running, bound, component};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::metrics::Metrics;
use serde_json::json;
use tokio::net::TcpStream;

use crate::certs::NAME;
use crate::fill::Filling;
use crate::load::{Load, Outcome};
use crate::subject::free_port;

/// The port that is declared `tcp`.
const TCP_PORT: u16 = 7000;
/// A port of the same service that the policy lets nobody call.
const CLOSED_PORT: u16 = 81;
/// Longest wait for a figure that comes with delay: the collector's, since spans leave in batches.
const SETTLE: Duration = Duration::from_secs(20);
/// Share of requests that is sampled.
const SAMPLED: f64 = 0.01;

/// Everything on.
pub(crate) const POLICIES: &str = r#"
apiVersion: outrigger.dev/v1alpha1
kind: MeshConfig
metadata: {name: default}
spec: {tracing: {samplingRatio: 0.01}, mtls: {mode: strict}}
---
apiVersion: outrigger.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: orders, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  retries: {attempts: 2, statuses: [502, 503, 504]}
  retryBudget: {percent: 10, minPerSecond: 3}
  circuitBreaker: {consecutiveFailures: 5, successRate: 80, window: 10s}
---
apiVersion: outrigger.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: callers, namespace: shop}
spec:
  targetRefs: [{kind: Service, name: orders}]
  action: Allow
  rules: [{identities: ["spiffe://mesh.local/ns/shop/sa/front"], ports: [80, 7000]}]
"#;

/// How large the mesh is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scale {
    /// Services the registry knows.
    pub(crate) services: usize,
    /// Those the client's sidecar is subscribed to.
    pub(crate) called: usize,
    /// Endpoints of each.
    pub(crate) endpoints: usize,
}

impl Default for Scale {
    fn default() -> Self {
        Self { services: 1, called: 1, endpoints: 1 }
    }
}

/// A registry, a collector, and two sidecars with everything on.
pub(crate) struct Outrigger {
    /// Beside the client.
    pub(crate) front: Sidecar,
    /// Beside the application.
    pub(crate) back: Sidecar,
    /// What else the registry knows.
    pub(crate) filling: Filling,
    /// Everything counted when it began to be measured.
    began: Counts,
    collector: Collector,
    // Ends, with everything it knows, after the sidecars.
    _mesh: Mesh,
}

/// What the two sidecars counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    outbound: f64,
    inbound: f64,
    /// Of both, without mutual TLS.
    plain: f64,
    opened: f64,
    accepted: f64,
    /// Handshakes with the client's sidecar that the server's completed.
    handshakes: f64,
    exported: f64,
    dropped: f64,
}

impl Outrigger {
    /// Starts it in front of the application, and shows that policies are in force.
    pub(crate) async fn start(app: SocketAddr, scale: Scale) -> Result<Self> {
        let mesh = Mesh::with(&json!({"lease_ttl": "10m"}), &[]).await;
        let collector = Collector::start(mesh.directory()).await?;
        let endpoint = format!("http://{}", collector.at);
        let revision = mesh.apply(POLICIES).await;
        // As it is by default; tests look more often.
        let health = json!({"health": {"interval": "1s"}});
        let back = mesh
            .sidecar("orders-1")
            .serves_at("orders", 80, "auto", app)
            .serves_at("orders", CLOSED_PORT, "auto", app)
            .serves_at("orders", TCP_PORT, "tcp", app)
            .config(&health)
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .start()
            .await;
        let filling = Filling::register(&mesh, back.mesh.port(), scale).await?;
        let mut calls = vec![NAME.to_owned()];
        calls.extend(filling.services().take(scale.called.saturating_sub(1)));
        let calls: Vec<&str> = calls.iter().map(String::as_str).collect();
        let tcp =
            json!({"outbound": {"ports": [{"listen": "127.0.0.1:0", "service": NAME, "port": TCP_PORT}]}});
        let front = mesh.sidecar("front").calls(&calls).config(&health).config(&tcp);
        let front = front.env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint).start().await;
        front.caught_up(revision).await;
        back.caught_up(revision).await;
        let mut outrigger = Self { front, back, filling, began: Counts::default(), collector, _mesh: mesh };
        outrigger.prove_policies(scale).await?;
        outrigger.began = outrigger.counts().await?;
        Ok(outrigger)
    }

    /// Where a client's bytes are carried as they are.
    pub(crate) fn tcp_entry(&self) -> Result<SocketAddr> {
        self.front.ports.first().copied().context("the sidecar opened no local port")
    }

    /// Budget, breaker and authorization: the first two are what the sidecar says governs its calls, the
    /// last is what happens.
    async fn prove_policies(&self, scale: Scale) -> Result<()> {
        let endpoints = || async {
            let known = self.front.endpoints(NAME).await;
            known.iter().filter(|endpoint| endpoint["healthy"] == true).count() / 3.min(known.len().max(1))
        };
        let started = Instant::now();
        while endpoints().await == 0 {
            ensure!(started.elapsed() < SETTLE, "the caller's sidecar knows no endpoint of {NAME}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let known = self.front.endpoints(NAME).await.len();
        ensure!(known >= scale.endpoints, "{known} endpoints of {NAME} are known, not {}", scale.endpoints);
        let governing = self.front.policy(NAME, "default").await;
        for part in ["retryBudget", "circuitBreaker"] {
            ensure!(
                governing["policy"][part].is_object(),
                "no {part} is in force at the caller's sidecar: {governing:#}"
            );
        }
        let client = self.front.client();
        let open = client.get(NAME, "/").await.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        ensure!(open.status == 200, "the service answers {}: {}", open.status, open.text());
        let closed = client.get(&format!("{NAME}:{CLOSED_PORT}"), "/").await;
        let closed = closed.map_err(|error| anyhow::anyhow!("{error:?}"))?;
        ensure!(
            (closed.status.as_u16(), closed.reason()) == (403, "denied"),
            "a port that no policy allows answers {} {:?}",
            closed.status,
            closed.reason()
        );
        Ok(())
    }

    /// What both sidecars counted so far.
    pub(crate) async fn counts(&self) -> Result<Counts> {
        let (front, back) = (self.front.metrics().await, self.back.metrics().await);
        let requests = |page: &Metrics, direction| {
            let labels = [("direction", direction), ("destination", NAME)];
            let all = page.sum("mesh_requests_total", &labels);
            let unproven = [labels[0], labels[1], ("tls", "none")];
            let plain = page.matching("mesh_requests_total", &unproven);
            // Status 0: the generator left before anything was sent.
            let plain = plain.filter(|sample| sample.labels.get("status").is_none_or(|status| status != "0"));
            (all, plain.map(|sample| sample.value).sum::<f64>())
        };
        let ((outbound, plain_out), (inbound, plain_in)) =
            (requests(&front, "outbound"), requests(&back, "inbound"));
        let both = |name: &str| front.sum(name, &[]) + back.sum(name, &[]);
        let opened = "mesh_tcp_connections_opened_total";
        Ok(Counts {
            outbound,
            inbound,
            plain: plain_out + plain_in,
            opened: front.sum(opened, &[("direction", "outbound")]),
            accepted: back.sum(opened, &[("direction", "inbound")]),
            handshakes: back.sum("mesh_tls_handshakes_total", &[("direction", "inbound"), ("result", "ok")]),
            exported: both("mesh_spans_exported_total"),
            dropped: both("mesh_spans_dropped_total"),
        })
    }

    /// The same once nothing is counted any more: what a generator left unfinished may still end.
    pub(crate) async fn settled(&self) -> Result<Counts> {
        let mut last = self.counts().await?;
        loop {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = self.counts().await?;
            if (now.outbound, now.inbound, now.opened) == (last.outbound, last.inbound, last.opened) {
                return Ok(now);
            }
            last = now;
        }
    }

    /// Fails unless what was counted since `before` is what the generator sent, all over mutual TLS.
    pub(crate) async fn prove_sent(
        &self,
        before: Counts,
        load: Load,
        opaque: bool,
        sent: &Outcome,
    ) -> Result<()> {
        let started = Instant::now();
        loop {
            let now = self.counts().await?;
            let said = if opaque { connections(before, now) } else { requests(before, now, sent) };
            match said {
                Ok(()) => return Ok(()),
                // The last requests may still be on their way.
                Err(_) if started.elapsed() < Duration::from_secs(3) => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                Err(error) => return Err(error.context(format!("{load:?} through Outrigger"))),
            }
        }
    }

    /// What the figures show, in words.
    fn proven(&self, now: Counts, received: f64) -> String {
        let governed = "retry budget and circuit breaker in force, a port that is not allowed refused";
        let requests = now.outbound - self.began.outbound;
        if requests == 0.0 {
            let opened = now.opened - self.began.opened;
            let handshakes = now.handshakes - self.began.handshakes;
            return format!(
                "{opened} opaque connections, {handshakes} handshakes with mutual TLS for them; {governed}"
            );
        }
        let spans = now.exported - self.began.exported;
        format!(
            "{requests} requests counted at the client's sidecar and {} at the server's, all over mutual TLS; {spans} \
             spans exported ({:.2}% of the requests sampled), {received} received by the collector, none dropped; \
             {governed}",
            now.inbound - self.began.inbound,
            spans / requests * 50.0,
        )
    }

    /// Fails unless about 1% of everything was sampled, and reached the collector. Returns what was proven,
    /// in words.
    pub(crate) async fn prove_sampled(&self) -> Result<String> {
        let started = Instant::now();
        loop {
            let now = self.counts().await?;
            let requests = now.outbound - self.began.outbound;
            let spans = now.exported - self.began.exported;
            let dropped = now.dropped - self.began.dropped;
            let received = self.collector.spans() as f64;
            // Two spans a sampled request: one at each sidecar. Five standard deviations of a binomial.
            let (expected, spread) = (2.0 * SAMPLED * requests, 10.0 * (SAMPLED * requests).sqrt() + 10.0);
            if (spans - expected).abs() <= spread && dropped == 0.0 && received >= now.exported {
                return Ok(self.proven(now, received));
            }
            ensure!(
                started.elapsed() < SETTLE,
                "{spans} spans exported, {received} received by the collector, {dropped} dropped; {requests} \
                 requests should have made {expected:.0}, give or take {spread:.0}"
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

fn requests(before: Counts, now: Counts, sent: &Outcome) -> Result<()> {
    let (least, most) = (sent.requests as f64, (sent.requests + sent.failures + sent.unfinished) as f64);
    for (side, counted) in
        [("client", now.outbound - before.outbound), ("server", now.inbound - before.inbound)]
    {
        ensure!(
            (least..=most).contains(&counted),
            "the {side}'s sidecar counted {counted} requests, the generator had {least} answered and sent {most} \
             at most"
        );
    }
    let plain = now.plain - before.plain;
    ensure!(plain == 0.0, "{plain} requests without mutual TLS");
    Ok(())
}

fn connections(before: Counts, now: Counts) -> Result<()> {
    let (opened, accepted) = (now.opened - before.opened, now.accepted - before.accepted);
    let handshakes = now.handshakes - before.handshakes;
    ensure!(
        opened > 0.0 && opened == accepted && handshakes >= accepted,
        "{opened} opaque connections opened, {accepted} accepted, {handshakes} handshakes with mutual TLS"
    );
    Ok(())
}

/// Rotel, an OTLP collector.
struct Collector {
    at: SocketAddr,
    running: Running,
}

impl Collector {
    async fn start(directory: &Path) -> Result<Self> {
        let (at, http) = (free_port()?, free_port()?);
        let args = [
            "start",
            "--otlp-grpc-endpoint",
            &at.to_string(),
            "--otlp-http-endpoint",
            &http.to_string(),
            "--exporter",
            "blackhole",
            "--debug-log",
            "traces",
            "--debug-log-verbosity",
            "basic",
        ];
        let mut command = bound(&[], &component("OUTRIGGER_TEST_ROTEL"));
        command.args(args).stdin(Stdio::null());
        let mut running = Running::spawn(command, directory.join("collector.out"));
        let started = Instant::now();
        while TcpStream::connect(at).await.is_err() {
            ensure!(
                running.ended().is_none() && started.elapsed() < SETTLE,
                "the collector does not start:\n{}",
                running.output()
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(Self { at, running })
    }

    /// How many spans it received.
    fn spans(&self) -> u64 {
        received(&self.running.output())
    }
}

/// Adds up `spans=12` of its log, which is coloured.
fn received(log: &str) -> u64 {
    let mut plain = String::with_capacity(log.len());
    for (at, piece) in log.split('\u{1b}').enumerate() {
        // A colour ends with its first `m`.
        plain.push_str(if at == 0 { piece } else { piece.split_once('m').map_or("", |(_, text)| text) });
    }
    let counts = plain.split_whitespace().filter_map(|word| word.strip_prefix("spans="));
    counts.filter_map(|count| count.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_of_a_coloured_log_add_up() {
        let line = |resources: u32, spans: u32| {
            let field =
                |name: &str, value: &str| format!("\u{1b}[3m{name}\u{1b}[0m\u{1b}[2m=\u{1b}[0m{value}");
            let resources = field("resource_spans", &resources.to_string());
            format!("INFO Received traces. {resources} {}\n", field("spans", &spans.to_string()))
        };
        assert_eq!(received(&format!("Starting.\n{}{}", line(1, 12), line(7, 30))), 42);
    }

    #[test]
    fn fewer_requests_than_were_answered_or_more_than_were_sent_are_a_mismatch() {
        let sent = Outcome { requests: 100, unfinished: 10, ..Outcome::default() };
        let counts = |outbound, inbound| Counts { outbound, inbound, ..Counts::default() };
        let check = |outbound, inbound| requests(Counts::default(), counts(outbound, inbound), &sent).is_ok();
        assert!(check(100.0, 110.0) && !check(99.0, 100.0) && !check(100.0, 111.0));
        let plain = Counts { plain: 1.0, ..counts(100.0, 100.0) };
        assert!(requests(Counts::default(), plain, &sent).is_err());
    }

    #[test]
    fn the_policies_are_resources() {
        outrigger_api::document::parse_yaml(Path::new("bench.yaml"), POLICIES).unwrap();
    }
}
