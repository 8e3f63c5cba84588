//! What the registry has told, folded from its updates. Pure.
//!
//! A resource that cannot be used is refused by name; its old form stays, the rest goes ahead.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_api::resource::authorization::{Action, AuthorizationPolicySpec};
use outrigger_api::resource::policy::{self, TrafficPolicySpec};
use outrigger_api::resource::{
    DEFAULT_SAMPLING_RATIO, EgressMode, MtlsMode, Protocol, Resource, ResourceName,
};
use outrigger_api::v1;
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::ServiceName;

use super::owners::{self, Owner};

/// Everything known; the name of each service asked about is a key.
#[derive(Debug, Default)]
pub struct State {
    services: HashMap<String, Held>,
    /// What governs the calls of a service, by the service's name.
    policies: HashMap<String, Policies>,
    /// Names of the ports of services this sidecar stands in front of.
    port_names: HashMap<String, BTreeMap<u32, String>>,
    /// Services whose newest full form was refused: deltas on it make no sense until the next one.
    behind: HashSet<String>,
    mesh: Mesh,
}

#[derive(Debug)]
struct Mesh {
    sampling: f64,
    defaults: TrafficPolicySpec,
    mtls: MtlsMode,
    egress: Option<EgressMode>,
}

/// Policies and routes of one service, in the order the registry sent them: of kind, namespace and
/// name.
pub type Policies = Arc<Vec<Resource>>;

impl Default for Mesh {
    fn default() -> Self {
        Self {
            sampling: DEFAULT_SAMPLING_RATIO,
            defaults: TrafficPolicySpec::default(),
            mtls: MtlsMode::default(),
            egress: None,
        }
    }
}

/// What is known of one service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Held {
    /// The registry said there is none.
    Unknown,
    /// Its ports and endpoints.
    Known(ServiceFacts),
}

/// A service, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceFacts {
    /// `name.namespace`.
    pub name: ServiceName,
    /// Ports by number.
    pub ports: BTreeMap<u16, PortFacts>,
    /// Endpoints by workload and port.
    pub endpoints: BTreeMap<(String, u16), EndpointFacts>,
}

/// A port, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortFacts {
    /// A DNS label, or empty.
    pub name: String,
    /// How the application is spoken to.
    pub protocol: Protocol,
}

/// An endpoint, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointFacts {
    /// The workload's sidecar.
    pub address: SocketAddr,
    /// Whom it must prove to be.
    pub identity: SpiffeId,
    /// Whether it reaches its application.
    pub healthy: bool,
    /// Failure zone, or empty.
    pub zone: String,
    /// Share of requests relative to the others, 1 to 1000.
    pub weight: u32,
}

/// One resource that was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Such as `Service/orders.shop`.
    pub resource: String,
    /// Why.
    pub reason: String,
}

/// What an update did.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Names of services that changed.
    pub changed: BTreeSet<String>,
    /// Resources left as they were.
    pub refused: Vec<Refused>,
    /// Whose addresses are.
    pub owners: Vec<(SocketAddr, Owner)>,
}

impl State {
    /// Share of new traces to sample.
    pub fn sampling(&self) -> f64 {
        self.mesh.sampling
    }

    /// What every service's traffic policy starts from.
    pub fn defaults(&self) -> &TrafficPolicySpec {
        &self.mesh.defaults
    }

    /// Whom sidecars let in: strict until the mesh says otherwise.
    pub fn mtls(&self) -> MtlsMode {
        self.mesh.mtls
    }

    /// Whether applications may leave the mesh; none until it says so. The registry begins with it, also
    /// where nobody has applied a `MeshConfig`.
    pub fn egress(&self) -> Option<EgressMode> {
        self.mesh.egress
    }

    /// What governs the calls of a service.
    pub fn policies(&self, name: &str) -> Option<&Policies> {
        self.policies.get(name)
    }

    /// The name of a port of a service this sidecar stands in front of, if it has one.
    pub fn port_name(&self, service: &str, port: u16) -> Option<&str> {
        let name = self.port_names.get(service)?.get(&port.into())?;
        Some(name.as_str()).filter(|name| !name.is_empty())
    }

    /// What is known of a service, if it was asked about and answered.
    pub fn service(&self, name: &str) -> Option<&Held> {
        self.services.get(name)
    }

    /// Services held as the registry last told them: those that a delta could follow.
    pub fn held(&self) -> impl Iterator<Item = &str> {
        self.services.keys().map(String::as_str).filter(|name| !self.behind.contains(*name))
    }

    /// Forgets a service nobody asks for any more. What governs it stays where this sidecar `serves`
    /// it.
    pub fn forget(&mut self, name: &str, serves: bool) {
        self.services.remove(name);
        self.behind.remove(name);
        if !serves {
            self.policies.remove(name);
            self.port_names.remove(name);
        }
    }

    /// Folds one update in.
    pub fn apply(&mut self, update: v1::Update) -> Applied {
        let mut applied = Applied::default();
        for change in update.changes {
            let resource = describe(&change);
            let result = match change.requires.first() {
                Some(feature) => Err(format!("this sidecar lacks the feature {feature}; upgrade it")),
                None => self.apply_change(change.change, &mut applied),
            };
            match result {
                Ok(()) => {}
                Err(reason) => {
                    if let Some(service) = resource.strip_prefix("Service/") {
                        self.behind.insert(service.to_owned());
                    }
                    applied.refused.push(Refused { resource, reason });
                }
            }
        }
        applied
    }

    fn apply_change(
        &mut self,
        change: Option<v1::change::Change>,
        applied: &mut Applied,
    ) -> Result<(), String> {
        use v1::change::Change;
        match change {
            Some(Change::Service(service)) => {
                let facts = service_facts(service)?;
                let name = facts.name.as_str().to_owned();
                self.behind.remove(&name);
                self.services.insert(name.clone(), Held::Known(facts));
                applied.changed.insert(name);
            }
            Some(Change::Delta(delta)) if self.behind.contains(&delta.name) => {}
            Some(Change::Delta(delta)) => {
                let Some(Held::Known(facts)) = self.services.get_mut(&delta.name) else {
                    return Err("a delta for a service that is not held".to_owned());
                };
                // Checked in full before anything is changed: never half applied.
                let upserts = delta.upsert.into_iter().map(endpoint_facts).collect::<Result<Vec<_>, _>>()?;
                let removed = delta.remove.iter().map(|key| Ok((key.workload.clone(), port(key.port)?)));
                let removed = removed.collect::<Result<Vec<_>, String>>()?;
                for key in removed {
                    facts.endpoints.remove(&key);
                }
                facts.endpoints.extend(upserts);
                applied.changed.insert(delta.name);
            }
            Some(Change::Unknown(name)) => {
                self.behind.remove(&name);
                self.services.insert(name.clone(), Held::Unknown);
                applied.changed.insert(name);
            }
            Some(Change::Mesh(mesh)) => {
                let ratio = mesh.trace_sampling_ratio;
                if !(0.0..=1.0).contains(&ratio) {
                    return Err(format!("sampling ratio {ratio} is not within 0 and 1"));
                }
                let defaults = match mesh.traffic_defaults.as_str() {
                    "" => TrafficPolicySpec::default(),
                    json => policy::defaults_from_json(json).map_err(|error| error.to_string())?,
                };
                let mtls = v1::MtlsMode::try_from(mesh.mtls_mode).map_err(|_| {
                    format!("mtls mode {} is unknown to this sidecar; upgrade it", mesh.mtls_mode)
                })?;
                let egress = v1::EgressMode::try_from(mesh.egress_mode).map_err(|_| {
                    format!("egress mode {} is unknown to this sidecar; upgrade it", mesh.egress_mode)
                })?;
                (self.mesh.mtls, self.mesh.egress) = (mtls.into(), Some(egress.into()));
                self.mesh.sampling = ratio;
                if self.mesh.defaults != defaults {
                    self.mesh.defaults = defaults;
                    let served = self.port_names.keys();
                    let all = self.services.keys().chain(self.policies.keys()).chain(served);
                    applied.changed.extend(all.cloned());
                }
            }
            Some(Change::Policies(policies)) => self.apply_policies(policies, applied),
            Some(Change::Address(told)) => applied.owners.push(owners::facts(&told)?),
            None => return Err("a kind of change this sidecar does not know; upgrade it".to_owned()),
        }
        Ok(())
    }

    /// A policy that cannot be used leaves its old form in force, if there was one.
    fn apply_policies(&mut self, message: v1::ServicePolicies, applied: &mut Applied) {
        let old = self.policies.remove(&message.service).unwrap_or_default();
        let mut new = Vec::with_capacity(message.resources.len());
        for sent in message.resources {
            let is_it = |resource: &Resource| {
                resource.kind() == sent.kind
                    && resource.namespace() == sent.namespace
                    && resource.name() == sent.name
            };
            let parsed = Resource::from_json(&sent.json).map_err(|error| error.message);
            match parsed {
                Ok(resource) if is_it(&resource) => new.push(resource),
                other => {
                    let reason = other.err().unwrap_or_else(|| "its document names another resource".into());
                    let resource = format!("{}/{}/{}", sent.kind, sent.namespace, sent.name);
                    applied.refused.push(Refused { resource, reason });
                    let before = old.iter().find(|resource| is_it(resource)).cloned();
                    new.extend(before.or_else(|| closed(&sent.kind, &sent.namespace, &sent.name)));
                }
            }
        }
        let names = message.ports.into_iter().map(|port| (port.number, port.name)).collect();
        self.port_names.insert(message.service.clone(), names);
        if !new.is_empty() {
            self.policies.insert(message.service.clone(), Arc::new(new));
        }
        applied.changed.insert(message.service);
    }
}

/// What stands for a policy that cannot be read and has no old form. One that says who may call must
/// not be left out, or everybody may: until it can be read, nobody of its namespace's services is let in.
fn closed(kind: &str, namespace: &str, name: &str) -> Option<Resource> {
    (kind == "AuthorizationPolicy").then(|| Resource::AuthorizationPolicy {
        name: ResourceName { namespace: namespace.to_owned(), name: name.to_owned() },
        spec: AuthorizationPolicySpec { target_refs: Vec::new(), action: Action::Allow, rules: Vec::new() },
    })
}

pub(super) fn describe(change: &v1::Change) -> String {
    use v1::change::Change;
    match &change.change {
        Some(Change::Service(service)) => format!("Service/{}", service.name),
        Some(Change::Delta(delta)) => format!("Service/{}", delta.name),
        Some(Change::Unknown(name)) => format!("Service/{name}"),
        Some(Change::Policies(policies)) => format!("policies of {}", policies.service),
        Some(Change::Mesh(_)) => "MeshConfig/default".to_owned(),
        Some(Change::Address(told)) => format!("Address/{}", told.address),
        None => "unknown".to_owned(),
    }
}

fn service_facts(service: v1::Service) -> Result<ServiceFacts, String> {
    let name = ServiceName::parse(&service.name).map_err(|error| error.to_string())?;
    let ports = service
        .ports
        .iter()
        .map(|declared| {
            let protocol = v1::Protocol::try_from(declared.protocol).map_err(|_| {
                format!(
                    "protocol {} of port {} is unknown to this sidecar; upgrade it",
                    declared.protocol, declared.number
                )
            })?;
            let facts = PortFacts { name: declared.name.clone(), protocol: protocol.into() };
            Ok((port(declared.number)?, facts))
        })
        .collect::<Result<_, String>>()?;
    let endpoints = service.endpoints.into_iter().map(endpoint_facts).collect::<Result<_, _>>()?;
    Ok(ServiceFacts { name, ports, endpoints })
}

fn endpoint_facts(endpoint: v1::Endpoint) -> Result<((String, u16), EndpointFacts), String> {
    let at = |what: &str| format!("endpoint {}: {what}", endpoint.workload);
    let address: IpAddr = endpoint.address.parse().map_err(|_| at("its address is not an IP address"))?;
    let identity = SpiffeId::parse(&endpoint.identity).map_err(|error| at(&error.to_string()))?;
    let mesh_port = port(endpoint.mesh_port).map_err(|error| at(&error))?;
    let key_port = port(endpoint.port).map_err(|error| at(&error))?;
    let weight = match endpoint.weight {
        0 => DEFAULT_WEIGHT,
        weight => weight.min(MAX_WEIGHT),
    };
    let facts = EndpointFacts {
        address: SocketAddr::new(address, mesh_port),
        identity,
        healthy: endpoint.healthy,
        zone: endpoint.zone,
        weight,
    };
    Ok(((endpoint.workload, key_port), facts))
}

/// Weight of an endpoint that names none.
const DEFAULT_WEIGHT: u32 = 100;
const MAX_WEIGHT: u32 = 1000;

fn port(number: u32) -> Result<u16, String> {
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| format!("{number} is not a port"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use v1::change::Change;

    fn endpoint(workload: &str, healthy: bool) -> v1::Endpoint {
        v1::Endpoint {
            workload: workload.into(),
            port: 80,
            address: "127.0.0.1".into(),
            mesh_port: 15008,
            identity: "spiffe://mesh.local/ns/shop/sa/orders".into(),
            zone: String::new(),
            healthy,
            weight: 0,
        }
    }

    fn service(name: &str, endpoints: Vec<v1::Endpoint>) -> Change {
        let port = v1::Port { number: 80, name: String::new(), protocol: v1::Protocol::Unspecified.into() };
        Change::Service(v1::Service { name: name.into(), ports: vec![port], endpoints })
    }

    fn update(changes: Vec<Change>) -> v1::Update {
        let changes =
            changes.into_iter().map(|change| v1::Change { change: Some(change), requires: vec![] }).collect();
        v1::Update { nonce: 1, cursor: vec![], revision: 1, changes }
    }

    fn workloads(state: &State, name: &str) -> Vec<String> {
        match state.service(name) {
            Some(Held::Known(facts)) => {
                facts.endpoints.keys().map(|(workload, _)| workload.clone()).collect()
            }
            Some(Held::Unknown) | None => Vec::new(),
        }
    }

    #[test]
    fn deltas_change_what_full_state_began() {
        let mut state = State::default();
        state.apply(update(vec![service("orders.shop", vec![endpoint("a", true), endpoint("b", true)])]));
        let remove = vec![v1::EndpointKey { workload: "a".into(), port: 80 }];
        let delta =
            v1::ServiceDelta { name: "orders.shop".into(), upsert: vec![endpoint("c", false)], remove };
        let applied = state.apply(update(vec![Change::Delta(delta)]));
        assert_eq!(applied.changed.into_iter().collect::<Vec<_>>(), ["orders.shop"]);
        assert_eq!(workloads(&state, "orders.shop"), ["b", "c"]);
    }

    #[test]
    fn a_bad_resource_is_refused_alone_and_its_old_form_stays() {
        let mut state = State::default();
        state.apply(update(vec![service("orders.shop", vec![endpoint("a", true)])]));
        let mut bad = endpoint("b", true);
        bad.identity = "nobody".into();
        let applied = state.apply(update(vec![
            service("orders.shop", vec![bad]),
            service("items.shop", vec![endpoint("i", true)]),
        ]));
        assert_eq!(applied.refused.len(), 1);
        assert_eq!(applied.refused[0].resource, "Service/orders.shop");
        assert_eq!(workloads(&state, "orders.shop"), ["a"]);
        assert_eq!(workloads(&state, "items.shop"), ["i"]);
        assert_eq!(state.held().collect::<Vec<_>>(), ["items.shop"]);

        // A delta follows the form that was refused, not the old one.
        let delta = v1::ServiceDelta {
            name: "orders.shop".into(),
            upsert: vec![endpoint("c", true)],
            remove: vec![],
        };
        assert_eq!(state.apply(update(vec![Change::Delta(delta)])), Applied::default());
        assert_eq!(workloads(&state, "orders.shop"), ["a"]);
        state.apply(update(vec![service("orders.shop", vec![endpoint("d", true)])]));
        assert_eq!(workloads(&state, "orders.shop"), ["d"]);
    }

    #[test]
    fn a_change_that_needs_an_unknown_feature_is_refused() {
        let mut state = State::default();
        let mut update = update(vec![service("orders.shop", vec![])]);
        update.changes[0].requires = vec!["mirroring".into()];
        let applied = state.apply(update);
        assert!(applied.refused[0].reason.contains("mirroring"));
        assert_eq!(state.service("orders.shop"), None);
    }

    #[test]
    fn a_delta_with_one_bad_endpoint_changes_nothing() {
        let mut state = State::default();
        state.apply(update(vec![service("orders.shop", vec![endpoint("a", true)])]));
        let mut bad = endpoint("b", true);
        bad.mesh_port = 0;
        let remove = vec![v1::EndpointKey { workload: "a".into(), port: 80 }];
        let delta = v1::ServiceDelta { name: "orders.shop".into(), upsert: vec![bad], remove };
        assert_eq!(state.apply(update(vec![Change::Delta(delta)])).refused.len(), 1);
        assert_eq!(workloads(&state, "orders.shop"), ["a"]);
    }

    fn policies(resources: &[(&str, &str)]) -> Change {
        let sent = |(name, spec): &(&str, &str)| v1::Resource {
            kind: "TrafficPolicy".into(),
            namespace: "shop".into(),
            name: (*name).into(),
            json: format!(
                r#"{{"apiVersion":"outrigger.dev/v1alpha1","kind":"TrafficPolicy","metadata":{{"name":"{name}","namespace":"shop"}},"spec":{spec}}}"#
            ),
            revision: 1,
        };
        Change::Policies(v1::ServicePolicies {
            service: "orders.shop".into(),
            resources: resources.iter().map(sent).collect(),
            ports: Vec::new(),
        })
    }

    fn attempts(state: &State) -> Vec<(&str, Option<u32>)> {
        let of = |resource: &Resource| match resource {
            Resource::TrafficPolicy { spec, .. } => spec.retries.as_ref().and_then(|r| r.attempts),
            _ => None,
        };
        let held = state.policies("orders.shop").into_iter().flat_map(|held| held.iter());
        held.map(|resource| (resource.name(), of(resource))).collect()
    }

    #[test]
    fn a_bad_policy_never_replaces_a_good_one() {
        let spec = |attempts: &str| {
            format!(
                r#"{{"targetRefs":[{{"kind":"Service","name":"orders"}}],"retries":{{"attempts":{attempts}}}}}"#
            )
        };
        let (one, two, bad) = (spec("1"), spec("2"), spec("\"many\""));
        let mut state = State::default();
        state.apply(update(vec![policies(&[("a", &one), ("b", &one)])]));
        assert_eq!(attempts(&state), [("a", Some(1)), ("b", Some(1))]);

        let applied = state.apply(update(vec![policies(&[("a", &bad), ("b", &two), ("c", &bad)])]));
        assert_eq!(attempts(&state), [("a", Some(1)), ("b", Some(2))]);
        let refused: Vec<_> = applied.refused.iter().map(|refused| refused.resource.as_str()).collect();
        assert_eq!(refused, ["TrafficPolicy/shop/a", "TrafficPolicy/shop/c"]);
        assert!(applied.changed.contains("orders.shop"));

        state.apply(update(vec![policies(&[])]));
        assert_eq!(attempts(&state), []);
    }

    #[test]
    fn new_defaults_of_the_mesh_concern_every_service() {
        let mut state = State::default();
        // One is called, the other served without a policy of its own.
        state.apply(update(vec![service("items.shop", vec![]), policies(&[])]));
        let mesh = |defaults: &str| {
            Change::Mesh(v1::MeshSettings {
                trace_sampling_ratio: 0.5,
                traffic_defaults: defaults.into(),
                ..Default::default()
            })
        };
        let good = r#"{"timeouts":{"request":"2s"}}"#;
        assert_eq!(state.apply(update(vec![mesh(good)])).changed.len(), 2);
        assert_eq!(state.apply(update(vec![mesh(good)])).changed.len(), 0, "nothing new");
        assert_eq!(state.apply(update(vec![mesh("{\"timeouts\":3}")])).refused.len(), 1);
        assert!(state.defaults().timeouts.is_some(), "the good ones stay");
    }

    #[test]
    fn a_mesh_is_strict_and_its_egress_unknown_until_it_speaks_and_unknown_modes_change_nothing() {
        let mut state = State::default();
        let modes = |state: &State| (state.mtls(), state.egress());
        assert_eq!(modes(&state), (MtlsMode::Strict, None));
        let mesh = |mtls_mode: i32, egress_mode: i32| {
            Change::Mesh(v1::MeshSettings { mtls_mode, egress_mode, ..Default::default() })
        };
        state.apply(update(vec![mesh(9, 0), mesh(0, 9), service("orders.shop", vec![])]));
        assert_eq!(modes(&state), (MtlsMode::Strict, None), "not told, whatever else was");
        let (permissive, deny) = (v1::MtlsMode::Permissive.into(), v1::EgressMode::Deny.into());
        assert_eq!(state.apply(update(vec![mesh(permissive, deny)])).refused, []);
        assert_eq!(modes(&state), (MtlsMode::Permissive, Some(EgressMode::Deny)));
        // Neither half of a message that cannot be read whole.
        for unknown in [mesh(9, 0), mesh(0, 9)] {
            let refused = state.apply(update(vec![unknown])).refused;
            assert_eq!(refused[0].resource, "MeshConfig/default");
            assert_eq!(modes(&state), (MtlsMode::Permissive, Some(EgressMode::Deny)));
        }
        state.apply(update(vec![mesh(0, 0)]));
        assert_eq!(
            modes(&state),
            (MtlsMode::Strict, Some(EgressMode::Allow)),
            "as registries of before say it"
        );
    }

    #[test]
    fn a_word_on_who_may_call_that_cannot_be_read_lets_nobody_in() {
        let sent = v1::Resource {
            kind: "AuthorizationPolicy".into(),
            namespace: "shop".into(),
            name: "newer".into(),
            json: r#"{"apiVersion":"outrigger.dev/v1alpha1","kind":"AuthorizationPolicy","metadata":{"name":"newer","namespace":"shop"},"spec":{"paths":["/x"]}}"#.into(),
            revision: 1,
        };
        let set =
            v1::ServicePolicies { service: "orders.shop".into(), resources: vec![sent], ports: Vec::new() };
        let mut state = State::default();
        let applied = state.apply(update(vec![Change::Policies(set)]));
        assert_eq!(applied.refused[0].resource, "AuthorizationPolicy/shop/newer");
        let held = state.policies("orders.shop").unwrap();
        let [Resource::AuthorizationPolicy { spec, .. }] = held.as_slice() else { panic!("{held:?}") };
        assert!(spec.action == Action::Allow && spec.rules.is_empty() && spec.target_refs.is_empty());
    }
}
