//! The operator's port: health, metrics, configuration and state, on the control thread.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use outrigger_common::config::format_duration;
use outrigger_common::tasks::Tasks;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::balance::{self, Candidate};
use crate::capture::uid;
use crate::control::health::Health;
use crate::control::owners::{self, Owner};
use crate::control::status::Status;
use crate::shared::Shared;

/// What the admin port needs.
#[derive(Clone)]
pub struct Admin {
    /// The sidecar.
    pub shared: Arc<Shared>,
    /// How it stands.
    pub status: Arc<Status>,
    /// How its application stands.
    pub health: Arc<Health>,
    /// Asks for the drain.
    pub drain: mpsc::Sender<()>,
}

type Answer = Response<Full<Bytes>>;

impl Admin {
    /// Serves for ever.
    pub async fn serve(self, listener: TcpListener, tasks: Tasks) {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the admin port; trying again");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let admin = self.clone();
            tasks.spawn("admin connection", async move {
                let service = service_fn(|request| {
                    let admin = admin.clone();
                    async move { Ok::<_, Infallible>(admin.answer(&request).await) }
                });
                let serving = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .serve_connection(TokioIo::new(stream), service);
                if let Err(error) = serving.await {
                    tracing::debug!(%error, "admin connection ended");
                }
            });
        }
    }

    async fn answer(&self, request: &Request<Incoming>) -> Answer {
        let allowed = match request.uri().path() {
            "/drain" => Method::POST,
            "/live" | "/ready" | "/metrics" | "/config" | "/endpoints" | "/policies" | "/services"
            | "/addresses" => Method::GET,
            _ => {
                return text(
                    StatusCode::NOT_FOUND,
                    "not here; try /live /ready /metrics /config /endpoints /policies /services /addresses, or POST /drain\n",
                );
            }
        };
        if *request.method() != allowed && !(allowed == Method::GET && *request.method() == Method::HEAD) {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}\n"));
            answer.headers_mut().insert(
                ALLOW,
                HeaderValue::from_static(if allowed == Method::POST { "POST" } else { "GET" }),
            );
            return answer;
        }
        match request.uri().path() {
            "/live" => text(StatusCode::OK, "ok\n"),
            "/ready" => self.ready(),
            "/metrics" => self.metrics(),
            "/config" => as_json(&config(&self.shared)),
            "/endpoints" => as_json(&endpoints(&self.shared)),
            "/services" => as_json(&services(&self.shared, &self.health)),
            "/policies" => as_json(&policies(&self.shared)),
            "/addresses" => match request.uri().query() {
                None => as_json(&addresses(&self.shared)),
                Some(query) => self.owner(query).await,
            },
            _ => {
                // A second request finds the queue full: the drain is under way.
                let _under_way = self.drain.try_send(());
                text(StatusCode::ACCEPTED, "draining\n")
            }
        }
    }

    fn ready(&self) -> Answer {
        let mut missing = self.status.missing();
        if self.shared.config.capture {
            missing.extend(uid::complaints(&self.shared.config.services));
        }
        if missing.is_empty() {
            let mut notes = self.status.notes(Instant::now());
            notes.extend(self.health.notes(&self.shared.config.services));
            let notes: String = notes.iter().map(|note| format!("note: {note}\n")).collect();
            return text(StatusCode::OK, &format!("ready\n{notes}"));
        }
        text(StatusCode::SERVICE_UNAVAILABLE, &format!("not ready: {}\n", missing.join("; ")))
    }

    /// Whose one address is, as a connection to it would find out.
    async fn owner(&self, query: &str) -> Answer {
        let address = query.strip_prefix("of=").map(|text| text.replace("%3A", ":").replace("%3a", ":"));
        let Some(address) = address.and_then(|text| text.parse().ok()) else {
            return text(StatusCode::BAD_REQUEST, "use /addresses?of=10.0.9.1:80 or of=[fd00::9]:80\n");
        };
        let limit = self.shared.config.timeouts.discovery;
        let owner = self.shared.directory.owner(address, limit).await;
        as_json(&owned(owners::canonical(address), &owner))
    }

    fn metrics(&self) -> Answer {
        let (metrics, now) = (&self.shared.metrics, Instant::now());
        metrics.control.snapshot_age.set(self.status.snapshot_age(now).as_secs_f64());
        let snapshot = self.shared.directory.load_full();
        let ejected = snapshot
            .services()
            .flat_map(|service| service.ports())
            .map(|(_, port)| port.endpoints.ejected(now))
            .sum::<usize>();
        let known = self.shared.directory.owners.count();
        metrics.control.addresses_known.set(i64::try_from(known).unwrap_or(i64::MAX));
        metrics.breaker_open.set(i64::try_from(ejected).unwrap_or(i64::MAX));
        let mut answer = text(StatusCode::OK, &metrics.text());
        answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(prometheus::TEXT_FORMAT));
        answer
    }
}

fn text(status: StatusCode, body: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(body.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

fn as_json(value: &Value) -> Answer {
    let mut answer = text(StatusCode::OK, &format!("{value:#}\n"));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

/// The configuration in force. The join token is a secret: only its id is shown.
fn config(shared: &Shared) -> Value {
    let config = &shared.config;
    let services: Vec<_> = config
        .services
        .iter()
        .map(|served| json!({"name": served.name, "port": served.port, "protocol": served.protocol, "target": served.target.to_string(), "health": served.health.to_string(), "probes": served.probes.iter().map(ToString::to_string).collect::<Vec<_>>()}))
        .collect();
    let local_ports: Vec<_> = config
        .local_ports
        .iter()
        .zip(&shared.own.local_ports)
        .map(|(local, listen)| json!({"listen": listen.to_string(), "service": local.service.as_str(), "port": local.port}))
        .collect();
    json!({
        "registry": {"address": config.registry},
        "join": {"token_id": config.token.as_ref().map(|token| &token.id)},
        "state_dir": config.state_dir,
        "workload": {
            "id": config.workload,
            "zone": config.zone,
            "weight": config.weight,
            "address": config.address.map(|address| address.to_string()),
            "identity": shared.caller.get().map(|caller| caller.id.to_string()),
        },
        "services": services,
        "upstreams": config.upstreams.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "outbound": {"listen": shared.own.outbound.to_string(), "ports": local_ports},
        "mesh": {"listen": shared.own.mesh.to_string()},
        "capture": {"enabled": config.capture},
        "inbound": {"listen": shared.own.inbound.map(|inbound| inbound.to_string())},
        "admin": {"listen": shared.own.admin.to_string()},
        "workers": crate::runtime::worker_count(config.workers),
        "timeouts": {
            "connect": format_duration(config.timeouts.connect),
            "request": format_duration(config.timeouts.request),
            "idle": format_duration(config.timeouts.idle),
            "discovery": format_duration(config.timeouts.discovery),
            "detect": format_duration(config.timeouts.detect),
            "tcp_idle": format_duration(config.timeouts.tcp_idle),
        },
        "pool": {
            "idle_timeout": format_duration(config.pool.idle_timeout),
            "app_idle_timeout": format_duration(config.pool.app_idle_timeout),
            "max_age": format_duration(config.pool.max_age),
        },
        "limits": {
            "header_bytes": config.limits.header_bytes,
            "replay_bytes": config.limits.replay_bytes,
            "connections": config.limits.connections,
            "edges": config.limits.edges,
        },
        "health": {
            "interval": format_duration(config.health.interval),
            "timeout": format_duration(config.health.timeout),
            "unhealthy_after": config.health.unhealthy_after,
            "healthy_after": config.health.healthy_after,
        },
        "drain": {"acknowledge": format_duration(config.drain.acknowledge), "deadline": format_duration(config.drain.deadline)},
    })
}

/// What the application serves, and whether it is ready to.
fn services(shared: &Shared, health: &Health) -> Value {
    let now = Instant::now();
    let ports = health.ports();
    let services: Vec<_> = shared
        .config
        .services
        .iter()
        .zip(&ports)
        .map(|(served, port)| {
            json!({
                "name": served.name,
                "port": served.port,
                "target": served.target.to_string(),
                "check": served.health.to_string(),
                "healthy": port.healthy(),
                "for_seconds": port.since().map(|since| now.saturating_duration_since(since).as_secs()),
                "last_failure": port.failure().map(ToString::to_string),
                "contrary_checks": port.row(),
            })
        })
        .collect();
    json!({"services": services})
}

fn breaker(status: balance::Status) -> &'static str {
    match status {
        balance::Status::Closed => "closed",
        balance::Status::Open { .. } => "open",
        balance::Status::HalfOpen { .. } => "half_open",
    }
}

/// Every endpoint known, with what the balancer thinks of it.
fn endpoints(shared: &Shared) -> Value {
    let (snapshot, now) = (shared.directory.load_full(), Instant::now());
    let mut services: Vec<_> = snapshot.services().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let services: Vec<_> = services
        .into_iter()
        .flat_map(|service| service.ports().map(move |(number, port)| (service, number, port)))
        .map(|(service, number, port)| {
            let endpoints: Vec<_> = port
                .endpoints
                .endpoints()
                .iter()
                .map(|endpoint| {
                    let look = port.endpoints.look(endpoint, now);
                    json!({
                        "workload": &*endpoint.workload,
                        "address": endpoint.address.to_string(),
                        "identity": endpoint.identity.to_string(),
                        "healthy": endpoint.healthy(),
                        "zone": &*endpoint.zone,
                        "weight": endpoint.weight,
                        "ejected": matches!(look.status, balance::Status::Open { .. }),
                        "breaker": breaker(look.status),
                        "ramp": look.ramp,
                        "latency_ms": look.seconds.unwrap_or_default() * 1000.0,
                        "in_flight": endpoint.state().in_flight(),
                        "connections": endpoint.connections(),
                    })
                })
                .collect();
            json!({"service": service.name.as_str(), "port": number, "protocol": port.protocol, "endpoints": endpoints})
        })
        .collect();
    json!({"version": snapshot.version, "revision": snapshot.revision, "services": services})
}

/// What governs the calls of every port known, and of each rule of its routes, setting by setting with
/// who says it. What nobody says the sidecar's own configuration does.
fn policies(shared: &Shared) -> Value {
    let snapshot = shared.directory.load_full();
    let caller = shared.caller.get().map_or("", |caller| caller.namespace.as_str());
    let mut services: Vec<_> = snapshot.services().collect();
    services.sort_by(|a, b| a.name.cmp(&b.name));
    let ports = services
        .into_iter()
        .flat_map(|service| service.ports().map(move |(number, port)| (&service.name, number, port)));
    let services: Vec<_> = ports
        .map(|(name, number, port)| {
            let in_force: Vec<_> = port
                .rules
                .in_force(caller, name, number)
                .into_iter()
                .map(|(route, policy)| json!({"route": route, "policy": policy.spec, "from": policy.origins}))
                .collect();
            json!({"service": name.as_str(), "port": number, "in_force": in_force})
        })
        .collect();
    json!({"version": snapshot.version, "revision": snapshot.revision, "services": services})
}

/// Every address whose owner is known, and what the mesh says of plaintext and of leaving it.
fn addresses(shared: &Shared) -> Value {
    let snapshot = shared.directory.load_full();
    let held = shared.directory.owners.held();
    let known: Vec<_> = held.iter().map(|(address, owner)| owned(*address, owner)).collect();
    let egress = snapshot.egress.map_or(json!("unknown"), |mode| json!(mode));
    json!({"mtls": {"mode": snapshot.mtls}, "egress": {"mode": egress}, "addresses": known})
}

fn owned(address: SocketAddr, owner: &Owner) -> Value {
    let address = address.to_string();
    match owner {
        Owner::Service { name, port } => {
            json!({"address": address, "owner": "service", "service": name.as_str(), "port": port})
        }
        Owner::Endpoint { name, port, workload } => json!({
            "address": address, "owner": "endpoint", "service": name.as_str(), "port": port,
            "workload": workload,
        }),
        Owner::Outside => json!({"address": address, "owner": "outside"}),
    }
}
