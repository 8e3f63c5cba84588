//! Connections this sidecar makes to what is outside of the mesh. Should the redirect capture them by
//! mistake, because the sidecar runs as another user than the redirect leaves out, they arrive here
//! again, and must be known.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use tokio::net::TcpStream;

/// Their local ends.
#[derive(Debug, Default)]
pub struct Leaving(Mutex<HashSet<SocketAddr>>);

/// One of them, forgotten when this is dropped: keep it as long as the connection.
#[derive(Debug)]
pub struct Left {
    leaving: Arc<Leaving>,
    local: SocketAddr,
}

impl Leaving {
    /// Connects. Its end is known before anybody can have accepted the connection, if the data plane has
    /// one thread; with more, one that comes back may be missed, and is known the next time round.
    ///
    /// Cancel safety: the connection is dropped.
    ///
    /// # Errors
    /// As connect(2).
    pub async fn connect(self: &Arc<Self>, address: SocketAddr) -> io::Result<(TcpStream, Left)> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = socket_with(family, SocketType::STREAM, flags, None)?;
        match connect(&socket, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        }
        let stream = TcpStream::from_std(socket.into())?;
        let local = stream.local_addr()?;
        self.lock().insert(local);
        let left = Left { leaving: self.clone(), local };
        stream.writable().await?;
        match stream.take_error()? {
            None => Ok((stream, left)),
            Some(error) => Err(error),
        }
    }

    /// Whether the connection that comes from this address is one of ours.
    pub fn is_ours(&self, from: SocketAddr) -> bool {
        self.lock().contains(&from)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<SocketAddr>> {
        // A set is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        self.leaving.lock().remove(&self.local);
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn what_comes_back_is_known_as_long_as_it_lasts() {
        let leaving = Arc::new(Leaving::default());
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let at = listener.local_addr().unwrap();
            let (connected, accepted) = tokio::join!(leaving.connect(at), listener.accept());
            let ((stream, left), (_accepted, from)) = (connected.unwrap(), accepted.unwrap());
            assert_eq!(stream.local_addr().unwrap(), from);
            assert!(leaving.is_ours(from) && !leaving.is_ours(at));
            drop((stream, left));
            assert!(!leaving.is_ours(from));
            drop(listener);
            let refused = leaving.connect(at).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        assert!(leaving.lock().is_empty());
    }
}
