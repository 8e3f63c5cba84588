use super::*;

fn status(group: &Group<Fake>, endpoint: &Arc<Fake>, now: Instant) -> Status {
    group.look(endpoint, now).status
}

fn is_open(group: &Group<Fake>, endpoint: &Arc<Fake>, now: Instant) -> bool {
    matches!(status(group, endpoint, now), Status::Open { .. })
}

#[test]
fn five_failures_in_a_row_or_one_broken_connection_set_an_endpoint_aside() {
    let now = Instant::now();
    let all = fakes(3, now);
    let group = group(&all, now);
    for _ in 0..4 {
        assert_eq!(report(&group, &all[0], &FAILED, now), Transition::None);
    }
    assert_eq!(report(&group, &all[0], &success(1), now), Transition::None);
    for _ in 0..4 {
        assert_eq!(report(&group, &all[0], &FAILED, now), Transition::None, "a success between");
    }
    assert_eq!(report(&group, &all[0], &FAILED, now), Transition::Opened);
    assert_eq!(status(&group, &all[0], now), Status::Open { until: now + secs(1) });
    assert_eq!(report(&group, &all[1], &BROKEN, now), Transition::Opened);
    assert_eq!(group.ejected(now), 2);
}

#[test]
fn ejections_double_to_the_longest_and_shrink_with_good_behaviour() {
    let mut now = Instant::now();
    let all = fakes(3, now);
    let group = group(&all, now);
    assert_eq!(report(&group, &all[0], &BROKEN, now), Transition::Opened);
    for seconds in [1, 2, 4, 8, 16, 30, 30] {
        let Status::Open { until } = status(&group, &all[0], now) else { panic!("{seconds}") };
        assert_eq!(until - now, secs(seconds));
        now = until;
        assert_eq!(status(&group, &all[0], now), Status::HalfOpen { probing: false });
        assert_eq!(report(&group, &all[0], &BROKEN, now), Transition::Opened, "the probe failed");
    }
    now += secs(30);
    assert_eq!(report(&group, &all[0], &success(1), now), Transition::Closed);
    // Eight ejections, of which 40 s forgive four: 2^4 s.
    now += secs(40);
    report(&group, &all[0], &BROKEN, now);
    assert_eq!(status(&group, &all[0], now), Status::Open { until: now + secs(16) });
    now += secs(16);
    report(&group, &all[0], &success(1), now);
    now += secs(3600);
    report(&group, &all[0], &BROKEN, now);
    assert_eq!(status(&group, &all[0], now), Status::Open { until: now + secs(1) });
}

#[test]
fn a_half_open_endpoint_has_one_probe_at_a_time() {
    let start = Instant::now();
    let all = fakes(2, start);
    let group = group(&all, start);
    report(&group, &all[1], &success(1), start);
    report(&group, &all[0], &BROKEN, start);
    let back = start + secs(1);
    let mut rng = fastrand::Rng::with_seed(7);
    let probe = pick(&group, back, &mut rng).unwrap();
    assert_eq!((index(&all, &probe), probe.is_probe()), (0, true), "it is probed at once");
    for _ in 0..50 {
        let other = pick(&group, back, &mut rng).unwrap();
        assert_eq!((index(&all, &other), other.is_probe()), (1, false), "one at a time");
    }
    drop(probe);
    let probe = pick(&group, back, &mut rng).unwrap();
    assert!(probe.is_probe(), "dropped unreported");
    assert_eq!(group.report(probe, &Outcome::Ignored, back), Transition::None);
    let probe = pick(&group, back, &mut rng).unwrap();
    assert!(probe.is_probe(), "taught nothing");
    assert_eq!(group.report(probe, &success(1), back), Transition::Closed);
    assert!((group.look(&all[0], back).ramp - 0.1).abs() < 1e-9, "starts slowly");
    assert_eq!(group.look(&all[0], back).seconds, Some(0.001), "the failure is forgotten");
}

#[test]
fn reports_of_requests_sent_before_the_ejection_change_nothing() {
    let start = Instant::now();
    let all = fakes(3, start);
    let group = group(&all, start);
    let (early, late): (Vec<_>, Vec<_>) = (0..8).map(|_| pick_only(&group, &all[0], start)).partition({
        let mut count = 0;
        move |_| {
            count += 1;
            count <= 4
        }
    });
    report(&group, &all[0], &BROKEN, start);
    let open = status(&group, &all[0], start);
    for pick in early {
        assert_eq!(group.report(pick, &BROKEN, start + ms(500)), Transition::None);
        assert_eq!(status(&group, &all[0], start), open, "not lengthened");
    }
    let mut late = late.into_iter();
    assert_eq!(group.report(late.next().unwrap(), &success(1), start + ms(500)), Transition::None);
    assert!(is_open(&group, &all[0], start + ms(500)), "proves nothing");
    let back = start + secs(1);
    assert_eq!(group.report(late.next().unwrap(), &success(1), back), Transition::None);
    assert_eq!(status(&group, &all[0], back), Status::HalfOpen { probing: false });
    report(&group, &all[0], &success(1), back);
    assert_eq!(group.report(late.next().unwrap(), &BROKEN, back), Transition::None, "from before");
    assert_eq!(status(&group, &all[0], back), Status::Closed);
}
