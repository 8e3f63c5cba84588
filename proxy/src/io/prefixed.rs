//! A byte stream, some of which was read ahead.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// Reads the bytes read ahead first, then the stream; they are freed once read.
#[derive(Debug)]
pub struct Prefixed<Io> {
    prefix: Bytes,
    io: Io,
}

impl<Io> Prefixed<Io> {
    /// `prefix` in front of what `io` still has.
    pub fn new(prefix: Bytes, io: Io) -> Self {
        Self { prefix, io }
    }

    /// Puts bytes that were read in front again.
    pub fn put_back(&mut self, mut bytes: Vec<u8>) {
        bytes.extend_from_slice(&self.prefix);
        self.prefix = bytes.into();
    }

    /// The bytes read ahead that were not read yet, and the stream.
    pub fn into_parts(self) -> (Bytes, Io) {
        (self.prefix, self.io)
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Prefixed<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() || buffer.remaining() == 0 {
            return Pin::new(&mut self.io).poll_read(context, buffer);
        }
        let length = self.prefix.len().min(buffer.remaining());
        buffer.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Prefixed<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl<Io: Stream> Stream for Prefixed<Io> {
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

    #[tokio::test]
    async fn what_was_read_ahead_comes_first_in_any_portions() {
        for portion in 1..=12 {
            let (near, mut far) = tokio::io::duplex(64);
            far.write_all(b" world").await.unwrap();
            let mut stream = Prefixed::new(Bytes::from_static(b"hello"), near);
            let mut read = Vec::new();
            while read.len() < 11 {
                let mut part = vec![0; portion];
                let length = stream.read(&mut part).await.unwrap();
                assert!(length > 0);
                read.extend_from_slice(&part[..length]);
            }
            assert_eq!(read, b"hello world");
            stream.write_all(b"back").await.unwrap();
            let mut back = [0; 4];
            far.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"back");
            drop(far);
            assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0);
        }
    }
}
