//! `outrigger get policies`: what is in force for the calls of a service and for each rule of its
//! routes, setting by setting, and where each comes from.

use outrigger_api::attach::{Call, RuleRef, is_port, layers_for};
use outrigger_api::resource::attachment::{Attachment, PortSelector};
use outrigger_api::resource::authorization::Action;
use outrigger_api::resource::policy::{Layer, TrafficPolicySpec, effective};
use outrigger_api::resource::{Resource, ResourceName, ServicePort};
use outrigger_api::v1::GetRequest;
use outrigger_common::name::ServiceName;
use serde::Serialize;
use serde_json::Value;

use crate::admin::Admin;
use crate::args::{GetArgs, ListOutput};
use crate::failure::Failure;
use crate::output;

/// Origin of what no resource says.
const DEFAULT: &str = "default";
/// Origin of what each sidecar's own configuration says.
const SIDECAR: &str = "the sidecar's configuration";

/// Settings that no built-in policy has a value for: what holds where nobody says them, and who says
/// that.
const UNSAID: [(&str, &str, &str); 12] = [
    ("timeouts.request", "timeouts.request", SIDECAR),
    ("timeouts.perTry", "none", DEFAULT),
    ("timeouts.connect", "timeouts.connect", SIDECAR),
    ("timeouts.idle", "pool.idle_timeout", SIDECAR),
    ("timeouts.streamIdle", "timeouts.idle", SIDECAR),
    ("retries.buffer", "limits.replay_bytes", SIDECAR),
    ("connectionPool.maxRequestsPerConnection", "no limit", DEFAULT),
    ("loadBalancing.hash", "none", DEFAULT),
    ("limits.rate", "no limit", DEFAULT),
    ("limits.ratePerCaller", "no limit", DEFAULT),
    ("hedging", "off", DEFAULT),
    ("faults", "off", DEFAULT),
];

/// What is in force for the calls of a port, or for those a rule of a route matches.
#[derive(Debug, Serialize)]
struct View {
    service: String,
    port: u16,
    /// Namespace of who calls.
    caller: String,
    route: Option<RuleView>,
    settings: Vec<Setting>,
    /// Who may call is decided by these, for the whole port.
    authorization: Vec<Authorization>,
}

#[derive(Debug, Serialize)]
struct RuleView {
    kind: &'static str,
    namespace: String,
    name: String,
    /// Its index in the route.
    rule: usize,
    rule_name: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Setting {
    key: String,
    value: Value,
    from: String,
}

#[derive(Debug, Clone, Serialize)]
struct Authorization {
    policy: String,
    action: Action,
    rules: usize,
}

/// What is asked for.
struct Asked<'a> {
    service: &'a ServiceName,
    caller: &'a str,
    port: Option<u16>,
    route: Option<&'a str>,
}

pub(super) async fn run(args: &GetArgs) -> Result<(), Failure> {
    let service = service(args)?;
    let admin = Admin::new(&args.connection.registry, &args.connection.identity)?;
    let mut resources = Vec::new();
    for kind in ["MeshConfig", "TrafficPolicy", "AuthorizationPolicy", "HTTPRoute", "GRPCRoute"] {
        resources.extend(read(&admin, kind, "", "").await?);
    }
    let found = read(&admin, "Service", service.namespace(), service.name()).await?;
    let ports = found.into_iter().find_map(|resource| match resource {
        Resource::Service { spec, .. } => Some(spec.ports),
        _ => None,
    });
    let asked = Asked {
        service: &service,
        caller: args.policy.from.as_deref().unwrap_or(service.namespace()),
        port: args.policy.port,
        route: args.policy.route.as_deref(),
    };
    let views = views(&resources, &ports.unwrap_or_default(), &asked)?;
    match args.output {
        ListOutput::Json => output::print_json(&views)?,
        ListOutput::Yaml => {
            for view in &views {
                let yaml = serde_saphyr::to_string(view)
                    .map_err(|error| Failure::job(format!("cannot write YAML: {error}")))?;
                output::print(&format!("---\n{}\n", yaml.trim_end()))?;
            }
        }
        ListOutput::Table => output::print(&tables(&views))?,
    }
    Ok(())
}

/// The service asked about, as `orders.shop` or by `--namespace`.
fn service(args: &GetArgs) -> Result<ServiceName, Failure> {
    let name = args.name.as_deref().ok_or_else(|| {
        Failure::usage(
            "name the service whose policies to show, such as `outrigger get policies orders.shop`",
        )
    })?;
    let service = match &args.namespace {
        Some(namespace) => ServiceName::new(namespace, name),
        None => ServiceName::parse(name),
    };
    service.map_err(|error| {
        Failure::usage(format!("service {error}; write <name>.<namespace>, or add --namespace"))
    })
}

async fn read(admin: &Admin, kind: &str, namespace: &str, name: &str) -> Result<Vec<Resource>, Failure> {
    let request = GetRequest { kind: kind.into(), namespace: namespace.into(), name: name.into() };
    let parse = |resource: outrigger_api::v1::Resource| {
        Resource::from_json(&resource.json).map_err(|error| {
            Failure::job(format!(
                "the registry's {kind} {}/{} cannot be read ({error}); is it of another release?",
                resource.namespace, resource.name
            ))
        })
    };
    admin.get(request).await?.into_iter().map(parse).collect()
}

/// One view a port, and one for each rule of the routes that govern it.
fn views(resources: &[Resource], ports: &[ServicePort], asked: &Asked<'_>) -> Result<Vec<View>, Failure> {
    let mut views = Vec::new();
    for port in ports.iter().filter(|port| asked.port.is_none_or(|number| port.port == number)) {
        if asked.route.is_none() {
            views.push(view(resources, port, asked, None));
        }
        for (route, rules) in routes(resources, port, asked) {
            for (index, rule_name) in rules.into_iter().enumerate() {
                let rule = RuleView {
                    kind: route.kind(),
                    namespace: route.namespace().to_owned(),
                    name: route.name().to_owned(),
                    rule: index,
                    rule_name,
                };
                if asked.route.is_none_or(|asked| rule.is(asked)) {
                    views.push(view(resources, port, asked, Some(rule)));
                }
            }
        }
    }
    if views.is_empty() {
        let known: Vec<_> = ports.iter().map(|port| port.port.to_string()).collect();
        let (service, caller) = (asked.service, asked.caller);
        return Err(Failure::job(match (asked.port, asked.route) {
            (Some(port), _) if ports.iter().all(|known| known.port != port) => {
                format!("{service} has no port {port}, only {}", known.join(", "))
            }
            (_, Some(route)) => format!(
                "no rule {route} governs calls of {service} from {caller}; `outrigger get policies {service}` shows those that do"
            ),
            _ => format!("{service} has no port"),
        }));
    }
    Ok(views)
}

/// The routes that govern a port for the caller, in order, with the names of their rules. Those of the
/// caller's namespace replace the producer's as a whole (GEP-1294).
fn routes<'a>(
    resources: &'a [Resource],
    port: &ServicePort,
    asked: &Asked<'_>,
) -> Vec<(&'a Resource, Vec<Option<String>>)> {
    let producer = asked.service.namespace();
    let mut routes: Vec<_> = resources
        .iter()
        .filter(|resource| [producer, asked.caller].contains(&resource.namespace()))
        .filter_map(|resource| match resource {
            Resource::HttpRoute { spec, .. } => {
                Some((resource, spec.rules.iter().map(|rule| rule.name.clone()).collect()))
            }
            Resource::GrpcRoute { spec, .. } => {
                Some((resource, spec.rules.iter().map(|rule| rule.name.clone()).collect::<Vec<_>>()))
            }
            _ => None,
        })
        .filter(|(route, _)| governs(route, port, asked.service))
        .collect();
    if routes.iter().any(|(route, _)| route.namespace() != producer) {
        routes.retain(|(route, _)| route.namespace() != producer);
    }
    routes
}

fn governs(resource: &Resource, port: &ServicePort, service: &ServiceName) -> bool {
    resource.attachments().iter().any(|attachment| match attachment {
        Attachment::Service { name, .. } if name != service => false,
        Attachment::Service { port: None, .. } => true,
        Attachment::Service { port: Some(PortSelector::Number(number)), .. } => *number == port.port,
        Attachment::Service { port: Some(PortSelector::Name(name)), .. } => {
            is_port(name, port.port, port.name.as_deref())
        }
        Attachment::Namespace(namespace) => namespace == service.namespace(),
        Attachment::Route { .. } => false,
    })
}

fn view(resources: &[Resource], port: &ServicePort, asked: &Asked<'_>, route: Option<RuleView>) -> View {
    let name = route
        .as_ref()
        .map(|rule| ResourceName { namespace: rule.namespace.clone(), name: rule.name.clone() });
    let rule = route.as_ref().zip(name.as_ref());
    let call = Call {
        caller: asked.caller,
        service: asked.service,
        port: port.port,
        port_name: port.name.as_deref(),
        route: rule.map(|(rule, name)| RuleRef { kind: rule.kind, route: name, index: rule.rule }),
    };
    let authorization = resources.iter().filter_map(|resource| match resource {
        Resource::AuthorizationPolicy { name, spec } if governs(resource, port, asked.service) => {
            Some(Authorization {
                policy: format!("AuthorizationPolicy {}/{}", name.namespace, name.name),
                action: spec.action,
                rules: spec.rules.len(),
            })
        }
        _ => None,
    });
    View {
        service: asked.service.to_string(),
        port: port.port,
        caller: asked.caller.to_owned(),
        authorization: authorization.collect(),
        settings: settings(resources, &call),
        route,
    }
}

/// Every setting in force, in the order of the keys.
fn settings(resources: &[Resource], call: &Call<'_>) -> Vec<Setting> {
    let defaults = resources.iter().find_map(|resource| match resource {
        Resource::MeshConfig { spec } => spec.defaults.as_ref(),
        _ => None,
    });
    let mut layers = layers_for(resources, call, defaults);
    layers.push((DEFAULT.to_owned(), TrafficPolicySpec::built_in()));
    let layers: Vec<_> = layers.iter().map(|(origin, spec)| Layer { origin, spec }).collect();
    let in_force = effective(&layers);
    let values = serde_json::to_value(&in_force.spec).unwrap_or_default();
    let said = in_force.origins.iter().map(|(key, from)| Setting {
        key: key.clone(),
        // A section that a layer switches off is not in force, but has an origin.
        value: values.pointer(&format!("/{}", key.replace('.', "/"))).cloned().unwrap_or("off".into()),
        from: from.clone(),
    });
    let unsaid = UNSAID.iter().filter(|(key, ..)| !in_force.origins.contains_key(*key));
    let unsaid = unsaid.map(|(key, value, from)| Setting {
        key: (*key).to_owned(),
        value: (*value).into(),
        from: (*from).to_owned(),
    });
    let mut settings: Vec<_> = said.chain(unsaid).collect();
    settings.sort_by(|a, b| a.key.cmp(&b.key));
    settings
}

impl RuleView {
    /// Whether `kind/namespace/name`, perhaps with a rule's name or index, means this rule.
    fn is(&self, asked: &str) -> bool {
        let mut parts = asked.splitn(4, '/');
        let place = [parts.next(), parts.next(), parts.next()];
        let rule = parts.next();
        let kind = place[0].is_some_and(|kind| kind.eq_ignore_ascii_case(self.kind));
        let name = place[1..] == [Some(self.namespace.as_str()), Some(self.name.as_str())];
        let named = |rule: &str| self.rule_name.as_deref() == Some(rule) || rule.parse() == Ok(self.rule);
        kind && name && rule.is_none_or(named)
    }

    fn title(&self) -> String {
        let rule = self.rule_name.clone().unwrap_or_else(|| self.rule.to_string());
        format!("{} {}/{} rule {rule}", self.kind, self.namespace, self.name)
    }
}

/// A table a view; of a rule only what differs from its port, where that is shown too.
fn tables(views: &[View]) -> String {
    let mut text = String::new();
    for view in views {
        let place = format!("{} port {}, called from {}", view.service, view.port, view.caller);
        let port = views.iter().find(|other| other.route.is_none() && other.port == view.port);
        let (title, settings) = match (&view.route, port) {
            (None, _) => (place, view.settings.clone()),
            (Some(rule), None) => (format!("{place}, {}", rule.title()), view.settings.clone()),
            (Some(rule), Some(port)) => {
                let differ = view.settings.iter().filter(|setting| !port.settings.contains(setting));
                (format!("{place}, {}: what differs", rule.title()), differ.cloned().collect())
            }
        };
        let gap = if text.is_empty() { "" } else { "\n" };
        text.push_str(&format!("{gap}{title}\n"));
        if settings.is_empty() {
            text.push_str("nothing\n");
            continue;
        }
        let mut rows = vec![["KEY", "VALUE", "FROM"].map(str::to_owned).to_vec()];
        rows.extend(settings.into_iter().map(|Setting { key, value, from }| vec![key, shown(&value), from]));
        text.push_str(&output::columns(&rows));
        if view.route.is_none() {
            text.push_str(&who_may_call(&view.authorization));
        }
    }
    text
}

fn who_may_call(policies: &[Authorization]) -> String {
    if policies.is_empty() {
        return "Who may call: every workload of the mesh (no AuthorizationPolicy)\n".to_owned();
    }
    let one = |policy: &Authorization| {
        let word = match policy.action {
            Action::Allow => "allow",
            Action::Deny => "deny",
        };
        let plural = if policy.rules == 1 { "" } else { "s" };
        format!("{word} by {} ({} rule{plural})", policy.policy, policy.rules)
    };
    format!("Who may call: {}\n", policies.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if items.is_empty() => "none".to_owned(),
        Value::Array(items) => items.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use outrigger_api::document::parse_yaml;
    use outrigger_api::resource::fields::TRAFFIC_POLICY;

    use super::*;

    fn resources() -> Vec<Resource> {
        let own = |kind: &str, place: (&str, &str), spec: &str| {
            let group = if kind.ends_with("Route") {
                "gateway.networking.k8s.io/v1"
            } else {
                "outrigger.dev/v1alpha1"
            };
            let (namespace, name) = place;
            format!(
                "---\napiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
            )
        };
        let target = "targetRefs: [{kind: Service, name: orders, namespace: shop}]";
        let text = [
            own("TrafficPolicy", ("shop", "all"), &format!("{{{target}, retries: {{attempts: 3, statuses: [502, 503]}}}}")),
            own("TrafficPolicy", ("front", "mine"), &format!("{{{target}, retries: {{attempts: 5}}}}")),
            own("AuthorizationPolicy", ("shop", "deny"), "{action: Deny, rules: [{namespaces: [back]}]}"),
            own(
                "HTTPRoute",
                ("shop", "r"),
                "{parentRefs: [{name: orders, port: 80}], rules: [{name: slow, timeouts: {request: 30s}}, {}]}",
            ),
            "---\napiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {defaults: {retryBudget: {percent: 10}}}\n".to_owned(),
        ];
        parse_yaml(Path::new("mesh.yaml"), &text.concat()).unwrap()
    }

    fn shown_for(caller: &str, port: Option<u16>, route: Option<&str>) -> Result<Vec<View>, Failure> {
        let service = ServiceName::new("shop", "orders").unwrap();
        let port_of = |port| ServicePort { name: None, port, protocol: Default::default() };
        let asked = Asked { service: &service, caller, port, route };
        views(&resources(), &[port_of(80), port_of(81)], &asked)
    }

    fn setting<'a>(view: &'a View, key: &str) -> (String, &'a str) {
        let setting = view.settings.iter().find(|setting| setting.key == key).unwrap();
        (shown(&setting.value), &setting.from)
    }

    #[test]
    fn every_setting_says_where_it_comes_from() {
        let views = shown_for("front", Some(80), None).unwrap();
        let port = &views[0];
        assert_eq!(setting(port, "retries.attempts"), ("5".into(), "TrafficPolicy front/mine"));
        assert_eq!(setting(port, "retries.statuses"), ("502,503".into(), "TrafficPolicy shop/all"));
        assert_eq!(setting(port, "retryBudget.percent").1, "MeshConfig default");
        assert_eq!(setting(port, "retries.backoffBase"), ("25ms".into(), DEFAULT));
        assert_eq!(setting(port, "timeouts.request"), ("timeouts.request".into(), SIDECAR));
        assert_eq!(setting(&views[1], "timeouts.request"), ("30s".into(), "HTTPRoute shop/r rule slow"));
        assert_eq!(setting(&shown_for("shop", None, None).unwrap()[0], "retries.attempts").0, "3");
        let keys: BTreeSet<_> = port.settings.iter().map(|setting| &setting.key).collect();
        assert_eq!(keys.len(), port.settings.len(), "no key twice");
        let text = tables(&views);
        assert!(text.starts_with("orders.shop port 80, called from front\nKEY "), "{text}");
        assert!(text.contains("Who may call: deny by AuthorizationPolicy shop/deny (1 rule)"), "{text}");
        assert!(
            text.contains("rule slow: what differs\nKEY               VALUE  FROM\ntimeouts.request  30s"),
            "{text}"
        );
        assert!(text.ends_with("HTTPRoute shop/r rule 1: what differs\nnothing\n"), "{text}");
    }

    #[test]
    fn every_field_of_a_policy_is_a_setting() {
        let views = shown_for("shop", Some(81), None).unwrap();
        let keys: BTreeSet<_> = views[0].settings.iter().map(|setting| setting.key.as_str()).collect();
        for field in TRAFFIC_POLICY.iter().filter(|field| !field.path.starts_with("targetRefs")) {
            let path = field.path.trim_end_matches("[]");
            let whole = path.match_indices('.').any(|(dot, _)| keys.contains(&path[..dot]));
            assert!(whole || keys.contains(path), "{path} is not among {keys:?}");
        }
    }

    #[test]
    fn ports_and_rules_are_shown_alone_when_asked_for() {
        let titles = |port, route| -> Vec<_> {
            let views = shown_for("shop", port, route).unwrap();
            views.iter().map(|view| (view.port, view.route.as_ref().map(RuleView::title))).collect()
        };
        let rule = |rule: &str| Some(format!("HTTPRoute shop/r rule {rule}"));
        assert_eq!(titles(None, None), [(80, None), (80, rule("slow")), (80, rule("1")), (81, None)]);
        assert_eq!(titles(None, Some("httproute/shop/r")), [(80, rule("slow")), (80, rule("1"))]);
        assert_eq!(titles(None, Some("HTTPRoute/shop/r/slow")), [(80, rule("slow"))]);
        assert_eq!(titles(Some(80), Some("HTTPRoute/shop/r/1")), [(80, rule("1"))]);
        let error = |port, route| shown_for("shop", port, route).unwrap_err().to_string();
        assert_eq!(error(Some(82), None), "orders.shop has no port 82, only 80, 81");
        assert!(error(Some(81), Some("HTTPRoute/shop/r")).contains("no rule HTTPRoute/shop/r governs"));
    }
}
