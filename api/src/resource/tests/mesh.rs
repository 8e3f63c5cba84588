//! Addresses of services, and what the mesh says of plaintext and of leaving it.

use super::*;

fn service(addresses: &str) -> String {
    format!("{SERVICE}  addresses:\n    {addresses}\n")
}

#[test]
fn addresses_are_those_that_can_stand_for_a_service_anywhere() {
    for good in ["[10.0.9.1]", "[\"fd00::9\", 10.0.9.1, 203.0.113.7]", "[]", "[169.254.20.10]"] {
        let text = service(good);
        let found = parse(&text).unwrap_or_else(|error| panic!("{error}\n{text}")).remove(0);
        assert_eq!(Resource::from_json(&found.to_json()).unwrap(), found, "{text}");
    }
    let many: Vec<_> = (0..=MAX_ADDRESSES).map(|n| format!("10.0.9.{n}")).collect();
    for (bad, words) in [
        ("[127.0.0.1]", "addresses[0]: 127.0.0.1 is loopback"),
        ("[10.0.9.1, \"::1\"]", "addresses[1]: ::1 is loopback"),
        ("[0.0.0.0]", "is no address"),
        ("[\"::\"]", "is no address"),
        ("[224.0.0.1]", "a group's address"),
        ("[255.255.255.255]", "a group's address"),
        ("[\"ff02::1\"]", "a group's address"),
        ("[\"fe80::1\"]", "of one link only"),
        ("[\"::ffff:10.0.9.1\"]", "write it as IPv4"),
        ("[10.0.9.1, 10.0.9.1]", "addresses[1]: 10.0.9.1 appears twice"),
        ("[orders.shop]", "invalid IP address syntax"),
        ("[\"10.0.9.1:80\"]", "invalid IP address syntax"),
        (&format!("[{}]", many.join(", ")), "17 are too many; give at most 16"),
    ] {
        let text = service(bad);
        let error = parse(&text).unwrap_err();
        assert!(error.message.contains(words), "{words:?} is not in {error}\n{text}");
        assert!(error.place == "mesh.yaml:10" || error.place == "mesh.yaml:9", "{error}");
    }
}

#[test]
fn a_mesh_is_strict_and_open_to_the_outside_unless_it_says_otherwise() {
    let mesh = |spec: &str| {
        let text = format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {spec}\n"
        );
        parse(&text).map(|mut found| found.remove(0))
    };
    let modes = |spec: &str| match mesh(spec).unwrap() {
        Resource::MeshConfig { spec } => (spec.mtls.mode, spec.egress.mode),
        other => panic!("{other:?}"),
    };
    for silent in ["{}", "{mtls: {}, egress: {}}", "{mtls: {mode: strict}, egress: {mode: allow}}"] {
        assert_eq!(modes(silent), (MtlsMode::Strict, EgressMode::Allow), "{silent}");
        // As a registry of before wrote it: a document that says nothing new reads the same there.
        let json = mesh(silent).unwrap().to_json();
        assert!(!json.contains("mtls") && !json.contains("egress"), "{json}");
    }
    let other = "{mtls: {mode: permissive}, egress: {mode: deny}}";
    assert_eq!(modes(other), (MtlsMode::Permissive, EgressMode::Deny));
    let found = mesh(other).unwrap();
    assert_eq!(Resource::from_json(&found.to_json()).unwrap(), found);
    for (bad, words) in [
        ("{mtls: {mode: off}}", "unknown variant `off`"),
        ("{egress: {mode: Deny}}", "unknown variant `Deny`"),
        ("{mtls: {strict: true}}", "unknown field `strict`"),
    ] {
        let error = mesh(bad).unwrap_err();
        assert!(error.message.contains(words), "{error}");
    }
    for mode in [MtlsMode::Strict, MtlsMode::Permissive] {
        assert_eq!(MtlsMode::from(v1::MtlsMode::from(mode)), mode);
    }
    for mode in [EgressMode::Allow, EgressMode::Deny] {
        assert_eq!(EgressMode::from(v1::EgressMode::from(mode)), mode);
    }
    assert_eq!(MtlsMode::from(v1::MtlsMode::Unspecified), MtlsMode::Strict);
    assert_eq!(EgressMode::from(v1::EgressMode::Unspecified), EgressMode::Allow);
}
