//! Which rule governs a request: the routes attached to one service port, in order of precedence.

use outrigger_api::attach::is_port;
use outrigger_api::resource::Resource;
use outrigger_api::resource::attachment::RouteKind;
use outrigger_api::resource::route::ParentRef;
use outrigger_common::name::ServiceName;

use super::condition::{GrpcMatch, Head, HttpMatch, Rank};
use super::path;
use super::rule::{RouteId, Rule};
use super::{Invalid, RouteError};

/// The service port that requests are sent to, and from where.
#[derive(Debug, Clone, Copy)]
pub struct Frontend<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// Its port's number.
    pub port: u16,
    /// Its port's name.
    pub port_name: Option<&'a str>,
    /// Namespace of the callers.
    pub caller_namespace: &'a str,
}

/// What was found for a request.
#[derive(Debug, Clone, Copy)]
pub enum Found<'a> {
    /// The rule that governs it.
    Rule(&'a Rule),
    /// No route is attached: it goes to the service itself.
    Default,
    /// Routes are attached, and none of them matches: 404, or UNIMPLEMENTED for gRPC.
    NotFound,
}

/// The routes of one service port, compiled. Without routes it costs nothing.
#[derive(Debug, Default)]
pub struct Table {
    rules: Vec<Rule>,
    http: Matches<HttpMatch>,
    grpc: Matches<GrpcMatch>,
}

/// The matches of all routes of one kind.
#[derive(Debug)]
struct Matches<M> {
    /// Whether there is a route, be it one without rules.
    attached: bool,
    /// With the index of the rule; the first that matches governs.
    ordered: Vec<(M, usize)>,
}

impl<M> Default for Matches<M> {
    fn default() -> Self {
        Self { attached: false, ordered: Vec::new() }
    }
}

impl<M> Matches<M> {
    fn find(&self, matches: impl Fn(&M) -> bool) -> Option<usize> {
        self.ordered.iter().find(|(conditions, _)| matches(conditions)).map(|(_, rule)| *rule)
    }

    /// Rules are numbered by route, then by their place in it: what breaks ties.
    fn order(&mut self, rank: impl Fn(&M) -> Rank) {
        self.ordered.sort_by_cached_key(|(conditions, rule)| (rank(conditions), *rule));
    }
}

impl Table {
    /// Compiles the routes among `resources` that are attached to `to` and apply to its callers;
    /// everything else is ignored.
    ///
    /// # Errors
    /// The first route that cannot be compiled; none that passed the api crate's checks.
    pub fn compile<'a>(
        to: &Frontend<'_>,
        resources: impl IntoIterator<Item = &'a Resource>,
    ) -> Result<Self, RouteError> {
        let producer = to.service.namespace();
        let mut routes: Vec<&Resource> =
            resources.into_iter().filter(|resource| is_attached(to, resource)).collect();
        // GEP-1294, "Multiple routes for a Service": consumer routes replace those of the producer.
        if routes.iter().any(|route| route.namespace() != producer) {
            routes.retain(|route| route.namespace() != producer);
        }
        // Creation times are not known here: the Gateway API's next criterion decides.
        routes.sort_by_cached_key(|route| format!("{}/{}", route.namespace(), route.name()));
        let mut table = Self::default();
        for route in routes {
            table.add(route)?;
        }
        table.http.order(HttpMatch::rank);
        table.grpc.order(GrpcMatch::rank);
        Ok(table)
    }

    fn add(&mut self, route: &Resource) -> Result<(), RouteError> {
        match route {
            Resource::HttpRoute { name, spec } => {
                let id = RouteId { kind: RouteKind::Http, name: name.clone() };
                self.http.attached = true;
                for (position, rule) in spec.rules.iter().enumerate() {
                    let index = self.rules.len();
                    let matches = or_default(&rule.matches, HttpMatch::compile);
                    let matches = matches.map_err(|reason| id.error(position, reason))?;
                    self.http.ordered.extend(matches.into_iter().map(|conditions| (conditions, index)));
                    self.rules.push(Rule::http((index, position), &id, rule)?);
                }
            }
            Resource::GrpcRoute { name, spec } => {
                let id = RouteId { kind: RouteKind::Grpc, name: name.clone() };
                self.grpc.attached = true;
                for (position, rule) in spec.rules.iter().enumerate() {
                    let index = self.rules.len();
                    let matches = or_default(&rule.matches, GrpcMatch::compile);
                    let matches = matches.map_err(|reason| id.error(position, reason))?;
                    self.grpc.ordered.extend(matches.into_iter().map(|conditions| (conditions, index)));
                    self.rules.push(Rule::grpc((index, position), &id, rule)?);
                }
            }
            Resource::Service { .. }
            | Resource::MeshConfig { .. }
            | Resource::TrafficPolicy { .. }
            | Resource::AuthorizationPolicy { .. } => {}
        }
        Ok(())
    }

    /// The rule that governs a request. Allocates only for a path that is not in normal form and for
    /// regular expressions on repeated headers or query parameters.
    pub fn find(&self, head: &Head<'_>) -> Found<'_> {
        if !self.http.attached && !self.grpc.attached {
            return Found::Default;
        }
        let path = path::normalise(head.path);
        let rule = if head.grpc && self.grpc.attached {
            self.grpc.find(|conditions| conditions.matches(head, &path))
        } else {
            self.http.find(|conditions| conditions.matches(head, &path))
        };
        rule.and_then(|index| self.rules.get(index)).map_or(Found::NotFound, Found::Rule)
    }

    /// All rules, by their index: what a caller keeps for each rule (metrics, policies) goes along.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }
}

/// A rule without matches has one that matches everything.
fn or_default<S: Default, M>(
    specs: &[S],
    compile: impl Fn(&S) -> Result<M, Invalid>,
) -> Result<Vec<M>, Invalid> {
    if specs.is_empty() { Ok(vec![compile(&S::default())?]) } else { specs.iter().map(compile).collect() }
}

fn is_attached(to: &Frontend<'_>, resource: &Resource) -> bool {
    let parents: &[ParentRef] = match resource {
        Resource::HttpRoute { spec, .. } => &spec.parent_refs,
        Resource::GrpcRoute { spec, .. } => &spec.parent_refs,
        Resource::Service { .. }
        | Resource::MeshConfig { .. }
        | Resource::TrafficPolicy { .. }
        | Resource::AuthorizationPolicy { .. } => return false,
    };
    let namespace = resource.namespace();
    let applies = namespace == to.service.namespace() || namespace == to.caller_namespace;
    applies
        && parents.iter().any(|parent| {
            parent.kind == "Service"
                && parent.name == to.service.name()
                && parent.namespace.as_deref().unwrap_or(namespace) == to.service.namespace()
                && parent.port.is_none_or(|port| port == to.port)
                && parent
                    .section_name
                    .as_deref()
                    .is_none_or(|section| is_port(section, to.port, to.port_name))
        })
}
