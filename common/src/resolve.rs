//! Names to addresses without the system's resolver, which does not work in a static binary in an
//! empty image: IP literals and `localhost` here, everything else over DNS with `/etc/resolv.conf`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Returns the addresses of `host:port`, IPv4 before IPv6 for `localhost`.
///
/// Cancel safety: safe.
///
/// # Errors
/// When the text is not `host:port`, the name does not exist or no name server answers.
pub async fn resolve(host_port: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host_port.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    let refuse = || io::Error::new(io::ErrorKind::InvalidInput, format!("{host_port:?} is not host:port"));
    let (host, port) = host_port.rsplit_once(':').ok_or_else(refuse)?;
    let port: u16 = port.parse().map_err(|_| refuse())?;
    let addresses: Vec<IpAddr> = match host {
        "localhost" => vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()],
        host => lookup(host).await?,
    };
    Ok(addresses.into_iter().map(|address| SocketAddr::new(address, port)).collect())
}

async fn lookup(host: &str) -> io::Result<Vec<IpAddr>> {
    let failed =
        |error: &dyn std::fmt::Display| io::Error::other(format!("cannot resolve {host:?}: {error}"));
    // Built anew each time: names are looked up at (re)connection only, and resolv.conf may change.
    let resolver = hickory_resolver::TokioResolver::builder_tokio()
        .and_then(hickory_resolver::ResolverBuilder::build)
        .map_err(|error| failed(&error))?;
    let found = resolver.lookup_ip(host).await.map_err(|error| failed(&error))?;
    let addresses: Vec<_> = found.iter().collect();
    if addresses.is_empty() { Err(failed(&"no address")) } else { Ok(addresses) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn literals_and_localhost_need_no_name_server() {
        assert_eq!(resolve("127.0.0.1:80").await.unwrap(), ["127.0.0.1:80".parse().unwrap()]);
        assert_eq!(resolve("[::1]:80").await.unwrap(), ["[::1]:80".parse().unwrap()]);
        let local = resolve("localhost:80").await.unwrap();
        assert!(local.iter().all(|address| address.ip().is_loopback()) && local.len() == 2);
        for bad in ["", "host", "host:", "host:99999"] {
            assert_eq!(resolve(bad).await.unwrap_err().kind(), io::ErrorKind::InvalidInput, "{bad}");
        }
    }
}
