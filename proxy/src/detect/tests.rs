use super::*;

/// A hello as rustls writes it.
fn hello(host: &str) -> Vec<u8> {
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(host.to_owned()).unwrap();
    let mut client = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).unwrap();
    bytes
}

/// The same, its message cut into records of `size`.
fn cut_into_records(hello: &[u8], size: usize) -> Vec<u8> {
    hello[5..]
        .chunks(size)
        .flat_map(|chunk| {
            let length = u16::try_from(chunk.len()).unwrap().to_be_bytes();
            [&[HANDSHAKE, 3, 1], length.as_slice(), chunk].concat()
        })
        .collect()
}

const HANDSHAKE: u8 = tls::HANDSHAKE;

/// The verdict must be `More` up to some byte, and the same from then on.
fn detected_bytewise(bytes: &[u8]) -> (usize, Verdict) {
    let mut decided = None;
    for end in 0..=bytes.len() {
        let verdict = detect(&bytes[..end]);
        match &decided {
            None if matches!(verdict, Verdict::More { .. }) => {}
            None => decided = Some((end, verdict)),
            Some((at, before)) => assert_eq!(verdict, *before, "decided at {at}, other at {end}"),
        }
    }
    decided.unwrap_or_else(|| (bytes.len(), detect(bytes)))
}

#[test]
fn silence_says_nothing() {
    assert_eq!(detect(b""), Verdict::More { likely: false });
}

#[test]
fn http1_is_told_by_its_whole_request_line() {
    for line in [
        "GET / HTTP/1.1\r\n",
        "GET /orders?id=1 HTTP/1.0\r\n",
        "OPTIONS * HTTP/1.1\r\n",
        "CONNECT orders.shop:80 HTTP/1.1\r\n",
        "GET http://orders.shop/ HTTP/1.1\r\n",
        "PROPFIND /dav HTTP/1.1\r\n",
        "VERSION-CONTROL /x HTTP/1.1\r\n",
        "get / HTTP/1.1\r\n",
        "GET /caf\u{e9} HTTP/1.1\r\n",
        "GET / HTTP/1.1\n",
        // Not ours to speak, but HTTP: the server says so.
        "GET /two words HTTP/1.1\r\n",
        "GET / HTTP/9.9\r\n",
        "\r\nGET / HTTP/1.1\r\n",
        "\n\r\nGET / HTTP/1.1\r\n",
    ] {
        assert_eq!(detected_bytewise(line.as_bytes()), (line.len(), Verdict::Http1), "{line:?}");
        assert_eq!(detect(format!("{line}Host: x\r\n\r\nbody").as_bytes()), Verdict::Http1);
    }
    let long = format!("GET /{}", "x".repeat(60_000));
    let (at, verdict) = detected_bytewise(&long.as_bytes()[..5000]);
    assert!(verdict == Verdict::Http1 && at < 3000, "a long target is not read to its end");
}

#[test]
fn lines_of_other_protocols_are_not_http() {
    for line in [
        "EHLO mail.example.org\r\n",       // SMTP
        "USER anonymous\r\n",              // FTP, POP3
        "get key\r\n",                     // memcached
        "set /key 0 0 5\r\nhello\r\n",     // memcached
        "PING\r\n",                        // NATS, Redis inline
        "*1\r\n$4\r\nPING\r\n",            // Redis
        "CONNECT {\"verbose\":false}\r\n", // NATS
        "NICK joe\r\n",                    // IRC
        "SSH-2.0-OpenSSH_9.9\r\n",
        "put 0 0 60 5\r\n", // beanstalkd
        "GET HTTP/1.1\r\n", // no target
        "GET /\r\n",        // HTTP/0.9
        "GET / HTTP\r\n",
        "GET /\0 HTTP/1.1\r\n",
        " GET / HTTP/1.1\r\n",
        "G\"ET / HTTP/1.1\r\n",
        "PRI * HTTP/2.0x\r\n\r\n",
        "\r\n\r\n\r\nGET / HTTP/1.1\r\n",
        "\r\r\n",
    ] {
        let (_, verdict) = detected_bytewise(line.as_bytes());
        // A version HTTP/2 does not have is one for the HTTP server to refuse.
        let expected = if line.starts_with("PRI") { Verdict::Http1 } else { Verdict::Opaque };
        assert_eq!(verdict, expected, "{line:?}");
    }
    // PostgreSQL's SSLRequest, MongoDB, Kafka, an SSL 2 hello, a DNS query, Cassandra.
    for bytes in [
        &[0, 0, 0, 8, 4, 210, 22, 47][..],
        &[0x3f, 0, 0, 0, 1, 0, 0, 0],
        &[0, 0, 0, 35, 0, 18, 0, 3],
        &[0x80, 0x2e, 1, 3, 1],
        &[0, 29, 18, 52, 1, 0],
        &[4, 0, 0, 0, 5],
    ] {
        let (at, verdict) = detected_bytewise(bytes);
        assert!(verdict == Verdict::Opaque && at <= 3, "{bytes:?}: {verdict:?} at {at}");
    }
    let token = "x".repeat(100);
    assert_eq!(detected_bytewise(token.as_bytes()), (33, Verdict::Opaque), "a method has an end");
}

#[test]
fn only_what_can_hardly_be_anything_else_is_worth_a_wait() {
    for likely in
        ["G", "GET", "GET ", "GET /ord", "CONNECT or", "PURGE /x", "PRI * HT", "\x16", "\x16\x03\x01"]
    {
        assert_eq!(detect(likely.as_bytes()), Verdict::More { likely: true }, "{likely:?}");
    }
    for unlikely in ["hello", "hello world", "PING", "EHLO mail", "\r\n", "\r", "get key"] {
        assert_eq!(detect(unlikely.as_bytes()), Verdict::More { likely: false }, "{unlikely:?}");
    }
}

#[test]
fn http2_is_told_by_its_whole_preface() {
    assert_eq!(detected_bytewise(PREFACE), (24, Verdict::Http2));
    assert_eq!(detect(&[PREFACE, &[0; 9]].concat()), Verdict::Http2);
    for at in 0..PREFACE.len() {
        let mut other = PREFACE.to_vec();
        other[at] ^= 1;
        other.extend_from_slice(b"\r\n");
        assert!(!matches!(detect(&other), Verdict::Http2), "{at}");
    }
}

#[test]
fn a_hello_is_told_wherever_it_is_split() {
    let whole = hello("Orders.Shop");
    let expected = Verdict::Tls(Some("orders.shop".into()));
    assert_eq!(detected_bytewise(&whole), (whole.len(), expected.clone()));
    for size in [1, 2, 3, 4, 5, 100, 1000] {
        let records = cut_into_records(&whole, size);
        if records.len() < LIMIT {
            assert_eq!(detected_bytewise(&records), (records.len(), expected.clone()), "records of {size}");
        }
    }
    // Whatever follows belongs to the application.
    assert_eq!(detect(&[whole.as_slice(), &[20, 3, 3, 0, 1, 1]].concat()), expected);
}

#[test]
fn a_hello_without_a_usable_name_is_still_tls() {
    assert_eq!(detect(&hello("127.0.0.1")), Verdict::Tls(None), "an address is not sent as a name");
    let whole = hello("orders.shop");
    let at = whole.windows(11).position(|part| part == b"orders.shop").unwrap();
    for bad in [&b"orders/shop"[..], b"orders\0shop", b"orders shop", b"orders\xffshop"] {
        let mut hello = whole.clone();
        hello[at..at + 11].copy_from_slice(bad);
        assert_eq!(detect(&hello), Verdict::Tls(None), "{bad:?}");
    }
    // Lengths that lie: extensions, list and name.
    for lie in [at - 2, at - 5, at - 7] {
        let mut hello = whole.clone();
        hello[lie] = 0xff;
        assert_eq!(detect(&hello), Verdict::Tls(None), "the length at {lie}");
    }
    let too_long = [&[22, 3, 1, 0x40, 0, 1, 0, 0xff, 0xff], [0; 100].as_slice()].concat();
    assert_eq!(detect(&too_long), Verdict::Tls(None));
}

#[test]
fn what_begins_like_tls_and_is_not_is_opaque() {
    for bytes in [
        &[22, 2][..],                // another version
        &[22, 3, 5],                 // another version
        &[22, 3, 1, 0, 0],           // an empty record
        &[22, 3, 1, 0xff, 0xff],     // a record that is too long
        &[22, 3, 1, 0, 1, 2],        // another message
        &[22, 3, 1, 0, 2, 1, 0, 23], // another record in between
    ] {
        let (at, verdict) = detected_bytewise(bytes);
        assert_eq!((at, verdict), (bytes.len(), Verdict::Opaque), "{bytes:?}");
    }
}

#[test]
fn random_bytes_never_confuse_it() {
    let seed = 0x0071_2a66_e2d0;
    let mut rng = fastrand::Rng::with_seed(seed);
    let stems =
        [&b""[..], b"GET ", b"\x16\x03\x01", b"PRI * HTTP/2.0\r\n", b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c"];
    for round in 0..2000 {
        let stem = rng.choice(stems).unwrap();
        let noise = (0..rng.usize(..400)).map(|_| rng.u8(..));
        let bytes: Vec<u8> = stem.iter().copied().chain(noise).collect();
        let cut = rng.usize(..=bytes.len());
        let (early, late) = (detect(&bytes[..cut]), detect(&bytes));
        assert!(
            matches!(early, Verdict::More { .. }) || early == late,
            "seed {seed} round {round}: {early:?} then {late:?}"
        );
    }
    let endless = vec![b'x'; LIMIT];
    assert_eq!(detect(&endless), Verdict::Opaque);
    // A hello of a valid shape that is cut at the limit.
    let mut mutated = hello("orders.shop");
    for _ in 0..5000 {
        let at = rng.usize(..mutated.len());
        mutated[at] = rng.u8(..);
        let _verdict = detect(&mutated);
    }
}
