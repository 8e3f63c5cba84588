//! `/metrics` pages and the files that read them, by Prometheus' own tools and by the catalogue.

use std::collections::BTreeSet;
use std::path::Path;

use http::Method;
use outrigger_tests::app::App;
use outrigger_tests::client::request;
use outrigger_tests::mesh::Mesh;
use outrigger_tests::wait::until;

use crate::prometheus::{PROMTOOL, shipped};
use outrigger_tests::component::run;

const CATALOGUE: &str = include_str!("../../../docs/metrics.md");

#[test]
fn shipped_configuration_and_rules_are_valid_and_alerts_fire_when_they_should() {
    let directory = shipped();
    run(PROMTOOL, &["check", "config", "prometheus.yml"], &directory, "");
    // --lint-fatal: a rule shadowed or repeated is an error.
    run(PROMTOOL, &["check", "rules", "--lint-fatal", "rules.yml"], &directory, "");
    run(PROMTOOL, &["test", "rules", "rules_test.yml"], &directory, "");
}

#[test]
fn every_alert_has_a_test_and_says_what_to_do() {
    let read = |file: &str| std::fs::read_to_string(shipped().join(file)).unwrap();
    let (rules, tests) = (read("rules.yml"), read("rules_test.yml"));
    let alerts: Vec<_> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(!alerts.is_empty());
    for alert in &alerts {
        let name = format!("alertname: {alert}\n");
        let cases: Vec<_> = tests.match_indices(&name).map(|(at, _)| &tests[at..]).collect();
        let fires = |case: &&str| case.lines().nth(2).is_some_and(|line| line.trim() == "exp_alerts:");
        assert!(cases.iter().any(fires), "{alert} is never expected to fire");
        assert!(!cases.iter().all(fires), "{alert} is always expected");
    }
    for what in ["summary:", "description:", "severity:"] {
        assert_eq!(rules.matches(what).count(), alerts.len(), "{what}");
    }
}

#[tokio::test]
async fn pages_pass_promtools_lint_and_the_registrys_families_are_the_catalogues() {
    let mesh = Mesh::start().await;
    let app = App::start("orders").await;
    let back = mesh.replica("orders-1", "orders", &app).await;
    let front = mesh.caller("front", &["orders.shop"]).await;
    let traceparent = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    let answer =
        front.client().send(request(Method::POST, "orders.shop", "/", &[traceparent], "body")).await.unwrap();
    assert_eq!(answer.status, 200);
    front.client().get("nowhere.shop", "/").await.unwrap();
    until("spans have arrived", || async {
        mesh.metrics().await.sum("mesh_registry_spans_received_total", &[]) == 2.0
    })
    .await;
    for (name, page) in [
        ("the client's sidecar", front.metrics().await),
        ("the server's sidecar", back.metrics().await),
        ("the registry", mesh.metrics().await),
    ] {
        let said = run(PROMTOOL, &["check", "metrics"], Path::new("."), page.text());
        assert_eq!(said, "", "{name}");
    }
    let section =
        CATALOGUE.split("\n## ").find(|section| section.starts_with("Registry")).expect("a section");
    let page = mesh.metrics().await;
    let exported: BTreeSet<_> = page.text().lines().filter_map(|line| family(line)).collect();
    assert_eq!(documented(section), exported, "docs/metrics.md, section Registry");
}

/// The family a line `# TYPE <name> <type>` is about.
fn family(line: &str) -> Option<&str> {
    line.strip_prefix("# TYPE ")?.split(' ').next()
}

/// Families in the first columns of tables.
fn documented(text: &str) -> BTreeSet<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
        .filter(|name| name.starts_with("mesh_"))
        .collect()
}

#[test]
fn rules_and_dashboard_ask_for_families_that_exist() {
    let documented = documented(CATALOGUE);
    let rules = std::fs::read_to_string(shipped().join("rules.yml")).unwrap();
    let dashboard = std::fs::read_to_string(shipped().join("../grafana/outrigger.json")).unwrap();
    for (file, text) in [("rules.yml", rules), ("outrigger.json", dashboard)] {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
        let names: BTreeSet<_> = words.filter(|word| word.starts_with("mesh_")).collect();
        assert!(names.len() > 3, "{file}: {names:?}");
        for name in names {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(
                documented.contains(family.unwrap_or(name)),
                "{file} asks for {name}, which is not in docs/metrics.md"
            );
        }
    }
}
