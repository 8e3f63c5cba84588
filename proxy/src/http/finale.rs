//! How a byte stream ends: where only the end of the connection says that a message is over, or a
//! tunnel, an end that nobody announced must not look like one.
//!
//! A response to an HTTP/1.0 client without `Content-Length` ends with its connection (RFC 9112
//! section 6.3), and so do both directions of an upgraded connection. If they break off, the client must
//! see a reset. The option that makes the kernel send one (`SO_LINGER` of zero, socket(7)) is set when
//! such bytes begin and taken back at their end, so that it also holds when the process dies.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU32, Ordering};
use std::task::{Context, Poll, ready};

use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;

use super::refusal;
use crate::io::{Prefixed, Stream};

/// The connection says itself where its messages end.
const FRAMED: u8 = 0;
/// Only its end does, and that has not come.
const OPEN: u8 = 1;
/// The end has come, and may be shown.
const COMPLETE: u8 = 2;

/// Says how a connection may end; cheap to clone.
#[derive(Debug, Clone)]
pub struct Finale(Arc<State>);

#[derive(Debug)]
struct State {
    form: AtomicU8,
    /// Answers that are ours, or an application's.
    answers: AtomicU32,
    /// The status of an answer that was nobody's, else 0.
    refused: AtomicU16,
    /// Reads that brought something.
    reads: AtomicU32,
    /// The last write could not be made at once.
    blocked: AtomicBool,
    /// Closed when the byte stream is gone.
    gone: Semaphore,
}

impl Finale {
    /// From now on an end must be a reset, until [`Finale::complete`].
    pub fn open(&self) {
        self.0.form.store(OPEN, Ordering::Relaxed);
    }

    /// What ends with the connection is complete.
    pub fn complete(&self) {
        self.0.form.store(COMPLETE, Ordering::Relaxed);
    }

    /// An answer of ours is about to be written.
    pub fn answers(&self) {
        self.0.answers.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether there may be bytes that are not written yet.
    pub fn is_blocked(&self) -> bool {
        self.0.blocked.load(Ordering::Relaxed)
    }

    /// Reads so far that brought something, to compare with a later value.
    pub fn reads(&self) -> u32 {
        self.0.reads.load(Ordering::Relaxed)
    }

    /// The status with which the HTTP library refused by itself, if it did.
    pub fn refused(&self) -> Option<StatusCode> {
        StatusCode::from_u16(self.0.refused.load(Ordering::Relaxed)).ok()
    }

    /// Resolves when the byte stream has been closed, whoever had it last.
    ///
    /// Cancel safety: safe.
    pub async fn gone(&self) {
        // Has no permits, so it returns when closed.
        let _closed = self.0.gone.acquire().await;
    }
}

/// A byte stream that ends as its [`Finale`] says.
#[derive(Debug)]
pub struct Abrupt<Io: Stream> {
    io: Io,
    finale: Finale,
    /// Whether the system has been told to reset it.
    resets: bool,
    /// Answers there were at the last write.
    answers: u32,
    /// What is written in place of a refusal, as far as it has not been.
    rest: Vec<u8>,
    /// Carries anything by now: what is written is no answer of the library.
    tunnel: bool,
}

impl<Io: Stream> Abrupt<Io> {
    /// Watches over the end of `io`.
    pub fn new(io: Io) -> (Self, Finale) {
        let state = State {
            form: AtomicU8::new(FRAMED),
            answers: AtomicU32::new(0),
            refused: AtomicU16::new(0),
            reads: AtomicU32::new(0),
            blocked: AtomicBool::new(false),
            gone: Semaphore::new(0),
        };
        let finale = Finale(Arc::new(state));
        (
            Self { io, finale: finale.clone(), resets: false, answers: 0, rest: Vec::new(), tunnel: false },
            finale,
        )
    }

    /// From now on it carries anything, not HTTP.
    pub fn tunnels(&mut self) {
        self.tunnel = true;
    }

    /// Tells the system what the connection's end is to be.
    fn settle(&mut self) {
        let resets = self.finale.0.form.load(Ordering::Relaxed) == OPEN;
        if self.resets != resets {
            self.resets = resets;
            if resets {
                self.io.abort();
            } else {
                self.io.relent();
            }
        }
    }
}

impl<Io: Stream> Abrupt<Prefixed<Io>> {
    /// Puts bytes that were read in front again.
    pub fn put_back(&mut self, bytes: Vec<u8>) {
        self.io.put_back(bytes);
    }
}

impl<Io: Stream> Abrupt<Io> {
    /// Whether the library writes a refusal of its own: it is one by its form, and no answer of ours has
    /// come since the last write. Then it is explained, and counted.
    fn refuses(&mut self, bytes: &[u8]) -> bool {
        if self.tunnel {
            return false;
        }
        let answers = self.finale.0.answers.load(Ordering::Relaxed);
        let ours = std::mem::replace(&mut self.answers, answers) != answers;
        match refusal::recognise(bytes).filter(|_| !ours) {
            Some(status) => {
                self.finale.0.refused.store(status.as_u16(), Ordering::Relaxed);
                self.rest = refusal::explained(bytes);
                true
            }
            None => false,
        }
    }

    /// Writes what is left of a refusal.
    fn poll_rest(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.rest.is_empty() {
            self.finale.0.blocked.store(true, Ordering::Relaxed);
            let written = ready!(Pin::new(&mut self.io).poll_write(context, &self.rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.rest.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: Stream> Drop for Abrupt<Io> {
    fn drop(&mut self) {
        self.settle();
        self.finale.0.gone.close();
    }
}

impl<Io: Stream> Stream for Abrupt<Io> {
    fn abort(&self) {
        self.finale.open();
        self.io.abort();
    }

    fn relent(&self) {
        self.finale.complete();
        self.io.relent();
    }
}

impl<Io: Stream> AsyncRead for Abrupt<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(context, buffer);
        if buffer.filled().len() > before {
            self.finale.0.reads.fetch_add(1, Ordering::Relaxed);
        }
        read
    }
}

impl<Io: Stream> AsyncWrite for Abrupt<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.settle();
        ready!(self.poll_rest(context))?;
        if self.refuses(bytes) {
            let _flushed_later = self.poll_rest(context)?;
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.io).poll_write(context, bytes);
        self.finale.0.blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.settle();
        ready!(self.poll_rest(context))?;
        if let [bytes] = slices
            && self.refuses(bytes)
        {
            let _flushed_later = self.poll_rest(context)?;
            return Poll::Ready(Ok(bytes.len()));
        }
        let written = Pin::new(&mut self.io).poll_write_vectored(context, slices);
        self.finale.0.blocked.store(written.is_pending(), Ordering::Relaxed);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.settle();
        ready!(self.poll_rest(context))?;
        let flushed = Pin::new(&mut self.io).poll_flush(context);
        self.finale.0.blocked.store(flushed.is_pending(), Ordering::Relaxed);
        flushed
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.settle();
        if self.resets {
            // It would look like the end.
            return Poll::Ready(Ok(()));
        }
        ready!(self.poll_rest(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), async {
            listener.accept().await.unwrap().0
        });
        (near.unwrap(), far)
    }

    /// What the other side reads, and how it ends, after `end` has been done to our side.
    async fn seen(end: impl AsyncFnOnce(Abrupt<TcpStream>, Finale)) -> (Vec<u8>, bool) {
        let (near, mut far) = pair().await;
        let (mut io, finale) = Abrupt::new(near);
        finale.open();
        io.write_all(b"part").await.unwrap();
        let mut got = vec![0; 4];
        far.read_exact(&mut got).await.unwrap();
        let watching = finale.clone();
        end(io, finale).await;
        watching.gone().await;
        let clean = far.read_to_end(&mut got).await.is_ok();
        (got, clean)
    }

    #[tokio::test]
    async fn an_end_that_nobody_announced_is_a_reset() {
        let dropped = seen(async |io, _| drop(io)).await;
        assert_eq!(dropped, (b"part".to_vec(), false));
        let shut = seen(async |mut io, _| io.shutdown().await.unwrap()).await;
        assert_eq!(shut, (b"part".to_vec(), false));
        let complete = seen(async |mut io, finale| {
            finale.complete();
            io.write_all(b"!").await.unwrap();
            io.shutdown().await.unwrap();
        })
        .await;
        assert_eq!(complete, (b"part!".to_vec(), true));
    }
}
