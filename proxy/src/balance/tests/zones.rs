use super::*;

fn zoned(near: usize, far: usize, now: Instant) -> Vec<Arc<Fake>> {
    let zone = |name| Some(if name < near { "near" } else { "far" });
    (0..near + far).map(|name| Arc::new(Fake { zone: zone(name), ..fake(name, now) })).collect()
}

fn zone_group(all: &[Arc<Fake>], algorithm: Algorithm, now: Instant) -> Group<Fake> {
    let zone = Some(ZoneSettings { own: "near".into(), min_usable: 0.7 });
    // The far ones first: the order must not matter.
    let turned = all.iter().rev().cloned().collect();
    Group::new(Settings { zone, ..settings(algorithm) }, turned, None, now)
}

/// Part of the picks that stays in the own zone.
fn near(group: &Group<Fake>, now: Instant) -> f64 {
    let mut rng = fastrand::Rng::with_seed(9);
    let stays = (0..4000)
        .filter(|_| pick(group, now, &mut rng).expect("there are some").endpoint().zone == Some("near"));
    stays.count() as f64 / 4000.0
}

#[test]
fn requests_stay_in_the_zone_and_spill_over_in_proportion_when_it_is_short() {
    let now = Instant::now();
    for algorithm in [Algorithm::PeakEwma, Algorithm::LeastRequest, Algorithm::RoundRobin] {
        let all = zoned(10, 10, now);
        let group = zone_group(&all, algorithm, now);
        let mut parts = Vec::new();
        for endpoint in &all[..10] {
            parts.push(near(&group, now));
            report(&group, endpoint, &BROKEN, now);
        }
        for (out, part) in parts.into_iter().enumerate() {
            let ideal = ((10 - out) as f64 / 10.0 / 0.7).min(1.0);
            assert!((part - ideal).abs() < 0.04, "{algorithm:?}, {out} out: {part}, not {ideal}");
        }
        assert_eq!(near(&group, now), 0.0, "none is left");
    }
}

#[test]
fn nobody_goes_without() {
    let now = Instant::now();
    let none_near = zoned(0, 3, now);
    assert_eq!(near(&zone_group(&none_near, Algorithm::PeakEwma, now), now), 0.0);
    let none_far = zoned(3, 0, now);
    assert_eq!(near(&zone_group(&none_far, Algorithm::PeakEwma, now), now), 1.0);
    // One of three is left here and nobody there: it takes what would have spilled over.
    let all = zoned(3, 2, now);
    let group = zone_group(&all, Algorithm::PeakEwma, now);
    for endpoint in &all[1..] {
        endpoint.healthy.store(false, Ordering::Relaxed);
    }
    let group = Group::new(group.settings().clone(), all, Some(&group), now);
    assert_eq!(near(&group, now), 1.0);
}

#[test]
fn a_zone_that_was_out_altogether_is_found_to_be_back() {
    let start = Instant::now();
    let all = zoned(1, 3, start);
    let group = zone_group(&all, Algorithm::PeakEwma, start);
    report(&group, &all[0], &BROKEN, start);
    assert_eq!(near(&group, start), 0.0);
    let back = start + secs(1);
    let mut rng = fastrand::Rng::with_seed(2);
    for _ in 0..200 {
        let picked = pick(&group, back, &mut rng).unwrap();
        group.report(picked, &success(1), back);
    }
    assert_eq!(group.look(&all[0], back).status, Status::Closed);
    assert_eq!(near(&group, back + secs(10)), 1.0);
}

#[test]
fn health_counts_for_the_zone_as_the_breaker_does() {
    let now = Instant::now();
    let all = zoned(10, 10, now);
    let group = zone_group(&all, Algorithm::PeakEwma, now);
    assert_eq!(near(&group, now), 1.0);
    for endpoint in &all[..5] {
        endpoint.healthy.store(false, Ordering::Relaxed);
    }
    let group = Group::new(group.settings().clone(), all, Some(&group), now);
    let part = near(&group, now);
    assert!((part - 0.5 / 0.7).abs() < 0.04, "{part}");
}
