use super::*;

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    address: String,
    timeouts: Timeouts,
    list: Vec<u16>,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, default)]
struct Timeouts {
    #[serde(deserialize_with = "duration")]
    connect: Duration,
    #[serde(deserialize_with = "bytes")]
    body: usize,
}

impl Default for Raw {
    fn default() -> Self {
        Self { address: "a:1".into(), timeouts: Timeouts::default(), list: vec![] }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { connect: Duration::from_secs(1), body: 10 }
    }
}

const fn key(path: &'static str) -> Key {
    Key::new(path, "", "", "", "")
}

const KEYS: &[Key] = &[key("address"), key("timeouts.connect"), key("timeouts.body"), key("list")];

fn origin(text: &str, env: &[(&str, &str)]) -> Origin {
    let env = env.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    Origin::new(Some("mesh.yaml".into()), text.to_owned(), env, KEYS)
}

#[test]
fn no_file_means_defaults() {
    for text in ["", "# only a comment\n\n"] {
        assert_eq!(origin(text, &[]).load::<Raw>().unwrap(), Raw::default());
    }
}

#[test]
fn environment_wins_over_the_file() {
    let env = [
        ("OUTRIGGER_TIMEOUTS_CONNECT", "250ms"),
        ("OUTRIGGER_LIST", "[1, 2]"),
        ("OUTRIGGER_ADDRESS", "80"),
        ("OUTRIGGER_OTHER", "x"),
    ];
    let raw: Raw = origin("timeouts:\n  connect: 5s\n  body: 1KiB\n", &env).load().unwrap();
    assert_eq!(raw.timeouts, Timeouts { connect: Duration::from_millis(250), body: 1024 });
    assert_eq!((raw.list, raw.address.as_str()), (vec![1, 2], "80"));
}

#[test]
fn errors_name_file_line_and_key() {
    for (text, line, words) in [
        ("address: x\nadress: y\n", 2, "adress"),
        ("timeouts:\n  connect: soon\n", 2, "soon"),
        ("timeouts:\n\n  conect: 5s\n", 3, "conect"),
        ("list: [1, x]\n", 1, "list"),
        ("address: [\n", 1, ""),
        ("address: a\naddress: b\n", 2, "address"),
    ] {
        let error = origin(text, &[]).load::<Raw>().unwrap_err();
        assert!(error.place.starts_with("mesh.yaml:"), "{text:?}: {error}");
        assert!(error.message.contains(words), "{text:?}: {error}");
        if !words.is_empty() {
            assert_eq!(error.place, format!("mesh.yaml:{line}"), "{error}");
        }
    }
}

#[test]
fn errors_name_the_variable() {
    let error = origin("", &[("OUTRIGGER_TIMEOUTS_CONNECT", "soon")]).load::<Raw>().unwrap_err();
    assert_eq!(error.place, "OUTRIGGER_TIMEOUTS_CONNECT");
    assert!(error.message.contains("timeouts.connect") && error.message.contains("soon"), "{error}");
}

#[test]
fn later_checks_name_the_line_of_the_key() {
    let origin = origin("address: x\ntimeouts:\n  body: 1B\n  connect: 0s\n", &[]);
    assert_eq!(
        origin.error("timeouts.connect", "must be above 0s").to_string(),
        "mesh.yaml:4: timeouts.connect: must be above 0s"
    );
    assert_eq!(origin.error("list", "empty").place, "mesh.yaml");
}

#[test]
fn durations_and_sizes_have_units() {
    assert_eq!(parse_duration("90s").unwrap(), Duration::from_secs(90));
    assert_eq!(parse_bytes("2MiB").unwrap(), 2 << 20);
    for bad in ["", "10", "s", "1.5s", "-1s", "10 s x", "99999999999999999999s", "18446744073709551615h"] {
        assert!(parse_duration(bad).is_err(), "{bad}");
    }
    for bad in ["", "10", "KiB", "1kb", "99999999999999999999GiB"] {
        assert!(parse_bytes(bad).is_err(), "{bad}");
    }
    for text in ["1ms", "1500ms", "2s", "3m", "4h"] {
        assert_eq!(format_duration(parse_duration(text).unwrap()), text);
    }
}

#[test]
fn places_are_those_the_parser_sees() {
    let text = "\
# rules: [{}]
spec:
  'rules':
    - name: matches
    - matches:
        - headers: [{name: a}, {name: b,
            value: c}]
        -
          path: /x
      ports: [80,
        90]
    - &last {name: z}
  text: |
    rules: x
---
";
    for (key, line) in [
        ("spec", Some(2)),
        ("spec.rules", Some(3)),
        ("spec.rules[0].matches", Some(4)),
        ("spec.rules[1].matches[0].headers[1].name", Some(6)),
        ("spec.rules[1].matches[0].headers[1].value", Some(7)),
        ("spec.rules[1].matches[1]", Some(9)),
        ("spec.rules[1].matches[1].path", Some(9)),
        ("spec.rules[1].matches[1].path.value", Some(9)),
        ("spec.rules[1].ports[0]", Some(10)),
        ("spec.rules[1].ports[1]", Some(11)),
        ("spec.rules[2].port", Some(12)),
        ("spec.rules[3].port", Some(3)),
        ("spec.other", Some(2)),
        ("other", None),
    ] {
        assert_eq!(place::line_of(text, key), line, "{key}");
    }
}
