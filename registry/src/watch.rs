//! What one stream has been sent, and what it must be sent next. Pure.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;

use outrigger_api::v1;
use outrigger_api::v1::change::Change as Kind;
use outrigger_common::name::ServiceName;

use crate::hub::Marks;
use crate::owners::{Owner, told};
use crate::policies::{Audience, Set};
use crate::state::{EndpointState, ServiceState, State};

/// A place in a source's history, opaque to sidecars.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// Identity of the source.
    pub source: String,
    /// Position in it.
    pub position: u64,
}

impl Cursor {
    /// The cursor's bytes: position, then source.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = self.position.to_be_bytes().to_vec();
        bytes.extend_from_slice(self.source.as_bytes());
        bytes
    }

    /// Reads a cursor; none for what is not one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (position, source) = bytes.split_first_chunk::<8>()?;
        let source = std::str::from_utf8(source).ok()?.to_owned();
        Some(Self { source, position: u64::from_be_bytes(*position) })
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
    pub fn resume(&mut self, state: &State, position: Option<u64>, services: &[ServiceName]) {
        let unchanged = |changed: u64| position.is_some_and(|position| changed <= position);
        for name in services {
            if let Some(service) = state.services.get(name).filter(|service| unchanged(service.changed)) {
                self.held.insert(name.clone(), Held::Known(service.clone()));
            }
        }
        let names: HashSet<_> = services.iter().chain(&self.serves).cloned().collect();
        for name in names {
            let audience = self.audience(&name);
            // Its ports may be what changed of a service; nobody keeps when they did.
            let ports = !audience.serves
                || state.services.get(&name).is_none_or(|service| unchanged(service.changed));
            let held = match ports && unchanged(state.policies.changed(&name, audience)) {
                true => HeldPolicies::Known(state.policies.of(&name, audience)),
                false => HeldPolicies::Unsure,
            };
            self.ports.insert(name.clone(), self.named_ports(state, &name));
            self.policies.insert(name, held);
        }
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
    pub fn advance(&mut self, state: &State, marks: &Marks) -> Vec<v1::Change> {
        let mut changes = Vec::new();
        if marks.mesh {
            changes.push(change(Kind::Mesh(state.mesh.settings.clone())));
        }
        for name in marks.policies.union(&marks.services) {
            if marks.policies.contains(name) {
                changes.extend(self.governed(state, name).map(change));
            }
            if marks.services.contains(name) {
                changes.extend(self.service(state, name).map(change));
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
        match ports.is_empty() {
            true => _ = self.ports.remove(name),
            false => _ = self.ports.insert(name.clone(), ports.clone()),
        }
        let resources = set.iter().map(|resource| (**resource).clone()).collect();
        match set.is_empty() {
            true => _ = self.policies.remove(name),
            false => _ = self.policies.insert(name.clone(), HeldPolicies::Known(set)),
        }
        Some(Kind::Policies(v1::ServicePolicies { service: name.to_string(), resources, ports }))
    }

    fn service(&mut self, state: &State, name: &ServiceName) -> Option<Kind> {
        let new = state.services.get(name);
        let kind = match (self.held.get(name), new) {
            (Some(Held::Unknown), None) => None,
            (_, None) => Some(Kind::Unknown(name.to_string())),
            (Some(Held::Known(old)), Some(new)) if Arc::ptr_eq(old, new) => None,
            (Some(Held::Known(old)), Some(new)) if old.ports == new.ports => delta(name, old, new),
            (_, Some(new)) => Some(Kind::Service(new.to_service(name))),
        };
        let held = new.map_or(Held::Unknown, |new| Held::Known(new.clone()));
        self.held.insert(name.clone(), held);
        kind
    }
}

fn change(kind: Kind) -> v1::Change {
    v1::Change { change: Some(kind), requires: Vec::new() }
}

fn delta(name: &ServiceName, old: &ServiceState, new: &ServiceState) -> Option<Kind> {
    let same = |a: &Arc<EndpointState>, b: &Arc<EndpointState>| Arc::ptr_eq(a, b) || a.endpoint == b.endpoint;
    let upsert: Vec<_> = new
        .endpoints
        .iter()
        .filter(|(key, endpoint)| !old.endpoints.get(*key).is_some_and(|known| same(known, endpoint)))
        .map(|(_, endpoint)| endpoint.endpoint.clone())
        .collect();
    let remove: Vec<_> = old
        .endpoints
        .keys()
        .filter(|key| !new.endpoints.contains_key(*key))
        .map(|(workload, port)| v1::EndpointKey { workload: workload.to_string(), port: (*port).into() })
        .collect();
    // What sidecars do not hear of (a lease, the application's port) may be all that changed.
    if upsert.is_empty() && remove.is_empty() {
        return None;
    }
    Some(Kind::Delta(v1::ServiceDelta { name: name.to_string(), upsert, remove }))
}

#[cfg(test)]
mod tests;
