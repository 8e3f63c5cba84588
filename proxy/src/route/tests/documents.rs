//! The examples of `docs/routing.md`: each is applied, and the requests below it go where it says.

use std::collections::BTreeSet;

use fastrand::Rng;
use http::request::Parts;

use super::super::matcher::{Found, Table};
use super::super::rule::{Action, Rule};
use super::{call, find, parse, request, table_for};

const DOCUMENT: &str = include_str!("../../../../docs/routing.md");
const PORT: u16 = 80;

#[test]
fn documented_examples_do_what_they_say() {
    let (mut example, mut checked, mut unused) = (None, 0, 0);
    for block in DOCUMENT.split("\n```").skip(1).step_by(2) {
        let (language, text) = block.split_once('\n').unwrap();
        match language {
            "yaml" => {
                example = Some(parse(text));
                unused += 1;
            }
            "text" => {
                let resources = example.as_ref().expect("an example first");
                for line in text.lines() {
                    check(line, resources);
                    checked += 1;
                }
                unused = 0;
            }
            other => panic!("a block of {other:?}"),
        }
        assert!(unused <= 1, "an example without requests");
    }
    assert!(checked > 30, "{checked}");
}

/// A line such as `from web: GET /path [name: value] -> outcome`.
fn check(line: &str, resources: &[outrigger_api::resource::Resource]) {
    let (what, wanted) = line.split_once("->").unwrap_or_else(|| panic!("{line}"));
    let (caller, what) = match what.strip_prefix("from ") {
        Some(rest) => rest.split_once(": ").unwrap(),
        None => ("shop", what),
    };
    let (line_of, headers) = match what.trim().split_once(" [") {
        Some((line, header)) => (line, vec![header.trim_end_matches(']')]),
        None => (what.trim(), Vec::new()),
    };
    let parts = match line_of.strip_prefix("gRPC ") {
        Some(path) => call(path, &headers),
        None => request(line_of, &headers),
    };
    let grpc = line_of.starts_with("gRPC");
    let outcomes = outcomes(&table_for(resources, caller, PORT), &parts, grpc);
    assert_eq!(outcomes.into_iter().collect::<Vec<_>>().join(" or "), wanted.trim(), "{line}");
}

/// All that may become of a request.
fn outcomes(table: &Table, parts: &Parts, grpc: bool) -> BTreeSet<String> {
    let rule = match find(table, parts) {
        Found::Default => return BTreeSet::from(["default".to_owned()]),
        Found::NotFound => return BTreeSet::from([if grpc { "UNIMPLEMENTED" } else { "404" }.to_owned()]),
        Found::Rule(rule) => rule,
    };
    (0..200).map(|seed| outcome(rule, parts.clone(), grpc, seed)).collect()
}

fn outcome(rule: &Rule, mut parts: Parts, grpc: bool, seed: u64) -> String {
    match rule.action(&mut Rng::with_seed(seed)) {
        Action::NoBackend => if grpc { "UNAVAILABLE" } else { "500" }.to_owned(),
        Action::Redirect(redirect) => {
            let location = redirect.location(&parts, PORT);
            format!("{} {}", redirect.status().as_u16(), location.to_str().unwrap())
        }
        Action::Forward => {
            rule.filters.edit_request(&mut parts).unwrap();
            format!("orders:{PORT}{}", parts.uri.path_and_query().unwrap())
        }
        Action::Backend(backend) => {
            rule.filters.edit_request(&mut parts).unwrap();
            backend.filters.edit_request(&mut parts).unwrap();
            format!("{}:{}{}", backend.service.name(), backend.port, parts.uri.path_and_query().unwrap())
        }
    }
}
