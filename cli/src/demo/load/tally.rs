//! What became of the requests: counts, delays, and the names of failures.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::super::metrics::{DelayMs, round};

/// Longest delay told apart, in microseconds: a minute.
const LONGEST: u64 = 60_000_000;
/// Kinds of failures kept apart; one more is counted as `other`.
const KINDS: usize = 20;
/// Sampled traces remembered, the newest.
const TRACES: usize = 8;

/// Counts of a load, growing while it runs.
#[derive(Debug, Clone)]
pub(crate) struct Tally {
    pub(crate) issued: u64,
    pub(crate) succeeded: u64,
    pub(crate) in_flight: u64,
    pub(crate) failures: BTreeMap<String, u64>,
    /// From the start of the load to the last success.
    pub(crate) last_success: Duration,
    delay: Histogram<u64>,
    recent: Histogram<u64>,
    traces: VecDeque<String>,
    watching: bool,
    watched: Vec<Watched>,
}

/// Requests that were due in some span of time.
#[derive(Debug, Clone)]
struct Watched {
    requests: u64,
    failures: u64,
    delay: Histogram<u64>,
}

/// What the client noticed of requests that were due in some span of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Noticed {
    pub(crate) requests: u64,
    pub(crate) failures: u64,
    /// Of those that succeeded.
    pub(crate) p99_ms: f64,
    pub(crate) slowest_ms: f64,
}

/// What happened since the last look.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Recent {
    pub(crate) succeeded: u64,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Tally {
    pub(super) fn new() -> Self {
        let histogram = histogram(3);
        Self {
            issued: 0,
            succeeded: 0,
            in_flight: 0,
            failures: BTreeMap::new(),
            last_success: Duration::ZERO,
            recent: histogram.clone(),
            delay: histogram,
            traces: VecDeque::new(),
            watching: false,
            watched: Vec::new(),
        }
    }

    /// From now on requests are watched on their own, until [`Tally::watch_no_more`].
    pub(crate) fn watch(&mut self) {
        self.watching = true;
        // Two digits: a hundredth of the memory, and a fault has few requests.
        self.watched.push(Watched { requests: 0, failures: 0, delay: histogram(2) });
    }

    /// Requests due from now on belong to no watch.
    pub(crate) fn watch_no_more(&mut self) {
        self.watching = false;
    }

    /// What the watch of this number, from 0, has seen so far.
    pub(crate) fn noticed(&self, number: usize) -> Noticed {
        let Some(Watched { requests, failures, delay }) = self.watched.get(number) else {
            return Noticed::default();
        };
        let ms = |micros: u64| round(as_float(micros) / 1000.0);
        Noticed {
            requests: *requests,
            failures: *failures,
            p99_ms: ms(delay.value_at_quantile(0.99)),
            slowest_ms: ms(delay.max()),
        }
    }

    /// A request is due; returns the watch it belongs to.
    pub(super) fn due(&mut self) -> Option<usize> {
        self.issued += 1;
        let number = self.watched.len().checked_sub(1).filter(|_| self.watching)?;
        self.watched[number].requests += 1;
        Some(number)
    }

    /// A request succeeded `delay` after it was due, at `now` since the start.
    pub(super) fn success(&mut self, delay: Duration, now: Duration, watch: Option<usize>) {
        self.succeeded += 1;
        self.last_success = self.last_success.max(now);
        let micros = u64::try_from(delay.as_micros()).unwrap_or(u64::MAX);
        self.delay.saturating_record(micros);
        self.recent.saturating_record(micros);
        if let Some(watched) = self.watched_by(watch) {
            watched.delay.saturating_record(micros);
        }
    }

    /// A request failed.
    pub(super) fn failure(&mut self, kind: &str, watch: Option<usize>) {
        if let Some(watched) = self.watched_by(watch) {
            watched.failures += 1;
        }
        let known = self.failures.contains_key(kind) || self.failures.len() < KINDS;
        let kind = if known { kind } else { "other" };
        *self.failures.entry(kind.to_owned()).or_default() += 1;
    }

    fn watched_by(&mut self, watch: Option<usize>) -> Option<&mut Watched> {
        self.watched.get_mut(watch?)
    }

    /// A request with this sampled trace succeeded.
    pub(super) fn traced(&mut self, id: String) {
        if self.traces.len() == TRACES {
            self.traces.pop_front();
        }
        self.traces.push_back(id);
    }

    /// Sampled traces of requests that succeeded, the newest first.
    pub(crate) fn traces(&self) -> Vec<String> {
        self.traces.iter().rev().cloned().collect()
    }

    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().sum()
    }

    /// Delays of all successes.
    pub(crate) fn delay(&self) -> DelayMs {
        let ms = |micros: f64| round(micros / 1000.0);
        let quantile = |quantile: f64| ms(as_float(self.delay.value_at_quantile(quantile)));
        DelayMs {
            mean: ms(self.delay.mean()),
            p50: quantile(0.5),
            p90: quantile(0.9),
            p99: quantile(0.99),
            p999: quantile(0.999),
        }
    }

    /// What happened since the last call.
    pub(crate) fn take_recent(&mut self) -> Recent {
        let ms = |quantile: f64| as_float(self.recent.value_at_quantile(quantile)) / 1000.0;
        let recent = Recent { succeeded: self.recent.len(), p50_ms: ms(0.5), p99_ms: ms(0.99) };
        self.recent.reset();
        recent
    }
}

fn histogram(digits: u8) -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST, digits).expect("1 to a minute with 2 or 3 digits are valid bounds")
}

/// Counts and microseconds here stay far below 2^53.
#[allow(clippy::cast_precision_loss)]
pub(crate) fn as_float(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_those_of_successes_and_recent_ones_start_over() {
        let mut tally = Tally::new();
        for ms in 1..=100 {
            tally.success(Duration::from_millis(ms), Duration::from_millis(ms), None);
        }
        tally.failure("status 503", None);
        assert_eq!((tally.succeeded, tally.failed()), (100, 1));
        let delay = tally.delay();
        assert!((delay.p50 - 50.0).abs() < 0.1 && (delay.p99 - 99.0).abs() < 0.1, "{delay:?}");
        assert!((delay.mean - 50.5).abs() < 0.1, "{delay:?}");
        assert_eq!(tally.take_recent().succeeded, 100);
        assert_eq!(tally.take_recent().succeeded, 0);
        assert_eq!(tally.last_success, Duration::from_millis(100));
    }

    #[test]
    fn a_request_belongs_to_the_watch_it_was_due_in_however_late_it_ends() {
        let mut tally = Tally::new();
        let ms = Duration::from_millis;
        assert_eq!((tally.due(), tally.noticed(0)), (None, Noticed::default()));
        tally.watch();
        let [late, failed] = [tally.due(), tally.due()];
        tally.watch_no_more();
        let after = tally.due();
        tally.success(ms(400), ms(400), late);
        tally.failure("status 503", failed);
        tally.success(ms(900), ms(900), after);
        let noticed = tally.noticed(0);
        assert_eq!((noticed.requests, noticed.failures, tally.issued), (2, 1, 4));
        assert!(
            (noticed.slowest_ms - 400.0).abs() < 4.0 && noticed.p99_ms <= noticed.slowest_ms,
            "{noticed:?}"
        );
        tally.watch();
        let next = tally.due();
        tally.success(ms(5), ms(5), next);
        assert!(tally.noticed(1).slowest_ms < 6.0);
    }

    #[test]
    fn kinds_of_failures_and_traces_are_bounded() {
        let mut tally = Tally::new();
        for number in 0..100 {
            tally.failure(&format!("kind {number}"), None);
            tally.traced(number.to_string());
        }
        assert_eq!(tally.failures.len(), KINDS + 1);
        assert_eq!(tally.failed(), 100);
        assert_eq!(tally.traces().first().map(String::as_str), Some("99"));
        assert_eq!(tally.traces().len(), TRACES);
    }
}
