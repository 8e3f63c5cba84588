use super::super::testing::Root;
use super::*;

fn identity() -> Vec<u8> {
    encode_identity(&Root::new().svid(SystemTime::now() + Duration::from_secs(600)), "t1")
}

fn head() -> Head {
    Head {
        store: "store-1".into(),
        cursor: vec![1, 2, 3],
        revision: 7,
        software: "0.1.0".into(),
        identity: "spiffe://mesh.local/ns/shop/sa/orders".into(),
        serves: vec!["orders.shop".into()],
    }
}

fn changes() -> Vec<v1::Change> {
    let unknown = |name: &str| v1::Change {
        change: Some(v1::change::Change::Unknown(name.into())),
        requires: vec!["x".into()],
    };
    vec![unknown("items.shop"), unknown("orders.shop")]
}

#[test]
fn files_give_back_what_was_put_in() {
    let svid = Root::new().svid(SystemTime::now() + Duration::from_secs(600));
    let saved = decode_identity(&encode_identity(&svid, "t1")).unwrap();
    assert_eq!((&saved.svid.chain, &saved.svid.bundle), (&svid.chain, &svid.bundle));
    assert_eq!((saved.svid.key.secret_der(), saved.token.as_str()), (svid.key.secret_der(), "t1"));
    let apart = svid.obtained.duration_since(saved.svid.obtained).unwrap();
    assert!(apart < Duration::from_millis(1), "renewal is due when it was");

    let file = encode_snapshot(&head(), &changes());
    assert_eq!(decode_snapshot(&file).unwrap(), (head(), changes()));
    let empty = encode_snapshot(&Head::default(), []);
    assert_eq!(decode_snapshot(&empty).unwrap(), (Head::default(), Vec::new()));
}

#[test]
fn a_file_cut_anywhere_or_with_any_bit_flipped_is_refused() {
    for (file, what) in [(identity(), "identity"), (encode_snapshot(&head(), &changes()), "snapshot")] {
        let refused = |bytes: &[u8]| match what {
            "identity" => decode_identity(bytes).err(),
            _ => decode_snapshot(bytes).err(),
        };
        assert_eq!(refused(&file), None);
        for length in 0..file.len() {
            let error = refused(&file[..length]);
            assert!(matches!(error, Some(Unusable::Damaged(_))), "{what} cut to {length}: {error:?}");
        }
        for bit in 0..file.len() * 8 {
            let mut flipped = file.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            let error = refused(&flipped);
            assert!(matches!(error, Some(Unusable::Damaged(_))), "{what}, bit {bit}: {error:?}");
        }
        let mut longer = file.clone();
        longer.push(0);
        assert!(refused(&longer).is_some());
    }
}

#[test]
fn rubbish_with_a_good_checksum_is_refused_and_never_panics() {
    for seed in 0..2000 {
        let mut random = fastrand::Rng::with_seed(seed);
        let body: Vec<u8> = (0..random.usize(..200)).map(|_| random.u8(..)).collect();
        assert!(decode_identity(&seal(Kind::Identity, &body)).is_err(), "seed {seed}");
        // Some rubbish is a snapshot; none may panic.
        let _either = decode_snapshot(&seal(Kind::Snapshot, &body));
    }
}

#[test]
fn files_are_not_mistaken_for_each_other_and_newer_ones_are_told_apart() {
    assert!(matches!(decode_snapshot(&identity()), Err(Unusable::Damaged(_))));
    let newer = sealed_as(Kind::Snapshot, FORMAT + 1, b"what nobody knows yet");
    assert_eq!(decode_snapshot(&newer), Err(Unusable::Newer(FORMAT + 1)));
    assert!(matches!(decode_snapshot(&sealed_as(Kind::Snapshot, 0, b"")), Err(Unusable::Damaged(_))));
}
