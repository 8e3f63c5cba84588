//! Which policies govern a call, and in which order. Pure: the sidecar compiles what it enforces from
//! this, and `outrigger get policies` shows it, so that both say the same.
//!
//! Most specific first: policies on the rule of the route, on the route, what the rule itself says,
//! policies on the service's port, on the service, the mesh's defaults. On each level those of the
//! caller's namespace come before those of the service's, and within a namespace the first by name
//! wins.

use std::collections::HashSet;

use outrigger_common::name::ServiceName;

use crate::resource::policy::{TargetRef, TrafficPolicySpec};
use crate::resource::{Resource, ResourceName};

/// Origin of the mesh's defaults in [`layers_for`].
pub const MESH_DEFAULTS: &str = "MeshConfig default";

/// The calls in question.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Namespace of who calls.
    pub caller: &'a str,
    /// Whom it calls: the service a route is attached to, not the backend it leads to.
    pub service: &'a ServiceName,
    /// Port of the service.
    pub port: u16,
    /// That port's name, if it has one.
    pub port_name: Option<&'a str>,
    /// The rule the call matched, if there is a route.
    pub route: Option<RuleRef<'a>>,
}

/// One rule of a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuleRef<'a> {
    /// `HTTPRoute` or `GRPCRoute`.
    pub kind: &'a str,
    /// The route.
    pub route: &'a ResourceName,
    /// Index of the rule.
    pub index: usize,
}

/// How closely a policy is attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Rule,
    Route,
    Port,
    Service,
}

/// The policies in force for some calls, most specific first, each with where it comes from, for
/// people: `TrafficPolicy shop/orders`, `HTTPRoute shop/orders rule 0`, [`MESH_DEFAULTS`].
///
/// `resources` may hold more than what concerns the calls, in any order; a rule they do not hold is
/// as one without a name that says nothing. In the layer of a rule a duration of zero means that
/// there is no such limit, whatever less specific layers say (GEP-1742). The `targetRefs` of what is
/// returned play no part any more. The built-in defaults are not among the layers.
pub fn layers_for(
    resources: &[Resource],
    call: &Call<'_>,
    defaults: Option<&TrafficPolicySpec>,
) -> Vec<(String, TrafficPolicySpec)> {
    let (rule_name, rule_layer) = call.route.map_or((None, None), |rule| rule_facts(resources, rule));
    let own = call.service.namespace();
    let mut policies: Vec<_> = resources.iter().filter_map(policy).collect();
    policies.retain(|(name, _)| name.namespace == call.caller || name.namespace == own);
    policies.sort_by_key(|(name, _)| (name.namespace == own, &name.name));
    let mut layers = Vec::new();
    let mut seen = HashSet::new();
    for level in [Level::Rule, Level::Route, Level::Port, Level::Service] {
        for &(name, spec) in &policies {
            let here = |target: &TargetRef| level_of(name, target, call, rule_name.as_deref()) == Some(level);
            if spec.target_refs.iter().any(here) && seen.insert(name) {
                layers.push((format!("TrafficPolicy {}/{}", name.namespace, name.name), spec.clone()));
            }
        }
        if level == Level::Route {
            layers.extend(rule_layer.clone());
        }
    }
    layers.extend(defaults.map(|spec| (MESH_DEFAULTS.to_owned(), spec.clone())));
    layers
}

fn policy(resource: &Resource) -> Option<(&ResourceName, &TrafficPolicySpec)> {
    match resource {
        Resource::TrafficPolicy { name, spec } => Some((name, spec)),
        _ => None,
    }
}

fn level_of(
    policy: &ResourceName,
    target: &TargetRef,
    call: &Call<'_>,
    rule_name: Option<&str>,
) -> Option<Level> {
    let namespace = target.namespace.as_ref().unwrap_or(&policy.namespace);
    let section = target.section_name.as_deref();
    if target.kind == "Service" {
        if target.name != call.service.name() || namespace != call.service.namespace() {
            return None;
        }
        return match section {
            None => Some(Level::Service),
            Some(section) if is_port(section, call.port, call.port_name) => Some(Level::Port),
            Some(_) => None,
        };
    }
    // A route is governed by policies of its own namespace alone.
    let RuleRef { kind, route, .. } = call.route?;
    if target.kind != kind
        || target.name != route.name
        || *namespace != route.namespace
        || policy.namespace != route.namespace
    {
        return None;
    }
    match section {
        None => Some(Level::Route),
        Some(section) if rule_name == Some(section) => Some(Level::Rule),
        Some(_) => None,
    }
}

/// Whether a section of a Service, a port's name or number, is this port.
pub fn is_port(section: &str, port: u16, port_name: Option<&str>) -> bool {
    port_name == Some(section) || section.parse() == Ok(port)
}

/// A rule's name, and what it says itself as a layer.
fn rule_facts(
    resources: &[Resource],
    rule: RuleRef<'_>,
) -> (Option<String>, Option<(String, TrafficPolicySpec)>) {
    let found = resources.iter().find(|resource| {
        resource.kind() == rule.kind
            && resource.namespace() == rule.route.namespace
            && resource.name() == rule.route.name
    });
    match found {
        Some(Resource::HttpRoute { spec, .. }) => {
            let Some(said) = spec.rules.get(rule.index) else { return (None, None) };
            let spec = Some(said.policy()).filter(|spec| *spec != TrafficPolicySpec::default());
            (said.name.clone(), spec.map(|spec| (origin_of(rule, said.name.as_deref()), spec)))
        }
        Some(Resource::GrpcRoute { spec, .. }) => {
            (spec.rules.get(rule.index).and_then(|rule| rule.name.clone()), None)
        }
        _ => (None, None),
    }
}

fn origin_of(rule: RuleRef<'_>, name: Option<&str>) -> String {
    let place = name.map_or_else(|| rule.index.to_string(), ToOwned::to_owned);
    format!("{} {}/{} rule {place}", rule.kind, rule.route.namespace, rule.route.name)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::document::parse_yaml;

    const RESOURCES: &str = r"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: canary, namespace: shop}
spec:
  parentRefs: [{name: orders}]
  rules:
    - name: slow
      timeouts: {request: 30s}
      retry: {attempts: 1, codes: [503]}
    - matches: [{path: {value: /b}}]
      timeouts: {request: 0s}
    - {}
";

    fn policies() -> Vec<Resource> {
        let mut text = String::new();
        for (namespace, name, target) in [
            ("shop", "z-service", "{kind: Service, name: orders}"),
            ("shop", "a-service", "{kind: Service, name: orders}"),
            ("shop", "port", "{kind: Service, name: orders, sectionName: http}"),
            ("shop", "number", "{kind: Service, name: orders, sectionName: '80'}"),
            ("shop", "other-port", "{kind: Service, name: orders, sectionName: '81'}"),
            ("shop", "other", "{kind: Service, name: payments}"),
            ("shop", "route", "{kind: HTTPRoute, name: canary}"),
            ("shop", "rule", "{kind: HTTPRoute, name: canary, sectionName: slow}"),
            ("front", "mine", "{kind: Service, name: orders, namespace: shop}"),
            ("front", "port", "{kind: Service, name: orders, namespace: shop, sectionName: http}"),
            ("front", "own", "{kind: Service, name: orders}"),
            ("back", "theirs", "{kind: Service, name: orders, namespace: shop}"),
        ] {
            text.push_str(&format!(
                "---\napiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {{targetRefs: [{target}], retries: {{attempts: 1}}}}\n"
            ));
        }
        parse_yaml(Path::new("mesh.yaml"), &format!("{text}---{RESOURCES}")).unwrap()
    }

    fn origins(caller: &str, port: u16, rule: Option<usize>) -> Vec<String> {
        let service = ServiceName::new("shop", "orders").unwrap();
        let route = ResourceName { namespace: "shop".into(), name: "canary".into() };
        let route = rule.map(|index| RuleRef { kind: "HTTPRoute", route: &route, index });
        let port_name = (port == 80).then_some("http");
        let call = Call { caller, service: &service, port, port_name, route };
        let mut resources = policies();
        // Their order plays no part.
        let turn = usize::from(port) % resources.len();
        resources.rotate_left(turn);
        let layers = layers_for(&resources, &call, Some(&TrafficPolicySpec::default()));
        let short = |origin: String| origin.strip_prefix("TrafficPolicy ").map(Into::into).unwrap_or(origin);
        layers.into_iter().map(|(origin, _)| short(origin)).collect()
    }

    #[test]
    fn layers_come_from_the_rule_outwards_the_callers_own_first() {
        let producers = ["shop/a-service", "shop/z-service", MESH_DEFAULTS];
        let port = ["shop/number", "shop/port"];
        let with = |parts: &[&[&'static str]]| parts.concat();
        assert_eq!(origins("shop", 80, None), with(&[&port, &producers]));
        assert_eq!(origins("back", 80, None), with(&[&port, &["back/theirs"], &producers]));
        assert_eq!(
            origins("front", 80, Some(0)),
            with(&[
                &["shop/rule", "shop/route", "HTTPRoute shop/canary rule slow", "front/port"],
                &port,
                &["front/mine"],
                &producers
            ])
        );
        assert_eq!(origins("shop", 81, None), with(&[&["shop/other-port"], &producers]));
        assert_eq!(
            origins("shop", 82, Some(1)),
            with(&[&["shop/route", "HTTPRoute shop/canary rule 1"], &producers])
        );
        assert_eq!(origins("shop", 82, Some(2)), with(&[&["shop/route"], &producers]), "says nothing");
        assert_eq!(origins("shop", 82, Some(9)), with(&[&["shop/route"], &producers]), "no such rule");
    }

    #[test]
    fn a_rule_speaks_the_language_of_policies() {
        let service = ServiceName::new("shop", "orders").unwrap();
        let route = ResourceName { namespace: "shop".into(), name: "canary".into() };
        let route = Some(RuleRef { kind: "HTTPRoute", route: &route, index: 0 });
        let call = Call { caller: "shop", service: &service, port: 80, port_name: None, route };
        let layers = layers_for(&policies(), &call, None);
        let (_, spec) = layers.iter().find(|(origin, _)| origin.starts_with("HTTPRoute")).unwrap();
        let expected: TrafficPolicySpec = serde_json::from_str(
            r#"{"timeouts": {"request": "30s"}, "retries": {"attempts": 1, "statuses": [503]}}"#,
        )
        .unwrap();
        assert_eq!(*spec, expected);
    }
}
