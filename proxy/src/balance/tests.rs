use super::*;

struct Fake {
    state: EndpointState,
    healthy: bool,
    tried: bool,
}

impl Candidate for Fake {
    fn state(&self) -> &EndpointState {
        &self.state
    }
    fn healthy(&self) -> bool {
        self.healthy
    }
}

fn fakes(now: Instant, count: usize) -> Vec<Fake> {
    (0..count).map(|_| Fake { state: EndpointState::new(now), healthy: true, tried: false }).collect()
}

fn shared(fakes: Vec<Fake>) -> Vec<Arc<Fake>> {
    fakes.into_iter().map(Arc::new).collect()
}

fn index(all: &[Arc<Fake>], picked: &Arc<Fake>) -> usize {
    all.iter().position(|one| Arc::ptr_eq(one, picked)).unwrap()
}

fn shares(all: &[Arc<Fake>], now: Instant, seed: u64) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut shares = vec![0; all.len()];
    for _ in 0..3000 {
        shares[index(all, pick(all, |fake| fake.tried, now, &mut rng).unwrap())] += 1;
    }
    shares
}

#[test]
fn equals_share_equally() {
    let now = Instant::now();
    for share in shares(&shared(fakes(now, 3)), now, 1) {
        assert!((800..1200).contains(&share), "{share}");
    }
}

#[test]
fn the_slower_of_two_is_never_picked_while_idle() {
    let now = Instant::now();
    let mut all = fakes(now, 2);
    all[0].state.load.observe(Duration::from_millis(500), now);
    assert_eq!(shares(&shared(std::mem::take(&mut all)), now, 2), [0, 3000]);
}

#[test]
fn requests_in_flight_weigh_like_latency() {
    let now = Instant::now();
    let all = shared(fakes(now, 2));
    all[1].state.load.begin();
    assert_eq!(shares(&all, now, 3), [3000, 0]);
    all[1].state.load.end();
    assert!(shares(&all, now, 3)[1] > 1000);
}

#[test]
fn never_an_ejected_or_unhealthy_or_tried_one_while_a_good_one_exists() {
    let now = Instant::now();
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let count = rng.usize(1..9);
        let mut all = fakes(now, count);
        for fake in &mut all {
            (fake.healthy, fake.tried) = (rng.bool(), rng.bool());
            if rng.bool() {
                fake.state.ejection.failed(now);
            }
        }
        let all = shared(all);
        let tier = |fake: &Fake| match (fake.tried, fake.healthy, fake.state.ejection.ejected(now)) {
            (true, ..) => 3,
            (_, false, _) => 2,
            (_, _, true) => 1,
            (_, _, false) => 0,
        };
        let best = all.iter().map(|fake| tier(fake)).min().unwrap();
        for _ in 0..50 {
            let picked = pick(&all, |fake| fake.tried, now, &mut rng);
            match picked {
                Some(fake) => assert_eq!(tier(fake), best, "seed {seed}"),
                None => assert_eq!(best, 3, "seed {seed}"),
            }
        }
    }
}

#[test]
fn nothing_to_pick_is_none() {
    let none: Vec<Arc<Fake>> = Vec::new();
    assert!(pick(&none, |_| false, Instant::now(), &mut fastrand::Rng::with_seed(0)).is_none());
}

#[test]
fn latency_rises_at_once_and_falls_slowly() {
    let start = Instant::now();
    let load = Load::new(start);
    load.observe(Duration::from_millis(100), start);
    load.observe(Duration::from_millis(1), start + Duration::from_millis(10));
    assert!(load.seconds(start + Duration::from_millis(10)) > 0.099);
    load.observe(Duration::from_millis(1), start + Duration::from_secs(60));
    assert!(load.seconds(start + Duration::from_secs(60)) < 0.002);
}

#[test]
fn looking_at_the_cost_does_not_make_observations_light() {
    let start = Instant::now();
    let (seen, unseen) = (Load::new(start), Load::new(start));
    let at = |second: u64| start + Duration::from_secs(second);
    for load in [&seen, &unseen] {
        load.observe(Duration::from_millis(100), start);
    }
    for second in 1..60 {
        seen.cost(at(second));
        for load in [&seen, &unseen] {
            load.observe(Duration::from_millis(50), at(second));
        }
    }
    let (seen, unseen) = (seen.seconds(at(60)), unseen.seconds(at(60)));
    assert!((seen - unseen).abs() < 1e-9, "{seen} {unseen}");
    assert!((0.04..0.06).contains(&seen), "an endpoint that takes 50 ms: {seen}");
}

#[test]
fn a_newcomer_gets_one_request_at_once_and_more_after_its_answer() {
    let now = Instant::now();
    let all = shared(fakes(now, 2));
    all[0].state.load.observe(Duration::from_millis(1), now);
    assert_eq!(shares(&all, now, 4), [0, 3000], "idle and unknown: find out");
    all[1].state.load.begin();
    assert_eq!(shares(&all, now, 4), [3000, 0], "one at a time");
    all[1].state.load.observe(Duration::from_millis(1), now);
    all[1].state.load.end();
    assert!(shares(&all, now, 4)[1] > 1000);
}

#[test]
fn ejection_doubles_to_ten_seconds_and_ends_with_a_success() {
    let mut now = Instant::now();
    let ejection = Ejection::default();
    for seconds in [1, 2, 4, 8, 10, 10] {
        assert_eq!(ejection.failed(now), Transition::Opened);
        assert_eq!(ejection.failed(now), Transition::None, "already out");
        assert_eq!(ejection.succeeded(now), Transition::None, "an answer from before");
        let end = now + Duration::from_secs(seconds);
        assert!(ejection.ejected(end - Duration::from_millis(1)) && !ejection.ejected(end), "{seconds}");
        now = end;
    }
    assert_eq!(ejection.succeeded(now), Transition::Closed);
    assert_eq!(ejection.succeeded(now), Transition::None);
    ejection.failed(now);
    assert!(!ejection.ejected(now + Duration::from_secs(1)), "back to the first time");
}

#[test]
fn an_endpoint_back_from_ejection_is_probed_and_takes_its_share_again() {
    let start = Instant::now();
    let all = shared(fakes(start, 2));
    all[1].state.load.observe(Duration::from_millis(2), start);
    assert_eq!(all[0].state.failed(Duration::ZERO, true, start), Transition::Opened);
    let back = start + Duration::from_secs(1);
    let mut rng = fastrand::Rng::with_seed(5);
    assert_eq!(index(&all, pick(&all, |_| false, back, &mut rng).unwrap()), 0, "one request finds out");
    all[0].state.load.begin();
    assert_eq!(index(&all, pick(&all, |_| false, back, &mut rng).unwrap()), 1, "and no second one meanwhile");
    all[0].state.load.end();
    assert_eq!(all[0].state.succeeded(Duration::from_millis(1), back), Transition::Closed);
    assert_eq!(index(&all, pick(&all, |_| false, back, &mut rng).unwrap()), 0, "the failure is forgotten");
}
