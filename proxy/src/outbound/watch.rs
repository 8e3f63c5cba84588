//! Watches one attempt at one endpoint: counts it as in flight, and tells the balancer once how it
//! went, at the response head or, where only the trailers say (gRPC), at the end.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::balance::{Candidate, FailureKind, Group, Outcome, Pick, Transition};
use crate::policy::backoff::Asked;
use crate::policy::classify::{Class, classify};
use crate::pool::mesh::Endpoint;
use crate::telemetry::metrics::Metrics;

/// See the module. Dropped undecided, it teaches nothing: the client went away.
#[derive(Debug)]
pub struct Watch {
    group: Arc<Group<Endpoint>>,
    endpoint: Arc<Endpoint>,
    metrics: Arc<Metrics>,
    pick: Option<Pick<Endpoint>>,
    started: Instant,
    /// The latency to report once the call has succeeded.
    latency: Duration,
    /// What the answer asked for.
    retry_after: Option<Duration>,
}

impl Watch {
    /// Begins to watch what was picked at `now`.
    pub fn begin(
        group: Arc<Group<Endpoint>>,
        pick: Pick<Endpoint>,
        metrics: Arc<Metrics>,
        now: Instant,
    ) -> Self {
        let endpoint = pick.endpoint().clone();
        endpoint.state().begin();
        Self {
            group,
            endpoint,
            metrics,
            pick: Some(pick),
            started: now,
            latency: Duration::ZERO,
            retry_after: None,
        }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Time since the attempt began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The head came after `latency`, and says all there is to say; it may have `asked` for a pause.
    pub fn answered(&mut self, class: Class, latency: Duration, asked: Option<Asked>) {
        self.latency = latency;
        self.retry_after = match asked {
            Some(Asked::After(wait)) => Some(wait),
            Some(Asked::Never) | None => None,
        };
        self.conclude(class);
    }

    /// The head came after `latency`; how the call went is known later.
    pub fn undecided(&mut self, latency: Duration) {
        self.latency = latency;
    }

    /// A message came: the endpoint works, whatever the status will say.
    pub fn spoke(&mut self) {
        if self.pick.is_some() {
            self.conclude(Class::Success);
        }
    }

    /// The trailers came.
    pub fn trailed(&mut self, grpc_status: Option<u8>) {
        if self.pick.is_some() {
            self.conclude(classify(StatusCode::OK, grpc_status, None));
        }
    }

    /// The attempt, or the response after its head, failed.
    pub fn failed(&mut self, kind: FailureKind) {
        let elapsed = self.started.elapsed();
        self.report(Outcome::Failure { kind, elapsed });
    }

    fn conclude(&mut self, class: Class) {
        let elapsed = self.started.elapsed();
        self.report(match class {
            // It answers, which is all that concerns the breaker: a 404 closes as well as a 200.
            Class::Success | Class::ClientError => Outcome::Success { latency: self.latency },
            Class::Failure => Outcome::Failure { kind: FailureKind::Status, elapsed },
            Class::Throttled => Outcome::Throttled { elapsed, retry_after: self.retry_after },
        });
    }

    fn report(&mut self, outcome: Outcome) {
        let Some(pick) = self.pick.take() else { return };
        let probe = pick.is_probe();
        let transition = self.group.report(pick, &outcome, Instant::now());
        if probe {
            self.metrics.breaker_transition("half_open");
        }
        match transition {
            Transition::None => {}
            Transition::Opened => {
                let Endpoint { workload, address, .. } = self.endpoint.as_ref();
                tracing::info!(%workload, %address, ?outcome, "endpoint ejected");
                self.metrics.breaker_transition("open");
            }
            Transition::Closed => self.metrics.breaker_transition("closed"),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.endpoint.state().end();
    }
}
