//! Whose an address is: the virtual addresses of services, and workloads' own with the ports of their
//! applications. Pure; a part of [`crate::state`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::v1;
use outrigger_common::name::ServiceName;

use crate::state::{ServiceState, differences};

/// A change copies one part of the index: with 100,000 addresses some 400 of them.
const SHARDS: usize = 256;

/// Whose an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// The service.
    pub service: ServiceName,
    /// Number of its port.
    pub port: u16,
    /// The workload whose own address it is; none: a virtual address, so any of them.
    pub workload: Option<Arc<str>>,
}

/// Who claims which address, at one position of the source. Shares with its predecessors what did not
/// change.
#[derive(Debug, Clone, Default)]
pub struct Owners {
    shards: Arc<Vec<Shard>>,
}

/// Claims in order, the one that counts first. Nearly always there is one, and a tree would have room for
/// eleven.
type Shard = Arc<HashMap<SocketAddr, Vec<Claim>>>;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Claim {
    rank: Rank,
    service: ServiceName,
    port: u16,
    workload: Option<Arc<str>>,
}

/// In the order in which claims count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    /// The administrator said so.
    Virtual,
    /// The later one: an address given to another workload is the new one's, though the lease of the
    /// old one may not have ended.
    Workload(Reverse<u64>),
}

impl Owners {
    /// Whose the address is; none: nobody's.
    pub fn of(&self, address: SocketAddr) -> Option<Owner> {
        let claim = self.shards.get(shard(address))?.get(&address)?.first()?;
        let Claim { service, port, workload, .. } = claim.clone();
        Some(Owner { service, port, workload })
    }

    /// Puts a service's claims in the place of its former ones. Returns the addresses whose owner is
    /// another now. Costs what differs between the two.
    pub fn replace(
        &mut self,
        name: &ServiceName,
        old: Option<&ServiceState>,
        new: Option<&ServiceState>,
    ) -> BTreeSet<SocketAddr> {
        let mut before = BTreeMap::new();
        for (address, claim) in claims(name, old, new) {
            before.entry(address).or_insert_with(|| self.of(address));
            let shard = self.shard(address);
            if let Some(claims) = shard.get_mut(&address) {
                claims.retain(|known| *known != claim);
                if claims.is_empty() {
                    shard.remove(&address);
                }
            }
        }
        for (address, claim) in claims(name, new, old) {
            before.entry(address).or_insert_with(|| self.of(address));
            let claims = self.shard(address).entry(address).or_insert_with(|| Vec::with_capacity(1));
            if let Err(place) = claims.binary_search(&claim) {
                claims.insert(place, claim);
            }
        }
        before.retain(|address, owner| self.of(*address) != *owner);
        before.into_keys().collect()
    }

    fn shard(&mut self, address: SocketAddr) -> &mut HashMap<SocketAddr, Vec<Claim>> {
        let shards = Arc::make_mut(&mut self.shards);
        shards.resize_with(SHARDS, Shard::default);
        Arc::make_mut(&mut shards[shard(address)])
    }
}

fn shard(address: SocketAddr) -> usize {
    let mut hasher = DefaultHasher::new();
    address.hash(&mut hasher);
    usize::try_from(hasher.finish() % SHARDS as u64).unwrap_or_default()
}

/// What one form of a service claims, without what it shares with another.
fn claims(
    name: &ServiceName,
    of: Option<&ServiceState>,
    but: Option<&ServiceState>,
) -> Vec<(SocketAddr, Claim)> {
    let Some(of) = of else { return Vec::new() };
    let mut found = Vec::new();
    let virtual_too = |other: &ServiceState| other.addresses == of.addresses && other.ports == of.ports;
    if !but.is_some_and(virtual_too) {
        let numbers = || of.ports.iter().filter_map(|port| u16::try_from(port.number).ok());
        for (ip, port) in of.addresses.iter().flat_map(|ip| numbers().map(move |port| (*ip, port))) {
            let claim = Claim { rank: Rank::Virtual, service: name.clone(), port, workload: None };
            found.push((SocketAddr::new(ip, port), claim));
        }
    }
    let none = BTreeMap::new();
    for (key, _, endpoint) in differences(but.map_or(&none, |but| &but.endpoints), &of.endpoints) {
        let Some(endpoint) = endpoint else { continue };
        let (workload, port) = key.clone();
        let rank = Rank::Workload(Reverse(endpoint.since));
        let claim = Claim { rank, service: name.clone(), port, workload: Some(workload) };
        found.push((endpoint.application, claim));
    }
    found
}

/// An address as people write it: IPv4 in IPv6 form is IPv4; zone and flow belong to one machine.
///
/// # Errors
/// When it is no address with a port; for people.
pub fn parse(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr =
        text.parse().map_err(|_| format!("{text:?} is not an IP address with a port"))?;
    Ok(SocketAddr::new(address.ip().to_canonical(), address.port()))
}

/// As sidecars hear of it.
pub fn told(address: SocketAddr, owner: Option<&Owner>) -> v1::AddressOwner {
    let mut told = v1::AddressOwner { address: address.to_string(), ..Default::default() };
    if let Some(owner) = owner {
        told.service = owner.service.to_string();
        told.port = owner.port.into();
        told.workload = owner.workload.as_deref().unwrap_or_default().to_owned();
    }
    told
}

/// What a sidecar says it was told.
///
/// # Errors
/// When nobody was ever told that; for people.
pub fn held(told: &v1::AddressOwner) -> Result<(SocketAddr, Option<Owner>), String> {
    let address = parse(&told.address)?;
    if told.service.is_empty() {
        return Ok((address, None));
    }
    let service = ServiceName::parse(&told.service).map_err(|error| error.to_string())?;
    let port = u16::try_from(told.port).map_err(|_| format!("{} is not a port", told.port))?;
    let workload = Some(told.workload.as_str()).filter(|id| !id.is_empty()).map(Arc::from);
    Ok((address, Some(Owner { service, port, workload })))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::EndpointState;

    fn name(label: &str) -> ServiceName {
        ServiceName::new("shop", label).unwrap()
    }

    fn service(addresses: &[&str], ports: &[u16], endpoints: &[(&str, u16, &str, u64)]) -> ServiceState {
        let port = |number: &u16| v1::Port { number: (*number).into(), ..Default::default() };
        let endpoint = |&(id, port, at, since): &(&str, u16, &str, u64)| {
            let endpoint = v1::Endpoint { workload: id.into(), port: port.into(), ..Default::default() };
            let application = at.parse().unwrap();
            let state = EndpointState { endpoint, application, since, lease: None, digest: 0 };
            ((id.into(), port), Arc::new(state))
        };
        ServiceState {
            changed: 1,
            ports: ports.iter().map(port).collect(),
            addresses: addresses.iter().map(|ip| ip.parse().unwrap()).collect(),
            endpoints: endpoints.iter().map(endpoint).collect(),
            memo: Default::default(),
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    fn owner(owners: &Owners, address: &str) -> String {
        match owners.of(at(address)) {
            None => String::new(),
            Some(Owner { service, port, workload }) => {
                format!("{service} {port} {}", workload.as_deref().unwrap_or("any"))
            }
        }
    }

    #[test]
    fn virtual_addresses_are_every_ports_and_workloads_their_own() {
        let mut owners = Owners::default();
        let first = service(&["10.0.9.1", "fd00::9"], &[80, 443], &[("w1", 80, "10.1.0.1:8080", 3)]);
        let changed = owners.replace(&name("web"), None, Some(&first));
        assert_eq!(changed.len(), 5);
        assert_eq!(owner(&owners, "10.0.9.1:443"), "web.shop 443 any");
        assert_eq!(owner(&owners, "[fd00::9]:80"), "web.shop 80 any");
        assert_eq!(owner(&owners, "10.1.0.1:8080"), "web.shop 80 w1");
        for nobody in ["10.0.9.1:81", "10.1.0.1:80", "[fd00::8]:80"] {
            assert_eq!(owner(&owners, nobody), "");
        }
        let second = service(&["10.0.9.1"], &[80], &[("w1", 80, "10.1.0.1:8081", 4)]);
        let changed = owners.replace(&name("web"), Some(&first), Some(&second));
        let texts: Vec<_> = changed.iter().map(ToString::to_string).collect();
        let wanted = ["10.0.9.1:443", "10.1.0.1:8080", "10.1.0.1:8081", "[fd00::9]:80", "[fd00::9]:443"];
        assert_eq!(texts, wanted, "what stayed is not reported");
        assert_eq!(owners.replace(&name("web"), Some(&second), None).len(), 2);
        assert!(owners.shards.iter().all(|shard| shard.is_empty()));
    }

    #[test]
    fn of_two_claims_one_counts_and_the_other_takes_its_place() {
        let mut owners = Owners::default();
        let old = service(&[], &[80], &[("old", 80, "10.1.0.1:80", 3)]);
        let new = service(&[], &[80], &[("new", 80, "10.1.0.1:80", 9)]);
        owners.replace(&name("b"), None, Some(&new));
        assert_eq!(owners.replace(&name("a"), None, Some(&old)), BTreeSet::new());
        assert_eq!(owner(&owners, "10.1.0.1:80"), "b.shop 80 new", "the later one");
        let fixed = service(&["10.1.0.1"], &[80], &[]);
        assert_eq!(owners.replace(&name("c"), None, Some(&fixed)).len(), 1);
        assert_eq!(owner(&owners, "10.1.0.1:80"), "c.shop 80 any", "what an administrator says");
        owners.replace(&name("c"), Some(&fixed), None);
        assert_eq!(owners.replace(&name("b"), Some(&new), None), [at("10.1.0.1:80")].into());
        assert_eq!(owner(&owners, "10.1.0.1:80"), "a.shop 80 old");
        assert_eq!(owners.replace(&name("a"), Some(&old), None), [at("10.1.0.1:80")].into());
        assert_eq!(owner(&owners, "10.1.0.1:80"), "");
    }

    #[test]
    fn a_change_copies_one_part_of_the_index() {
        let mut owners = Owners::default();
        let endpoint = |n: u16| (format!("w{n}"), format!("10.1.{}.{}:80", n / 256, n % 256));
        let all: Vec<_> = (0..5000).map(endpoint).collect();
        let all: Vec<_> = all.iter().map(|(id, at)| (id.as_str(), 80, at.as_str(), 1)).collect();
        let many = service(&[], &[80], &all);
        owners.replace(&name("web"), None, Some(&many));
        let before = owners.clone();
        let mut less = many.clone();
        less.endpoints.pop_first();
        assert_eq!(owners.replace(&name("web"), Some(&many), Some(&less)).len(), 1);
        let pairs = || before.shards.iter().zip(&**owners.shards);
        assert_eq!(pairs().filter(|(a, b)| !Arc::ptr_eq(a, b)).count(), 1);
    }

    #[test]
    fn what_is_told_can_be_given_back() {
        let owner = |workload: Option<&str>| Owner {
            service: name("web"),
            port: 80,
            workload: workload.map(Arc::from),
        };
        for owner in [None, Some(owner(None)), Some(owner(Some("w1")))] {
            for address in ["10.0.9.1:80", "[fd00::9]:443"] {
                let told = told(at(address), owner.as_ref());
                assert_eq!(held(&told), Ok((at(address), owner.clone())));
            }
        }
        assert_eq!(parse("[::ffff:10.0.9.1]:80"), Ok(at("10.0.9.1:80")));
        assert_eq!(parse("[fe80::1%3]:80"), Ok(at("[fe80::1]:80")));
        assert!(parse("10.0.9.1").is_err() && parse("web.shop:80").is_err());
    }
}
