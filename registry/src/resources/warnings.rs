//! What is accepted, since the other half may be applied later, and probably not meant all the same.
//! Pure.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_api::resource::attachment::{Attachment, PortSelector};
use outrigger_api::resource::policy::TrafficPolicySpec;
use outrigger_api::resource::{Resource, ResourceName};
use outrigger_common::name::ServiceName;
use serde_json::Value;

use crate::model::PortsRow;

/// Every resource there is, and the ports known from registrations.
#[derive(Default)]
pub(super) struct World {
    services: BTreeMap<ServiceName, Ports>,
    /// Names of the rules of routes, by `<kind>/<namespace>/<name>`.
    routes: BTreeMap<String, BTreeSet<String>>,
    policies: Vec<(ResourceName, BTreeSet<Attachment>, BTreeSet<String>)>,
}

#[derive(Default)]
struct Ports {
    numbers: BTreeSet<u16>,
    names: BTreeSet<String>,
    /// An applied Service alone says which ports there are.
    applied: bool,
}

impl World {
    /// Adds a resource.
    pub(super) fn add(&mut self, resource: Resource) {
        let key = format!("{}/{}/{}", resource.kind(), resource.namespace(), resource.name());
        let attachments = resource.attachments().into_iter().collect();
        match resource {
            Resource::Service { name, spec } => {
                let ports = Ports {
                    numbers: spec.ports.iter().map(|port| port.port).collect(),
                    names: spec.ports.into_iter().filter_map(|port| port.name).collect(),
                    applied: true,
                };
                self.services.insert(name, ports);
            }
            Resource::TrafficPolicy { name, spec } => self.policies.push((name, attachments, keys(&spec))),
            Resource::HttpRoute { spec, .. } => {
                self.routes.insert(key, spec.rules.into_iter().filter_map(|rule| rule.name).collect());
            }
            Resource::GrpcRoute { spec, .. } => {
                self.routes.insert(key, spec.rules.into_iter().filter_map(|rule| rule.name).collect());
            }
            Resource::MeshConfig { .. } | Resource::AuthorizationPolicy { .. } => {}
        }
    }

    /// Adds the ports a service is known to have from registrations.
    pub(super) fn register(&mut self, name: ServiceName, row: &PortsRow) {
        let ports = self.services.entry(name).or_default();
        if !ports.applied {
            ports.numbers.extend(row.ports.iter().map(|port| port.number));
            ports.names.extend(row.ports.iter().map(|port| port.name.clone()));
        }
    }

    /// What to tell about a resource that was added.
    pub(super) fn warnings(&self, resource: &Resource) -> Vec<String> {
        let mut warnings: Vec<String> =
            resource.attachments().iter().filter_map(|attachment| self.missing(attachment)).collect();
        for backend in resource.backends() {
            if !self.services.contains_key(&backend) {
                warnings.push(format!("the backend Service {backend} does not exist yet"));
            }
        }
        if let Resource::TrafficPolicy { name, spec } = resource {
            warnings.extend(self.overlaps(name, resource, &keys(spec)));
        }
        warnings
    }

    fn missing(&self, attachment: &Attachment) -> Option<String> {
        match attachment {
            Attachment::Service { name, port } => {
                let Some(ports) = self.services.get(name) else {
                    return Some(format!("the target Service {name} does not exist yet"));
                };
                let (known, port) = match port.as_ref()? {
                    PortSelector::Number(number) => (ports.numbers.contains(number), number.to_string()),
                    PortSelector::Name(name) => (ports.names.contains(name), name.clone()),
                };
                (!known).then(|| format!("the target Service {name} has no port {port}"))
            }
            Attachment::Route { kind, namespace, name, rule } => {
                let kind = kind.as_str();
                let Some(rules) = self.routes.get(&format!("{kind}/{namespace}/{name}")) else {
                    return Some(format!("the target {kind} {namespace}/{name} does not exist yet"));
                };
                let rule = rule.as_ref().filter(|rule| !rules.contains(*rule))?;
                Some(format!("the target {kind} {namespace}/{name} has no rule named {rule}"))
            }
            Attachment::Namespace(_) => None,
        }
    }

    /// Policies of one namespace that say the same about the same target: the first by name wins.
    fn overlaps(&self, name: &ResourceName, policy: &Resource, said: &BTreeSet<String>) -> Vec<String> {
        let targets: BTreeSet<_> = policy.attachments().into_iter().collect();
        let mut others: Vec<_> = self
            .policies
            .iter()
            .filter(|(other, theirs, _)| {
                other != name && other.namespace == name.namespace && !theirs.is_disjoint(&targets)
            })
            .collect();
        others.sort_by_key(|(other, ..)| other);
        let tell = |(other, _, theirs): &&(ResourceName, _, BTreeSet<String>)| {
            let both: Vec<_> = said.intersection(theirs).map(String::as_str).collect();
            let winner = if *other < *name { "that one wins" } else { "this one wins" };
            (!both.is_empty()).then(|| {
                format!(
                    "TrafficPolicy {}/{} sets {} for the same target; {winner}, as the first by name",
                    other.namespace,
                    other.name,
                    both.join(", ")
                )
            })
        };
        others.iter().filter_map(tell).collect()
    }
}

/// The dotted keys a policy sets, such as `retries.attempts`.
fn keys(spec: &TrafficPolicySpec) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let value = serde_json::to_value(spec).unwrap_or_default();
    if let Value::Object(sections) = value {
        for (section, content) in sections.iter().filter(|(section, _)| *section != "targetRefs") {
            match content {
                Value::Object(fields) => keys.extend(fields.keys().map(|field| format!("{section}.{field}"))),
                _ => _ = keys.insert(section.clone()),
            }
        }
    }
    keys
}
