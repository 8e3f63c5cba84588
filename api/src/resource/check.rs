//! What a resource must keep to beyond its shape: ranges by the table of fields, and here what
//! concerns several fields at once or takes more than a range to say.

use std::net::{IpAddr, Ipv4Addr};

use outrigger_common::config::{ConfigError, Origin};
use outrigger_common::name::check_label;
use serde::Serialize;

use super::MAX_ADDRESSES;
use super::fields::{Field, first_out_of_range};

mod authorization;
pub(super) mod filter;
mod policy;
mod route;

pub(super) use authorization::authorization;
pub(super) use policy::{defaults, traffic_policy};
pub(super) use route::{grpc_route, http_route};

/// Longest name of a resource (RFC 1123 subdomain, as Kubernetes has it).
const MAX_NAME: usize = 253;
/// Longest value of a header in a route, in bytes: the Gateway API's limit.
const MAX_VALUE: usize = 4096;

/// Something wrong: the key below `spec`, and what.
#[derive(Debug)]
pub(super) struct Fault {
    key: String,
    message: String,
}

pub(super) type Checked = Result<(), Fault>;

impl Fault {
    /// The error for people; `spec` is the key of what was checked.
    pub(super) fn at(self, origin: &Origin, spec: &str) -> ConfigError {
        origin.error(&format!("{spec}.{}", self.key), self.message)
    }
}

fn fault(key: impl Into<String>, message: impl Into<String>) -> Checked {
    Err(Fault { key: key.into(), message: message.into() })
}

/// The ranges of all fields.
fn ranges<Spec: Serialize>(fields: &[Field], spec: &Spec) -> Checked {
    let tree = serde_json::to_value(spec).expect("plain data with text keys always serialises");
    match first_out_of_range(fields, &tree) {
        Some((key, message)) => Err(Fault { key, message }),
        None => Ok(()),
    }
}

/// At least `min` and at most `max` of something.
fn count(key: &str, found: usize, min: usize, max: usize) -> Checked {
    if found < min {
        return fault(key, format!("empty; give {min} to {max}"));
    }
    if found > max {
        return fault(key, format!("{found} are too many; give at most {max}"));
    }
    Ok(())
}

/// Whether something appears before `index` as well; `same` compares.
fn twice<T>(list: &[T], same: impl Fn(&T, &T) -> bool) -> Option<usize> {
    (1..list.len()).find(|&index| list[..index].iter().any(|earlier| same(earlier, &list[index])))
}

/// A DNS name: labels with dots between them.
pub(super) fn subdomain(name: &str) -> Result<(), String> {
    let valid = name.len() <= MAX_NAME && name.split('.').all(|label| check_label(label).is_ok());
    if valid {
        return Ok(());
    }
    Err(format!(
        "{name:?} is not a valid name: use at most {MAX_NAME} lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part"
    ))
}

fn dns_name(key: &str, name: &str) -> Checked {
    subdomain(name).or_else(|message| fault(key, message))
}

fn label(key: &str, name: &str) -> Checked {
    check_label(name).or_else(|error| fault(key, error.to_string()))
}

/// The group of Services, which has no name of its own but is written `core` by some.
fn core_group(key: String, group: &str) -> Checked {
    if ["", "core"].contains(&group) {
        return Ok(());
    }
    fault(key, format!("{group:?} is not supported by this version; a Service's group is left out"))
}

/// A token of RFC 9110 section 5.6.2: names of headers and cookies.
fn token(key: &str, name: &str) -> Checked {
    let part = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if (1..=256).contains(&name.len()) && name.bytes().all(part) {
        return Ok(());
    }
    fault(key, format!("{name:?} is not a name: use 1 to 256 letters, digits and !#$%&'*+-.^_`|~"))
}

/// A header's value (RFC 9110 section 5.5), never empty.
fn header_value(key: &str, value: &str) -> Checked {
    let part = |b: u8| b >= b' ' && b != 0x7f || b == b'\t';
    let edges = value.trim_matches([' ', '\t']) == value;
    if (1..=MAX_VALUE).contains(&value.len()) && edges && value.bytes().all(part) {
        return Ok(());
    }
    fault(
        key,
        format!(
            "{value:?} is not a header's value: use 1 to {MAX_VALUE} bytes without control characters, and no space at the ends"
        ),
    )
}

/// Virtual addresses of a service.
pub(super) fn addresses(addresses: &[IpAddr]) -> Checked {
    count("addresses", addresses.len(), 0, MAX_ADDRESSES)?;
    for (index, address) in addresses.iter().enumerate() {
        if let Some(why) = not_virtual(*address) {
            return fault(format!("addresses[{index}]"), format!("{address} {why}"));
        }
    }
    match twice(addresses, |a, b| a == b) {
        Some(index) => fault(format!("addresses[{index}]"), format!("{} appears twice", addresses[index])),
        None => Ok(()),
    }
}

/// Why an address cannot stand for a service on every machine of the mesh.
fn not_virtual(address: IpAddr) -> Option<&'static str> {
    let link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    if address.to_canonical() != address {
        Some("is an IPv4 address in IPv6 form; write it as IPv4")
    } else if address.is_unspecified() {
        Some("is no address; give one that callers connect to")
    } else if address.is_loopback() {
        Some("is loopback: it means another machine to each caller; give one that is routed")
    } else if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
        Some("is a group's address, to which nobody connects; give one of a single host")
    } else if link_local {
        Some("is of one link only, and needs an interface beside it; give one that is routed")
    } else {
        None
    }
}
