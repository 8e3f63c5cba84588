//! The immutable view the request path reads: one load a request, shared parts between versions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use outrigger_api::resource::Protocol;
use outrigger_common::name::ServiceName;
use rustls_pki_types::ServerName;

use super::state::{EndpointFacts, Held, PortFacts, ServiceFacts, State};
use crate::pool::mesh::Endpoint;
use crate::route::{DEFAULT_ROUTE, Route, RouteTable};
use crate::telemetry::metrics::{Direction, Metrics};

/// All that is known, at one version.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts the snapshots of this process.
    pub version: u64,
    /// Revision of the registry's state.
    pub revision: u64,
    /// Share of new traces to sample.
    pub sampling: f64,
    services: HashMap<Box<str>, Entry>,
}

/// What is known of one service.
#[derive(Debug, Clone)]
pub enum Entry {
    /// The registry said there is none.
    Unknown,
    /// The service.
    Known(Arc<Service>),
}

/// One service, compiled.
#[derive(Debug)]
pub struct Service {
    /// `name.namespace`.
    pub name: ServiceName,
    ports: BTreeMap<u16, ServicePort>,
}

/// One port of a service, compiled.
#[derive(Debug)]
pub struct ServicePort {
    /// How the application is spoken to.
    pub protocol: Protocol,
    /// Which rule applies.
    pub routes: RouteTable,
    /// Who serves it.
    pub endpoints: Vec<Arc<Endpoint>>,
}

impl Snapshot {
    /// What is known of a service, if it was asked about.
    pub fn service(&self, name: &str) -> Option<&Entry> {
        self.services.get(name)
    }

    /// Every service known to exist, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values().filter_map(|entry| match entry {
            Entry::Known(service) => Some(service),
            Entry::Unknown => None,
        })
    }

    /// The next version: services in `changed` are compiled anew, all others are shared.
    pub fn next<'a>(
        &self,
        state: &State,
        revision: u64,
        changed: impl IntoIterator<Item = &'a str>,
        source: &ServiceName,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let mut services = self.services.clone();
        for name in changed {
            let entry = match state.service(name) {
                None => {
                    services.remove(name);
                    continue;
                }
                Some(Held::Unknown) => Entry::Unknown,
                Some(Held::Known(facts)) => {
                    let old = match self.services.get(name) {
                        Some(Entry::Known(old)) => Some(old.as_ref()),
                        Some(Entry::Unknown) | None => None,
                    };
                    Entry::Known(Arc::new(Service::compile(facts, old, source, metrics)))
                }
            };
            services.insert(name.into(), entry);
        }
        Self { version: self.version + 1, revision, sampling: state.sampling(), services }
    }
}

impl Service {
    fn compile(
        facts: &ServiceFacts,
        old: Option<&Self>,
        source: &ServiceName,
        metrics: &Arc<Metrics>,
    ) -> Self {
        let compile_port = |(&number, port): (&u16, &PortFacts)| {
            let edge = metrics.edge(Direction::Outbound, source.as_str(), facts.name.as_str(), DEFAULT_ROUTE);
            let endpoints = facts
                .endpoints
                .iter()
                .filter(|((_, port), _)| *port == number)
                .filter_map(|((workload, _), endpoint)| {
                    Self::keep(old, number, workload, endpoint)
                        .or_else(|| new_endpoint(&facts.name, number, workload, endpoint))
                })
                .collect();
            (
                number,
                ServicePort { protocol: port.protocol, routes: RouteTable::new(Route { edge }), endpoints },
            )
        };
        Self { name: facts.name.clone(), ports: facts.ports.iter().map(compile_port).collect() }
    }

    /// The endpoint as it was, with its connections and what was learned of it, if it is still the same.
    fn keep(old: Option<&Self>, port: u16, workload: &str, facts: &EndpointFacts) -> Option<Arc<Endpoint>> {
        let endpoints = &old?.ports.get(&port)?.endpoints;
        let kept = endpoints.iter().find(|endpoint| {
            *endpoint.workload == *workload
                && endpoint.address == facts.address
                && endpoint.identity == facts.identity
        })?;
        kept.set_healthy(facts.healthy);
        Some(kept.clone())
    }

    /// One port, if the service has it.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.get(&number)
    }

    /// All ports, by number.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &ServicePort)> {
        self.ports.iter().map(|(number, port)| (*number, port))
    }
}

fn new_endpoint(
    service: &ServiceName,
    port: u16,
    workload: &str,
    facts: &EndpointFacts,
) -> Option<Arc<Endpoint>> {
    // Two labels, a number and a suffix: always a DNS name.
    let server_name = ServerName::try_from(server_name(service, port)).ok()?;
    Some(Arc::new(Endpoint::new(workload, facts.address, facts.identity.clone(), server_name, facts.healthy)))
}

/// The SNI that names a service port to a sidecar: `80.orders.shop.mesh`.
pub fn server_name(service: &ServiceName, port: u16) -> String {
    format!("{port}.{service}.mesh")
}
