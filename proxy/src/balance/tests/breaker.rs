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

#[test]
fn a_poor_success_rate_sets_an_endpoint_aside_once_enough_was_seen() {
    let start = Instant::now();
    // Never five failures in a row.
    let run = |pattern: &[Outcome], step: Duration| {
        let all = fakes(3, start);
        let group = group(&all, start);
        let reports = pattern.iter().cycle().take(400).enumerate();
        reports
            .map(|(count, outcome)| {
                (count + 1, report(&group, &all[0], outcome, start + step * count as u32))
            })
            .find(|(_, transition)| *transition == Transition::Opened)
            .map(|(count, _)| count)
    };
    let well = success(1);
    assert_eq!(run(&[FAILED, FAILED, well], ms(10)), Some(20), "a third, as soon as 20 were seen");
    assert_eq!(run(&[well, FAILED], ms(10)), None, "half is not below half");
    assert_eq!(run(&[FAILED, FAILED, well], secs(1)), None, "10 in a window say nothing");
    let throttled = Outcome::Throttled { elapsed: ms(1), retry_after: None };
    assert_eq!(run(&[throttled, FAILED], ms(10)), None, "throttled is no failure");
}

#[test]
fn what_left_the_window_counts_no_more() {
    let start = Instant::now();
    // After 200 successes, one of four: how many of those set it aside?
    let run = |pause: Duration| {
        let all = fakes(3, start);
        let group = group(&all, start);
        for _ in 0..200 {
            report(&group, &all[0], &success(1), start);
        }
        (0..60_u32).find(|&count| {
            let outcome = if count % 4 == 3 { success(1) } else { FAILED };
            report(&group, &all[0], &outcome, start + pause + ms(10) * count) == Transition::Opened
        })
    };
    assert_eq!(run(secs(8)), None);
    assert_eq!(run(secs(10)), Some(20));
    assert_eq!(run(secs(100)), Some(20));
}

#[test]
fn a_success_for_want_of_anything_better_takes_an_endpoint_back() {
    let now = Instant::now();
    let all = fakes(2, now);
    let group = group(&all, now);
    report(&group, &all[0], &BROKEN, now);
    let picked = pick_only(&group, &all[0], now + ms(10));
    assert!(!picked.is_probe());
    assert_eq!(group.report(picked, &FAILED, now + ms(20)), Transition::None);
    assert_eq!(status(&group, &all[0], now + ms(20)), Status::Open { until: now + secs(1) });
    assert_eq!(report(&group, &all[0], &success(1), now + ms(30)), Transition::Closed);
}

#[test]
fn one_probe_at_a_time_from_several_threads() {
    let start = Instant::now();
    let all = fakes(2, start);
    let group = group(&all, start);
    report(&group, &all[0], &BROKEN, start);
    let back = start + secs(1);
    for round in 0..50 {
        let probes: usize = std::thread::scope(|scope| {
            let group = &group;
            let threads = (0..4).map(|seed| {
                scope.spawn(move || {
                    let mut rng = fastrand::Rng::with_seed(seed + round);
                    (0..20).filter_map(|_| pick(group, back, &mut rng)).collect::<Vec<_>>()
                })
            });
            let threads: Vec<_> = threads.collect();
            let picks: Vec<_> = threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
            picks.iter().filter(|pick| pick.is_probe()).count()
        });
        assert_eq!(probes, 1, "round {round}");
    }
}

#[test]
fn a_failure_from_before_the_return_does_not_make_an_endpoint_slow() {
    let start = Instant::now();
    let all = fakes(3, start);
    let group = group(&all, start);
    let early = pick_only(&group, &all[0], start);
    report(&group, &all[0], &BROKEN, start);
    let back = start + secs(1);
    report(&group, &all[0], &success(1), back);
    group.report(early, &FAILED, back);
    assert_eq!(group.look(&all[0], back).seconds, Some(0.001));
}
