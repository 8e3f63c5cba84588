//! Upgrades in the forms of HTTP/1.1 (RFC 9110 section 7.8) and of HTTP/2 (RFC 8441): who asks for one,
//! and what agreeing to it looks like. What carries the bytes afterwards is [`super::tunnel`].

use aws_lc_rs::digest;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{
    CONNECTION, CONTENT_LENGTH, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, TRANSFER_ENCODING, UPGRADE,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, request};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::ext::Protocol;
use hyper::upgrade::OnUpgrade;

use super::headers;

/// The protocol whose handshake differs between HTTP/1.1 and HTTP/2.
const WEBSOCKET: &str = "websocket";
/// What a server appends to the key (RFC 6455 section 1.3).
const ACCEPT: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// An upgrade that a client asks for.
#[derive(Debug)]
pub struct Asked {
    /// The protocol.
    pub token: HeaderValue,
    /// The client's connection, or its stream, once it is answered so.
    pub on: OnUpgrade,
    /// Asked by extended CONNECT, else by `Upgrade`.
    pub extended: bool,
}

/// Takes the wish for an upgrade out of a request. An extended CONNECT becomes a GET, which it stands for
/// (RFC 8441 section 5): what matches requests need not know of it.
///
/// Not taken: upgrades of requests with a body, which may be ignored (RFC 9110 section 7.8), and those to
/// HTTP/2 (`h2c`), which no longer exist (RFC 9113 section 3.1).
pub fn take(request: &mut Request<Incoming>) -> Option<Asked> {
    if request.method() == Method::CONNECT {
        // One of HTTP itself is left where it is, and refused with the method.
        let protocol =
            request.extensions().get::<Protocol>().filter(|protocol| !is_http(protocol.as_str()))?;
        let token = HeaderValue::from_str(protocol.as_str()).ok()?;
        request.extensions_mut().remove::<Protocol>();
        let on = hyper::upgrade::on(&mut *request);
        *request.method_mut() = Method::GET;
        return Some(Asked { token, on, extended: true });
    }
    if request.version() != Version::HTTP_11 || !request.body().is_end_stream() {
        return None;
    }
    let token = token(request.headers())?;
    Some(Asked { token, on: hyper::upgrade::on(request), extended: false })
}

/// The protocol that `Upgrade` names, the first of several that can be carried.
fn token(map: &HeaderMap) -> Option<HeaderValue> {
    if !headers::lists(map, &CONNECTION, "upgrade") {
        return None;
    }
    let wanted = map
        .get_all(UPGRADE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .find(|token| !token.is_empty() && !is_http(token))?;
    if wanted.eq_ignore_ascii_case(WEBSOCKET) {
        return Some(HeaderValue::from_static(WEBSOCKET));
    }
    HeaderValue::from_str(wanted).ok()
}

/// Whether a token means HTTP itself: what is said in it must be looked at as any request.
pub fn is_http(token: &str) -> bool {
    token.eq_ignore_ascii_case("h2c")
        || token.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("http/"))
}

/// Agrees to an upgrade, in the client's own form.
pub fn agree<B>(asked: &Asked, agreed: &HeaderValue, response: &mut Response<B>) {
    let map = response.headers_mut();
    map.remove(CONTENT_LENGTH);
    map.remove(TRANSFER_ENCODING);
    if asked.extended {
        map.remove(SEC_WEBSOCKET_ACCEPT);
        *response.status_mut() = StatusCode::OK;
    } else {
        map.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        map.insert(UPGRADE, agreed.clone());
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    }
}

/// What a WebSocket handshake needs beyond the upgrade itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Handshake {
    /// Nothing: client and application do it themselves.
    Own,
    /// The application speaks HTTP/2 and knows no key: its client gets this in answer.
    Answer(HeaderValue),
    /// The client sent no key: the application got one of ours, and must answer so.
    Expect(HeaderValue),
}

/// Asks an application for an upgrade over HTTP/1.1; `key` is 16 random bytes.
pub fn ask_http1(head: &mut request::Parts, token: &HeaderValue, key: [u8; 16]) -> Handshake {
    let map = &mut head.headers;
    map.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    map.insert(UPGRADE, token.clone());
    if token != WEBSOCKET || map.contains_key(SEC_WEBSOCKET_KEY) {
        return Handshake::Own;
    }
    match (HeaderValue::try_from(STANDARD.encode(key)), accept(STANDARD.encode(key).as_bytes())) {
        (Ok(key), Some(answer)) => {
            map.insert(SEC_WEBSOCKET_KEY, key);
            Handshake::Expect(answer)
        }
        _ => Handshake::Own,
    }
}

/// Asks an application for an upgrade over HTTP/2, by extended CONNECT.
pub fn ask_http2(head: &mut request::Parts, token: &HeaderValue) -> Handshake {
    head.method = Method::CONNECT;
    if let Ok(token) = token.to_str() {
        head.extensions.insert(h2::ext::Protocol::from(token));
    }
    let key = head.headers.remove(SEC_WEBSOCKET_KEY);
    match key.filter(|_| token == WEBSOCKET).and_then(|key| accept(key.as_bytes())) {
        Some(answer) => Handshake::Answer(answer),
        None => Handshake::Own,
    }
}

impl Handshake {
    /// Whether the application's answer is one, made fit for the client.
    pub fn settle(&self, map: &mut HeaderMap) -> bool {
        match self {
            Self::Own => true,
            Self::Answer(answer) => {
                map.insert(SEC_WEBSOCKET_ACCEPT, answer.clone());
                true
            }
            Self::Expect(answer) => map.remove(SEC_WEBSOCKET_ACCEPT).as_ref() == Some(answer),
        }
    }
}

/// The proof that a server has read the key (RFC 6455 section 4.2.2).
fn accept(key: &[u8]) -> Option<HeaderValue> {
    let text = [key, ACCEPT.as_bytes()].concat();
    let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, &text);
    HeaderValue::try_from(STANDARD.encode(hash.as_ref())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(headers: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, HeaderValue::from_static(value));
        }
        map
    }

    #[test]
    fn an_upgrade_needs_both_headers_and_something_to_upgrade_to() {
        let asked = |headers: &[_]| token(&map(headers)).map(|token| token.to_str().unwrap().to_owned());
        let listed = ("connection", "keep-alive, Upgrade");
        assert_eq!(asked(&[listed, ("upgrade", "WebSocket")]).as_deref(), Some("websocket"));
        assert_eq!(asked(&[listed, ("upgrade", "h2c, IRC/6.9")]).as_deref(), Some("IRC/6.9"));
        for none in [
            &[listed] as &[_],
            &[("upgrade", "websocket")],
            &[("connection", "close"), ("upgrade", "websocket")],
            &[listed, ("upgrade", "h2c")],
            &[listed, ("upgrade", "HTTP/2.0, ")],
        ] {
            assert_eq!(asked(none), None, "{none:?}");
        }
    }

    #[test]
    fn the_proof_is_that_of_the_rfc() {
        // RFC 6455 section 1.3.
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ==").unwrap(), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn a_key_is_made_where_the_application_wants_one_and_its_answer_is_checked() {
        let mut head = Request::new(()).into_parts().0;
        let handshake = ask_http1(&mut head, &HeaderValue::from_static("websocket"), [7; 16]);
        let key = head.headers[SEC_WEBSOCKET_KEY].clone();
        let mut good = map(&[]);
        good.insert(SEC_WEBSOCKET_ACCEPT, accept(key.as_bytes()).unwrap());
        assert!(handshake.settle(&mut good) && good.is_empty(), "an HTTP/2 client gets no proof");
        assert!(!handshake.settle(&mut map(&[("sec-websocket-accept", "x")])));
        assert!(!handshake.settle(&mut map(&[])));
    }

    #[test]
    fn a_key_is_answered_where_the_application_knows_none() {
        let mut head = Request::new(()).into_parts().0;
        head.headers.insert(SEC_WEBSOCKET_KEY, HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="));
        let handshake = ask_http2(&mut head, &HeaderValue::from_static("websocket"));
        assert!(head.headers.is_empty() && head.method == Method::CONNECT);
        let mut answer = map(&[]);
        assert!(handshake.settle(&mut answer));
        assert_eq!(answer[SEC_WEBSOCKET_ACCEPT], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
