//! The documentation against the code: configuration keys, environment variables, metric names,
//! links, examples. Nothing is started; files are read.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use outrigger_api::document::parse_yaml;
use outrigger_api::resource::fields::TRAFFIC_POLICY;
use outrigger_api::resource::policy::TrafficPolicySpec;
use outrigger_common::config::{Key, Origin};
use outrigger_proxy::reason::Reason;
use serde_json::Value;

/// Variables the OTLP library reads; the others are read by code of ours.
const READ_BY_THE_LIBRARY: [&str; 3] =
    ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_RESOURCE_ATTRIBUTES"];
/// Variables of commands and of tests, which are no keys.
const NO_KEYS: [&str; 2] = ["OUTRIGGER_REGISTRY", "OUTRIGGER_IDENTITY"];
const OF_TESTS: &str = "OUTRIGGER_TEST_";
/// A README that is not read to its end helps nobody.
const README_LINES: usize = 120;

const COMPONENTS: [(&str, &[Key]); 3] = [
    ("Sidecar", outrigger_proxy::config::KEYS),
    ("Registry", outrigger_registry::config::KEYS),
    ("Order service", order_service::config::KEYS),
];

#[test]
fn configuration_lists_every_key_with_unit_default_and_range_and_no_other() {
    let text = read("docs/configuration.md");
    for (heading, keys) in COMPONENTS {
        let section = section(&text, heading);
        let mut documented: BTreeMap<_, _> = rows(section)
            .filter(|cells| cells.len() == 5 && cells[0].starts_with('`'))
            .map(|cells| (plain(cells[0]), [cells[1].to_owned(), plain(cells[2]), cells[3].to_owned()]))
            .collect();
        for key in keys {
            let told = documented.remove(key.path);
            let told = told.unwrap_or_else(|| panic!("{heading}: {} is not documented", key.path));
            assert_eq!(
                told,
                [key.unit, key.default, key.range].map(str::to_owned),
                "{heading}: {}",
                key.path
            );
        }
        assert_eq!(documented, BTreeMap::new(), "{heading}: keys that do not exist");
    }
}

#[test]
fn environment_variables_named_anywhere_exist_and_those_read_are_documented() {
    let mut read_by_us = BTreeSet::new();
    for file in files("proxy/src", "rs") {
        read_by_us.extend(words(&read_path(&file), "OTEL_"));
    }
    let documented = words(&read("docs/configuration.md"), "OTEL_");
    let missing: Vec<_> =
        read_by_us.iter().filter(|name| !name.ends_with('_') && !documented.contains(*name)).collect();
    assert!(missing.is_empty(), "read by the sidecar and not in docs/configuration.md: {missing:?}");

    let keys: BTreeSet<_> = COMPONENTS.iter().flat_map(|(_, keys)| keys.iter().map(Key::env)).collect();
    for document in documents() {
        let (text, place) = (read_path(&document), document.display());
        for name in words(&text, "OTEL_").iter().filter(|name| !name.ends_with('_')) {
            let exists = read_by_us.contains(name) || READ_BY_THE_LIBRARY.contains(&name.as_str());
            assert!(exists, "{place}: nothing reads {name}");
        }
        for name in words(&text, "OUTRIGGER_").iter().filter(|name| !name.ends_with('_')) {
            let exists =
                keys.contains(name) || NO_KEYS.contains(&name.as_str()) || name.starts_with(OF_TESTS);
            assert!(exists, "{place}: {name} sets no key");
        }
    }
}

#[test]
fn metrics_named_anywhere_are_in_the_list_of_metrics() {
    let listed: BTreeSet<String> = rows(&read("docs/metrics.md"))
        .filter_map(|cells| cells.first().map(|cell| words(cell, "mesh_")))
        .flatten()
        .collect();
    assert!(listed.len() > 20, "docs/metrics.md lists {} families", listed.len());
    let exists = |name: &str| {
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|part| name.strip_suffix(part));
        listed.contains(name)
            || family.is_some_and(|family| listed.contains(family))
            // `mesh_registry_*`: a family of families.
            || (name.ends_with('_') && listed.iter().any(|family| family.starts_with(name)))
    };
    for document in documents() {
        for name in words(&read_path(&document), "mesh_") {
            assert!(exists(&name), "{}: docs/metrics.md has no {name}", document.display());
        }
    }
}

#[test]
fn links_to_files_and_headings_lead_somewhere() {
    let mut checked = 0;
    for document in documents() {
        for target in links(&read_path(&document)) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            let (file, heading) = target.split_once('#').unwrap_or((&target, ""));
            let path = match file {
                "" => document.clone(),
                file => document.parent().unwrap().join(file),
            };
            assert!(path.exists(), "{}: {target} leads nowhere", document.display());
            if !heading.is_empty() {
                let anchors = anchors(&read_path(&path));
                assert!(anchors.contains(heading), "{}: {target}: no such heading", document.display());
            }
            checked += 1;
        }
    }
    assert!(checked > 20, "only {checked} links were found");
}

#[test]
fn examples_of_the_configuration_are_accepted() {
    let text = read("docs/configuration.md");
    let sidecar = fenced(section(&text, "Sidecar"), "yaml");
    assert!(!sidecar.is_empty());
    for example in sidecar {
        let (file, token) =
            ("token_file: /run/secrets/outrigger-token", "token: outrigger-join.id.secret.pin");
        assert!(example.contains(file), "{example}");
        let keys = outrigger_proxy::config::KEYS;
        let origin = Origin::new(Some("example.yaml".into()), example.replace(file, token), Vec::new(), keys);
        outrigger_proxy::config::Config::load(&origin).unwrap();
    }
    for example in fenced(section(&text, "Resources"), "yaml") {
        assert_eq!(parse_yaml(Path::new("example.yaml"), &example).unwrap().len(), 2);
    }
}

#[test]
fn the_readme_is_short_and_knows_the_toolchain_and_every_part() {
    let (readme, manifest) = (read("README.md"), read("Cargo.toml"));
    assert!(readme.lines().count() <= README_LINES, "README.md has {} lines", readme.lines().count());
    let version = quoted(&manifest, "rust-version = ");
    assert!(readme.contains(&version), "README.md does not name Rust {version}");
    let members = manifest.lines().find_map(|line| line.strip_prefix("members = ")).unwrap();
    let tree = fenced(&readme, "text").concat();
    for member in members.split('"').skip(1).step_by(2) {
        assert!(
            tree.lines().any(|line| line.starts_with(&format!("{member}/"))),
            "README.md's map lacks {member}/"
        );
    }
    for line in tree.lines().filter(|line| line.contains("/ ")) {
        let place = line.split_whitespace().next().unwrap();
        assert!(root().join(place).exists(), "README.md's map has {place}, which does not exist");
    }
    let reasons = format!("[{} reasons]", Reason::ALL.len());
    assert!(readme.contains(&reasons), "README.md does not speak of {reasons}");
}

#[test]
fn resilience_has_every_setting_of_a_policy_with_the_default_in_force() {
    let text = read("docs/resilience.md");
    let (mut of_policies, mut of_processes) = (BTreeMap::new(), Vec::new());
    for cells in rows(&text).filter(|cells| cells.len() == 3 && cells[0].ends_with('`')) {
        let (owner, key) = cells[0].trim_end_matches('`').split_once('`').unwrap();
        let told = (key.to_owned(), plain(cells[1]));
        match owner.trim() {
            "" => assert_eq!(of_policies.insert(told.0, told.1), None, "{key} twice"),
            owner @ ("sidecar" | "registry") => of_processes.push((owner.to_owned(), told)),
            // A sentence of another table.
            _ => {}
        }
    }
    let fields = TRAFFIC_POLICY.iter().filter(|field| field.path != "targetRefs[]");
    let expected: BTreeMap<_, _> =
        fields.map(|field| (field.path.to_owned(), field.default.to_owned())).collect();
    assert_eq!(of_policies, expected);
    assert!(of_processes.len() > 10, "{of_processes:?}");
    for (owner, (key, default)) in of_processes {
        let (_, keys) = COMPONENTS.iter().find(|(name, _)| name.to_lowercase() == owner).unwrap();
        let found = keys.iter().find(|one| one.path == key);
        assert_eq!(found.map(|key| key.default), Some(&*default), "{owner} {key}");
    }

    let built_in = serde_json::to_value(TrafficPolicySpec::built_in()).unwrap();
    let mut checked = 0;
    leaves(&built_in, "", &mut |key, value| {
        assert_eq!(of_policies.get(key), Some(&value), "{key}");
        checked += 1;
    });
    assert!(checked > 20, "only {checked} defaults are built in");
}

#[test]
fn every_mechanism_of_resilience_has_its_source_and_is_seen_in_what_exists() {
    let (text, metrics) = (read("docs/resilience.md"), read("docs/metrics.md"));
    let listed: Vec<_> = rows(&metrics).filter(|cells| cells[0].starts_with("`mesh_")).collect();
    let overview: BTreeSet<_> = links(text.split("\n## ").next().unwrap()).into_iter().collect();
    for part in text.split("\n## ").skip(1) {
        let (title, body) = part.split_once('\n').unwrap();
        let anchor = anchors(&format!("# {title}")).into_iter().next().unwrap();
        assert!(overview.contains(&format!("#{anchor}")), "{title} is not in the overview");
        for word in ["Source", "Avoids"] {
            assert!(body.contains(&format!("\n**{word}.** ")), "{title}: no {word}");
        }
        let (_, seen) = body.split_once("\n**Seen in.** ").unwrap_or(("", ""));
        let seen = seen.split("\n\n").next().unwrap();
        let mut names = 0;
        // Paths and what people read in pages are neither metrics nor reasons.
        for name in seen.split('`').skip(1).step_by(2).filter(|name| !name.contains(['/', ' '])) {
            names += 1;
            if name.starts_with("mesh_") {
                let (family, label) = name.split_once('{').unwrap_or((name, ""));
                let row = listed.iter().find(|cells| plain(cells[0]) == family);
                let row = row.unwrap_or_else(|| panic!("{title}: no metric {family}"));
                assert!(label.is_empty() || has_label(row, label), "{title}: {name}");
            } else {
                assert!(Reason::parse(name.as_bytes()).is_some(), "{title}: no reason {name}");
            }
        }
        assert!(names > 0 || seen.contains('`'), "{title} is seen in nothing");
    }
    for reason in Reason::ALL.into_iter().filter(|reason| reason.is_shed()) {
        assert!(text.contains(reason.as_str()), "{} is not explained", reason.as_str());
    }
}

/// Numbers that are no settings.
#[test]
fn resilience_says_the_constants_of_the_code() {
    use outrigger_proxy::policy::{budget, inherited, rate};
    use outrigger_proxy::pool::{connector::Reuse, drive};
    use outrigger_proxy::{balance, http::stalled, outbound::mirror};

    let text = read("docs/resilience.md");
    let seconds = |time: std::time::Duration| format!("{} s", time.as_secs_f64());
    for (heading, said) in [
        ("Timeouts and deadlines", format!("at most twice {} later", seconds(stalled::PERIOD))),
        ("Deadlines through applications", format!("At most {} requests", inherited::CAPACITY)),
        ("Retries", format!("idle for more than {}", seconds(Reuse::FRESH))),
        ("Retry budget", format!("the last {}", seconds(budget::WINDOW))),
        ("Load balancing", format!("counts as {} at least", seconds(balance::FAILURE_COST))),
        ("Rate limits", format!("{} callers", rate::CALLERS)),
        ("Mirroring", format!("{} are under way", mirror::COPIES)),
        ("Dead peers", format!("silent for {}", seconds(drive::PING_AFTER))),
    ] {
        let section = section(&text, heading).replace('\n', " ");
        assert!(section.contains(&said), "{heading} does not say {said:?}");
    }
}

/// Calls `with` for every setting of a policy, as people write it.
fn leaves(value: &Value, path: &str, with: &mut impl FnMut(&str, String)) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                leaves(value, &path, with);
            }
        }
        Value::Array(items) => {
            assert!(items.is_empty(), "{path}: a default that is no single value");
            with(&format!("{path}[]"), "-".to_owned());
        }
        Value::String(text) => with(path, text.clone()),
        Value::Number(number) => with(path, number.as_f64().unwrap().to_string()),
        other => with(path, other.to_string()),
    }
}

/// Whether the row of a metric has a label, as in `reason="reset"}`, with that value.
fn has_label(row: &[&str], label: &str) -> bool {
    let (name, value) = label.trim_end_matches('}').split_once('=').unwrap();
    let value = value.trim_matches('"');
    if name == "direction" {
        return ["inbound", "outbound"].contains(&value);
    }
    let word = |c: char| !c.is_ascii_alphanumeric() && c != '_';
    row[2].contains(&format!("`{name}`")) && row[2].split(word).any(|one| one == value)
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &str) -> String {
    read_path(&root().join(path))
}

fn read_path(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// What people read.
fn documents() -> Vec<PathBuf> {
    let mut found = files("docs", "md");
    found.extend(["README.md", "CHANGELOG.md", "CONTRIBUTING.md"].map(|name| root().join(name)));
    found
}

fn files(directory: &str, extension: &str) -> Vec<PathBuf> {
    let (mut found, mut waiting) = (Vec::new(), vec![root().join(directory)]);
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(&directory).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                waiting.push(path);
            } else if path.extension().is_some_and(|found| found == extension) {
                found.push(path);
            }
        }
    }
    found
}

/// The lines under a heading of the second level.
fn section<'a>(text: &'a str, heading: &str) -> &'a str {
    let start = format!("\n## {heading}\n");
    let (_, rest) = text.split_once(&start).unwrap_or_else(|| panic!("no section {heading}"));
    rest.split("\n## ").next().unwrap()
}

/// The cells of every row of every table.
fn rows(text: &str) -> impl Iterator<Item = Vec<&str>> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix('|')?.strip_suffix('|'))
        .map(|row| row.split('|').map(str::trim).collect())
}

/// A cell without its code marks.
fn plain(cell: &str) -> String {
    cell.trim_matches('`').to_owned()
}

/// Every word that starts with `prefix`, of letters, digits and `_` in one case.
fn words(text: &str, prefix: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    text.match_indices(prefix)
        .filter(|(at, _)| !text[..*at].ends_with(part))
        .map(|(at, _)| text[at..].split(|c| !part(c)).next().unwrap_or_default().to_owned())
        .collect()
}

/// Text between fences that open with `language`.
fn fenced(text: &str, language: &str) -> Vec<String> {
    let (mut blocks, mut open): (Vec<String>, Option<Vec<&str>>) = (Vec::new(), None);
    for line in text.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (None, Some(found)) if found == language => open = Some(Vec::new()),
            (Some(lines), None) => lines.push(line),
            (Some(lines), Some(_)) => {
                blocks.push(lines.join("\n") + "\n");
                open = None;
            }
            (None, _) => {}
        }
    }
    blocks
}

/// Lines outside fences: what is inside is no Markdown.
fn unfenced(text: &str) -> impl Iterator<Item = &str> {
    let mut inside = false;
    text.lines().filter(move |line| {
        let fence = line.starts_with("```");
        inside ^= fence;
        !inside && !fence
    })
}

/// Targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    unfenced(text)
        .flat_map(|line| line.split("](").skip(1).filter_map(|rest| rest.split(')').next()))
        .map(str::to_owned)
        .collect()
}

/// The anchors that headings get when pages are rendered.
fn anchors(text: &str) -> BTreeSet<String> {
    unfenced(text)
        .filter(|line| line.starts_with('#'))
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

/// What stands in quotes after `start` on a line of its own.
fn quoted(text: &str, start: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix(start)).unwrap();
    value.trim_matches('"').to_owned()
}
