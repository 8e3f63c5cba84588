//! The inbound path, top to bottom.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response, Uri, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use outrigger_api::resource::Protocol;
use outrigger_common::name::ServiceName;

use super::Peer;
use super::served::{ServedPort, account_name};
use crate::error::{ProxyError, cause};
use crate::http::body::{Body, ResponseBody};
use crate::http::headers;
use crate::http::replay::{Failed, Replay};
use crate::pool::app::{Evidence, Verdict};
use crate::pool::connector::Reuse;
use crate::pool::{self, Lease};
use crate::respond;
use crate::route::DEFAULT_ROUTE;
use crate::shared::Shared;
use crate::telemetry::environment::Sampling;
use crate::telemetry::metrics::Direction;
use crate::telemetry::record::RequestRecord;
use crate::telemetry::trace::TraceContext;

/// Carries one request of another sidecar to the application and the response back.
pub async fn handle(shared: &Arc<Shared>, peer: &Peer, request: Request<Incoming>) -> Response<Body> {
    let now = Instant::now();
    // The caller's sidecar has decided on sampling; one that sent no context is not sampled here.
    let trace = TraceContext::from_headers(request.headers(), Sampling::parent_based(0.0));
    let version = headers::client_version(request.headers());
    let spoken = headers::spoken(request.headers(), version);
    let source = source(peer, &request);
    let Some(port) = &peer.port else {
        let edge = shared.metrics.edge(Direction::Inbound, &source, "unknown", DEFAULT_ROUTE);
        let mut record = RequestRecord::start(edge, now, spoken, trace);
        record.secured(|| peer.id.to_string());
        return respond::with_error(&ProxyError::NotServed(peer.asked.clone()), record);
    };
    let mut record = RequestRecord::start(port.edge(&peer.id, &source), now, spoken, trace);
    let (mut head, body) = request.into_parts();
    record.with_span(&shared.spans, &head);
    record.secured(|| peer.id.to_string());
    let speaks = app_version(port, version);
    if let Err(error) = prepare(&mut head, peer, &record) {
        return respond::with_error(&error, record);
    }
    let replay = (!body.is_end_stream()).then(|| Replay::new(body, 0, shared.config.timeouts.idle));
    if let Some(replay) = &replay {
        record.request_body(replay.clone());
    }
    let result = exchange(shared, port, head, replay.as_ref(), speaks).await;
    match result {
        Ok(answered) => respond(shared, answered, record),
        Err(error) => respond::with_error(&error, record),
    }
}

/// The caller's service: what its sidecar says, believed only within the namespace it has proved.
fn source(peer: &Peer, request: &Request<Incoming>) -> String {
    let claimed = request
        .headers()
        .get(&headers::SOURCE)
        .and_then(|value| ServiceName::parse(value.to_str().ok()?).ok())
        .filter(|name| Some(name.namespace()) == peer.id.namespace());
    claimed.map_or_else(|| account_name(&peer.id), |name| name.to_string())
}

/// The HTTP version the application is spoken to in: as declared, else the client's own.
fn app_version(port: &ServedPort, client: Version) -> Version {
    match port.protocol {
        Protocol::Http1 => Version::HTTP_11,
        Protocol::Http2 | Protocol::Grpc => Version::HTTP_2,
        Protocol::Http => client,
    }
}

/// Makes the peer's head the application's.
fn prepare(head: &mut Parts, peer: &Peer, record: &RequestRecord) -> Result<(), ProxyError> {
    if head.method == Method::CONNECT {
        return Err(ProxyError::MethodNotSupported(Method::CONNECT));
    }
    if head.headers.get_all(HOST).iter().count() > 1 {
        return Err(ProxyError::BadRequest("the request has more than one Host header"));
    }
    headers::settle_authority(head).map_err(ProxyError::BadRequest)?;
    let map = &mut head.headers;
    // What the peer's application claimed about identities goes; what the peer proved comes.
    headers::strip_claims(map);
    headers::strip_hop_by_hop(map);
    map.insert(headers::CLIENT_CERT, peer.client_cert.clone());
    record.trace.inject(map, record.parent_for_next_hop());
    Ok(())
}

/// What the application answered, and how long it took.
struct Answered {
    response: Response<Incoming>,
    lease: Lease,
    processing: Duration,
}

/// Sends to the application and waits for the response head.
async fn exchange(
    shared: &Shared,
    port: &ServedPort,
    head: Parts,
    replay: Option<&Replay>,
    version: Version,
) -> Result<Answered, ProxyError> {
    let body = match replay {
        None => Body::Empty,
        // The first attempt always has a body.
        Some(replay) => replay.attempt().map_or(Body::Empty, Body::Request),
    };
    let exchange = async {
        match version {
            Version::HTTP_2 => over_h2(port, h2_request(head, body), replay).await,
            _ => over_h1(port, h1_request(head, body)?, replay).await,
        }
    };
    let limit = shared.config.timeouts.request;
    let overdue = async {
        match replay {
            None => tokio::time::sleep(limit).await,
            Some(replay) => replay.overdue(limit).await,
        }
    };
    let result = tokio::select! {
        result = exchange => result,
        () = overdue => Err(ProxyError::AppTimeout(limit)),
    };
    match result {
        Ok((response, lease, handed)) => {
            // An application that answers before the whole request is there is timed from the head.
            let from = replay.and_then(Replay::sent_at).map_or(handed, |sent| sent.max(handed));
            Ok(Answered { response, lease, processing: from.elapsed() })
        }
        Err(error) => Err(match replay.and_then(Replay::failed) {
            Some(Failed::Idle) => ProxyError::IdleTimeout(shared.config.timeouts.idle),
            Some(Failed::Client) => ProxyError::ClientClosed,
            None => error,
        }),
    }
}

/// Origin-form with `Host`, as RFC 9112 section 3.2.1 asks.
fn h1_request(mut head: Parts, body: Body) -> Result<Request<Body>, ProxyError> {
    if let Some(authority) = head.uri.authority() {
        let host = HeaderValue::try_from(authority.as_str())
            .map_err(|_| ProxyError::BadRequest("malformed authority"))?;
        head.headers.insert(HOST, host);
    }
    // hyper frames a body of unknown length by the method, and takes none for GET.
    if body.size_hint().exact().is_none() {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    head.uri =
        head.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
    head.version = Version::HTTP_11;
    Ok(Request::from_parts(head, body))
}

fn h2_request(mut head: Parts, body: Body) -> Request<Body> {
    head.version = Version::HTTP_2;
    Request::from_parts(head, body)
}

type Exchanged = (Response<Incoming>, Lease, Instant);

async fn over_h1(
    port: &ServedPort,
    mut request: Request<Body>,
    replay: Option<&Replay>,
) -> Result<Exchanged, ProxyError> {
    let address = port.app.address();
    let repeatable = headers::repeatable(&request);
    let mut again = false;
    loop {
        let kept = if again { None } else { port.app.reuse(Reuse::of(repeatable)).await };
        let (mut connection, reused) = match kept {
            Some(connection) => (connection, true),
            None => (port.app.connect().await?, false),
        };
        let copy = (reused && repeatable).then(|| copy(&request, replay)).flatten();
        let handed = Instant::now();
        let failed = match connection.send(request).await {
            Ok(response) => {
                let lease = Lease::Http1 { pool: port.app.clone(), connection, request: replay.cloned() };
                return Ok((response, lease, handed));
            }
            Err(failed) => failed,
        };
        let evidence = Evidence {
            unsent: failed.unsent.is_some(),
            refused: false,
            reused,
            answered: failed.answered,
            repeatable: copy.is_some(),
        };
        match (evidence.verdict(), failed.unsent.or(copy)) {
            (Verdict::Again, Some(next)) => request = next,
            (Verdict::Unsent, _) => return Err(ProxyError::AppUnsent(address)),
            (Verdict::Again | Verdict::Refused | Verdict::Reset, _) => {
                return Err(ProxyError::AppReset { address, source: failed.error });
            }
        }
        // A request that was sent goes out once more, and not on a connection that may be next to go.
        again = !evidence.unsent;
    }
}

async fn over_h2(
    port: &ServedPort,
    mut request: Request<Body>,
    replay: Option<&Replay>,
) -> Result<Exchanged, ProxyError> {
    let address = port.app.address();
    let repeatable = headers::repeatable(&request);
    let mut again = false;
    loop {
        let reuse = if again { Reuse::Fresh(Duration::ZERO) } else { Reuse::of(repeatable) };
        let stream = port.app.stream(reuse).await?;
        let reused = stream.connection().mark_used();
        let copy = (reused && repeatable && !again).then(|| copy(&request, replay)).flatten();
        let handed = Instant::now();
        let mut failed = match stream.connection().sender().try_send_request(request).await {
            Ok(response) => return Ok((response, Lease::H2(stream), handed)),
            Err(failed) => failed,
        };
        // One stream's end is no reason to give up the connection for the others.
        let stream_only = cause::<h2::Error>(failed.error()).is_some_and(h2::Error::is_reset);
        if !stream_only {
            stream.connection().close();
        }
        let unsent = failed.take_message();
        let evidence = Evidence {
            unsent: unsent.is_some(),
            refused: pool::undelivered(failed.error()),
            reused,
            answered: stream_only,
            repeatable: copy.is_some(),
        };
        match (evidence.verdict(), unsent.or(copy)) {
            (Verdict::Again, Some(next)) => request = next,
            (Verdict::Unsent, _) => return Err(ProxyError::AppUnsent(address)),
            (Verdict::Refused, _) => {
                return Err(ProxyError::AppRefused { address, source: failed.into_error() });
            }
            (Verdict::Again | Verdict::Reset, _) => {
                return Err(ProxyError::AppReset { address, source: failed.into_error() });
            }
        }
        again = !evidence.unsent;
    }
}

/// Another copy of a request without a body; a body is read once.
fn copy(request: &Request<Body>, replay: Option<&Replay>) -> Option<Request<Body>> {
    if replay.is_some() {
        return None;
    }
    let mut copy = Request::new(Body::Empty);
    *copy.method_mut() = request.method().clone();
    *copy.uri_mut() = request.uri().clone();
    *copy.version_mut() = request.version();
    *copy.headers_mut() = request.headers().clone();
    Some(copy)
}

/// Passes the response on with its processing time; the record is finished by its body.
fn respond(shared: &Shared, answered: Answered, mut record: RequestRecord) -> Response<Body> {
    let Answered { response, lease, processing } = answered;
    let (mut head, upstream) = response.into_parts();
    head.version = Version::default();
    record.responded(head.status);
    record.processed(processing);
    record.grpc_status(&head.headers);
    headers::strip_mesh(&mut head.headers);
    headers::strip_hop_by_hop(&mut head.headers);
    head.headers.insert(
        headers::PROCESSING,
        HeaderValue::from(u64::try_from(processing.as_micros()).unwrap_or(u64::MAX)),
    );
    let body = ResponseBody::new(upstream, record, shared.config.timeouts.idle, None, Some(lease));
    Response::from_parts(head, Body::Response(Box::new(body)))
}
