//! What comes in as a body: from the HTTP library's server and HTTP/1 client, or on a stream of HTTP/2 that
//! is driven without it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::{io, mem};

use bytes::Bytes;
use h2::Reason;
use http::HeaderMap;
use http::header::CONTENT_LENGTH;
use http_body::{Frame, SizeHint};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::tcp::OwnedReadHalf;
use tokio::sync::oneshot;

/// Bytes read at once from an upgraded connection.
const READ: usize = 8 << 10;

/// What a connection failed with.
#[derive(Debug, thiserror::Error)]
pub enum TransportError {
    /// The HTTP library's word.
    #[error(transparent)]
    Library(#[from] hyper::Error),
    /// HTTP/2's.
    #[error("HTTP/2")]
    Http2(#[source] h2::Error),
    /// The byte stream's.
    #[error("connection")]
    Io(#[source] io::Error),
}

impl From<h2::Error> for TransportError {
    fn from(error: h2::Error) -> Self {
        if error.is_io() {
            Self::Io(error.into_io().unwrap_or_else(|| io::ErrorKind::Other.into()))
        } else {
            Self::Http2(error)
        }
    }
}

/// A body as it comes in.
#[derive(Debug)]
pub enum Incoming {
    /// There is none.
    Nothing,
    /// Read by the HTTP library.
    Library(hyper::body::Incoming),
    /// Read from a stream of HTTP/2.
    Stream(Received),
    /// Read from a connection that becomes something else.
    Upgraded(Box<Upgraded>),
}

/// What a client sends on a connection of HTTP/1.1 once it was upgraded, as a body.
#[derive(Debug)]
pub struct Upgraded {
    coming: oneshot::Receiver<Source>,
    source: Option<Source>,
    ended: bool,
}

/// The connection's reading half, behind what was read ahead of it.
#[derive(Debug)]
pub struct Source {
    /// Read before the connection was handed over.
    pub read: Bytes,
    /// The rest.
    pub half: OwnedReadHalf,
    /// Told how the tunnel ended: nothing, if it broke. Closed when nobody may read any more.
    pub held: oneshot::Sender<()>,
}

impl Upgraded {
    /// A body that begins when its source is sent, and breaks if it never is.
    pub fn new() -> (oneshot::Sender<Source>, Box<Self>) {
        let (sender, coming) = oneshot::channel();
        (sender, Box::new(Self { coming, source: None, ended: false }))
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let source = match &mut self.source {
            Some(source) => source,
            None => match ready!(Pin::new(&mut self.coming).poll(context)) {
                Ok(source) => self.source.insert(source),
                Err(_) => return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into()))),
            },
        };
        // Whoever holds the connection has given it up, be the socket open still.
        if source.held.poll_closed(context).is_ready() {
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
        }
        if !source.read.is_empty() {
            return Poll::Ready(Some(Ok(mem::take(&mut source.read))));
        }
        let mut space = [0; READ];
        let mut buffer = ReadBuf::new(&mut space);
        if let Err(error) = ready!(Pin::new(&mut source.half).poll_read(context, &mut buffer)) {
            return Poll::Ready(Some(Err(error)));
        }
        self.ended = buffer.filled().is_empty();
        Poll::Ready((!self.ended).then(|| Ok(Bytes::copy_from_slice(buffer.filled()))))
    }
}

/// The receiving half of a stream of HTTP/2, as a body.
#[derive(Debug)]
pub struct Received {
    stream: h2::RecvStream,
    /// What is left of the announced length.
    left: Option<u64>,
    data_ended: bool,
}

impl From<hyper::body::Incoming> for Incoming {
    fn from(body: hyper::body::Incoming) -> Self {
        Self::Library(body)
    }
}

impl Received {
    /// The body of a message with this head.
    pub fn new(stream: h2::RecvStream, head: &HeaderMap) -> Self {
        // Checked by the h2 library: it is a number, and the data's length.
        let announced = head.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let left = announced.or_else(|| stream.is_end_stream().then_some(0));
        Self { stream, left, data_ended: false }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        if !self.data_ended {
            match ready!(self.stream.poll_data(context)) {
                Some(Ok(data)) => {
                    // Room for as much again; it fails where the stream is over, and needs none.
                    let _over = self.stream.flow_control().release_capacity(data.len());
                    self.left = self.left.map(|left| left.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                // How a peer ends a stream of which it wants no more. Whether this was the end of the body,
                // `is_end_stream` says.
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => return Poll::Ready(None),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => self.data_ended = true,
            }
        }
        Poll::Ready(match ready!(self.stream.poll_trailers(context)) {
            Ok(trailers) => trailers.map(|trailers| Ok(Frame::trailers(trailers))),
            Err(error) => Some(Err(error)),
        })
    }
}

impl Incoming {
    /// All of it went where it was to go, and so did what went the other way.
    pub fn complete(self) {
        if let Self::Upgraded(body) = self
            && let Some(source) = body.source
        {
            // Nobody waits where the client is gone.
            let _gone = source.held.send(());
        }
    }
}

impl http_body::Body for Incoming {
    type Data = Bytes;
    type Error = TransportError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, TransportError>>> {
        match self.get_mut() {
            Self::Nothing => Poll::Ready(None),
            Self::Library(body) => Pin::new(body).poll_frame(context).map_err(TransportError::from),
            Self::Stream(body) => body.poll(context).map_err(TransportError::from),
            Self::Upgraded(body) => {
                let bytes = ready!(body.poll(context));
                Poll::Ready(bytes.map(|bytes| bytes.map(Frame::data).map_err(TransportError::Io)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Library(body) => body.is_end_stream(),
            Self::Stream(body) => body.stream.is_end_stream(),
            Self::Upgraded(body) => body.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Nothing => SizeHint::with_exact(0),
            Self::Library(body) => body.size_hint(),
            Self::Stream(body) => body.left.map_or_else(SizeHint::default, SizeHint::with_exact),
            Self::Upgraded(_) => SizeHint::default(),
        }
    }
}
