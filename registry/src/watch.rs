//! What one stream has been sent, and what it must be sent next. Pure.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use outrigger_api::v1;
use outrigger_api::v1::change::Change as Kind;
use outrigger_common::name::ServiceName;

use crate::hub::Marks;
use crate::owners::{Owner, told};
use crate::policies::{Audience, Set};
use crate::sent::{change, digest};
use crate::state::{ServiceState, State, differences};

/// Services up to which a cursor says what was held of each: eight bytes a service in every update.
const MAX_DIGESTS: usize = 512;

/// A place in a source's history, opaque to sidecars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Identity of the source.
    pub source: String,
    /// Position in it.
    pub position: u64,
    /// What the far side then held of each service, in digests, if that was not too much to say. A
    /// service that did not change for long is older than its stream's cursor, and what a registry
    /// that was started again knows of it is not: these say that it is the same all the same.
    pub held: Vec<u64>,
}

impl Cursor {
    /// The cursor's bytes: position, then source, and after a zero the digests.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(9 + self.source.len() + 8 * self.held.len());
        bytes.extend(self.position.to_be_bytes());
        bytes.extend_from_slice(self.source.as_bytes());
        if !self.held.is_empty() {
            bytes.push(0);
            bytes.extend(self.held.iter().flat_map(|digest| digest.to_be_bytes()));
        }
        bytes
    }

    /// Reads a cursor; none for what is not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (position, rest) = bytes.split_first_chunk::<8>()?;
        let (source, digests) = match rest.iter().position(|byte| *byte == 0) {
            None => (rest, &[][..]),
            Some(end) => (&rest[..end], &rest[end + 1..]),
        };
        let (digests, []) = digests.as_chunks::<8>() else { return None };
        let held = digests.iter().map(|digest| u64::from_be_bytes(*digest)).collect();
        let source = std::str::from_utf8(source).ok()?.to_owned();
        Some(Self { source, position: u64::from_be_bytes(*position), held })
    }
}

/// What the far side of a stream holds, as far as this side knows.
#[derive(Debug)]
pub struct View {
    namespace: String,
    serves: HashSet<ServiceName>,
    held: HashMap<ServiceName, Held>,
    /// Not here: it holds none.
    policies: HashMap<ServiceName, HeldPolicies>,
    /// The named ports it was told of the services it serves: policies may name them.
    ports: HashMap<ServiceName, Vec<v1::Port>>,
    /// Whose addresses are, as told.
    owners: HashMap<SocketAddr, Option<Owner>>,
}

#[derive(Debug)]
enum Held {
    /// It was told that there is none.
    Unknown,
    /// It has this.
    Known(Arc<ServiceState>),
    /// It refused what it was sent, so what it has is not known: next time all of it.
    Refused,
}

#[derive(Debug)]
enum HeldPolicies {
    /// It may have some from before that are no longer in force.
    Unsure,
    /// It has these.
    Known(Set),
}

impl View {
    /// Of a sidecar that holds nothing: the namespace of its identity, and the services it stands in
    /// front of.
    pub fn new(namespace: &str, serves: impl IntoIterator<Item = ServiceName>) -> Self {
        let serves = serves.into_iter().collect();
        Self {
            namespace: namespace.to_owned(),
            serves,
            held: HashMap::new(),
            policies: HashMap::new(),
            ports: HashMap::new(),
            owners: HashMap::new(),
        }
    }

    /// Assumes what a returning sidecar holds of the services it named and of those it serves: what
    /// did not change since its cursor is as it is now. Without a cursor that counts, nothing is
    /// known of it, and all of it is replaced.
    pub fn resume(&mut self, state: &State, cursor: Option<&Cursor>, services: &[ServiceName]) {
        let unchanged = |changed: u64| cursor.is_some_and(|cursor| changed <= cursor.position);
        let digests: HashSet<u64> = cursor.into_iter().flat_map(|cursor| &cursor.held).copied().collect();
        for name in services {
            if let Some(service) = state.services.get(name).filter(|service| unchanged(service.changed)) {
                self.held.insert(name.clone(), Held::Known(service.clone()));
            }
        }
        let called: HashSet<_> = services.iter().collect();
        let names: HashSet<_> = services.iter().chain(&self.serves).cloned().collect();
        for name in names {
            if !digests.is_empty() && self.resume_same(state, &name, called.contains(&name), &digests) {
                continue;
            }
            let audience = self.audience(&name);
            // Its ports may be what changed of a service; nobody keeps when they did.
            let ports = !audience.serves
                || state.services.get(&name).is_none_or(|service| unchanged(service.changed));
            let held = match ports && unchanged(state.policies.changed(&name, audience)) {
                true => HeldPolicies::Known(state.policies.of(&name, audience)),
                false => HeldPolicies::Unsure,
            };
            let named = self.named_ports(state, &name);
            if !named.is_empty() {
                self.ports.insert(name.clone(), named);
            }
            self.policies.insert(name, held);
        }
    }

    /// Takes over what is as the cursor's digests say, though it counts as changed; false if it is not.
    fn resume_same(
        &mut self,
        state: &State,
        name: &ServiceName,
        called: bool,
        digests: &HashSet<u64>,
    ) -> bool {
        let service = state.services.get(name);
        let set = state.policies.of(name, self.audience(name));
        let ports = self.named_ports(state, name);
        let held = match (called, service) {
            (true, None) => return false,
            (true, Some(service)) => Some(service),
            (false, _) => None,
        };
        if !digests.contains(&digest_of(name, held.map(|held| held.digest()), &set, &ports)) {
            return false;
        }
        if let Some(service) = held {
            self.held.insert(name.clone(), Held::Known(service.clone()));
        }
        self.note_governed(name, set, ports);
        true
    }

    /// Digests of what the far side holds; none of services it refused or does not know. Nothing when
    /// there are too many.
    pub fn digests(&self) -> Vec<u64> {
        let served = self.serves.iter().filter(|name| !self.held.contains_key(*name));
        let count = self.held.len() + self.serves.len();
        if count > MAX_DIGESTS {
            return Vec::new();
        }
        let called = self.held.iter().filter_map(|(name, held)| match held {
            Held::Known(service) => Some((name, Some(service))),
            Held::Unknown | Held::Refused => None,
        });
        let all = called.chain(served.map(|name| (name, None)));
        all.filter_map(|(name, service)| {
            let set = match self.policies.get(name) {
                None => &[][..],
                Some(HeldPolicies::Known(set)) => set,
                Some(HeldPolicies::Unsure) => return None,
            };
            let ports = self.ports.get(name).map_or(&[][..], Vec::as_slice);
            let digest = || digest_of(name, service.map(|service| service.digest()), set, ports);
            Some(match service {
                // The same for all who are told of it: with each update of ten thousand streams worked out once.
                Some(service) if set.is_empty() && ports.is_empty() => service.memo.told(digest),
                Some(_) | None => digest(),
            })
        })
        .collect()
    }

    /// Takes a returning sidecar at its word on what it was told of addresses: whatever became of the
    /// cursor, it need hear of those alone that are another's now.
    pub fn resume_owners(&mut self, held: impl IntoIterator<Item = (SocketAddr, Option<Owner>)>) {
        self.owners.extend(held);
    }

    /// Forgets addresses.
    pub fn forget_owners(&mut self, addresses: &[SocketAddr]) {
        for address in addresses {
            self.owners.remove(address);
        }
    }

    fn audience(&self, name: &ServiceName) -> Audience<'_> {
        Audience { namespace: &self.namespace, serves: self.serves.contains(name) }
    }

    /// The named ports of a service, for a sidecar that serves it.
    fn named_ports(&self, state: &State, name: &ServiceName) -> Vec<v1::Port> {
        match state.services.get(name).filter(|_| self.serves.contains(name)) {
            Some(service) => service.named_ports().cloned().collect(),
            None => Vec::new(),
        }
    }

    /// Forgets a service. What governs it stays for a sidecar that serves it.
    pub fn forget(&mut self, name: &ServiceName) {
        self.held.remove(name);
        if !self.serves.contains(name) {
            self.policies.remove(name);
            self.ports.remove(name);
        }
    }

    /// Notes that the far side refused a service.
    pub fn refused(&mut self, name: &ServiceName) {
        if let Some(held) = self.held.get_mut(name) {
            *held = Held::Refused;
        }
    }

    /// What the far side must hear about the marked parts of `state`; it then holds them.
    pub fn advance(&mut self, state: &State, marks: &Marks) -> Vec<Bytes> {
        let mut changes = Vec::new();
        if marks.mesh {
            changes.push(change(Kind::Mesh(state.mesh.settings.clone())));
        }
        for name in marks.policies.union(&marks.services) {
            if marks.policies.contains(name) {
                changes.extend(self.governed(state, name).map(change));
            }
            if marks.services.contains(name) {
                changes.extend(self.service(state, name));
            }
        }
        for address in &marks.addresses {
            let owner = state.owners.of(*address);
            if self.owners.get(address) != Some(&owner) {
                changes.push(change(Kind::Address(told(*address, owner.as_ref()))));
                self.owners.insert(*address, owner);
            }
        }
        changes
    }

    fn governed(&mut self, state: &State, name: &ServiceName) -> Option<Kind> {
        let set = state.policies.of(name, self.audience(name));
        let ports = self.named_ports(state, name);
        let same = match self.policies.get(name) {
            None => set.is_empty(),
            Some(HeldPolicies::Unsure) => false,
            Some(HeldPolicies::Known(held)) => *held == set,
        };
        if same && self.ports.get(name).map_or(&[][..], Vec::as_slice) == ports {
            return None;
        }
        let resources = set.iter().map(|resource| (**resource).clone()).collect();
        self.note_governed(name, set, ports.clone());
        Some(Kind::Policies(v1::ServicePolicies { service: name.to_string(), resources, ports }))
    }

    /// Notes what governs a service and its named ports, as told.
    fn note_governed(&mut self, name: &ServiceName, set: Set, ports: Vec<v1::Port>) {
        match ports.is_empty() {
            true => _ = self.ports.remove(name),
            false => _ = self.ports.insert(name.clone(), ports),
        }
        match set.is_empty() {
            true => _ = self.policies.remove(name),
            false => _ = self.policies.insert(name.clone(), HeldPolicies::Known(set)),
        }
    }

    fn service(&mut self, state: &State, name: &ServiceName) -> Option<Bytes> {
        let new = state.services.get(name);
        let told = match (self.held.get(name), new) {
            (Some(Held::Unknown), None) => None,
            (_, None) => Some(change(Kind::Unknown(name.to_string()))),
            (Some(Held::Known(old)), Some(new)) if Arc::ptr_eq(old, new) => None,
            (Some(Held::Known(old)), Some(new)) if old.ports == new.ports => {
                new.memo.after(old, || delta(name, old, new))
            }
            (_, Some(new)) => Some(new.memo.whole(|| new.to_service(name))),
        };
        let now = new.map_or(Held::Unknown, |new| Held::Known(new.clone()));
        match self.held.get_mut(name) {
            Some(held) => *held = now,
            None => _ = self.held.insert(name.clone(), now),
        }
        told
    }
}

/// Stands for all that a sidecar was told of one service.
fn digest_of(name: &ServiceName, service: Option<u64>, set: &[Arc<v1::Resource>], ports: &[v1::Port]) -> u64 {
    let rows: Vec<_> = set.iter().map(|row| (&row.kind, &row.namespace, &row.name, row.revision)).collect();
    digest((name, service, rows, ports))
}

fn delta(name: &ServiceName, old: &ServiceState, new: &ServiceState) -> Option<v1::ServiceDelta> {
    let (mut upsert, mut remove) = (Vec::new(), Vec::new());
    for ((workload, port), before, after) in differences(&old.endpoints, &new.endpoints) {
        match after {
            Some(after) if before.is_some_and(|before| before.endpoint == after.endpoint) => {}
            Some(after) => upsert.push(after.endpoint.clone()),
            None => {
                remove.push(v1::EndpointKey { workload: workload.to_string(), port: (*port).into() });
            }
        }
    }
    // What sidecars do not hear of (a lease, the application's port) may be all that changed.
    if upsert.is_empty() && remove.is_empty() {
        return None;
    }
    Some(v1::ServiceDelta { name: name.to_string(), upsert, remove })
}

#[cfg(test)]
mod tests;
