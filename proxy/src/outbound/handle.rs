//! The outbound path, top to bottom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use outrigger_common::name::ServiceName;

use super::destination::{self, Destination};
use super::retry::{self, Payload, Sent, Target};
use crate::control::snapshot::{Service, Snapshot};
use crate::error::ProxyError;
use crate::http::body::{Body, ResponseBody};
use crate::http::headers;
use crate::http::replay::Replay;
use crate::pool::Lease;
use crate::reason::Reason;
use crate::respond;
use crate::route::DEFAULT_ROUTE;
use crate::shared::{Caller, Shared};
use crate::telemetry::edge::Edge;
use crate::telemetry::metrics::Direction;
use crate::telemetry::record::RequestRecord;
use crate::telemetry::trace::TraceContext;

/// The destination's label where the client named nothing the registry knows: a client must not
/// choose labels.
const UNKNOWN: &str = "unknown";

/// Carries one request of the application to another sidecar and the response back.
pub async fn handle(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let now = Instant::now();
    let snapshot = shared.directory.load_full(); // once: one request, one view
    let trace = TraceContext::from_headers(request.headers(), shared.sampling(&snapshot));
    let spoken = headers::spoken(request.headers(), request.version());
    match route(shared, &snapshot, &request).await {
        Err(error) => respond::with_error(&error, RequestRecord::start(nowhere(shared), now, spoken, trace)),
        Ok(routed) => {
            let record = RequestRecord::start(routed.edge.clone(), now, spoken, trace);
            forward(shared, routed, request, record).await
        }
    }
}

/// A request whose destination is known.
struct Routed<'a> {
    service: Arc<Service>,
    port: u16,
    edge: Arc<Edge>,
    caller: &'a Caller,
}

/// Where the request goes, and under which rule.
async fn route<'a>(
    shared: &'a Shared,
    snapshot: &Snapshot,
    request: &Request<Incoming>,
) -> Result<Routed<'a>, ProxyError> {
    if request.method() == Method::CONNECT {
        return Err(ProxyError::MethodNotSupported(Method::CONNECT));
    }
    let authority = headers::authority(request).map_err(ProxyError::BadRequest)?;
    let Some(caller) = shared.caller.get() else {
        return Err(ProxyError::DiscoveryUnavailable(format!(
            "{authority}: this sidecar has no certificate yet"
        )));
    };
    let (name, port) = resolve(shared, caller, authority)?;
    let service = shared.directory.find(snapshot, &name, shared.config.timeouts.discovery).await?;
    let Some(found) = service.port(port) else {
        return Err(ProxyError::UnknownPort { service: name.to_string(), port });
    };
    let edge = found.routes.find().edge.clone();
    Ok(Routed { service, port, edge, caller })
}

fn resolve(shared: &Shared, caller: &Caller, authority: &str) -> Result<(ServiceName, u16), ProxyError> {
    match destination::parse(authority, &caller.namespace) {
        Destination::Service { name, port } => Ok((name, port)),
        Destination::Local { port } if shared.own.has_port(port) => {
            Err(ProxyError::Loop(authority.to_owned()))
        }
        Destination::Local { .. } | Destination::NotAService => {
            Err(ProxyError::UnknownService(authority.to_owned()))
        }
        Destination::Malformed => Err(ProxyError::BadRequest("the target is not host or host:port")),
    }
}

/// The edge of requests that go nowhere.
fn nowhere(shared: &Shared) -> Arc<Edge> {
    let source = shared.caller.get().map_or(UNKNOWN, |caller| caller.source.as_str());
    shared.metrics.edge(Direction::Outbound, source, UNKNOWN, DEFAULT_ROUTE)
}

async fn forward(
    shared: &Arc<Shared>,
    routed: Routed<'_>,
    request: Request<Incoming>,
    mut record: RequestRecord,
) -> Response<Body> {
    let repeatable = headers::repeatable(&request);
    let (mut head, body) = request.into_parts();
    record.with_span(&shared.spans, &head);
    if let Err(error) = prepare(&mut head, routed.caller, &record) {
        return respond::with_error(&error, record);
    }
    let payload = if body.is_end_stream() {
        Payload::Empty
    } else {
        let replay = Replay::new(body, shared.config.limits.replay_bytes, shared.config.timeouts.idle);
        record.request_body(replay.clone());
        Payload::Replay(replay)
    };
    let target = Target { name: &routed.service.name, port: routed.port, edge: &routed.edge };
    let result = retry::send(shared, &target, &head, &payload, repeatable).await;
    match result {
        Ok(sent) => respond(shared, sent, record),
        Err(error) => respond::with_error(&error, record),
    }
}

/// Makes the client's head ours: what belongs to its connection and what only the mesh may say goes,
/// what the next hop needs comes.
fn prepare(head: &mut Parts, caller: &Caller, record: &RequestRecord) -> Result<(), ProxyError> {
    let version = HeaderValue::from_static(if head.version == Version::HTTP_2 { "2" } else { "1.1" });
    headers::settle_authority(head).map_err(ProxyError::BadRequest)?;
    head.version = Version::HTTP_2;
    let map = &mut head.headers;
    headers::strip_mesh(map);
    headers::strip_hop_by_hop(map);
    headers::strip_expect(map);
    record.trace.inject(map, record.parent_for_next_hop());
    if !map.contains_key(&headers::REQUEST_ID)
        && let Ok(id) = HeaderValue::try_from(format!("{:032x}", record.trace.trace_id))
    {
        map.insert(headers::REQUEST_ID, id);
    }
    map.insert(headers::SOURCE, caller.source_header.clone());
    map.insert(headers::VERSION, version);
    Ok(())
}

/// Passes the response on; the record is finished by its body.
fn respond(shared: &Shared, sent: Sent, mut record: RequestRecord) -> Response<Body> {
    let Sent { response, endpoint, in_flight, stream } = sent;
    record.secured(|| endpoint.identity.to_string());
    let (mut head, upstream) = response.into_parts();
    head.version = Version::default();
    record.responded(head.status);
    record.grpc_status(&head.headers);
    if let Some(processing) =
        head.headers.get(&headers::PROCESSING).and_then(|value| value.to_str().ok()?.parse().ok())
    {
        record.processed(Duration::from_micros(processing));
    }
    // The one mesh header the application may see: why the mesh, and not the application, answered.
    let reason = head.headers.get(&headers::REASON).cloned();
    headers::strip_mesh(&mut head.headers);
    headers::strip_hop_by_hop(&mut head.headers);
    if let Some(reason) = reason.filter(|reason| Reason::parse(reason.as_bytes()).is_some()) {
        if let Some(reason) = Reason::parse(reason.as_bytes()) {
            record.explained(reason);
        }
        head.headers.insert(headers::REASON, reason);
    }
    let idle = shared.config.timeouts.idle;
    let body = ResponseBody::new(upstream, record, idle, Some(in_flight), Some(Lease::H2(stream)));
    Response::from_parts(head, Body::Response(Box::new(body)))
}
