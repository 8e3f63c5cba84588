//! The retry loop: attempts on endpoints not yet tried, only where repeating is safe.
//!
//! Undelivered requests of any method, and idempotent or keyed ones that met a broken connection,
//! are repeated up to twice. Nothing else is: a request that may have reached the application may
//! have had its effect.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use http::{Request, Response};
use hyper::body::Incoming;
use outrigger_common::name::ServiceName;
use rustls::AlertDescription;

use crate::balance::{self, Candidate, Transition};
use crate::control::snapshot::{Entry, ServicePort};
use crate::error::{Delivery, ProxyError, cause};
use crate::http::body::{Body, InFlight};
use crate::http::headers;
use crate::http::replay::{Failed, Replay};
use crate::pool;
use crate::pool::connector::Reuse;
use crate::pool::h2::StreamGuard;
use crate::pool::mesh::Endpoint;
use crate::reason::Reason;
use crate::shared::Shared;
use crate::telemetry::edge::Edge;
use crate::telemetry::metrics::{RetryOutcome, RetryReason, seconds};

/// Attempts of one request: the first, and two more.
const ATTEMPTS: usize = 3;

/// Where a request goes.
#[derive(Debug)]
pub struct Target<'a> {
    /// The service.
    pub name: &'a ServiceName,
    /// Its port.
    pub port: u16,
    /// Where its metrics go.
    pub edge: &'a Edge,
}

/// A request's body, for as many attempts as it takes.
#[derive(Debug)]
pub enum Payload {
    /// None.
    Empty,
    /// Read from the client once, kept up to a bound.
    Replay(Replay),
}

/// A response, and what must live as long as its body.
pub struct Sent {
    /// Head read, body not.
    pub response: Response<Incoming>,
    /// Who answered.
    pub endpoint: Arc<Endpoint>,
    /// Counts the request at the endpoint.
    pub in_flight: InFlight,
    /// Counts the stream at the connection.
    pub stream: StreamGuard,
}

/// How an attempt ended.
enum Outcome {
    Done(Sent),
    /// Another attempt is safe, if there is somewhere to go; else this is the answer.
    Retry(RetryReason, Result<Sent, ProxyError>),
    Fail(ProxyError),
}

impl Payload {
    /// The body of the next attempt; `None` when too much was read to start over.
    fn attempt(&self) -> Option<Body> {
        match self {
            Self::Empty => Some(Body::Empty),
            Self::Replay(replay) => replay.attempt().map(Body::Request),
        }
    }

    /// Resolves when there has been no response for too long; see [`Replay::overdue`].
    async fn overdue(&self, limit: Duration) {
        match self {
            Self::Empty => tokio::time::sleep(limit).await,
            Self::Replay(replay) => replay.overdue(limit).await,
        }
    }

    /// The client's side broke off: no attempt is to blame.
    fn client_error(&self, idle: Duration) -> Option<ProxyError> {
        match self {
            Self::Empty => None,
            Self::Replay(replay) => replay.failed().map(|failed| match failed {
                Failed::Idle => ProxyError::IdleTimeout(idle),
                Failed::Client => ProxyError::ClientClosed,
            }),
        }
    }
}

/// Sends a request, and sends it again where that is safe.
///
/// Cancel safety: the attempt under way is reset.
///
/// # Errors
/// How the last attempt failed.
pub async fn send(
    shared: &Shared,
    target: &Target<'_>,
    head: &Parts,
    payload: &Payload,
    repeatable: bool,
) -> Result<Sent, ProxyError> {
    let mut tried: [Option<Arc<Endpoint>>; ATTEMPTS] = Default::default();
    let mut last: Option<(RetryReason, Result<Sent, ProxyError>)> = None;
    for attempt in 0..ATTEMPTS {
        // The endpoint set anew at each attempt, so that a retry does not pick the dead.
        let Some(endpoint) = pick(shared, target, &tried) else { break };
        let Some(body) = payload.attempt() else {
            count_retry(target, last.as_ref(), RetryOutcome::NotReplayable);
            break;
        };
        count_retry(target, last.as_ref(), RetryOutcome::Sent);
        // The failed response before it is let go only now: it might have been the answer.
        drop(last.take());
        tried[attempt] = Some(endpoint.clone());
        match try_once(shared, target, head, body, payload, &endpoint).await {
            Outcome::Done(sent) => return Ok(sent),
            Outcome::Fail(error) => return Err(error),
            Outcome::Retry(reason, result) => {
                if reason != RetryReason::Undelivered && !repeatable {
                    target.edge.retry(reason, RetryOutcome::NotReplayable);
                    return result;
                }
                last = Some((reason, result));
            }
        }
    }
    last.map_or_else(|| Err(ProxyError::NoEndpoint(target.name.to_string())), |(_, result)| result)
}

fn count_retry(
    target: &Target<'_>,
    last: Option<&(RetryReason, Result<Sent, ProxyError>)>,
    outcome: RetryOutcome,
) {
    if let Some((reason, _)) = last {
        target.edge.retry(*reason, outcome);
    }
}

fn pick(shared: &Shared, target: &Target<'_>, tried: &[Option<Arc<Endpoint>>]) -> Option<Arc<Endpoint>> {
    let snapshot = shared.directory.load();
    let Some(Entry::Known(service)) = snapshot.service(target.name.as_str()) else { return None };
    let endpoints = service.port(target.port).map(|port: &ServicePort| port.endpoints.as_slice())?;
    let was_tried =
        |candidate: &Endpoint| tried.iter().flatten().any(|one| std::ptr::eq(one.as_ref(), candidate));
    let mut rng = fastrand::Rng::with_seed(fastrand::u64(..));
    balance::pick(endpoints, was_tried, Instant::now(), &mut rng).cloned()
}

/// One attempt, and what it teaches about the endpoint.
async fn try_once(
    shared: &Shared,
    target: &Target<'_>,
    head: &Parts,
    body: Body,
    payload: &Payload,
    endpoint: &Arc<Endpoint>,
) -> Outcome {
    let started = Instant::now();
    let in_flight = InFlight::begin(endpoint.clone());
    let result = exchange(shared, target, head, body, payload, endpoint).await;
    let now = Instant::now();
    let elapsed = now.saturating_duration_since(started);
    let state = endpoint.state();
    match result {
        Ok((response, stream, took)) => {
            let sent = Sent { response, endpoint: endpoint.clone(), in_flight, stream };
            let Some(reason) = reported_failure(&sent.response) else {
                // Without connecting: a first handshake says nothing about the next request.
                note(shared, endpoint, state.succeeded(took, now));
                return Outcome::Done(sent);
            };
            note(shared, endpoint, state.failed(elapsed, true, now));
            Outcome::Retry(reason, Ok(sent))
        }
        Err(error) => {
            if let Some(client) = payload.client_error(shared.config.timeouts.idle) {
                return Outcome::Fail(client);
            }
            tracing::debug!(%error, workload = %endpoint.workload, "attempt failed");
            note(shared, endpoint, state.failed(elapsed, error.blames_connection(), now));
            match error.delivery() {
                Delivery::Undelivered => Outcome::Retry(RetryReason::Undelivered, Err(error)),
                Delivery::Unknown if error.blames_connection() => {
                    Outcome::Retry(RetryReason::Reset, Err(error))
                }
                Delivery::Unknown => Outcome::Fail(error),
            }
        }
    }
}

/// What the inbound sidecar says of its application, if that is a failure to repeat elsewhere. The
/// header is believed because it comes over mutual TLS from the identity registered, which strips
/// it from what its application sends.
fn reported_failure(response: &Response<Incoming>) -> Option<RetryReason> {
    if response.headers().get(&headers::DELIVERED).is_some_and(|value| value == "no") {
        return Some(RetryReason::Undelivered);
    }
    let reason = Reason::parse(response.headers().get(&headers::REASON)?.as_bytes())?;
    (reason == Reason::AppReset).then_some(RetryReason::AppReset)
}

fn note(shared: &Shared, endpoint: &Endpoint, transition: Transition) {
    match transition {
        Transition::None => {}
        Transition::Opened => {
            tracing::info!(workload = %endpoint.workload, address = %endpoint.address, "endpoint ejected");
            shared.metrics.breaker_transition("open");
        }
        Transition::Closed => shared.metrics.breaker_transition("closed"),
    }
}

/// Sends on a connection of the endpoint and waits for the response head.
async fn exchange(
    shared: &Shared,
    target: &Target<'_>,
    head: &Parts,
    body: Body,
    payload: &Payload,
    endpoint: &Endpoint,
) -> Result<(Response<Incoming>, StreamGuard, Duration), ProxyError> {
    let mut request = Request::from_parts(head.clone(), body);
    loop {
        let queued = Instant::now();
        let reuse = Reuse::of(headers::repeatable(&request));
        let stream = endpoint.acquire(&shared.connector, &shared.limits, reuse).await?;
        target.edge.queue.observe(seconds(queued.elapsed()));
        let was_used = stream.connection().mark_used();
        let mut sender = stream.connection().sender();
        let sent = Instant::now();
        let limit = shared.config.timeouts.request;
        let answer = tokio::select! {
            answer = sender.try_send_request(request) => answer,
            () = payload.overdue(limit) => return Err(ProxyError::RequestTimeout(limit)),
        };
        let mut failed = match answer {
            Ok(response) => return Ok((response, stream, sent.elapsed())),
            Err(failed) => failed,
        };
        let address = endpoint.address;
        // One stream's end is no reason to give up the connection for the others.
        let stream_only = cause::<h2::Error>(failed.error()).is_some_and(h2::Error::is_reset);
        if !stream_only {
            stream.connection().close();
        }
        match failed.take_message() {
            // A connection that had grown stale: the endpoint itself has not been tried yet.
            Some(unsent) if was_used => request = unsent,
            Some(_) if certificate_refused(failed.error()) => {
                return Err(ProxyError::CertificateRefused(address));
            }
            Some(_) => return Err(ProxyError::Unsent(address)),
            None if certificate_refused(failed.error()) => {
                return Err(ProxyError::CertificateRefused(address));
            }
            None if pool::undelivered(failed.error()) => {
                return Err(ProxyError::Refused { address, source: failed.into_error() });
            }
            None => return Err(ProxyError::Reset { address, stream_only, source: failed.into_error() }),
        }
    }
}

/// Whether the peer refused our certificate. In TLS 1.3 its verdict arrives after our handshake is
/// done, as an alert before any application data.
fn certificate_refused(error: &hyper::Error) -> bool {
    let Some(rustls::Error::AlertReceived(alert)) = cause::<rustls::Error>(error) else { return false };
    matches!(
        alert,
        AlertDescription::BadCertificate
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::CertificateRevoked
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::DecryptError
            | AlertDescription::CertificateRequired
    )
}
