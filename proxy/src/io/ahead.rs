//! A byte stream that is read in large pieces, whatever its reader asks for.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Stream;

/// Bytes read at once: four of TLS's largest records.
const READ: usize = 64 << 10;
/// Who asks for this much is given it as it is.
const LARGE: usize = 16 << 10;
/// Copied rather than kept in the large space it was read into.
const LITTLE: usize = 4 << 10;

thread_local! {
    /// Most often filled and emptied within one call: no connection holds room for what it does not have.
    static SPARE: RefCell<Option<Box<[u8]>>> = const { RefCell::new(None) };
}

/// Keeps the space for whoever reads next on this thread.
fn spare(space: Box<[u8]>) {
    if space.len() == READ {
        SPARE.set(Some(space));
    }
}

/// Goes under TLS, whose library reads 4 KiB at a time: a record of 16 KiB in five system calls, where one
/// brings four records. What was read ahead is kept, and freed once read.
#[derive(Debug)]
pub struct Ahead<Io> {
    io: Io,
    /// What was read ahead: this part of the space it was read into.
    rest: Option<(Box<[u8]>, Range<usize>)>,
}

impl<Io> Ahead<Io> {
    /// Nothing read yet.
    pub fn new(io: Io) -> Self {
        Self { io, rest: None }
    }

    /// The stream itself.
    pub fn get_ref(&self) -> &Io {
        &self.io
    }

    /// Hands on what `space` holds there, and keeps what is too much.
    fn deal(&mut self, (space, mut part): (Box<[u8]>, Range<usize>), buffer: &mut ReadBuf<'_>) {
        let now = part.len().min(buffer.remaining());
        buffer.put_slice(&space[part.start..part.start + now]);
        part.start += now;
        self.rest = match part.len() {
            0 => {
                spare(space);
                None
            }
            // A little that nobody takes must not hold all the room.
            length @ 1..=LITTLE if space.len() == READ => {
                let little = Box::from(&space[part]);
                spare(space);
                Some((little, 0..length))
            }
            _ => Some((space, part)),
        };
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Ahead<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(rest) = this.rest.take() {
            this.deal(rest, buffer);
            return Poll::Ready(Ok(()));
        }
        if buffer.remaining() >= LARGE {
            return Pin::new(&mut this.io).poll_read(context, buffer);
        }
        let mut space = SPARE.take().unwrap_or_else(|| vec![0; READ].into());
        let mut read = ReadBuf::new(&mut space);
        let outcome = Pin::new(&mut this.io).poll_read(context, &mut read);
        let read = 0..read.filled().len();
        match outcome {
            Poll::Ready(Ok(())) => this.deal((space, read), buffer),
            Poll::Pending | Poll::Ready(Err(_)) => spare(space),
        }
        ready!(outcome)?;
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Ahead<Io> {
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

impl<Io: Stream> Stream for Ahead<Io> {
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
    async fn nothing_is_lost_whatever_is_asked_for() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let sent: Vec<u8> = (0..300_000).map(|_| rng.u8(..)).collect();
        let (near, mut far) = tokio::io::duplex(90_000);
        let mut ahead = Ahead::new(near);
        let all = sent.clone();
        let sending = async move { far.write_all(&all).await.unwrap() };
        let reading = async {
            let mut read = Vec::new();
            loop {
                let mut part = vec![0; rng.usize(1..30_000)];
                let length = ahead.read(&mut part).await.unwrap();
                if length == 0 {
                    return read;
                }
                read.extend_from_slice(&part[..length]);
            }
        };
        let ((), read) = tokio::join!(sending, reading);
        assert!(read == sent, "{} of {} bytes", read.len(), sent.len());
    }
}
