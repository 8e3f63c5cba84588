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
use crate::pool::Lease;
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
            Version::HTTP_2 => over_h2(port, h2_request(head, body)).await,
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
    loop {
        let (mut sender, reused) = match port.app.reuse().await {
            Some(sender) => (sender, true),
            None => (port.app.connect().await?, false),
        };
        let handed = Instant::now();
        match sender.try_send_request(request).await {
            Ok(response) => {
                return Ok((
                    response,
                    Lease::Http1 { pool: port.app.clone(), sender, request: replay.cloned() },
                    handed,
                ));
            }
            Err(mut failed) => match failed.take_message() {
                // The application closed an idle connection as we reached for it.
                Some(unsent) if reused => request = unsent,
                Some(_) => return Err(ProxyError::AppUnsent(address)),
                None => return Err(ProxyError::AppReset { address, source: failed.into_error() }),
            },
        }
    }
}

async fn over_h2(port: &ServedPort, mut request: Request<Body>) -> Result<Exchanged, ProxyError> {
    let address = port.app.address();
    loop {
        let stream = port.app.stream().await?;
        let reused = stream.connection().mark_used();
        let handed = Instant::now();
        match stream.connection().sender().try_send_request(request).await {
            Ok(response) => return Ok((response, Lease::H2(stream), handed)),
            Err(mut failed) => {
                // One stream's end is no reason to give up the connection for the others.
                if !cause::<h2::Error>(failed.error()).is_some_and(h2::Error::is_reset) {
                    stream.connection().close();
                }
                match failed.take_message() {
                    Some(unsent) if reused => request = unsent,
                    Some(_) => return Err(ProxyError::AppUnsent(address)),
                    None => return Err(ProxyError::AppReset { address, source: failed.into_error() }),
                }
            }
        }
    }
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
