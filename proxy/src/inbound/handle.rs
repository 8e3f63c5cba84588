//! The inbound path, top to bottom.

use std::sync::Arc;
use std::time::Instant;

use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming as Library;
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::ServiceName;

use super::Peer;
use super::exchange::{Answered, Handover, Limit, exchange};
use super::served::{ServedPort, account_name};
use super::upgrade::Switched;
use crate::error::ProxyError;
use crate::http::body::{Body, Ending, Held, ResponseBody, Times};
use crate::http::headers;
use crate::http::incoming::Incoming;
use crate::http::replay::Replay;
use crate::http::tunnel::{Feed, Tunnel};
use crate::http::upgrade;
use crate::policy::deadline;
use crate::policy::inherited::{Inheritance, Remembered};
use crate::policy::limit::adaptive::Sample;
use crate::policy::limit::{Admission, Permit, Shed};
use crate::respond;
use crate::route::DEFAULT_ROUTE;
use crate::shared::Shared;
use crate::telemetry::edge::Edge;
use crate::telemetry::environment::Sampling;
use crate::telemetry::metrics::{Direction, seconds};
use crate::telemetry::record::RequestRecord;
use crate::telemetry::trace::{TraceContext, new_span_id};

/// Carries one request of another sidecar to the application and the response back.
pub async fn handle(shared: &Arc<Shared>, peer: &Peer, request: Request<Library>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let carried = |token: &&HeaderValue| {
        head.version == Version::HTTP_2 && token.to_str().is_ok_and(|token| !upgrade::is_http(token))
    };
    let payload = match head.headers.get(&headers::MESH_UPGRADE).filter(carried) {
        // What comes afterwards is its body.
        Some(token) => Payload::Tunnel { token: token.clone(), incoming: body.into() },
        None => Payload::Body(body),
    };
    serve(shared, peer, (head, payload)).await
}

/// What comes behind a head.
#[derive(Debug)]
pub(super) enum Payload {
    /// The body of a request.
    Body(Library),
    /// What follows an upgrade to this protocol, if the application agrees.
    Tunnel { token: HeaderValue, incoming: Incoming },
}

/// Carries one request to the application and the response back.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    peer: &Peer,
    (head, payload): (Parts, Payload),
) -> Response<Body> {
    let now = Instant::now();
    // The caller's sidecar has decided on sampling; one that sent no context is not sampled here.
    let trace = TraceContext::from_headers(&head.headers, Sampling::parent_based(0.0));
    let client = headers::client_version(&head.headers);
    let spoken = headers::spoken(&head.headers, client);
    let Some(port) = &peer.port else {
        // By its account: a name it chooses would be a label it chooses.
        let account = account_name(&peer.id);
        let edge = shared.metrics.edge(Direction::Inbound, &account, "unknown", DEFAULT_ROUTE);
        let mut record = RequestRecord::start(edge, now, spoken, trace);
        record.secured(|| peer.id.to_string());
        return respond::with_error(&ProxyError::NotServed(peer.asked.clone()), record);
    };
    let claimed = head.headers.get(&headers::SOURCE);
    let edge = peer
        .known
        .edge(claimed, || port.edge(&peer.id, &source(peer, claimed.and_then(|value| value.to_str().ok()))));
    let mut record = RequestRecord::start(edge, now, spoken, trace);
    record.with_span(&shared.spans, &head);
    if peer.id.is_proven() {
        record.secured(|| peer.id.to_string());
    }
    let asked = Asked::read(&head.headers, now);
    let arrived = Arrived { head, payload, client, asked };
    match carry(shared, peer, port, arrived, &mut record).await {
        Ok(carried) => respond(shared, carried, record),
        Err(error) => respond::with_error(&error, record),
    }
}

/// What the caller's sidecar says of a request.
#[derive(Debug, Clone, Copy)]
struct Asked {
    attempt: u32,
    deadline: Option<Instant>,
    /// A policy says that there is no limit.
    unlimited: bool,
    /// It is not repeatable, whatever it looks like.
    once: bool,
    /// It is made for a request that is a retry.
    under_retry: bool,
}

impl Asked {
    /// Believed because it comes over mutual TLS from a sidecar, which strips it from what its own
    /// application sends.
    fn read(headers: &HeaderMap, now: Instant) -> Self {
        let attempt = headers.get(&headers::ATTEMPT).and_then(|value| value.to_str().ok()?.parse().ok());
        let timeout = headers.get(&headers::TIMEOUT);
        let left = timeout.and_then(|value| deadline::parse_millis(value.as_bytes()));
        Self {
            attempt: attempt.unwrap_or(1).max(1),
            deadline: left.and_then(|left| now.checked_add(left)),
            unlimited: timeout.is_some_and(|value| value == headers::NO_TIMEOUT),
            under_retry: headers.contains_key(&headers::UNDER_RETRY),
            once: headers.get(&headers::REPEATABLE).is_some_and(|value| value == "no"),
        }
    }
}

/// A request as it came in.
struct Arrived {
    head: Parts,
    payload: Payload,
    client: Version,
    asked: Asked,
}

/// A response on its way back, and what ends with it.
struct Carried {
    answered: Answered,
    permit: Permit,
    remembered: Remembered,
    times: Times,
    /// What the client will send, if the application agrees to the upgrade.
    incoming: Option<Incoming>,
}

/// Whether the request is let in, and its exchange with the application.
async fn carry(
    shared: &Shared,
    peer: &Peer,
    port: &ServedPort,
    arrived: Arrived,
    record: &mut RequestRecord,
) -> Result<Carried, ProxyError> {
    let Arrived { mut head, payload, client, asked } = arrived;
    // The count before the policies: should they change in between, they are asked once more.
    let version = port.governed(shared.config.timeouts.discovery).await?;
    let (now, grpc, policy) = (Instant::now(), record.is_grpc(), port.policy());
    peer.known.allowed(version, || policy.authorize(&peer.id, &port.service))?;
    if !port.budget.admit(asked.attempt, now) {
        return Err(ProxyError::RetryRefused);
    }
    policy.rate(&head, grpc, &peer.id, now)?;
    let stream_idle = policy.stream_idle;
    drop(policy);
    let permit = admit(port, &peer.id, asked.deadline, record.edge()).await?;
    // Nobody waits for the answer any more: the work is not begun.
    let now = Instant::now();
    if let Some(deadline) = asked.deadline {
        let left = deadline::left(deadline, now).ok_or(ProxyError::DeadlineExceeded)?;
        if grpc {
            head.headers.insert(headers::GRPC_TIMEOUT, deadline::format_grpc(left));
        }
    }
    // For the calls made for it, a retry further up is as good as one here.
    let attempt = if asked.under_retry { asked.attempt.max(2) } else { asked.attempt };
    let inheritance = Inheritance { deadline: asked.deadline, attempt };
    // Calls the application makes for this request are found by its span: where there is something to
    // find, it must be this request's own, exported or not.
    let own = record.trace.sampled || !inheritance.binds();
    let span = if own { record.parent_for_next_hop() } else { new_span_id() };
    prepare(&mut head, peer, record, span)?;
    let remembered = shared.inherited.remember(record.trace.trace_id, span, inheritance);
    let (replay, upgrade, incoming) = match payload {
        Payload::Tunnel { token, incoming } => (None, Some(token), Some(incoming)),
        Payload::Body(body) if body.is_end_stream() => (None, None, None),
        Payload::Body(body) => (Some(Replay::new(body, 0, stream_idle, &shared.tasks)), None, None),
    };
    if let Some(replay) = &replay {
        record.request_body(replay.clone());
    }
    let limit = match (asked.deadline, asked.unlimited) {
        (Some(deadline), _) => Limit::Deadline(deadline),
        (None, true) => Limit::None,
        (None, false) => Limit::ToHead(shared.config.timeouts.request),
    };
    let repeatable = !asked.once && headers::repeatable(&head.method, &head.headers);
    let handover = Handover { port, head, replay: replay.as_ref(), client, repeatable, upgrade, limit };
    let begun = Instant::now();
    match exchange(handover, stream_idle).await {
        Ok(answered) => {
            let times = Times { idle: stream_idle, deadline: asked.deadline };
            Ok(Carried { answered, permit, remembered, times, incoming })
        }
        Err(error) => {
            let dropped = matches!(error, ProxyError::AppTimeout(_) | ProxyError::DeadlineExceeded);
            if dropped {
                let now = Instant::now();
                permit.finish(Sample { latency: now.saturating_duration_since(begun), dropped }, now);
            }
            Err(error)
        }
    }
}

/// A place in the application.
async fn admit(
    port: &ServedPort,
    caller: &SpiffeId,
    deadline: Option<Instant>,
    edge: &Edge,
) -> Result<Permit, ProxyError> {
    let shed = |why| {
        ProxyError::Overloaded(match why {
            Shed::Full => "the queue is full",
            Shed::Displaced => "another caller's request took its place in the queue",
            Shed::TimedOut => "its turn did not come in time",
        })
    };
    match port.concurrency.admit(caller, deadline, Instant::now()) {
        Admission::Admit(permit) => Ok(permit),
        Admission::Wait(waiting) => {
            let since = Instant::now();
            let turn = Box::pin(waiting.turn()).await;
            edge.queue.observe(seconds(since.elapsed()));
            turn.map_err(shed)
        }
        Admission::Shed(why) => Err(shed(why)),
    }
}

/// The caller's service: what its sidecar says, believed only within the namespace it has proved.
pub(super) fn source(peer: &Peer, claimed: Option<&str>) -> String {
    let claimed = claimed
        .and_then(|name| ServiceName::parse(name).ok())
        .filter(|name| Some(name.namespace()) == peer.id.namespace());
    claimed.map_or_else(|| account_name(&peer.id), |name| name.to_string())
}

/// Makes the peer's head the application's.
fn prepare(head: &mut Parts, peer: &Peer, record: &RequestRecord, span: u64) -> Result<(), ProxyError> {
    if head.method == Method::CONNECT {
        return Err(ProxyError::MethodNotSupported(Method::CONNECT));
    }
    // Other sidecars have seen to it; plaintext has met none.
    headers::unambiguous(head)?;
    headers::settle_length(&mut head.headers);
    headers::settle_authority(head).map_err(ProxyError::BadRequest)?;
    let map = &mut head.headers;
    // What the peer's application claimed about identities goes; what the peer proved comes.
    headers::strip_claims(map);
    headers::strip_hop_by_hop(map);
    match &peer.client_cert {
        Some(proven) => _ = map.insert(headers::CLIENT_CERT, proven.clone()),
        // What an outsider says of itself.
        None => _ = map.remove(&headers::CLIENT_CERT),
    }
    record.trace.inject(map, span);
    if !map.contains_key(&headers::REQUEST_ID) {
        map.insert(headers::REQUEST_ID, record.trace.request_id());
    }
    Ok(())
}

/// Passes the response on with its processing time; the record is finished by its body.
fn respond(shared: &Shared, carried: Carried, mut record: RequestRecord) -> Response<Body> {
    let Carried { answered, permit, remembered, times, incoming } = carried;
    let Answered { response, lease, processing, switched } = answered;
    let (mut head, upstream) = response.into_parts();
    head.version = Version::default();
    record.responded(head.status);
    record.processed(processing);
    record.grpc_status(&head.headers);
    headers::strip_mesh(&mut head.headers);
    headers::strip_hop_by_hop(&mut head.headers);
    head.headers.insert(
        headers::PROCESSING,
        headers::once(HeaderValue::from(u64::try_from(processing.as_micros()).unwrap_or(u64::MAX))),
    );
    let held = Held::Inbound { permit, sample: Sample { latency: processing, dropped: false }, remembered };
    let ending = Ending { record, held, lease };
    if let (Some(Switched { agreed, local, finale }), Some(remote)) = (switched, incoming) {
        let feed = Feed::default();
        let body = Body::Tunnel(feed.body());
        let tunnel = Tunnel { local, finale, feed, remote, idle: times.idle, ending };
        tunnel.spawn(&shared.tasks, head.status);
        head.status = StatusCode::OK;
        head.headers.insert(headers::MESH_UPGRADE, agreed);
        return Response::from_parts(head, body);
    }
    let body = ResponseBody::new(upstream, times, ending, &shared.stalled);
    Response::from_parts(head, Body::Response(body))
}
