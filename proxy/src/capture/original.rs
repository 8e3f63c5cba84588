//! Where a connection was going before it was redirected to this sidecar.

use std::net::SocketAddr;

use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use tokio::net::TcpStream;

/// The address the client connected to, if the kernel redirected the connection: `None` for one that
/// was made to the sidecar itself, also where there is no connection tracking to ask.
///
/// Source: `SO_ORIGINAL_DST` of `linux/netfilter_ipv4.h`, `IP6T_SO_ORIGINAL_DST` of
/// `linux/netfilter_ipv6/ip6_tables.h`. A connection the kernel tracks and has not translated has its own
/// address there.
pub fn destination(stream: &TcpStream) -> Option<SocketAddr> {
    let local = stream.local_addr().ok()?;
    let original = match local {
        SocketAddr::V4(_) => SocketAddr::V4(ip_original_dst(stream).ok()?),
        SocketAddr::V6(_) => SocketAddr::V6(ipv6_original_dst(stream).ok()?),
    };
    ((original.ip(), original.port()) != (local.ip(), local.port())).then_some(original)
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_made_to_the_listener_itself_was_going_nowhere_else() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let listener = TcpListener::bind(address).await.unwrap();
            let connecting = TcpStream::connect(listener.local_addr().unwrap());
            let (_client, accepted) = tokio::join!(connecting, listener.accept());
            assert_eq!(destination(&accepted.unwrap().0), None);
        }
    }
}
