//! Overload of a service whose capacity is known, with what protects it and without.
//!
//! Two replicas do 8 requests at once, 40 ms each: 400 a second. Callers wait a second, and go on
//! working on what nobody waits for, as pools of threads do. Twice as much arrives for 20 s, then half.

use std::time::Duration;

use http::Method;
use outrigger_tests::client::request;
use outrigger_tests::load::{Load, Report};
use serde_json::json;

use crate::cluster::{Cluster, ORDERS, Plan};

const CAPACITY: f64 = 400.0;
const NORMAL: f64 = CAPACITY / 2.0;
const OVERLOAD: f64 = CAPACITY * 2.0;
const BEFORE: Duration = Duration::from_secs(2);
const OVERLOADED: Duration = Duration::from_secs(20);
const AFTER: Duration = Duration::from_secs(7);
/// From the end of the overload to full goodput.
const RECOVERY: Duration = Duration::from_secs(3);
/// How long callers wait.
const PATIENCE: Duration = Duration::from_secs(1);
/// The default of `retryBudget`: a share, and retries a second beside it.
const BUDGET: f64 = 0.2;
const BUDGET_MINIMUM: f64 = 3.0;

struct Figures {
    requests: u64,
    /// Attempts that reached a replica's sidecar.
    attempts: f64,
    /// Of them repeated ones, as the caller's sidecar counts them.
    retries: f64,
    /// Attempts that reached an application, and those it worked on to the end.
    arrived: u64,
    executed: u64,
    shed: f64,
    /// Answers a second while overloaded, and share of requests answered well after recovery.
    goodput: f64,
    recovered: f64,
}

async fn overload(what: &str, policy: &'static str) -> Figures {
    let app = json!({"permits": 8, "work_ms": 40});
    let registry = json!({});
    let cluster = Cluster::with(Plan { replicas: 2, policy, app, registry, ..Plan::default() }).await;
    let client = cluster.front.client().limit(PATIENCE);
    let make = |_| request(Method::GET, ORDERS, "/", &[], "");
    let normal = Load::start(&client, NORMAL, make);
    let begun = normal.begun();
    tokio::time::sleep_until((begun + BEFORE).into()).await;
    let surplus = Load::start(&client, OVERLOAD - NORMAL, make);
    tokio::time::sleep_until((begun + BEFORE + OVERLOADED).into()).await;
    let surplus = surplus.stop().await;
    tokio::time::sleep_until((begun + BEFORE + OVERLOADED + AFTER).into()).await;
    let normal = normal.stop().await;

    // The first seconds fill the queues.
    let settled = Duration::from_secs(3);
    let count = |report: &Report, from: Duration, to: Duration| {
        report.during(&(from..to)).filter(|sample| sample.succeeded).count()
    };
    let good = count(&normal, BEFORE + settled, BEFORE + OVERLOADED) + count(&surplus, settled, OVERLOADED);
    let last = BEFORE + OVERLOADED + RECOVERY..BEFORE + OVERLOADED + AFTER;
    let late = normal.during(&last).count();
    let (mut attempts, mut shed, mut arrived, mut executed) = (0.0, 0.0, 0, 0);
    for replica in &cluster.replicas {
        let metrics = replica.sidecar.metrics().await;
        attempts += metrics.sum("mesh_requests_total", &[("direction", "inbound")]);
        shed += metrics.sum("mesh_requests_shed_total", &[("direction", "inbound")]);
        let tally = replica.app.tally().await;
        arrived += tally.requests;
        executed += tally.executed;
    }
    let retries = cluster.front.metrics().await.sum("mesh_retries_total", &[("outcome", "sent")]);
    #[allow(clippy::cast_precision_loss)]
    let figures = Figures {
        requests: normal.sent + surplus.sent,
        attempts,
        retries,
        arrived,
        executed,
        shed,
        goodput: good as f64 / (OVERLOADED - settled).as_secs_f64(),
        recovered: count(&normal, last.start, last.end) as f64 / late as f64,
    };
    println!(
        "\n== {what}: {} requests, {} attempts ({} repeated), {} shed; {} reached an application, {} were executed",
        figures.requests, figures.attempts, figures.retries, figures.shed, figures.arrived, figures.executed
    );
    println!(
        "   goodput {:.0}/s of {CAPACITY}/s; {RECOVERY:?} after the overload {:.1} % good",
        figures.goodput,
        figures.recovered * 100.0
    );
    println!("   failures: {:?} and {:?}", normal.kinds(), surplus.kinds());
    let part = settled..OVERLOADED;
    println!(
        "   p50 {:.1?}, p99 {:.1?} while overloaded",
        surplus.quantile(&part, 0.5),
        surplus.quantile(&part, 0.99)
    );
    figures
}

#[tokio::test]
async fn overload_does_not_outlast_itself_and_without_protection_it_would() {
    let safe = overload("twice the capacity", "metastable.yaml").await;
    let fragile = overload("the same without budget and shedding", "fragile.yaml").await;
    assert!(safe.goodput >= 0.8 * CAPACITY, "goodput {}", safe.goodput);
    assert!(safe.recovered >= 0.999, "recovered {}", safe.recovered);
    #[allow(clippy::cast_precision_loss)]
    let requests = safe.requests as f64;
    let budget = requests * (1.0 + BUDGET) + BUDGET_MINIMUM * (BEFORE + OVERLOADED + AFTER).as_secs_f64();
    assert!(safe.attempts <= budget, "{} attempts, {budget} allowed", safe.attempts);
    assert!(safe.shed > 0.0, "nothing was shed");
    // Attempts go where they are repeated without bound, and most of the work is for nobody.
    assert!(fragile.arrived >= 2 * safe.arrived, "{} and {}", fragile.arrived, safe.arrived);
    assert!(fragile.retries >= 3.0 * safe.retries, "{} and {}", fragile.retries, safe.retries);
    assert!(fragile.goodput < safe.goodput / 2.0, "{} and {}", fragile.goodput, safe.goodput);
}
