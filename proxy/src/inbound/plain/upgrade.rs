//! Upgrades asked for in plaintext: bytes between the client's connection and the tunnel to the
//! application, which takes the one for the bodies of another sidecar's request.

use std::io;
use std::pin::pin;

use bytes::{Bytes, BytesMut};
use http::header::HeaderValue;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming as Library;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::oneshot;

use super::PATIENCE;
use crate::http::body::Body;
use crate::http::incoming::{Incoming, Source, Upgraded};
use crate::http::upgrade;
use crate::inbound::handle::Payload;
use crate::inbound::{Peer, not_allowed, tcp};
use crate::io::{Prefixed, Stream};
use crate::shared::Shared;

/// An upgrade that was asked for.
pub(super) struct Pending {
    asked: upgrade::Asked,
    source: oneshot::Sender<Source>,
}

/// One that was agreed on.
pub(super) struct Bridge {
    upgrading: OnUpgrade,
    source: oneshot::Sender<Source>,
    body: Body,
}

impl Pending {
    /// Takes the wish out of a request, and what stands for its body then.
    pub(super) fn take(request: &mut Request<Library>) -> Option<(Self, Payload)> {
        let asked = upgrade::take(request);
        // There for every `Upgrade`, also for one that is not heeded.
        request.extensions_mut().remove::<OnUpgrade>();
        let (asked, (source, body)) = (asked?, Upgraded::new());
        let payload = Payload::Tunnel { token: asked.token.clone(), incoming: Incoming::Upgraded(body) };
        Some((Self { asked, source }, payload))
    }

    /// Agrees to it in the client's form; what the response's body was goes through the bridge.
    pub(super) fn agree(self, agreed: &HeaderValue, response: &mut Response<Body>) -> Bridge {
        let body = std::mem::replace(response.body_mut(), Body::Empty);
        upgrade::agree(&self.asked, agreed, response);
        Bridge { upgrading: self.asked.on, source: self.source, body }
    }
}

impl Bridge {
    /// Carries bytes until both sides have ended, one breaks, or the client is not let in any more. The
    /// HTTP library has let go of the connection.
    ///
    /// Cancel safety: both sides are reset.
    pub(super) async fn run(self, shared: &Shared, peer: &Peer) {
        let Self { upgrading, source, body } = self;
        let Some(parts) =
            upgrading.await.ok().and_then(|all| all.downcast::<TokioIo<Prefixed<TcpStream>>>().ok())
        else {
            return;
        };
        let (rest, stream) = parts.io.into_inner().into_parts();
        // Until all is done any end is a reset, also that of this process.
        stream.abort();
        let (half, writing) = stream.into_split();
        let mut writing = Writing(Some(writing));
        let (held, over) = oneshot::channel();
        let source = source.send(Source { read: joined(parts.read_buf, &rest), half, held });
        let carrying = async {
            if source.is_err() {
                return Err(io::ErrorKind::ConnectionReset.into());
            }
            carry(body, &mut writing, over).await
        };
        let ended = tokio::select! {
            ended = carrying => ended,
            () = not_allowed(shared, peer) => Err(io::ErrorKind::PermissionDenied.into()),
            () = tcp::drained(shared) => Err(io::ErrorKind::TimedOut.into()),
        };
        match ended {
            Ok(()) => writing.complete(),
            Err(error) => tracing::debug!(%error, "an upgraded plaintext connection broke"),
        }
    }
}

/// The half of the connection that is written to. Dropped, it does not end orderly.
struct Writing(Option<OwnedWriteHalf>);

impl Writing {
    fn complete(mut self) {
        if let Some(half) = self.0.take() {
            half.as_ref().relent();
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        if let Some(half) = self.0.take() {
            half.forget();
        }
    }
}

/// Writes the application's bytes to the client. `over` is told when the tunnel is complete.
async fn carry(body: Body, to: &mut Writing, mut over: oneshot::Receiver<()>) -> io::Result<()> {
    let mut writing = pin!(write(body, to));
    let broken = |_| io::Error::from(io::ErrorKind::ConnectionReset);
    tokio::select! {
        written = &mut writing => {
            written?;
            // The client may have more to say.
            over.await.map_err(broken)
        }
        complete = &mut over => {
            complete.map_err(broken)?;
            // A client that does not read the last words does not keep the connection.
            tokio::time::timeout(PATIENCE, writing).await?
        }
    }
}

async fn write(mut body: Body, to: &mut Writing) -> io::Result<()> {
    let Some(to) = &mut to.0 else { return Ok(()) };
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.map_err(io::Error::other)?.into_data() {
            to.write_all(&data).await?;
        }
    }
    to.shutdown().await
}

fn joined(first: Bytes, second: &Bytes) -> Bytes {
    if second.is_empty() {
        return first;
    }
    let mut all = BytesMut::from(first);
    all.extend_from_slice(second);
    all.freeze()
}
