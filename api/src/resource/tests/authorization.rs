use super::*;

/// Every field of a policy.
pub(super) const WHOLE: &[&str] = &[
    "targetRefs: [{kind: Service, name: orders, namespace: shop, group: core}]\naction: Deny\nrules: [{}]",
    "rules:\n  - identities: [spiffe://mesh.local/ns/shop/sa/web, spiffe://mesh.local/ns/shop/*, 'spiffe://*']\n    namespaces: [shop, front]\n    ports: [1, 65535]",
];

#[test]
fn good_policies_are_accepted_and_survive_a_round_trip() {
    accepted("AuthorizationPolicy", &["{}"]);
    accepted("AuthorizationPolicy", WHOLE);
}

#[test]
fn bad_ones_are_refused_with_their_place() {
    let rule = |text: &str| format!("rules:\n  - {{namespaces: [a]}}\n  - {text}");
    refused(
        "AuthorizationPolicy",
        &[
            ("action: Audit", 1, "not supported by this version"),
            ("targetRefs:\n  - {kind: HTTPRoute, name: a}", 2, "spec.targetRefs[0].kind: \"HTTPRoute\""),
            (
                "targetRefs:\n  - {kind: Service, name: a, namespace: other}",
                2,
                "for its own namespace to say",
            ),
            ("targetRefs:\n  - {kind: Service, name: A}", 2, "spec.targetRefs[0].name"),
            ("targetRefs:\n  - {kind: Service, name: a, group: apps}", 2, "spec.targetRefs[0].group"),
            ("targetRefs:\n  - {kind: Service, name: a, sectionName: http}", 2, "name ports in `ports`"),
            ("targetRefs:\n  - {kind: Service, name: a}\n  - {kind: Service, name: a}", 3, "twice"),
            (&rule("identities: [spiffe://a/b, mesh.local/ns]"), 3, "spec.rules[1].identities[1]"),
            (&rule("identities:\n      - '*'"), 4, "is not an identity; use spiffe://"),
            (&rule("identities: ['spiffe://a/*/b']"), 3, "is not an identity"),
            (&rule("identities: ['spiffe://mesh.local']"), 3, "is not an identity"),
            (&rule("identities: ['spiffe://mesh.local/a b']"), 3, "is not an identity"),
            (&rule("namespaces: [A]"), 3, "spec.rules[1].namespaces[0]: A is out of range; use a DNS label"),
            (&rule("ports: [80, 0]"), 3, "spec.rules[1].ports[1]: 0 is out of range; use 1 to 65535"),
            (&rule("ports: [70000]"), 3, "use 1 to 65535"),
            (&rule("paths: [/]"), 3, "not supported by this version"),
        ],
    );
}
