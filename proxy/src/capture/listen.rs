//! Listeners for both kinds of addresses: the kernel redirects to 127.0.0.1 or to ::1, to an IPv4 or to
//! an IPv6 address of this machine, whichever kind the connection is of.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use outrigger_common::listen::{self, ListenError};
use rustix::io::Errno;
use rustix::net::sockopt::set_ipv6_v6only;
use tokio::net::{TcpListener, TcpSocket};

/// Connections waiting to be accepted, as tokio has it for other listeners.
const BACKLOG: u32 = 1024;

/// Opens a listener, and the same port of the other kind of address where the address is loopback or
/// unspecified: one or two listeners, that of `address` first. A machine without the other kind has
/// nothing to redirect to it.
///
/// # Errors
/// As [`listen::bind`].
pub async fn bind_pair(address: SocketAddr, key: &'static str) -> Result<Vec<TcpListener>, ListenError> {
    let first = if address.is_ipv6() { bind_v6(address, key)? } else { listen::bind(address, key).await? };
    let port = first.local_addr().map_or(address.port(), |at| at.port());
    let Some(other) = counterpart(address.ip()) else { return Ok(vec![first]) };
    let other = SocketAddr::new(other, port);
    let second = if other.is_ipv6() { bind_v6(other, key) } else { listen::bind(other, key).await };
    match second {
        Ok(second) => Ok(vec![first, second]),
        Err(error) if is_without(&error.source) => {
            tracing::info!(address = %other, error = %error.source, "not listened on: this machine has no such addresses");
            Ok(vec![first])
        }
        Err(error) => Err(error),
    }
}

/// The address of the other kind that means the same.
fn counterpart(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(Ipv4Addr::LOCALHOST) => Some(Ipv6Addr::LOCALHOST.into()),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Some(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V4(Ipv4Addr::UNSPECIFIED) => Some(Ipv6Addr::UNSPECIFIED.into()),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => Some(Ipv4Addr::UNSPECIFIED.into()),
        IpAddr::V4(_) | IpAddr::V6(_) => None,
    }
}

/// IPv6 turned off in the kernel, or in this network namespace.
fn is_without(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

/// For IPv6 alone: the IPv4 port of the same number has a listener of its own.
fn bind_v6(address: SocketAddr, key: &'static str) -> Result<TcpListener, ListenError> {
    let bind = || {
        let socket = TcpSocket::new_v6()?;
        set_ipv6_v6only(&socket, true)?;
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        socket.listen(BACKLOG)
    };
    bind().map_err(|source| ListenError::new(address, key, source))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpStream;

    use super::*;

    #[tokio::test]
    async fn both_kinds_of_loopback_have_the_same_port() {
        for address in ["127.0.0.1:0", "[::1]:0", "0.0.0.0:0", "[::]:0"] {
            let pair = bind_pair(address.parse().unwrap(), "outbound.listen").await.unwrap();
            let at: Vec<_> = pair.iter().map(|listener| listener.local_addr().unwrap()).collect();
            assert_eq!(at.len(), 2, "{address}");
            assert_eq!(at[0].port(), at[1].port());
            assert_eq!(at.iter().filter(|at| at.is_ipv4()).count(), 1, "{at:?}");
            for (listener, at) in pair.iter().zip(at) {
                let loopback: IpAddr =
                    if at.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                let connecting = TcpStream::connect(SocketAddr::new(loopback, at.port()));
                let (connected, accepted) = tokio::join!(connecting, listener.accept());
                assert!(connected.is_ok() && accepted.is_ok());
            }
        }
    }

    #[tokio::test]
    async fn one_address_has_no_counterpart_and_a_port_in_use_is_an_error() {
        assert_eq!(counterpart("10.0.0.1".parse().unwrap()), None);
        // Port 0 again, should somebody have the other one's.
        let taken = loop {
            let v6 = TcpListener::bind("[::1]:0").await.unwrap();
            let port = v6.local_addr().unwrap().port();
            if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
                break v6;
            }
        };
        let port = taken.local_addr().unwrap().port();
        let error = bind_pair((Ipv4Addr::LOCALHOST, port).into(), "outbound.listen").await.unwrap_err();
        assert!(error.to_string().contains("another process"), "{error}");
    }
}
