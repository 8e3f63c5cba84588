//! `apply`, `get` and `token` against a real registry.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Registry, file, stderr, stdout};

const SERVICE: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: Service\nmetadata: {name: orders, namespace: shop}\nspec:\n  ports:\n    - {name: web, port: 80}\n";
const MESH: &str = "---\napiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {tracing: {samplingRatio: 0.5}}\n";

#[test]
fn resources_are_created_changed_shown_and_deleted() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let both = file(directory.path(), "mesh.yaml", &format!("{SERVICE}{MESH}"));
    let apply = |args: &[&str]| {
        let output = registry.run(&[&["apply", "-f", &both], args].concat());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        stdout(&output)
    };
    let planned = apply(&["--dry-run"]);
    assert!(planned.starts_with("service/orders.shop created (dry run"), "{planned}");
    assert_eq!(apply(&[]), "service/orders.shop created\nmeshconfig/default created\n");
    assert_eq!(apply(&[]), "service/orders.shop unchanged\nmeshconfig/default unchanged\n");

    // What get says in YAML, apply reads.
    let yaml = stdout(&registry.run(&["get", "services", "--output", "yaml"]));
    let again = file(directory.path(), "again.yaml", &yaml.replace("80", "8080"));
    let output = registry.run(&["apply", "-f", &again]);
    assert_eq!(stdout(&output), "service/orders.shop configured\n", "{}\n{yaml}", stderr(&output));
    let table = stdout(&registry.run(&["get", "services", "-n", "shop"]));
    assert!(table.starts_with("NAMESPACE") && table.contains("web:8080/auto"), "{table}");
    let json: Value =
        serde_json::from_slice(&registry.run(&["get", "service", "orders.shop", "--output", "json"]).stdout)
            .unwrap();
    assert_eq!(json[0]["spec"]["ports"][0]["port"], 8080);
    let missing = registry.run(&["get", "service", "none.shop"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(stderr(&missing).contains("none"), "{}", stderr(&missing));

    assert_eq!(apply(&["--delete"]), "service/orders.shop deleted\nmeshconfig/default deleted\n");
    let nothing = registry.run(&["get", "services"]);
    assert_eq!((nothing.status.code(), stdout(&nothing).as_str()), (Some(0), ""));
}

const POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: p, namespace: shop}\nspec:\n  targetRefs: [{kind: Service, name: orders}]\n  retries: {attempts: 4}\n";
const ROUTE: &str = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, namespace: shop}\nspec:\n  parentRefs: [{name: orders}]\n  rules: [{name: slow, timeouts: {request: 30s}}]\n";

#[test]
fn the_policy_in_force_is_shown_with_where_it_comes_from() {
    let registry = Registry::start();
    let directory = tempfile::tempdir().unwrap();
    let done = |args: &[&str]| {
        let output = registry.run(args);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        output
    };
    let policy = file(directory.path(), "policy.yaml", POLICY);
    let warned = done(&["apply", "-f", &policy]);
    assert_eq!(stdout(&warned), "trafficpolicy/p.shop created\n");
    assert!(
        stderr(&warned).contains("warning: trafficpolicy/p.shop: the target Service orders.shop does not")
    );
    let rest = file(directory.path(), "rest.yaml", &format!("{SERVICE}{ROUTE}"));
    assert_eq!(stderr(&done(&["apply", "-f", &rest])), "");

    assert!(stdout(&done(&["get", "trafficpolicies"])).contains("shop       p     orders.shop  retries"));
    assert!(stdout(&done(&["get", "httproute", "r"])).contains("shop       r     orders.shop  1      -"));
    assert_eq!(stdout(&done(&["get", "grpcroutes"])), "");
    assert_eq!(stdout(&done(&["get", "authorizationpolicies"])), "");
    let table = stdout(&done(&["get", "policies", "orders.shop"]));
    let line = |key: &str| {
        let line =
            table.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key}: {table}"));
        line.split_whitespace().map(ToOwned::to_owned).collect::<Vec<_>>()[1..].join(" ")
    };
    assert_eq!(line("retries.attempts"), "4 TrafficPolicy shop/p");
    assert_eq!(line("circuitBreaker.consecutiveFailures"), "5 default");
    assert!(table.contains("HTTPRoute shop/r rule slow: what differs"), "{table}");
    let args = ["get", "policy", "orders", "-n", "shop", "--port", "80", "--route", "HTTPRoute/shop/r/slow"];
    let json: Value =
        serde_json::from_slice(&done(&[&args[..], &["--output", "json"]].concat()).stdout).unwrap();
    assert_eq!((json.as_array().unwrap().len(), &json[0]["route"]["rule_name"]), (1, &"slow".into()));
    let settings = json[0]["settings"].as_array().unwrap();
    let request = settings.iter().find(|setting| setting["key"] == "timeouts.request").unwrap();
    assert_eq!((&request["value"], &request["from"]), (&"30s".into(), &"HTTPRoute shop/r rule slow".into()));

    for (args, code, words) in [
        (&["get", "policies"][..], 2, "name the service"),
        (&["get", "policies", "orders"], 2, "<name>.<namespace>"),
        (&["get", "policies", "none.shop"], 1, "no Service none in shop"),
        (&["get", "policies", "orders.shop", "--port", "81"], 1, "no port 81, only 80"),
        (&["get", "services", "--port", "80"], 2, "outrigger get policies"),
    ] {
        let output = registry.run(args);
        assert!(stderr(&output).contains(words), "{args:?}: {}", stderr(&output));
        assert_eq!(output.status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn a_token_stands_alone_on_standard_output() {
    let registry = Registry::start();
    let output =
        registry.run(&["token", "--namespace", "shop", "--account", "orders", "--service", "orders"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let token = stdout(&output);
    assert!(token.starts_with("outrigger-join.") && token.lines().count() == 1, "{token}");
    assert!(stderr(&output).contains("ns/shop/sa/orders") && stderr(&output).contains("serve orders.shop"));
    let id = token.split('.').nth(1).unwrap();
    let listed = stdout(&registry.run(&["get", "tokens"]));
    assert!(listed.contains(id) && !listed.contains(token.split('.').nth(2).unwrap()), "{listed}");

    assert_eq!(stdout(&registry.run(&["token", "--revoke", id])), format!("token/{id} revoked\n"));
    assert!(!stdout(&registry.run(&["get", "tokens"])).contains(id));
    assert_eq!(registry.run(&["token", "--revoke", id]).status.code(), Some(1));
    let refused = registry.run(&["token", "--namespace", "Shop", "--account", "orders"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stderr(&refused).contains("namespace"), "{}", stderr(&refused));
}

#[test]
fn an_unreachable_registry_is_named_with_the_remedy() {
    let mut registry = Registry::start();
    registry.process.signal(Signal::TERM);
    assert_eq!(registry.process.wait(), Some(0));
    let output = registry.run(&["get", "services"]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(
        text.contains("cannot reach") && text.contains(&registry.grpc) && text.contains("--registry"),
        "{text}"
    );
}

#[test]
fn the_identity_of_another_mesh_is_refused_by_name() {
    let (registry, other) = (Registry::start(), Registry::start());
    let identity = other.identity.to_str().unwrap();
    let output =
        crate::harness::run(&["get", "services", "--registry", &registry.grpc, "--identity", identity]);
    assert_eq!(output.status.code(), Some(1));
    let text = stderr(&output);
    assert!(text.contains(&registry.grpc) && text.contains("--identity"), "{text}");
}
