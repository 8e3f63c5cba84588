use super::*;

/// How often each is picked of 6000, answered at once.
fn shares(group: &Group<Fake>, all: &[Arc<Fake>], now: Instant, seed: u64) -> Vec<usize> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut shares = vec![0; all.len()];
    for _ in 0..6000 {
        shares[index(all, &pick_hash(group, None, now, &mut rng).unwrap())] += 1;
    }
    shares
}

pub(super) const ALL: [Algorithm; 5] = [
    Algorithm::PeakEwma,
    Algorithm::LeastRequest,
    Algorithm::RoundRobin,
    Algorithm::RingHash,
    Algorithm::Maglev,
];

#[test]
fn shares_follow_the_weights_in_every_algorithm() {
    let now = Instant::now();
    for algorithm in ALL {
        for weights in [[100, 100, 100], [100, 200, 300], [1, 500, 99]] {
            let all = weighted(&weights, now);
            for endpoint in &all {
                endpoint.state.learn_latency(ms(5), now);
            }
            let group = Group::new(settings(algorithm), all.clone(), None, now);
            let sum: u32 = weights.iter().sum();
            // A ring of few points is uneven.
            let tolerance = if algorithm == Algorithm::RingHash { 0.3 } else { 0.12 };
            for (share, weight) in shares(&group, &all, now, 1).into_iter().zip(weights) {
                let ideal = 6000.0 * f64::from(weight) / f64::from(sum);
                let off = (share as f64 - ideal).abs();
                assert!(off < ideal * tolerance + 20.0, "{algorithm:?} {weights:?}: {share}, not {ideal}");
            }
        }
    }
}

#[test]
fn the_slower_of_two_is_not_picked_while_idle_but_when_the_other_is_busy() {
    let now = Instant::now();
    let all = fakes(2, now);
    all[0].state.learn_latency(ms(50), now);
    all[1].state.learn_latency(ms(10), now);
    let group = group(&all, now);
    assert_eq!(shares(&group, &all, now, 2), [0, 6000]);
    for _ in 0..8 {
        all[1].state.begin();
    }
    assert_eq!(shares(&group, &all, now, 3), [6000, 0]);
}

#[test]
fn the_fewer_requests_in_flight_the_better() {
    let now = Instant::now();
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest] {
        let all = fakes(2, now);
        for endpoint in &all {
            endpoint.state.learn_latency(ms(5), now);
        }
        let group = Group::new(settings(algorithm), all.clone(), None, now);
        all[1].state.begin();
        assert_eq!(shares(&group, &all, now, 3), [6000, 0], "{algorithm:?}");
        all[1].state.end();
        assert_eq!(shares(&group, &all, now, 3), [3000, 3000], "{algorithm:?}");
    }
}

#[test]
fn a_newcomer_gets_one_request_at_once_and_more_after_its_answer() {
    let now = Instant::now();
    let all = fakes(2, now);
    let group = group(&all, now);
    all[0].state.learn_latency(ms(1), now);
    assert_eq!(shares(&group, &all, now, 4), [0, 6000], "idle and unknown: find out");
    all[1].state.begin();
    assert_eq!(shares(&group, &all, now, 4), [6000, 0], "one at a time");
    all[1].state.learn_latency(ms(1), now);
    all[1].state.end();
    assert_eq!(shares(&group, &all, now, 4), [3000, 3000]);
}

#[test]
fn round_robin_takes_turns_and_the_next_group_goes_on_where_the_last_one_was() {
    let now = Instant::now();
    let all = fakes(5, now);
    let mut rng = fastrand::Rng::with_seed(1);
    let mut group = Group::new(settings(Algorithm::RoundRobin), all.clone(), None, now);
    let turns: Vec<usize> = (0..5).map(|_| index(&all, &pick(&group, now, &mut rng).unwrap())).collect();
    assert_eq!(turns.iter().collect::<std::collections::BTreeSet<_>>().len(), 5, "{turns:?}");
    for round in 0..40 {
        let turn = index(&all, &pick(&group, now, &mut rng).unwrap());
        assert_eq!(turn, turns[round % 5], "{turns:?}");
        group = Group::new(settings(Algorithm::RoundRobin), all.clone(), Some(&group), now);
    }
}

#[test]
fn round_robin_does_not_make_up_for_turns_missed() {
    let now = Instant::now();
    let all = fakes(3, now);
    let group = Group::new(settings(Algorithm::RoundRobin), all.clone(), None, now);
    all[0].tried.store(true, Ordering::Relaxed);
    shares(&group, &all, now, 5);
    all[0].tried.store(false, Ordering::Relaxed);
    let mut rng = fastrand::Rng::with_seed(6);
    let turns = (0..6).filter(|_| index(&all, &pick(&group, now, &mut rng).unwrap()) == 0).count();
    assert!((2..=3).contains(&turns), "{turns}");
}

/// Requests one after another to equal endpoints whose latencies vary by chance: the share of each in
/// every hundred requests.
#[test]
fn shares_of_equals_are_near_even_at_low_load() {
    let start = Instant::now();
    let mut worst = 0.0_f64;
    for seed in 0..20 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let all = fakes(3, start);
        let group = group(&all, start);
        let mut counts = [0_u32; 3];
        for step in 0..1200 {
            let now = start + ms(200 * step);
            let picked = pick(&group, now, &mut rng).unwrap();
            counts[index(&all, &picked)] += 1;
            // 0.5 to 2 ms, and now and then 5.
            let latency = if rng.u8(..50) == 0 { 5.0 } else { 0.5 + 1.5 * rng.f64() };
            let latency = Duration::from_secs_f64(latency / 1000.0);
            group.report(picked, &Outcome::Success { latency }, now);
        }
        worst = counts.iter().map(|&count| (f64::from(count) / 400.0 - 1.0).abs()).fold(worst, f64::max);
    }
    assert!(worst < 0.25, "off by {worst}");
}

#[test]
fn a_light_endpoint_does_not_take_all_that_a_heavy_busy_one_leaves() {
    let now = Instant::now();
    let all = weighted(&[1, 1000], now);
    for endpoint in &all {
        endpoint.state.learn_latency(ms(5), now);
    }
    let group = group(&all, now);
    all[1].state.begin();
    let shares = shares(&group, &all, now, 8);
    assert!(shares[0] < 60, "{shares:?}");
}

#[test]
fn latencies_far_below_a_millisecond_are_equal() {
    let now = Instant::now();
    let all = fakes(2, now);
    all[0].state.learn_latency(Duration::from_micros(50), now);
    all[1].state.learn_latency(Duration::from_micros(150), now);
    assert_eq!(shares(&group(&all, now), &all, now, 2), [3000, 3000]);
}
