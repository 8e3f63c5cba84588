//! Whether the application is ready, port by port: what the registry tells callers.
//!
//! Each port is checked on its own, so that one that hangs delays neither the others nor the lease.

pub mod probe;

use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_common::tasks::Tasks;
use tokio::sync::watch;

use self::probe::Failure;
use crate::config::{self, Served};
use crate::telemetry::metrics::Metrics;

/// How often a port must answer otherwise in a row before it counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// Failures, at least 1.
    pub unhealthy_after: u32,
    /// Successes, at least 1.
    pub healthy_after: u32,
}

/// What is known of one port. Unhealthy until it has been checked.
#[derive(Debug, Clone, Default)]
pub struct Port {
    healthy: bool,
    checked: bool,
    /// Checks in a row that contradict `healthy`.
    row: u32,
    failure: Option<Failure>,
    since: Option<Instant>,
}

impl Port {
    /// Whether callers are sent to it.
    pub fn healthy(&self) -> bool {
        self.healthy
    }

    /// Whether it has been checked at all.
    pub fn checked(&self) -> bool {
        self.checked
    }

    /// What the last check failed with.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    /// Failures in a row of a port that still counts as healthy, or successes of one that does not yet.
    pub fn row(&self) -> u32 {
        self.row
    }

    /// When it became what it is.
    pub fn since(&self) -> Option<Instant> {
        self.since
    }

    /// Takes a check's result. Returns whether that is news: the first, or one too many of the other kind.
    ///
    /// A refused connection counts at once: the kernel that says so is this machine's own, and nothing
    /// between us and it can lose a packet. All else can be one long pause of an application that is
    /// well: to take it out for that moves its load to the others, which pause next.
    fn observe(&mut self, result: Result<(), Failure>, thresholds: Thresholds, now: Instant) -> bool {
        let ok = result.is_ok();
        self.failure = result.err();
        let enough = match &self.failure {
            None => thresholds.healthy_after,
            Some(Failure::Refused) => 1,
            Some(_) => thresholds.unhealthy_after,
        };
        self.row = if ok == self.healthy { 0 } else { self.row.saturating_add(1) };
        let turned = self.row >= enough;
        if turned {
            (self.healthy, self.row) = (ok, 0);
        }
        let first = !std::mem::replace(&mut self.checked, true);
        if turned || first {
            self.since = Some(now);
        }
        turned || first
    }
}

/// The ports of the application, in the order of the configuration.
#[derive(Debug)]
pub struct Health(watch::Sender<Vec<Port>>);

impl Health {
    /// Nothing known of any of `ports` ports.
    pub fn new(ports: usize) -> Self {
        Self(watch::Sender::new(vec![Port::default(); ports]))
    }

    /// Hears of ports that became healthy or unhealthy, and of the first check of each.
    pub fn listen(&self) -> watch::Receiver<Vec<Port>> {
        self.0.subscribe()
    }

    /// What is known now.
    pub fn ports(&self) -> Vec<Port> {
        self.0.borrow().clone()
    }

    /// What an operator should know: which ports are unhealthy, and why.
    pub fn notes(&self, services: &[Served]) -> Vec<String> {
        let ports = self.0.borrow();
        let unhealthy = services.iter().zip(ports.iter()).filter(|(_, port)| !port.healthy);
        let note = |(served, port): (&Served, &Port)| {
            let why = match &port.failure {
                Some(failure) => failure.to_string(),
                None if port.checked => format!("{} successes in a row so far", port.row),
                None => "not checked yet".to_owned(),
            };
            format!("{}:{} at {} is unhealthy: {why}", served.name, served.port, served.target)
        };
        unhealthy.map(note).collect()
    }

    fn observe(&self, index: usize, served: &Served, result: Result<(), Failure>, how: &How) {
        let mut told = None;
        self.0.send_if_modified(|ports| {
            let Some(port) = ports.get_mut(index) else { return false };
            let news = port.observe(result, how.thresholds, Instant::now());
            told = news.then(|| port.clone());
            news
        });
        let Some(port) = told else { return };
        how.metrics.application_healthy(&served.name, served.port, port.healthy);
        let (service, target) = (format!("{}:{}", served.name, served.port), served.target);
        match port.failure {
            Some(why) => {
                tracing::warn!(service, %target, check = %served.health, %why, "the application is unhealthy");
            }
            None if port.healthy => tracing::info!(service, %target, "the application is healthy"),
            None => tracing::info!(service, %target, "the application is not healthy for long enough yet"),
        }
    }
}

/// How the ports are checked.
#[derive(Debug, Clone)]
pub struct How {
    /// From the beginning of a check to that of the next; sooner than that only the end of a longer one.
    pub interval: Duration,
    /// Longest check.
    pub timeout: Duration,
    /// What counts.
    pub thresholds: Thresholds,
    /// Where it shows.
    pub metrics: Arc<Metrics>,
    /// Where checks run.
    pub tasks: Tasks,
}

impl How {
    /// As configured.
    pub fn new(health: &config::Health, metrics: Arc<Metrics>, tasks: Tasks) -> Self {
        let thresholds =
            Thresholds { unhealthy_after: health.unhealthy_after, healthy_after: health.healthy_after };
        Self { interval: health.interval, timeout: health.timeout, thresholds, metrics, tasks }
    }
}

/// Checks every port, for ever, in tasks of `how`.
pub fn start(health: &Arc<Health>, services: &[Served], how: &How) {
    for (index, served) in services.iter().enumerate() {
        let (health, served, how) = (health.clone(), served.clone(), how.clone());
        how.tasks.clone().spawn("health check", async move {
            loop {
                let next = tokio::time::Instant::now() + how.interval;
                let result = probe::check(&served, how.timeout, &how.tasks).await;
                health.observe(index, &served, result, &how);
                tokio::time::sleep_until(next).await;
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> Result<(), Failure> {
        Err(Failure::Timeout(Duration::from_secs(1)))
    }

    /// Whether it is healthy after each of the results.
    fn after(thresholds: Thresholds, results: Vec<Result<(), Failure>>) -> Vec<bool> {
        let (mut port, mut before) = (Port::default(), None);
        let healthy = |result| {
            let news = port.observe(result, thresholds, Instant::now());
            assert_eq!(news, before != Some(port.healthy), "news is what changed");
            before = Some(port.healthy);
            port.healthy
        };
        results.into_iter().map(healthy).collect()
    }

    #[test]
    fn one_bad_check_is_none_and_a_row_of_them_is() {
        let thresholds = Thresholds { unhealthy_after: 3, healthy_after: 2 };
        let ok = Ok(());
        assert_eq!(
            after(
                thresholds,
                vec![
                    late(),
                    ok.clone(),
                    late(),
                    ok.clone(),
                    ok.clone(),
                    late(),
                    late(),
                    ok.clone(),
                    late(),
                    late(),
                    late(),
                    ok.clone(),
                    ok
                ]
            ),
            [false, false, false, false, true, true, true, true, true, true, false, false, true]
        );
    }

    #[test]
    fn a_refused_connection_counts_at_once() {
        let thresholds = Thresholds { unhealthy_after: 3, healthy_after: 1 };
        let results = vec![Ok(()), Err(Failure::Refused), Ok(()), late(), Err(Failure::Refused), Ok(())];
        assert_eq!(after(thresholds, results), [true, false, true, true, false, true]);
    }

    #[test]
    fn the_notes_say_why() {
        let served = Served {
            name: "orders".into(),
            port: 80,
            protocol: outrigger_api::resource::Protocol::Http1,
            target: ([127, 0, 0, 1], 8080).into(),
            health: config::Check::Tcp,
            probes: Vec::new(),
        };
        let health = Health::new(1);
        let how = How {
            interval: Duration::ZERO,
            timeout: Duration::ZERO,
            thresholds: Thresholds { unhealthy_after: 1, healthy_after: 2 },
            metrics: Arc::new(Metrics::new(1)),
            tasks: Tasks::on(tokio::runtime::Builder::new_current_thread().build().unwrap().handle().clone()),
        };
        let notes = || health.notes(std::slice::from_ref(&served));
        let mut said = vec![notes()];
        for result in [late(), Ok(()), Ok(())] {
            health.observe(0, &served, result, &how);
            said.push(notes());
        }
        let line = |why: &str| vec![format!("orders:80 at 127.0.0.1:8080 is unhealthy: {why}")];
        assert_eq!(
            said,
            [
                line("not checked yet"),
                line("no answer within 1s"),
                line("1 successes in a row so far"),
                Vec::new()
            ]
        );
    }
}
