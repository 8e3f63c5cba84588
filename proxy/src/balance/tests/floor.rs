use super::*;

fn out(group: &Group<Fake>, all: &[Arc<Fake>], now: Instant) -> Vec<usize> {
    (0..all.len()).filter(|&one| group.look(&all[one], now).status != Status::Closed).collect()
}

#[test]
fn half_of_the_endpoints_rounded_up_but_never_the_last() {
    let breaker = BreakerSettings::default();
    assert_eq!([0, 1, 2, 3, 4, 5, 6].map(|count| breaker.most_out(count)), [0, 0, 1, 2, 2, 3, 3]);
    let some = BreakerSettings { max_ejected: 0.07, ..breaker };
    assert_eq!([1, 2, 100, 101].map(|count| some.most_out(count)), [0, 1, 7, 8]);
    let none = BreakerSettings { max_ejected: 0.0, ..some };
    assert_eq!([1, 2, 100].map(|count| none.most_out(count)), [0, 0, 0]);
}

#[test]
fn the_only_endpoint_is_never_set_aside() {
    let now = Instant::now();
    let all = fakes(1, now);
    let group = group(&all, now);
    for _ in 0..100 {
        assert_eq!(report(&group, &all[0], &BROKEN, now), Transition::None);
    }
}

#[test]
fn at_the_floor_the_one_out_longest_comes_back_slowly_for_the_next() {
    let start = Instant::now();
    let all = fakes(3, start);
    let group = group(&all, start);
    report(&group, &all[2], &BROKEN, start);
    report(&group, &all[0], &BROKEN, start + ms(50));
    assert_eq!(out(&group, &all, start + ms(50)), [0, 2]);
    assert_eq!(report(&group, &all[1], &FAILED, start + ms(60)), Transition::None);
    assert_eq!(report(&group, &all[1], &BROKEN, start + ms(60)), Transition::None, "not in a flurry");
    assert_eq!(out(&group, &all, start + ms(60)), [0, 2]);
    let later = start + ms(250);
    assert_eq!(report(&group, &all[1], &FAILED, later), Transition::Opened, "its failures are not forgotten");
    assert_eq!(out(&group, &all, later), [0, 1]);
    assert!(group.look(&all[2], later).ramp < 0.2);
}

#[test]
fn endpoints_come_back_when_there_are_fewer_of_them() {
    let now = Instant::now();
    let all = fakes(4, now);
    let group = group(&all, now);
    report(&group, &all[0], &BROKEN, now);
    report(&group, &all[1], &BROKEN, now + ms(1));
    let fewer = Group::new(Settings::default(), all[..2].to_vec(), Some(&group), now + ms(2));
    assert_eq!(out(&fewer, &all, now + ms(2)), [1], "the one out longest is back");
    let one = Group::new(Settings::default(), all[1..2].to_vec(), Some(&fewer), now + ms(3));
    assert_eq!(out(&one, &all[1..2], now + ms(3)), [0; 0], "the last one is");
}

#[test]
fn a_report_to_an_older_group_keeps_the_floor_of_the_newest() {
    let now = Instant::now();
    let all = fakes(4, now);
    let old = group(&all, now);
    let new = Group::new(Settings::default(), all[..2].to_vec(), Some(&old), now);
    assert_eq!(report(&old, &all[0], &BROKEN, now), Transition::Opened);
    assert_eq!(report(&old, &all[1], &BROKEN, now), Transition::None, "the last one now");
    assert_eq!(report(&old, &all[2], &BROKEN, now), Transition::None, "gone");
    assert_eq!(new.ejected(now), 1);
}

#[test]
fn unhealthy_endpoints_do_not_count_for_the_floor() {
    let now = Instant::now();
    let all = fakes(4, now);
    all[2].healthy.store(false, Ordering::Relaxed);
    all[3].healthy.store(false, Ordering::Relaxed);
    let group = group(&all, now);
    assert_eq!(report(&group, &all[0], &BROKEN, now), Transition::Opened);
    assert_eq!(report(&group, &all[1], &BROKEN, now), Transition::None, "the last healthy one");
}

#[test]
fn better_endpoints_come_first() {
    let now = Instant::now();
    let (mut alike, mut none) = (0, 0);
    for seed in 0..500 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let all = fakes(rng.usize(1..9), now);
        let algorithm = shares::ALL[rng.usize(..5)];
        let group = Group::new(Settings { algorithm, ..Settings::default() }, all.clone(), None, now);
        for fake in &all {
            if rng.bool() {
                report(&group, fake, &BROKEN, now);
            }
        }
        for fake in &all {
            fake.healthy.store(rng.bool(), Ordering::Relaxed);
            fake.tried.store(rng.bool(), Ordering::Relaxed);
        }
        let tier = |fake: &Fake| {
            let is_open = group.look(fake, now).status != Status::Closed;
            match (fake.tried.load(Ordering::Relaxed), fake.healthy(), is_open) {
                (true, ..) => 3,
                (_, false, _) => 2,
                (_, _, true) => 1,
                (_, _, false) => 0,
            }
        };
        let best = all.iter().map(|fake| tier(fake)).min().unwrap();
        for _ in 0..50 {
            match pick(&group, now, &mut rng) {
                Some(picked) => assert_eq!(tier(picked.endpoint()), best, "seed {seed}"),
                None => assert_eq!(best, 3, "seed {seed}"),
            }
        }
        alike += u32::from(best < 3);
        none += u32::from(best == 3);
    }
    assert!(alike > 100 && none > 20, "{alike} {none}");
}

#[test]
fn nothing_to_pick_is_none() {
    let now = Instant::now();
    for algorithm in shares::ALL {
        let group: Group<Fake> =
            Group::new(Settings { algorithm, ..Settings::default() }, Vec::new(), None, now);
        assert!(pick(&group, now, &mut fastrand::Rng::with_seed(0)).is_none());
    }
}
