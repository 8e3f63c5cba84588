//! Copies bytes both ways between two streams until both are done.
//!
//! Bounded and quiet: a direction holds at most 32 KiB that were read and not yet written, and
//! no memory at all while there are none, so an idle pair costs nothing and a slow reader slows its
//! writer. The end of one direction is passed on as such while the other goes on (half-close).

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

/// Bytes read at once, and held at most, each way: two TLS records.
const CHUNK: usize = 32 << 10;
/// Reads of one direction before the other has its turn, and other tasks theirs.
const TURN: usize = 8;

/// How a pair ended.
#[derive(Debug)]
pub enum End {
    /// Both sides said that they were done.
    Complete,
    /// The client's side broke.
    Client(io::Error),
    /// The server's side broke.
    Server(io::Error),
    /// Nothing moved for too long.
    Idle,
}

/// Told of bytes as they are handed on.
pub trait Meter {
    /// That many from the client to the server.
    fn to_server(&mut self, bytes: u64);
    /// That many from the server to the client.
    fn to_client(&mut self, bytes: u64);
}

/// Copies between `client` and `server` until both directions have ended, one side breaks, or nothing
/// has moved for `idle`.
///
/// Anything but [`End::Complete`] leaves both streams as they are: what ends them then must be a reset,
/// so that neither side takes a part for the whole.
///
/// Cancel safety: bytes that were read and not yet written are lost; reset both streams.
pub async fn relay<C, S>(client: &mut C, server: &mut S, idle: Duration, meter: &mut impl Meter) -> End
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (mut up, mut down) = (Way::default(), Way::default());
    let mut stillness = Stillness::new(idle);
    // Pinned where it is: allocating nothing.
    let timer = tokio::time::sleep(idle);
    tokio::pin!(timer);
    poll_fn(|context| {
        let (mut up_moved, mut down_moved) = (Moved::default(), Moved::default());
        let upward = up.poll(context, client, server, &mut up_moved);
        let downward = down.poll(context, server, client, &mut down_moved);
        // Handed on before a side broke counts as well.
        if up_moved.bytes > 0 {
            meter.to_server(up_moved.bytes);
        }
        if down_moved.bytes > 0 {
            meter.to_client(down_moved.bytes);
        }
        match (upward, downward) {
            (Err(Broken::Reader(error)), _) | (Ok(()), Err(Broken::Writer(error))) => {
                return Poll::Ready(End::Client(error));
            }
            (Err(Broken::Writer(error)), _) | (Ok(()), Err(Broken::Reader(error))) => {
                return Poll::Ready(End::Server(error));
            }
            (Ok(()), Ok(())) => {}
        }
        if up.is_done() && down.is_done() {
            return Poll::Ready(End::Complete);
        }
        if up_moved.any || down_moved.any {
            stillness.moved();
        }
        stillness.poll(context, timer.as_mut()).map(|()| End::Idle)
    })
    .await
}

/// When a pair last moved. The timer is set anew only when it fires, not with every byte.
struct Stillness {
    idle: Duration,
    since: Instant,
}

impl Stillness {
    fn new(idle: Duration) -> Self {
        Self { idle, since: Instant::now() }
    }

    fn moved(&mut self) {
        self.since = Instant::now();
    }

    fn poll(&self, context: &mut Context<'_>, mut timer: Pin<&mut Sleep>) -> Poll<()> {
        loop {
            ready!(timer.as_mut().poll(context));
            let due = self.since + self.idle;
            if due <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(due);
        }
    }
}

/// Which side of a direction broke.
enum Broken {
    Reader(io::Error),
    Writer(io::Error),
}

/// What one poll of a direction did.
#[derive(Default)]
struct Moved {
    /// Bytes handed to the writer.
    bytes: u64,
    /// Whether anything happened at all.
    any: bool,
}

/// One direction.
#[derive(Default)]
struct Way {
    /// Read and not yet written; without memory of its own while empty.
    left: Vec<u8>,
    /// How much of it was written.
    written: usize,
    stage: Stage,
    /// The writer may hold bytes back that were given to it.
    unflushed: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Stage {
    #[default]
    Open,
    /// The reader has said that it is done; its last bytes and its end are passed on.
    Ending,
    Done,
}

impl Way {
    fn is_done(&self) -> bool {
        self.stage == Stage::Done
    }

    fn poll<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut Moved,
    ) -> Result<(), Broken> {
        if self.stage == Stage::Done {
            return Ok(());
        }
        for turn in 0.. {
            if !self.write_left(context, writer, moved)? {
                return Ok(());
            }
            if self.stage == Stage::Ending {
                if let Poll::Ready(ended) = Pin::new(&mut *writer).poll_shutdown(context) {
                    ended.or_else(already_gone).map_err(Broken::Writer)?;
                    (self.stage, moved.any) = (Stage::Done, true);
                }
                return Ok(());
            }
            if turn == TURN {
                context.waker().wake_by_ref();
                return Ok(());
            }
            if !self.pass(context, reader, writer, moved)? {
                break;
            }
        }
        self.flush(context, writer)
    }

    /// Writes what is left of an earlier read. `false`: the writer takes no more now.
    fn write_left<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut W,
        moved: &mut Moved,
    ) -> Result<bool, Broken> {
        while self.written < self.left.len() {
            let Poll::Ready(written) = Pin::new(&mut *writer).poll_write(context, &self.left[self.written..])
            else {
                return Ok(false);
            };
            let written = nonzero(written)?;
            self.written += written;
            self.wrote(moved, written);
        }
        (self.left, self.written) = (Vec::new(), 0);
        Ok(true)
    }

    /// Reads once and writes what came; what the writer does not take is kept. `false`: there is
    /// nothing to read now.
    fn pass<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        reader: &mut R,
        writer: &mut W,
        moved: &mut Moved,
    ) -> Result<bool, Broken> {
        let mut stack = [MaybeUninit::<u8>::uninit(); CHUNK];
        let mut buffer = ReadBuf::uninit(&mut stack);
        match Pin::new(reader).poll_read(context, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(read) => read.map_err(Broken::Reader)?,
        }
        let mut bytes = buffer.filled();
        if bytes.is_empty() {
            (self.stage, moved.any) = (Stage::Ending, true);
            return Ok(true);
        }
        while !bytes.is_empty() {
            let Poll::Ready(written) = Pin::new(&mut *writer).poll_write(context, bytes) else { break };
            let written = nonzero(written)?;
            bytes = &bytes[written..];
            self.wrote(moved, written);
        }
        self.left.extend_from_slice(bytes);
        moved.any = true;
        Ok(true)
    }

    fn wrote(&mut self, moved: &mut Moved, bytes: usize) {
        moved.any = true;
        moved.bytes += u64::try_from(bytes).unwrap_or(u64::MAX);
        self.unflushed = true;
    }

    /// A writer such as TLS may hold bytes back until it is asked.
    fn flush<W: AsyncWrite + Unpin>(
        &mut self,
        context: &mut Context<'_>,
        writer: &mut W,
    ) -> Result<(), Broken> {
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(writer).poll_flush(context)
        {
            flushed.map_err(Broken::Writer)?;
            self.unflushed = false;
        }
        Ok(())
    }
}

fn nonzero(written: io::Result<usize>) -> Result<usize, Broken> {
    match written {
        Ok(0) => Err(Broken::Writer(io::ErrorKind::WriteZero.into())),
        Ok(written) => Ok(written),
        Err(error) => Err(Broken::Writer(error)),
    }
}

/// A peer that has ended both directions before ours was passed on has all that it wants: its socket
/// says `NotConnected` (shutdown(2)).
fn already_gone(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotConnected { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests;
