//! Listening sockets, with errors that name the key and the remedy.

use std::io;
use std::net::SocketAddr;

use tokio::net::{TcpListener, TcpSocket};

/// Connections that may wait to be accepted. By default it is 128: when all clients come at once, as after a
/// restart, the kernel drops the rest, and they try again after seconds. With many more, those in the
/// queue would give up before their turn.
const BACKLOG: u32 = 512;

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} ({key}): {remedy}")]
pub struct ListenError {
    /// The address asked for.
    pub address: SocketAddr,
    /// The configuration key it came from.
    pub key: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

/// Opens a listener; `key` is the configuration key that named the address. Port 0 picks a free port.
///
/// # Errors
/// When the address is taken, not this machine's, or not permitted.
///
/// Cancel safety: safe.
pub async fn bind(address: SocketAddr, key: &'static str) -> Result<TcpListener, ListenError> {
    listen(address).map_err(|source| ListenError::new(address, key, source))
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // As the library's own: a restart must not wait for connections that have yet to time out.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

impl ListenError {
    /// What to do when `address` of `key` cannot be listened on for `source`.
    pub fn new(address: SocketAddr, key: &'static str, source: io::Error) -> Self {
        let remedy = match source.kind() {
            io::ErrorKind::AddrInUse => "another process listens there; stop it or choose another port",
            io::ErrorKind::AddrNotAvailable => "this machine has no such address; use one of its own",
            io::ErrorKind::PermissionDenied => "ports below 1024 need privileges; choose a higher one",
            _ => "see the cause",
        };
        Self { address, key, remedy, source }
    }
}
