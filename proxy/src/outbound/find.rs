//! Where a request goes, and what governs it on the way: the service its authority names, the rule
//! that matches, the backend that the rule chooses.

use std::sync::{Arc, Mutex, Weak};

use fastrand::Rng;
use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Version};
use outrigger_common::name::ServiceName;

use super::destination::{self, Destination};
use super::entry::Target;
use super::policy::CallPolicy;
use crate::control::compile::Governed;
use crate::control::snapshot::{Entry, Service, ServicePort, Snapshot};
use crate::error::ProxyError;
use crate::http::headers;
use crate::route::DEFAULT_ROUTE;
use crate::route::condition::Head;
use crate::route::filter::{Filters, Mirror, Redirect};
use crate::route::matcher::Found;
use crate::route::rule::{Action, Backend, Rule};
use crate::shared::{Caller, Shared};
use crate::telemetry::edge::Edge;
use crate::telemetry::metrics::Direction;

/// The destination's label where the client named nothing the registry knows: a client must not
/// choose labels.
const UNKNOWN: &str = "unknown";

/// Where the last request of a connection was addressed to: the next one nearly always is as well.
#[derive(Debug, Default)]
pub struct Recent(Mutex<Option<Last>>);

#[derive(Debug)]
struct Last {
    authority: Box<str>,
    /// Of the snapshot that the service is from.
    version: u64,
    /// Not held: a connection that is idle must not keep what a newer snapshot has replaced.
    service: Weak<Service>,
    port: u16,
}

impl Recent {
    /// What `authority` names, if the last request named it and the snapshot is the same.
    fn get(&self, authority: &str, version: u64) -> Option<(Arc<Service>, u16)> {
        let last = self.0.lock().expect("no holder of this lock panics");
        let last = last.as_ref().filter(|last| last.version == version && *last.authority == *authority)?;
        Some((last.service.upgrade()?, last.port))
    }

    fn set(&self, authority: &str, version: u64, (service, port): (&Arc<Service>, u16)) {
        let last = Last { authority: authority.into(), version, service: Arc::downgrade(service), port };
        *self.0.lock().expect("no holder of this lock panics") = Some(last);
    }
}

/// The service a request is addressed to.
pub struct Addressed<'a> {
    /// Who calls.
    pub caller: &'a Caller,
    /// The service.
    pub service: Arc<Service>,
    /// Its port; there is one.
    pub port: u16,
    /// The one workload of it that the connection is for, if it is for one.
    pub workload: Option<&'a str>,
}

/// What becomes of a request.
pub struct Decision<'a> {
    /// What governs it.
    pub governed: &'a Governed,
    /// Where its metrics go.
    pub edge: Arc<Edge>,
    /// Where it goes.
    pub way: Way<'a>,
    rule: Option<&'a Rule>,
}

/// Where a request goes.
#[derive(Debug, Clone, Copy)]
pub enum Way<'a> {
    /// Back, with a redirect.
    Redirect(&'a Redirect),
    /// To the service it is addressed to.
    Service,
    /// To a backend of the rule.
    Backend(&'a Backend),
}

/// The edge of requests that go nowhere.
pub fn nowhere(shared: &Shared) -> Arc<Edge> {
    let source = shared.caller.get().map_or(UNKNOWN, |caller| caller.source.as_str());
    shared.metrics.edge(Direction::Outbound, source, UNKNOWN, DEFAULT_ROUTE)
}

/// The service a request is addressed to, from the snapshot or the registry.
///
/// Cancel safety: safe.
///
/// # Errors
/// What is wrong with the target, or that nobody knows it.
pub async fn addressed<'a>(
    shared: &'a Shared,
    snapshot: &Snapshot,
    (target, recent): (&'a Target, &Recent),
    head: &mut Parts,
) -> Result<Addressed<'a>, ProxyError> {
    if head.method == Method::CONNECT {
        return Err(ProxyError::MethodNotSupported(Method::CONNECT));
    }
    if let Some((name, port)) = target.service() {
        name_host(head, name, port);
    }
    if let Target::Refused(address, why) = target {
        return Err(why.error(*address));
    }
    let authority = headers::authority(head).map_err(ProxyError::BadRequest)?;
    let Some(caller) = shared.caller.get() else {
        return Err(ProxyError::DiscoveryUnavailable(format!(
            "{authority}: this sidecar has no certificate yet"
        )));
    };
    let named = *target == Target::Named;
    if named && let Some((service, port)) = recent.get(authority, snapshot.version) {
        return Ok(Addressed { caller, service, port, workload: None });
    }
    let (name, port) = match target.service() {
        // Where the connection goes, its requests go, whatever host they are for.
        Some((name, port)) => (name.clone(), port),
        None => resolve(shared, caller, authority)?,
    };
    let service = shared.directory.find(snapshot, &name, shared.config.timeouts.discovery).await?;
    if service.port(port).is_none() {
        return Err(ProxyError::UnknownPort { service: name.to_string(), port });
    }
    // Not one that was asked for just now: it is of a later snapshot.
    if named && matches!(snapshot.service(name.as_str()), Some(Entry::Known(_))) {
        recent.set(authority, snapshot.version, (&service, port));
    }
    Ok(Addressed { caller, service, port, workload: target.workload() })
}

/// Names a host where the client may leave it out, which the connection's target stands for: in
/// HTTP/1.0, and in HTTP/2 (RFC 9113 section 8.3.1).
fn name_host(head: &mut Parts, name: &ServiceName, port: u16) {
    let without = head.uri.authority().is_none() && !head.headers.contains_key(HOST);
    if without
        && head.version != Version::HTTP_11
        && let Ok(host) = HeaderValue::try_from(format!("{name}:{port}"))
    {
        head.headers.insert(HOST, host);
    }
}

fn resolve(shared: &Shared, caller: &Caller, authority: &str) -> Result<(ServiceName, u16), ProxyError> {
    match destination::parse(authority, &caller.namespace) {
        Destination::Service { name, port } => Ok((name, port)),
        Destination::Local { port } if shared.own.has_port(port) => {
            Err(ProxyError::Loop(authority.to_owned()))
        }
        Destination::Local { .. } | Destination::NotAService => {
            Err(ProxyError::UnknownService(authority.to_owned()))
        }
        Destination::Malformed => Err(ProxyError::BadRequest("the target is not host or host:port")),
    }
}

impl Addressed<'_> {
    /// The port it is addressed to.
    fn service_port(&self) -> &ServicePort {
        self.service.port(self.port).expect("looked up when this was made, and a service never changes")
    }

    /// The rule for a request, and what it says.
    ///
    /// # Errors
    /// No rule matches, or the one that does has nowhere to send it; with where to count that.
    pub fn decide(
        &self,
        head: &Parts,
        grpc: bool,
        rng: &mut Rng,
    ) -> Result<Decision<'_>, (ProxyError, Arc<Edge>)> {
        let rules = &self.service_port().rules;
        let rule = match rules.table.find(&Head::new(head, grpc)) {
            Found::Rule(rule) => rule,
            Found::Default => {
                let (governed, edge) = (&rules.default, rules.default.edge.clone());
                return Ok(Decision { governed, edge, way: Way::Service, rule: None });
            }
            Found::NotFound => {
                let error = ProxyError::RouteNotFound(self.service.name.to_string());
                return Err((error, rules.default.edge.clone()));
            }
        };
        let governed = rules.of(rule);
        let (way, edge) = match rule.action(rng) {
            Action::Forward => (Way::Service, governed.edge.clone()),
            Action::Redirect(redirect) => (Way::Redirect(redirect), governed.edge.clone()),
            // One endpoint was meant, which is no backend's.
            Action::Backend(_) if self.workload.is_some() => (Way::Service, governed.edge.clone()),
            Action::Backend(backend) => (Way::Backend(backend), governed.backend_edge(rule, backend).clone()),
            Action::NoBackend => {
                return Err((ProxyError::NoBackend(rule.label.to_string()), governed.edge.clone()));
            }
        };
        Ok(Decision { governed, edge, way, rule: Some(rule) })
    }

    /// The service and port a decision sends to.
    ///
    /// Cancel safety: safe.
    ///
    /// # Errors
    /// The backend of the rule does not exist.
    pub async fn target(
        &self,
        shared: &Shared,
        snapshot: &Snapshot,
        decision: &Decision<'_>,
    ) -> Result<(Arc<Service>, u16), ProxyError> {
        let Way::Backend(backend) = decision.way else { return Ok((self.service.clone(), self.port)) };
        if backend.service == self.service.name && backend.port == self.port {
            return Ok((self.service.clone(), self.port));
        }
        let label = decision.rule.map(|rule| rule.label.to_string()).unwrap_or_default();
        match shared.directory.find(snapshot, &backend.service, shared.config.timeouts.discovery).await {
            Ok(service) if service.port(backend.port).is_some() => Ok((service, backend.port)),
            // The client named a service that exists: the route is at fault (Gateway API, "backendRefs").
            Ok(_) | Err(ProxyError::UnknownService(_)) => {
                Err(ProxyError::NoBackend(format!("{label}: {}:{}", backend.service, backend.port)))
            }
            Err(error) => Err(error),
        }
    }
}

impl Decision<'_> {
    /// How the request is carried.
    pub fn policy(&self) -> &CallPolicy {
        &self.governed.policy
    }

    fn filters(&self) -> impl Iterator<Item = &Filters> {
        let backend = match self.way {
            Way::Backend(backend) => Some(&backend.filters),
            Way::Service | Way::Redirect(_) => None,
        };
        self.rule.map(|rule| &rule.filters).into_iter().chain(backend)
    }

    /// Changes the request as the rule says, then as its backend says.
    ///
    /// # Errors
    /// The new target is none.
    pub fn edit_request(&self, head: &mut Parts) -> Result<(), ProxyError> {
        self.filters()
            .try_for_each(|filters| filters.edit_request(head))
            .map_err(|_| ProxyError::BadRequest("the path that the route rewrites this one to is too long"))
    }

    /// Changes the response.
    pub fn edit_response(&self, map: &mut HeaderMap) {
        self.filters().for_each(|filters| filters.edit_response(map));
    }

    /// Where copies of the request go.
    pub fn mirrors(&self, rng: &mut Rng) -> Vec<(ServiceName, u16)> {
        let mut mirrors = Vec::new();
        for filters in self.filters() {
            mirrors.extend(filters.mirrors(rng).map(|Mirror { service, port, .. }| (service.clone(), *port)));
        }
        mirrors
    }
}
