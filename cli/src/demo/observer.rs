//! What the sidecars say about themselves: their `/metrics`, read once a second, with the counts of
//! processes that were killed kept.

use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::http::get;
use super::mesh::{Mesh, NAMESPACE, ORDERS};
use super::metrics::{Histogram, Scrape};
use super::repairs::Repairs;

/// Counts of one sidecar, or of several added up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Counts {
    /// Requests, both directions.
    pub(super) requests: f64,
    /// Those of them over mutual TLS.
    pub(super) mutual: f64,
    /// Requests from other sidecars.
    pub(super) inbound: f64,
    /// Requests to other sidecars.
    pub(super) outbound: f64,
    pub(super) retries: f64,
    pub(super) ejections: f64,
    pub(super) ejected_now: f64,
    pub(super) spans: f64,
}

/// The one edge of the demo's service graph, as its client's sidecar sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct EdgeTimes {
    pub(super) source: String,
    pub(super) duration: Histogram,
    pub(super) processing: Histogram,
    pub(super) transmit: Histogram,
}

/// What is known of every sidecar.
#[derive(Debug)]
pub(super) struct Observer {
    sidecars: Vec<Sidecar>,
}

#[derive(Debug)]
struct Sidecar {
    id: String,
    admin: SocketAddr,
    replica: bool,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Grows when the process is killed, so that a late answer of the old one is not taken for the new one's.
    life: u64,
    past: Counts,
    now: Counts,
    past_repairs: Repairs,
    repairs: Repairs,
    edge: EdgeTimes,
}

impl Observer {
    pub(super) fn new(mesh: &Mesh) -> Self {
        let sidecar = |replica: &super::mesh::Replica, is_replica| Sidecar {
            id: replica.id.clone(),
            admin: replica.at.admin,
            replica: is_replica,
            state: Mutex::default(),
        };
        let mut sidecars: Vec<_> = mesh.orders.iter().map(|replica| sidecar(replica, true)).collect();
        sidecars.push(sidecar(&mesh.storefront, false));
        Self { sidecars }
    }

    /// Reads the metrics of every sidecar that answers.
    pub(super) async fn look(&self) {
        for sidecar in &self.sidecars {
            sidecar.look().await;
        }
    }

    /// Reads the storefront's sidecar alone.
    pub(super) async fn look_at_client(&self) {
        for sidecar in self.sidecars.iter().filter(|sidecar| !sidecar.replica) {
            sidecar.look().await;
        }
    }

    /// A sidecar was killed: what it counted stays, what comes next counts from zero.
    pub(super) fn killed(&self, id: &str) {
        for sidecar in self.sidecars.iter().filter(|sidecar| sidecar.id == id) {
            let mut state = sidecar.state();
            let now = std::mem::take(&mut state.now);
            state.past = state.past.plus(now);
            let repairs = std::mem::take(&mut state.repairs);
            state.past_repairs = std::mem::take(&mut state.past_repairs).plus(&repairs);
            state.life += 1;
        }
    }

    /// All sidecars together, since they first started.
    pub(super) fn totals(&self) -> Counts {
        self.sidecars.iter().fold(Counts::default(), |sum, sidecar| sum.plus(sidecar.counts()))
    }

    /// The storefront's sidecar alone.
    pub(super) fn client(&self) -> Counts {
        self.sidecars
            .iter()
            .filter(|sidecar| !sidecar.replica)
            .fold(Counts::default(), |sum, s| sum.plus(s.counts()))
    }

    /// What all sidecars did about failures, since they first started.
    pub(super) fn repairs(&self) -> Repairs {
        self.sidecars.iter().fold(Repairs::default(), |sum, sidecar| {
            let state = sidecar.state();
            sum.plus(&state.past_repairs).plus(&state.repairs)
        })
    }

    /// Requests served by each replica of the order service.
    pub(super) fn served(&self) -> Vec<(String, f64)> {
        let replicas = self.sidecars.iter().filter(|sidecar| sidecar.replica);
        replicas.map(|sidecar| (sidecar.id.clone(), sidecar.counts().inbound)).collect()
    }

    /// The edge from the storefront to the orders.
    pub(super) fn edge(&self) -> EdgeTimes {
        let client = self.sidecars.iter().find(|sidecar| !sidecar.replica);
        client.map(|sidecar| sidecar.state().edge.clone()).unwrap_or_default()
    }
}

impl Sidecar {
    async fn look(&self) {
        let life = self.state().life;
        // A sidecar that is down says nothing, and what it said last still holds.
        let Ok((http::StatusCode::OK, body)) = get(self.admin, "/metrics").await else { return };
        let scrape = Scrape::parse(&String::from_utf8_lossy(&body));
        let mut state = self.state();
        if state.life == life {
            state.now = counts(&scrape);
            state.repairs = Repairs::read(&scrape);
            state.edge = edge(&scrape);
        }
    }

    fn counts(&self) -> Counts {
        let state = self.state();
        state.past.plus(state.now)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counts {
    fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    /// What was counted since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self { ejected_now: self.ejected_now, ..self.zip(earlier, |a, b| a - b) }
    }

    fn zip(self, other: Self, f: impl Fn(f64, f64) -> f64) -> Self {
        Self {
            requests: f(self.requests, other.requests),
            mutual: f(self.mutual, other.mutual),
            inbound: f(self.inbound, other.inbound),
            outbound: f(self.outbound, other.outbound),
            retries: f(self.retries, other.retries),
            ejections: f(self.ejections, other.ejections),
            ejected_now: f(self.ejected_now, other.ejected_now),
            spans: f(self.spans, other.spans),
        }
    }
}

impl EdgeTimes {
    /// What was observed since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Self {
        Self {
            source: self.source.clone(),
            duration: self.duration.since(&earlier.duration),
            processing: self.processing.since(&earlier.processing),
            transmit: self.transmit.since(&earlier.transmit),
        }
    }
}

fn counts(scrape: &Scrape) -> Counts {
    let requests = |labels: &[(&str, &str)]| scrape.sum("mesh_requests_total", labels);
    Counts {
        requests: requests(&[]),
        mutual: requests(&[("tls", "mutual")]),
        inbound: requests(&[("direction", "inbound")]),
        outbound: requests(&[("direction", "outbound")]),
        retries: scrape.sum("mesh_retries_total", &[("outcome", "sent")]),
        ejections: scrape.sum("mesh_circuit_breaker_transitions_total", &[("to", "open")]),
        ejected_now: scrape.sum("mesh_circuit_breaker_open", &[]),
        spans: scrape.sum("mesh_spans_exported_total", &[]),
    }
}

fn edge(scrape: &Scrape) -> EdgeTimes {
    let destination = format!("{ORDERS}.{NAMESPACE}");
    let labels = [("direction", "outbound"), ("destination", destination.as_str())];
    let source = scrape.values_of("mesh_request_duration_seconds_count", "source", &labels);
    EdgeTimes {
        source: source.into_iter().next().unwrap_or_default(),
        duration: scrape.histogram("mesh_request_duration_seconds", &labels),
        processing: scrape.histogram("mesh_request_processing_seconds", &labels),
        transmit: scrape.histogram("mesh_request_transmit_seconds", &labels),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_of_a_killed_sidecar_stay() {
        let sidecar = Sidecar {
            id: "a".into(),
            admin: "127.0.0.1:1".parse().unwrap(),
            replica: true,
            state: Mutex::default(),
        };
        sidecar.state().now = Counts { inbound: 5.0, requests: 5.0, ..Counts::default() };
        let observer = Observer { sidecars: vec![sidecar] };
        observer.killed("a");
        assert_eq!(observer.served(), [("a".to_owned(), 5.0)]);
        observer.sidecars[0].state().now = Counts { inbound: 2.0, requests: 2.0, ..Counts::default() };
        assert_eq!(observer.served(), [("a".to_owned(), 7.0)]);
        assert_eq!(observer.totals().requests, 7.0);
    }
}
