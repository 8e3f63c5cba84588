//! An application that runs as the sidecar's user: what it sends would go past the mesh, since the
//! redirect leaves that user out. Its listening sockets give it away.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::config::Served;

/// What `/ready` says of each served port whose application runs as this process's user; empty when all
/// is well, and as long as the application does not listen.
///
/// Reads two files of `/proc`, whose length is that of all sockets of this network namespace.
pub fn complaints(served: &[Served]) -> Vec<String> {
    let own = rustix::process::geteuid().as_raw();
    let tables = ["/proc/self/net/tcp", "/proc/self/net/tcp6"]
        .map(|path| fs::read_to_string(path).unwrap_or_default());
    let sockets: Vec<_> =
        tables.iter().flat_map(|table| listening(table)).filter(|socket| socket.uid == own).collect();
    let mut ports: Vec<_> = served
        .iter()
        .filter(|served| sockets.iter().any(|socket| socket.takes(served.target.ip(), served.target.port())))
        .map(|served| served.target.port())
        .collect();
    ports.sort_unstable();
    ports.dedup();
    let complain = |port: u16| {
        format!(
            "the application on port {port} runs as user {own}, this sidecar's own: its calls are not captured; give each a user of its own"
        )
    };
    ports.into_iter().map(complain).collect()
}

/// A listening socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Socket {
    address: IpAddr,
    port: u16,
    uid: u32,
}

impl Socket {
    fn takes(&self, target: IpAddr, port: u16) -> bool {
        let everywhere = match self.address {
            IpAddr::V4(any) => any.is_unspecified() && target.is_ipv4(),
            // IPv4 as well, unless it was told otherwise.
            IpAddr::V6(any) => any.is_unspecified(),
        };
        self.port == port && (everywhere || self.address.to_canonical() == target)
    }
}

/// The listening sockets of a table such as `/proc/net/tcp`; lines that cannot be read are none.
///
/// Source: proc_pid_net(5); addresses are in hexadecimal words of the machine's byte order, state 0A is
/// listening (`TCP_LISTEN` of `net/tcp_states.h`).
fn listening(table: &str) -> impl Iterator<Item = Socket> {
    table.lines().skip(1).filter_map(|line| {
        let fields: Vec<_> = line.split_ascii_whitespace().take(8).collect();
        let &[_, local, _, "0A", _, _, _, uid] = fields.as_slice() else { return None };
        let (address, port) = local.split_once(':')?;
        Some(Socket {
            address: parse(address)?,
            port: u16::from_str_radix(port, 16).ok()?,
            uid: uid.parse().ok()?,
        })
    })
}

fn parse(address: &str) -> Option<IpAddr> {
    let word = |at: usize| {
        let word = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(word, 16).ok()?.to_ne_bytes())
    };
    match address.len() {
        8 => Some(IpAddr::V4(Ipv4Addr::from(word(0)?))),
        32 => {
            let mut octets = [0; 16];
            for (at, octets) in octets.chunks_exact_mut(4).enumerate() {
                octets.copy_from_slice(&word(at)?);
            }
            Some(IpAddr::V6(Ipv6Addr::from(octets)))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::net::{SocketAddr, TcpListener};

    use super::*;

    #[test]
    fn real_listening_sockets_are_found_with_their_user() {
        let own = rustix::process::geteuid().as_raw();
        for (path, address) in [("/proc/self/net/tcp", "127.0.0.1:0"), ("/proc/self/net/tcp6", "[::1]:0")] {
            let listener = TcpListener::bind(address).unwrap();
            let at = listener.local_addr().unwrap();
            let socket = Socket { address: at.ip(), port: at.port(), uid: own };
            let found = || listening(&fs::read_to_string(path).unwrap()).any(|found| found == socket);
            assert!(found());
            drop(listener);
            assert!(!found(), "no longer");
        }
    }

    #[test]
    fn connections_and_what_cannot_be_read_are_no_listeners() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
             0: 0100007F:1F90 00000000:0000 01 00000000:00000000 00:00000000 00000000  1337        0 1 1\n\
             1: 0100007F:XXXX 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 1 1\n\
             2: 0100007F 00000000:0000 0A 00000000:00000000 00:00000000 00000000  1337        0 1 1\n\
             3: 0100007F:1F90 00000000:0000 0A\n";
        assert_eq!(listening(table).count(), 0);
    }

    #[test]
    fn a_socket_takes_what_is_addressed_to_it() {
        let takes = |listens: &str, target: &str| {
            let (listens, target): (SocketAddr, SocketAddr) =
                (listens.parse().unwrap(), target.parse().unwrap());
            let socket = Socket { address: listens.ip(), port: listens.port(), uid: 0 };
            socket.takes(target.ip(), target.port())
        };
        for (listens, target, expected) in [
            ("127.0.0.1:80", "127.0.0.1:80", true),
            ("0.0.0.0:80", "127.0.0.1:80", true),
            ("[::]:80", "127.0.0.1:80", true),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80", true),
            ("[::]:80", "[::1]:80", true),
            ("0.0.0.0:80", "[::1]:80", false),
            ("0.0.0.0:80", "127.0.0.1:81", false),
            ("10.0.0.1:80", "127.0.0.1:80", false),
        ] {
            assert_eq!(takes(listens, target), expected, "{listens} {target}");
        }
    }
}
