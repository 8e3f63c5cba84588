//! The newest form of everything the registry told and the sidecar took, as it was sent. Pure.
//!
//! [`State`](crate::control::state::State) keeps what the sidecar makes of it; what goes to disk are
//! the messages themselves, so that a file loses nothing this release does not look at.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use outrigger_api::v1;
use outrigger_api::v1::change::Change as Kind;

use crate::control::state::{Refused, describe};

/// What a change is about. In the order in which changes are told.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Mesh,
    Policies(String),
    Service(String),
    /// By the address.
    Address(String),
}

impl Key {
    fn of(change: &Kind) -> Self {
        match change {
            Kind::Mesh(_) => Self::Mesh,
            Kind::Policies(policies) => Self::Policies(policies.service.clone()),
            Kind::Service(service) => Self::Service(service.name.clone()),
            Kind::Delta(delta) => Self::Service(delta.name.clone()),
            Kind::Unknown(name) => Self::Service(name.clone()),
            Kind::Address(told) => Self::Address(told.address.clone()),
        }
    }

    /// The service or address it is about.
    fn name(&self) -> Option<&str> {
        match self {
            Self::Mesh => None,
            Self::Policies(name) | Self::Service(name) | Self::Address(name) => Some(name),
        }
    }
}

/// Full forms, by what they are about.
#[derive(Debug, Default)]
pub struct Mirror {
    changes: BTreeMap<Key, v1::Change>,
    /// What was refused and not told in a usable form since: its old form stays.
    behind: BTreeSet<Key>,
}

impl Mirror {
    /// Folds in what was not `refused` of what is `wanted`, by the name of its service or by its address.
    pub fn fold(&mut self, changes: Vec<v1::Change>, refused: &[Refused], wanted: impl Fn(&str) -> bool) {
        let refused: HashSet<&str> = refused.iter().map(|refused| refused.resource.as_str()).collect();
        for change in changes {
            let resource = describe(&change);
            let Some(kind) = &change.change else { continue };
            let key = Key::of(kind);
            if key.name().is_some_and(|name| !wanted(name)) {
                self.drop_key(&key);
            } else if refused.contains(resource.as_str()) {
                self.behind.insert(key);
            } else if let Kind::Delta(_) = kind {
                // A delta of a form that was refused says nothing about the old one.
                if !self.behind.contains(&key) {
                    self.merge(&key, change);
                }
            } else {
                self.behind.remove(&key);
                let change = self.usable(&key, change, &refused);
                self.changes.insert(key, change);
            }
        }
    }

    /// Policies are refused one by one: the old form of such a one stays among the new.
    fn usable(&mut self, key: &Key, mut change: v1::Change, refused: &HashSet<&str>) -> v1::Change {
        let Some(Kind::Policies(policies)) = &mut change.change else { return change };
        let name =
            |resource: &v1::Resource| format!("{}/{}/{}", resource.kind, resource.namespace, resource.name);
        let bad: HashSet<String> =
            policies.resources.iter().map(name).filter(|name| refused.contains(name.as_str())).collect();
        if bad.is_empty() {
            return change;
        }
        self.behind.insert(key.clone());
        policies.resources.retain(|resource| !bad.contains(&name(resource)));
        if let Some(Kind::Policies(old)) = self.changes.get(key).and_then(|held| held.change.as_ref()) {
            let kept = old.resources.iter().filter(|resource| bad.contains(&name(resource)));
            policies.resources.extend(kept.cloned());
        }
        change
    }

    fn merge(&mut self, key: &Key, change: v1::Change) {
        let Some(Kind::Delta(delta)) = change.change else { return };
        let Some(held) = self.changes.get_mut(key) else { return };
        let Some(Kind::Service(service)) = &mut held.change else { return };
        let upserted = delta.upsert.iter().map(|endpoint| (endpoint.workload.as_str(), endpoint.port));
        let removed = delta.remove.iter().map(|key| (key.workload.as_str(), key.port));
        let gone: HashSet<(&str, u32)> = upserted.chain(removed).collect();
        service.endpoints.retain(|endpoint| !gone.contains(&(endpoint.workload.as_str(), endpoint.port)));
        service.endpoints.extend(delta.upsert);
        for feature in change.requires {
            if !held.requires.contains(&feature) {
                held.requires.push(feature);
            }
        }
    }

    fn drop_key(&mut self, key: &Key) {
        self.changes.remove(key);
        self.behind.remove(key);
    }

    /// Forgets a service nobody asks for any more, and its policies unless they are `served`.
    pub fn forget(&mut self, name: &str, served: bool) {
        self.drop_key(&Key::Service(name.to_owned()));
        if !served {
            self.drop_key(&Key::Policies(name.to_owned()));
        }
    }

    /// Forgets an address nobody asks for any more.
    pub fn forget_address(&mut self, address: &str) {
        self.drop_key(&Key::Address(address.to_owned()));
    }

    /// Everything, settings and policies first.
    pub fn changes(&self) -> impl Iterator<Item = &v1::Change> {
        self.changes.values()
    }

    /// Whether it is all as the registry last told it, so that a cursor fits it.
    pub fn is_whole(&self) -> bool {
        self.behind.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::state::State;

    fn endpoint(workload: &str, weight: u32) -> v1::Endpoint {
        v1::Endpoint {
            workload: workload.into(),
            port: 80,
            address: "10.0.0.1".into(),
            mesh_port: 15008,
            identity: "spiffe://mesh.local/ns/shop/sa/orders".into(),
            weight,
            ..Default::default()
        }
    }

    fn change(kind: Kind) -> v1::Change {
        v1::Change { change: Some(kind), requires: Vec::new() }
    }

    fn service(endpoints: Vec<v1::Endpoint>) -> Kind {
        let ports = vec![v1::Port { number: 80, ..Default::default() }];
        Kind::Service(v1::Service { name: "orders.shop".into(), ports, endpoints })
    }

    fn delta(upsert: Vec<v1::Endpoint>, remove: &[&str]) -> Kind {
        let key = |workload: &&str| v1::EndpointKey { workload: (*workload).into(), port: 80 };
        let remove = remove.iter().map(key).collect();
        Kind::Delta(v1::ServiceDelta { name: "orders.shop".into(), upsert, remove })
    }

    fn told(state: &mut State, mirror: &mut Mirror, kind: Kind) {
        let changes = vec![change(kind)];
        let applied = state.apply(v1::Update { changes: changes.clone(), ..Default::default() });
        mirror.fold(changes, &applied.refused, |_| true);
    }

    #[test]
    fn what_is_told_again_from_the_mirror_makes_the_same_state() {
        for seed in 0..200 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut state, mut mirror) = (State::default(), Mirror::default());
            for _ in 0..random.usize(1..30) {
                let name = ["a", "b", "c"][random.usize(..3)];
                // One in six cannot be used: its service's old form stays until a whole one comes.
                let mut new = endpoint(name, random.u32(1..9));
                if random.u8(..6) == 0 {
                    new.mesh_port = 0;
                }
                let kind = match random.u8(..8) {
                    0 => service(vec![new]),
                    1 => Kind::Unknown("orders.shop".into()),
                    2 => delta(Vec::new(), &[name]),
                    _ => delta(vec![new], &[]),
                };
                told(&mut state, &mut mirror, kind);
            }
            let mut again = State::default();
            let changes = mirror.changes().cloned().collect();
            let applied = again.apply(v1::Update { changes, ..Default::default() });
            assert_eq!(applied.refused, [], "seed {seed}");
            assert_eq!(again.service("orders.shop"), state.service("orders.shop"), "seed {seed}");
            // Whole means that a delta could follow what is held.
            let behind = state.service("orders.shop").is_some() && state.held().next().is_none();
            assert!(!(behind && mirror.is_whole()), "seed {seed}");
        }
    }

    #[test]
    fn a_refused_form_is_not_kept_and_leaves_no_cursor_to_trust() {
        let (mut state, mut mirror) = (State::default(), Mirror::default());
        told(&mut state, &mut mirror, service(vec![endpoint("a", 1)]));
        assert!(mirror.is_whole());
        let mut bad = endpoint("b", 1);
        bad.identity = "rubbish".into();
        told(&mut state, &mut mirror, service(vec![bad]));
        assert!(!mirror.is_whole());
        let Some(Kind::Service(kept)) = mirror.changes().next().and_then(|change| change.change.clone())
        else {
            panic!("the old form stays");
        };
        assert_eq!(kept.endpoints[0].workload, "a");
        told(&mut state, &mut mirror, service(vec![]));
        assert!(mirror.is_whole());
    }

    #[test]
    fn of_policies_the_refused_one_alone_keeps_its_old_form() {
        let resource = |name: &str, json: &str| v1::Resource {
            kind: "TrafficPolicy".into(),
            namespace: "shop".into(),
            name: name.into(),
            json: json.into(),
            revision: 1,
        };
        let policies = |resources: Vec<v1::Resource>| {
            vec![change(Kind::Policies(v1::ServicePolicies {
                service: "orders.shop".into(),
                resources,
                ..Default::default()
            }))]
        };
        let mut mirror = Mirror::default();
        mirror.fold(policies(vec![resource("a", "old"), resource("b", "old")]), &[], |_| true);
        let refused = Refused { resource: "TrafficPolicy/shop/a".into(), reason: "no".into() };
        mirror.fold(policies(vec![resource("a", "bad"), resource("b", "new")]), &[refused], |_| true);
        let kept: Vec<_> = mirror
            .changes()
            .filter_map(|change| match &change.change {
                Some(Kind::Policies(policies)) => Some(policies.resources.clone()),
                _ => None,
            })
            .flatten()
            .map(|resource| (resource.name, resource.json))
            .collect();
        let pair = |name: &str, json: &str| (name.to_owned(), json.to_owned());
        assert_eq!(kept, [pair("b", "new"), pair("a", "old")]);
        assert!(!mirror.is_whole());
        mirror.fold(policies(vec![]), &[], |_| true);
        assert!(mirror.is_whole());
    }

    #[test]
    fn owners_of_addresses_are_kept_until_nobody_asks() {
        let told = |address: &str, service: &str| {
            let (address, service) = (address.to_owned(), service.to_owned());
            change(Kind::Address(v1::AddressOwner { address, service, port: 80, ..Default::default() }))
        };
        let mut mirror = Mirror::default();
        let both = vec![told("10.0.9.1:80", "orders.shop"), told("10.0.9.2:80", "")];
        mirror.fold(both, &[], |_| true);
        mirror.fold(vec![told("10.0.9.1:80", "items.shop")], &[], |_| true);
        assert!(mirror.changes().eq([&told("10.0.9.1:80", "items.shop"), &told("10.0.9.2:80", "")]));
        mirror.forget_address("10.0.9.1:80");
        mirror.fold(vec![told("10.0.9.2:80", "items.shop")], &[], |name| name != "10.0.9.2:80");
        assert_eq!((mirror.changes().count(), mirror.is_whole()), (0, true));
    }

    #[test]
    fn what_nobody_asked_for_is_not_kept() {
        let mut mirror = Mirror::default();
        mirror.fold(vec![change(service(vec![]))], &[], |_| false);
        assert_eq!(mirror.changes().count(), 0);
        let policies = v1::ServicePolicies { service: "orders.shop".into(), ..Default::default() };
        mirror.fold(vec![change(service(vec![])), change(Kind::Policies(policies))], &[], |_| true);
        assert!(matches!(mirror.changes().next().unwrap().change, Some(Kind::Policies(_))), "policies first");
        mirror.forget("orders.shop", true);
        assert_eq!(mirror.changes().count(), 1);
        mirror.forget("orders.shop", false);
        assert_eq!(mirror.changes().count(), 0);
    }
}
