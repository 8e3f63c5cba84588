use std::net::SocketAddr;

use outrigger_api::resource::policy::HashKey;

use super::super::hash::HashSource;
use super::request;

fn source(json: &str) -> HashSource {
    HashSource::compile(&serde_json::from_str::<HashKey>(json).unwrap()).unwrap()
}

fn key(source: &HashSource, headers: &[&str]) -> Option<u64> {
    source.key(&request("GET /", headers).headers, SocketAddr::from(([127, 0, 0, 1], 40_000)))
}

/// Worked out apart from this code (FNV-1a 64, then fmix64): another version of the mesh must agree.
#[test]
fn keys_are_the_same_everywhere_and_always() {
    let user = source(r#"{"header": "X-User"}"#);
    for (value, wanted) in [("a", 0x82a2_a958_a9be_ce5b), ("foobar", 0x2c22_1949_22d1_672b)] {
        assert_eq!(key(&user, &[&format!("x-user: {value}")]), Some(wanted), "{value}");
    }
}

#[test]
fn what_is_not_there_has_no_key() {
    let (user, cart) = (source(r#"{"header": "x-user"}"#), source(r#"{"cookie": "cart"}"#));
    for headers in [
        &[] as &[&str],
        &["x-other: a", "cookie: other=1"],
        &["x-user: ", "cookie: cart="],
        &["cookie: cart"],
    ] {
        assert_eq!((key(&user, headers), key(&cart, headers)), (None, None), "{headers:?}");
    }
}

#[test]
fn cookies_are_told_apart() {
    let cart = source(r#"{"cookie": "cart"}"#);
    let wanted = key(&cart, &["cookie: cart=17"]);
    assert!(wanted.is_some());
    for headers in [
        &["cookie: a=1; cart=17; b=2"] as &[&str],
        &["cookie: a=1", "cookie: cart=17"],
        &["cookie: cart=17; cart=18"],
        &["cookie: xcart=1;cart=17"],
    ] {
        assert_eq!(key(&cart, headers), wanted, "{headers:?}");
    }
    assert_ne!(key(&cart, &["cookie: cart=18"]), wanted);
    assert_eq!(key(&cart, &["cookie: Cart=17"]), None);
}

#[test]
fn repeated_headers_are_one_list() {
    let user = source(r#"{"header": "x-user"}"#);
    assert_eq!(key(&user, &["x-user: a", "x-user: b"]), key(&user, &["x-user: a,b"]));
    assert_ne!(key(&user, &["x-user: a", "x-user: b"]), key(&user, &["x-user: ab"]));
}

#[test]
fn a_connection_keeps_its_key() {
    let source = source(r#"{"source": true}"#);
    let headers = request("GET /", &[]).headers;
    let of = |address: &str| source.key(&headers, address.parse().unwrap()).unwrap();
    assert_eq!(of("127.0.0.1:4000"), of("[::ffff:127.0.0.1]:4000"));
    assert_ne!(of("127.0.0.1:4000"), of("127.0.0.1:4001"));
    assert_ne!(of("127.0.0.1:4000"), of("127.0.0.2:4000"));
    assert_ne!(of("[::1]:4000"), of("[::2]:4000"));
}

/// Numbered users must not crowd together: a sixteenth of them each, by the highest and lowest bits.
#[test]
fn similar_values_spread() {
    let user = source(r#"{"header": "x-user"}"#);
    let (mut high, mut low) = ([0_u32; 16], [0_u32; 16]);
    for number in 0..16_000 {
        let key = key(&user, &[&format!("x-user: user-{number}")]).unwrap();
        high[usize::try_from(key >> 60).unwrap()] += 1;
        low[usize::try_from(key & 15).unwrap()] += 1;
    }
    for count in high.iter().chain(&low) {
        assert!((850..1_150).contains(count), "{high:?} {low:?}");
    }
}

#[test]
fn exactly_one_thing_is_hashed() {
    for json in [
        "{}",
        r#"{"header": "a", "source": true}"#,
        r#"{"header": "a", "cookie": "b"}"#,
        r#"{"header": "a b"}"#,
    ] {
        assert!(HashSource::compile(&serde_json::from_str(json).unwrap()).is_err(), "{json}");
    }
}
