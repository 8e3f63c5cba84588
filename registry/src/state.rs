//! What the mesh looks like: store transactions folded into one immutable [`State`].
//!
//! Pure. Streams are served from a `State` and nothing else, so another source (an orchestrator's
//! API) only has to produce these: its `position` is then a count of its own.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_api::resource::{DEFAULT_SAMPLING_RATIO, Resource};
use outrigger_api::v1;
use outrigger_common::name::ServiceName;

use crate::model::{
    GOVERNING, MESH_CONFIG_KEY, PORTS, PortRow, PortsRow, RESOURCES, SERVICES, ServedRow, WORKLOADS,
    WorkloadRow, decode, service_of,
};
use crate::owners::Owners;
use crate::policies::{Policies, Rows, Scope};
use crate::sent::{Memo, digest};
use crate::store::{Change, Entry, LeaseId, Range, Transaction};

/// The mesh at one position of its source. Shares with its predecessors what did not change.
#[derive(Debug, Clone)]
pub struct State {
    /// Identity of the source.
    pub source: Arc<str>,
    /// Increases with each change of the source.
    pub position: u64,
    /// Services by name.
    pub services: HashMap<ServiceName, Arc<ServiceState>>,
    /// What governs the calls of services.
    pub policies: Policies,
    /// Whose which address is.
    pub owners: Owners,
    /// Settings of the mesh.
    pub mesh: MeshState,
}

/// Settings of the mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct MeshState {
    /// Position of the last change.
    pub changed: u64,
    /// What they are.
    pub settings: v1::MeshSettings,
}

/// One service.
#[derive(Debug, Clone, PartialEq)]
pub struct ServiceState {
    /// Position of the last change, or later: after a restart the position of the start.
    pub changed: u64,
    /// Its ports, in the order of their numbers.
    pub ports: Vec<v1::Port>,
    /// Its virtual addresses.
    pub addresses: Vec<IpAddr>,
    /// By workload and service port.
    pub endpoints: BTreeMap<EndpointId, Arc<EndpointState>>,
    /// What streams were told of it.
    pub memo: Memo,
}

/// Workload and service port.
pub type EndpointId = (Arc<str>, u16);

/// One endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct EndpointState {
    /// As sidecars hear of it.
    pub endpoint: v1::Endpoint,
    /// The application's own address and port, as callers who know nothing of the mesh dial it.
    pub application: SocketAddr,
    /// Revision at which it came to have that address, or later. Its health changes nothing of that.
    pub since: u64,
    /// The lease it lives by, if its source has leases.
    pub lease: Option<LeaseId>,
    /// What tells it from other endpoints and other forms of itself, as far as sidecars hear of it.
    pub digest: u64,
}

impl State {
    /// A state in which nothing exists.
    pub fn empty(source: &str) -> Self {
        let mesh = MeshState { changed: 0, settings: default_settings() };
        Self {
            source: source.into(),
            position: 0,
            services: HashMap::new(),
            policies: Policies::default(),
            owners: Owners::default(),
            mesh,
        }
    }
}

impl EndpointState {
    /// Whether two forms say the same, whenever they came to be.
    fn is_as(&self, other: &Self) -> bool {
        self.endpoint == other.endpoint && self.application == other.application && self.lease == other.lease
    }
}

impl ServiceState {
    /// The ports that policies can name.
    pub fn named_ports(&self) -> impl Iterator<Item = &v1::Port> {
        self.ports.iter().filter(|port| !port.name.is_empty())
    }

    /// Whether two forms say the same, whenever they came to be.
    fn is_as(&self, other: &Self) -> bool {
        let alike = |(_, old, new): Difference<'_>| old.is_some() && old == new;
        self.ports == other.ports
            && self.addresses == other.addresses
            && differences(&other.endpoints, &self.endpoints).all(alike)
    }

    /// The whole service as sidecars hear of it.
    pub fn to_service(&self, name: &ServiceName) -> v1::Service {
        let endpoints = self.endpoints.values().map(|endpoint| endpoint.endpoint.clone()).collect();
        v1::Service { name: name.to_string(), ports: self.ports.clone(), endpoints }
    }

    /// What tells this form from others that sidecars may hold, whatever became of the registry.
    pub fn digest(&self) -> u64 {
        let endpoints = || self.endpoints.values().map(|endpoint| endpoint.digest).collect::<Vec<_>>();
        self.memo.digest(|| digest((&self.ports, endpoints())))
    }
}

/// A key with its endpoint in an old form and in a new one.
pub type Difference<'a> = (&'a EndpointId, Option<&'a Arc<EndpointState>>, Option<&'a Arc<EndpointState>>);

/// What two forms of a service do not share, in the order of the keys: endpoints that one of them alone
/// has, and those that were made anew. One walk over both.
pub fn differences<'a>(
    old: &'a BTreeMap<EndpointId, Arc<EndpointState>>,
    new: &'a BTreeMap<EndpointId, Arc<EndpointState>>,
) -> impl Iterator<Item = Difference<'a>> {
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    let pairs = std::iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        let key = before.or(after)?.0;
        Some((key, before.map(|(_, endpoint)| endpoint), after.map(|(_, endpoint)| endpoint)))
    });
    pairs.filter(|(_, old, new)| !matches!((old, new), (Some(old), Some(new)) if Arc::ptr_eq(old, new)))
}

/// Services that a step touches.
#[derive(Debug, Default)]
struct Touched(BTreeMap<ServiceName, Extent>);

/// What of a service a step touches.
#[derive(Debug)]
enum Extent {
    /// All of it.
    Whole,
    /// What these workloads offer of it, by key.
    Workloads(BTreeSet<Arc<str>>),
}

impl Touched {
    fn whole(&mut self, name: ServiceName) {
        self.0.insert(name, Extent::Whole);
    }

    fn workload(&mut self, name: ServiceName, key: &Arc<str>) {
        match self.0.entry(name).or_insert_with(|| Extent::Workloads(BTreeSet::new())) {
            Extent::Whole => {}
            Extent::Workloads(keys) => _ = keys.insert(key.clone()),
        }
    }
}

/// What a step changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Services made, changed or removed.
    pub services: BTreeSet<ServiceName>,
    /// Parts of what governs services.
    pub policies: BTreeSet<Scope>,
    /// Addresses whose owner is another now.
    pub addresses: BTreeSet<SocketAddr>,
    /// Whether the mesh's settings changed.
    pub mesh: bool,
}

/// Folds the store's rows into states.
#[derive(Debug)]
pub struct Fold {
    applied: BTreeMap<ServiceName, Applied>,
    registered: BTreeMap<ServiceName, PortsRow>,
    /// By what follows the prefix in their key.
    workloads: BTreeMap<Arc<str>, Workload>,
    serving: BTreeMap<ServiceName, BTreeSet<Arc<str>>>,
    governing: Rows,
    settings: v1::MeshSettings,
    state: Arc<State>,
}

/// A service as an administrator wrote it.
#[derive(Debug)]
struct Applied {
    /// In the order of their numbers.
    ports: Vec<PortRow>,
    addresses: Vec<IpAddr>,
}

#[derive(Debug)]
struct Workload {
    /// Its id alone: the workloads of a service are of one namespace.
    id: Arc<str>,
    row: WorkloadRow,
    lease: Option<LeaseId>,
    revision: u64,
}

impl Fold {
    /// Starts from nothing.
    pub fn new(source: &str) -> Self {
        Self {
            applied: BTreeMap::new(),
            registered: BTreeMap::new(),
            workloads: BTreeMap::new(),
            serving: BTreeMap::new(),
            governing: Rows::default(),
            settings: default_settings(),
            state: Arc::new(State::empty(source)),
        }
    }

    /// The newest state.
    pub fn state(&self) -> &Arc<State> {
        &self.state
    }

    /// Replaces everything by what was read at one revision: at the start, and when the changes in
    /// between are no longer known.
    pub fn reset(&mut self, range: &Range) -> Changed {
        let mut touched = Touched::default();
        self.state.services.keys().for_each(|name| touched.whole(name.clone()));
        let mut state = self.state.clone();
        if state.position == 0 {
            Arc::make_mut(&mut state).policies.forget_before(range.revision);
        }
        let governing = Rows::after(&state.policies);
        *self = Self { state, governing, ..Self::new("") };
        for entry in &range.entries {
            self.put(entry, &mut touched);
        }
        self.finish(range.revision, touched)
    }

    /// Applies transactions, all as one step.
    pub fn apply(&mut self, transactions: &[Arc<Transaction>]) -> Changed {
        let mut touched = Touched::default();
        for change in transactions.iter().flat_map(|transaction| &transaction.changes) {
            self.change(change, &mut touched);
        }
        let position = transactions.last().map_or(self.state.position, |last| last.revision);
        self.finish(position, touched)
    }

    fn change(&mut self, change: &Change, touched: &mut Touched) {
        match &change.after {
            Some(entry) => self.put(entry, touched),
            None => self.delete(&change.key, touched),
        }
    }

    /// A row that cannot be read is left out, loudly: one bad row must not take the mesh down.
    fn put(&mut self, entry: &Entry, touched: &mut Touched) {
        let key: &str = &entry.key;
        if let Some(name) = key.strip_prefix(SERVICES).and_then(service_of) {
            match resource(entry) {
                Some(Resource::Service { spec, .. }) => {
                    let ports = spec.ports.into_iter().map(|port| PortRow {
                        number: port.port,
                        name: port.name.unwrap_or_default(),
                        protocol: port.protocol,
                    });
                    let mut ports: Vec<PortRow> = ports.collect();
                    ports.sort_by_key(|port| port.number);
                    self.applied.insert(name.clone(), Applied { ports, addresses: spec.addresses });
                }
                Some(_) | None => _ = self.applied.remove(&name),
            }
            touched.whole(name);
        } else if key == MESH_CONFIG_KEY {
            if let Some(Resource::MeshConfig { spec }) = resource(entry) {
                let defaults = spec.defaults.map(|defaults| serde_json::to_string(&defaults));
                self.settings = v1::MeshSettings {
                    trace_sampling_ratio: spec.tracing.sampling_ratio,
                    traffic_defaults: defaults
                        .transpose()
                        .expect("plain data serialises")
                        .unwrap_or_default(),
                    mtls_mode: v1::MtlsMode::from(spec.mtls.mode).into(),
                    egress_mode: v1::EgressMode::from(spec.egress.mode).into(),
                };
            }
        } else if let Some(rest) = governing(key) {
            match resource(entry) {
                Some(resource) => {
                    let sent = v1::Resource {
                        kind: resource.kind().to_owned(),
                        namespace: resource.namespace().to_owned(),
                        name: resource.name().to_owned(),
                        json: String::from_utf8_lossy(&entry.value).into_owned(),
                        revision: entry.revision,
                    };
                    self.governing.put(&resource, sent);
                }
                None => self.governing.delete(rest),
            }
        } else if let Some(name) = key.strip_prefix(PORTS).and_then(service_of) {
            match decode::<PortsRow>(entry) {
                Ok(row) => _ = self.registered.insert(name.clone(), row),
                Err(error) => tracing::error!(%error, "row left out"),
            }
            touched.whole(name);
        } else if let Some(rest) = key.strip_prefix(WORKLOADS) {
            self.remove_workload(rest, touched);
            match decode::<WorkloadRow>(entry) {
                Ok(row) => {
                    let (id, lease) = (row.id.as_str().into(), entry.lease);
                    let workload = Workload { id, row, lease, revision: entry.revision };
                    self.add_workload(rest.into(), workload, touched);
                }
                Err(error) => tracing::error!(%error, "row left out"),
            }
        }
    }

    fn delete(&mut self, key: &str, touched: &mut Touched) {
        if let Some(name) = key.strip_prefix(SERVICES).and_then(service_of) {
            self.applied.remove(&name);
            touched.whole(name);
        } else if key == MESH_CONFIG_KEY {
            self.settings = default_settings();
        } else if let Some(rest) = governing(key) {
            self.governing.delete(rest);
        } else if let Some(name) = key.strip_prefix(PORTS).and_then(service_of) {
            self.registered.remove(&name);
            touched.whole(name);
        } else if let Some(rest) = key.strip_prefix(WORKLOADS) {
            self.remove_workload(rest, touched);
        }
    }

    fn add_workload(&mut self, key: Arc<str>, workload: Workload, touched: &mut Touched) {
        for name in workload.services() {
            self.serving.entry(name.clone()).or_default().insert(key.clone());
            touched.workload(name, &key);
        }
        self.workloads.insert(key, workload);
    }

    fn remove_workload(&mut self, key: &str, touched: &mut Touched) {
        let Some((key, workload)) = self.workloads.remove_entry(key) else { return };
        for name in workload.services() {
            if let Some(serving) = self.serving.get_mut(&name) {
                serving.remove(&key);
                if serving.is_empty() {
                    self.serving.remove(&name);
                }
            }
            touched.workload(name, &key);
        }
    }

    /// Builds the next state; services whose content is as before are neither replaced nor reported.
    fn finish(&mut self, position: u64, touched: Touched) -> Changed {
        let mut next = State { position, ..(*self.state).clone() };
        let (policies, scopes) = self.governing.finish(position, &next.policies);
        next.policies = policies;
        let mesh = next.mesh.settings != self.settings;
        let mut changed = Changed { policies: scopes, mesh, ..Changed::default() };
        if changed.mesh {
            next.mesh = MeshState { changed: position, settings: self.settings.clone() };
        }
        for (name, extent) in touched.0 {
            let old = next.services.get(&name);
            let new = match (old, &extent) {
                (Some(old), Extent::Workloads(keys)) => self.patched(&name, position, old, keys),
                _ => None,
            };
            let new = new.or_else(|| self.build(&name, position, old.map(AsRef::as_ref)));
            let same = match (old, &new) {
                (None, None) => true,
                (Some(old), Some(new)) => old.is_as(new),
                (None, Some(_)) | (Some(_), None) => false,
            };
            if !same {
                let named = |service: Option<&ServiceState>| {
                    service.map_or(Vec::new(), |service| service.named_ports().cloned().collect())
                };
                if named(old.map(AsRef::as_ref)) != named(new.as_ref()) {
                    // Policies that name ports mean others now, to those that serve them.
                    changed.policies.insert(Scope::Authorization(name.clone()));
                }
                let others = next.owners.replace(&name, old.map(AsRef::as_ref), new.as_ref());
                changed.addresses.extend(others);
                if let Some(old) = old {
                    old.memo.superseded();
                }
                match new {
                    Some(new) => _ = next.services.insert(name.clone(), Arc::new(new)),
                    None => _ = next.services.remove(&name),
                }
                changed.services.insert(name);
            }
        }
        self.state = Arc::new(next);
        changed
    }

    fn build(&self, name: &ServiceName, position: u64, old: Option<&ServiceState>) -> Option<ServiceState> {
        let rows = self.ports(name)?;
        let mut endpoints = BTreeMap::new();
        for workload in self.serving(name) {
            for served in workload.row.served(name) {
                if rows.iter().any(|port| port.number == served.port.number) {
                    let key = (workload.id.clone(), served.port.number);
                    let endpoint = workload.endpoint(served, old.and_then(|old| old.endpoints.get(&key)));
                    endpoints.insert(key, endpoint);
                }
            }
        }
        let addresses = self.applied.get(name).map(|applied| applied.addresses.clone());
        Some(ServiceState {
            changed: position,
            ports: rows.iter().map(Into::into).collect(),
            addresses: addresses.unwrap_or_default(),
            endpoints,
            memo: Memo::default(),
        })
    }

    /// The service with other endpoints of these workloads alone: what there is of it besides is not looked
    /// at. None where its ports may be others as well.
    fn patched(
        &self,
        name: &ServiceName,
        position: u64,
        old: &ServiceState,
        keys: &BTreeSet<Arc<str>>,
    ) -> Option<ServiceState> {
        let applied = self.applied.get(name);
        let rows = match applied {
            Some(applied) => &applied.ports,
            None => &self.registered.get(name)?.ports,
        };
        let known = |number: u16| rows.iter().any(|port| port.number == number);
        if !old.ports.iter().eq(&rows.iter().map(v1::Port::from).collect::<Vec<_>>()) {
            return None;
        }
        let mut endpoints = old.endpoints.clone();
        for key in keys {
            let (_, id) = key.split_once('/')?;
            let id: Arc<str> = id.into();
            let before: Vec<EndpointId> =
                endpoints.range((id.clone(), 0)..=(id, u16::MAX)).map(|(key, _)| key.clone()).collect();
            for key in &before {
                endpoints.remove(key);
            }
            let Some(workload) = self.workloads.get(key) else { continue };
            for served in workload.row.served(name) {
                let key = (workload.id.clone(), served.port.number);
                if known(served.port.number) {
                    let endpoint = workload.endpoint(served, old.endpoints.get(&key));
                    endpoints.insert(key, endpoint);
                } else if applied.is_none() {
                    return None;
                }
            }
        }
        let (ports, addresses) = (old.ports.clone(), old.addresses.clone());
        Some(ServiceState { changed: position, ports, addresses, endpoints, memo: Memo::default() })
    }

    /// A service's ports, in the order of their numbers; none if there is no such service. An applied
    /// one alone says which it has. Otherwise whatever a workload serves is one, registered or not:
    /// the applied service under which it registered may have been deleted.
    fn ports(&self, name: &ServiceName) -> Option<Vec<PortRow>> {
        if let Some(applied) = self.applied.get(name) {
            return Some(applied.ports.clone());
        }
        let registered = self.registered.get(name);
        let mut row = registered.cloned().unwrap_or_default();
        for workload in self.serving(name) {
            workload.row.served(name).for_each(|served| row.add(&served.port));
        }
        (registered.is_some() || !row.ports.is_empty()).then_some(row.ports)
    }

    fn serving(&self, name: &ServiceName) -> impl Iterator<Item = &Workload> {
        self.serving.get(name).into_iter().flatten().filter_map(|key| self.workloads.get(key))
    }
}

impl Workload {
    fn services(&self) -> BTreeSet<ServiceName> {
        self.row.ports.iter().filter_map(|served| ServiceName::parse(&served.service).ok()).collect()
    }

    /// What it offers; the same as `old` where that says the same.
    fn endpoint(&self, served: &ServedRow, old: Option<&Arc<EndpointState>>) -> Arc<EndpointState> {
        let endpoint = v1::Endpoint {
            workload: self.row.id.clone(),
            port: served.port.number.into(),
            address: self.row.address.to_string(),
            mesh_port: self.row.mesh_port.into(),
            identity: self.row.identity.clone(),
            zone: self.row.zone.clone(),
            healthy: served.healthy,
            weight: self.row.weight.into(),
        };
        let application = SocketAddr::new(self.row.address, served.target_port);
        let (since, lease) = (self.revision, self.lease);
        let mut new = EndpointState { endpoint, application, since, lease, digest: 0 };
        match old {
            Some(old) if old.is_as(&new) => return old.clone(),
            Some(old) if (old.application, old.lease) == (new.application, new.lease) => {
                new.since = old.since;
            }
            Some(_) | None => {}
        }
        new.digest = digest(&new.endpoint);
        Arc::new(new)
    }
}

fn default_settings() -> v1::MeshSettings {
    v1::MeshSettings {
        trace_sampling_ratio: DEFAULT_SAMPLING_RATIO,
        traffic_defaults: String::new(),
        mtls_mode: v1::MtlsMode::Strict.into(),
        egress_mode: v1::EgressMode::Allow.into(),
    }
}

/// `<kind>/<namespace>/<name>` of the key of a route or policy.
fn governing(key: &str) -> Option<&str> {
    let rest = key.strip_prefix(RESOURCES)?;
    rest.split_once('/').filter(|(kind, _)| GOVERNING.contains(kind)).map(|_| rest)
}

fn resource(entry: &Entry) -> Option<Resource> {
    let text = std::str::from_utf8(&entry.value).ok()?;
    match Resource::from_json(text) {
        Ok(resource) => Some(resource),
        Err(error) => {
            tracing::error!(key = &*entry.key, %error, "resource left out");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{encode, ports_key, workload_key};

    fn port(number: u16) -> PortRow {
        PortRow { number, name: String::new(), protocol: Default::default() }
    }

    #[test]
    fn what_a_workload_serves_is_a_port_whether_registered_or_not() {
        let name = ServiceName::new("shop", "orders").unwrap();
        let served = ServedRow { service: name.to_string(), port: port(80), target_port: 1, healthy: true };
        let row = WorkloadRow {
            id: "w1".into(),
            identity: String::new(),
            zone: String::new(),
            address: [127, 0, 0, 1].into(),
            mesh_port: 1,
            weight: 0,
            ports: vec![served],
        };
        let entry = |key: String, value| Entry { key: key.as_str().into(), value, revision: 1, lease: None };
        let workload = entry(workload_key("shop", "w1"), encode(&row));
        let other = entry(ports_key(&name), encode(&PortsRow { ports: vec![port(79), port(81)] }));
        for (entries, ports) in
            [(vec![workload.clone()], vec![80]), (vec![workload, other], vec![79, 80, 81])]
        {
            let mut fold = Fold::new("store");
            fold.reset(&Range { revision: 1, entries });
            let service = &fold.state().services[&name];
            let numbers: Vec<_> = service.ports.iter().map(|port| port.number).collect();
            assert_eq!((numbers, service.endpoints.len()), (ports, 1));
        }
    }

    #[test]
    fn health_decides_nothing_between_two_that_claim_one_address() {
        let served = |service: &str, healthy: bool| ServedRow {
            service: service.into(),
            port: port(80),
            target_port: 8080,
            healthy,
        };
        let row = |id: &str, ports: Vec<ServedRow>| WorkloadRow {
            id: id.into(),
            identity: String::new(),
            zone: String::new(),
            address: [10, 1, 0, 1].into(),
            mesh_port: 1,
            weight: 0,
            ports,
        };
        let mut fold = Fold::new("store");
        let mut write = |revision: u64, row: &WorkloadRow| {
            let key: Arc<str> = workload_key("shop", &row.id).into();
            let after = Some(Entry { key: key.clone(), value: encode(row), revision, lease: None });
            let changes = vec![Change { key, before: None, after }];
            let changed = fold.apply(&[Arc::new(Transaction { revision, changes })]);
            let owner = fold.state().owners.of(([10, 1, 0, 1], 8080).into());
            (owner.unwrap().workload.unwrap().to_string(), changed.addresses.len())
        };
        let (a, b) = ("a.shop", "b.shop");
        assert_eq!(write(1, &row("old", vec![served(a, true)])), ("old".to_owned(), 1));
        assert_eq!(write(2, &row("new", vec![served(b, true)])), ("new".to_owned(), 1));
        assert_eq!(write(3, &row("old", vec![served(a, false)])), ("new".to_owned(), 0));
        // What it serves besides is news; that it registers more makes no claim of before a later one.
        let more = ServedRow { target_port: 8081, ..served(b, true) };
        assert_eq!(write(4, &row("old", vec![served(a, true), more])), ("new".to_owned(), 1));
    }
}
