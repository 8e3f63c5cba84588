use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::*;

mod breaker;
mod ewma;
mod floor;
mod hashing;
mod policy;
mod shares;
mod simulation;
mod slow_start;
mod zones;

/// An endpoint of a test.
#[derive(Debug)]
struct Fake {
    key: String,
    state: EndpointState,
    healthy: AtomicBool,
    tried: AtomicBool,
    weight: u32,
    zone: Option<&'static str>,
}

impl Candidate for Fake {
    fn state(&self) -> &EndpointState {
        &self.state
    }
    fn healthy(&self) -> bool {
        self.healthy.load(Ordering::Relaxed)
    }
    fn key(&self) -> &str {
        &self.key
    }
    fn weight(&self) -> u32 {
        self.weight
    }
    fn zone(&self) -> Option<&str> {
        self.zone
    }
}

fn fake(name: usize, now: Instant) -> Fake {
    Fake {
        key: format!("endpoint-{name}"),
        state: EndpointState::new(now),
        healthy: AtomicBool::new(true),
        tried: AtomicBool::new(false),
        weight: 100,
        zone: None,
    }
}

fn fakes(count: usize, now: Instant) -> Vec<Arc<Fake>> {
    (0..count).map(|name| Arc::new(fake(name, now))).collect()
}

fn weighted(weights: &[u32], now: Instant) -> Vec<Arc<Fake>> {
    let fakes = weights.iter().enumerate();
    fakes.map(|(name, &weight)| Arc::new(Fake { weight, ..fake(name, now) })).collect()
}

fn settings(algorithm: Algorithm) -> Settings {
    Settings { algorithm, ..Settings::default() }
}

fn group(endpoints: &[Arc<Fake>], now: Instant) -> Group<Fake> {
    Group::new(Settings::default(), endpoints.to_vec(), None, now)
}

fn pick_hash(
    group: &Group<Fake>,
    hash: Option<u64>,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Option<Pick<Fake>> {
    group.pick(&Ask { tried: &|fake: &Fake| fake.tried.load(Ordering::Relaxed), hash }, now, rng)
}

fn pick(group: &Group<Fake>, now: Instant, rng: &mut fastrand::Rng) -> Option<Pick<Fake>> {
    pick_hash(group, None, now, rng)
}

/// A pick that must be of this endpoint: all others count as tried.
fn pick_only(group: &Group<Fake>, endpoint: &Arc<Fake>, now: Instant) -> Pick<Fake> {
    let ask = Ask { tried: &|one: &Fake| !std::ptr::eq(one, endpoint.as_ref()), hash: None };
    group.pick(&ask, now, &mut fastrand::Rng::with_seed(0)).expect("it is there")
}

fn index(endpoints: &[Arc<Fake>], pick: &Pick<Fake>) -> usize {
    endpoints.iter().position(|one| Arc::ptr_eq(one, pick.endpoint())).expect("one of them")
}

const BROKEN: Outcome = Outcome::Failure { kind: FailureKind::Connection, elapsed: Duration::ZERO };
const FAILED: Outcome = Outcome::Failure { kind: FailureKind::Status, elapsed: Duration::from_millis(1) };

fn success(milliseconds: u64) -> Outcome {
    Outcome::Success { latency: Duration::from_millis(milliseconds) }
}

fn report(group: &Group<Fake>, endpoint: &Arc<Fake>, outcome: &Outcome, now: Instant) -> Transition {
    group.report(pick_only(group, endpoint, now), outcome, now)
}

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
