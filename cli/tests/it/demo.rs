//! The demo as a whole: it comes up, judges, survives chaos, and leaves nothing behind however it ends.

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{Running, children_of_demo, outrigger, send, stderr, until};

const JUDGED: [&str; 11] = [
    "requests",
    "succeeded",
    "throughput_rps",
    "delay_ms",
    "transmit_ms",
    "processing_ms",
    "retries",
    "ejections",
    "mtls",
    "endpoints",
    "traces_exported",
];

fn judge(summary: &Value, requests: u64, replicas: usize) {
    for key in JUDGED {
        assert!(!summary[key].is_null(), "{key}: {summary:#}");
    }
    assert_eq!(summary["requests"], requests, "{summary:#}");
    assert_eq!(summary["succeeded"], requests, "{summary:#}");
    assert_eq!(summary["mtls"], 1.0, "{summary:#}");
    assert_eq!(summary["endpoints"], replicas, "{summary:#}");
    assert_eq!(summary["ok"], true, "{summary:#}");
    assert!(summary["traces_exported"].as_f64() > Some(0.0), "{summary:#}");
    for part in ["delay_ms", "transmit_ms", "processing_ms"] {
        let [p50, p99] = ["p50", "p99"].map(|key| summary[part][key].as_f64().unwrap());
        assert!(summary[part]["mean"].as_f64() > Some(0.0) && 0.0 < p50 && p50 <= p99, "{part}: {summary:#}");
    }
    let edge = &summary["edges"][0];
    assert_eq!((&edge["source"], &edge["destination"]), (&"storefront.shop".into(), &"orders.shop".into()));
    // Means add up.
    let mean = |part: &str| edge[part]["mean"].as_f64().unwrap();
    let parts = mean("transmit_ms") + mean("processing_ms");
    assert!((mean("duration_ms") - parts).abs() < 0.05 * mean("duration_ms"), "{summary:#}");
}

#[test]
fn a_short_run_is_judged_good_and_leaves_nothing() {
    let mut demo =
        Running::start(&["demo", "--duration", "3s", "--rate", "100", "--seed", "7", "--output", "json"]);
    let summary = demo.json_line();
    judge(&summary, 300, 3);
    assert!(summary.get("chaos").is_none() && summary.get("chaos_policy").is_none(), "{summary:#}");
    assert_eq!(demo.wait(), Some(0));
    assert_eq!(demo.rest(), Vec::<String>::new());
    assert_eq!(demo.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn two_demos_run_side_by_side() {
    let args = ["demo", "--duration", "2s", "--rate", "50", "--replicas", "2", "--output", "json"];
    let mut both = [Running::start(&args), Running::start(&args)];
    for demo in &mut both {
        judge(&demo.json_line(), 100, 2);
        assert_eq!(demo.wait(), Some(0));
    }
}

#[test]
fn chaos_costs_delay_and_no_request() {
    let args = ["demo", "--chaos", "--duration", "20s", "--rate", "300", "--seed", "5", "--output", "json"];
    let mut demo = Running::start(&args);
    let summary = demo.json_line();
    assert_eq!(demo.wait(), Some(0), "{summary:#}");
    judge(&summary, 6000, 3);
    assert_eq!(demo.leftovers(), Vec::<std::path::PathBuf>::new());
    assert!(summary["ejections"].as_u64() > Some(0), "{summary:#}");
    let policy = &summary["chaos_policy"];
    assert_eq!(
        (&policy["kind"], &policy["spec"]["timeouts"]["perTry"]),
        (&"TrafficPolicy".into(), &"1s".into())
    );

    let incidents = summary["chaos"].as_array().unwrap();
    let kinds: Vec<_> = incidents.iter().map(|incident| incident["fault"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["killed", "errors", "delay", "registry", "frozen", "slow", "reset"]);
    let retries: u64 = incidents.iter().map(met).sum();
    assert!(retries <= summary["retries"].as_u64().unwrap(), "{summary:#}");
}

/// The fault was there, the mesh met it, and the client saw no failure. Returns the retries.
fn met(incident: &Value) -> u64 {
    assert!(incident["lasted_s"].as_f64() > Some(0.0), "{incident:#}");
    let client = &incident["client"];
    assert!(client["requests"].as_u64() > Some(0) && client["failures"] == 0, "{incident:#}");
    assert!(client["p99_ms"].as_f64() <= client["slowest_ms"].as_f64(), "{incident:#}");
    let counted = |outcome: Option<&str>| -> u64 {
        let all = incident["retries"].as_array().unwrap().iter();
        let these = all.filter(|retry| outcome.is_none_or(|outcome| retry["outcome"] == outcome));
        these.map(|retry| retry["count"].as_u64().unwrap()).sum()
    };
    let failed = incident["failed_attempts"].as_u64().unwrap();
    assert_eq!(failed, counted(None), "{incident:#}");
    let hedged: u64 = incident["hedges"].as_object().unwrap().values().filter_map(Value::as_u64).sum();
    let shown = match incident["fault"].as_str().unwrap() {
        "killed" | "errors" | "reset" => failed > 0,
        "frozen" => failed + hedged > 0,
        "slow" => hedged > 0 || client["slowest_ms"].as_f64() >= Some(500.0),
        "delay" => incident["injected"]["delay"].as_u64() > Some(0),
        _ => incident["target"] == "registry",
    };
    assert!(shown, "{incident:#}");
    counted(Some("sent"))
}

#[test]
fn a_short_chaos_has_one_fault_and_mends_it() {
    let args = ["demo", "--chaos", "--duration", "2s", "--rate", "50", "--replicas", "2", "--output", "json"];
    let mut demo = Running::start(&args);
    let summary = demo.json_line();
    assert_eq!(demo.wait(), Some(0), "{summary:#}");
    judge(&summary, 100, 2);
    let incidents = summary["chaos"].as_array().unwrap();
    assert_eq!(incidents.len(), 1, "{summary:#}");
    assert_eq!(incidents[0]["fault"], "killed");
    assert!(incidents[0]["lasted_s"].as_f64() > Some(0.0), "{summary:#}");
}

/// A mesh that is up and does nothing, with the addresses it told.
fn kept() -> (Running, Value) {
    let demo = Running::start(&["demo", "--keep", "--rate", "0", "--replicas", "2", "--output", "json"]);
    let addresses = demo.json_line();
    // Registry, storefront and two replicas, each with its sidecar.
    assert_eq!(children_of_demo(demo.pid()).len(), 7);
    (demo, addresses)
}

#[test]
fn a_kept_mesh_says_where_it_is_and_ends_with_ctrl_c() {
    let (mut demo, addresses) = kept();
    let services = addresses["services"].as_array().unwrap();
    assert_eq!(
        services.iter().map(|s| s["name"].as_str().unwrap()).collect::<Vec<_>>(),
        ["orders", "storefront"]
    );
    assert!(services.iter().all(|service| service["namespace"] == "shop"));
    for replica in services.iter().flat_map(|service| service["replicas"].as_array().unwrap()) {
        assert!(replica["id"].is_string());
        for key in ["app", "outbound", "mesh", "admin"] {
            let address: std::net::SocketAddr = replica[key].as_str().unwrap().parse().unwrap();
            assert!(address.ip().is_loopback() && std::net::TcpStream::connect(address).is_ok(), "{key}");
        }
    }
    let [grpc, identity] =
        [&addresses["registry"]["grpc"], &addresses["identity"]].map(|v| v.as_str().unwrap());
    let get = ["get", "workloads", "--output", "json", "--registry", grpc, "--identity", identity];
    let output = outrigger(&get).output().unwrap();
    let workloads: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", stderr(&output)));
    assert_eq!(workloads.as_array().unwrap().len(), 3, "{workloads:#}");

    demo.signal(Signal::INT);
    assert_eq!(demo.wait(), Some(0));
    assert_eq!(children_of_demo(demo.pid()), Vec::<u32>::new());
    assert_eq!(demo.rest(), Vec::<String>::new(), "no load, no summary");
    assert_eq!(demo.leftovers().len(), 1, "--keep leaves the logs");
}

#[test]
fn no_child_outlives_a_demo_that_is_killed() {
    let (mut demo, _) = kept();
    // Not even one that cannot run.
    send(children_of_demo(demo.pid())[0], Signal::STOP);
    demo.signal(Signal::KILL);
    assert_eq!(demo.wait(), None);
    until("every child is gone", || children_of_demo(demo.pid()).is_empty());
}

#[test]
fn a_closed_terminal_ends_a_demo_in_any_phase() {
    // While it starts.
    let mut demo = Running::start(&["demo", "--duration", "60s"]);
    until("it has children", || !children_of_demo(demo.pid()).is_empty());
    demo.signal(Signal::HUP);
    assert_eq!(demo.wait(), Some(1));
    until("every child is gone", || children_of_demo(demo.pid()).is_empty());
    assert_eq!(demo.leftovers(), Vec::<std::path::PathBuf>::new());
    // Under load: what ran is summed up, and the run is not called good.
    let mut demo = Running::start(&["demo", "--duration", "60s", "--rate", "50"]);
    assert!(demo.line().contains("up after"));
    demo.signal(Signal::HUP);
    assert_eq!(demo.wait(), Some(1));
    assert_eq!(children_of_demo(demo.pid()), Vec::<u32>::new());
    assert_eq!(demo.leftovers(), Vec::<std::path::PathBuf>::new());
}

#[test]
fn settings_of_the_caller_do_not_reach_the_children() {
    let output = outrigger(&["demo", "--rate", "0", "--duration", "1s", "--output", "json"])
        .env("OUTRIGGER_OUTBOUND_LISTEN", "nonsense")
        .env("OUTRIGGER_DATA_DIR", "/nowhere")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let summary: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&summary["requests"], &summary["ok"]), (&0.into(), &true.into()), "no load, nothing judged");
}

#[test]
fn a_demo_that_cannot_start_says_why() {
    let output = outrigger(&["demo", "--duration", "1s"]).env("TMPDIR", "/nowhere").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("/nowhere"), "{}", stderr(&output));
}
