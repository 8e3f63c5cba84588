//! The outbound path, top to bottom.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{CONNECTION, CONTENT_LENGTH, LOCATION};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::sync::Notify;

use super::call::{Call, Payload, Terms};
use super::entry::{Refusal, Target};
use super::find::{self, Addressed, Decision, Recent, Way};
use super::retry::{self, Sent};
use super::{connect, mirror, terms};
use crate::control::snapshot::Snapshot;
use crate::error::ProxyError;
use crate::http::body::{Body, Ending, Held, ResponseBody, Times};
use crate::http::finale::Finale;
use crate::http::headers;
use crate::http::replay::Replay;
use crate::http::tunnel::{Feed, Local, Tunnel};
use crate::http::upgrade::{self, Asked};
use crate::policy::limit::BoundPermit;
use crate::pool::Lease;
use crate::reason::Reason;
use crate::respond;
use crate::route::condition::Head;
use crate::route::filter::Redirect;
use crate::shared::{Caller, Shared};
use crate::telemetry::environment::Sampling;
use crate::telemetry::metrics::WireProtocol;
use crate::telemetry::record::{RequestRecord, Spoken};
use crate::telemetry::trace::TraceContext;

/// A connection of the application that requests come on.
pub struct Origin {
    /// The application's end of it.
    pub from: SocketAddr,
    /// Where it goes.
    pub target: Target,
    /// How it may end.
    pub finale: Finale,
    /// Where its last request went.
    pub recent: Recent,
    /// Told when no further request is to come on it, where HTTP has no header for that.
    pub parting: Notify,
}

impl Origin {
    /// Whether the next connection may be let out, while on this one it would be too late.
    pub fn is_premature(&self) -> bool {
        matches!(self.target, Target::Refused(_, Refusal::Unknown))
    }
}

/// Carries one request of the application to another sidecar and the response back.
pub async fn handle(shared: &Arc<Shared>, origin: &Origin, mut request: Request<Incoming>) -> Response<Body> {
    let Origin { from, ref target, ref finale, ref recent, .. } = *origin;
    let at = Instant::now();
    let snapshot = shared.directory.load_full(); // once: one request, one view
    let trace = TraceContext::from_headers(request.headers(), shared.sampling(&snapshot));
    let spoken = headers::spoken(request.headers(), request.version());
    if *target == Target::Named && connect::asked(&request) {
        let tunnel = Box::pin(connect::open(shared, from, request)).await;
        return tunnel.unwrap_or_else(|error| {
            respond::with_error(&error, RequestRecord::start(find::nowhere(shared), at, spoken, trace))
        });
    }
    let client = Client::take(&mut request, finale);
    let (mut head, body) = request.into_parts();
    let refuse =
        |error: &ProxyError, edge| respond::with_error(error, RequestRecord::start(edge, at, spoken, trace));
    if let Err(error) = headers::unambiguous(&head) {
        let mut response = refuse(&error, find::nowhere(shared));
        // Where the request ends is in doubt, and what comes after it with it.
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        return response;
    }
    let addressed = match find::addressed(shared, &snapshot, (target, recent), &mut head).await {
        Ok(addressed) => addressed,
        Err(error) => {
            let mut response = refuse(&error, find::nowhere(shared));
            if origin.is_premature() && head.version != Version::HTTP_2 {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            return response;
        }
    };
    let mut rng = fastrand::Rng::with_seed(fastrand::u64(..));
    let decision = match addressed.decide(&head, spoken.is_grpc(), &mut rng) {
        Ok(decision) => decision,
        Err((error, edge)) => return refuse(&error, edge),
    };
    let mut record = RequestRecord::start(decision.edge.clone(), at, spoken, trace);
    record.with_span(&shared.spans, &head);
    if let Way::Redirect(redirect) = decision.way {
        return redirected(&decision, redirect, (&head, addressed.port), record);
    }
    let upgrade = client.upgrade.as_ref().map(|(asked, feed)| (asked.token.clone(), feed.clone()));
    let arrived = Arrived { from, head, body, upgrade, at, snapshot: &snapshot, rng };
    match forward(shared, &addressed, &decision, arrived, &mut record).await {
        Ok(answer) => respond(shared, &decision, client, answer, record),
        Err(error) => {
            let in_doubt = matches!(error, ProxyError::BadRequest(_));
            let mut response = respond::with_error(&error, record);
            if in_doubt {
                // Its body may be what is malformed, and what comes after it is in doubt.
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            response
        }
    }
}

/// Counts a request that the HTTP library refused with this status: nothing is known of it.
pub fn refused(shared: &Shared, status: StatusCode) {
    let spoken = Spoken { protocol: WireProtocol::Http1, http2: false };
    let trace = TraceContext::from_headers(&HeaderMap::new(), Sampling::parent_based(0.0));
    let mut record = RequestRecord::start(find::nowhere(shared), Instant::now(), spoken, trace);
    record.responded(status);
    record.explained(Reason::BadRequest);
    record.completed();
}

/// What of a client its response depends on.
struct Client<'a> {
    version: Version,
    /// How its connection may end.
    finale: &'a Finale,
    /// The upgrade it asks for, and what it will send then.
    upgrade: Option<(Asked, Feed)>,
}

impl<'a> Client<'a> {
    /// Takes what is not part of the message out of a request.
    fn take(request: &mut Request<Incoming>, finale: &'a Finale) -> Self {
        let upgrade = upgrade::take(request).map(|asked| (asked, Feed::default()));
        // There for every `Upgrade`, also for one that is not heeded.
        if request.method() != Method::CONNECT {
            request.extensions_mut().remove::<OnUpgrade>();
        }
        Self { version: request.version(), finale, upgrade }
    }
}

/// A request as it came in.
struct Arrived<'a> {
    from: SocketAddr,
    head: Parts,
    body: Incoming,
    /// The upgrade it asks for, and what is sent then.
    upgrade: Option<(HeaderValue, Feed)>,
    at: Instant,
    snapshot: &'a Snapshot,
    rng: fastrand::Rng,
}

/// A response to pass on.
struct Answer {
    sent: Sent,
    permit: BoundPermit,
    deadline: Option<Instant>,
}

/// Answers with a redirect in the service's place.
fn redirected(
    decision: &Decision<'_>,
    redirect: &Redirect,
    (head, port): (&Parts, u16),
    mut record: RequestRecord,
) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = redirect.status();
    record.responded(redirect.status());
    record.explained(Reason::Redirected);
    record.completed();
    drop(record);
    let map = response.headers_mut();
    map.insert(LOCATION, redirect.location(head, port));
    decision.edit_response(map);
    map.insert(headers::REASON, HeaderValue::from_static(Reason::Redirected.as_str()));
    response
}

async fn forward(
    shared: &Arc<Shared>,
    addressed: &Addressed<'_>,
    decision: &Decision<'_>,
    arrived: Arrived<'_>,
    record: &mut RequestRecord,
) -> Result<Answer, ProxyError> {
    let Arrived { from, mut head, body, upgrade, at, snapshot, mut rng } = arrived;
    let http1 = head.version != Version::HTTP_2;
    let (service, port) = addressed.target(shared, snapshot, decision).await?;
    let policy = decision.policy();
    let Some(found) = service.port(port) else {
        return Err(ProxyError::UnknownPort { service: service.name.to_string(), port });
    };
    let destination = &found.destination;
    let settings = destination.settings();
    // Before the head becomes ours: the client's own words on deadlines and hashing.
    let mut terms = terms::of(shared, &head, policy, record, at);
    terms.hash = settings.hash.as_ref().and_then(|hash| hash.key(&head.headers, from));
    faults(decision, &head, &terms, &mut rng).await?;
    if terms.deadline.is_some_and(|deadline| deadline <= Instant::now()) {
        return Err(ProxyError::DeadlineExceeded);
    }
    // What belongs to the client's connection first: it must not name what the route sets.
    headers::strip_mesh(&mut head.headers);
    headers::strip_hop_by_hop(&mut head.headers);
    headers::settle_length(&mut head.headers);
    decision.edit_request(&mut head)?;
    prepare(&mut head, addressed.caller, record)?;
    settle_repeatable(&mut head, &mut terms);
    let Some(permit) = destination.in_flight.try_acquire() else {
        let limit = destination.in_flight.limit();
        return Err(ProxyError::InFlightLimit { service: service.name.to_string(), limit });
    };
    let payload = match upgrade {
        Some((token, feed)) => {
            head.headers.insert(headers::MESH_UPGRADE, token);
            Payload::Tunnel(feed)
        }
        None if body.is_end_stream() => Payload::Empty,
        None => {
            let replay = Replay::new(body, policy.buffer, policy.stream_idle, &shared.tasks);
            if http1 {
                replay.of_http1();
            }
            record.request_body(replay.clone());
            Payload::Replay(replay)
        }
    };
    let call = Call {
        shared,
        service: &service.name,
        port,
        found: Some((snapshot.version, &found.endpoints)),
        edge: &decision.edge,
        destination,
        settings,
        policy,
        head: &head,
        payload: &payload,
        terms,
        workload: addressed.workload,
    };
    let result = retry::send(&call).await;
    mirror::send(shared, decision.mirrors(&mut rng), &call);
    Ok(Answer { sent: result?, permit, deadline: terms.deadline })
}

/// Makes the faults that are asked for.
async fn faults(
    decision: &Decision<'_>,
    head: &Parts,
    terms: &Terms,
    rng: &mut fastrand::Rng,
) -> Result<(), ProxyError> {
    let Some(faults) = &decision.policy().faults else { return Ok(()) };
    let Some(action) = faults.decide(&Head::new(head, terms.grpc), rng) else { return Ok(()) };
    if let Some(delay) = action.delay {
        decision.edge.fault("delay");
        let until = Instant::now() + delay;
        let until = terms.deadline.map_or(until, |at| at.min(until));
        Box::pin(tokio::time::sleep_until(until.into())).await;
    }
    match action.abort {
        None => Ok(()),
        Some(abort) => {
            decision.edge.fault("abort");
            Err(ProxyError::FaultInjected { status: abort.status, grpc: abort.grpc_code.number() })
        }
    }
}

/// What the client may repeat and what the application would recognise as repeated may differ, where a
/// route changes `Idempotency-Key`: repeated is what is both, at both sidecars.
fn settle_repeatable(head: &mut Parts, terms: &mut Terms) {
    let looks = headers::repeatable(&head.method, &head.headers);
    if looks && !terms.repeatable {
        head.headers.insert(headers::REPEATABLE, HeaderValue::from_static("no"));
    }
    terms.repeatable &= looks;
}

/// Makes the client's head ours: what the next hop needs comes.
fn prepare(head: &mut Parts, caller: &Caller, record: &RequestRecord) -> Result<(), ProxyError> {
    let version = HeaderValue::from_static(if head.version == Version::HTTP_2 { "2" } else { "1.1" });
    headers::settle_authority(head).map_err(ProxyError::BadRequest)?;
    head.version = Version::HTTP_2;
    let map = &mut head.headers;
    headers::strip_expect(map);
    record.trace.inject(map, record.parent_for_next_hop());
    map.insert(headers::SOURCE, caller.source_header.clone());
    map.insert(headers::VERSION, version);
    Ok(())
}

/// Passes the response on; the record is finished by its body, or by the tunnel that it opens.
fn respond(
    shared: &Shared,
    decision: &Decision<'_>,
    client: Client<'_>,
    answer: Answer,
    mut record: RequestRecord,
) -> Response<Body> {
    let Sent { response, watch, stream } = answer.sent;
    record.secured(|| watch.endpoint().identity.to_string());
    let (mut head, upstream) = response.into_parts();
    head.version = Version::default();
    let agreed = head.headers.get(&headers::MESH_UPGRADE).filter(|_| head.status == StatusCode::OK).cloned();
    record.responded(head.status);
    record.grpc_status(&head.headers);
    if let Some(processing) =
        head.headers.get(&headers::PROCESSING).and_then(|value| value.to_str().ok()?.parse().ok())
    {
        record.processed(Duration::from_micros(processing));
    }
    // The one mesh header the application may see: why the mesh, and not the application, answered.
    let reason = head.headers.get(&headers::REASON).and_then(|reason| Reason::parse(reason.as_bytes()));
    headers::strip_mesh(&mut head.headers);
    headers::strip_hop_by_hop(&mut head.headers);
    decision.edit_response(&mut head.headers);
    if let Some(reason) = reason {
        record.explained(reason);
        head.headers.insert(headers::REASON, HeaderValue::from_static(reason.as_str()));
    }
    let idle = decision.policy().stream_idle;
    let held = Held::Outbound { watch, permit: answer.permit };
    let ending = Ending { record, held, lease: Lease::H2(stream) };
    let Client { version, finale, upgrade } = client;
    match (upgrade, agreed) {
        (Some((asked, feed)), Some(agreed)) => {
            let mut response = Response::from_parts(head, Body::Empty);
            upgrade::agree(&asked, &agreed, &mut response);
            let finale = Some(finale.clone()).filter(|_| !asked.extended);
            let tunnel =
                Tunnel { local: Local::Upgrading(asked.on), finale, feed, remote: upstream, idle, ending };
            tunnel.spawn(&shared.tasks, response.status());
            return response;
        }
        (Some((_, feed)), None) => feed.refused(),
        (None, _) => {}
    }
    let times = Times { idle, deadline: answer.deadline };
    let body = ResponseBody::new(upstream, times, ending, &shared.stalled);
    if version == Version::HTTP_10 && !head.headers.contains_key(CONTENT_LENGTH) {
        body.ends_connection(finale.clone());
    }
    Response::from_parts(head, Body::Response(body))
}
