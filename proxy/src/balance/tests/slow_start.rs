use super::*;

const SLOW: [Algorithm; 3] = [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin];

/// The last one's part of 3000 picks, each answered after a millisecond, within a second.
fn last_share(group: &Group<Fake>, all: &[Arc<Fake>], now: Instant) -> f64 {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut count = 0;
    for step in 0..3000 {
        let now = now + Duration::from_micros(step * 333);
        let picked = pick(group, now, &mut rng).unwrap();
        count += usize::from(index(all, &picked) == all.len() - 1);
        group.report(picked, &success(1), now);
    }
    count as f64 / 3000.0
}

#[test]
fn a_newcomer_gets_a_tenth_of_its_share_at_first_and_all_of_it_in_the_end() {
    let start = Instant::now();
    for algorithm in SLOW {
        let all = fakes(4, start);
        let before = Group::new(settings(algorithm), all[..3].to_vec(), None, start);
        for endpoint in &all[..3] {
            report(&before, endpoint, &success(1), start);
        }
        let group = Group::new(settings(algorithm), all.clone(), Some(&before), start);
        let shares = [0, 5, 20].map(|after| last_share(&group, &all, start + secs(after)));
        assert!((0.01..0.08).contains(&shares[0]), "{algorithm:?} {shares:?}");
        assert!((0.10..0.20).contains(&shares[1]), "{algorithm:?} {shares:?}");
        assert!((0.20..0.30).contains(&shares[2]), "{algorithm:?} {shares:?}");
    }
}

#[test]
fn nobody_starts_slowly_where_nobody_can_carry_the_load_meanwhile() {
    let now = Instant::now();
    let ramps = |group: &Group<Fake>, all: &[Arc<Fake>]| {
        all.iter().map(|one| (group.look(one, now).ramp * 10.0).round() as u32).collect::<Vec<_>>()
    };
    let new =
        |all: &[Arc<Fake>], old: &Group<Fake>| Group::new(Settings::default(), all.to_vec(), Some(old), now);
    let all = fakes(3, now);
    let first = group(&all[..2], now);
    assert_eq!(ramps(&first, &all[..2]), [10, 10], "the first of all");
    let next = new(&all, &group(&[], now));
    assert_eq!(ramps(&next, &all), [10, 10, 10], "after nobody");
    let others = fakes(2, now);
    let replaced = new(&others, &next);
    assert_eq!(ramps(&replaced, &others), [10, 10], "all of them are new");
    let all: Vec<_> = others.iter().cloned().chain(fakes(1, now)).collect();
    let more = new(&all, &replaced);
    assert_eq!(ramps(&more, &all), [10, 10, 1]);
    assert_eq!(ramps(&new(&all, &more), &all), [10, 10, 1], "the same again");
}

#[test]
fn an_endpoint_starts_when_it_becomes_healthy() {
    let start = Instant::now();
    let all = fakes(3, start);
    let first = group(&all[..2], start);
    all[2].healthy.store(false, Ordering::Relaxed);
    let next = Group::new(Settings::default(), all.clone(), Some(&first), start);
    let later = start + secs(60);
    all[2].healthy.store(true, Ordering::Relaxed);
    let group = Group::new(Settings::default(), all.clone(), Some(&next), later);
    let ramps = all.iter().map(|one| group.look(one, later).ramp).collect::<Vec<_>>();
    assert_eq!(ramps, [1.0, 1.0, 0.1]);
}

#[test]
fn a_returned_endpoint_starts_slowly_in_all_but_the_hash_algorithms() {
    let start = Instant::now();
    for algorithm in shares::ALL {
        let all = fakes(4, start);
        let group = Group::new(settings(algorithm), all.clone(), None, start);
        report(&group, &all[3], &BROKEN, start);
        let back = start + secs(1);
        assert_eq!(report(&group, &all[3], &success(1), back), Transition::Closed);
        for endpoint in &all {
            report(&group, endpoint, &success(1), back);
        }
        let share = last_share(&group, &all, back);
        assert_eq!(share < 0.08, SLOW.contains(&algorithm), "{algorithm:?}: {share}");
    }
}
