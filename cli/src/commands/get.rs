//! `outrigger get`: resources and what runs, as a table, as JSON or as YAML.

use outrigger_api::resource::Resource as Checked;
use outrigger_api::v1::{GetRequest, Resource};
use serde_json::Value;

use crate::admin::Admin;
use crate::args::{GetArgs, Kind, ListOutput};
use crate::failure::Failure;
use crate::output;

pub(super) async fn run(args: &GetArgs) -> Result<(), Failure> {
    if args.kind == Kind::Policies {
        return super::policies::run(args).await;
    }
    if args.policy.is_any() {
        return Err(Failure::usage("--port, --from and --route belong to `outrigger get policies`"));
    }
    let admin = Admin::new(&args.connection.registry, &args.connection.identity)?;
    let (namespace, name) = place(args);
    let request = GetRequest { kind: kind(args.kind).to_owned(), namespace, name };
    let resources = admin.get(request).await?;
    let values = resources.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    match args.output {
        ListOutput::Json => output::print_json(&values)?,
        ListOutput::Yaml => {
            for value in &values {
                let yaml = serde_saphyr::to_string(value)
                    .map_err(|error| Failure::job(format!("cannot write YAML: {error}")))?;
                output::print(&format!("---\n{}\n", yaml.trim_end()))?;
            }
        }
        ListOutput::Table if resources.is_empty() => output::say("Nothing there."),
        ListOutput::Table => output::print(&table(args.kind, &resources, &values))?,
    }
    Ok(())
}

/// Namespace and name asked for; `orders.shop` says both.
fn place(args: &GetArgs) -> (String, String) {
    let (namespace, name) = (args.namespace.clone(), args.name.clone().unwrap_or_default());
    match (namespace, name.split_once('.')) {
        (None, Some((label, namespace))) if args.kind == Kind::Services => {
            (namespace.to_owned(), label.to_owned())
        }
        (namespace, _) => (namespace.unwrap_or_default(), name),
    }
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Services => "Service",
        Kind::Meshconfig => "MeshConfig",
        Kind::Workloads => "Workload",
        Kind::Tokens => "Token",
        Kind::Trafficpolicies | Kind::Policies => "TrafficPolicy",
        Kind::Authorizationpolicies => "AuthorizationPolicy",
        Kind::Httproutes => "HTTPRoute",
        Kind::Grpcroutes => "GRPCRoute",
    }
}

fn parse(resource: &Resource) -> Result<Value, Failure> {
    serde_json::from_str(&resource.json).map_err(|error| {
        let Resource { kind, name, .. } = resource;
        Failure::job(format!(
            "the registry's answer for {kind} {name} is not JSON ({error}); is it of another release?"
        ))
    })
}

fn table(kind: Kind, resources: &[Resource], values: &[Value]) -> String {
    let heading: &[&str] = match kind {
        Kind::Services => &["NAMESPACE", "NAME", "PORTS", "ADDRESSES"],
        Kind::Meshconfig => &["NAME", "TRACE SAMPLING", "MTLS", "EGRESS"],
        Kind::Workloads => &["NAMESPACE", "ID", "ADDRESS", "SERVES", "LAST HEARD"],
        Kind::Tokens => &["NAMESPACE", "ID", "ACCOUNT", "SERVICES", "USE"],
        Kind::Trafficpolicies | Kind::Policies => &["NAMESPACE", "NAME", "TARGETS", "SETS"],
        Kind::Authorizationpolicies => &["NAMESPACE", "NAME", "TARGETS", "ACTION", "RULES"],
        Kind::Httproutes | Kind::Grpcroutes => &["NAMESPACE", "NAME", "SERVICES", "RULES", "BACKENDS"],
    };
    let mut rows = vec![heading.iter().map(|&cell| cell.to_owned()).collect()];
    rows.extend(resources.iter().zip(values).map(|(resource, value)| row(kind, resource, value)));
    output::columns(&rows)
}

fn row(kind: Kind, resource: &Resource, value: &Value) -> Vec<String> {
    let Resource { namespace, name, .. } = resource;
    match kind {
        Kind::Services => {
            let spec = &value["spec"];
            vec![namespace.clone(), name.clone(), list(&spec["ports"], port), list(&spec["addresses"], text)]
        }
        Kind::Meshconfig => {
            let spec = &value["spec"];
            let mode = |section: &str, default: &str| match &spec[section]["mode"] {
                Value::Null => default.to_owned(),
                said => text(said),
            };
            let sampling = text(&spec["tracing"]["samplingRatio"]);
            vec![name.clone(), sampling, mode("mtls", "strict"), mode("egress", "allow")]
        }
        Kind::Workloads => {
            let address = format!("{}:{}", text(&value["address"]), text(&value["mesh_port"]));
            let heard = value["lease_age_ms"]
                .as_u64()
                .map_or("-".to_owned(), |ms| format!("{:.1} s ago", seconds(ms)));
            vec![namespace.clone(), name.clone(), address, list(&value["ports"], served), heard]
        }
        Kind::Tokens => {
            let usage = match (value["single_use"].as_bool(), value["used"].is_null()) {
                (Some(true), true) => "once",
                (Some(true), false) => "used",
                _ => "until it expires",
            };
            let services = list(&value["services"], text);
            vec![namespace.clone(), name.clone(), text(&value["account"]), services, usage.to_owned()]
        }
        Kind::Trafficpolicies | Kind::Policies => {
            let sections = value["spec"].as_object().into_iter().flat_map(|spec| spec.keys());
            let sections: Vec<_> = sections.map(String::as_str).filter(|key| *key != "targetRefs").collect();
            let targets = list(&value["spec"]["targetRefs"], |target| reference(target, namespace));
            vec![namespace.clone(), name.clone(), targets, or_dash(sections.join(","))]
        }
        Kind::Authorizationpolicies => {
            let spec = &value["spec"];
            let targets = match list(&spec["targetRefs"], |target| reference(target, namespace)).as_str() {
                "-" => "every Service".to_owned(),
                targets => targets.to_owned(),
            };
            let rules = spec["rules"].as_array().map_or(0, Vec::len);
            vec![namespace.clone(), name.clone(), targets, text(&spec["action"]), rules.to_string()]
        }
        Kind::Httproutes | Kind::Grpcroutes => {
            let spec = &value["spec"];
            let parents = list(&spec["parentRefs"], |parent| reference(parent, namespace));
            let rules = spec["rules"].as_array().map_or(0, Vec::len);
            let backends = Checked::from_json(&resource.json).map(|route| route.backends());
            let backends: Vec<_> = backends.unwrap_or_default().iter().map(ToString::to_string).collect();
            vec![namespace.clone(), name.clone(), parents, rules.to_string(), or_dash(backends.join(","))]
        }
    }
}

/// What a policy or route is attached to: `orders.shop:web`, `HTTPRoute/canary:rule`.
fn reference(value: &Value, own: &str) -> String {
    let name = text(&value["name"]);
    let place = match value["kind"].as_str() {
        None | Some("Service") => format!("{name}.{}", value["namespace"].as_str().unwrap_or(own)),
        Some(kind) => format!("{kind}/{name}"),
    };
    match (&value["port"], &value["sectionName"]) {
        (Value::Null, Value::Null) => place,
        (Value::Null, section) => format!("{place}:{}", text(section)),
        (port, _) => format!("{place}:{}", text(port)),
    }
}

fn or_dash(text: String) -> String {
    if text.is_empty() { "-".to_owned() } else { text }
}

/// `80/http`, with its name when it has one.
fn port(value: &Value) -> String {
    let number = format!("{}/{}", text(&value["port"]), text(&value["protocol"]));
    match value["name"].as_str() {
        Some(name) if !name.is_empty() => format!("{name}:{number}"),
        _ => number,
    }
}

fn served(value: &Value) -> String {
    let health = if value["healthy"] == true { "" } else { " (unhealthy)" };
    format!("{}:{}{health}", text(&value["service"]), text(&value["port"]))
}

fn list(value: &Value, cell: impl Fn(&Value) -> String) -> String {
    let cells: Vec<_> = value.as_array().into_iter().flatten().map(cell).collect();
    if cells.is_empty() { "-".to_owned() } else { cells.join(",") }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    }
}

/// Ages here are far below 2^53 milliseconds.
#[allow(clippy::cast_precision_loss)]
fn seconds(ms: u64) -> f64 {
    ms as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(namespace: &str, name: &str, json: &str) -> Resource {
        Resource {
            kind: String::new(),
            namespace: namespace.into(),
            name: name.into(),
            json: json.into(),
            revision: 1,
        }
    }

    fn show(kind: Kind, resource: Resource) -> String {
        let value = parse(&resource).unwrap();
        table(kind, &[resource], &[value])
    }

    #[test]
    fn a_table_has_a_heading_and_a_line_a_resource() {
        let service = resource(
            "shop",
            "orders",
            r#"{"spec":{"ports":[{"name":"web","port":80,"protocol":"http"},{"port":81,"protocol":"grpc"}],"addresses":["10.0.9.1","fd00::9"]}}"#,
        );
        assert_eq!(
            show(Kind::Services, service),
            "NAMESPACE  NAME    PORTS                ADDRESSES\nshop       orders  web:80/http,81/grpc  10.0.9.1,fd00::9\n"
        );
        let workload = resource(
            "shop",
            "orders-1",
            r#"{"address":"127.0.0.1","mesh_port":15008,"ports":[{"service":"orders.shop","port":80,"healthy":false}],"lease_age_ms":1500}"#,
        );
        let line = show(Kind::Workloads, workload);
        assert!(line.contains("127.0.0.1:15008  orders.shop:80 (unhealthy)  1.5 s ago"), "{line}");
        let token =
            resource("shop", "t1", r#"{"account":"orders","services":[],"single_use":true,"used":null}"#);
        assert!(show(Kind::Tokens, token).contains("orders   -         once"));
        let policy = resource(
            "shop",
            "p",
            r#"{"spec":{"targetRefs":[{"kind":"Service","name":"orders","sectionName":"web"},{"kind":"HTTPRoute","name":"r"}],"retries":{},"timeouts":{}}}"#,
        );
        let line = show(Kind::Trafficpolicies, policy);
        assert!(line.ends_with("shop       p     orders.shop:web,HTTPRoute/r  retries,timeouts\n"), "{line}");
        let authorization = resource("shop", "a", r#"{"spec":{"action":"Deny","rules":[{}]}}"#);
        assert!(show(Kind::Authorizationpolicies, authorization).contains("every Service  Deny    1"));
        let route = resource(
            "shop",
            "r",
            r#"{"apiVersion":"gateway.networking.k8s.io/v1","kind":"HTTPRoute","metadata":{"name":"r","namespace":"shop"},"spec":{"parentRefs":[{"name":"orders","namespace":"back","port":80}],"rules":[{"backendRefs":[{"name":"canary","port":80}]}]}}"#,
        );
        let line = show(Kind::Httproutes, route);
        assert!(line.ends_with("shop       r     orders.back:80  1      canary.shop\n"), "{line}");
        let mesh =
            resource("", "default", r#"{"spec":{"tracing":{"samplingRatio":0.5},"egress":{"mode":"deny"}}}"#);
        assert!(show(Kind::Meshconfig, mesh).ends_with("default  0.5             strict  deny\n"));
    }
}
