//! What is redirected and what is not. A program in the sidecar's place tells where connections were
//! going.

use std::net::IpAddr;
use std::process::Output;

use outrigger_tests::netns::{Host, Network};
use outrigger_tests::process;
use serde_json::Value;

use crate::plain::{APP, Peer, SIDECAR, ask, udp};

const BACKENDS: [&str; 2] = ["nft", "iptables"];

/// A captured host and one somewhere else.
struct Two {
    _network: Network,
    here: Host,
    far: Host,
}

fn two() -> Two {
    let mut network = Network::create();
    let (here, far) = (network.host("here"), network.host("far"));
    Two { _network: network, here, far }
}

impl Two {
    /// Pairs of addresses: this host's, the other's.
    fn families(&self) -> [(IpAddr, IpAddr); 2] {
        [(self.here.v4.into(), self.far.v4.into()), (self.here.v6.into(), self.far.v6.into())]
    }
}

/// `outrigger capture ...` on a host.
fn capture(host: &Host, words: &[&str]) -> Output {
    capture_by(host, &host.namespace.prefix(), words)
}

fn capture_by(host: &Host, prefix: &[String], words: &[&str]) -> Output {
    let binary = process::binary().to_string_lossy().into_owned();
    host.command(prefix, &[&[binary.as_str(), "capture"], words].concat()).output().unwrap()
}

fn done(output: &Output) -> String {
    let [out, error] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    assert!(output.status.success(), "{out}{error}");
    out
}

fn install(host: &Host, backend: &str, more: &[&str]) -> Value {
    let words = ["install", "--uid", "1337", "--backend", backend, "--output", "json"];
    serde_json::from_str(&done(&capture(host, &[&words, more].concat()))).unwrap()
}

/// Exit code of `show`, and what it prints.
fn show(host: &Host) -> (i32, Value) {
    let output = capture(host, &["show", "--output", "json"]);
    (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap())
}

/// Every rule there is, without what counts packets or tells the time.
fn ruleset(host: &Host) -> String {
    let said = |words: &[&str]| {
        let text = String::from_utf8(host.run(words).stdout).unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        lines.collect::<Vec<_>>().join("\n")
    };
    let [nft, v4, v6] =
        [&["nft", "--stateless", "list", "ruleset"][..], &["iptables-save"], &["ip6tables-save"]].map(said);
    let anonymous = |text: String| {
        text.split('\n')
            .map(|line| line.split(" [").next().unwrap_or_default().to_owned())
            .collect::<Vec<_>>()
            .join("\n")
    };
    format!("{nft}\n{}\n{}", anonymous(v4), anonymous(v6))
}

#[test]
fn the_applications_connections_are_captured_and_no_others() {
    let two = two();
    let (here, far) = (&two.here, &two.far);
    let (_sidecar, first) = Peer::start(here, SIDECAR, &["original", "15001", "15006"]);
    assert_eq!(first, "listening");
    let _far = Peer::serve(far, "far", &[8080, 8443, 5353]);
    let (_dns, _) = Peer::start(far, 0, &["serve", "dns", "53"]);
    let _app = Peer::serve(here, "app", &[8080, 9100, 15008, 15020]);
    let (_ssh, _) = Peer::start(here, 0, &["serve", "ssh", "22"]);
    for backend in BACKENDS {
        install(here, backend, &["--exclude-outbound-ports", "8443", "--exclude-inbound-ports", "9100"]);
        for (own, other) in two.families() {
            let what = format!("{backend}, {own}");
            let outbound = |uid: u32, port: u16| ask(here, uid, other, port);
            assert_eq!(outbound(APP, 8080), format!("15001 {other} 8080"), "{what}");
            assert_eq!(outbound(0, 8080), format!("15001 {other} 8080"), "{what}: root is no sidecar");
            assert_eq!(outbound(SIDECAR, 8080), "far", "{what}: the sidecar's own");
            assert_eq!(outbound(APP, 8443), "far", "{what}: a port left out");
            assert_eq!(outbound(APP, 53), "dns", "{what}: DNS over TCP");
            assert_eq!(udp(here, APP, other, 8080), "datagram", "{what}");
            assert_eq!(udp(here, APP, other, 53), "datagram", "{what}: DNS");
            let loopback = if own.is_ipv4() { "127.0.0.1" } else { "::1" };
            assert_eq!(ask(here, APP, loopback, 8080), "app", "{what}: through localhost");
            assert_eq!(ask(here, APP, own, 8080), "app", "{what}: its own address");
            let inbound = |port: u16| ask(far, APP, own, port);
            assert_eq!(inbound(8080), format!("15006 {own} 8080"), "{what}");
            assert_eq!(inbound(9100), "app", "{what}: a port left out");
            assert_eq!(inbound(15008), "app", "{what}: other sidecars");
            assert_eq!(inbound(15020), "app", "{what}: metrics");
            assert_eq!(inbound(22), "ssh", "{what}");
            assert_eq!(udp(far, APP, own, 8080), "datagram", "{what}");
        }
        let ranges = format!("{}/32,{}/128", far.v4, far.v6);
        install(here, backend, &["--exclude-ranges", &ranges]);
        for (own, other) in two.families() {
            assert_eq!(ask(here, APP, other, 8080), "far", "{backend}, {own}: a range left out");
            assert_eq!(
                ask(far, APP, own, 9100),
                format!("15006 {own} 9100"),
                "{backend}: no longer left out"
            );
        }
        done(&capture(here, &["remove"]));
        for (own, other) in two.families() {
            assert_eq!(ask(here, APP, other, 8080), "far", "{backend}, {own}: removed");
            assert_eq!(ask(far, APP, own, 8080), "app", "{backend}, {own}: removed");
        }
    }
}

#[test]
fn connections_older_than_the_rules_go_on() {
    let two = two();
    let (here, far) = (&two.here, &two.far);
    let (_far, _app) = (Peer::serve(far, "far", &[8080]), Peer::serve(here, "app", &[8080]));
    let (_sidecar, _) = Peer::start(here, SIDECAR, &["original", "15001", "15006"]);
    for backend in BACKENDS {
        let mut held = Vec::new();
        for (own, other) in two.families() {
            held.push(Peer::start(here, APP, &["hold", &other.to_string(), "8080"]));
            held.push(Peer::start(far, APP, &["hold", &own.to_string(), "8080"]));
        }
        install(here, backend, &[]);
        let (_, other) = two.families()[0];
        assert!(ask(here, APP, other, 8080).starts_with("15001 "), "new ones are captured");
        for (peer, greeting) in &mut held {
            assert!(["far", "app"].contains(&greeting.as_str()), "{greeting}");
            assert_eq!(peer.exchange("still there"), "still there", "{backend}, to {greeting}");
        }
        // Nor are captured ones broken when the rules are replaced by others.
        let mut captured = Peer::start(here, APP, &["hold", &other.to_string(), "8080"]).0;
        install(here, backend, &["--exclude-outbound-ports", "1,2,3"]);
        assert_eq!(captured.exchange("captured"), "captured", "{backend}");
        drop(captured);
        done(&capture(here, &["remove"]));
        for (peer, greeting) in &mut held {
            assert_eq!(peer.exchange("after all"), "after all", "{backend}, to {greeting}");
        }
    }
}

#[test]
fn the_rules_are_as_they_were_when_capture_is_gone() {
    let two = two();
    let here = &two.here;
    let nothing = ruleset(here);
    for foreign in [false, true] {
        if foreign {
            for words in [
                "iptables -t nat -A OUTPUT -p tcp -d 192.0.2.1 -j DNAT --to-destination 192.0.2.2",
                "ip6tables -t nat -A PREROUTING -p tcp --dport 99 -j REDIRECT --to-ports 98",
                "iptables -A INPUT -p tcp --dport 7 -j DROP",
                "nft add table inet mine",
                "nft add chain inet mine output { type nat hook output priority -110 ; }",
                "nft add rule inet mine output tcp dport 7 redirect to :8",
            ] {
                let output = here.run(&words.split(' ').collect::<Vec<_>>());
                assert!(output.status.success(), "{words}: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        let before = ruleset(here);
        for backend in BACKENDS {
            install(here, backend, &[]);
            assert_ne!(ruleset(here), before);
            done(&capture(here, &["remove"]));
            assert_eq!(ruleset(here), before, "{backend}");
            assert!(done(&capture(here, &["remove"])).contains("nothing was captured"));
            assert_eq!(ruleset(here), before, "{backend}");
        }
        // From one to the other: the first one's are gone.
        install(here, "iptables", &[]);
        assert_eq!(install(here, "nft", &[])["changed"], true);
        done(&capture(here, &["remove"]));
        assert_eq!(ruleset(here), before);
    }
    assert_ne!(ruleset(here), nothing, "the foreign rules can be seen");
}

#[test]
fn capture_is_installed_once_and_shown_as_it_is() {
    let two = two();
    let here = &two.here;
    assert_eq!(show(here).0, 1);
    assert_eq!(show(here).1["installed"], false);
    for (backend, damage) in [
        ("nft", "nft flush chain inet outrigger inbound"),
        ("nft", "nft insert rule inet outrigger outbound accept"),
        ("iptables", "ip6tables -t nat -D OUTPUT -p tcp -j OUTRIGGER_OUTPUT"),
        ("iptables", "iptables -t nat -I OUTRIGGER_OUTPUT -p tcp --dport 80 -j ACCEPT"),
    ] {
        let options = ["--exclude-ranges", "fd00::/8,10.0.0.0/8", "--exclude-outbound-ports", "443,80"];
        assert_eq!(install(here, backend, &options)["changed"], true);
        let once = ruleset(here);
        assert_eq!(install(here, backend, &options)["changed"], false);
        assert_eq!(ruleset(here), once, "twice is once");
        let (code, shown) = show(here);
        assert_eq!((code, &shown["complete"], &shown["backend"]), (0, &true.into(), &backend.into()));
        assert_eq!(shown["plan"]["uid"], 1337);
        assert_eq!(shown["plan"]["exclude_outbound_ports"], serde_json::json!([80, 443]));
        assert_eq!(shown["plan"]["exclude_ranges"], serde_json::json!(["10.0.0.0/8", "fd00::/8"]));

        let damaged = here.run(&damage.split(' ').collect::<Vec<_>>());
        assert!(damaged.status.success(), "{damage}: {}", String::from_utf8_lossy(&damaged.stderr));
        let (code, shown) = show(here);
        assert_eq!(
            (code, &shown["installed"], &shown["complete"]),
            (1, &true.into(), &false.into()),
            "{damage}"
        );
        assert_eq!(shown["problems"].as_array().unwrap().len(), 1, "{shown}");
        assert_eq!(install(here, backend, &options)["changed"], true, "mended");
        assert_eq!(ruleset(here), once, "{damage}");
        done(&capture(here, &["remove"]));
    }
}

#[test]
fn a_dry_run_prints_what_would_be_done_and_does_nothing() {
    let two = two();
    let here = &two.here;
    let before = ruleset(here);
    let dry = |backend: &str| {
        let words = ["install", "--uid", "1337", "--dry-run", "--output", "json", "--backend", backend];
        // Needs no rights.
        let text = done(&capture_by(here, &here.prefix_as(APP), &words));
        serde_json::from_str::<Value>(&text).unwrap()["scripts"].as_array().unwrap().clone()
    };
    for backend in BACKENDS {
        let scripts = dry(backend);
        assert_eq!(ruleset(here), before);
        for script in scripts {
            let command = script["command"].as_str().unwrap();
            let line = format!("{command} <<'END'\n{}END\n", script["input"].as_str().unwrap());
            assert!(here.run(&["sh", "-c", &line]).status.success(), "{line}");
        }
        let (code, shown) = show(here);
        assert_eq!((code, &shown["backend"]), (0, &backend.into()), "{shown}");
        assert_eq!(install(here, backend, &[])["changed"], false, "{backend}: it is the same");
        done(&capture(here, &["remove"]));
    }
}

#[test]
fn what_stands_in_the_way_is_named_with_its_remedy() {
    let two = two();
    let here = &two.here;
    let fails = |output: Output, code: i32, words: &str| {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(words), "{words} in: {error}");
    };
    for backend in BACKENDS {
        let by_app = |words: &[&str]| capture_by(here, &here.prefix_as(APP), words);
        fails(by_app(&["install", "--uid", "1337", "--backend", backend]), 1, "NET_ADMIN");
        fails(by_app(&["show", "--backend", backend]), 1, "NET_ADMIN");
    }
    let mut bare = here.namespace.prefix();
    let hide = "mkdir -p $0/none && mount --bind $0/none /usr/sbin && exec \"$@\"";
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_string_lossy().into_owned();
    bare.extend(["unshare", "--mount", "sh", "-c", hide, &place].map(str::to_owned));
    fails(capture_by(here, &bare, &["install", "--uid", "1337"]), 1, "install the package nftables");
    fails(
        capture_by(here, &bare, &["install", "--uid", "1337", "--backend", "iptables"]),
        1,
        "package iptables",
    );
    fails(capture(here, &["install", "--uid", "nobody-like-that"]), 2, "/etc/passwd");
    fails(capture(here, &["install", "--uid", "1", "--inbound-port", "15001"]), 2, "must differ");
    fails(capture(here, &["install"]), 2, "--uid");
    assert_eq!(show(here).0, 1, "nothing was installed");
    // Without IPv6, ip6tables is not needed, nor missed.
    assert!(here.run(&["sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1"]).status.success());
    install(here, "iptables", &[]);
    assert_eq!(show(here).0, 0);
    assert_eq!(here.run(&["ip6tables-save"]).stdout, b"");
}
