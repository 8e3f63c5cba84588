//! Trace headers: taken from an incoming request, put on the outgoing ones, never read.

use http::{HeaderMap, HeaderName, HeaderValue};

/// W3C trace context and baggage, the single B3 header, and the request id.
const NAMES: [&str; 5] = ["traceparent", "tracestate", "baggage", "b3", "x-request-id"];
/// The several B3 headers.
const PREFIX: &str = "x-b3-";

/// The trace headers of one request.
#[derive(Debug, Clone, Default)]
pub struct TraceHeaders(Vec<(HeaderName, HeaderValue)>);

impl TraceHeaders {
    /// Takes them from a request's headers, repeated ones included.
    pub fn from_headers(headers: &HeaderMap) -> Self {
        let passed_on =
            |name: &HeaderName| NAMES.contains(&name.as_str()) || name.as_str().starts_with(PREFIX);
        let kept = headers.iter().filter(|(name, _)| passed_on(name));
        Self(kept.map(|(name, value)| (name.clone(), value.clone())).collect())
    }

    pub(super) fn copy_to(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.0 {
            headers.append(name, value.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trace_headers_pass_and_nothing_else_does() {
        let mut incoming = HeaderMap::new();
        for name in
            ["traceparent", "tracestate", "baggage", "b3", "x-b3-traceid", "x-request-id", "cookie", "host"]
        {
            incoming.append(name, HeaderValue::from_static("a"));
        }
        incoming.append("tracestate", HeaderValue::from_static("b"));
        let mut outgoing = HeaderMap::new();
        TraceHeaders::from_headers(&incoming).copy_to(&mut outgoing);
        assert_eq!(outgoing.len(), 7);
        assert_eq!(outgoing.get_all("tracestate").iter().count(), 2);
        assert!(!outgoing.contains_key("cookie") && !outgoing.contains_key("host"));
    }
}
