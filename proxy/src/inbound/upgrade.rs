//! Upgrades at the application: asked for in the version it speaks.

use std::time::Instant;

use http::header::UPGRADE;
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode, Version};
use hyper::body::Incoming as Library;
use outrigger_api::resource::Protocol;

use super::exchange::{Exchanged, h1_request, h2_request};
use super::served::ServedPort;
use crate::error::ProxyError;
use crate::http::body::Body;
use crate::http::finale::Finale;
use crate::http::incoming::{Incoming, Received, TransportError};
use crate::http::stream_io::StreamIo;
use crate::http::tunnel::Local;
use crate::http::upgrade::{self, Handshake};
use crate::pool::Lease;
use crate::pool::connector::Reuse;
use crate::pool::h2::StreamGuard;

/// The upgrade to which the application agrees.
#[derive(Debug)]
pub struct Switched {
    /// The protocol agreed on.
    pub agreed: HeaderValue,
    /// The application's connection, or its stream.
    pub local: Local,
    /// How that connection may end, where it is one of HTTP/1.1.
    pub finale: Option<Finale>,
}

/// Asks for an upgrade: over HTTP/2 if the port is declared so, or if the client spoke it and the
/// application takes extended CONNECT, else over HTTP/1.1.
///
/// Cancel safety: the connection is closed, or its stream reset.
///
/// # Errors
/// There is no answer, or not one in the words of the protocol.
pub async fn ask(
    port: &ServedPort,
    head: Parts,
    token: &HeaderValue,
    client: Version,
) -> Result<(Exchanged, Option<Switched>), ProxyError> {
    let (http2, declared) = match port.protocol {
        Protocol::Http1 => (false, true),
        Protocol::Http2 | Protocol::Grpc => (true, true),
        Protocol::Auto | Protocol::Http | Protocol::Tcp => (client == Version::HTTP_2, false),
    };
    if !http2 {
        return over_http1(port, head, token).await;
    }
    match stream(port).await {
        Ok(stream) => over_http2(port, head, token, stream).await,
        Err(error) if declared => Err(error),
        Err(_) => over_http1(port, head, token).await,
    }
}

async fn over_http1(
    port: &ServedPort,
    mut head: Parts,
    token: &HeaderValue,
) -> Result<(Exchanged, Option<Switched>), ProxyError> {
    let handshake = upgrade::ask_http1(&mut head, token, rand());
    // A new one: it is used up, and there is no doubt whether the application closed it meanwhile.
    let mut connection = port.app.connect().await?;
    let handed = Instant::now();
    let request = h1_request(head, Body::Empty)?;
    let mut response = match connection.send(request).await {
        Ok(response) => response,
        Err(failed) if failed.unsent.is_some() => return Err(ProxyError::AppUnsent(port.app.address())),
        Err(failed) => return Err(reset(port, failed.error.into())),
    };
    let mut switched = None;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let agreed = response.headers().get(UPGRADE).unwrap_or(token).clone();
        let finale = Some(connection.finale().clone());
        settle(port, &mut response, &handshake)?;
        let local = Local::Upgrading(hyper::upgrade::on(&mut response));
        switched = Some(Switched { agreed, local, finale });
    }
    let lease = Lease::Http1 { pool: port.app.clone(), connection, request: None };
    Ok(((response.map(|body: Library| body.into()), lease, handed), switched))
}

/// A stream to an application that takes extended CONNECT.
async fn stream(port: &ServedPort) -> Result<StreamGuard, ProxyError> {
    let stream = port.app.stream(Reuse::of(false)).await?;
    if stream.connection().takes_extended_connect(port.app.connect_limit()).await {
        Ok(stream)
    } else {
        Err(ProxyError::NoUpgrade(port.app.address()))
    }
}

async fn over_http2(
    port: &ServedPort,
    mut head: Parts,
    token: &HeaderValue,
    stream: StreamGuard,
) -> Result<(Exchanged, Option<Switched>), ProxyError> {
    let handshake = upgrade::ask_http2(&mut head, token);
    let handed = Instant::now();
    stream.connection().mark_used();
    let request = h2_request(head, Body::Empty).map(|_| ());
    let opening = stream.connection().sender().open(request).await;
    let (mut response, sending) = opening.map_err(|error| reset(port, error.into()))?;
    // Nothing else is consent to a CONNECT.
    if response.status() != StatusCode::OK {
        drop(sending);
        let (head, body) = response.into_parts();
        let body = Incoming::Stream(Received::new(body, &head.headers));
        return Ok(((Response::from_parts(head, body), Lease::H2(stream), handed), None));
    }
    settle(port, &mut response, &handshake)?;
    let (head, receiving) = response.into_parts();
    let local = Local::Stream(StreamIo::new(sending, receiving));
    let switched = Switched { agreed: token.clone(), local, finale: None };
    let response = Response::from_parts(head, Incoming::Nothing);
    Ok(((response, Lease::H2(stream), handed), Some(switched)))
}

fn settle<B>(port: &ServedPort, response: &mut Response<B>, handshake: &Handshake) -> Result<(), ProxyError> {
    if handshake.settle(response.headers_mut()) {
        Ok(())
    } else {
        Err(ProxyError::AppSwitched(port.app.address()))
    }
}

fn reset(port: &ServedPort, source: TransportError) -> ProxyError {
    ProxyError::AppReset { address: port.app.address(), source }
}

/// The nonce need not be secret (RFC 6455 section 10.3).
fn rand() -> [u8; 16] {
    fastrand::u128(..).to_be_bytes()
}
