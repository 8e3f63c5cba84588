//! An endpoint that refused or broke a connection is set aside: 1 s, doubling to 10 s.

use std::sync::Mutex;
use std::time::{Duration, Instant};

const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);

/// Whether and how long an endpoint is set aside.
#[derive(Debug, Default)]
pub struct Ejection(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    until: Option<Instant>,
    failures: u32,
}

/// What a report changed, for the metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    /// Nothing.
    None,
    /// Set aside.
    Opened,
    /// Taken back.
    Closed,
}

impl Ejection {
    /// A connection to the endpoint was refused or broke. While it is set aside, further reports (of
    /// requests that were already on their way) do not lengthen the time.
    pub fn failed(&self, now: Instant) -> Transition {
        let mut state = self.0.lock().expect("no holder of this lock panics");
        if state.until.is_some_and(|until| now < until) {
            return Transition::None;
        }
        let time = FIRST.saturating_mul(1 << state.failures.min(8)).min(LONGEST);
        state.failures += 1;
        state.until = Some(now + time);
        Transition::Opened
    }

    /// The endpoint answered after its time: the slate is clean.
    pub fn succeeded(&self, now: Instant) -> Transition {
        let mut state = self.0.lock().expect("no holder of this lock panics");
        match state.until {
            Some(until) if now >= until => {
                *state = State::default();
                Transition::Closed
            }
            // Answers to requests sent before the failure prove nothing.
            Some(_) | None => Transition::None,
        }
    }

    /// Whether its time is over but it has not answered since.
    pub fn recovering(&self, now: Instant) -> bool {
        self.0.lock().expect("no holder of this lock panics").until.is_some_and(|until| now >= until)
    }

    /// Whether it is set aside.
    pub fn ejected(&self, now: Instant) -> bool {
        self.0.lock().expect("no holder of this lock panics").until.is_some_and(|until| now < until)
    }
}
