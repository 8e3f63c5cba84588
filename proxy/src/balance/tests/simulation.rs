//! Sidecars call a service whose endpoints fail in every way, in simulated time: balancer, breaker,
//! retry budget and in-flight limit together. After each event the promises of all of them are
//! checked, and that all is well again some time after the last fault.

use std::collections::{BTreeMap, VecDeque};

use super::*;
use crate::policy::budget::{self, RetryBudget};
use crate::policy::limit::{Bound, BoundPermit};

const SEEDS: u64 = 300;
const ATTEMPTS: usize = 3;
const TIMEOUT: Duration = Duration::from_secs(1);
/// Until then faults happen.
const FAULTS: Duration = Duration::from_secs(40);
/// Longest ejection, a failed probe's cost decayed, and a slow start.
const SETTLED: Duration = Duration::from_secs(130);
const END: Duration = Duration::from_secs(170);
const BUDGET: budget::Settings = budget::Settings { share: 0.2, min_per_second: 1.0 };

#[derive(Debug, Clone, Copy)]
enum Mode {
    Well,
    Slow,
    Refusing,
    Hung,
    /// This share of the requests.
    Failing(f64),
    Throttling,
}

struct Server {
    mode: Mode,
    present: bool,
    healthy: bool,
    weight: u32,
    zone: Option<&'static str>,
    in_flight: u32,
}

struct Sidecar {
    group: Arc<Group<Fake>>,
    /// By server; the same as long as that stays.
    endpoints: Vec<Option<Arc<Fake>>>,
    budget: RetryBudget,
    bound: Arc<Bound>,
    limit: u32,
    in_flight: u32,
    probes: Vec<u32>,
    requests: VecDeque<Duration>,
    retries: VecDeque<Duration>,
    served: Vec<u32>,
}

struct Call {
    sidecar: usize,
    tried: Vec<Arc<Fake>>,
    hash: u64,
    _permit: BoundPermit,
}

struct Attempt {
    call: Call,
    server: usize,
    group: Arc<Group<Fake>>,
    pick: Pick<Fake>,
    /// `None`: the client went away.
    outcome: Option<Outcome>,
}

enum Event {
    Arrive(usize),
    Done(Box<Attempt>),
    Fault,
    Recover,
}

/// What the seeds came across, for a simulation in which nothing happens proves nothing.
#[derive(Debug, Default)]
struct Seen {
    opened: u32,
    closed: u32,
    probes: u32,
    retries: u32,
    refused: u32,
    shed: u32,
    last_resort: u32,
    at_floor: u32,
}

struct World {
    seed: u64,
    rng: fastrand::Rng,
    start: Instant,
    now: Duration,
    events: BTreeMap<(Duration, u64), Event>,
    scheduled: u64,
    settings: Settings,
    servers: Vec<Server>,
    sidecars: Vec<Sidecar>,
    rate: f64,
    seen: Seen,
}

#[test]
fn promises_hold_whatever_fails_and_all_is_well_afterwards() {
    let of_two =
        |first: u64| (first..SEEDS).step_by(2).map(|seed| World::new(seed).run()).collect::<Vec<_>>();
    let seen = std::thread::scope(|scope| {
        let other = scope.spawn(move || of_two(1));
        let mut seen = of_two(0);
        seen.extend(other.join().expect("its panic names the seed"));
        seen
    });
    let mut all = Seen::default();
    for seen in seen {
        all.opened += seen.opened;
        all.closed += seen.closed;
        all.probes += seen.probes;
        all.retries += seen.retries;
        all.refused += seen.refused;
        all.shed += seen.shed;
        all.last_resort += seen.last_resort;
        all.at_floor += seen.at_floor;
    }
    let Seen { opened, closed, probes, retries, refused, shed, last_resort, at_floor } = all;
    for count in [opened, closed, probes, retries, refused, shed, last_resort, at_floor] {
        assert!(count > 100, "too little happens");
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let start = Instant::now();
        let even = rng.bool();
        let zones = rng.u8(..3) == 0;
        let servers = (0..rng.usize(1..9))
            .map(|_| Server {
                mode: Mode::Well,
                present: true,
                healthy: true,
                weight: if even { 100 } else { rng.u32(50..200) },
                zone: if zones { Some(["near", "far"][rng.usize(..2)]) } else { None },
                in_flight: 0,
            })
            .collect::<Vec<_>>();
        let zone = zones.then(|| ZoneSettings { own: "near".into(), min_usable: 0.7 });
        let settings = Settings { zone, ..settings(shares::ALL[rng.usize(..5)]) };
        let rate = 10.0 + 15.0 * rng.f64();
        let mut world = Self {
            seed,
            start,
            now: Duration::ZERO,
            events: BTreeMap::new(),
            scheduled: 0,
            settings,
            servers,
            sidecars: Vec::new(),
            rate,
            seen: Seen::default(),
            rng,
        };
        for sidecar in 0..world.rng.usize(1..3) {
            let limit = world.rng.u32(3..12);
            world.sidecars.push(Sidecar {
                group: Arc::new(Group::new(world.settings.clone(), Vec::new(), None, start)),
                endpoints: Vec::new(),
                budget: RetryBudget::new(BUDGET, start),
                bound: Bound::new(limit),
                limit,
                in_flight: 0,
                probes: Vec::new(),
                requests: VecDeque::new(),
                retries: VecDeque::new(),
                served: Vec::new(),
            });
            world.update(sidecar);
            world.schedule(Duration::ZERO, Event::Arrive(sidecar));
        }
        for _ in 0..world.rng.u32(3..12) {
            let at = FAULTS.mul_f64(world.rng.f64());
            world.schedule(at, Event::Fault);
        }
        world.schedule(FAULTS, Event::Recover);
        world
    }

    fn run(mut self) -> Seen {
        while let Some(((at, _), event)) = self.events.pop_first() {
            self.now = at;
            match event {
                Event::Arrive(sidecar) => self.arrive(sidecar),
                Event::Done(attempt) => self.done(*attempt),
                Event::Fault => self.fault(),
                Event::Recover => self.recover(),
            }
            self.check_floor();
        }
        self.check_settled();
        self.seen
    }

    fn at(&self) -> Instant {
        self.start + self.now
    }

    fn schedule(&mut self, at: Duration, event: Event) {
        self.scheduled += 1;
        self.events.insert((at, self.scheduled), event);
    }

    fn arrive(&mut self, index: usize) {
        let gap = -(1.0 - self.rng.f64()).ln() / self.rate;
        let next = self.now + Duration::from_secs_f64(gap);
        if next < END {
            self.schedule(next, Event::Arrive(index));
        }
        let (now, hash) = (self.at(), self.rng.u64(..));
        let sidecar = &mut self.sidecars[index];
        let Some(permit) = sidecar.bound.try_acquire() else {
            assert_eq!(sidecar.in_flight, sidecar.limit, "seed {}: shed below the limit", self.seed);
            self.seen.shed += 1;
            return;
        };
        sidecar.in_flight += 1;
        assert!(sidecar.in_flight <= sidecar.limit, "seed {}: above the in-flight limit", self.seed);
        sidecar.budget.request(now);
        sidecar.requests.push_back(self.now);
        self.attempt(Call { sidecar: index, tried: Vec::new(), hash, _permit: permit });
    }

    fn attempt(&mut self, call: Call) {
        let now = self.at();
        let sidecar = &self.sidecars[call.sidecar];
        let group = sidecar.group.clone();
        let tried = |fake: &Fake| call.tried.iter().any(|one| std::ptr::eq(one.as_ref(), fake));
        let tier = |fake: &Fake| match (fake.healthy(), group.look(fake, now).status) {
            (false, _) => 2,
            (true, Status::Closed | Status::HalfOpen { probing: false }) => 0,
            (true, _) => 1,
        };
        let best = group.endpoints().iter().filter(|fake| !tried(fake)).map(|fake| tier(fake)).min();
        let tiers: Vec<u8> = group.endpoints().iter().map(|fake| tier(fake)).collect();
        let ask = Ask { tried: &tried, hash: Some(call.hash) };
        let pick = group.pick(&ask, now, &mut self.rng);
        assert_eq!(pick.is_some(), best.is_some(), "seed {}: nothing picked", self.seed);
        let Some(pick) = pick else { return self.end(&call) };
        let picked = group.endpoints().iter().position(|one| Arc::ptr_eq(one, pick.endpoint())).unwrap();
        assert_eq!(Some(tiers[picked]), best, "seed {}: a worse one while a better one exists", self.seed);
        assert!(!tried(pick.endpoint()), "seed {}", self.seed);
        self.seen.last_resort += u32::from(tiers[picked] > 0);
        self.send(call, pick, group);
    }

    fn send(&mut self, mut call: Call, pick: Pick<Fake>, group: Arc<Group<Fake>>) {
        let sidecar = &mut self.sidecars[call.sidecar];
        let same =
            |one: &Option<Arc<Fake>>| one.as_ref().is_some_and(|one| Arc::ptr_eq(one, pick.endpoint()));
        let server = sidecar.endpoints.iter().position(same).expect("the group is the newest");
        if pick.is_probe() {
            sidecar.probes[server] += 1;
            self.seen.probes += 1;
            assert_eq!(sidecar.probes[server], 1, "seed {}: two probes at once", self.seed);
        }
        if self.now >= SETTLED {
            sidecar.served[server] += 1;
        }
        call.tried.push(pick.endpoint().clone());
        pick.endpoint().state.begin();
        let (took, mut outcome) = self.serve(server);
        if self.rng.u8(..50) == 0 {
            outcome = None;
        }
        let attempt = Attempt { call, server, group, pick, outcome };
        self.schedule(self.now + took, Event::Done(Box::new(attempt)));
    }

    fn serve(&mut self, server: usize) -> (Duration, Option<Outcome>) {
        let Server { mode, in_flight, present, .. } = &mut self.servers[server];
        *in_flight += 1;
        let usual = ms(5).mul_f64((0.5 + self.rng.f64()) * (1.0 + f64::from(*in_flight) / 8.0));
        let failure = |kind, elapsed| (elapsed, Some(Outcome::Failure { kind, elapsed }));
        match *mode {
            _ if !*present => failure(FailureKind::Connection, ms(1)),
            Mode::Slow => (ms(500), Some(success(500))),
            Mode::Refusing => failure(FailureKind::Connection, ms(1)),
            Mode::Hung => failure(FailureKind::Timeout, TIMEOUT),
            Mode::Failing(share) if self.rng.f64() < share => failure(FailureKind::Status, ms(2)),
            Mode::Throttling => (ms(1), Some(Outcome::Throttled { elapsed: ms(1), retry_after: None })),
            Mode::Well | Mode::Failing(_) => (usual, Some(Outcome::Success { latency: usual })),
        }
    }

    fn done(&mut self, attempt: Attempt) {
        let Attempt { call, server, group, pick, outcome } = attempt;
        let now = self.at();
        let sidecar = &mut self.sidecars[call.sidecar];
        self.servers[server].in_flight -= 1;
        pick.endpoint().state.end();
        if pick.is_probe() {
            sidecar.probes[server] -= 1;
        }
        let Some(outcome) = outcome else {
            drop(pick);
            return self.end(&call);
        };
        match group.report(pick, &outcome, now) {
            Transition::None => {}
            Transition::Opened => self.seen.opened += 1,
            Transition::Closed => self.seen.closed += 1,
        }
        if !matches!(outcome, Outcome::Failure { .. }) || call.tried.len() == ATTEMPTS {
            return self.end(&call);
        }
        if !sidecar.budget.withdraw(now) {
            self.seen.refused += 1;
            return self.end(&call);
        }
        self.seen.retries += 1;
        sidecar.retries.push_back(self.now);
        for log in [&mut sidecar.requests, &mut sidecar.retries] {
            while log.front().is_some_and(|&at| at + budget::WINDOW <= self.now) {
                log.pop_front();
            }
        }
        let most = BUDGET.share * sidecar.requests.len() as f64
            + BUDGET.min_per_second * budget::WINDOW.as_secs_f64();
        assert!(sidecar.retries.len() as f64 <= most, "seed {}: above the budget", self.seed);
        self.attempt(call);
    }

    fn end(&mut self, call: &Call) {
        self.sidecars[call.sidecar].in_flight -= 1;
    }

    /// Something breaks, recovers, comes or goes.
    fn fault(&mut self) {
        let index = self.rng.usize(..self.servers.len());
        let server = &mut self.servers[index];
        match self.rng.u8(..10) {
            0 => server.mode = Mode::Slow,
            1 | 2 => server.mode = Mode::Refusing,
            3 => server.mode = Mode::Hung,
            4 | 5 => server.mode = Mode::Failing(self.rng.f64()),
            6 => server.mode = Mode::Throttling,
            7 => server.mode = Mode::Well,
            8 => server.present = !server.present,
            _ => server.healthy = !server.healthy,
        }
        if self.rng.u8(..8) == 0 {
            self.servers.iter_mut().for_each(|server| server.mode = Mode::Refusing);
        }
        for sidecar in 0..self.sidecars.len() {
            self.update(sidecar);
        }
    }

    fn recover(&mut self) {
        for server in &mut self.servers {
            (server.mode, server.present, server.healthy) = (Mode::Well, true, true);
        }
        for sidecar in 0..self.sidecars.len() {
            self.update(sidecar);
        }
    }

    /// The sidecar hears of the endpoints as they are.
    fn update(&mut self, index: usize) {
        let now = self.at();
        let sidecar = &mut self.sidecars[index];
        sidecar.endpoints.resize_with(self.servers.len(), || None);
        sidecar.probes.resize(self.servers.len(), 0);
        sidecar.served.resize(self.servers.len(), 0);
        for (name, server) in self.servers.iter().enumerate() {
            let slot = &mut sidecar.endpoints[name];
            match (server.present, slot.as_ref()) {
                (true, None) => {
                    let Server { weight, zone, .. } = *server;
                    *slot = Some(Arc::new(Fake { weight, zone, ..fake(name, now) }));
                    // Those of the endpoint that was there before are nobody's.
                    sidecar.probes[name] = 0;
                }
                (false, Some(_)) => *slot = None,
                (true, Some(_)) | (false, None) => {}
            }
            if let Some(endpoint) = slot {
                endpoint.healthy.store(server.healthy, Ordering::Relaxed);
            }
        }
        let present = sidecar.endpoints.iter().flatten().cloned().collect();
        let group = Group::new(self.settings.clone(), present, Some(&sidecar.group), now);
        sidecar.group = Arc::new(group);
    }

    fn check_floor(&mut self) {
        let now = self.at();
        for sidecar in &self.sidecars {
            let all = sidecar.group.endpoints();
            let any_healthy = all.iter().any(|fake| fake.healthy());
            let members = all.iter().filter(|fake| fake.healthy() || !any_healthy);
            let (out, closed): (Vec<_>, Vec<_>) =
                members.partition(|fake| sidecar.group.look(fake, now).status != Status::Closed);
            let most = (out.len() + closed.len()).div_ceil(2).min(all.len().saturating_sub(1));
            assert!(out.len() <= most, "seed {}: {} out, not {most}", self.seed, out.len());
            assert!(out.is_empty() || !closed.is_empty(), "seed {}: all out", self.seed);
            self.seen.at_floor += u32::from(out.len() == most && most > 0);
        }
    }

    /// All endpoints are back, nothing is left over, and shares are near the weights.
    fn check_settled(&self) {
        let (seed, now) = (self.seed, self.at());
        for sidecar in &self.sidecars {
            assert_eq!((sidecar.in_flight, sidecar.bound.taken()), (0, 0), "seed {seed}");
            let local = |server: &Server| self.settings.zone.is_none() || server.zone == Some("near");
            let any_local = self.servers.iter().any(local);
            let hashed = matches!(self.settings.algorithm, Algorithm::RingHash | Algorithm::Maglev);
            let sharing = |server: &Server| hashed || !any_local || local(server);
            let weight = |server: &Server| if sharing(server) { f64::from(server.weight) } else { 0.0 };
            let (sum, served): (f64, u32) =
                (self.servers.iter().map(weight).sum(), sidecar.served.iter().sum());
            for (index, server) in self.servers.iter().enumerate() {
                let endpoint = sidecar.endpoints[index].as_ref().expect("all are present");
                let look = sidecar.group.look(endpoint, now);
                // Nobody probes an endpoint of another zone while the own one carries everything.
                let back = look.status == Status::Closed || !sharing(server);
                assert!(back, "seed {seed}: {index} is still {:?}", look.status);
                assert_eq!(endpoint.state.in_flight(), 0, "seed {seed}");
                let ideal = f64::from(served) * weight(server) / sum;
                let off = (f64::from(sidecar.served[index]) - ideal).abs();
                let settings = &self.settings;
                assert!(
                    off <= 0.4 * ideal + 20.0,
                    "seed {seed}: {index} served {:?} of {served}, not {ideal}, weights {:?}: {settings:?}",
                    sidecar.served,
                    self.servers.iter().map(weight).collect::<Vec<_>>(),
                );
            }
        }
    }
}
