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
        let (half, mut writing) = stream.into_split();
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
        if let Err(error) = ended {
            tracing::debug!(%error, "an upgraded plaintext connection broke");
            writing.as_ref().abort();
            // Dropped, it would end orderly.
            writing.forget();
        }
    }
}

/// Writes the application's bytes to the client. `over` resolves with the tunnel.
async fn carry(
    body: Body,
    to: &mut OwnedWriteHalf,
    mut over: oneshot::Receiver<std::convert::Infallible>,
) -> io::Result<()> {
    let mut writing = pin!(write(body, to));
    tokio::select! {
        written = &mut writing => {
            written?;
            // The client may have more to say.
            let _over = over.await;
            Ok(())
        }
        // A client that does not read the last words does not keep the connection.
        _over = &mut over => tokio::time::timeout(PATIENCE, writing).await?,
    }
}

async fn write(mut body: Body, to: &mut OwnedWriteHalf) -> io::Result<()> {
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
