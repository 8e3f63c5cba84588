//! `outrigger apply`: everything is read and checked here first, then sent as one transaction.

use std::io::Read;
use std::path::{Path, PathBuf};

use outrigger_api::document::parse_yaml;
use outrigger_api::resource::Resource;
use outrigger_api::v1;
use outrigger_api::v1::applied::Outcome;
use serde_json::json;

use crate::admin::Admin;
use crate::args::{ApplyArgs, Output};
use crate::failure::Failure;
use crate::output;

/// Reads every resource of every file named. Nothing is sent when one of them is wrong.
pub(super) fn read(args: &ApplyArgs) -> Result<Vec<Resource>, Failure> {
    let mut resources = Vec::new();
    for path in &args.files {
        for (name, text) in texts(path)? {
            resources.extend(parse_yaml(&name, &text).map_err(Failure::usage)?);
        }
    }
    if resources.is_empty() {
        return Err(Failure::usage("no resource in what was given"));
    }
    Ok(resources)
}

/// The texts of `-`, of a file, or of the YAML files of a directory in the order of their names.
fn texts(path: &Path) -> Result<Vec<(PathBuf, String)>, Failure> {
    let unreadable = |path: &Path, error: std::io::Error| {
        Failure::usage(format!("cannot read {}: {error}", path.display()))
    };
    if path == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .map_err(|error| unreadable(Path::new("standard input"), error))?;
        return Ok(vec![(PathBuf::from("stdin"), text)]);
    }
    let mut files = vec![path.to_owned()];
    if path.is_dir() {
        files = std::fs::read_dir(path)
            .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, _>>())
            .map_err(|error| unreadable(path, error))?;
        files.retain(|file| {
            file.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
        });
        files.sort();
        if files.is_empty() {
            return Err(Failure::usage(format!("{} holds no *.yaml or *.yml file", path.display())));
        }
    }
    let read = |file: PathBuf| {
        let text = std::fs::read_to_string(&file).map_err(|error| unreadable(&file, error))?;
        Ok((file, text))
    };
    files.into_iter().map(read).collect()
}

pub(super) async fn run(args: &ApplyArgs, resources: Vec<Resource>) -> Result<(), Failure> {
    let admin = Admin::new(&args.connection.registry, &args.connection.identity)?;
    let resources = resources.iter().map(|resource| v1::Resource {
        kind: resource.kind().to_owned(),
        namespace: resource.namespace().to_owned(),
        name: resource.name().to_owned(),
        json: resource.to_json(),
        revision: 0,
    });
    let request =
        v1::ApplyRequest { resources: resources.collect(), delete: args.delete, dry_run: args.dry_run };
    let results = admin.apply(request).await?;
    match args.output {
        Output::Text => {
            let suffix = if args.dry_run { " (dry run: nothing was changed)" } else { "" };
            for result in &results {
                output::print_line(&format!("{} {}{suffix}", place(result), word(result)))?;
                if !result.warning.is_empty() {
                    output::say(&format!("outrigger: warning: {}: {}", place(result), result.warning));
                }
            }
        }
        Output::Json => {
            let results: Vec<_> = results
                .iter()
                .map(|result| {
                    json!({"kind": result.kind, "namespace": result.namespace, "name": result.name, "outcome": word(result), "warning": result.warning})
                })
                .collect();
            output::print_json(&json!({"dry_run": args.dry_run, "results": results}))?;
        }
    }
    Ok(())
}

/// `service/orders.shop`.
fn place(result: &v1::Applied) -> String {
    let kind = result.kind.to_ascii_lowercase();
    match result.namespace.as_str() {
        "" => format!("{kind}/{}", result.name),
        namespace => format!("{kind}/{}.{namespace}", result.name),
    }
}

fn word(result: &v1::Applied) -> &'static str {
    match result.outcome() {
        Outcome::Created => "created",
        Outcome::Configured => "configured",
        Outcome::Unchanged => "unchanged",
        Outcome::Deleted => "deleted",
        Outcome::Unspecified => "done",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_named_like_the_thing_they_are_about() {
        let applied = |kind: &str, namespace: &str, name: &str| v1::Applied {
            kind: kind.into(),
            namespace: namespace.into(),
            name: name.into(),
            outcome: Outcome::Created.into(),
            warning: String::new(),
        };
        assert_eq!(place(&applied("Service", "shop", "orders")), "service/orders.shop");
        assert_eq!(place(&applied("MeshConfig", "", "default")), "meshconfig/default");
        assert_eq!(word(&applied("Service", "shop", "orders")), "created");
    }

    #[test]
    fn a_directory_gives_its_yaml_files_in_order() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", "c.txt"] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let found: Vec<_> = texts(directory.path()).unwrap().into_iter().map(|(_, text)| text).collect();
        assert_eq!(found, ["a.yml", "b.yaml"]);
        assert!(texts(&directory.path().join("none")).is_err());
    }
}
