//! Streams that are slow, lose their connection and change their minds still end up with the truth.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use fastrand::Rng;
use outrigger_api::document::parse_yaml;
use outrigger_api::resource::attachment::Attachment;
use outrigger_api::resource::{API_VERSION, GATEWAY_API_VERSION, Resource, ServicePort, ServiceSpec};
use prometheus::{Histogram, HistogramOpts};
use prost::Message;
use tokio::sync::Notify;

use super::*;
use crate::hub::{Hub, SubscriberId};
use crate::model::{
    PortRow, PortsRow, ServedRow, WorkloadRow, encode, governing_key, ports_key, service_key, workload_key,
};
use crate::owners::held;
use crate::state::Fold;
use crate::store::{Change as Write, Entry, Range, Transaction};

type Services = BTreeMap<String, Option<v1::Service>>;
type Policies = BTreeMap<String, Vec<v1::Resource>>;
type Addresses = BTreeMap<SocketAddr, Option<Owner>>;

/// What a sidecar does with updates.
#[derive(Default)]
struct Sidecar {
    held: Services,
    /// Those that are not empty.
    policies: Policies,
    owners: Addresses,
    asked: BTreeSet<SocketAddr>,
    cursor: Vec<u8>,
    subscribed: BTreeSet<ServiceName>,
    serves: Vec<ServiceName>,
    namespace: &'static str,
}

impl Sidecar {
    fn apply(&mut self, update: v1::Update) {
        for change in update.changes {
            match change.change.unwrap() {
                Kind::Service(service) => _ = self.held.insert(service.name.clone(), Some(service)),
                Kind::Unknown(name) => _ = self.held.insert(name, None),
                Kind::Mesh(_) => {}
                Kind::Address(told) => {
                    let (address, owner) = held(&told).unwrap();
                    assert_ne!(self.owners.insert(address, owner.clone()), Some(owner), "nothing new");
                }
                Kind::Policies(set) => {
                    if set.resources.is_empty() {
                        self.policies.remove(&set.service);
                    } else {
                        self.policies.insert(set.service, set.resources);
                    }
                }
                Kind::Delta(delta) => {
                    let service =
                        self.held.get_mut(&delta.name).unwrap().as_mut().expect("a delta follows a service");
                    let key = |e: &v1::Endpoint| (e.workload.clone(), e.port);
                    for gone in delta.remove {
                        service.endpoints.retain(|e| key(e) != (gone.workload.clone(), gone.port));
                    }
                    for new in delta.upsert {
                        service.endpoints.retain(|e| key(e) != key(&new));
                        service.endpoints.push(new);
                    }
                    service.endpoints.sort_by_key(key);
                }
            }
        }
        self.cursor = update.cursor;
    }
}

/// The registry's end of a stream.
struct Stream {
    id: SubscriberId,
    view: View,
    nonce: u64,
    /// Sent, not yet read by the sidecar.
    wire: VecDeque<v1::Update>,
}

impl Stream {
    fn open(hub: &Hub, sidecar: &mut Sidecar) -> Self {
        let id = hub.join(Arc::new(Notify::new()), sidecar.namespace);
        let mut view = View::new(sidecar.namespace, sidecar.serves.iter().cloned());
        let state = hub.state();
        let cursor = Cursor::decode(&sidecar.cursor);
        let resumed = cursor.filter(|c| c.source == *state.source && c.position <= state.position);
        // The Hello names what is held; what was asked for and not answered is asked for again.
        let held: Vec<_> = sidecar.held.keys().map(|name| ServiceName::parse(name).unwrap()).collect();
        // What it holds of policies is not thrown away: the registry says so if there are none.
        view.resume(&state, resumed.as_ref(), &held);
        if resumed.is_none() {
            sidecar.held.clear();
        }
        hub.subscribe(id, held, resumed.is_none());
        hub.serve(id, sidecar.serves.iter().cloned());
        hub.subscribe(id, sidecar.subscribed.iter().cloned(), false);
        view.resume_owners(sidecar.owners.clone());
        hub.ask(id, sidecar.asked.iter().copied());
        Self { id, view, nonce: 1, wire: VecDeque::new() }
    }

    fn send(&mut self, hub: &Hub) {
        let Some((state, marks)) = hub.take(self.id, self.nonce, false) else { return };
        let changes = self.view.advance(&state, &marks);
        if changes.is_empty() {
            hub.nothing_to_send(self.id, self.nonce);
            return;
        }
        let changes = changes.into_iter().map(|change| v1::Change::decode(change).unwrap()).collect();
        let (source, position) = (state.source.to_string(), state.position);
        let cursor = Cursor { source, position, held: self.view.digests() }.encode();
        self.wire.push_back(v1::Update { nonce: self.nonce, cursor, revision: state.position, changes });
        self.nonce += 1;
    }
}

/// A store of rows without a disk.
struct World {
    rng: Rng,
    revision: u64,
    entries: BTreeMap<String, Entry>,
    history: Vec<Arc<Transaction>>,
}

impl World {
    fn set(&mut self, changes: &mut Vec<Write>, key: String, value: Option<Bytes>) {
        let before = self.entries.get(&key).cloned();
        let after = value.map(|value| Entry {
            key: key.as_str().into(),
            value,
            revision: self.revision,
            lease: None,
        });
        match &after {
            Some(entry) => _ = self.entries.insert(key.clone(), entry.clone()),
            None => _ = self.entries.remove(&key),
        }
        changes.push(Write { key: key.into(), before, after });
    }

    fn step(&mut self) {
        self.revision += 1;
        let mut changes = Vec::new();
        for _ in 0..self.rng.usize(1..4) {
            let name = service(self.rng.usize(..5));
            match self.rng.u8(..16) {
                14.. => {
                    let (key, spec) = (service_key(&name), self.applied(&name));
                    let value = self.rng.bool().then(|| spec.to_json().into());
                    self.set(&mut changes, key, value);
                }
                10..14 => {
                    let resource = self.governing(&name);
                    let key = governing_key(resource.kind(), resource.namespace(), resource.name());
                    let value = self.rng.bool().then(|| resource.to_json().into());
                    self.set(&mut changes, key, value);
                }
                0 => self.set(&mut changes, ports_key(&name), None),
                1 | 2 => {
                    let ports = (1..=self.rng.u16(1..4)).map(port).collect();
                    self.set(&mut changes, ports_key(&name), Some(encode(&PortsRow { ports })));
                }
                3..=5 => {
                    let id = format!("w{}", self.rng.u8(..6));
                    self.set(&mut changes, workload_key("n", &id), None);
                }
                _ => {
                    let id = format!("w{}", self.rng.u8(..6));
                    let row = self.workload(&id, &name);
                    self.set(&mut changes, workload_key("n", &id), Some(encode(&row)));
                }
            }
        }
        self.history.push(Arc::new(Transaction { revision: self.revision, changes }));
    }

    /// A route or policy of the services' namespace or another, attached to a service, a route, or
    /// everything.
    fn governing(&mut self, service: &ServiceName) -> Resource {
        let namespace = ["n", "m", "o"][self.rng.usize(..3)];
        let (own, to) = (namespace == "n", format!("name: {}, namespace: n", service.name()));
        let (kind, spec) = match self.rng.u8(..4) {
            0 => ("HTTPRoute", format!("{{parentRefs: [{{{to}}}]}}")),
            1 => ("TrafficPolicy", format!("{{targetRefs: [{{kind: Service, {to}}}]}}")),
            2 => (
                "TrafficPolicy",
                format!("{{targetRefs: [{{kind: HTTPRoute, name: r{}}}]}}", self.rng.u8(..3)),
            ),
            _ if own && self.rng.bool() => {
                ("AuthorizationPolicy", format!("{{targetRefs: [{{kind: Service, {to}}}]}}"))
            }
            _ => ("AuthorizationPolicy", "{}".to_owned()),
        };
        let spec = match kind {
            "TrafficPolicy" => {
                spec.replace("]}", &format!("], retries: {{attempts: {}}}}}", self.rng.u8(..3)))
            }
            _ => spec,
        };
        let api = if kind == "HTTPRoute" { GATEWAY_API_VERSION } else { API_VERSION };
        let (name, text) = (format!("r{}", self.rng.u8(..3)), "mesh.yaml");
        let yaml = format!(
            "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
        );
        parse_yaml(text.as_ref(), &yaml).unwrap().remove(0)
    }

    /// A service with some of the addresses there are, whoever else has them.
    fn applied(&mut self, name: &ServiceName) -> Resource {
        let ports = (1..=self.rng.u16(1..4)).map(|port| ServicePort {
            name: None,
            port,
            protocol: Default::default(),
        });
        let ports = ports.collect();
        let addresses = (0..self.rng.u8(..3)).map(|n| [10, 0, 9, n].into()).collect();
        Resource::Service { name: name.clone(), spec: ServiceSpec { ports, addresses } }
    }

    fn workload(&mut self, id: &str, name: &ServiceName) -> WorkloadRow {
        let served = |rng: &mut Rng, number| ServedRow {
            service: name.to_string(),
            port: port(number),
            target_port: rng.u16(80..82),
            healthy: rng.bool(),
        };
        let ports = (1..=self.rng.u16(1..3)).map(|number| served(&mut self.rng, number)).collect();
        let identity = "spiffe://mesh.local/ns/n/sa/a".to_owned();
        WorkloadRow {
            id: id.to_owned(),
            identity,
            zone: String::new(),
            address: [127, 0, 0, self.rng.u8(1..4)].into(),
            mesh_port: 1,
            weight: self.rng.u16(..3),
            ports,
        }
    }
}

fn service(n: usize) -> ServiceName {
    ServiceName::new("n", &format!("s{n}")).unwrap()
}

fn port(number: u16) -> PortRow {
    PortRow { number, name: String::new(), protocol: Default::default() }
}

fn hub(fold: &Fold) -> Hub {
    Hub::new(fold.state().clone(), Histogram::with_opts(HistogramOpts::new("c", "c")).unwrap())
}

fn truth(state: &State, sidecar: &Sidecar) -> Services {
    let one = |name: &ServiceName| (name.to_string(), state.services.get(name).map(|s| s.to_service(name)));
    sidecar.subscribed.iter().map(one).collect()
}

/// One of the addresses that services and workloads have, or of others.
fn address(rng: &mut Rng) -> SocketAddr {
    match rng.bool() {
        true => ([10, 0, 9, rng.u8(..4)], rng.u16(1..5)).into(),
        false => ([127, 0, 0, rng.u8(1..5)], rng.u16(80..83)).into(),
    }
}

/// Who may be the owner of an address, worked out anew from the services.
fn claimants(state: &State, address: SocketAddr) -> Vec<Owner> {
    let mut found = Vec::new();
    for (name, service) in &state.services {
        let owner = |port: u16, workload| Owner { service: name.clone(), port, workload };
        let numbers = service.ports.iter().map(|port| port.number);
        if service.addresses.contains(&address.ip())
            && numbers.clone().any(|n| n == u32::from(address.port()))
        {
            found.push(owner(address.port(), None));
        }
        let endpoints = service.endpoints.iter().filter(|(_, e)| e.application == address);
        found.extend(endpoints.map(|((workload, port), _)| owner(*port, Some(workload.clone()))));
    }
    if found.iter().any(|owner| owner.workload.is_none()) {
        found.retain(|owner| owner.workload.is_none());
    }
    found
}

/// What governs the services a sidecar calls or serves, worked out anew from the rows.
fn governing_truth(world: &World, sidecar: &Sidecar) -> Policies {
    let resources: Vec<_> = world
        .entries
        .values()
        .filter(|entry| entry.key.starts_with("resource/"))
        .map(|entry| (Resource::from_json(std::str::from_utf8(&entry.value).unwrap()).unwrap(), entry))
        .collect();
    let mut truth = Policies::new();
    for name in sidecar.subscribed.iter().chain(&sidecar.serves) {
        let on = |resource: &Resource, seeks: &dyn Fn(&Attachment) -> bool| {
            resource.attachments().iter().any(seeks)
        };
        let on_service = |resource: &Resource| {
            on(resource, &|a| matches!(a, Attachment::Service { name: to, .. } if to == name))
        };
        let visible = |resource: &Resource| match resource {
            Resource::AuthorizationPolicy { .. } => sidecar.serves.contains(name),
            _ => resource.namespace() == name.namespace() || resource.namespace() == sidecar.namespace,
        };
        let on_route = |resource: &Resource| {
            resources.iter().any(|(route, _)| {
                on_service(route)
                    && on(resource, &|a| match a {
                        Attachment::Route { kind, namespace, name, .. } => {
                            (kind.as_str(), namespace.as_str(), name.as_str())
                                == (route.kind(), route.namespace(), route.name())
                        }
                        _ => false,
                    })
            })
        };
        let everywhere = |resource: &Resource| {
            on(resource, &|a| matches!(a, Attachment::Namespace(of) if of == name.namespace()))
        };
        let mut set: Vec<_> = resources
            .iter()
            .filter(|(r, _)| visible(r) && (on_service(r) || on_route(r) || everywhere(r)))
            .map(|(resource, entry)| v1::Resource {
                kind: resource.kind().to_owned(),
                namespace: resource.namespace().to_owned(),
                name: resource.name().to_owned(),
                json: resource.to_json(),
                revision: entry.revision,
            })
            .collect();
        set.sort_by_key(|r| (r.kind.clone(), r.namespace.clone(), r.name.clone()));
        if !set.is_empty() {
            truth.insert(name.to_string(), set);
        }
    }
    truth
}

fn round(seed: u64) {
    let mut world =
        World { rng: Rng::with_seed(seed), revision: 0, entries: BTreeMap::new(), history: Vec::new() };
    let mut fold = Fold::new("store");
    let mut hub = hub(&fold);
    let mut published = 0;
    let mut sidecar = Sidecar { namespace: ["n", "m"][world.rng.usize(..2)], ..Sidecar::default() };
    if sidecar.namespace == "n" && world.rng.bool() {
        sidecar.serves = vec![service(0), service(1)];
    }
    let mut stream = Stream::open(&hub, &mut sidecar);
    for _ in 0..world.rng.usize(20..200) {
        match world.rng.u8(..23) {
            20 | 21 => {
                let address = address(&mut world.rng);
                sidecar.asked.insert(address);
                hub.ask(stream.id, [address]);
            }
            22 => {
                let address = address(&mut world.rng);
                hub.forget(stream.id, &[address]);
                stream.view.forget_owners(&[address]);
                sidecar.asked.remove(&address);
                sidecar.owners.remove(&address);
                for update in &mut stream.wire {
                    update.changes.retain(|change| match &change.change {
                        Some(Kind::Address(told)) => told.address != address.to_string(),
                        _ => true,
                    });
                }
            }
            0..=5 => world.step(),
            6..=8 => {
                let changed = fold.apply(&world.history[published..]);
                published = world.history.len();
                hub.publish(fold.state().clone(), &changed);
            }
            9..=11 => stream.send(&hub),
            12..=14 => {
                if let Some(update) = stream.wire.pop_front() {
                    let nonce = update.nonce;
                    sidecar.apply(update);
                    hub.acknowledge(stream.id, nonce);
                }
            }
            15 | 16 => {
                let name = service(world.rng.usize(..5));
                sidecar.subscribed.insert(name.clone());
                hub.subscribe(stream.id, [name], false);
            }
            17 => {
                let name = service(world.rng.usize(..5));
                hub.unsubscribe(stream.id, std::slice::from_ref(&name));
                stream.view.forget(&name);
                sidecar.subscribed.remove(&name);
                sidecar.held.remove(name.as_str());
                if !sidecar.serves.contains(&name) {
                    sidecar.policies.remove(name.as_str());
                }
                // What is on the wire about it reaches a sidecar that no longer asks for it.
                for update in &mut stream.wire {
                    update.changes.retain(|change| match &change.change {
                        Some(Kind::Policies(_)) if sidecar.serves.contains(&name) => true,
                        _ => about(change) != Some(name.as_str()),
                    });
                }
            }
            18 => {
                hub.leave(stream.id);
                stream = Stream::open(&hub, &mut sidecar);
            }
            _ => {
                // The registry restarts: all of its memory is gone, the rows are not.
                fold = Fold::new("store");
                let entries = world.entries.values().cloned().collect();
                let changed = fold.reset(&Range { revision: world.revision, entries });
                published = world.history.len();
                hub = self::hub(&fold);
                hub.publish(fold.state().clone(), &changed);
                stream = Stream::open(&hub, &mut sidecar);
            }
        }
    }
    let changed = fold.apply(&world.history[published..]);
    hub.publish(fold.state().clone(), &changed);
    stream.send(&hub);
    for update in std::mem::take(&mut stream.wire) {
        hub.acknowledge(stream.id, update.nonce);
        sidecar.apply(update);
    }
    assert_eq!(sidecar.held, truth(fold.state(), &sidecar), "seed {seed}");
    assert_eq!(sidecar.policies, governing_truth(&world, &sidecar), "seed {seed}");
    let owners = |state: &State| -> Addresses {
        sidecar.asked.iter().map(|address| (*address, state.owners.of(*address))).collect()
    };
    assert_eq!(sidecar.owners, owners(fold.state()), "seed {seed}");
    assert_eq!(hub.in_flight(stream.id), 0, "seed {seed}");
    // Folding step by step and reading everything at once agree.
    let mut fresh = Fold::new("store");
    fresh.reset(&Range { revision: world.revision, entries: world.entries.values().cloned().collect() });
    assert_eq!(truth(fresh.state(), &sidecar), truth(fold.state(), &sidecar), "seed {seed}");
    for (ip, port) in (0..4).flat_map(|n| (1..5).chain(80..83).map(move |port| (n, port))) {
        for address in [([10, 0, 9, ip], port).into(), ([127, 0, 0, ip], port).into()] {
            let claimants = claimants(fold.state(), address);
            match fold.state().owners.of(address) {
                None => assert_eq!(claimants, [], "{address}, seed {seed}"),
                Some(owner) => assert!(claimants.contains(&owner), "{address}: {owner:?}, seed {seed}"),
            }
        }
    }
}

fn about(change: &v1::Change) -> Option<&str> {
    match change.change.as_ref()? {
        Kind::Service(service) => Some(&service.name),
        Kind::Delta(delta) => Some(&delta.name),
        Kind::Unknown(name) => Some(name),
        Kind::Policies(set) => Some(&set.service),
        Kind::Mesh(_) | Kind::Address(_) => None,
    }
}

#[test]
fn deltas_as_sent_add_up_to_the_state_whatever_happens_on_the_way() {
    let base = fastrand::u64(..);
    println!("seeds {base} and the 1000 after it");
    for n in 0..1000 {
        round(base.wrapping_add(n));
    }
}

fn two_services() -> (Arc<Hub>, Fold) {
    let mut fold = Fold::new("store");
    let entry = |key: String, value| Entry { key: key.as_str().into(), value, revision: 1, lease: None };
    let ports = encode(&PortsRow { ports: vec![port(1)] });
    let entries = (0..2).map(|n| entry(ports_key(&service(n)), ports.clone())).collect();
    let changed = fold.reset(&Range { revision: 1, entries });
    let hub = Arc::new(hub(&fold));
    hub.publish(fold.state().clone(), &changed);
    (hub, fold)
}

#[test]
fn one_transaction_arrives_as_one_update_and_wakes_only_whom_it_concerns() {
    let (hub, mut fold) = two_services();
    let (mut both, mut other) = (Sidecar::default(), Sidecar::default());
    both.subscribed.extend([service(0), service(1)]);
    other.subscribed.insert(service(3));
    let (mut first, mut second) = (Stream::open(&hub, &mut both), Stream::open(&hub, &mut other));
    first.send(&hub);
    second.send(&hub);
    assert_eq!((first.wire.len(), second.wire.len()), (1, 1));
    let write = |n| Write {
        key: ports_key(&service(n)).into(),
        before: None,
        after: Some(Entry {
            key: ports_key(&service(n)).into(),
            value: encode(&PortsRow { ports: vec![port(2)] }),
            revision: 2,
            lease: None,
        }),
    };
    let changed = fold.apply(&[Arc::new(Transaction { revision: 2, changes: vec![write(0), write(1)] })]);
    hub.publish(fold.state().clone(), &changed);
    first.send(&hub);
    second.send(&hub);
    assert_eq!(first.wire[1].changes.len(), 2);
    assert_eq!(second.wire.len(), 1, "nothing for a stream that did not subscribe");
}

#[test]
fn a_refused_service_is_sent_whole_the_next_time() {
    let (hub, mut fold) = two_services();
    let mut sidecar = Sidecar::default();
    sidecar.subscribed.insert(service(0));
    let mut stream = Stream::open(&hub, &mut sidecar);
    stream.send(&hub);
    stream.view.refused(&service(0));
    let row = WorkloadRow {
        id: "w".into(),
        identity: String::new(),
        zone: String::new(),
        address: [127, 0, 0, 1].into(),
        mesh_port: 1,
        weight: 0,
        ports: vec![ServedRow { service: "s0.n".into(), port: port(1), target_port: 1, healthy: true }],
    };
    let key: Arc<str> = workload_key("n", "w").into();
    let after = Some(Entry { key: key.clone(), value: encode(&row), revision: 2, lease: None });
    let changed = fold
        .apply(&[Arc::new(Transaction { revision: 2, changes: vec![Write { key, before: None, after }] })]);
    hub.publish(fold.state().clone(), &changed);
    stream.send(&hub);
    assert!(matches!(stream.wire[1].changes[0].change, Some(Kind::Service(_))));
}

#[test]
fn a_registry_that_started_again_sends_only_what_changed_while_it_was_away() {
    let (hub, mut fold) = two_services();
    let mut sidecar = Sidecar { namespace: "n", serves: vec![service(2)], ..Sidecar::default() };
    sidecar.subscribed.extend([service(0), service(1)]);
    let mut stream = Stream::open(&hub, &mut sidecar);
    stream.send(&hub);
    sidecar.apply(stream.wire.pop_front().unwrap());
    let ports = |number: u16, revision: u64, n: usize| Entry {
        key: ports_key(&service(n)).into(),
        value: encode(&PortsRow { ports: vec![port(number)] }),
        revision,
        lease: None,
    };
    // Something else changes, which this sidecar does not hear of: its cursor is behind from then on.
    let other = Write { key: ports_key(&service(4)).into(), before: None, after: Some(ports(1, 2, 4)) };
    let changed = fold.apply(&[Arc::new(Transaction { revision: 2, changes: vec![other] })]);
    hub.publish(fold.state().clone(), &changed);
    stream.send(&hub);
    assert!(stream.wire.is_empty());
    for (number, kept, told) in [(1, true, 0), (9, true, 1), (1, false, 2)] {
        let mut fold = Fold::new("store");
        let entries = vec![ports(1, 1, 0), ports(number, 3, 1), ports(1, 2, 4)];
        let changed = fold.reset(&Range { revision: 3, entries });
        let hub = self::hub(&fold);
        hub.publish(fold.state().clone(), &changed);
        let mut back =
            Sidecar { held: sidecar.held.clone(), cursor: sidecar.cursor.clone(), ..Sidecar::default() };
        (back.namespace, back.serves) = ("n", vec![service(2)]);
        if !kept {
            // As an earlier release gave them out.
            back.cursor = Cursor { held: vec![], ..Cursor::decode(&back.cursor).unwrap() }.encode();
        }
        let mut stream = Stream::open(&hub, &mut back);
        stream.send(&hub);
        let changes: Vec<_> = stream.wire.into_iter().flat_map(|update| update.changes).collect();
        let services = changes.iter().filter(|change| matches!(change.change, Some(Kind::Service(_))));
        assert_eq!(services.count(), told);
        // One that is sent again comes with its policies.
        let all = if kept { 2 * told } else { changes.len() };
        assert_eq!(changes.len(), all, "{changes:?}");
    }
}

#[tokio::test]
async fn a_wait_ends_when_every_subscriber_has_it_or_is_gone() {
    let (hub, _fold) = two_services();
    let mut sidecar = Sidecar::default();
    sidecar.subscribed.insert(service(0));
    let mut streams: Vec<_> = (0..3).map(|_| Stream::open(&hub, &mut sidecar)).collect();
    let limit = std::time::Duration::from_millis(50);
    let reach = hub.reached(1, &[service(0)], limit).await;
    assert_eq!((reach.subscribers, reach.acknowledged), (3, 0));
    for stream in &mut streams {
        stream.send(&hub);
    }
    hub.acknowledge(streams[0].id, 1);
    hub.unsubscribe(streams[1].id, &[service(0)]);
    hub.leave(streams[2].id);
    let long = std::time::Duration::from_secs(30);
    let reach = hub.reached(1, &[service(0)], long).await;
    assert_eq!((reach.subscribers, reach.acknowledged), (1, 1));
}

#[test]
fn cursors_survive_a_round_trip_and_rubbish_is_none() {
    for held in [vec![], vec![0], vec![u64::MAX, 1]] {
        let cursor = Cursor { source: "abc".into(), position: 7, held };
        let mut bytes = cursor.encode();
        assert_eq!(Cursor::decode(&bytes), Some(cursor));
        bytes.extend(*b"\0x");
        assert_eq!(Cursor::decode(&bytes), None);
    }
    assert_eq!(Cursor::decode(b"short"), None);
    assert_eq!(Cursor::decode(b"12345678\xff\xff"), None);
}
