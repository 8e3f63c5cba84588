//! The demo's own load: open loop, through the storefront's HTTP interface, every answer checked.
//!
//! The delay of a request counts from when it was due, not from when it was sent: waiting for a
//! connection, or for this generator itself, is part of it. Nothing is retried here.

mod orders;
mod pool;
mod request;
mod schedule;
mod tally;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use fastrand::Rng;
use http::Request;
use http_body_util::Full;
use outrigger_common::drain::Drain;
use outrigger_common::tasks::Tasks;
use tokio::time::{Instant, timeout_at};

use crate::failure::Failure;
use orders::Orders;
use pool::Pool;
use request::Operation;
use schedule::{Alarm, Schedule};
pub(super) use tally::{Noticed, Tally, as_float};

/// Most requests under way; one more fails at once and says so.
const IN_FLIGHT: u64 = 10_000;
/// Longest wait for one answer, from when its request was due.
const REQUEST_LIMIT: Duration = Duration::from_secs(15);
/// Requests due within this time are sent together.
const BATCH: Duration = Duration::from_micros(250);
/// Time between requests whose trace is sampled for certain.
const TRACE_EVERY: Duration = Duration::from_secs(1);
/// Orders made before the load, so that there is something to read and to change.
pub(super) const FIRST_ORDERS: usize = 64;
/// How many of them at once.
const FIRST_WIDTH: usize = 8;

/// A load on one storefront. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Load(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    host: String,
    pool: Pool,
    tasks: Tasks,
    orders: Mutex<Orders>,
    tally: Mutex<Tally>,
}

impl Load {
    pub(super) fn new(storefront: SocketAddr) -> Self {
        let tasks = Tasks::current();
        Self(Arc::new(Shared {
            host: storefront.to_string(),
            pool: Pool::new(storefront, tasks.clone()),
            tasks,
            orders: Mutex::default(),
            tally: Mutex::new(Tally::new()),
        }))
    }

    /// The counts so far.
    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.0.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the first orders; none of this is counted.
    pub(super) async fn make_first_orders(&self, rng: &mut Rng) -> Result<(), Failure> {
        for _ in 0..FIRST_ORDERS / FIRST_WIDTH {
            let mut batch = Vec::with_capacity(FIRST_WIDTH);
            for _ in 0..FIRST_WIDTH {
                let request = self.build(&Operation::Create, rng, None)?;
                let shared = self.0.clone();
                let deadline = Instant::now() + REQUEST_LIMIT;
                let making = async move { shared.exchange(Operation::Create, request, deadline).await };
                batch.push(self.0.tasks.spawn_joinable("first order", making));
            }
            for making in batch {
                let outcome =
                    making.await.map_err(|error| Failure::job(format!("a first order failed: {error}")))?;
                outcome.map_err(|kind| {
                    Failure::job(format!("the storefront did not take a first order: {kind}"))
                })?;
            }
        }
        Ok(())
    }

    /// Sends `rate` requests a second for `duration`, or until `stop`; then waits for the answers.
    /// Returns how long requests were sent.
    pub(super) async fn run(
        &self,
        rate: u32,
        duration: Option<Duration>,
        seed: u64,
        stop: &Drain,
    ) -> Result<Duration, Failure> {
        let start = Instant::now();
        let sending = self.send_all(Schedule::new(rate, duration), start, seed);
        tokio::select! {
            sent = sending => sent?,
            () = stop.signalled() => {}
        }
        let sent_for = duration.map_or_else(|| start.elapsed(), |duration| duration.min(start.elapsed()));
        // Every request ends by its own limit.
        let deadline = Instant::now() + REQUEST_LIMIT + Duration::from_secs(1);
        while self.tally().in_flight > 0 && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(sent_for)
    }

    async fn send_all(&self, schedule: Schedule, start: Instant, seed: u64) -> Result<(), Failure> {
        let failed = |error: std::io::Error| Failure::job(format!("the load has no clock: {error}"));
        let alarm = Alarm::new().map_err(failed)?;
        let (mut mix, mut pick) = (Rng::with_seed(seed), Rng::with_seed(seed.wrapping_add(1)));
        let mut next_trace = Duration::ZERO;
        for index in 0.. {
            let Some(due) = schedule.due(index) else { break };
            let now = start.elapsed();
            if due > now {
                alarm.after((due - now).max(BATCH)).await.map_err(failed)?;
            }
            let operation = request::choose(&mut mix, &mut pick, &mut self.orders());
            let trace = (due >= next_trace).then(|| request::trace_id(&mut pick));
            if trace.is_some() {
                next_trace = due + TRACE_EVERY;
            }
            let request = self.build(&operation, &mut pick, trace.as_deref())?;
            self.issue(Issued { operation, request, trace, due: start + due, start });
        }
        // The load lasts as long as was said, not only until its last request.
        if let Some(end) = schedule.end() {
            tokio::time::sleep_until(start + end).await;
        }
        Ok(())
    }

    fn issue(&self, issued: Issued) {
        let watch = {
            let mut tally = self.tally();
            let watch = tally.due();
            if tally.in_flight >= IN_FLIGHT {
                tally.failure("not sent: 10000 requests were under way already", watch);
                return;
            }
            tally.in_flight += 1;
            watch
        };
        let shared = self.0.clone();
        self.0.tasks.spawn("request", async move {
            let Issued { operation, request, trace, due, start } = issued;
            let outcome = shared.exchange(operation, request, due + REQUEST_LIMIT).await;
            let now = Instant::now();
            let mut tally = shared.tally.lock().unwrap_or_else(PoisonError::into_inner);
            tally.in_flight -= 1;
            match outcome {
                Ok(()) => {
                    tally.success(now - due, now - start, watch);
                    trace.into_iter().for_each(|trace| tally.traced(trace));
                }
                Err(kind) => tally.failure(&kind, watch),
            }
        });
    }

    fn build(
        &self,
        operation: &Operation,
        pick: &mut Rng,
        trace: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, Failure> {
        request::build(operation, &self.0.host, pick, trace)
            .map_err(|error| Failure::job(format!("the load cannot make a request: {error}")))
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.0.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Issued {
    operation: Operation,
    request: Request<Full<Bytes>>,
    trace: Option<String>,
    due: Instant,
    start: Instant,
}

impl Shared {
    /// Sends a request and checks its answer; an error is the kind of failure.
    async fn exchange(
        &self,
        operation: Operation,
        request: Request<Full<Bytes>>,
        deadline: Instant,
    ) -> Result<(), String> {
        match timeout_at(deadline, self.pool.exchange(request)).await {
            Ok(Ok(answer)) => {
                let mut orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
                request::check(operation, &answer, &mut orders)
            }
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", REQUEST_LIMIT.as_secs())),
        }
    }
}
