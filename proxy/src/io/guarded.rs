//! A client's end of an opaque connection, watched for HTTP.

use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;
use crate::detect::{Disguise, disguise};

/// Fails to read, with [`is_http`], where its client turns out to speak HTTP: as opaque bytes a request
/// would pass by all that is done with requests, the removal of claimed identities among it. What came
/// before the end of the request line has been read then; no application acts on that. A server that has
/// spoken first speaks no HTTP, and its client may say what it likes.
#[derive(Debug)]
pub struct Guarded<Io> {
    io: Io,
    /// What was read while it is not clear; `None` once it is.
    seen: Option<Vec<u8>>,
}

/// The error of a client that speaks HTTP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("HTTP on a connection that was said not to carry it")]
struct IsHttp;

/// Whether reading failed because the client speaks HTTP.
pub fn is_http(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<IsHttp>())
}

impl<Io> Guarded<Io> {
    /// Not watched yet.
    pub fn new(io: Io) -> Self {
        Self { io, seen: None }
    }

    /// Watches from now on.
    pub fn watch(&mut self) {
        self.seen = Some(Vec::new());
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Guarded<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        let Some(seen) = &mut this.seen else {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        };
        // Not into the buffer at once: what must not be passed on must not be in it.
        let mut stack = [MaybeUninit::<u8>::uninit(); 4 << 10];
        let most = stack.len().min(buffer.remaining());
        let mut part = ReadBuf::uninit(&mut stack[..most]);
        ready!(Pin::new(&mut this.io).poll_read(context, &mut part))?;
        seen.extend_from_slice(part.filled());
        match disguise(seen) {
            Disguise::Http => return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, IsHttp))),
            Disguise::None => this.seen = None,
            Disguise::Unclear => {}
        }
        buffer.put_slice(part.filled());
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Guarded<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = ready!(Pin::new(&mut self.io).poll_write(context, bytes))?;
        if written > 0 {
            self.seen = None;
        }
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl<Io: Stream> Stream for Guarded<Io> {
    fn abort(&self) {
        self.io.abort();
    }

    fn relent(&self) {
        self.io.relent();
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// What comes through of `parts`, and whether it ended with the error.
    async fn through(parts: &[&[u8]], watched: bool) -> (Vec<u8>, bool) {
        let (mut client, io) = tokio::io::duplex(64 << 10);
        let mut guarded = Guarded::new(io);
        if watched {
            guarded.watch();
        }
        let mut read = Vec::new();
        for part in parts {
            client.write_all(part).await.unwrap();
            let mut buffer = vec![0; 64 << 10];
            let mut left = part.len();
            while left > 0 {
                match guarded.read(&mut buffer).await {
                    Ok(length) => {
                        left -= length;
                        read.extend_from_slice(&buffer[..length]);
                    }
                    Err(error) => return (read, is_http(&error)),
                }
            }
        }
        drop(client);
        guarded.read_to_end(&mut read).await.unwrap();
        (read, false)
    }

    #[tokio::test]
    async fn no_request_line_comes_through_however_it_is_cut() {
        let request = b"GET /orders HTTP/1.1\r\nx-forwarded-client-cert: me\r\n\r\n";
        assert_eq!(through(&[request], true).await, (Vec::new(), true));
        for at in 1..b"GET /orders HTTP/".len() {
            let (head, rest) = request.split_at(at);
            assert_eq!(through(&[head, rest], true).await, (head.to_vec(), true), "cut at {at}");
        }
        assert_eq!(through(&[request], false).await, (request.to_vec(), false));
    }

    #[tokio::test]
    async fn what_is_clear_is_not_looked_at_again() {
        let parts: [&[u8]; 2] = [b"EHLO me\r\n", b"GET / HTTP/1.1\r\n\r\n"];
        assert_eq!(through(&parts, true).await, (parts.concat(), false));
        let large = vec![7; 60 << 10];
        assert_eq!(through(&[&large], true).await, (large, false));
    }

    #[tokio::test]
    async fn a_server_that_speaks_first_speaks_no_http() {
        let (mut client, io) = tokio::io::duplex(64);
        let mut guarded = Guarded::new(io);
        guarded.watch();
        guarded.write_all(b"220 ready\r\n").await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        let mut read = [0; 16];
        guarded.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"GET / HTTP/1.1\r\n");
    }
}
