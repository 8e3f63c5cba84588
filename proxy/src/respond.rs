//! The only place that turns an error into a response of the mesh.

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use outrigger_common::telemetry::chain;

use crate::error::{Delivery, ProxyError};
use crate::http::body::Body;
use crate::http::headers::{DELIVERED, REASON};
use crate::telemetry::metrics::Direction;
use crate::telemetry::record::RequestRecord;

/// Answers with the error's status and reason, and finishes the record. The inbound side also says
/// whether the application may have seen the request, for the caller's sidecar to decide.
pub fn with_error(error: &ProxyError, mut record: RequestRecord) -> Response<Body> {
    let (status, reason) = (error.status(), error.reason());
    let text = format!("outrigger: {}\n", chain(error));
    tracing::debug!(
        status = status.as_u16(),
        reason = reason.as_str(),
        error = text.trim_end(),
        "answered by the mesh"
    );
    record.responded(status);
    record.explained(reason);
    record.completed();
    let inbound = record.edge().direction() == Direction::Inbound;
    drop(record);
    let mut response = Response::new(Body::Full(Some(Bytes::from(text))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(REASON, HeaderValue::from_static(reason.as_str()));
    if inbound && error.delivery() == Delivery::Undelivered {
        headers.insert(DELIVERED, HeaderValue::from_static("no"));
    }
    response
}
