//! Compiles what the registry told of a service into what the request path reads. Runs on the control
//! thread; what did not change is shared with the version before.

use std::sync::Arc;
use std::time::Instant;

use outrigger_api::attach::{Call, RuleRef};
use outrigger_api::resource::Resource;
use outrigger_api::resource::policy::{Effective, TrafficPolicySpec};
use outrigger_common::name::ServiceName;
use rustls_pki_types::ServerName;

use super::destination::Destination;
use super::snapshot::{Service, ServicePort, server_name};
use super::state::{EndpointFacts, PortFacts, ServiceFacts, State};
use crate::balance::{self, Group};
use crate::config::Config;
use crate::outbound::policy::{CallPolicy, explained, in_force};
use crate::pool::mesh::Endpoint;
use crate::route::matcher::{Frontend, Table};
use crate::route::rule::{Backend, Rule};
use crate::route::{DEFAULT_ROUTE, Invalid};
use crate::telemetry::edge::Edge;
use crate::telemetry::metrics::{Direction, Metrics};

/// Who compiles: what is the same for all services.
#[derive(Debug, Clone, Copy)]
pub struct Compiler<'a> {
    /// This sidecar's configuration.
    pub config: &'a Config,
    /// The source of its calls.
    pub source: &'a ServiceName,
    /// Where edges come from.
    pub metrics: &'a Arc<Metrics>,
}

/// Which rule applies to the calls of one service port, and what governs each.
#[derive(Debug)]
pub struct Rules {
    /// Finds the rule.
    pub table: Table,
    /// Governs calls where no route is attached.
    pub default: Governed,
    by_rule: Vec<Governed>,
    made_of: Made,
}

/// What rules were compiled from.
#[derive(Debug, PartialEq)]
struct Made {
    resources: Arc<Vec<Resource>>,
    defaults: TrafficPolicySpec,
    port: PortFacts,
}

/// What governs calls.
#[derive(Debug)]
pub struct Governed {
    /// How they are carried.
    pub policy: Arc<CallPolicy>,
    /// Their metrics, towards the service itself.
    pub edge: Arc<Edge>,
    backends: Vec<Arc<Edge>>,
}

impl Rules {
    /// What governs a rule of the table.
    pub fn of(&self, rule: &Rule) -> &Governed {
        self.by_rule.get(rule.index).unwrap_or(&self.default)
    }

    /// For people: what governs calls of the port, then those of each rule, by label, and where each
    /// setting comes from. Put together anew, since only the compiled form is kept.
    pub fn in_force(&self, caller: &str, service: &ServiceName, port: u16) -> Vec<(&str, Effective)> {
        let made_of = &self.made_of;
        let effective = |route: Option<RuleRef<'_>>| {
            let call = Call { caller, service, port, port_name: port_name(&made_of.port), route };
            explained(&made_of.resources, &call, &made_of.defaults)
        };
        let by_rule = self.table.rules().iter().map(|rule| (&*rule.label, effective(Some(rule.reference()))));
        std::iter::once((DEFAULT_ROUTE, effective(None))).chain(by_rule).collect()
    }
}

impl Governed {
    /// Metrics towards one backend of the rule that this governs.
    pub fn backend_edge(&self, rule: &Rule, backend: &Backend) -> &Arc<Edge> {
        let place = rule.backends().and_then(|all| all.iter().position(|one| std::ptr::eq(one, backend)));
        place.and_then(|place| self.backends.get(place)).unwrap_or(&self.edge)
    }
}

impl Compiler<'_> {
    /// One service, sharing with its version before what stayed as it was.
    pub fn service(
        &self,
        facts: &ServiceFacts,
        state: &State,
        old: Option<&Service>,
        now: Instant,
    ) -> Service {
        let resources = state.policies(facts.name.as_str()).cloned().unwrap_or_default();
        let ports = facts.ports.iter().map(|(&number, port)| {
            let place = Place { facts, number, port, old: old.and_then(|old| old.ports.get(&number)) };
            (number, self.port(&place, &resources, state.defaults(), now))
        });
        Service { name: facts.name.clone(), ports: ports.collect() }
    }

    fn port(
        &self,
        place: &Place<'_>,
        resources: &Arc<Vec<Resource>>,
        defaults: &TrafficPolicySpec,
        now: Instant,
    ) -> ServicePort {
        let policy = in_force(resources, &place.call(self.source.namespace(), None), defaults);
        let destination = match place.old {
            Some(old) => old.destination.clone(),
            None => Arc::new(Destination::new(self.config, now)),
        };
        if let Err(error) = destination.update(&policy, self.config) {
            tracing::error!(service = %place.facts.name, %error, "policy left out; the one before stays");
        }
        let made_of =
            Made { resources: resources.clone(), defaults: defaults.clone(), port: place.port.clone() };
        let rules = match place.old.map(|old| &old.rules) {
            Some(rules) if rules.made_of == made_of => rules.clone(),
            old => self.rules(place, &policy, made_of).map(Arc::new).unwrap_or_else(|error| {
                tracing::error!(service = %place.facts.name, %error, "route left out; those before stay");
                old.cloned().unwrap_or_else(|| Arc::new(self.plain_rules(place)))
            }),
        };
        let zone = Some(self.config.zone.as_str()).filter(|zone| !zone.is_empty());
        let settings = balance::Settings::from_policy(&policy, zone);
        let previous = place.old.map(|old| old.endpoints.as_ref());
        let endpoints = Arc::new(Group::new(settings, place.endpoints(), previous, now));
        ServicePort { protocol: place.port.protocol, rules, destination, endpoints }
    }

    fn rules(&self, place: &Place<'_>, policy: &TrafficPolicySpec, made_of: Made) -> Result<Rules, Invalid> {
        let frontend = Frontend {
            service: &place.facts.name,
            port: place.number,
            port_name: place.port_name(),
            caller_namespace: self.source.namespace(),
        };
        let table = Table::compile(&frontend, made_of.resources.iter())
            .map_err(|error| Invalid(error.to_string()))?;
        let default = self.governed(policy, DEFAULT_ROUTE, place, None)?;
        let by_rule = table.rules().iter().map(|rule| {
            let call = place.call(self.source.namespace(), Some(rule.reference()));
            let policy = in_force(&made_of.resources, &call, &made_of.defaults);
            self.governed(&policy, &rule.label, place, Some(rule))
        });
        let by_rule = by_rule.collect::<Result<_, _>>()?;
        Ok(Rules { table, default, by_rule, made_of })
    }

    /// What governs a port whose policies cannot be compiled, which the registry's check excludes:
    /// the built-in defaults.
    fn plain_rules(&self, place: &Place<'_>) -> Rules {
        let policy = TrafficPolicySpec::built_in();
        let default = self.governed(&policy, DEFAULT_ROUTE, place, None);
        let made_of = Made {
            resources: Arc::default(),
            defaults: TrafficPolicySpec::default(),
            port: place.port.clone(),
        };
        let default = default.expect("the built-in policy has nothing that could fail to compile");
        Rules { table: Table::default(), default, by_rule: Vec::new(), made_of }
    }

    fn governed(
        &self,
        policy: &TrafficPolicySpec,
        label: &str,
        place: &Place<'_>,
        rule: Option<&Rule>,
    ) -> Result<Governed, Invalid> {
        let edge = |to: &ServiceName| {
            self.metrics.edge(Direction::Outbound, self.source.as_str(), to.as_str(), label)
        };
        let backends = rule.and_then(Rule::backends).unwrap_or_default();
        Ok(Governed {
            policy: Arc::new(CallPolicy::compile(policy, self.config)?),
            edge: edge(&place.facts.name),
            backends: backends.iter().map(|backend| edge(&backend.service)).collect(),
        })
    }
}

/// One port of a service under compilation.
struct Place<'a> {
    facts: &'a ServiceFacts,
    number: u16,
    port: &'a PortFacts,
    old: Option<&'a ServicePort>,
}

impl Place<'_> {
    fn port_name(&self) -> Option<&str> {
        port_name(self.port)
    }

    fn call<'c>(&'c self, caller: &'c str, route: Option<RuleRef<'c>>) -> Call<'c> {
        Call { caller, service: &self.facts.name, port: self.number, port_name: self.port_name(), route }
    }

    fn endpoints(&self) -> Vec<Arc<Endpoint>> {
        let mine = self.facts.endpoints.iter().filter(|((_, port), _)| *port == self.number);
        mine.filter_map(|((workload, _), facts)| {
            self.keep(workload, facts).or_else(|| self.make(workload, facts))
        })
        .collect()
    }

    /// The endpoint as it was, with its connections and what was learned of it, if it is still the same.
    fn keep(&self, workload: &str, facts: &EndpointFacts) -> Option<Arc<Endpoint>> {
        let kept = self.old?.endpoints.endpoints().iter().find(|endpoint| {
            *endpoint.workload == *workload
                && endpoint.address == facts.address
                && endpoint.identity == facts.identity
                && *endpoint.zone == *facts.zone
                && endpoint.weight == facts.weight
        })?;
        kept.set_healthy(facts.healthy);
        Some(kept.clone())
    }

    fn make(&self, workload: &str, facts: &EndpointFacts) -> Option<Arc<Endpoint>> {
        // Two labels, a number and a suffix: always a DNS name.
        let server_name = ServerName::try_from(server_name(&self.facts.name, self.number)).ok()?;
        Some(Arc::new(Endpoint::new(workload, facts, server_name)))
    }
}

fn port_name(port: &PortFacts) -> Option<&str> {
    Some(port.name.as_str()).filter(|name| !name.is_empty())
}
