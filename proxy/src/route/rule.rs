//! One rule of a route, compiled: what it changes and where it sends.

use std::fmt;
use std::sync::Arc;

use fastrand::Rng;
use outrigger_api::attach::RuleRef;
use outrigger_api::resource::ResourceName;
use outrigger_api::resource::attachment::RouteKind;
use outrigger_api::resource::route::{
    GrpcRouteRule, HttpBackendRef, HttpRouteFilter, HttpRouteMatch, HttpRouteRule, PathMatchKind,
};
use outrigger_common::name::ServiceName;

use super::filter::{Filters, Redirect};
use super::{Invalid, RouteError, path};

/// Which route.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RouteId {
    /// Its kind.
    pub kind: RouteKind,
    /// Where it is.
    pub name: ResourceName,
}

impl fmt::Display for RouteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind.as_str(), self.name.namespace, self.name.name)
    }
}

impl RouteId {
    pub(super) fn error(&self, position: usize, reason: Invalid) -> RouteError {
        RouteError { route: self.clone(), rule: position, reason }
    }
}

/// A rule, without its matches.
#[derive(Debug)]
pub struct Rule {
    /// Its place in the table.
    pub index: usize,
    /// The route it is part of.
    pub route: RouteId,
    /// Its place in the route.
    pub position: usize,
    /// For metrics and spans: `namespace/route`, or `namespace/route/rule` if the rule has a name.
    pub label: Arc<str>,
    /// What it changes.
    pub filters: Filters,
    /// `None`: the service itself.
    backends: Option<Vec<Backend>>,
}

/// Where requests of a rule may go.
#[derive(Debug)]
pub struct Backend {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    /// Its share among the weights of all backends of the rule.
    pub weight: u32,
    /// Applied after the rule's.
    pub filters: Filters,
}

/// What happens to one request.
#[derive(Debug)]
pub enum Action<'a> {
    /// It goes to the service it was sent to.
    Forward,
    /// It goes to a backend.
    Backend(&'a Backend),
    /// It is answered with a redirect.
    Redirect(&'a Redirect),
    /// The rule has no backend, or none with a weight: 500, or UNAVAILABLE for gRPC.
    NoBackend,
}

impl Rule {
    /// Compiles a rule; `places`: in the table and in the route.
    ///
    /// # Errors
    /// A filter or backend that is none.
    pub fn http(places: (usize, usize), route: &RouteId, spec: &HttpRouteRule) -> Result<Self, RouteError> {
        let prefix = the_prefix(&spec.matches);
        let parts = Parts {
            name: spec.name.as_deref(),
            filters: &spec.filters,
            backends: spec.backend_refs.as_deref(),
            prefix: prefix.as_deref(),
        };
        Self::new(places, route, &parts).map_err(|reason| route.error(places.1, reason))
    }

    /// Compiles a rule; `places`: in the table and in the route.
    ///
    /// # Errors
    /// A filter or backend that is none.
    pub fn grpc(places: (usize, usize), route: &RouteId, spec: &GrpcRouteRule) -> Result<Self, RouteError> {
        let parts = Parts {
            name: spec.name.as_deref(),
            filters: &spec.filters,
            backends: spec.backend_refs.as_deref(),
            prefix: None,
        };
        Self::new(places, route, &parts).map_err(|reason| route.error(places.1, reason))
    }

    fn new((index, position): (usize, usize), route: &RouteId, parts: &Parts<'_>) -> Result<Self, Invalid> {
        let Parts { name, filters, backends, prefix } = *parts;
        let ResourceName { namespace, name: route_name } = &route.name;
        let label = match name {
            None => format!("{namespace}/{route_name}"),
            Some(name) => format!("{namespace}/{route_name}/{name}"),
        };
        let compile = |backend: &HttpBackendRef| {
            let own = backend.namespace.as_deref().unwrap_or(namespace);
            let filters = Filters::compile(&backend.filters, namespace, prefix)?;
            if filters.redirect.is_some() {
                return Err(Invalid("RequestRedirect is for a rule, not for a backend".to_owned()));
            }
            Ok(Backend {
                service: service(&backend.kind, own, &backend.name)?,
                port: backend.port.ok_or_else(|| Invalid(format!("backend {} has no port", backend.name)))?,
                weight: backend.weight,
                filters,
            })
        };
        Ok(Self {
            index,
            route: route.clone(),
            position,
            label: label.into(),
            filters: Filters::compile(filters, namespace, prefix)?,
            backends: backends.map(|refs| refs.iter().map(compile).collect()).transpose()?,
        })
    }

    /// The rule as [`outrigger_api::attach::layers_for`] wants it named.
    pub fn reference(&self) -> RuleRef<'_> {
        RuleRef { kind: self.route.kind.as_str(), route: &self.route.name, index: self.position }
    }

    /// What happens to one request: a redirect if there is one, else a backend by weight.
    pub fn action(&self, rng: &mut Rng) -> Action<'_> {
        if let Some(redirect) = &self.filters.redirect {
            return Action::Redirect(redirect);
        }
        let Some(backends) = &self.backends else { return Action::Forward };
        match pick(backends, rng) {
            None => Action::NoBackend,
            Some(backend) => Action::Backend(backend),
        }
    }

    /// Where its requests may go; `None` is the service itself.
    pub fn backends(&self) -> Option<&[Backend]> {
        self.backends.as_deref()
    }
}

/// What rules of both kinds have.
struct Parts<'a> {
    name: Option<&'a str>,
    filters: &'a [HttpRouteFilter],
    backends: Option<&'a [HttpBackendRef]>,
    prefix: Option<&'a str>,
}

fn pick<'a>(backends: &'a [Backend], rng: &mut Rng) -> Option<&'a Backend> {
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = rng.u64(..total);
    backends.iter().find(|backend| {
        let weight = u64::from(backend.weight);
        let won = ticket < weight;
        ticket = ticket.saturating_sub(weight);
        won
    })
}

/// The one prefix that a rule's requests have, for `ReplacePrefixMatch`: the Gateway API wants exactly
/// one match, by prefix. A match that says nothing of the path has the prefix `/`.
fn the_prefix(matches: &[HttpRouteMatch]) -> Option<Box<str>> {
    match matches {
        [] => Some("".into()),
        [one] => match &one.path {
            None => Some("".into()),
            Some(path) if path.kind == PathMatchKind::PathPrefix => Some(path::normal_prefix(&path.value)),
            Some(_) => None,
        },
        _ => None,
    }
}

/// The Service that a reference names.
pub(super) fn service(kind: &str, namespace: &str, name: &str) -> Result<ServiceName, Invalid> {
    if kind != "Service" {
        return Err(Invalid(format!("{name} is a {kind}; requests can be sent to a Service alone")));
    }
    ServiceName::new(namespace, name).map_err(|error| Invalid(error.to_string()))
}
