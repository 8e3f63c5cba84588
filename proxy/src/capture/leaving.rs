//! Connections this sidecar makes to what is outside of the mesh. Should the redirect capture them by
//! mistake, because the sidecar runs as another user than the redirect leaves out, they arrive here
//! again, and must be known.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, connect, socket_with};
use tokio::net::TcpStream;

use crate::control::owners::canonical;

/// Their two ends, with how many have them: the kernel may give both to a new connection before its
/// predecessor is forgotten here. One end alone says nothing, since the kernel gives a local port to
/// connections to several destinations at once.
#[derive(Debug, Default)]
pub struct Leaving(Mutex<HashMap<Ends, usize>>);

/// The local address and the destination, in IPv4 if they are.
type Ends = (SocketAddr, SocketAddr);

fn ends(local: SocketAddr, destination: SocketAddr) -> Ends {
    (canonical(local), canonical(destination))
}

/// One of them, forgotten when this is dropped: keep it as long as the connection.
#[derive(Debug)]
pub struct Left {
    leaving: Arc<Leaving>,
    ends: Ends,
}

impl Leaving {
    /// Connects. Its ends are known before anybody can have accepted the connection, if the data plane has
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
        let left = self.note(ends(stream.local_addr()?, address));
        stream.writable().await?;
        match stream.take_error()? {
            None => Ok((stream, left)),
            Some(error) => Err(error),
        }
    }

    fn note(self: &Arc<Self>, ends: Ends) -> Left {
        *self.lock().entry(ends).or_default() += 1;
        Left { leaving: self.clone(), ends }
    }

    /// Whether the connection that comes from this address and was going to that one is one of ours.
    pub fn is_ours(&self, from: SocketAddr, destination: SocketAddr) -> bool {
        self.lock().contains_key(&ends(from, destination))
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ends, usize>> {
        // A count is whole after any panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Left {
    fn drop(&mut self) {
        if let Entry::Occupied(mut known) = self.leaving.lock().entry(self.ends) {
            *known.get_mut() -= 1;
            if *known.get() == 0 {
                known.remove();
            }
        }
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
            assert!(leaving.is_ours(from, at) && !leaving.is_ours(at, from));
            drop((stream, left));
            assert!(!leaving.is_ours(from, at));
            drop(listener);
            let refused = leaving.connect(at).await.unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        assert!(leaving.lock().is_empty());
    }

    #[test]
    fn both_ends_tell_and_each_of_two_with_the_same_is_forgotten_by_itself() {
        let leaving = Arc::new(Leaving::default());
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        let (from, destination) = (at("10.0.0.1:40000"), at("192.0.2.1:443"));
        let first = leaving.note(ends(from, destination));
        let second = leaving.note(ends(at("[::ffff:10.0.0.1]:40000"), at("[::ffff:192.0.2.1]:443")));
        // The application's own, from the same port.
        for other in ["192.0.2.2:443", "192.0.2.1:80"] {
            assert!(!leaving.is_ours(from, at(other)), "{other}");
        }
        drop(first);
        assert!(leaving.is_ours(from, destination), "there is another");
        drop(second);
        assert!(!leaving.is_ours(from, destination));
        assert!(leaving.lock().is_empty());
    }
}
