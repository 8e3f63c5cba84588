//! What a resource governs, and what it sends to: for whoever must tell which services it concerns.

use std::collections::BTreeSet;

use outrigger_common::name::ServiceName;

use super::Resource;
use super::policy::TargetRef;
use super::route::{BackendObjectRef, HttpBackendRef, HttpRouteFilter, ParentRef};

/// A port of a service, as resources name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PortSelector {
    /// By its number.
    Number(u16),
    /// By its name.
    Name(String),
}

/// The kinds of routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RouteKind {
    /// `HTTPRoute`.
    Http,
    /// `GRPCRoute`.
    Grpc,
}

/// Something a route or policy governs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Attachment {
    /// The calls of a service. Where its namespace is not the resource's own, only those made from
    /// the resource's namespace.
    Service {
        /// Which.
        name: ServiceName,
        /// One of its ports; all of them if none.
        port: Option<PortSelector>,
    },
    /// The calls a route matches, in the resource's own namespace.
    Route {
        /// Which kind.
        kind: RouteKind,
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
        /// One of its rules, by name; all of them if none.
        rule: Option<String>,
    },
    /// The calls of every service of a namespace.
    Namespace(String),
}

impl RouteKind {
    /// The kind's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Http => "HTTPRoute",
            Self::Grpc => "GRPCRoute",
        }
    }
}

impl Resource {
    /// What it governs directly; nothing for a `Service` and a `MeshConfig`.
    pub fn attachments(&self) -> Vec<Attachment> {
        match self {
            Self::Service { .. } | Self::MeshConfig { .. } => Vec::new(),
            Self::AuthorizationPolicy { name, spec } if spec.target_refs.is_empty() => {
                vec![Attachment::Namespace(name.namespace.clone())]
            }
            Self::TrafficPolicy { name, spec } => targets(&name.namespace, &spec.target_refs),
            Self::AuthorizationPolicy { name, spec } => targets(&name.namespace, &spec.target_refs),
            Self::HttpRoute { name, spec } => parents(&name.namespace, &spec.parent_refs),
            Self::GrpcRoute { name, spec } => parents(&name.namespace, &spec.parent_refs),
        }
    }

    /// The services a route sends or mirrors to, each once; nothing for other kinds. A rule without
    /// `backendRefs` sends to the service it governs, which is not told here.
    pub fn backends(&self) -> Vec<ServiceName> {
        let mut found = BTreeSet::new();
        let namespace = self.namespace();
        match self {
            Self::HttpRoute { spec, .. } => {
                for rule in &spec.rules {
                    collect(namespace, &rule.filters, rule.backend_refs.as_deref(), &mut found);
                }
            }
            Self::GrpcRoute { spec, .. } => {
                for rule in &spec.rules {
                    collect(namespace, &rule.filters, rule.backend_refs.as_deref(), &mut found);
                }
            }
            Self::Service { .. }
            | Self::MeshConfig { .. }
            | Self::TrafficPolicy { .. }
            | Self::AuthorizationPolicy { .. } => {}
        }
        found.into_iter().collect()
    }
}

impl TargetRef {
    /// What it names, for a policy of `namespace`; nothing if it is not valid.
    pub fn attachment(&self, namespace: &str) -> Option<Attachment> {
        let section = self.section_name.clone();
        let kind = match self.kind.as_str() {
            "Service" => {
                let name =
                    ServiceName::new(self.namespace.as_deref().unwrap_or(namespace), &self.name).ok()?;
                return Some(Attachment::Service { name, port: section.map(PortSelector::from) });
            }
            "HTTPRoute" => RouteKind::Http,
            "GRPCRoute" => RouteKind::Grpc,
            _ => return None,
        };
        let (namespace, name) = (namespace.to_owned(), self.name.clone());
        Some(Attachment::Route { kind, namespace, name, rule: section })
    }
}

impl ParentRef {
    /// The service it names, for a route of `namespace`; nothing if it is not valid.
    pub fn attachment(&self, namespace: &str) -> Option<Attachment> {
        let name = ServiceName::new(self.namespace.as_deref().unwrap_or(namespace), &self.name).ok()?;
        let port =
            self.port.map(PortSelector::Number).or_else(|| self.section_name.clone().map(PortSelector::from));
        Some(Attachment::Service { name, port })
    }
}

impl From<String> for PortSelector {
    /// A number where the text is one: no name of a port is all digits.
    fn from(text: String) -> Self {
        text.parse().map_or(Self::Name(text), Self::Number)
    }
}

impl HttpBackendRef {
    /// The service it names, for a route of `namespace`; nothing if it is not valid.
    pub fn service(&self, namespace: &str) -> Option<ServiceName> {
        ServiceName::new(self.namespace.as_deref().unwrap_or(namespace), &self.name).ok()
    }
}

impl BackendObjectRef {
    /// The service it names, for a route of `namespace`; nothing if it is not valid.
    pub fn service(&self, namespace: &str) -> Option<ServiceName> {
        ServiceName::new(self.namespace.as_deref().unwrap_or(namespace), &self.name).ok()
    }
}

fn targets(namespace: &str, refs: &[TargetRef]) -> Vec<Attachment> {
    refs.iter().filter_map(|target| target.attachment(namespace)).collect()
}

fn parents(namespace: &str, refs: &[ParentRef]) -> Vec<Attachment> {
    refs.iter().filter_map(|parent| parent.attachment(namespace)).collect()
}

fn collect(
    namespace: &str,
    filters: &[HttpRouteFilter],
    backends: Option<&[HttpBackendRef]>,
    found: &mut BTreeSet<ServiceName>,
) {
    let mirrors = |filters: &[HttpRouteFilter]| -> Vec<ServiceName> {
        filters
            .iter()
            .filter_map(|filter| match filter {
                HttpRouteFilter::RequestMirror { mirror } => mirror.backend_ref.service(namespace),
                _ => None,
            })
            .collect()
    };
    found.extend(mirrors(filters));
    for backend in backends.unwrap_or_default() {
        found.extend(backend.service(namespace));
        found.extend(mirrors(&backend.filters));
    }
}
