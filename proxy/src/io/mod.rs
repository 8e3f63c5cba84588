//! Byte streams: what every kind of them must be able to do, and one that was read ahead.

mod ahead;
mod first;
mod guarded;
mod prefixed;

pub use ahead::Ahead;
pub use first::{read_into, tell};
pub use guarded::{Guarded, is_http};
pub use prefixed::Prefixed;

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A byte stream that can be carried.
pub trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Has the stream end with a reset, not with an orderly end, when it is dropped: its peer must not
    /// take a part for the whole.
    fn abort(&self);

    /// Takes that back: its end has come, and may be shown.
    fn relent(&self);
}

impl Stream for TcpStream {
    fn abort(&self) {
        // Without linger, closing sends RST (tcp(7), socket(7)). A socket that is gone needs none.
        let _gone = self.set_zero_linger();
    }

    fn relent(&self) {
        let _gone = rustix::net::sockopt::set_socket_linger(self, None);
    }
}

impl<Io: Stream> Stream for tokio_rustls::client::TlsStream<Io> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }

    fn relent(&self) {
        self.get_ref().0.relent();
    }
}

impl<Io: Stream> Stream for tokio_rustls::server::TlsStream<Io> {
    fn abort(&self) {
        self.get_ref().0.abort();
    }

    fn relent(&self) {
        self.get_ref().0.relent();
    }
}

/// A stream of HTTP/2. The library ends it orderly when it is dropped, and offers no reset: through
/// such a tunnel a broken end looks like an orderly one.
impl Stream for TokioIo<Upgraded> {
    fn abort(&self) {}

    fn relent(&self) {}
}

#[cfg(test)]
impl Stream for tokio::io::DuplexStream {
    fn abort(&self) {}

    fn relent(&self) {}
}
