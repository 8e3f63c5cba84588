use super::*;

const TOKEN: &str = "outrigger-join.id.s3cr3t.pin";

fn load(text: &str) -> Result<Config, ConfigError> {
    Config::load(&Origin::new(Some("proxy.yaml".into()), text.to_owned(), Vec::new(), KEYS))
}

#[test]
fn the_example_file_sets_every_key_to_its_default() {
    let text = include_str!("../../../config/proxy.yaml");
    let config = load(text).unwrap();
    assert_eq!(config.timeouts.request, Duration::from_secs(30));
    assert_eq!(config.outbound.port(), 15001);
    for key in KEYS {
        let last = key.path.rsplit('.').next().unwrap();
        let line = text
            .lines()
            .find(|line| line.trim_start().trim_start_matches("# ").starts_with(&format!("{last}:")));
        let line = line.unwrap_or_else(|| panic!("config/proxy.yaml does not show {}", key.path));
        assert!(
            key.default == "-" || key.default == "[]" || text.contains(&format!("{last}: {}", key.default)),
            "{line}"
        );
    }
}

#[test]
fn wrong_values_name_their_place_and_the_remedy() {
    let with_token = format!("join: {{token: {TOKEN}}}\n");
    for (text, place, words) in [
        (String::new(), "proxy.yaml", "outrigger token"),
        ("join:\n  token: nonsense\n".to_owned(), "proxy.yaml:2", "outrigger token"),
        (format!("{with_token}outbound:\n  listen: 0.0.0.0:15001\n"), "proxy.yaml:3", "loopback"),
        (
            format!(
                "{with_token}outbound:\n  ports:\n    - {{listen: 0.0.0.0:5432, service: db.shop, port: 5432}}\n"
            ),
            "proxy.yaml:4",
            "loopback",
        ),
        (
            format!(
                "{with_token}outbound:\n  ports:\n    - {{listen: 127.0.0.1:5432, service: db, port: 5432}}\n"
            ),
            "proxy.yaml:4",
            "name.namespace",
        ),
        (format!("{with_token}timeouts:\n  detect: 2s\n"), "proxy.yaml:3", "1ms to 1s"),
        (format!("{with_token}timeouts:\n  connect: 0s\n"), "proxy.yaml:3", "10ms to 1m"),
        (format!("{with_token}workers: many\n"), "proxy.yaml:2", "auto"),
        (
            format!("{with_token}services:\n  - {{name: Orders, port: 80, target: 127.0.0.1:1}}\n"),
            "proxy.yaml:3",
            "name",
        ),
        (
            format!("{with_token}services:\n  - {{name: orders, port: 80, target: 0.0.0.0:1}}\n"),
            "proxy.yaml:3",
            "target",
        ),
        (
            format!(
                "{with_token}services:\n  - {{name: orders, port: 80, protocol: udp, target: 127.0.0.1:1}}\n"
            ),
            "proxy.yaml:3",
            "udp",
        ),
        (
            format!(
                "{with_token}services:\n  - name: orders\n    port: 80\n    target: 127.0.0.1:1\n    health: {{http: ready}}\n"
            ),
            "proxy.yaml:6",
            "not a path",
        ),
        (
            format!(
                "{with_token}services:\n  - name: orders\n    port: 80\n    target: 127.0.0.1:1\n    health: {{http: /, grpc: ''}}\n"
            ),
            "proxy.yaml:6",
            "one of",
        ),
        (
            format!(
                "{with_token}services:\n  - name: orders\n    port: 80\n    target: 127.0.0.1:1\n    probes: [{{path: healthz}}]\n"
            ),
            "proxy.yaml:6",
            "without a query",
        ),
        (format!("{with_token}health:\n  unhealthy_after: 0\n"), "proxy.yaml:3", "1 to 100"),
        (format!("{with_token}workload: {{weight: 0}}\n"), "proxy.yaml:2", "1 to 1000"),
        (format!("{with_token}upstreams: [orders]\n"), "proxy.yaml:2", "name.namespace"),
        (format!("{with_token}limits:\n  header_bytes: 1KiB\n"), "proxy.yaml:3", "8KiB to 1MiB"),
    ] {
        let error = load(&text).unwrap_err();
        assert_eq!(error.place, place, "{error}");
        assert!(error.message.contains(words), "{error}");
        assert!(!error.message.contains("s3cr3t"), "{error}");
    }
}

#[test]
fn a_token_may_be_left_out_where_an_identity_may_be_on_disk() {
    let load = |text: &str, env: &[(&str, &str)]| {
        let env = env.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Config::load(&Origin::new(Some("proxy.yaml".into()), text.to_owned(), env, KEYS))
    };
    let systemd = [("STATE_DIRECTORY", "/var/lib/a:/var/lib/b")];
    let config = load("state_dir: /x\n", &systemd).unwrap();
    assert_eq!((config.token, config.state_dir), (None, Some("/x".into())));
    assert_eq!(load("", &systemd).unwrap().state_dir, Some("/var/lib/a".into()));
    let with_token = format!("join: {{token: {TOKEN}}}\nstate_dir: ''\n");
    assert_eq!(load(&with_token, &systemd).unwrap().state_dir, None);
    assert!(load("state_dir: ''\n", &systemd).unwrap_err().message.contains("outrigger token"));
}

#[test]
fn an_application_is_checked_as_its_entry_says() {
    for (text, check) in [
        ("", Check::Tcp),
        (", health: {tcp: true}", Check::Tcp),
        (", health: {http: '/ready?deep=1'}", Check::Http("/ready?deep=1".parse().unwrap())),
        (", health: {grpc: ''}", Check::Grpc(String::new())),
        (", health: {grpc: shop.Orders}", Check::Grpc("shop.Orders".into())),
    ] {
        let entry = format!("services: [{{name: orders, port: 80, target: 127.0.0.1:1{text}}}]");
        let config = load(&format!("join: {{token: {TOKEN}}}\n{entry}\n")).unwrap();
        assert_eq!(config.services[0].health, check, "{text}");
    }
    for text in ["{tcp: false}", "{http: '/a#b'}", "{http: 'http://a/b'}", "{https: /}", "{http: '/a b'}"] {
        let entry = format!("services: [{{name: orders, port: 80, target: 127.0.0.1:1, health: {text}}}]");
        assert!(load(&format!("join: {{token: {TOKEN}}}\n{entry}\n")).is_err(), "{text}");
    }
}

#[test]
fn probes_are_exact_paths() {
    let load = |probe: &str| {
        let entry = format!("services: [{{name: orders, port: 80, target: 127.0.0.1:1, probes: [{probe}]}}]");
        load(&format!("join: {{token: {TOKEN}}}\n{entry}\n")).map(|config| config.services[0].probes.clone())
    };
    assert_eq!(load("").unwrap(), [""; 0]);
    assert_eq!(load("{path: /healthz}, {path: /a/b%20c}").unwrap(), ["/healthz", "/a/b%20c"]);
    for wrong in
        ["{path: ''}", "{path: '/a?b'}", "{path: '/a#b'}", "{path: 'http://a/b'}", "{path: '/a b'}", "{}"]
    {
        assert!(load(wrong).is_err(), "{wrong}");
    }
}
