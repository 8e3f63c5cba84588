//! What this sidecar serves: the ports it registers, found by SNI. Nothing else is reachable
//! through it.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};
use std::time::{Duration, Instant};

use arc_swap::{ArcSwap, Guard};
use outrigger_api::resource::policy::TrafficPolicySpec;
use outrigger_api::resource::{Protocol, Resource};
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::{InvalidName, ServiceName};
use outrigger_common::tasks::Tasks;
use tokio::sync::watch;

use super::plain;
use super::policy::{self, PortPolicy, Served};
use super::probe::Probe;
use crate::config::Config;
use crate::control::snapshot::server_name;
use crate::control::state::State;
use crate::error::ProxyError;
use crate::outbound::policy::server_budget;
use crate::policy::budget::ServerBudget;
use crate::policy::limit::Concurrency;
use crate::pool::app::{self, AppLimits, AppPool};
use crate::route::DEFAULT_ROUTE;
use crate::telemetry::edge::Edge;
use crate::telemetry::metrics::{Direction, Metrics};

/// All served ports.
#[derive(Debug)]
pub struct ServedPorts {
    /// By the server name that names them.
    by_name: HashMap<String, Arc<ServedPort>>,
    /// By the number of the port the application listens on: the first of those that share it.
    by_target: HashMap<u16, Arc<ServedPort>>,
}

/// One served port.
#[derive(Debug)]
pub struct ServedPort {
    /// The service.
    pub service: ServiceName,
    /// How the application is spoken to.
    pub protocol: Protocol,
    /// Connections to the application.
    pub app: Arc<AppPool>,
    /// The port, as callers name it.
    pub number: u16,
    /// Which share of the requests may be retries.
    pub budget: ServerBudget,
    /// How many requests the application has at once.
    pub concurrency: Arc<Concurrency>,
    /// Paths whose GET is answered without mutual TLS: those of all services with this target.
    pub probes: Vec<Probe>,
    policy: ArcSwap<PortPolicy>,
    /// Counts the policies, so that live connections look again.
    version: watch::Sender<u64>,
    metrics: Arc<Metrics>,
    edges: RwLock<Edges>,
}

/// Edges by caller, so that a request does not look them up by label.
#[derive(Debug, Default)]
struct Edges {
    by_source: HashMap<Box<str>, Arc<Edge>>,
    /// Names each identity has used.
    names: HashMap<SpiffeId, usize>,
}

/// Service names one identity may call under. A workload that invents more is counted by its account,
/// or it could use up the series of everybody.
const NAMES: usize = 32;

impl ServedPorts {
    /// The ports of the configuration, in the namespace of the certificate.
    ///
    /// # Errors
    /// A name that cannot be one, which the configuration's check excludes.
    pub fn new(
        config: &Config,
        namespace: &str,
        metrics: &Arc<Metrics>,
        tasks: &Tasks,
    ) -> Result<Self, InvalidName> {
        let limits = AppLimits {
            connect: config.timeouts.connect,
            idle: config.pool.app_idle_timeout,
            header_bytes: config.limits.header_bytes,
            max_age: config.pool.max_age,
        };
        let (mut by_name, mut by_target, now) = (HashMap::new(), HashMap::new(), Instant::now());
        let built_in = TrafficPolicySpec::built_in();
        for served in &config.services {
            let service = ServiceName::new(namespace, &served.name)?;
            let target = served.target.port();
            let together = config.services.iter().filter(|other| other.target.port() == target);
            let port = ServedPort {
                protocol: served.protocol,
                number: served.port,
                budget: ServerBudget::new(server_budget(&built_in), now),
                concurrency: Concurrency::new(policy::concurrency(&built_in), now),
                policy: ArcSwap::from_pointee(PortPolicy::open(config)),
                version: watch::Sender::new(0),
                app: app::swept(served.target, limits, tasks),
                metrics: metrics.clone(),
                edges: RwLock::default(),
                service: service.clone(),
                probes: together.flat_map(|served| &served.probes).cloned().map(Probe::new).collect(),
            };
            let port = Arc::new(port);
            by_target.entry(target).or_insert_with(|| port.clone());
            by_name.insert(server_name(&service, served.port), port);
        }
        Ok(Self { by_name, by_target })
    }

    /// The port an SNI names, if it is served.
    pub fn find(&self, server_name: &str) -> Option<Arc<ServedPort>> {
        self.by_name.get(server_name).cloned()
    }

    /// The port whose application listens on `port`, if one does.
    pub fn at_target(&self, port: u16) -> Option<Arc<ServedPort>> {
        self.by_target.get(&port).cloned()
    }

    /// Puts the newest policies in force at the ports of a service. On the control thread.
    pub fn govern(&self, service: &str, state: &State, config: &Config) {
        for port in self.by_name.values().filter(|port| port.service.as_str() == service) {
            let policies = state.policies(service).cloned().unwrap_or_default();
            port.govern(&policies, state, config);
        }
    }

    /// Every port, for people.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &ServedPort)> {
        self.by_name.iter().map(|(name, port)| (name.as_str(), port.as_ref()))
    }
}

impl ServedPort {
    /// The policy in force.
    pub fn policy(&self) -> Guard<Arc<PortPolicy>> {
        self.policy.load()
    }

    /// Waits for the first policies, be there none, at most `limit`: before they are known nobody may
    /// be let in. Returns how many there have been.
    ///
    /// Cancel safety: safe.
    ///
    /// # Errors
    /// They did not come.
    pub async fn governed(&self, limit: Duration) -> Result<u64, ProxyError> {
        let version = *self.version.borrow();
        if version > 0 {
            return Ok(version);
        }
        let mut version = self.version.subscribe();
        match Box::pin(tokio::time::timeout(limit, version.wait_for(|version| *version > 0))).await {
            Ok(Ok(version)) => Ok(*version),
            Ok(Err(_)) | Err(_) => {
                Err(ProxyError::DiscoveryUnavailable(format!("the policies of {}", self.service)))
            }
        }
    }

    /// Changes with each policy.
    pub fn policy_version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    fn govern(&self, policies: &[Resource], state: &State, config: &Config) {
        let now = Instant::now();
        let name = state.port_name(self.service.as_str(), self.number);
        let served = Served { service: &self.service, port: self.number, port_name: name };
        let old = self.policy.load_full();
        let (policy, spec) = PortPolicy::compile(policies, state.defaults(), &served, (&old, config, now));
        self.budget.update(server_budget(&spec));
        self.concurrency.update(policy::concurrency(&spec), now);
        self.policy.store(Arc::new(policy));
        self.version.send_modify(|version| *version += 1);
    }

    /// The edge from `source`, the service `caller` says it is.
    pub fn edge(&self, caller: &SpiffeId, source: &str) -> Arc<Edge> {
        if let Some(edge) = self.edges.read().expect("no holder of this lock panics").by_source.get(source) {
            return edge.clone();
        }
        let mut edges = self.edges.write().expect("no holder of this lock panics");
        let names = edges.names.entry(caller.clone()).or_default();
        if *names >= NAMES {
            let account = account_name(caller);
            let edge = self.metrics.edge(Direction::Inbound, &account, self.service.as_str(), DEFAULT_ROUTE);
            return edges.by_source.entry(account.into()).or_insert(edge).clone();
        }
        *names += 1;
        let edge = self.metrics.edge(Direction::Inbound, source, self.service.as_str(), DEFAULT_ROUTE);
        if !edge.is_overflow() {
            edges.by_source.insert(source.into(), edge.clone());
        }
        edge
    }
}

/// What a caller is called when its sidecar does not say.
pub fn account_name(caller: &SpiffeId) -> String {
    if !caller.is_proven() {
        return plain::NOBODY.to_owned();
    }
    format!("{}.{}", caller.account().unwrap_or_default(), caller.namespace().unwrap_or_default())
}
