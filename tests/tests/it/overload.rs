//! The sidecar of the service in front of an application that has enough to do: a bound with a fair
//! queue, a bound that finds itself, and retries that are too large a part of what arrives.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::{Method, Request};
use outrigger_common::tasks::Tasks;
use outrigger_tests::app::{App, Body, ok};
use outrigger_tests::client::{Answer, Client, request};
use outrigger_tests::mesh::{Mesh, Sidecar};
use outrigger_tests::wait::{soon, until};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::channel;

use crate::shop::ORDERS;

const SERVICE: &str = "targetRefs: [{kind: Service, name: orders}]";
const INBOUND: [(&str, &str); 1] = [("direction", "inbound")];

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: orders, namespace: \
         shop}}\nspec: {{{SERVICE}, {spec}}}\n---\n"
    )
}

/// An application that answers one request for each permit.
pub(crate) struct Gate {
    permits: Arc<Semaphore>,
    pub(crate) app: App,
}

impl Gate {
    pub(crate) async fn start(name: &'static str) -> Self {
        let permits = Arc::new(Semaphore::new(0));
        let gate = permits.clone();
        let app = App::with(name, move |_| {
            let gate = gate.clone();
            async move {
                gate.acquire().await.expect("nobody closes it").forget();
                Ok(ok(name))
            }
        });
        Self { app: app.await, permits }
    }

    pub(crate) fn open(&self, requests: usize) {
        self.permits.add_permits(requests);
    }

    /// Values of `x-id` in the order of arrival.
    pub(crate) fn ids(&self) -> Vec<String> {
        let heads = self.app.heads();
        heads.iter().map(|(_, headers)| headers["x-id"].to_str().unwrap().to_owned()).collect()
    }

    pub(crate) async fn holds(&self, requests: usize) {
        until(&format!("{requests} requests reach the application"), || async {
            self.app.requests() == requests
        })
        .await;
    }
}

/// Waits until that many requests are at a replica: in its application, or waiting for a turn.
pub(crate) async fn at_replica(replica: &Sidecar, requests: u32) {
    until(&format!("{requests} requests are at {}", replica.id), || async {
        replica.metrics().await.sum("mesh_requests_in_flight", &INBOUND) == f64::from(requests)
    })
    .await;
}

/// Requests under way, whose answers come as they end.
pub(crate) struct Under {
    answers: tokio::sync::mpsc::Receiver<Answer>,
    sender: tokio::sync::mpsc::Sender<Answer>,
}

impl Under {
    pub(crate) fn way() -> Self {
        let (sender, answers) = channel(1000);
        Self { answers, sender }
    }

    pub(crate) fn post(&self, client: &Client, id: &str) {
        self.send(client, request(Method::POST, ORDERS, "/", &[("x-id", id)], "an order"));
    }

    pub(crate) fn send(&self, client: &Client, request: Request<Body>) {
        let (client, sender) = (client.clone(), self.sender.clone());
        Tasks::current().spawn("request", async move {
            sender.send(client.send(request).await.unwrap()).await.unwrap();
        });
    }

    pub(crate) async fn next(&mut self) -> Answer {
        soon("an answer", self.answers.recv()).await.unwrap()
    }
}

fn assert_overloaded(answer: &Answer, why: &str) {
    assert_eq!((answer.status.as_u16(), answer.reason()), (503, "overloaded"), "{}", answer.text());
    assert!(answer.text().contains(why), "{}", answer.text());
}

/// One replica of orders behind a gate, under a policy, and a caller.
async fn gated(spec: &str) -> (Sidecar, Gate, Sidecar, Mesh) {
    let mesh = Mesh::start().await;
    mesh.apply(&policy(spec)).await;
    let gate = Gate::start("app").await;
    let replica = mesh.replica("orders-1", "orders", &gate.app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    (front, gate, replica, mesh)
}

#[tokio::test]
async fn no_more_go_in_than_may_and_no_more_wait() {
    let limits = "limits: {maxInFlight: 2, maxQueued: 1, maxWait: 60s}, retries: {attempts: 0}";
    let (front, gate, replica, mesh) = gated(limits).await;
    let (client, mut under) = (front.client(), Under::way());
    for id in ["1", "2", "3", "4"] {
        under.post(&client, id);
    }
    assert_overloaded(&under.next().await, "the queue is full");
    at_replica(&replica, 3).await;
    gate.holds(2).await;
    gate.open(3);
    for _ in 0..3 {
        assert_eq!(under.next().await.text(), "app");
    }
    assert_eq!(gate.app.requests(), 3, "who was shed never came");
    let shed = [("direction", "inbound"), ("reason", "overloaded")];
    assert_eq!(replica.metrics().await.sum("mesh_requests_shed_total", &shed), 1.0);
    // A bound that is raised lets in who waits.
    for id in ["5", "6", "7"] {
        under.post(&client, id);
    }
    at_replica(&replica, 3).await;
    gate.holds(5).await;
    mesh.apply(&policy("limits: {maxInFlight: 3, maxQueued: 1, maxWait: 60s}, retries: {attempts: 0}")).await;
    gate.holds(6).await;
    gate.open(3);
    for _ in 0..3 {
        assert_eq!(under.next().await.text(), "app");
    }
}

#[tokio::test]
async fn who_waits_too_long_is_told_so_and_its_work_is_never_begun() {
    let limits = "limits: {maxInFlight: 1, maxQueued: 10, maxWait: 50ms}, retries: {attempts: 0}";
    let (front, gate, replica, _mesh) = gated(limits).await;
    let (client, mut under) = (front.client(), Under::way());
    under.post(&client, "1");
    gate.holds(1).await;
    under.post(&client, "2");
    assert_overloaded(&under.next().await, "did not come in time");
    // A deadline that comes before the longest wait is answered as such, by whoever sees it first.
    let headers =
        [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "20m"), ("x-id", "3")];
    let call = request(Method::POST, ORDERS, "/shop.Orders/List", &headers, "");
    let answer = front.client_http2().send(call).await.unwrap();
    assert!(["4", "14"].contains(&answer.header("grpc-status")), "{answer:?}");
    at_replica(&replica, 1).await;
    gate.open(2);
    assert_eq!(under.next().await.text(), "app");
    under.post(&client, "4");
    assert_eq!(under.next().await.text(), "app");
    assert_eq!(gate.ids(), ["1", "4"], "the place of those who gave up was not spent on them");
}

#[tokio::test]
async fn what_one_replica_sheds_another_takes_whatever_the_method() {
    let mesh = Mesh::start().await;
    let limits =
        "limits: {maxInFlight: 1, maxQueued: 0}, loadBalancing: {algorithm: roundRobin, slowStart: 0s}";
    mesh.apply(&policy(limits)).await;
    let (busy, free) = (Gate::start("busy").await, Gate::start("free").await);
    let replica = mesh.replica("orders-1", "orders", &busy.app).await;
    let holder = mesh.caller("holder", &[ORDERS]).await;
    holder.knows_healthy(ORDERS, 1).await;
    let mut under = Under::way();
    under.post(&holder.client(), "held");
    busy.holds(1).await;
    let _other = mesh.replica("orders-2", "orders", &free.app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 2).await;
    free.open(12);
    let client = front.client();
    for n in 0..12 {
        under.post(&client, &n.to_string());
        assert_eq!(under.next().await.text(), "free");
    }
    let ids: Vec<_> = (0..12).map(|n| n.to_string()).collect();
    assert_eq!(free.ids(), ids, "each once");
    let shed = [("direction", "inbound"), ("reason", "overloaded")];
    let shed = replica.metrics().await.sum("mesh_requests_shed_total", &shed);
    let sent = [("reason", "undelivered"), ("outcome", "sent")];
    assert!(shed >= 1.0, "the busy one was asked");
    assert_eq!(front.metrics().await.sum("mesh_retries_total", &sent), shed);
    assert_eq!(front.metrics().await.sum("mesh_circuit_breaker_open", &[]), 0.0, "busy is not broken");
    busy.open(1);
    assert_eq!(under.next().await.text(), "busy");
}

#[tokio::test]
async fn repeating_what_was_shed_is_within_the_budget_as_well() {
    let limits = "limits: {maxInFlight: 1, maxQueued: 0}, retries: {attempts: 5}, retryBudget: {percent: 0, \
                  minPerSecond: 0.3}";
    let (front, gate, replica, _mesh) = gated(limits).await;
    let (client, mut under) = (front.client(), Under::way());
    under.post(&client, "held");
    gate.holds(1).await;
    for n in 0..20 {
        under.post(&client, &n.to_string());
        assert_overloaded(&under.next().await, "the queue is full");
    }
    let metrics = front.metrics().await;
    let retries = |outcome| metrics.sum("mesh_retries_total", &[("outcome", outcome)]);
    assert!(retries("budget_exhausted") >= 1.0);
    let shed = [("direction", "inbound"), ("reason", "overloaded")];
    let shed = replica.metrics().await.sum("mesh_requests_shed_total", &shed);
    assert_eq!(shed, 20.0 + retries("sent"));
    gate.open(1);
    assert_eq!(under.next().await.text(), "app");
}

#[tokio::test]
async fn a_greedy_caller_cannot_starve_a_quiet_one() {
    let limits = "limits: {maxInFlight: 2, maxQueued: 20, maxWait: 60s}, retries: {attempts: 0}";
    let (greedy, gate, replica, mesh) = gated(limits).await;
    let quiet = mesh.caller("quiet", &[ORDERS]).await;
    quiet.knows_healthy(ORDERS, 1).await;
    let (client, mut under) = (greedy.client_http2(), Under::way());
    for _ in 0..40 {
        under.post(&client, "greedy");
    }
    for _ in 0..18 {
        assert_overloaded(&under.next().await, "the queue is full");
    }
    at_replica(&replica, 22).await;
    // The queue is full, of the greedy one's requests: it loses a place to each of the quiet one's.
    let mut patient = Under::way();
    for n in 0..3 {
        patient.post(&quiet.client(), &format!("quiet-{n}"));
        assert_overloaded(&under.next().await, "another caller's");
    }
    for _ in 0..22 {
        gate.open(1);
        let _answer = tokio::select! { answer = under.next() => answer, answer = patient.next() => answer };
    }
    let ids = gate.ids();
    let last = ids.iter().rposition(|id| id.starts_with("quiet")).unwrap();
    assert_eq!(ids.iter().filter(|id| id.starts_with("quiet")).count(), 3);
    assert!(last < 9, "two that were in, then by turns: {ids:?}");
}

/// An application that works on four requests at once, each for 20 ms; more wait inside it.
struct Slow {
    app: App,
    now: Arc<AtomicUsize>,
    peak: Arc<AtomicUsize>,
}

impl Slow {
    async fn start() -> Self {
        let (now, peak) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (inside, most, workers) = (now.clone(), peak.clone(), Arc::new(Semaphore::new(4)));
        let app = App::with("slow", move |_| {
            let (inside, most, workers) = (inside.clone(), most.clone(), workers.clone());
            async move {
                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let worker = workers.acquire().await.expect("nobody closes it");
                tokio::time::sleep(Duration::from_millis(20)).await; // The work.
                drop(worker);
                inside.fetch_sub(1, Ordering::SeqCst);
                Ok(ok("slow"))
            }
        });
        Self { app: app.await, now, peak }
    }

    /// The most requests at once from now on.
    fn measure(&self) {
        self.peak.store(self.now.load(Ordering::SeqCst), Ordering::SeqCst);
    }
}

#[tokio::test]
async fn an_adaptive_bound_keeps_the_queue_out_of_the_application() {
    const CALLERS: usize = 48;
    let limits = |adaptive: bool| {
        format!("limits: {{maxInFlight: 200, maxQueued: 1000, maxWait: 60s, adaptive: {adaptive}}}")
    };
    let mesh = Mesh::start().await;
    mesh.apply(&policy(&limits(true))).await;
    let slow = Slow::start().await;
    let replica = mesh.replica("orders-1", "orders", &slow.app).await;
    let front = mesh.caller("front", &[ORDERS]).await;
    front.knows_healthy(ORDERS, 1).await;
    let (client, mut under) = (front.client_http2(), Under::way());
    // What it takes without a queue.
    for _ in 0..30 {
        under.post(&client, "alone");
        under.next().await;
    }
    // As many at once all the time; counts of what is in the application after some, and after the change.
    for _ in 0..CALLERS {
        under.post(&client, "many");
    }
    let more = async |under: &mut Under, answers: usize| {
        for _ in 0..answers {
            assert_eq!(under.next().await.text(), "slow");
            under.post(&client, "many");
        }
    };
    more(&mut under, 500).await;
    slow.measure();
    more(&mut under, 150).await;
    let adaptive = slow.peak.load(Ordering::SeqCst);
    replica.caught_up(mesh.apply(&policy(&limits(false))).await).await;
    more(&mut under, 100).await;
    slow.measure();
    more(&mut under, 100).await;
    let plain = slow.peak.load(Ordering::SeqCst);
    println!("in the application at once: {adaptive} with a bound that adapts, {plain} with a plain one");
    assert!((4..=CALLERS / 2).contains(&adaptive), "{adaptive}");
    assert_eq!(plain, CALLERS);
}
