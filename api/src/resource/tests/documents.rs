//! Example files and the reference, against the code.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::resource::fields::{Field, KINDS, Range, TRAFFIC_POLICY};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_example_has_every_kind_and_every_section() {
    let path = root().join("config/mesh.yaml");
    let resources = parse_yaml(&path, &read(&path)).unwrap();
    let kinds: BTreeSet<_> = resources.iter().map(Resource::kind).collect();
    assert_eq!(kinds, KINDS.iter().map(|kind| kind.name).collect());
    let found = resources.iter().find(|resource| resource.kind() == "TrafficPolicy").unwrap();
    let json: serde_json::Value = serde_json::from_str(&found.to_json()).unwrap();
    for field in TRAFFIC_POLICY {
        let section = field.path.split(['.', '[']).next().unwrap();
        assert!(json["spec"].get(section).is_some(), "config/mesh.yaml lacks {section}");
    }
}

#[test]
fn every_example_of_a_policy_is_explained_and_accepted() {
    let mut count = 0;
    for entry in fs::read_dir(root().join("config/policies")).unwrap() {
        let path = entry.unwrap().path();
        let text = read(&path);
        assert!(text.starts_with("# "), "{}: says nothing about itself", path.display());
        let resources = parse_yaml(&path, &text).unwrap_or_else(|error| panic!("{error}"));
        assert!(!resources.is_empty(), "{}", path.display());
        for resource in resources {
            assert_eq!(Resource::from_json(&resource.to_json()).unwrap(), resource, "{}", path.display());
        }
        count += 1;
    }
    assert!(count >= 17, "{count} examples");
}

/// A row of the reference.
fn row(field: &Field) -> String {
    let Field { path, range, default, doc } = field;
    let range = match range {
        Range::Table(name, _) | Range::List(name, _) => format!("[{name}](#{})", anchor(name)),
        other => other.to_string(),
    };
    let default = if *default == "-" { "-".to_owned() } else { format!("`{default}`") };
    format!("| `{path}` | {} | {range} | {default} | {doc} |", field.range.unit())
}

fn anchor(heading: &str) -> String {
    heading.to_lowercase().replace(' ', "-")
}

/// Tables below the kinds', each once, by name.
fn tables<'a>(fields: &'a [Field], found: &mut Vec<(&'a str, &'a [Field])>) {
    for field in fields {
        if let Range::Table(name, inner) | Range::List(name, inner) = field.range
            && !found.iter().any(|(known, _)| *known == name)
        {
            found.push((name, inner));
            tables(inner, found);
        }
    }
}

#[test]
fn the_reference_has_every_field_as_the_code_has_it_and_no_other() {
    let path = root().join("docs/resources.md");
    let text = read(&path);
    let mut sections: Vec<_> = KINDS.iter().map(|kind| (kind.name, kind.fields)).collect();
    for kind in KINDS {
        tables(kind.fields, &mut sections);
    }
    let mut listed = 0;
    for (name, fields) in sections {
        let start = format!("\n## {name}\n");
        let (_, section) = text.split_once(&start).unwrap_or_else(|| panic!("no section {name}"));
        let section = section.split("\n## ").next().unwrap();
        let found: Vec<_> = section.lines().filter(|line| line.starts_with("| `")).collect();
        let wanted: Vec<_> = fields.iter().map(row).collect();
        assert_eq!(found, wanted, "{name}: the rows should be\n{}\n", wanted.join("\n"));
        listed += wanted.len();
    }
    let rows = text.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, listed, "rows that belong to no kind");
}
