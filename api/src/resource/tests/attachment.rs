use super::*;
use crate::resource::attachment::{Attachment, PortSelector, RouteKind};

fn one(text: &str) -> Resource {
    parse(text).unwrap_or_else(|error| panic!("{error}\n{text}")).remove(0)
}

fn service(namespace: &str, name: &str) -> ServiceName {
    ServiceName::new(namespace, name).unwrap()
}

#[test]
fn policies_name_services_ports_routes_and_rules() {
    let policy = one("\
apiVersion: outrigger.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: a, namespace: shop}
spec:
  targetRefs:
    - {kind: Service, name: orders, sectionName: \"80\"}
    - {kind: Service, name: orders, sectionName: http}
    - {kind: HTTPRoute, name: split, sectionName: canary}
    - {kind: GRPCRoute, name: calls}
");
    let route = |kind, name: &str, rule: Option<&str>| Attachment::Route {
        kind,
        namespace: "shop".into(),
        name: name.into(),
        rule: rule.map(str::to_owned),
    };
    let orders = |port| Attachment::Service { name: service("shop", "orders"), port };
    assert_eq!(
        policy.attachments(),
        [
            orders(Some(PortSelector::Number(80))),
            orders(Some(PortSelector::Name("http".into()))),
            route(RouteKind::Http, "split", Some("canary")),
            route(RouteKind::Grpc, "calls", None),
        ]
    );
    assert_eq!(policy.backends(), []);
}

#[test]
fn a_consumer_policy_names_the_service_of_the_other_namespace() {
    let policy = one("\
apiVersion: outrigger.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: a, namespace: web}
spec:
  targetRefs: [{kind: Service, name: orders, namespace: shop}]
");
    assert_eq!(policy.attachments(), [Attachment::Service { name: service("shop", "orders"), port: None }]);
}

#[test]
fn an_authorization_policy_without_targets_governs_its_namespace() {
    let policy = |targets: &str| {
        one(&format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {{name: a, namespace: shop}}\nspec: {{{targets}}}\n"
        ))
    };
    assert_eq!(policy("").attachments(), [Attachment::Namespace("shop".into())]);
    assert_eq!(
        policy("targetRefs: [{kind: Service, name: orders}]").attachments(),
        [Attachment::Service { name: service("shop", "orders"), port: None }]
    );
}

#[test]
fn routes_name_parents_backends_and_mirrors() {
    let route = one("\
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: a, namespace: web}
spec:
  parentRefs: [{name: orders, namespace: shop, port: 80}, {name: cart}]
  rules:
    - backendRefs:
        - {name: orders, namespace: shop, port: 80}
        - name: orders-next
          port: 80
          filters:
            - {type: RequestMirror, requestMirror: {backendRef: {name: audit, namespace: log, port: 1}}}
    - filters:
        - {type: RequestMirror, requestMirror: {backendRef: {name: copy, port: 1}}}
");
    assert_eq!(
        route.attachments(),
        [
            Attachment::Service { name: service("shop", "orders"), port: Some(PortSelector::Number(80)) },
            Attachment::Service { name: service("web", "cart"), port: None },
        ]
    );
    assert_eq!(
        route.backends(),
        ["audit.log", "copy.web", "orders-next.web", "orders.shop"]
            .map(|name| ServiceName::parse(name).unwrap())
    );
}

#[test]
fn services_and_the_mesh_govern_nothing() {
    assert_eq!(one(SERVICE).attachments(), []);
    assert_eq!(one(SERVICE).backends(), []);
}
