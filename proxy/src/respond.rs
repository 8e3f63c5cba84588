//! The only place that turns an error into a response of the mesh.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};
use outrigger_common::telemetry::chain;

use crate::error::{Delivery, ProxyError};
use crate::http::body::Body;
use crate::http::headers::{DELIVERED, REASON};
use crate::policy::rate;
use crate::telemetry::metrics::Direction;
use crate::telemetry::record::RequestRecord;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");

/// Answers with the error's status and reason, and finishes the record. The inbound side also says
/// whether the application may have seen the request, for the caller's sidecar to decide. Calls of
/// gRPC are answered in a head that is also the trailers (gRPC over HTTP/2, "Trailers-Only").
pub fn with_error(error: &ProxyError, mut record: RequestRecord) -> Response<Body> {
    let (status, reason) = (error.status(), error.reason());
    let text = chain(error);
    tracing::debug!(status = status.as_u16(), reason = reason.as_str(), error = text, "answered by the mesh");
    let mut response = if record.is_grpc() {
        let code = error.grpc_code();
        record.responded(StatusCode::OK);
        record.grpc_code(code);
        trailers_only(code, &text)
    } else {
        record.responded(status);
        plain(status, &text)
    };
    record.explained(reason);
    record.completed();
    if reason.is_shed() {
        record.edge().shed(reason);
    }
    let inbound = record.edge().direction() == Direction::Inbound;
    drop(record);
    let headers = response.headers_mut();
    headers.insert(REASON, HeaderValue::from_static(reason.as_str()));
    if let Some(wait) = error.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(rate::retry_after_seconds(wait)));
    }
    if inbound && error.delivery() == Delivery::Undelivered {
        headers.insert(DELIVERED, HeaderValue::from_static("no"));
    }
    response
}

fn plain(status: StatusCode, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::Full(Some(Bytes::from(format!("outrigger: {text}\n")))));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn trailers_only(code: u8, text: &str) -> Response<Body> {
    let mut response = Response::new(Body::Empty);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(code)));
    if let Ok(message) = HeaderValue::try_from(percent_encoded(&format!("outrigger: {text}"))) {
        headers.insert(GRPC_MESSAGE, message);
    }
    response
}

/// As `grpc-message` wants it: printable ASCII but `%` as it is, all else percent-encoded (gRPC over
/// HTTP/2, "Responses").
fn percent_encoded(text: &str) -> String {
    use std::fmt::Write;
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'$' | b'&'..=b'~' => encoded.push(char::from(byte)),
            // Writing to a string cannot fail.
            other => _ = write!(encoded, "%{other:02X}"),
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_encoded_as_grpc_asks() {
        assert_eq!(percent_encoded("100% of caf\u{e9}\n"), "100%25 of caf%C3%A9%0A");
    }
}
