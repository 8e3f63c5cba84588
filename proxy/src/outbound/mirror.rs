//! Mirroring: copies of requests whose answers nobody waits for.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;
use http_body_util::BodyExt;
use outrigger_common::name::ServiceName;

use super::call::{Call, Payload, Terms};
use super::policy::CallPolicy;
use super::retry;
use crate::error::ProxyError;
use crate::http::headers;
use crate::shared::Shared;
use crate::telemetry::edge::Edge;

/// Copies under way at once in a sidecar; more are skipped, and counted: a slow mirror must not cost
/// memory.
pub const COPIES: u32 = 256;

/// A copy on its way.
struct Copy {
    service: ServiceName,
    port: u16,
    head: Parts,
    chunks: Vec<Bytes>,
    trailers: Option<HeaderMap>,
    grpc: bool,
}

/// Sends copies of a call that has been answered, or has failed. Its body must have been kept whole:
/// copies of larger ones are skipped.
pub fn send(shared: &Arc<Shared>, mirrors: Vec<(ServiceName, u16)>, call: &Call<'_>) {
    for (service, port) in mirrors {
        let (Some((chunks, trailers)), Some(permit)) = (call.payload.whole(), shared.copies.try_acquire())
        else {
            call.edge.mirrored("skipped");
            continue;
        };
        let head = call.head.clone();
        let copy = Copy { service, port, head, chunks, trailers, grpc: call.terms.grpc };
        let (shared, edge) = (shared.clone(), call.edge.clone());
        shared.clone().tasks.spawn("mirrored request", async move {
            match deliver(&shared, &edge, copy).await {
                Ok(()) => edge.mirrored("answered"),
                Err(error) => {
                    tracing::debug!(%error, "a mirrored request failed");
                    edge.mirrored("failed");
                }
            }
            drop(permit);
        });
    }
}

async fn deliver(shared: &Shared, edge: &Arc<Edge>, mut copy: Copy) -> Result<(), ProxyError> {
    copy.head.headers.remove(&headers::ATTEMPT);
    let snapshot = shared.directory.load_full();
    let service = shared.directory.find(&snapshot, &copy.service, shared.config.timeouts.discovery).await?;
    let Some(port) = service.port(copy.port) else {
        return Err(ProxyError::UnknownPort { service: copy.service.to_string(), port: copy.port });
    };
    let limit = shared.config.timeouts.request;
    let policy = CallPolicy::once(&shared.config);
    let terms = Terms {
        repeatable: false,
        under_retry: true,
        grpc: copy.grpc,
        deadline: Instant::now().checked_add(limit),
        deadline_by_policy: false,
        hash: None,
    };
    let Some(_place) = port.destination.in_flight.try_acquire() else {
        let limit = port.destination.in_flight.limit();
        return Err(ProxyError::InFlightLimit { service: copy.service.to_string(), limit });
    };
    let payload = Payload::Kept(copy.chunks, copy.trailers);
    let call = Call {
        shared,
        service: &service.name,
        port: copy.port,
        found: None,
        edge,
        destination: &port.destination,
        settings: port.destination.settings(),
        policy: &policy,
        head: &copy.head,
        payload: &payload,
        terms,
        workload: None,
    };
    let mut sent = retry::send(&call).await?;
    drop(payload);
    // Read to its end, so that the stream is not reset under the mirror's hands; frame by frame, so
    // that it costs no memory; and not for ever.
    let reading = async { while let Some(Ok(_)) = sent.response.frame().await {} };
    tokio::time::timeout(limit, reading).await.map_err(|_| ProxyError::RequestTimeout(limit))
}
