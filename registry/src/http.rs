//! Port 15014: what people, scripts and Prometheus read. Nothing here writes.

use std::future::Future;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::{Path, Query, State as Extract};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use outrigger_api::resource::Protocol;
use outrigger_api::v1;
use outrigger_common::name::ServiceName;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;

use crate::hub::Hub;
use crate::metrics::{CONTENT_TYPE, Metrics};
use crate::refusals::Refusals;
use crate::state::{EndpointState, ServiceState};
use crate::store::Store;
use crate::traces::Traces;

const DEFAULT_TRACES: usize = 100;
const MAX_TRACES: usize = 1000;

/// What the pages show.
#[derive(Clone)]
pub(crate) struct Pages {
    /// State.
    pub(crate) hub: Arc<Hub>,
    /// Leases.
    pub(crate) store: Arc<dyn Store>,
    /// Metrics.
    pub(crate) metrics: Arc<Metrics>,
    /// Traces.
    pub(crate) traces: Arc<Mutex<Traces>>,
    /// What sidecars refused.
    pub(crate) refusals: Arc<Mutex<Refusals>>,
}

/// A service in a list.
#[derive(Serialize)]
struct ServiceSummary {
    name: String,
    namespace: String,
    ports: Vec<PortView>,
    endpoints: usize,
    healthy: usize,
}

#[derive(Serialize)]
struct ServiceView {
    name: String,
    namespace: String,
    ports: Vec<PortView>,
    /// Virtual ones.
    addresses: Vec<IpAddr>,
    endpoints: Vec<EndpointView>,
}

#[derive(Serialize)]
struct PortView {
    port: u32,
    name: String,
    protocol: &'static str,
}

#[derive(Serialize)]
struct EndpointView {
    workload: String,
    port: u32,
    target_port: u16,
    address: String,
    mesh_port: u32,
    identity: String,
    zone: String,
    healthy: bool,
    /// Time since the last renewal; null where the source has no leases.
    lease_age_ms: Option<u64>,
    lease_ttl_ms: Option<u64>,
}

#[derive(Deserialize)]
struct TraceQuery {
    service: Option<String>,
    limit: Option<usize>,
}

/// Serves until `stop` resolves.
///
/// # Errors
/// When the listener fails for good.
pub(crate) async fn serve(
    listener: TcpListener,
    pages: Pages,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    axum::serve(listener, router(pages)).with_graceful_shutdown(stop).await
}

fn router(pages: Pages) -> Router {
    Router::new()
        .route("/live", get(async || Json(json!({ "status": "live" }))))
        // The store is open and its state loaded before the first connection is accepted.
        .route("/ready", get(async || Json(json!({ "status": "ready" }))))
        .route("/metrics", get(metrics))
        .route("/v1/services", get(services))
        .route("/v1/services/{namespace}/{name}", get(service))
        .route("/v1/refusals", get(refusals))
        .route("/v1/traces", get(traces))
        .route("/v1/traces/{id}", get(trace))
        .fallback(async || {
            error(
                StatusCode::NOT_FOUND,
                "no such page; see /v1/services, /v1/refusals, /v1/traces, /metrics, /ready",
            )
        })
        .method_not_allowed_fallback(async || {
            error(
                StatusCode::METHOD_NOT_ALLOWED,
                "this port only reads; write with `outrigger apply` through the gRPC port",
            )
        })
        .with_state(pages)
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({ "error": message }))).into_response()
}

async fn metrics(Extract(pages): Extract<Pages>) -> Response {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], pages.metrics.text(&pages.hub.state())).into_response()
}

async fn services(Extract(pages): Extract<Pages>) -> Response {
    let state = pages.hub.state();
    let mut services: Vec<_> = state.services.iter().collect();
    services.sort_by_key(|(name, _)| (name.namespace(), name.name()));
    let summary = |(name, service): (&ServiceName, &Arc<ServiceState>)| ServiceSummary {
        name: name.name().to_owned(),
        namespace: name.namespace().to_owned(),
        ports: ports(service),
        endpoints: service.endpoints.len(),
        healthy: service.endpoints.values().filter(|endpoint| endpoint.endpoint.healthy).count(),
    };
    Json(json!({ "services": services.into_iter().map(summary).collect::<Vec<_>>() })).into_response()
}

async fn service(
    Extract(pages): Extract<Pages>,
    Path((namespace, name)): Path<(String, String)>,
) -> Response {
    let state = pages.hub.state();
    let found = ServiceName::new(&namespace, &name).ok().and_then(|name| state.services.get(&name));
    let Some(service) = found else {
        return error(StatusCode::NOT_FOUND, "no such service; /v1/services lists those there are");
    };
    let mut endpoints = Vec::with_capacity(service.endpoints.len());
    for endpoint in service.endpoints.values() {
        endpoints.push(view(&*pages.store, endpoint).await);
    }
    let (ports, addresses) = (ports(service), service.addresses.clone());
    Json(ServiceView { name, namespace, ports, addresses, endpoints }).into_response()
}

async fn view(store: &dyn Store, state: &EndpointState) -> EndpointView {
    let lease = match state.lease {
        Some(lease) => store.lease(lease).await.ok().flatten(),
        None => None,
    };
    let millis = |duration: std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let endpoint = &state.endpoint;
    EndpointView {
        workload: endpoint.workload.clone(),
        port: endpoint.port,
        target_port: state.application.port(),
        address: endpoint.address.clone(),
        mesh_port: endpoint.mesh_port,
        identity: endpoint.identity.clone(),
        zone: endpoint.zone.clone(),
        healthy: endpoint.healthy,
        lease_age_ms: lease.map(|lease| millis(lease.ttl.saturating_sub(lease.remaining))),
        lease_ttl_ms: lease.map(|lease| millis(lease.ttl)),
    }
}

fn ports(service: &ServiceState) -> Vec<PortView> {
    let view = |port: &v1::Port| PortView {
        port: port.number,
        name: port.name.clone(),
        protocol: Protocol::from(port.protocol()).as_str(),
    };
    service.ports.iter().map(view).collect()
}

async fn refusals(Extract(pages): Extract<Pages>) -> Response {
    let list = pages.refusals.lock().unwrap_or_else(PoisonError::into_inner).list();
    Json(json!({ "refusals": list })).into_response()
}

async fn traces(
    Extract(pages): Extract<Pages>,
    query: Result<Query<TraceQuery>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Ok(Query(query)) = query else {
        return error(StatusCode::BAD_REQUEST, "use ?service=<name.namespace>&limit=<number>");
    };
    let limit = query.limit.unwrap_or(DEFAULT_TRACES).min(MAX_TRACES);
    let service = query.service.as_deref().filter(|service| !service.is_empty());
    let list = pages.traces.lock().unwrap_or_else(PoisonError::into_inner).list(service, limit);
    Json(json!({ "traces": list })).into_response()
}

async fn trace(Extract(pages): Extract<Pages>, Path(id): Path<String>) -> Response {
    let found = pages.traces.lock().unwrap_or_else(PoisonError::into_inner).get(&id);
    match found {
        Some(trace) => Json(trace).into_response(),
        None => error(StatusCode::NOT_FOUND, "no such trace: it was not sampled, or is no longer kept"),
    }
}
