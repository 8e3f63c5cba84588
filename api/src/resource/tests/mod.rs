use std::path::Path;

use super::*;
use crate::document::parse_yaml;

mod attachment;
mod authorization;
mod documents;
mod effective;
mod fields;
mod mesh;
mod policy;
mod route;

fn parse(text: &str) -> Result<Vec<Resource>, ConfigError> {
    parse_yaml(Path::new("mesh.yaml"), text)
}

/// Refuses each `spec` of a kind, at a line of the spec (its first is 1) and with words.
fn refused(kind: &str, cases: &[(&str, usize, &str)]) {
    for (spec, line, words) in cases {
        let text = resource(kind, spec);
        let error = match parse(&text) {
            Ok(found) => panic!("accepted: {found:?}\n{text}"),
            Err(error) => error,
        };
        assert!(error.message.contains(words), "{words:?} is not in {error}\n{text}");
        assert_eq!(error.place, format!("mesh.yaml:{}", line + 4), "{error}\n{text}");
    }
}

/// Accepts each `spec` of a kind, and once more from its own JSON.
fn accepted(kind: &str, cases: &[&str]) {
    for spec in cases {
        let text = resource(kind, spec);
        let found = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}")).remove(0);
        assert_eq!(Resource::from_json(&found.to_json()).unwrap(), found, "{text}");
    }
}

/// A document whose spec begins on line 5.
fn resource(kind: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let version = api_version_of(kind).unwrap();
    format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a.b-1, namespace: shop}}\nspec:\n{spec}")
}

const SERVICE: &str = "\
apiVersion: outrigger.dev/v1alpha1
kind: Service
metadata:
  name: orders
  namespace: shop
spec:
  ports:
    - {name: http, port: 80, protocol: http1}
";

#[test]
fn documents_survive_a_round_trip_through_json() {
    let text = format!(
        "# two documents\n{SERVICE}---\napiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {{tracing: {{samplingRatio: 0.5}}}}\n---\n"
    );
    let resources = parse(&text).unwrap();
    assert_eq!(resources.len(), 2);
    for resource in resources {
        assert_eq!(Resource::from_json(&resource.to_json()).unwrap(), resource);
    }
}

#[test]
fn errors_name_file_line_and_key() {
    let second = |text: &str| format!("{SERVICE}---\n{text}");
    for (text, place, words) in [
        (SERVICE.replace("name: orders", "name: Orders"), "mesh.yaml:4", "metadata.name"),
        (SERVICE.replace("port: 80", "port: 0"), "mesh.yaml:8", "port"),
        (SERVICE.replace("port: 80", "port: 70000"), "mesh.yaml:8", "port"),
        (SERVICE.replace("http1", "udp"), "mesh.yaml:8", "not supported by this version"),
        (SERVICE.replace("kind: Service", "kind: Topic"), "mesh.yaml:2", "not supported by this version"),
        (SERVICE.replace("kind: Service", "kind: TrafficPolicy"), "mesh.yaml:7", "unknown field `ports`"),
        (SERVICE.replace("v1alpha1", "v2"), "mesh.yaml:1", "apiVersion"),
        (
            SERVICE.replace("  ports:", "  selector: {}\n  ports:"),
            "mesh.yaml:7",
            "not supported by this version",
        ),
        (
            second(
                "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec:\n  tracing:\n    samplingRatio: 2\n",
            ),
            "mesh.yaml:15",
            "0 to 1",
        ),
        (
            second(
                "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: other}\nspec: {}\n",
            ),
            "mesh.yaml:12",
            "metadata.name",
        ),
        (format!("{SERVICE}    - {{port: 80}}\n"), "mesh.yaml:9", "twice"),
    ] {
        let error = parse(&text).unwrap_err();
        assert!(error.message.contains(words), "{error}\n{text}");
        assert_eq!(error.place, place, "{error}\n{text}");
    }
}

#[test]
fn names_are_dns_names_and_namespaces_labels() {
    let text = resource("TrafficPolicy", "targetRefs: [{kind: Service, name: orders}]");
    let long = format!("{}.a", "a".repeat(63));
    for good in ["a", "a.b", long.as_str()] {
        parse(&text.replace("a.b-1", good)).unwrap();
    }
    let too_long = format!("{}a", "a.".repeat(127));
    for bad in ["A", "a..b", ".a", "a.", "a_b", "-a", "''", &"a".repeat(64), &too_long] {
        let error = parse(&text.replace("a.b-1", bad)).unwrap_err();
        assert_eq!(error.place, "mesh.yaml:3", "{error}");
        assert!(error.message.starts_with("metadata.name: "), "{error}");
    }
    let error = parse(&text.replace("shop", "shop.x")).unwrap_err();
    assert!(error.message.starts_with("metadata.namespace: "), "{error}");
}
