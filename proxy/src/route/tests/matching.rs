use super::super::matcher::Found;
use super::{
    call, find, for_seeds, goes, grpc_route, http_route, parse, random_path, request, rule, table, table_for,
};

fn check(yaml: &str, cases: &[(&str, &[&str], &str)]) {
    let table = table(yaml);
    for (line, headers, wanted) in cases {
        assert_eq!(goes(&table, &request(line, headers)), *wanted, "{line} {headers:?}");
    }
}

#[test]
fn without_routes_there_is_nothing_to_find() {
    let table = table("");
    assert!(matches!(find(&table, &request("GET /", &[])), Found::Default));
    assert!(table.rules().is_empty());
}

/// `httproute-matching`, split over two routes as `httproute-matching-across-routes` is.
#[test]
fn paths_and_headers_across_routes() {
    let part1 = "
  - matches:
    - path: {type: PathPrefix, value: /}
    - headers: [{name: version, value: one}]
    backendRefs: [{name: v1, port: 8080}]";
    let part2 = "
  - matches:
    - path: {type: PathPrefix, value: /v2}
    - headers: [{name: version, value: two}]
    backendRefs: [{name: v2, port: 8080}]";
    let cases: &[(&str, &[&str], &str)] = &[
        ("GET /", &[], "v1"),
        ("GET /example", &[], "v1"),
        ("GET /", &["Version: one"], "v1"),
        ("GET /v2", &[], "v2"),
        ("GET /v2/example", &[], "v2"),
        ("GET /", &["Version: two"], "v2"),
        ("GET /v2/", &[], "v2"),
        ("GET /v2example", &[], "v1"),
        ("GET /foo/v2/example", &[], "v1"),
        ("GET /foo/../v2/example", &[], "v2"),
        ("GET //v2", &[], "v2"),
        ("GET /%762", &[], "v2"),
        ("GET /v2%2Fexample", &[], "v1"),
        ("OPTIONS *", &[], "v1"),
    ];
    for yaml in [
        http_route("one", &format!("{part1}{part2}")),
        http_route("part1", part1) + &http_route("part2", part2),
        http_route("part2", part1) + &http_route("part1", part2),
    ] {
        let table = table(&yaml);
        for (line, headers, wanted) in cases.iter().filter(|case| case.0 != "OPTIONS *") {
            assert_eq!(goes(&table, &request(line, headers)), *wanted, "{line} {headers:?}");
        }
        let mut asterisk = request("OPTIONS /", &[]);
        asterisk.uri = "*".parse().unwrap();
        assert_eq!(goes(&table, &asterisk), "v1");
    }
}

/// `httproute-exact-path-matching` and `httproute-path-match-order`.
#[test]
fn exact_paths_come_first_then_the_longest_prefix() {
    let exact = "
  - {matches: [{path: {type: Exact, value: /one}}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{path: {type: Exact, value: /two}}], backendRefs: [{name: v2, port: 80}]}";
    check(
        &http_route("exact", exact),
        &[
            ("GET /one", &[], "v1"),
            ("GET /one?query", &[], "v1"),
            ("GET /two", &[], "v2"),
            ("GET /x/../two", &[], "v2"),
            ("GET /", &[], "404"),
            ("GET /one/example", &[], "404"),
            ("GET /two/", &[], "404"),
            ("GET /Two", &[], "404"),
        ],
    );
    let order = "
  - {matches: [{path: {type: Exact, value: /match}}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{path: {type: Exact, value: /match/exact}}], backendRefs: [{name: v2, port: 80}]}
  - {matches: [{path: {type: Exact, value: /match/exact/one}}], backendRefs: [{name: v3, port: 80}]}
  - {matches: [{path: {type: PathPrefix, value: /match/}}], backendRefs: [{name: v3, port: 80}]}
  - {matches: [{path: {type: PathPrefix, value: /match/prefix/}}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{path: {type: PathPrefix, value: /match/prefix/one}}], backendRefs: [{name: v2, port: 80}]}";
    check(
        &http_route("order", order),
        &[
            ("GET /match/exact/one", &[], "v3"),
            ("GET /match/exact", &[], "v2"),
            ("GET /match", &[], "v1"),
            ("GET /match/prefix/one/any", &[], "v2"),
            ("GET /match/prefix/any", &[], "v1"),
            ("GET /match/any", &[], "v3"),
        ],
    );
}

const COLOURS: &str = "
  - {matches: [{headers: [{name: version, value: one}]}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{headers: [{name: version, value: two}]}], backendRefs: [{name: v2, port: 80}]}
  - matches: [{headers: [{name: version, value: two}, {name: color, value: orange}]}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{headers: [{name: color, value: blue}]}, {headers: [{name: color, value: green}]}]
    backendRefs: [{name: v1, port: 80}]
  - matches: [{headers: [{name: color, value: red}]}, {headers: [{name: color, value: yellow}]}]
    backendRefs: [{name: v2, port: 80}]";

const COLOUR_CASES: &[(&[&str], &str)] = &[
    (&["Version: one"], "v1"),
    (&["Version: two"], "v2"),
    (&["Version: two", "Color: orange"], "v1"),
    (&["Version: two", "Color: blue"], "v2"),
    (&["Color: orange"], "404"),
    (&["Some-Other-Header: one"], "404"),
    (&["Color: blue"], "v1"),
    (&["Color: green"], "v1"),
    (&["Color: red"], "v2"),
    (&["Color: yellow"], "v2"),
    (&["Color: purple"], "404"),
];

/// `httproute-header-matching` and `grpcroute-header-matching`.
#[test]
fn headers_decide_in_both_kinds() {
    let (http, grpc) = (table(&http_route("h", COLOURS)), table(&grpc_route("g", COLOURS)));
    for (headers, wanted) in COLOUR_CASES {
        assert_eq!(goes(&http, &request("GET /", headers)), *wanted, "{headers:?}");
        assert_eq!(goes(&grpc, &call("/shop.v1.Orders/Create", headers)), *wanted, "{headers:?}");
    }
}

#[test]
fn repeated_headers_are_one_list() {
    let rules = r#"
  - {matches: [{headers: [{name: x-list, value: "a,b"}]}], backendRefs: [{name: list, port: 80}]}
  - {matches: [{headers: [{name: x-list, type: RegularExpression, value: "a,c|d"}]}], backendRefs: [{name: regex, port: 80}]}
  - {matches: [{headers: [{name: cookie, value: "a=1; b=2"}]}], backendRefs: [{name: cookie, port: 80}]}
  - {matches: [{headers: [{name: host, value: "orders.shop:8080"}, {name: x-host, value: x}]}], backendRefs: [{name: host, port: 80}]}"#;
    check(
        &http_route("lists", rules),
        &[
            ("GET /", &["x-list: a", "x-list: b"], "list"),
            ("GET /", &["x-list: a,b"], "list"),
            ("GET /", &["x-list: a", "x-list: c"], "regex"),
            ("GET /", &["x-list: d"], "regex"),
            ("GET /", &["x-list: dd"], "404"),
            ("GET /", &["x-list: a"], "404"),
            ("GET /", &["x-list: a", "x-list: b", "x-list: c"], "404"),
            ("GET /", &["x-list: A,b"], "404"),
            ("GET /", &["cookie: a=1", "cookie: b=2"], "cookie"),
            ("GET /", &["x-host: x"], "host"),
            ("GET /", &["x-host: x", "host: other"], "host"),
        ],
    );
}

/// `httproute-method-matching`.
#[test]
fn methods_decide_after_paths_and_before_headers() {
    let rules = "
  - {matches: [{method: POST}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{method: GET}], backendRefs: [{name: v2, port: 80}]}
  - {matches: [{path: {value: /path1}, method: GET}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{headers: [{name: version, value: one}], method: PUT}], backendRefs: [{name: v2, port: 80}]}
  - {matches: [{path: {value: /path2}, headers: [{name: version, value: two}], method: POST}], backendRefs: [{name: v3, port: 80}]}
  - matches:
    - {path: {value: /path3}, method: PATCH}
    - {path: {value: /path4}, headers: [{name: version, value: three}], method: DELETE}
    backendRefs: [{name: v1, port: 80}]
  - {matches: [{path: {value: /path5}}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{method: PATCH}], backendRefs: [{name: v2, port: 80}]}
  - {matches: [{headers: [{name: version, value: four}]}], backendRefs: [{name: v3, port: 80}]}";
    check(
        &http_route("methods", rules),
        &[
            ("POST /", &[], "v1"),
            ("GET /", &[], "v2"),
            ("HEAD /", &[], "404"),
            ("GET /path1", &[], "v1"),
            ("PUT /", &["version: one"], "v2"),
            ("POST /path2", &["version: two"], "v3"),
            ("PATCH /path3", &[], "v1"),
            ("DELETE /path4", &["version: three"], "v1"),
            ("PUT /", &[], "404"),
            ("DELETE /path4", &[], "404"),
            ("PATCH /path5", &[], "v1"),
            ("PATCH /", &["version: four"], "v2"),
        ],
    );
}

/// `httproute-query-param-matching`, then what it leaves open.
#[test]
fn query_parameters_decide_last() {
    let rules = r#"
  - {matches: [{queryParams: [{name: animal, value: whale}]}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{queryParams: [{name: animal, value: dolphin}]}], backendRefs: [{name: v2, port: 80}]}
  - matches:
    - queryParams: [{name: animal, value: dolphin}, {name: color, value: blue}]
    - queryParams: [{name: ANIMAL, value: Whale}]
    backendRefs: [{name: v3, port: 80}]
  - {matches: [{path: {value: /path1}, queryParams: [{name: animal, value: whale}]}], backendRefs: [{name: v1, port: 80}]}
  - matches: [{headers: [{name: version, value: one}], queryParams: [{name: animal, value: whale}]}]
    backendRefs: [{name: v2, port: 80}]
  - {matches: [{path: {value: /path5}}], backendRefs: [{name: v1, port: 80}]}
  - {matches: [{queryParams: [{name: animal, value: hydra}]}], backendRefs: [{name: v2, port: 80}]}
  - {matches: [{headers: [{name: version, value: four}]}], backendRefs: [{name: v3, port: 80}]}
  - {matches: [{queryParams: [{name: "a b", value: "c&é"}]}], backendRefs: [{name: decoded, port: 80}]}
  - {matches: [{queryParams: [{name: n, type: RegularExpression, value: "[0-9]+"}]}], backendRefs: [{name: regex, port: 80}]}"#;
    check(
        &http_route("query", rules),
        &[
            ("GET /?animal=whale", &[], "v1"),
            ("GET /?animal=dolphin", &[], "v2"),
            ("GET /?animal=dolphin&color=blue", &[], "v3"),
            ("GET /?ANIMAL=Whale", &[], "v3"),
            ("GET /?animal=whale&otherparam=irrelevant", &[], "v1"),
            ("GET /?animal=dolphin&color=yellow", &[], "v2"),
            ("GET /?color=blue", &[], "404"),
            ("GET /?animal=dog", &[], "404"),
            ("GET /?animal=whaledolphin", &[], "404"),
            ("GET /", &[], "404"),
            ("GET /path1?animal=whale", &[], "v1"),
            ("GET /?animal=whale", &["version: one"], "v2"),
            ("GET /path5?animal=hydra", &[], "v1"),
            ("GET /?animal=hydra", &["version: four"], "v3"),
            ("GET /?animal=dog&animal=whale", &[], "404"),
            ("GET /?animal=whale&animal=dog", &[], "v1"),
            ("GET /?%61nimal=wh%61le", &[], "v1"),
            ("GET /?a+b=c%26%C3%A9", &[], "decoded"),
            ("GET /?a%20b=c%26%C3%A9", &[], "decoded"),
            ("GET /?n=17", &[], "regex"),
            ("GET /?n=1%37", &[], "regex"),
            ("GET /?n=17x", &[], "404"),
            ("GET /?animal", &[], "404"),
        ],
    );
}

#[test]
fn regular_expressions_stand_between_exact_paths_and_prefixes() {
    let rules = r#"
  - {matches: [{path: {value: /v1/orders}}], backendRefs: [{name: prefix, port: 80}]}
  - {matches: [{path: {type: RegularExpression, value: "/v[0-9]+/.*"}}], backendRefs: [{name: regex, port: 80}]}
  - {matches: [{path: {type: RegularExpression, value: "/v[0-9]+/orders/.*"}}], backendRefs: [{name: longer, port: 80}]}
  - {matches: [{path: {type: Exact, value: /v1/exact}}], backendRefs: [{name: exact, port: 80}]}
  - {backendRefs: [{name: rest, port: 80}]}"#;
    check(
        &http_route("regex", rules),
        &[
            ("GET /v1/exact", &[], "exact"),
            ("GET /v1/orders", &[], "regex"),
            ("GET /v1/orders/7", &[], "longer"),
            ("GET /x/../v1/orders/7", &[], "longer"),
            ("GET /v1", &[], "rest"),
            ("GET /x/v1/orders", &[], "rest"),
        ],
    );
}

/// `grpcroute-exact-method-matching`, then the order of what a call may be matched by.
#[test]
fn calls_are_matched_by_service_and_method() {
    let rules = r#"
  - {matches: [{method: {service: shop.v1.Orders, method: Create}}], backendRefs: [{name: create, port: 80}]}
  - {matches: [{method: {service: shop.v1.Orders}}], backendRefs: [{name: orders, port: 80}]}
  - {matches: [{method: {method: Create}}], backendRefs: [{name: any-create, port: 80}]}
  - {matches: [{method: {type: RegularExpression, service: "shop[.]v[0-9]+[.].*"}}], backendRefs: [{name: regex, port: 80}]}
  - {matches: [{method: {service: shop.v1.Orders}, headers: [{name: x-canary, value: "1"}]}], backendRefs: [{name: canary, port: 80}]}"#;
    let table = table(&grpc_route("calls", rules));
    for (path, headers, wanted) in [
        ("/shop.v1.Orders/Create", &[] as &[&str], "create"),
        ("/shop.v1.Orders/Create", &["x-canary: 1"], "create"),
        ("/shop.v1.Orders/List", &[], "orders"),
        ("/shop.v1.Orders/List", &["x-canary: 1"], "canary"),
        ("/shop.v2.Orders/Create", &[], "regex"),
        ("/shop.v2.Orders/List", &[], "regex"),
        ("/other.Service/Create", &[], "any-create"),
        ("/other.Service/List", &[], "404"),
        ("/shop.v1.orders/List", &[], "regex"),
        ("/shop.v1.Orders", &[], "404"),
        ("/shop.v1.Orders/Create/more", &[], "orders"),
    ] {
        assert_eq!(goes(&table, &call(path, headers)), wanted, "{path} {headers:?}");
    }
    assert_eq!(goes(&table, &request("GET /shop.v1.Orders/Create", &[])), "404", "not a call");
}

#[test]
fn kinds_share_a_port_without_mixing() {
    let http = http_route("a", "  - {backendRefs: [{name: web, port: 80}]}");
    let grpc =
        grpc_route("b", "  - {matches: [{method: {service: S}}], backendRefs: [{name: rpc, port: 80}]}");
    let alone = table(&http);
    assert_eq!(goes(&alone, &call("/S/M", &[])), "web");
    let both = table(&(http + &grpc));
    assert_eq!(goes(&both, &call("/S/M", &[])), "rpc");
    assert_eq!(goes(&both, &call("/T/M", &[])), "404", "never the HTTPRoute's");
    assert_eq!(goes(&both, &request("GET /S/M", &[])), "web");
}

#[test]
fn ties_go_to_the_first_route_by_name_then_to_its_first_rule() {
    let rules = |name: &str| {
        format!(
            "  - {{backendRefs: [{{name: {name}, port: 80}}]}}\n  - {{backendRefs: [{{name: never, port: 80}}]}}"
        )
    };
    let yaml = http_route("b", &rules("of-b")) + &http_route("a", &rules("of-a"));
    assert_eq!(goes(&table(&yaml), &request("GET /", &[])), "of-a");
}

#[test]
fn a_route_that_leaves_rules_out_changes_nothing() {
    let yaml = http_route("all", "").replace("  rules:\n", "");
    assert_eq!(goes(&table(&yaml), &request("GET /", &[])), "self");
}

/// A random rule: (path kind, path, method, header, query), with a backend of its own.
fn random_rule(rng: &mut fastrand::Rng, backend: usize) -> String {
    let mut conditions = Vec::new();
    let path = ["/", "/a", "/a/b", "/foo", "/a/"][rng.usize(..5)];
    match rng.u8(..4) {
        0 => conditions.push(format!("path: {{type: Exact, value: {path}}}")),
        1 => conditions.push(format!("path: {{value: {path}}}")),
        2 => conditions.push(format!("path: {{type: RegularExpression, value: '{path}.*'}}")),
        _ => {}
    }
    if rng.bool() {
        conditions.push(format!("method: {}", ["GET", "POST"][rng.usize(..2)]));
    }
    if rng.bool() {
        conditions.push(format!("headers: [{{name: x, value: '{}'}}]", rng.u8(..2)));
    }
    if rng.bool() {
        conditions.push(format!("queryParams: [{{name: q, value: '{}'}}]", rng.u8(..2)));
    }
    format!("  - {{matches: [{{{}}}], backendRefs: [{{name: b{backend}, port: 80}}]}}", conditions.join(", "))
}

fn random_request(rng: &mut fastrand::Rng) -> http::request::Parts {
    let path = loop {
        let path = random_path(rng);
        if path.is_ascii() && !path.to_ascii_lowercase().contains("%2f") {
            break path;
        }
    };
    let line = format!("{} {path}?q={}", ["GET", "POST"][rng.usize(..2)], rng.u8(..3));
    request(&line, &[&format!("x: {}", rng.u8(..3))])
}

#[test]
fn the_order_of_arrival_and_rules_that_do_not_match_change_nothing() {
    for_seeds(500, |rng| {
        let routes: Vec<String> = (0..3)
            .map(|number| {
                let rules: Vec<_> = (0..rng.usize(1..4)).map(|i| random_rule(rng, number * 10 + i)).collect();
                http_route(&format!("r{number}"), &rules.join("\n"))
            })
            .collect();
        let mut resources = parse(&routes.concat());
        let parts = random_request(rng);
        let before = goes(&table_for(&resources, "shop", 8080), &parts);
        rng.shuffle(&mut resources);
        assert_eq!(goes(&table_for(&resources, "shop", 8080), &parts), before, "{parts:?}\n{routes:?}");
        // Foremost in every respect, but of another method.
        let foreign = "  - {matches: [{path: {type: Exact, value: /a}, method: PATCH}], backendRefs: [{name: x, port: 80}]}";
        resources.extend(parse(&http_route("a", foreign)));
        assert_eq!(goes(&table_for(&resources, "shop", 8080), &parts), before, "{parts:?}\n{routes:?}");
    });
}

#[test]
fn an_exact_path_beats_every_other_rule() {
    for_seeds(500, |rng| {
        let mut rules: Vec<_> = (0..4).map(|i| random_rule(rng, i)).collect();
        rules.retain(|rule| !rule.contains("Exact"));
        let parts = random_request(rng);
        let path = super::super::path::normalise(parts.uri.path()).into_owned();
        let exact = format!(
            "  - {{matches: [{{path: {{type: Exact, value: '{path}'}}}}], backendRefs: [{{name: exact, port: 80}}]}}"
        );
        rules.insert(rng.usize(..=rules.len()), exact);
        let yaml = http_route("r", &rules.join("\n"));
        assert_eq!(goes(&table(&yaml), &parts), "exact", "{parts:?}\n{yaml}");
    });
}

#[test]
fn rules_are_known_by_route_and_name() {
    let yaml = http_route(
        "split",
        "  - {name: first, matches: [{path: {value: /a}}]}\n  - {matches: [{path: {value: /b}}]}",
    );
    let table = table(&yaml);
    let named = rule(&table, &request("GET /a", &[]));
    assert_eq!((&*named.label, named.index, named.reference().index), ("shop/split/first", 0, 0));
    let unnamed = rule(&table, &request("GET /b", &[]));
    assert_eq!((&*unnamed.label, unnamed.index, unnamed.reference().index), ("shop/split", 1, 1));
    assert_eq!(unnamed.reference().kind, "HTTPRoute");
    assert_eq!(unnamed.route.to_string(), "HTTPRoute shop/split");
}
