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

/// See the module. Dropped without a word, the attempt was given up.
#[derive(Debug)]
pub struct Watch {
    group: Arc<Group<Endpoint>>,
    endpoint: Arc<Endpoint>,
    metrics: Arc<Metrics>,
    pick: Option<Pick<Endpoint>>,
    started: Instant,
    /// From the request sent to the head, once there is one.
    latency: Option<Duration>,
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
        Self { group, endpoint, metrics, pick: Some(pick), started: now, latency: None, retry_after: None }
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Time since the attempt began.
    pub fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    /// The head came after `latency`, with what it says; it may have `asked` for a pause. A failure is
    /// one at once. A success is one when the response is complete, except for a probe: its endpoint
    /// answers again, and must not wait for the end of a stream.
    pub fn answered(&mut self, class: Class, latency: Duration, asked: Option<Asked>) {
        self.latency = Some(latency);
        if let Some(Asked::After(wait)) = asked {
            self.retry_after = Some(wait);
        }
        let probe = self.pick.as_ref().is_some_and(Pick::is_probe);
        if probe || matches!(class, Class::Failure | Class::Throttled) {
            self.conclude(class);
        }
    }

    /// The trailers came, with a gRPC status if there is one.
    pub fn trailed(&mut self, grpc_status: Option<u8>) {
        self.conclude(grpc_status.map_or(Class::Success, |code| classify(StatusCode::OK, Some(code), None)));
    }

    /// The attempt, or the response after its head, failed.
    pub fn failed(&mut self, kind: FailureKind) {
        let elapsed = self.started.elapsed();
        self.report(Outcome::Failure { kind, elapsed });
    }

    /// A connection of opaque bytes is there, `latency` after it was begun: all that is learned of it. It
    /// stays in flight until it ends.
    pub fn connected(&mut self, latency: Duration) {
        self.report(Outcome::Success { latency });
    }

    /// The response is cut off for a reason that is not the endpoint's.
    pub fn cut(&mut self) {
        self.report(Outcome::Ignored);
    }

    fn conclude(&mut self, class: Class) {
        let elapsed = self.started.elapsed();
        let latency = self.latency.unwrap_or(elapsed);
        self.report(match class {
            // It answers, which is all that concerns the breaker: a 404 closes as well as a 200.
            Class::Success | Class::ClientError => Outcome::Success { latency },
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
        // Given up: by a client that did not wait, or for another attempt that was faster.
        let elapsed = self.started.elapsed();
        match self.latency {
            Some(latency) => self.report(Outcome::Success { latency }),
            None => self.report(Outcome::GivenUp { elapsed }),
        }
        self.endpoint.state().end();
    }
}
