//! Headers that end at a hop, the mesh's own headers, and where a request wants to go.

use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, HOST, TE, TRAILER, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};

use crate::error::ProxyError;
use crate::telemetry::metrics::WireProtocol;
use crate::telemetry::record::Spoken;

/// Why the mesh answered; on every response the mesh itself made.
pub const REASON: HeaderName = HeaderName::from_static("x-mesh-reason");
/// `no` on a response of the inbound sidecar when no byte of the request reached the application.
pub const DELIVERED: HeaderName = HeaderName::from_static("x-mesh-delivered");
/// Time in the application in microseconds, from the inbound sidecar.
pub const PROCESSING: HeaderName = HeaderName::from_static("x-mesh-processing-us");
/// The caller's service, from the outbound sidecar.
pub const SOURCE: HeaderName = HeaderName::from_static("x-mesh-source");
/// HTTP version the client used, from the outbound sidecar: `1.1` or `2`.
pub const VERSION: HeaderName = HeaderName::from_static("x-mesh-http-version");
/// Which attempt of a request this is, from the outbound sidecar: 1 and up.
pub const ATTEMPT: HeaderName = HeaderName::from_static("x-mesh-attempt");
/// `yes` on a request made for one that is itself a retry, at whatever distance, from the outbound
/// sidecar: only one layer of a chain of calls retries.
pub const UNDER_RETRY: HeaderName = HeaderName::from_static("x-mesh-under-retry");
/// `no` on a request that looks repeatable and is not, from the outbound sidecar.
pub const REPEATABLE: HeaderName = HeaderName::from_static("x-mesh-repeatable");
/// Milliseconds left of the request's deadline, from the outbound sidecar.
pub const TIMEOUT: HeaderName = HeaderName::from_static("x-mesh-timeout-ms");
/// The same between gRPC peers (gRPC over HTTP/2, "Requests").
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// The protocol of an upgrade between the sidecars: asked for in a request, agreed on in a response.
pub const MESH_UPGRADE: HeaderName = HeaderName::from_static("x-mesh-upgrade");
/// In [`TIMEOUT`]: there is no limit at all, not even the server's sidecar's own.
pub const NO_TIMEOUT: &str = "none";
/// The caller's identity, told to the application.
pub const CLIENT_CERT: HeaderName = HeaderName::from_static("x-forwarded-client-cert");
/// Kept if the client sent one, else the trace's id.
pub const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The client's promise that a repeated request takes effect once (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

const MESH_PREFIX: &str = "x-mesh-";

/// A value that will not come again, so that HPACK does not put it in the place of those that will (RFC 7541
/// section 7.1.3: encoders choose; the library chooses by this flag). It also costs a third of the work.
pub fn once(mut value: HeaderValue) -> HeaderValue {
    value.set_sensitive(true);
    value
}

/// Removes every `x-mesh-*` header: apps must not speak for the mesh.
pub fn strip_mesh(headers: &mut HeaderMap) {
    strip(headers, |name| spelled_like(name, MESH_PREFIX.as_bytes()) || is_false_frame(name));
}

/// Removes what only the mesh may claim, the caller's identity included. Trailers are no better than
/// heads, and applications behind CGI-like interfaces read `_` as `-`.
pub fn strip_claims(headers: &mut HeaderMap) {
    strip(headers, is_claim);
}

/// Whether only the mesh may say what this header says.
pub fn is_claim(name: &str) -> bool {
    let is = |other: &str| name.len() == other.len() && spelled_like(name, other.as_bytes());
    spelled_like(name, MESH_PREFIX.as_bytes()) || is("x-forwarded-client-cert") || is_false_frame(name)
}

/// Whether it is the name of a header that frames a message with `_` for `-`.
fn is_false_frame(name: &str) -> bool {
    matches!(name, "content_length" | "transfer_encoding")
}

/// Removes those that `claims` names: one look at each where there is none, which is the common case, and two
/// where there are some, however many.
fn strip(headers: &mut HeaderMap, claims: impl Fn(&str) -> bool) {
    if headers.keys().any(|name| claims(name.as_str())) {
        let names: Vec<_> = headers.keys().filter(|name| claims(name.as_str())).cloned().collect();
        for name in names {
            headers.remove(name);
        }
    }
}

/// Whether `name` begins with `prefix`, `_` counting as `-`.
fn spelled_like(name: &str, prefix: &[u8]) -> bool {
    let name = name.as_bytes();
    name.len() >= prefix.len()
        && name
            .iter()
            .zip(prefix)
            .all(|(given, wanted)| given == wanted || (*given == b'_' && *wanted == b'-'))
}

/// Removes what belongs to one connection (RFC 9110 section 7.6.1), keeping `te: trailers`, which
/// HTTP/2 allows (RFC 9113 section 8.2.2) and gRPC needs.
pub fn strip_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let listed: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|name| HeaderName::try_from(name.trim()).ok())
            // Listing these must not let a client remove what the message needs.
            .filter(|name| name != HOST && name != TE && !name.as_str().starts_with(MESH_PREFIX))
            .collect();
        for name in listed {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    // One look at the names, for most messages have none of these.
    strip(headers, is_hop_by_hop);
    if headers.contains_key(TE) {
        let asks_for_trailers = lists(headers, &TE, "trailers");
        headers.remove(TE);
        if asks_for_trailers {
            headers.insert(TE, HeaderValue::from_static("trailers"));
        }
    }
}

/// Whether a header belongs to one connection, `Connection` itself and `TE` aside.
fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "keep-alive"
            | "proxy-connection"
            | "transfer-encoding"
            | "upgrade"
            | "proxy-authenticate"
            | "proxy-authorization"
    )
}

/// Whether a list of tokens, such as `Connection`, has this one.
pub fn lists(map: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    map.get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|found| found.trim().eq_ignore_ascii_case(token))
}

/// Removes `Expect`: hyper has answered `100 Continue` by the time the body is forwarded.
pub fn strip_expect(headers: &mut HeaderMap) {
    headers.remove(EXPECT);
}

/// How the client spoke: in `version` to its own sidecar.
pub fn spoken(headers: &HeaderMap, version: Version) -> Spoken {
    let grpc =
        headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"));
    let http2 = version == Version::HTTP_2;
    let protocol = match (grpc, http2) {
        (true, _) => WireProtocol::Grpc,
        (false, true) => WireProtocol::H2,
        (false, false) => WireProtocol::Http1,
    };
    Spoken { protocol, http2 }
}

/// The gRPC status, where there is one: in the head of a trailers-only response, or in trailers. What
/// is no code is UNKNOWN, as gRPC asks ("Status codes and their use in gRPC").
pub fn grpc_status(headers: &HeaderMap) -> Option<u8> {
    let status = headers.get("grpc-status")?;
    let code = std::str::from_utf8(status.as_bytes()).ok().and_then(|text| text.parse().ok());
    Some(code.filter(|code| *code <= 16).unwrap_or(2))
}

/// The HTTP version the client used towards its own sidecar, as that sidecar says.
pub fn client_version(headers: &HeaderMap) -> Version {
    if headers.get(&VERSION).is_some_and(|version| version == "2") {
        Version::HTTP_2
    } else {
        Version::HTTP_11
    }
}

/// Whether the request may be repeated although it may have had an effect: an idempotent method
/// (RFC 9110 section 9.2.2), or a key by which the application recognises the repetition.
pub fn repeatable(method: &Method, headers: &HeaderMap) -> bool {
    method.is_idempotent() || headers.contains_key(IDEMPOTENCY_KEY)
}

/// The request's target authority: absolute-form and `:authority` win over `Host` (RFC 9112
/// section 3.2.2).
///
/// # Errors
/// What is missing or ambiguous.
pub fn authority(head: &Parts) -> Result<&str, &'static str> {
    if let Some(authority) = head.uri.authority() {
        return if authority.as_str().contains('@') {
            Err("the target must not carry user information")
        } else {
            Ok(authority.as_str())
        };
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    match (hosts.next(), hosts.next()) {
        (Some(host), None) => {
            let host = host.to_str().map_err(|_| "the Host header is not text")?;
            if host.is_empty() {
                Err("the Host header is empty; name a service, such as orders.shop")
            } else {
                Ok(host)
            }
        }
        (None, _) => Err("the request names no host; send a Host header, such as orders.shop"),
        (Some(_), Some(_)) => Err("the request has more than one Host header"),
    }
}

/// Whether all who read this request agree on where it goes and where it ends: what the HTTP library
/// accepts and others may read otherwise is refused.
///
/// # Errors
/// A transfer coding other than `chunked` alone (the library looks at the last one, and the others would
/// be lost, RFC 9112 section 6.1), more than one `Host`, none in HTTP/1.1 (section 3.2), one with user
/// information, one that differs from `:authority` (RFC 9113 section 8.3.1); in HTTP/1.1 a target that is
/// neither origin-form nor a URI of `http` (RFC 9112 section 3.2).
pub fn unambiguous(head: &Parts) -> Result<(), ProxyError> {
    let refuse = |why| Err(ProxyError::BadRequest(why));
    let mut codings = head.headers.get_all(TRANSFER_ENCODING).iter();
    if let Some(coding) = codings.next() {
        let chunked = coding.to_str().is_ok_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"));
        if !chunked || codings.next().is_some() {
            return Err(ProxyError::UnknownCoding);
        }
    }
    let mut hosts = head.headers.get_all(HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return refuse("the request has more than one Host header");
    }
    if host.is_none() && head.version == Version::HTTP_11 {
        return refuse("the request names no host; send a Host header, such as orders.shop");
    }
    if host.is_some_and(|host| host.as_bytes().contains(&b'@')) {
        return refuse("the Host header must not carry user information");
    }
    let (authority, path) = (head.uri.authority(), head.uri.path());
    if head.version == Version::HTTP_2 {
        let other = |host: &HeaderValue| {
            authority.is_some_and(|own| !host.as_bytes().eq_ignore_ascii_case(own.as_str().as_bytes()))
        };
        return if host.is_some_and(other) {
            refuse("the Host header differs from :authority")
        } else {
            Ok(())
        };
    }
    match head.uri.scheme() {
        Some(scheme) if *scheme != Scheme::HTTP => refuse("only targets of http:// are carried"),
        None if authority.is_some() && head.method != Method::CONNECT => {
            refuse("the target is neither a path nor a whole URI")
        }
        _ if path == "*" && head.method != Method::OPTIONS => refuse("only OPTIONS has the target *"),
        _ => Ok(()),
    }
}

/// Writes `Content-Length` in its one form, without leading zeros: some read those as octal. The HTTP
/// library has checked that it is a number.
pub fn settle_length(headers: &mut HeaderMap) {
    let Some(length) = headers.get(CONTENT_LENGTH).filter(|length| length.as_bytes().starts_with(b"0"))
    else {
        return;
    };
    let number: Option<u64> = length.to_str().ok().and_then(|length| length.parse().ok());
    if let Some(number) = number {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(number));
    }
}

/// Removes from trailers what they must not say: what frames or routes a message, and what belongs to a
/// connection (RFC 9110 section 6.5.1).
pub fn strip_trailers(trailers: &mut HeaderMap) {
    strip_hop_by_hop(trailers);
    for name in [CONTENT_LENGTH, HOST, TE, TRAILER, EXPECT] {
        trailers.remove(name);
    }
    strip_claims(trailers);
}

/// Moves the target's authority into the URI, where HTTP/2 wants it, and removes `Host`.
///
/// # Errors
/// What is missing, ambiguous or malformed.
pub fn settle_authority(head: &mut Parts) -> Result<(), &'static str> {
    if head.uri.authority().is_none() {
        let host = head.headers.get(HOST).map(HeaderValue::as_bytes).unwrap_or_default();
        let authority = Authority::try_from(host).map_err(|_| "the Host header is not an authority")?;
        let mut uri = std::mem::take(&mut head.uri).into_parts();
        uri.authority = Some(authority);
        uri.scheme = Some(Scheme::HTTP);
        uri.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        head.uri = Uri::from_parts(uri).map_err(|_| "the request target is malformed")?;
    }
    head.headers.remove(HOST);
    Ok(())
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    #[test]
    fn hop_by_hop_headers_end_here() {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("connection", "close, X-Secret , host,x-mesh-source"),
            ("x-secret", "1"),
            ("x-kept", "1"),
            ("host", "orders"),
            ("te", "gzip, trailers"),
            ("keep-alive", "5"),
            ("upgrade", "h2c"),
            ("transfer-encoding", "chunked"),
            ("proxy-connection", "close"),
            ("x-mesh-source", "a.b"),
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        strip_hop_by_hop(&mut headers);
        let mut left: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        left.sort_unstable();
        assert_eq!(left, ["host", "te", "x-kept", "x-mesh-source"]);
        assert_eq!(headers["te"], "trailers");
        strip_mesh(&mut headers);
        assert!(!headers.contains_key("x-mesh-source") && headers.contains_key("x-kept"));
    }

    #[test]
    fn claims_are_stripped_however_they_are_spelled() {
        let names = [
            "x-mesh-source",
            "x_mesh_source",
            "x-forwarded-client-cert",
            "x_forwarded-client_cert",
            "x-meshed",
        ];
        let mut headers: HeaderMap = names
            .into_iter()
            .map(|name| (HeaderName::from_static(name), HeaderValue::from_static("1")))
            .collect();
        strip_claims(&mut headers);
        assert_eq!(headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-meshed"]);
    }

    #[test]
    fn the_target_is_never_ambiguous() {
        let request = |uri: &str, hosts: &[&str]| {
            let mut request = Request::builder().uri(uri);
            for host in hosts {
                request = request.header("host", *host);
            }
            request.body(()).unwrap().into_parts().0
        };
        assert_eq!(authority(&request("/x", &["orders.shop:80"])), Ok("orders.shop:80"));
        assert_eq!(authority(&request("http://orders.shop/x", &["other"])), Ok("orders.shop"));
        for (uri, hosts) in
            [("/x", &[] as &[&str]), ("/x", &["a", "b"]), ("/x", &[""]), ("http://user@orders/x", &[])]
        {
            assert!(authority(&request(uri, hosts)).is_err(), "{uri} {hosts:?}");
        }
    }

    #[test]
    fn only_idempotent_and_keyed_requests_repeat() {
        let request = |method: &str| Request::builder().method(method).body(()).unwrap().into_parts().0;
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS", "TRACE"] {
            assert!(repeatable(&request(method).method, &HeaderMap::new()), "{method}");
        }
        for method in ["POST", "PATCH", "CONNECT", "CUSTOM"] {
            assert!(!repeatable(&request(method).method, &HeaderMap::new()), "{method}");
        }
        let mut keyed = request("POST");
        keyed.headers.insert(IDEMPOTENCY_KEY, HeaderValue::from_static("k"));
        assert!(repeatable(&keyed.method, &keyed.headers));
    }
}
