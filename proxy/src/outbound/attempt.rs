//! One attempt of a call: a connection to the endpoint's sidecar, the request, the response head, and
//! what that teaches about the endpoint.

use std::time::{Duration, Instant, SystemTime};

use http::header::RETRY_AFTER;
use http::{HeaderMap, HeaderValue, Request, Response};

use super::call::Call;
use super::retry::Sent;
use super::watch::Watch;
use crate::balance::FailureKind;
use crate::error::{Delivery, ProxyError};
use crate::http::body::Body;
use crate::http::headers;
use crate::http::incoming::Incoming;
use crate::policy::backoff::{self, Asked};
use crate::policy::classify::classify;
use crate::policy::deadline;
use crate::pool;
use crate::pool::connector::Reuse;
use crate::pool::h2::StreamGuard;
use crate::pool::mesh::Endpoint;
use crate::reason::Reason;
use crate::telemetry::metrics::{RetryReason, seconds};

/// How an attempt ended.
pub enum Outcome {
    /// This is the answer.
    Done(Sent),
    /// Another attempt may be had; else this is the answer.
    Again(Wish),
    /// There is no use in another.
    Fail(ProxyError),
}

/// A failed attempt that calls for another.
pub struct Wish {
    /// Why.
    pub reason: RetryReason,
    /// Whether the request may be repeated although it may have had an effect.
    pub repeatable: bool,
    /// What the server says about asking again.
    pub asked: Option<Asked>,
    /// The answer if there is no other attempt.
    pub result: Result<Sent, ProxyError>,
}

/// Makes one attempt, and teaches the balancer how it went.
///
/// Cancel safety: the stream is reset, and nothing is learned.
pub async fn run(call: &Call<'_>, mut watch: Watch, body: Body, number: u32) -> Outcome {
    match exchange(call, body, &mut watch, number).await {
        Ok((response, stream, took)) => answered(call, Sent { response, watch, stream }, took),
        Err(error) => {
            if let Some(client) = call.payload.client_error(call.policy.stream_idle) {
                return Outcome::Fail(client);
            }
            tracing::debug!(%error, workload = %watch.endpoint().workload, "attempt failed");
            match blame(call, &error) {
                Some(kind) => watch.failed(kind),
                None => drop(watch),
            }
            let reason = match error.delivery() {
                Delivery::Undelivered => RetryReason::Undelivered,
                Delivery::Unknown if matches!(error, ProxyError::Reset { .. }) => RetryReason::Reset,
                Delivery::Unknown if matches!(error, ProxyError::TryTimeout { .. }) => {
                    RetryReason::TryTimeout
                }
                Delivery::Unknown => return Outcome::Fail(error),
            };
            let repeatable = call.terms.repeatable;
            Outcome::Again(Wish { reason, repeatable, asked: None, result: Err(error) })
        }
    }
}

/// What an error says against the endpoint.
fn blame(call: &Call<'_>, error: &ProxyError) -> Option<FailureKind> {
    match error {
        _ if error.blames_connection() => Some(FailureKind::Connection),
        ProxyError::TryTimeout { .. } | ProxyError::RequestTimeout(_) => Some(FailureKind::Timeout),
        ProxyError::DeadlineExceeded if call.terms.deadline_by_policy => Some(FailureKind::Timeout),
        ProxyError::Reset { .. } | ProxyError::Refused { .. } => Some(FailureKind::Status),
        // Our own limits, and the client's doing.
        _ => None,
    }
}

/// Judges a response by its head.
fn answered(call: &Call<'_>, mut sent: Sent, took: Duration) -> Outcome {
    let (status, map) = (sent.response.status(), sent.response.headers());
    let asked = asked(map);
    // Believed because it comes over mutual TLS from the identity registered, which strips it from what
    // its application sends.
    if let Some(reason) = map.get(&headers::REASON).and_then(|reason| Reason::parse(reason.as_bytes())) {
        let delivered = map.get(&headers::DELIVERED).is_none_or(|delivered| delivered != "no");
        return reported(call, sent, (reason, delivered), asked);
    }
    let code = headers::grpc_status(map).filter(|_| call.terms.grpc);
    let again = match code {
        Some(code) if call.policy.retry_on.grpc(code) => Some(RetryReason::GrpcStatus),
        _ if call.policy.retry_on.status(status) => Some(RetryReason::Status),
        _ => None,
    };
    if call.policy.hedging.is_some() {
        call.destination.latencies().observe(took, Instant::now());
    }
    // Without connecting: a first handshake says nothing about the next request.
    sent.watch.answered(classify(status, code, None), took, asked);
    match again {
        None => Outcome::Done(sent),
        Some(reason) => {
            // A call that ends in its head has not been answered with any message: the policy that
            // names the code says that it may be made again.
            let repeatable = call.terms.repeatable || reason == RetryReason::GrpcStatus;
            Outcome::Again(Wish { reason, repeatable, asked, result: Ok(sent) })
        }
    }
}

/// What the server says about asking again.
fn asked(map: &HeaderMap) -> Option<Asked> {
    if let Some(pushback) = map.get("grpc-retry-pushback-ms") {
        return Some(backoff::parse_pushback(pushback.as_bytes()));
    }
    let wait = map.get(RETRY_AFTER)?;
    backoff::parse_retry_after(wait.as_bytes(), SystemTime::now()).map(Asked::After)
}

/// Judges what the inbound sidecar itself says.
fn reported(
    call: &Call<'_>,
    mut sent: Sent,
    (reason, delivered): (Reason, bool),
    asked: Option<Asked>,
) -> Outcome {
    let elapsed = sent.watch.elapsed();
    match reason {
        // It cannot reach its application: as good as gone.
        Reason::AppUnreachable | Reason::AppReset | Reason::NotServed => {
            sent.watch.failed(FailureKind::Connection);
        }
        Reason::AppTimeout => sent.watch.failed(FailureKind::Timeout),
        other => {
            let class = classify(sent.response.status(), None, Some(other));
            sent.watch.answered(class, elapsed, asked);
        }
    }
    let why = match reason {
        _ if !delivered => RetryReason::Undelivered,
        Reason::AppReset => RetryReason::AppReset,
        _ => return Outcome::Done(sent),
    };
    let repeatable = call.terms.repeatable;
    Outcome::Again(Wish { reason: why, repeatable, asked, result: Ok(sent) })
}

/// Sends on a connection of the endpoint and waits for the response head.
async fn exchange(
    call: &Call<'_>,
    body: Body,
    watch: &mut Watch,
    number: u32,
) -> Result<(Response<Incoming>, StreamGuard, Duration), ProxyError> {
    let started = Instant::now();
    let mut request = request(call, body, number, started);
    let mut again = false;
    loop {
        let stream = match connection(call, watch.endpoint(), started).await {
            Err(ProxyError::ConnectionLimit { limit }) => {
                // All connections are to other endpoints: one of those may have room.
                *watch = call.pick_with_room().ok_or(ProxyError::ConnectionLimit { limit })?;
                connection(call, watch.endpoint(), started).await?
            }
            other => other?,
        };
        let endpoint = watch.endpoint().as_ref();
        let was_used = stream.connection().mark_used();
        let sent = Instant::now();
        let answer = tokio::select! {
            answer = stream.connection().sender().send(request, &call.shared.tasks) => answer,
            error = too_late(call, started, endpoint) => {
                stream.suspect();
                return Err(error);
            }
        };
        let failed = match answer {
            Ok(response) => return Ok((response, stream, sent.elapsed())),
            Err(failed) => failed,
        };
        let address = endpoint.address;
        // One stream's end is no reason to give up the connection for the others.
        let stream_only = failed.error.is_reset();
        if !stream_only {
            stream.connection().close();
        }
        match failed.unsent {
            _ if stream.connection().certificate_refused() => {
                return Err(ProxyError::CertificateRefused(address));
            }
            // A connection that had grown stale: the endpoint itself has not been tried yet.
            Some(unsent) if was_used && !again => (request, again) = (unsent, true),
            Some(_) => return Err(ProxyError::Unsent(address)),
            None if pool::undelivered(&failed.error) => {
                return Err(ProxyError::Refused { address, source: failed.error.into() });
            }
            None if failed.never_sent => return Err(ProxyError::Unsent(address)),
            None => return Err(ProxyError::Reset { address, stream_only, source: failed.error.into() }),
        }
    }
}

/// A stream to send on, in time.
async fn connection(
    call: &Call<'_>,
    endpoint: &Endpoint,
    started: Instant,
) -> Result<StreamGuard, ProxyError> {
    let queued = Instant::now();
    let reuse = Reuse::of(call.terms.repeatable);
    let acquiring = endpoint.acquire(&call.shared.connector, &call.settings.limits, reuse);
    let stream = match cutoff(call, started) {
        None => acquiring.await,
        Some((at, _)) => match tokio::time::timeout_at(at.into(), acquiring).await {
            Ok(stream) => stream,
            Err(_) => Err(cut(call, started, endpoint)),
        },
    };
    call.edge.queue.observe(seconds(queued.elapsed()));
    stream
}

/// The request of one attempt: its number where it is not the first, and the time that is left.
fn request(call: &Call<'_>, body: Body, number: u32, now: Instant) -> Request<Body> {
    let mut request = Request::from_parts(call.head.clone(), body);
    let map = request.headers_mut();
    if number > 1 {
        map.insert(headers::ATTEMPT, HeaderValue::from(number));
    }
    if call.terms.under_retry {
        map.insert(headers::UNDER_RETRY, HeaderValue::from_static("yes"));
    }
    if let Some(left) = call.left(now) {
        map.insert(headers::TIMEOUT, headers::once(deadline::format_millis(left)));
        if call.terms.grpc {
            map.insert(headers::GRPC_TIMEOUT, headers::once(deadline::format_grpc(left)));
        }
    } else if call.policy.head.is_none() {
        map.insert(headers::TIMEOUT, HeaderValue::from_static(headers::NO_TIMEOUT));
    }
    request
}

/// Resolves with the error when there has been no response head for too long: the deadline of the
/// request and the time of one attempt run from their own beginnings, the sidecar's own limit, where
/// there is no deadline, from the last byte sent.
async fn too_late(call: &Call<'_>, started: Instant, endpoint: &Endpoint) -> ProxyError {
    let overdue = async {
        match (call.terms.deadline, call.policy.head) {
            (None, Some(limit)) => {
                call.payload.overdue(limit).await;
                ProxyError::RequestTimeout(limit)
            }
            // A deadline takes the place of the limit that is there otherwise.
            (Some(_), _) | (None, None) => std::future::pending().await,
        }
    };
    match cutoff(call, started) {
        None => overdue.await,
        Some((at, _)) => tokio::select! {
            () = tokio::time::sleep_until(at.into()) => cut(call, started, endpoint),
            error = overdue => error,
        },
    }
}

/// When the attempt is cut off, and whether by the deadline of the whole request.
fn cutoff(call: &Call<'_>, started: Instant) -> Option<(Instant, bool)> {
    let tried = call.policy.per_try.map(|limit| (started + limit, false));
    let deadline = call.terms.deadline.map(|deadline| (deadline, true));
    match (tried, deadline) {
        (Some(tried), Some(deadline)) => Some(if deadline.0 <= tried.0 { deadline } else { tried }),
        (tried, deadline) => tried.or(deadline),
    }
}

fn cut(call: &Call<'_>, started: Instant, endpoint: &Endpoint) -> ProxyError {
    match (cutoff(call, started), call.policy.per_try) {
        (Some((_, false)), Some(limit)) => ProxyError::TryTimeout { address: endpoint.address, limit },
        _ => ProxyError::DeadlineExceeded,
    }
}
