//! Where the application wants to go: service names in all their forms. Pure.

use std::net::IpAddr;

use outrigger_common::name::ServiceName;

/// The port where a name gives none.
const DEFAULT_PORT: u16 = 80;
/// What may follow `name.namespace`.
const SUFFIXES: [&str; 3] = [".svc.cluster.local", ".svc", ".mesh"];

/// What an authority names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// A service and its port.
    Service {
        /// The service.
        name: ServiceName,
        /// Its port.
        port: u16,
    },
    /// An address of this machine: perhaps the sidecar's own.
    Local {
        /// The port.
        port: u16,
    },
    /// Nothing the registry could know.
    NotAService,
    /// Not `host` or `host:port`.
    Malformed,
}

/// Reads `orders`, `orders.shop`, `orders.shop.mesh`, `orders.shop.svc` or
/// `orders.shop.svc.cluster.local`, each with an optional `:port`. A bare name is the caller's own
/// namespace's. Case and a trailing dot do not matter (RFC 9110 section 4.2.3, RFC 1034 section 3.1).
pub fn parse(authority: &str, namespace: &str) -> Destination {
    let lowered;
    let authority = if authority.bytes().any(|b| b.is_ascii_uppercase()) {
        lowered = authority.to_ascii_lowercase();
        &lowered
    } else {
        authority
    };
    let Some((host, port)) = split(authority) else { return Destination::Malformed };
    if !host.bytes().all(is_host_byte) {
        return Destination::Malformed;
    }
    let literal = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = literal.parse::<IpAddr>() {
        let address = address.to_canonical();
        let local = address.is_loopback() || address.is_unspecified();
        return if local { Destination::Local { port } } else { Destination::NotAService };
    }
    let host = host.strip_suffix('.').unwrap_or(host);
    if host == "localhost" {
        return Destination::Local { port };
    }
    let short = SUFFIXES
        .iter()
        .find_map(|suffix| host.strip_suffix(suffix).filter(|rest| rest.contains('.')))
        .unwrap_or(host);
    let name = match short.split_once('.') {
        Some((name, namespace)) => ServiceName::new(namespace, name),
        None => ServiceName::new(namespace, short),
    };
    match name {
        Ok(name) => Destination::Service { name, port },
        Err(_) => Destination::NotAService,
    }
}

/// What a host may be written with (RFC 3986 section 3.2.2): else the request is malformed (RFC 9112
/// section 3.2), not merely for a service nobody knows.
fn is_host_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=[]:".contains(&byte)
}

/// Host and port; the port is the default where there is none.
fn split(authority: &str) -> Option<(&str, u16)> {
    let colon = match authority.rfind(']') {
        Some(bracket) => authority[bracket..].find(':').map(|at| bracket + at),
        None => authority.find(':'),
    };
    let (host, port) = match colon {
        None => (authority, DEFAULT_PORT),
        Some(at) => {
            let port = &authority[at + 1..];
            if port.is_empty() || !port.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            (&authority[..at], port.parse().ok().filter(|port| *port != 0)?)
        }
    };
    (!host.is_empty()).then_some((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(namespace: &str, name: &str, port: u16) -> Destination {
        Destination::Service { name: ServiceName::new(namespace, name).unwrap(), port }
    }

    #[test]
    fn every_form_of_a_name_is_the_same_service() {
        for form in [
            "orders",
            "orders.shop",
            "orders.shop.mesh",
            "orders.shop.svc",
            "orders.shop.svc.cluster.local",
            "orders.shop.",
            "ORDERS.Shop",
        ] {
            assert_eq!(parse(form, "shop"), service("shop", "orders", 80), "{form}");
            if !form.ends_with('.') {
                assert_eq!(parse(&format!("{form}:8080"), "shop"), service("shop", "orders", 8080), "{form}");
            }
        }
        assert_eq!(parse("orders", "other"), service("other", "orders", 80));
        assert_eq!(
            parse("orders.svc", "shop"),
            service("svc", "orders", 80),
            "a namespace named like a suffix"
        );
    }

    #[test]
    fn what_is_no_service_is_told_apart() {
        for local in [
            "127.0.0.1:15001",
            "localhost:15001",
            "[::1]:15001",
            "0.0.0.0:15001",
            "[::ffff:127.0.0.1]:15001",
            "[::ffff:0.0.0.0]:15001",
        ] {
            assert_eq!(parse(local, "shop"), Destination::Local { port: 15001 }, "{local}");
        }
        for other in ["10.0.0.1", "[2001:db8::1]:80", "a.b.c.d", "example.com.au", "under_score", "-x.shop"] {
            assert_eq!(parse(other, "shop"), Destination::NotAService, "{other}");
        }
        for bad in [
            "",
            ":80",
            "orders:",
            "orders:x",
            "orders:0",
            "orders:99999",
            "orders:80:80",
            "orders shop",
            "a/b",
            "a\\b",
            "a@b",
        ] {
            assert_eq!(parse(bad, "shop"), Destination::Malformed, "{bad}");
        }
    }
}
