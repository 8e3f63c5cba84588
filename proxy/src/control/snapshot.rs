//! The immutable view the request path reads: one load a request, shared parts between versions.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Instant;

use outrigger_api::resource::{EgressMode, MtlsMode, Protocol};
use outrigger_common::name::ServiceName;

use super::compile::{Compiler, Rules};
use super::destination::Destination;
use super::state::{Held, State};
use crate::balance::Group;
use crate::pool::mesh::Endpoint;

/// All that is known, at one version.
#[derive(Debug, Default)]
pub struct Snapshot {
    /// Counts the snapshots of this process.
    pub version: u64,
    /// Revision of the registry's state.
    pub revision: u64,
    /// Share of new traces to sample.
    pub sampling: f64,
    /// Whom to let in; strict while nothing is known.
    pub mtls: MtlsMode,
    /// Whether the application may leave the mesh; none while that is not known.
    pub egress: Option<EgressMode>,
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
    pub(super) ports: BTreeMap<u16, ServicePort>,
}

/// One port of a service, compiled.
#[derive(Debug)]
pub struct ServicePort {
    /// How the application is spoken to.
    pub protocol: Protocol,
    /// Which rule applies, and what governs it.
    pub rules: Arc<Rules>,
    /// What this sidecar keeps of its calls to this port, whatever the snapshot.
    pub destination: Arc<Destination>,
    /// Who serves it.
    pub endpoints: Arc<Group<Endpoint>>,
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
        compiler: &Compiler<'_>,
    ) -> Self {
        let (mut services, now) = (self.services.clone(), Instant::now());
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
                    Entry::Known(Arc::new(compiler.service(facts, state, old, now)))
                }
            };
            services.insert(name.into(), entry);
        }
        Self {
            version: self.version + 1,
            revision,
            sampling: state.sampling(),
            mtls: state.mtls(),
            egress: state.egress(),
            services,
        }
    }
}

impl Service {
    /// One port, if the service has it.
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.get(&number)
    }

    /// All ports, by number.
    pub fn ports(&self) -> impl Iterator<Item = (u16, &ServicePort)> {
        self.ports.iter().map(|(number, port)| (*number, port))
    }
}

/// The SNI that names a service port to a sidecar: `80.orders.shop.mesh`.
pub fn server_name(service: &ServiceName, port: u16) -> String {
    format!("{port}.{service}.mesh")
}
