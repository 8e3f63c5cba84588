//! What is answered without mutual TLS in a strict mesh: declared probes, by the sidecar, with a status
//! and nothing else. Everything else is told why it is refused.

use std::sync::Arc;
use std::time::Instant;

use http::header::{CONNECTION, HOST};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use super::served::ServedPort;
use crate::control::health::probe::{self, Failure};
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::headers;
use crate::reason::Reason;
use crate::respond;
use crate::shared::Shared;
use crate::telemetry::edge::Edge;
use crate::telemetry::environment::Sampling;
use crate::telemetry::record::RequestRecord;
use crate::telemetry::trace::TraceContext;

/// Probes of one port under way at once: whoever reaches the port may ask, and each is a request of the
/// application's.
pub const AT_ONCE: u32 = 8;

/// Answers a request that came without mutual TLS: the probe it is, or 403.
pub async fn answer(
    shared: &Shared,
    port: Option<&Arc<ServedPort>>,
    edge: Arc<Edge>,
    request: Request<Incoming>,
) -> Response<Body> {
    // Nobody vouches for what it says of a trace.
    let trace = TraceContext::from_headers(&http::HeaderMap::new(), Sampling::parent_based(0.0));
    let spoken = headers::spoken(request.headers(), request.version());
    let mut record = RequestRecord::start(edge, Instant::now(), spoken, trace);
    let (head, body) = request.into_parts();
    let asked = port.and_then(|port| Some((port, asked(&head, body.is_end_stream(), &port.probes)?)));
    let Some((port, path)) = asked else {
        return respond::with_error(&ProxyError::PlaintextRefused, record);
    };
    let Some(_permit) = port.probing.try_acquire() else {
        return respond::with_error(&ProxyError::Overloaded("that many probes are under way"), record);
    };
    let (status, reason) = ask(shared, port, path).await;
    record.responded(status);
    if let Some(reason) = reason {
        record.explained(reason);
    }
    record.completed();
    drop(record);
    let mut response = Response::new(Body::Empty);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("close"));
    if let Some(reason) = reason {
        headers.insert(headers::REASON, HeaderValue::from_static(reason.as_str()));
    }
    response
}

/// The declared probe that a request is, byte for byte: GET of HTTP/1, origin-form, this path and no
/// query, no body.
fn asked<'p>(head: &Parts, empty: bool, probes: &'p [PathAndQuery]) -> Option<&'p PathAndQuery> {
    let http1 = matches!(head.version, Version::HTTP_10 | Version::HTTP_11);
    let origin_form = head.uri.scheme().is_none() && head.uri.authority().is_none();
    let one_host = head.headers.get_all(HOST).iter().count() <= 1;
    if !(http1 && origin_form && one_host && empty && head.method == Method::GET) {
        return None;
    }
    let path = head.uri.path_and_query()?.as_str();
    probes.iter().find(|probe| probe.as_str() == path)
}

/// What the application says. Of the request that came not a byte goes to it.
async fn ask(shared: &Shared, port: &ServedPort, path: &PathAndQuery) -> (StatusCode, Option<Reason>) {
    let how = (shared.config.health.timeout, &shared.tasks);
    match probe::status(port.app.address(), path, port.protocol, how).await {
        Ok(status) => (status, None),
        Err(Failure::Timeout(_)) => (StatusCode::GATEWAY_TIMEOUT, Some(Reason::AppTimeout)),
        Err(Failure::Refused | Failure::Connect(_)) => {
            (StatusCode::SERVICE_UNAVAILABLE, Some(Reason::AppUnreachable))
        }
        Err(_) => (StatusCode::BAD_GATEWAY, Some(Reason::AppReset)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(method: &str, target: &str, version: Version) -> Parts {
        let request = Request::builder().method(method).uri(target).version(version);
        request.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_the_declared_get_is_a_probe() {
        let probes = ["/healthz", "/a%20b"].map(PathAndQuery::from_static);
        let is = |method: &str, target: &str, version: Version, empty: bool| {
            asked(&head(method, target, version), empty, &probes).map(PathAndQuery::as_str)
        };
        let v11 = Version::HTTP_11;
        assert_eq!(is("GET", "/healthz", v11, true), Some("/healthz"));
        assert_eq!(is("GET", "/healthz", Version::HTTP_10, true), Some("/healthz"));
        assert_eq!(is("GET", "/a%20b", v11, true), Some("/a%20b"));
        for target in [
            "/",
            "/healthz/",
            "//healthz",
            "/healthz?",
            "/healthz?x",
            "/healthz/../x",
            "/./healthz",
            "/x/../healthz",
            "/%68ealthz",
            "/Healthz",
            "/healthz;x",
            "/healthz%00",
            "http://orders.shop/healthz",
            "/a%2520b",
        ] {
            assert_eq!(is("GET", target, v11, true), None, "{target}");
        }
        for method in ["HEAD", "POST", "OPTIONS", "get", "PUT", "TRACE"] {
            assert_eq!(is(method, "/healthz", v11, true), None, "{method}");
        }
        assert_eq!(is("GET", "/healthz", v11, false), None, "with a body");
        assert_eq!(is("GET", "/healthz", Version::HTTP_2, true), None);
        let mut two = head("GET", "/healthz", v11);
        for host in ["a", "b"] {
            two.headers.append(HOST, HeaderValue::from_static(host));
        }
        assert_eq!(asked(&two, true, &probes), None, "two hosts");
    }
}
