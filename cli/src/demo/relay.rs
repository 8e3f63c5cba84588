//! A process between a replica's sidecar and its application, which makes the application look sick
//! when it is told to: the order service itself has no switch for that, and need not know.
//!
//! Well, it passes HTTP/1.1 on message by message, and other bytes as they are; only HTTP/1.1, which
//! is what the storefront speaks, can be made sick.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{Either, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self as client, SendRequest};
use hyper::server::conn::http1 as server;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use outrigger_common::tasks::Tasks;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use super::child::ORDERED;
use crate::output;

/// How late a slow application is.
pub(super) const SLOW_BY: Duration = Duration::from_millis(500);
/// Share of its requests a failing application answers with 503, in percent.
pub(super) const FAILING: u8 = 80;
/// Start of the preface of HTTP/2 (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI";

/// What the application suffers from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Illness {
    /// Nothing.
    None,
    /// It answers most requests with 503.
    Errors,
    /// It answers late.
    Slow,
    /// It breaks connections when it should answer; the request has had its effect.
    Reset,
}

impl Illness {
    /// The order that brings it about.
    pub(super) fn byte(self) -> u8 {
        match self {
            Self::None => b'.',
            Self::Errors => b'e',
            Self::Slow => b's',
            Self::Reset => b'r',
        }
    }

    fn from_byte(byte: u8) -> Self {
        let known = [Self::Errors, Self::Slow, Self::Reset];
        known.into_iter().find(|illness| illness.byte() == byte).unwrap_or(Self::None)
    }

    fn now() -> Self {
        Self::from_byte(ORDERED.load(Ordering::Relaxed))
    }
}

/// Runs a relay to the address in the second argument, seeded with the third.
pub(crate) fn run() -> ExitCode {
    let mut arguments = std::env::args().skip(2);
    let target = arguments.next().and_then(|text| text.parse().ok());
    let seed = arguments.next().and_then(|text| text.parse().ok());
    let (Some(target), Some(seed)) = (target, seed) else { return ExitCode::from(2) };
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let ended = runtime.and_then(|runtime| runtime.block_on(listen(target)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::say(&format!("relay: {error}"));
            ExitCode::FAILURE
        }
    }
}

async fn listen(target: SocketAddr) -> std::io::Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    output::print_json(&json!({"listen": listener.local_addr()?}))?;
    let tasks = Tasks::current();
    loop {
        let (stream, _) = listener.accept().await?;
        tasks.spawn("relayed connection", carry(stream, target));
    }
}

/// One connection of the sidecar, with one of its own to the application.
async fn carry(mut stream: TcpStream, target: SocketAddr) {
    let mut start = [0; PREFACE.len()];
    // A connection that ends without a byte is the sidecar's question whether anybody is there.
    let Ok(1..) = stream.peek(&mut start).await else { return };
    // Dropping the stream says what there is to say about an application that is not there.
    let Ok(mut app) = TcpStream::connect(target).await else { return };
    if stream.set_nodelay(true).and(app.set_nodelay(true)).is_err() {
        return;
    }
    if start == PREFACE {
        let _ended = tokio::io::copy_bidirectional(&mut stream, &mut app).await;
        return;
    }
    let Ok((sender, to_app)) = client::handshake(TokioIo::new(app)).await else { return };
    let sender = Mutex::new(sender);
    let serving = server::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(|request| answer(&sender, request)));
    tokio::pin!(serving, to_app);
    tokio::select! {
        _ended = &mut serving => {}
        // The application closed a connection it had kept: so does the relay.
        _ended = &mut to_app => {
            serving.as_mut().graceful_shutdown();
            let _ended = serving.await;
        }
    }
}

type Answer = Response<Either<Incoming, Full<Bytes>>>;

/// An error breaks the connection.
async fn answer(
    sender: &Mutex<SendRequest<Incoming>>,
    request: Request<Incoming>,
) -> Result<Answer, Box<dyn std::error::Error + Send + Sync>> {
    match Illness::now() {
        Illness::Errors if fastrand::u8(..100) < FAILING => {
            let mut response = Response::new(Either::Right(Full::default()));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            return Ok(response);
        }
        Illness::Slow => tokio::time::sleep(SLOW_BY).await,
        Illness::None | Illness::Errors | Illness::Reset => {}
    }
    let response = sender.lock().await.send_request(request).await?;
    if Illness::now() == Illness::Reset {
        return Err("told to".into());
    }
    Ok(response.map(Either::Left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_are_understood_and_nonsense_is_health() {
        for illness in [Illness::None, Illness::Errors, Illness::Slow, Illness::Reset] {
            assert_eq!(Illness::from_byte(illness.byte()), illness);
        }
        assert_eq!(Illness::from_byte(0), Illness::None);
    }
}
