use super::super::ewma::Ewma;
use super::*;

#[test]
fn latency_rises_at_once_and_falls_slowly() {
    let start = Instant::now();
    let mut average = Ewma::new(start);
    assert_eq!(average.seconds(start), None);
    average.observe(ms(100), start);
    average.observe(ms(1), start + ms(10));
    assert!(average.seconds(start + ms(10)).unwrap() > 0.099);
    average.observe(ms(1), start + secs(60));
    assert!(average.seconds(start + secs(60)).unwrap() < 0.002);
}

#[test]
fn looking_does_not_make_observations_light() {
    let start = Instant::now();
    let (mut seen, mut unseen) = (Ewma::new(start), Ewma::new(start));
    for average in [&mut seen, &mut unseen] {
        average.observe(ms(100), start);
    }
    for second in 1..60 {
        seen.seconds(start + secs(second));
        for average in [&mut seen, &mut unseen] {
            average.observe(ms(50), start + secs(second));
        }
    }
    let end = start + secs(60);
    let (seen, unseen) = (seen.seconds(end).unwrap(), unseen.seconds(end).unwrap());
    assert!((seen - unseen).abs() < 1e-9, "{seen} {unseen}");
    assert!((0.04..0.06).contains(&seen), "an endpoint that takes 50 ms: {seen}");
}

#[test]
fn a_failure_a_throttled_answer_and_a_wish_to_wait_count_as_slow() {
    let now = Instant::now();
    let wait = |seconds| Outcome::Throttled { elapsed: ms(1), retry_after: Some(secs(seconds)) };
    let throttled = Outcome::Throttled { elapsed: ms(1), retry_after: None };
    for (outcome, seconds) in [
        (success(7), 0.007),
        (FAILED, 1.0),
        (throttled, 1.0),
        (wait(3), 3.0),
        (wait(3600), 30.0),
        (Outcome::Failure { kind: FailureKind::Timeout, elapsed: secs(2) }, 2.0),
    ] {
        let all = fakes(2, now);
        let group = group(&all, now);
        report(&group, &all[0], &outcome, now);
        assert_eq!(group.look(&all[0], now).seconds, Some(seconds), "{outcome:?}");
    }
    let all = fakes(2, now);
    let group = group(&all, now);
    for _ in 0..100 {
        assert_eq!(report(&group, &all[0], &throttled, now), Transition::None, "not broken");
    }
    report(&group, &all[1], &Outcome::Ignored, now);
    assert_eq!(group.look(&all[1], now).seconds, None);
}

#[test]
fn an_endpoint_takes_little_memory() {
    let size = size_of::<EndpointState>();
    assert!(size <= 256, "{size} bytes");
}
