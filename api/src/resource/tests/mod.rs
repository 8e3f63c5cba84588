use std::path::Path;

use super::*;
use crate::document::parse_yaml;

mod attachment;
mod effective;

fn parse(text: &str) -> Result<Vec<Resource>, ConfigError> {
    parse_yaml(Path::new("mesh.yaml"), text)
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
        (SERVICE.replace("http1", "tcp"), "mesh.yaml:8", "not supported by this version"),
        (SERVICE.replace("kind: Service", "kind: Topic"), "mesh.yaml:2", "not supported by this version"),
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
