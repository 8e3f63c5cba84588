use super::*;

/// Every field of an `HTTPRoute`.
pub(super) const HTTP: &str = "\
parentRefs:
  - {kind: Service, group: core, name: orders, namespace: shop, port: 80}
  - {name: orders, namespace: other, sectionName: http}
rules:
  - name: canary
    matches:
      - path: {type: PathPrefix, value: /v1}
        method: GET
        headers:
          - {name: X-User, value: a}
          - {type: RegularExpression, name: x-group, value: 'b|c'}
        queryParams:
          - {name: 'q[]', value: ' '}
          - {type: RegularExpression, name: r, value: '\\d+'}
    filters:
      - type: RequestHeaderModifier
        requestHeaderModifier: {set: [{name: x-a, value: b}], add: [{name: x-c, value: d}], remove: [x-e]}
      - type: ResponseHeaderModifier
        responseHeaderModifier: {set: [{name: x-a, value: b}], add: [{name: x-c, value: d}], remove: [x-e]}
      - type: URLRewrite
        urlRewrite: {hostname: next.shop, path: {type: ReplacePrefixMatch, replacePrefixMatch: /v2}}
      - type: RequestMirror
        requestMirror: {backendRef: {kind: Service, group: core, name: audit, namespace: shop, port: 80}, percent: 10}
      - type: RequestMirror
        requestMirror: {backendRef: {name: audit, port: 80}, fraction: {numerator: 1, denominator: 1000}}
    backendRefs:
      - {kind: Service, group: core, name: orders, namespace: shop, port: 80, weight: 9}
      - name: orders-next
        port: 80
        weight: 0
        filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-a]}}]
    timeouts: {request: 3s, backendRequest: 1s}
    retry: {codes: [503], attempts: 2, backoff: 10ms}
  - matches: [{path: {type: RegularExpression, value: '/old/.*'}}]
    filters:
      - type: RequestRedirect
        requestRedirect: {scheme: https, hostname: shop.example, port: 443, statusCode: 301, path: {type: ReplaceFullPath, replaceFullPath: /new}}
  - matches: [{path: {value: /old}}]
    filters:
      - type: RequestRedirect
        requestRedirect: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}}
  - filters:
      - {type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /}}}
";

/// Every field of a `GRPCRoute`.
pub(super) const GRPC: &str = "\
parentRefs:
  - {kind: Service, group: core, name: orders, namespace: shop, port: 80}
  - {name: orders, namespace: other, sectionName: http}
rules:
  - name: create
    matches:
      - method: {type: Exact, service: shop.v1.Orders, method: Create}
        headers: [{type: Exact, name: x-user, value: a}]
      - method: {type: RegularExpression, service: 'shop\\..*'}
      - method: {method: List}
    filters:
      - {type: RequestHeaderModifier, requestHeaderModifier: {remove: [x-a]}}
      - {type: RequestMirror, requestMirror: {backendRef: {name: audit, port: 80}}}
    backendRefs: [{kind: Service, group: core, name: orders, namespace: shop, port: 80, weight: 2}]
  - {}
";

const ON: &str = "parentRefs: [{name: orders}]\n";

#[test]
fn good_routes_are_accepted_and_survive_a_round_trip() {
    let rules = |text: &str| format!("{ON}rules:\n  - {text}");
    accepted(
        "HTTPRoute",
        &[
            HTTP,
            ON,
            &rules("{}"),
            &rules("timeouts: {request: 0s, backendRequest: 1s}"),
            &rules(
                "filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}}}]",
            ),
            &rules("matches: [{path: {type: Exact, value: \"/a%20b/~x;y=1,2:@!$&'()*+/...\"}}]"),
        ],
    );
    accepted("GRPCRoute", &[GRPC, ON]);
}

#[test]
fn parents_are_services() {
    for kind in ["HTTPRoute", "GRPCRoute"] {
        let many: String = (0..33).map(|number| format!("  - {{name: a{number}}}\n")).collect();
        refused(
            kind,
            &[
                ("rules: [{}]", 1, "missing field `parentRefs`"),
                ("parentRefs: []", 1, "spec.parentRefs: empty; give 1 to 32"),
                (&format!("parentRefs:\n{many}"), 1, "33 are too many"),
                (
                    "parentRefs:\n  - {kind: Gateway, name: a}",
                    2,
                    "spec.parentRefs[0].kind: \"Gateway\" is not supported by this version",
                ),
                ("parentRefs:\n  - {group: apps, name: a}", 2, "spec.parentRefs[0].group"),
                ("parentRefs:\n  - {name: A}", 2, "spec.parentRefs[0].name"),
                ("parentRefs:\n  - {name: a, namespace: B}", 2, "spec.parentRefs[0].namespace"),
                ("parentRefs:\n  - {name: a, port: 0}", 2, "use 1 to 65535"),
                ("parentRefs:\n  - {name: a, port: 80, sectionName: http}", 2, "use one of them"),
                ("parentRefs:\n  - {name: a}\n  - {name: a}", 3, "spec.parentRefs[1]: appears twice"),
                ("hostnames: [a]\nparentRefs: [{name: a}]", 1, "found by the Service they are attached to"),
                (&format!("{ON}rules: []"), 2, "spec.rules: empty; give 1 to 16"),
                (&format!("{ON}rules: [{}]", "{}, ".repeat(17)), 2, "17 are too many"),
                (
                    &format!("{ON}rules:\n  - name: a\n  - name: a"),
                    4,
                    "spec.rules[1].name: \"a\" appears twice",
                ),
                (&format!("{ON}rules:\n  - name: A"), 3, "spec.rules[0].name"),
                (&format!("{ON}rules:\n  - matches: [{}]", "{}, ".repeat(65)), 3, "65 are too many"),
                (
                    &format!("{ON}rules:\n{}", format!("  - matches: [{}]\n", "{}, ".repeat(43)).repeat(3)),
                    2,
                    "129 matches",
                ),
                (&format!("{ON}rules:\n  - sessionPersistence: {{}}"), 3, "not supported by this version"),
            ],
        );
    }
}

#[test]
fn conditions_can_be_met() {
    let found =
        |text: &str| format!("{ON}rules:\n  - {{}}\n  - matches:\n      - method: GET\n      - {text}\n");
    for (text, words) in [
        (
            "path: {value: a}",
            "spec.rules[1].matches[1].path.value: \"a\" is not a path requests have: begin with '/'",
        ),
        ("path: {value: //a}", "\"//\""),
        ("path: {value: /a/./b}", "\"/./\""),
        ("path: {value: /a/../b}", "\"/../\""),
        ("path: {value: /a/..}", "ends with"),
        ("path: {type: Exact, value: /a%2Fb}", "\"%2f\""),
        ("path: {value: '/a#b'}", "\"#\""),
        ("path: {value: '/a b'}", "encode"),
        ("path: {value: '/a?b'}", "encode"),
        ("path: {value: '/a%2'}", "encode"),
        ("path: {type: RegularExpression, value: '/('}", "unclosed group"),
        ("path: {type: RegularExpression, value: ''}", "empty"),
        ("path: {type: Glob, value: /}", "not supported by this version"),
        ("method: PURGE", "spec.rules[1].matches[1].method: PURGE is out of range; use GET, HEAD"),
        ("headers: [{name: 'a b', value: c}]", "spec.rules[1].matches[1].headers[0].name"),
        ("headers: [{name: a, value: ''}]", "spec.rules[1].matches[1].headers[0].value"),
        ("headers: [{name: a, value: \"x\\u0001\"}]", "control characters"),
        ("headers: [{name: a, value: b}, {name: A, value: c}]", "headers[1].name: appears twice"),
        ("headers: [{name: a, type: RegularExpression, value: '['}]", "unclosed character class"),
        ("queryParams: [{name: '', value: b}]", "queryParams[0].name"),
        ("queryParams: [{name: a, value: ''}]", "queryParams[0].value"),
        ("queryParams: [{name: a, value: b}, {name: a, value: c}]", "queryParams[1].name: appears twice"),
        ("cookies: []", "not supported by this version"),
    ] {
        refused("HTTPRoute", &[(&found(text), 6, words)]);
    }
    let headers: String = (0..17).map(|number| format!("{{name: a{number}, value: b}}, ")).collect();
    refused("HTTPRoute", &[(&found(&format!("headers: [{headers}]")), 6, "17 are too many")]);
    for (text, words) in [
        ("method: {}", "spec.rules[1].matches[1].method: says nothing"),
        ("method: {service: 'a-b'}", "spec.rules[1].matches[1].method.service"),
        ("method: {service: 'a..b'}", "is not a name of gRPC"),
        ("method: {method: a.b}", "spec.rules[1].matches[1].method.method"),
        ("method: {type: RegularExpression, method: '('}", "unclosed group"),
        ("headers: [{name: 'a b', value: c}]", "spec.rules[1].matches[1].headers[0].name"),
        ("path: {value: /}", "not supported by this version"),
    ] {
        let text = found(text).replace("method: GET", "method: {method: A}");
        refused("GRPCRoute", &[(&text, 6, words)]);
    }
}

#[test]
fn filters_do_not_contradict_each_other_or_the_mesh() {
    let rule = |filters: &str| format!("{ON}rules:\n  - filters:\n{filters}");
    let filter = |kind: &str, key: &str, text: &str| format!("      - type: {kind}\n        {key}: {text}\n");
    let modifier = |text: &str| filter("RequestHeaderModifier", "requestHeaderModifier", text);
    let redirect = |text: &str| filter("RequestRedirect", "requestRedirect", text);
    let rewrite = |text: &str| filter("URLRewrite", "urlRewrite", text);
    let mirror = |text: &str| filter("RequestMirror", "requestMirror", text);
    let backend = "    backendRefs: [{name: a, port: 80}]\n";
    let prefix = "{path: {type: ReplacePrefixMatch, replacePrefixMatch: /}}";
    for (filters, line, words) in [
        (
            modifier("{}") + &modifier("{}"),
            6,
            "spec.rules[0].filters[1].type: RequestHeaderModifier appears twice",
        ),
        (redirect("{}") + &rewrite("{}"), 6, "URLRewrite has no effect beside RequestRedirect"),
        (redirect("{}") + backend, 4, "RequestRedirect leaves nothing to send"),
        (
            modifier("{set: [{name: Host, value: a}]}"),
            5,
            "requestHeaderModifier.set[0].name: \"Host\" is not for a route",
        ),
        (modifier("{add: [{name: x-mesh-deadline, value: a}]}"), 5, "add[0].name"),
        (modifier("{remove: [Transfer-Encoding]}"), 5, "remove[0]"),
        (modifier("{remove: [x-forwarded-client-cert]}"), 5, "remove[0]"),
        (modifier("{set: [{name: 'a:', value: b}]}"), 5, "is not a name"),
        (modifier("{set: [{name: a, value: ' b'}]}"), 5, "no space at the ends"),
        (modifier("{set: [{name: a, value: b}, {name: A, value: b}]}"), 5, "set[1].name: appears twice"),
        (modifier("{remove: [a, A]}"), 5, "remove[1]: appears twice"),
        (modifier("{replace: []}"), 5, "not supported by this version"),
        (redirect("{scheme: ftp}"), 5, "scheme: ftp is out of range; use http, https"),
        (redirect("{hostname: 'a:1'}"), 5, "requestRedirect.hostname"),
        (redirect("{port: 0}"), 5, "use 1 to 65535"),
        (redirect("{statusCode: 304}"), 5, "statusCode: 304 is out of range; use 301"),
        (redirect("{path: {type: ReplaceFullPath, replaceFullPath: a}}"), 5, "replaceFullPath"),
        (
            redirect("{path: {type: ReplaceFullPath, replacePrefixMatch: /a}}"),
            5,
            "`replaceFullPath` and nothing else",
        ),
        (redirect("{path: {replaceFullPath: /a}}"), 5, "missing field `type`"),
        (rewrite("{hostname: A}"), 5, "urlRewrite.hostname"),
        (rewrite("{path: {type: ReplacePrefixMatch, replacePrefixMatch: a}}"), 5, "replacePrefixMatch"),
        (rewrite(prefix) + "    matches: [{}, {}]\n", 5, "exactly one match"),
        (rewrite(prefix) + "    matches: [{path: {type: Exact, value: /}}]\n", 5, "exactly one match"),
        (mirror("{backendRef: {name: a}}"), 5, "requestMirror.backendRef.port: missing"),
        (
            mirror("{backendRef: {name: a, port: 1}, percent: 101}"),
            5,
            "percent: 101 is out of range; use 0 to 100",
        ),
        (
            mirror("{backendRef: {name: a, port: 1}, percent: 1, fraction: {numerator: 1}}"),
            5,
            "use one of them",
        ),
        (
            mirror("{backendRef: {name: a, port: 1}, fraction: {numerator: 101}}"),
            5,
            "numerator: 101 is out of range; use 0 to 100",
        ),
        (
            mirror("{backendRef: {name: a, port: 1}, fraction: {numerator: 0, denominator: 0}}"),
            5,
            "denominator: 0",
        ),
        (mirror("{backendRef: {kind: Pod, name: a, port: 1}}"), 5, "requestMirror.backendRef.kind"),
        (filter("ExtensionRef", "extensionRef", "{}"), 4, "not supported by this version"),
        (filter("URLRewrite", "requestRedirect", "{}"), 4, "`requestRedirect` is another"),
        ("      - type: URLRewrite\n".to_owned(), 4, "the key its `type` names; it is missing"),
        (mirror("{backendRef: {name: a, port: 1}}").repeat(17), 3, "17 are too many"),
    ] {
        refused("HTTPRoute", &[(&rule(&filters), line, words)]);
    }
    for filters in [redirect("{}"), rewrite("{}")] {
        refused("GRPCRoute", &[(&rule(&filters), 4, "is not for a GRPCRoute")]);
    }
}

#[test]
fn backends_are_services_with_a_port() {
    let rule = |text: &str| format!("{ON}rules:\n  - {text}");
    for kind in ["HTTPRoute", "GRPCRoute"] {
        for (text, line, words) in [
            ("backendRefs: []", 3, "spec.rules[0].backendRefs: empty; leave the key out"),
            (
                "backendRefs:\n      - {name: a, port: 1}\n      - {name: a}",
                5,
                "spec.rules[0].backendRefs[1].port: missing",
            ),
            ("backendRefs:\n      - {name: a, port: 0}", 4, "use 1 to 65535"),
            ("backendRefs:\n      - {name: A, port: 1}", 4, "backendRefs[0].name"),
            ("backendRefs:\n      - {name: a, namespace: A, port: 1}", 4, "backendRefs[0].namespace"),
            ("backendRefs:\n      - {name: a, port: 1, weight: 1000001}", 4, "use 0 to 1000000"),
            ("backendRefs:\n      - {name: a, port: 1, weight: -1}", 4, "use 0 to 1000000"),
            ("backendRefs:\n      - {name: a, port: 1, kind: ServiceImport}", 4, "backendRefs[0].kind"),
            ("backendRefs:\n      - {name: a, port: 1, group: x}", 4, "backendRefs[0].group"),
            (
                "backendRefs:\n      - {name: a, port: 1, filters: [{type: RequestRedirect, requestRedirect: {}}]}",
                4,
                "backendRefs[0].filters[0].type",
            ),
            (
                "backendRefs:\n      - {name: a, port: 1, filters: [{type: RequestHeaderModifier, requestHeaderModifier: {remove: [host]}}]}",
                4,
                "backendRefs[0].filters[0].requestHeaderModifier.remove[0]",
            ),
        ] {
            refused(kind, &[(&rule(text), line, words)]);
        }
        let many: String = (0..17).map(|number| format!("{{name: a{number}, port: 1}}, ")).collect();
        refused(kind, &[(&rule(&format!("backendRefs: [{many}]")), 3, "17 are too many")]);
    }
}

#[test]
fn timeouts_and_retries_have_ranges() {
    let rule = |text: &str| format!("{ON}rules:\n  - {text}");
    for (text, words) in [
        (
            "timeouts: {request: 25h}",
            "spec.rules[0].timeouts.request: 25h is out of range; use 1ms to 24h, or 0s",
        ),
        (
            "timeouts: {request: 1s, backendRequest: 2s}",
            "backendRequest: 2s is out of range; use at most request, 1s",
        ),
        ("timeouts: {idle: 1s}", "not supported by this version"),
        ("retry: {codes: [200]}", "spec.rules[0].retry.codes[0]: 200 is out of range; use 400 to 599"),
        ("retry: {attempts: 11}", "use 0 to 10"),
        ("retry: {backoff: 2m}", "use 1ms to 1m"),
        ("retry: {backoff: soon}", "is not a duration"),
    ] {
        refused("HTTPRoute", &[(&rule(text), 3, words)]);
    }
}
