//! The table of fields against the types, the defaults and the documentation.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;
use crate::resource::fields::{Field, KINDS, Kind, Range};

/// Keys of every value in `tree`, `[]` for the elements of lists.
fn keys(tree: &Value, prefix: &str, found: &mut BTreeSet<String>) {
    match tree {
        Value::Object(map) => {
            for (key, value) in map {
                let path = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                keys(value, &path, found);
            }
        }
        Value::Array(list) => list.iter().for_each(|element| keys(element, &format!("{prefix}[]"), found)),
        _ => _ = found.insert(prefix.to_owned()),
    }
}

/// The field of a dotted key, as table and path in it.
fn resolve(table: &str, fields: &[Field], key: &str) -> Option<(String, String)> {
    fields.iter().find_map(|field| match field.range {
        Range::Table(name, inner) | Range::List(name, inner) => {
            resolve(name, inner, key.strip_prefix(field.path)?.strip_prefix('.')?)
        }
        _ => (field.path == key).then(|| (table.to_owned(), key.to_owned())),
    })
}

/// Every field of a table and of those it refers to.
fn listed(table: &str, fields: &[Field], found: &mut BTreeSet<(String, String)>) {
    for field in fields {
        match field.range {
            Range::Table(name, inner) | Range::List(name, inner) => listed(name, inner, found),
            _ => _ = found.insert((table.to_owned(), field.path.to_owned())),
        }
    }
}

fn kind(name: &str) -> &'static Kind {
    KINDS.iter().find(|kind| kind.name == name).unwrap()
}

#[test]
fn the_table_has_every_field_there_is_and_no_other() {
    let mesh = "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {tracing: {samplingRatio: 0.5}, defaults: {retries: {attempts: 1}}, mtls: {mode: permissive}, egress: {mode: deny}}\n";
    let service = format!("{SERVICE}  addresses: [10.0.9.1]\n");
    let mut documents = vec![mesh.to_owned(), service];
    documents.extend(policy::WHOLE.iter().map(|spec| resource("TrafficPolicy", spec)));
    documents.extend(authorization::WHOLE.iter().map(|spec| resource("AuthorizationPolicy", spec)));
    documents.push(resource("HTTPRoute", route::HTTP));
    documents.push(resource("GRPCRoute", route::GRPC));
    let (mut used, mut known) = (BTreeSet::new(), BTreeSet::new());
    for text in documents {
        let found = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}")).remove(0);
        // As it is written: defaults are left out of the JSON.
        let json: Value = Origin::new(None, text, Vec::new(), &[]).load().unwrap();
        let mut said = BTreeSet::new();
        keys(&json["spec"], "", &mut said);
        let kind = kind(found.kind());
        for key in said {
            let field = resolve(kind.name, kind.fields, &key);
            used.insert(field.unwrap_or_else(|| panic!("{}: {key} is not in the table", kind.name)));
        }
    }
    KINDS.iter().for_each(|kind| listed(kind.name, kind.fields, &mut known));
    let unused: Vec<_> = known.difference(&used).collect();
    assert!(unused.is_empty(), "in the table, but in no example: {unused:?}");
}

#[test]
fn the_built_in_defaults_are_those_of_the_table() {
    let built_in = serde_json::to_value(TrafficPolicySpec::built_in()).unwrap();
    let mut said = BTreeSet::new();
    keys(&built_in, "", &mut said);
    for field in kind("TrafficPolicy").fields {
        let found = built_in.pointer(&format!("/{}", field.path.replace('.', "/")));
        let text = match found {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Number(number)) => number.as_f64().unwrap().to_string(),
            Some(other) => other.to_string(),
            None => continue,
        };
        assert_eq!(text, field.default, "{}", field.path);
        assert!(field.range.contains(found.unwrap()), "{}", field.path);
        said.remove(field.path);
    }
    assert_eq!(said, BTreeSet::new(), "defaults that no field has");
}
