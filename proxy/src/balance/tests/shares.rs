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

const ALL: [Algorithm; 5] = [
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
