use super::*;

const HASHES: [Algorithm; 2] = [Algorithm::RingHash, Algorithm::Maglev];

/// Where each of some keys lives.
fn homes(group: &Group<Fake>, now: Instant) -> Vec<String> {
    // Two generators: a key's home must not depend on chance.
    let home = |key: u64| {
        let of = |seed| {
            let picked = pick_hash(group, Some(key), now, &mut fastrand::Rng::with_seed(seed)).unwrap();
            picked.endpoint().key.clone()
        };
        let (one, other) = (of(key), of(!key));
        assert_eq!(one, other);
        one
    };
    (0..5000).map(home).collect()
}

fn moved(before: &[String], after: &[String]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

#[test]
fn a_key_lives_where_every_caller_finds_it() {
    let now = Instant::now();
    for algorithm in HASHES {
        let zones = [None, Some("near"), Some("far"), Some("near"), None];
        let fakes = [100, 50, 300, 100, 100].into_iter().zip(zones).enumerate();
        let all: Vec<_> =
            fakes.map(|(name, (weight, zone))| Arc::new(Fake { weight, zone, ..fake(name, now) })).collect();
        let mut turned = all.clone();
        turned.reverse();
        let zone = Some(ZoneSettings { own: "near".into(), min_usable: 0.7 });
        let (one, other) = (settings(algorithm), Settings { zone, ..settings(algorithm) });
        let (one, other) = (Group::new(one, all, None, now), Group::new(other, turned, None, now));
        assert_eq!(homes(&one, now), homes(&other, now), "{algorithm:?}");
    }
}

#[test]
fn few_keys_move_when_an_endpoint_comes_or_goes() {
    let now = Instant::now();
    for (algorithm, strays) in [(Algorithm::RingHash, 0), (Algorithm::Maglev, 300)] {
        let all = fakes(10, now);
        let group = Group::new(settings(algorithm), all.clone(), None, now);
        let fewer = Group::new(settings(algorithm), all[1..].to_vec(), Some(&group), now);
        let (before, after) = (homes(&group, now), homes(&fewer, now));
        let lost = before.iter().filter(|home| **home == all[0].key).count();
        assert!((300..800).contains(&lost), "{algorithm:?}: {lost}");
        let moved = moved(&before, &after);
        assert!((lost..=lost + strays).contains(&moved), "{algorithm:?}: {moved} moved for {lost} lost");
    }
}

#[test]
fn keys_of_an_ejected_or_tried_endpoint_go_on_to_several_others_and_come_back() {
    let now = Instant::now();
    for algorithm in HASHES {
        let all = fakes(6, now);
        let group = Group::new(settings(algorithm), all.clone(), None, now);
        let before = homes(&group, now);
        report(&group, &all[2], &BROKEN, now);
        let during = homes(&group, now);
        let gone = |home: &String| *home == all[2].key;
        assert!(!during.iter().any(gone), "{algorithm:?}");
        assert_eq!(
            moved(&before, &during),
            before.iter().filter(|home| gone(home)).count(),
            "no others move"
        );
        let stand_ins: std::collections::BTreeSet<_> =
            before.iter().zip(&during).filter(|(home, _)| gone(home)).map(|(_, other)| other).collect();
        assert_eq!(stand_ins.len(), 5, "{algorithm:?}");
        let back = now + secs(1);
        report(&group, &all[2], &success(1), back);
        assert_eq!(homes(&group, back), before, "without a slow start");
        for fake in &all[1..] {
            fake.tried.store(true, Ordering::Relaxed);
        }
        assert!(homes(&group, back).iter().all(|home| *home == all[0].key));
    }
}

#[test]
fn the_table_is_kept_while_nothing_changes_for_it() {
    let now = Instant::now();
    for algorithm in HASHES {
        let all = fakes(3, now);
        let group = Group::new(settings(algorithm), all.clone(), None, now);
        let table = |group: &Group<Fake>| group.table.clone().unwrap();
        let same = Group::new(settings(algorithm), all.clone(), Some(&group), now);
        assert!(Arc::ptr_eq(&table(&group), &table(&same)));
        let fewer = Group::new(settings(algorithm), all[1..].to_vec(), Some(&group), now);
        assert!(!Arc::ptr_eq(&table(&group), &table(&fewer)));
        let other = if algorithm == HASHES[0] { HASHES[1] } else { HASHES[0] };
        let other = Group::new(settings(other), all, Some(&group), now);
        assert!(!Arc::ptr_eq(&table(&group), &table(&other)));
    }
}

#[test]
fn ten_thousand_heavy_endpoints_fit_and_each_gets_keys_while_there_is_room() {
    let now = Instant::now();
    for (algorithm, count) in [(Algorithm::RingHash, 10_000), (Algorithm::Maglev, 10_000)] {
        let all = weighted(&vec![1000; count], now);
        let group = Group::new(settings(algorithm), all.clone(), None, now);
        let table = group.table.as_ref().unwrap();
        assert!(table.places() <= 65_537, "{algorithm:?}: {}", table.places());
        let mut rng = fastrand::Rng::with_seed(1);
        for _ in 0..1000 {
            assert!(pick_hash(&group, Some(rng.u64(..)), now, &mut rng).is_some());
        }
    }
}

#[test]
fn last_resorts_follow_the_weights_too() {
    let now = Instant::now();
    let all = weighted(&[100, 300], now);
    for endpoint in &all {
        endpoint.healthy.store(false, Ordering::Relaxed);
    }
    let group = Group::new(settings(Algorithm::RingHash), all.clone(), None, now);
    let heavy = homes(&group, now).iter().filter(|home| **home == all[1].key).count();
    assert!((3600..3900).contains(&heavy), "{heavy} of 5000");
}
