//! Cases of the Gateway API's conformance tests, its tables, and properties over random requests.

mod attachment;
mod changes;
mod documents;
mod faults;
mod hashing;
mod matching;
mod paths;

use std::path::Path;

use fastrand::Rng;
use http::Request;
use http::request::Parts;
use outrigger_api::document::parse_yaml;
use outrigger_api::resource::{Resource, ResourceName};
use outrigger_common::name::ServiceName;

use super::condition::Head;
use super::matcher::{Found, Frontend, Table};
use super::rule::{Action, Rule};

/// An `HTTPRoute` of `orders.shop`, from the YAML of its rules.
fn http_route(name: &str, rules: &str) -> String {
    route("HTTPRoute", name, rules)
}

fn grpc_route(name: &str, rules: &str) -> String {
    route("GRPCRoute", name, rules)
}

fn route(kind: &str, name: &str, rules: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\nspec:\n  parentRefs: [{{name: orders}}]\n  rules:\n{rules}\n---\n"
    )
}

fn parse(yaml: &str) -> Vec<Resource> {
    parse_yaml(Path::new("routes.yaml"), yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"))
}

/// A route of `orders.shop` that nobody has checked, from the JSON of its rules.
fn unchecked(rules: &str) -> Resource {
    let spec = format!(r#"{{"parentRefs": [{{"name": "orders"}}], "rules": {rules}}}"#);
    let spec = serde_json::from_str(&spec).unwrap_or_else(|error| panic!("{error}: {spec}"));
    let name = ResourceName { namespace: "shop".to_owned(), name: "unchecked".to_owned() };
    Resource::HttpRoute { name, spec }
}

/// The table of port 8080 (`http`) of `orders.shop`, for callers in `shop`.
fn table(yaml: &str) -> Table {
    table_for(&parse(yaml), "shop", 8080)
}

fn table_for(resources: &[Resource], caller_namespace: &str, port: u16) -> Table {
    let service = ServiceName::parse("orders.shop").unwrap();
    let port_name = Some(if port == 9090 { "admin" } else { "http" });
    Table::compile(&Frontend { service: &service, port, port_name, caller_namespace }, resources).unwrap()
}

/// A request from `GET /path?query` and headers such as `version: one`.
fn request(line: &str, headers: &[&str]) -> Parts {
    let (method, target) = line.split_once(' ').unwrap();
    let mut request = Request::builder().method(method).uri(format!("http://orders.shop:8080{target}"));
    for header in headers {
        let (name, value) = header.split_once(": ").unwrap();
        request = request.header(name, value);
    }
    request.body(()).unwrap().into_parts().0
}

fn call(path: &str, headers: &[&str]) -> Parts {
    let mut headers = headers.to_vec();
    headers.push("content-type: application/grpc+proto");
    request(&format!("POST {path}"), &headers)
}

fn find<'t>(table: &'t Table, parts: &Parts) -> Found<'t> {
    let grpc = parts.headers.get("content-type").is_some_and(|kind| kind == "application/grpc+proto");
    table.find(&Head::new(parts, grpc))
}

fn rule<'t>(table: &'t Table, parts: &Parts) -> &'t Rule {
    match find(table, parts) {
        Found::Rule(rule) => rule,
        other => panic!("{} {}: {other:?}", parts.method, parts.uri),
    }
}

/// Where a request goes: a backend, `self`, `redirect`, `500`, `404` or `default`.
fn goes(table: &Table, parts: &Parts) -> String {
    match find(table, parts) {
        Found::Default => "default".to_owned(),
        Found::NotFound => "404".to_owned(),
        Found::Rule(rule) => match rule.action(&mut Rng::with_seed(1)) {
            Action::Forward => "self".to_owned(),
            Action::Backend(backend) => backend.service.name().to_owned(),
            Action::Redirect(_) => "redirect".to_owned(),
            Action::NoBackend => "500".to_owned(),
        },
    }
}

/// Runs a property over seeds; a failure names the seed to run again.
fn for_seeds(seeds: u64, property: impl Fn(&mut Rng)) {
    for seed in 0..seeds {
        let mut rng = Rng::with_seed(seed);
        let run = std::panic::AssertUnwindSafe(|| property(&mut rng));
        if std::panic::catch_unwind(run).is_err() {
            panic!("seed {seed}");
        }
    }
}

fn random_path(rng: &mut Rng) -> String {
    let pieces = [
        "/", "/", "//", "a", "b", "foo", "..", ".", "%2e", "%2E%2e", "%2f", "%61", "%", "%25", "%c3", "*",
        "é",
    ];
    let mut path = "/".to_owned();
    for _ in 0..rng.usize(..8) {
        path.push_str(pieces[rng.usize(..pieces.len())]);
    }
    path
}
