//! Reading without a buffer at hand: one is taken when there is something to put into it.

use std::future::poll_fn;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::task::ready;
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};

use crate::detect::{Verdict, detect};

/// Bytes read at once, on the stack.
const STACK: usize = 4 << 10;
/// A client that has begun something that can hardly be anything but HTTP or TLS gets this long for
/// each next part of it.
const PATIENCE: Duration = Duration::from_secs(1);

/// Reads what there is and appends it to `bytes`, at most 4 KiB; returns how many came, 0 at the end.
///
/// While it waits it holds no buffer, so that a silent connection costs none.
///
/// Cancel safety: nothing is lost.
///
/// # Errors
/// The stream's own.
pub async fn read_into<Io: AsyncRead + Unpin>(io: &mut Io, bytes: &mut Vec<u8>) -> io::Result<usize> {
    poll_fn(|context| {
        let mut stack = [MaybeUninit::<u8>::uninit(); STACK];
        let mut buffer = ReadBuf::uninit(&mut stack);
        ready!(Pin::new(&mut *io).poll_read(context, &mut buffer))?;
        bytes.extend_from_slice(buffer.filled());
        Ok(buffer.filled().len()).into()
    })
    .await
}

/// What a client speaks that has sent `bytes`; reads on until it is clear.
///
/// A client that stops in the middle has said all it will for now: what is not known by then is opaque.
/// Where its words could as well be whole, `short` is the longest pause; where they are the beginning
/// of HTTP or TLS, a second. `None` instead of a pause: it is waited for as long as it takes, since
/// there is nothing else it could be.
///
/// Never returns [`Verdict::More`].
///
/// Cancel safety: nothing is lost; call it again with the same `bytes`.
///
/// # Errors
/// The stream's own.
pub async fn tell<Io: AsyncRead + Unpin>(
    io: &mut Io,
    bytes: &mut Vec<u8>,
    short: Option<Duration>,
) -> io::Result<Verdict> {
    loop {
        let pause = match detect(bytes) {
            Verdict::More { likely: true } => short.map(|short| PATIENCE.max(short)),
            Verdict::More { likely: false } => short,
            verdict => return Ok(verdict),
        };
        let reading = read_into(io, bytes);
        let read = match pause {
            None => reading.await,
            Some(pause) => match tokio::time::timeout(pause, reading).await {
                Ok(read) => read,
                Err(_) => return Ok(Verdict::Opaque),
            },
        };
        if read? == 0 {
            return Ok(Verdict::Opaque);
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::time::Instant;

    use super::*;

    const SHORT: Option<Duration> = Some(Duration::from_millis(10));

    #[tokio::test(start_paused = true)]
    async fn what_is_begun_is_read_to_its_end_and_what_stops_is_opaque() {
        for (said, waits) in [("hello", 10), ("GET /ord", 1000), ("\x16\x03", 1000)] {
            let (mut client, mut io) = tokio::io::duplex(64);
            client.write_all(said.as_bytes()).await.unwrap();
            let (mut bytes, since) = (Vec::new(), Instant::now());
            assert_eq!(tell(&mut io, &mut bytes, SHORT).await.unwrap(), Verdict::Opaque, "{said:?}");
            assert_eq!(bytes, said.as_bytes());
            assert_eq!(since.elapsed().as_millis(), waits, "{said:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_client_is_understood() {
        let (mut client, mut io) = tokio::io::duplex(64);
        let slowly = async {
            for byte in b"GET / HTTP/1.1\r\n" {
                client.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(Duration::from_millis(900)).await;
            }
        };
        let mut bytes = Vec::new();
        let telling = tell(&mut io, &mut bytes, SHORT);
        assert_eq!(tokio::join!(telling, slowly).0.unwrap(), Verdict::Http1);
        assert_eq!(bytes, b"GET / HTTP/1.1\r\n");
    }

    #[tokio::test]
    async fn a_client_that_ends_has_said_all() {
        let (mut client, mut io) = tokio::io::duplex(64);
        client.write_all(b"GET ").await.unwrap();
        drop(client);
        let mut bytes = Vec::new();
        assert_eq!(tell(&mut io, &mut bytes, None).await.unwrap(), Verdict::Opaque);
        assert_eq!(bytes, b"GET ");
    }
}
