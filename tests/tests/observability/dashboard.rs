//! The dashboard we ship: every query finds data in a Prometheus that scrapes the demo.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use crate::demo::Demo;
use crate::prometheus::{Prometheus, Sample};

/// Longest wait for the last query to find something: the demo breaks things in rounds of 10 s.
const LIMIT: Duration = Duration::from_secs(90);
/// What Grafana puts for `$__rate_interval` is four scrapes or more.
const RATE_INTERVAL: &str = "15s";

fn dashboard() -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/grafana/outrigger.json");
    serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Panels, those inside collapsed rows too.
fn panels(dashboard: &Value) -> Vec<&Value> {
    list(dashboard, "panels")
        .iter()
        .flat_map(|panel| [vec![panel], list(panel, "panels").iter().collect()].concat())
        .collect()
}

/// The query of a panel, and where it is.
#[derive(Debug, Clone)]
struct Query {
    place: String,
    expression: String,
    /// The variable the panel is repeated for.
    repeat: Option<String>,
}

fn queries(dashboard: &Value) -> Vec<Query> {
    let of = |panel: &Value| -> Vec<_> {
        list(panel, "targets")
            .iter()
            .map(|target| Query {
                place: format!("{} {}", text(panel, "title"), text(target, "refId")),
                expression: text(target, "expr").to_owned(),
                repeat: panel["repeat"].as_str().map(str::to_owned),
            })
            .collect()
    };
    panels(dashboard).into_iter().flat_map(of).collect()
}

/// Values of the variables, as Grafana finds them with everything selected.
type Variables = BTreeMap<String, Vec<String>>;

/// As Grafana writes a variable into PromQL: one value plain, several as alternatives, both escaped
/// for a regular expression within a string.
fn substitute(expression: &str, variables: &Variables) -> String {
    let escaped = |value: &String| value.replace('.', r"\\.");
    let mut result = expression.replace("$__rate_interval", RATE_INTERVAL);
    for (name, values) in variables {
        let values: Vec<_> = values.iter().map(escaped).collect();
        let text = if values.len() == 1 { values[0].clone() } else { format!("({})", values.join("|")) };
        result = result.replace(&format!("${name}"), &text);
    }
    assert!(!result.contains('$'), "a variable nobody defines: {result}");
    result
}

/// Asks `label_values(selector, label)` as Grafana does; its regular expression keeps the first group.
async fn label_values(prometheus: &Prometheus, query: &str, regex: &str) -> Result<Vec<String>, String> {
    let inner = query.strip_prefix("label_values(").and_then(|query| query.strip_suffix(')'));
    let (selector, label) =
        inner.and_then(|inner| inner.rsplit_once(", ")).expect("label_values(selector, label)");
    // Prometheus anchors regular expressions, Grafana does not.
    let regex = match regex.trim_matches('/') {
        "" => "(.+)".to_owned(),
        regex => format!(".*{}", regex.strip_suffix('$').expect("one that ends at the end")),
    };
    let expression =
        format!(r#"group by (value) (label_replace({selector}, "value", "$1", "{label}", "{regex}"))"#);
    let mut values: Vec<_> = prometheus
        .query(&expression)
        .await?
        .iter()
        .filter_map(|sample| sample.labels["value"].as_str().map(str::to_owned))
        .collect();
    values.sort();
    Ok(values)
}

/// Every variable of the dashboard, in its order.
async fn variables(dashboard: &Value, prometheus: &Prometheus) -> Result<Variables, String> {
    let mut found = Variables::new();
    for variable in list(&dashboard["templating"], "list") {
        if text(variable, "type") != "query" {
            continue;
        }
        let query = substitute(text(&variable["query"], "query"), &found);
        let values = label_values(prometheus, &query, text(variable, "regex")).await?;
        if values.is_empty() {
            return Err(format!("${} has no value: {query}", text(variable, "name")));
        }
        found.insert(text(variable, "name").to_owned(), values);
    }
    Ok(found)
}

/// The query with what is selected; a repeated panel with the value of its variable that has traffic.
fn ready(query: &Query, variables: &Variables) -> String {
    let mut variables = variables.clone();
    if let Some(repeat) = &query.repeat {
        variables
            .get_mut(repeat)
            .expect("panels are repeated for a variable")
            .retain(|value| value == "orders.shop");
    }
    substitute(&query.expression, &variables)
}

#[test]
fn the_dashboard_is_bound_to_no_data_source_and_explains_itself() {
    let dashboard = dashboard();
    let variables = list(&dashboard["templating"], "list");
    assert_eq!((text(&variables[0], "name"), text(&variables[0], "type")), ("datasource", "datasource"));
    for variable in &variables[1..] {
        assert_eq!(variable["datasource"]["uid"], "${datasource}", "{variable}");
        assert_eq!(variable["includeAll"], true, "{variable}");
        assert_eq!(variable["definition"], variable["query"]["query"]);
    }
    let mut ids = Vec::new();
    let mut taken = Vec::new();
    for panel in panels(&dashboard) {
        ids.push(panel["id"].as_u64().unwrap());
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
        assert!(x + w <= 24, "{panel}");
        let apart = |&(x2, y2, w2, h2): &(u64, u64, u64, u64)| {
            x + w <= x2 || x2 + w2 <= x || y + h <= y2 || y2 + h2 <= y
        };
        assert!(taken.iter().all(apart), "{} lies over another", text(panel, "title"));
        taken.push((x, y, w, h));
        if text(panel, "type") == "row" {
            continue;
        }
        assert!(!list(panel, "targets").is_empty() && !text(panel, "title").is_empty(), "{panel}");
        for target in list(panel, "targets") {
            assert_eq!(target["datasource"]["uid"], "${datasource}", "{target}");
        }
        let stacked = panel["fieldConfig"]["defaults"]["custom"]["stacking"]["mode"] == "normal";
        let quantile = list(panel, "targets").iter().any(|target| text(target, "expr").contains("quantile"));
        assert!(!(stacked && quantile), "quantiles do not add up: {panel}");
    }
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), count, "ids are unique");
}

#[tokio::test]
async fn every_query_and_rule_finds_data_in_the_demo() {
    // Chaos: what counts failures has nothing to say of a mesh that has none.
    let mut demo = Demo::start(&["--rate", "100", "--chaos"]).await;
    let prometheus = Prometheus::start(&demo.sidecars, demo.registry).await;
    prometheus.scrapes(demo.sidecars.len() + 1).await;
    let answer = demo.storefront.get("nowhere.shop", "/").await.unwrap();
    assert_eq!(answer.reason(), "unknown_service");

    let dashboard = dashboard();
    let all = queries(&dashboard);
    let deadline = Instant::now() + LIMIT;
    let mut missing: Vec<(Query, String)> = all.iter().map(|query| (query.clone(), String::new())).collect();
    let mut values = Variables::new();
    while !missing.is_empty() {
        assert!(
            Instant::now() < deadline,
            "no data within {LIMIT:?} for {missing:#?}; variables: {values:?}"
        );
        if let Some(status) = demo.process.ended() {
            panic!("the demo ended ({status}): {}", demo.process.log());
        }
        match variables(&dashboard, &prometheus).await {
            Ok(found) => values = found,
            Err(error) => {
                println!("{error}");
                tokio::time::sleep(Duration::from_millis(500)).await;
                continue;
            }
        }
        let mut still = Vec::new();
        for (query, _) in missing {
            let expression = ready(&query, &values);
            let found = prometheus
                .query(&expression)
                .await
                .unwrap_or_else(|error| panic!("{}: {error}", query.place));
            if !found.iter().any(|sample| sample.value.is_finite()) {
                still.push((query, format!("{expression} gives {found:?}")));
            }
        }
        missing = still;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(values["namespace"], ["shop"]);
    assert_eq!(values["source"], ["storefront.shop"]);
    assert_eq!(values["destination"], ["orders.shop", "unknown"]);

    figures_make_sense(&prometheus, &all, &values).await;
    rules_are_evaluated(&prometheus, deadline).await;
}

/// Beyond being there: figures of the edge under load are those of a load.
async fn figures_make_sense(prometheus: &Prometheus, all: &[Query], values: &Variables) {
    let edge = async |place: &str| -> f64 {
        let query =
            all.iter().find(|query| query.place == place).unwrap_or_else(|| panic!("no panel {place}"));
        let found: Vec<Sample> = prometheus.query(&ready(query, values)).await.unwrap();
        let of_edge = |sample: &&Sample| {
            let labels = &sample.labels;
            labels["destination"].as_str().is_none_or(|destination| destination == "orders.shop")
        };
        found.iter().find(of_edge).unwrap_or_else(|| panic!("{place}: {found:?}")).value
    };
    let throughput = edge("Throughput A").await;
    assert!(throughput > 0.0, "{throughput}");
    let success = edge("Success A").await;
    assert!(success > 0.5 && success <= 1.0, "{success}");
    let (duration, transmit, processing) =
        (edge("Edges C").await, edge("Edges D").await, edge("Edges E").await);
    assert!(duration > 0.0 && transmit > 0.0 && processing > 0.0);
    assert!(edge("Duration, p50 and p99 A").await <= edge("Duration, p50 and p99 B").await);
    assert!(edge("Mutual TLS A").await == 1.0);
}

async fn rules_are_evaluated(prometheus: &Prometheus, deadline: Instant) {
    loop {
        let recorded =
            prometheus.query("edge:mesh_requests:rate5m{destination=\"orders.shop\"} > 0").await.unwrap();
        let answer = prometheus.api("/api/v1/rules", &[]).await.unwrap();
        let rules: Vec<_> = list(&answer, "groups").iter().flat_map(|group| list(group, "rules")).collect();
        assert!(rules.iter().all(|rule| rule["health"] != "err"), "{rules:#?}");
        if !recorded.is_empty() && rules.iter().all(|rule| rule["health"] == "ok") {
            assert!(rules.len() > 8, "{rules:#?}");
            return;
        }
        assert!(Instant::now() < deadline, "rules were not evaluated: {recorded:?} {rules:#?}");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
