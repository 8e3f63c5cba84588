//! The exchange with the application: a connection, the request in the application's own protocol,
//! the response head.

use std::time::{Duration, Instant};

use http::header::{COOKIE, HOST, TRANSFER_ENCODING};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use http_body::Body as _;
use outrigger_api::resource::Protocol;

use super::served::ServedPort;
use super::upgrade::{self, Switched};
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::incoming::Incoming;
use crate::http::replay::{Failed, Replay};
use crate::pool::app::{Evidence, Verdict};
use crate::pool::connector::Reuse;
use crate::pool::{self, Lease};

/// What the application answered, and how long it took.
pub struct Answered {
    /// Head read, body not.
    pub response: Response<Incoming>,
    /// The connection it comes on.
    pub lease: Lease,
    /// From the last request byte handed over to the response head.
    pub processing: Duration,
    /// The upgrade it agrees to.
    pub switched: Option<Switched>,
}

/// What is sent to the application.
pub struct Handover<'a> {
    /// Where to.
    pub port: &'a ServedPort,
    /// The head.
    pub head: Parts,
    /// The body, if there is one.
    pub replay: Option<&'a Replay>,
    /// How the client spoke.
    pub client: Version,
    /// May be repeated although it may have had an effect.
    pub repeatable: bool,
    /// The upgrade it asks for.
    pub upgrade: Option<HeaderValue>,
    /// How long it may take.
    pub limit: Limit,
}

/// How long the application may take.
#[derive(Debug, Clone, Copy)]
pub enum Limit {
    /// Until then: the answer is of no use any more.
    Deadline(Instant),
    /// That long from the last request byte to the response head.
    ToHead(Duration),
    /// As long as it likes.
    None,
}

/// Sends to the application and waits for the response head; `idle` is how long the body may stand
/// still, for the error that says so.
///
/// Cancel safety: the connection is closed, or its stream reset.
///
/// # Errors
/// How it failed, and thereby whether the application may have seen the request.
pub async fn exchange(handover: Handover<'_>, idle: Duration) -> Result<Answered, ProxyError> {
    let Handover { port, head, replay, client, repeatable, upgrade, limit } = handover;
    let body = match replay {
        None => Body::Empty,
        // The first attempt always has a body.
        Some(replay) => replay.attempt().map_or(Body::Empty, Body::Request),
    };
    let exchange = async {
        if let Some(token) = &upgrade {
            return Box::pin(upgrade::ask(port, head, token, client)).await;
        }
        let exchanged = match app_version(port, client) {
            Version::HTTP_2 => over_h2(port, h2_request(head, body), replay, repeatable).await?,
            _ => over_h1(port, h1_request(head, body)?, replay, repeatable).await?,
        };
        Ok((exchanged, None))
    };
    let overdue = async {
        match (limit, replay) {
            (Limit::Deadline(deadline), _) => {
                tokio::time::sleep_until(deadline.into()).await;
                ProxyError::DeadlineExceeded
            }
            (Limit::ToHead(limit), None) => {
                tokio::time::sleep(limit).await;
                ProxyError::AppTimeout(limit)
            }
            (Limit::ToHead(limit), Some(replay)) => {
                replay.overdue(limit).await;
                ProxyError::AppTimeout(limit)
            }
            (Limit::None, _) => std::future::pending().await,
        }
    };
    let result = tokio::select! {
        result = exchange => result,
        error = overdue => Err(error),
    };
    match result {
        // It would be taken for the first of two responses on the way back.
        Ok(((response, ..), _)) if response.status().is_informational() && upgrade.is_none() => {
            Err(ProxyError::AppSwitched(port.app.address()))
        }
        Ok(((response, lease, handed), switched)) => {
            // An application that answers before the whole request is there is timed from the head.
            let from = replay.and_then(Replay::sent_at).map_or(handed, |sent| sent.max(handed));
            Ok(Answered { response, lease, processing: from.elapsed(), switched })
        }
        Err(error) => Err(match replay.and_then(Replay::failed) {
            Some(Failed::Idle) => ProxyError::IdleTimeout(idle),
            Some(Failed::Client) => ProxyError::ClientClosed,
            Some(Failed::Malformed) => ProxyError::BadRequest("the body of the request is malformed"),
            None => error,
        }),
    }
}

/// The HTTP version the application is spoken to in: as declared, else the client's own.
fn app_version(port: &ServedPort, client: Version) -> Version {
    match port.protocol {
        Protocol::Http1 => Version::HTTP_11,
        Protocol::Http2 | Protocol::Grpc => Version::HTTP_2,
        // HTTP arrived over the mesh; a port of opaque bytes takes none.
        Protocol::Auto | Protocol::Http | Protocol::Tcp => client,
    }
}

/// Origin-form with `Host`, as RFC 9112 section 3.2.1 asks.
pub(super) fn h1_request(mut head: Parts, body: Body) -> Result<Request<Body>, ProxyError> {
    if let Some(authority) = head.uri.authority() {
        let host = HeaderValue::try_from(authority.as_str())
            .map_err(|_| ProxyError::BadRequest("malformed authority"))?;
        head.headers.insert(HOST, host);
    }
    join_cookies(&mut head.headers);
    // hyper frames a body of unknown length by the method, and takes none for GET.
    if body.size_hint().exact().is_none() {
        head.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    head.uri =
        head.uri.path_and_query().map_or_else(|| Uri::from_static("/"), |path| Uri::from(path.clone()));
    head.version = Version::HTTP_11;
    Ok(Request::from_parts(head, body))
}

/// Makes one line of the crumbs that HTTP/2 may send cookies in (RFC 9113 section 8.2.3): many servers of
/// HTTP/1 look at the first alone.
fn join_cookies(map: &mut HeaderMap) {
    if map.get_all(COOKIE).iter().nth(1).is_none() {
        return;
    }
    let crumbs: Vec<_> = map.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    // Values stay what they are behind one another.
    if let Ok(whole) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
        map.insert(COOKIE, whole);
    }
}

pub(super) fn h2_request(mut head: Parts, body: Body) -> Request<Body> {
    head.version = Version::HTTP_2;
    Request::from_parts(head, body)
}

/// A response, the connection it comes on, and when the request was handed over.
pub(super) type Exchanged = (Response<Incoming>, Lease, Instant);

async fn over_h1(
    port: &ServedPort,
    mut request: Request<Body>,
    replay: Option<&Replay>,
    repeatable: bool,
) -> Result<Exchanged, ProxyError> {
    let address = port.app.address();
    let mut again = false;
    loop {
        let kept = if again { None } else { port.app.reuse(Reuse::of(repeatable)).await };
        let (mut connection, reused) = match kept {
            Some(connection) => (connection, true),
            // Boxed, as all that is rare: every request would hold the room for it.
            None => (Box::pin(port.app.connect()).await?, false),
        };
        let copy = (reused && repeatable).then(|| copy(&request, replay)).flatten();
        let handed = Instant::now();
        let failed = match connection.send(request).await {
            Ok(response) => {
                let lease = Lease::Http1 { pool: port.app.clone(), connection, request: replay.cloned() };
                return Ok((response.map(Incoming::from), lease, handed));
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
                return Err(ProxyError::AppReset { address, source: failed.error.into() });
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
    repeatable: bool,
) -> Result<Exchanged, ProxyError> {
    let address = port.app.address();
    let mut again = false;
    loop {
        let reuse = if again { Reuse::Fresh(Duration::ZERO) } else { Reuse::of(repeatable) };
        let stream = port.app.stream(reuse).await?;
        let reused = stream.connection().mark_used();
        let copy = (reused && repeatable && !again).then(|| copy(&request, replay)).flatten();
        let handed = Instant::now();
        let failed = match stream.connection().sender().send(request, port.app.tasks()).await {
            Ok(response) => return Ok((response, Lease::H2(stream), handed)),
            Err(failed) => failed,
        };
        // One stream's end is no reason to give up the connection for the others.
        let stream_only = failed.error.is_reset();
        if !stream_only {
            stream.connection().close();
        }
        let unsent = failed.unsent;
        let evidence = Evidence {
            unsent: unsent.is_some() || (failed.never_sent && copy.is_some()),
            refused: failed.never_sent || pool::undelivered(&failed.error),
            reused,
            answered: stream_only,
            repeatable: copy.is_some(),
        };
        match (evidence.verdict(), unsent.or(copy)) {
            (Verdict::Again, Some(next)) => request = next,
            (Verdict::Unsent, _) => return Err(ProxyError::AppUnsent(address)),
            (Verdict::Refused, _) => {
                return Err(ProxyError::AppRefused { address, source: failed.error.into() });
            }
            (Verdict::Again | Verdict::Reset, _) => {
                return Err(ProxyError::AppReset { address, source: failed.error.into() });
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
