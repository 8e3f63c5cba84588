use http::header::{HOST, LOCATION};
use http::request::Parts;
use http::uri::PathAndQuery;
use http::{HeaderMap, Uri};

use super::super::filter::TooLong;
use super::super::rule::{Action, Rule};
use super::{Rng, for_seeds, goes, http_route, random_path, request, rule, table};

/// A rule for everything below `prefix`, with one filter.
fn filtered(prefix: &str, filter: &str) -> super::Table {
    table(&http_route("r", &format!("  - matches: [{{path: {{value: {prefix}}}}}]\n    filters: [{filter}]")))
}

fn edited(rule: &Rule, mut parts: Parts) -> Parts {
    rule.filters.edit_request(&mut parts).unwrap();
    parts
}

fn values<'h>(headers: &'h HeaderMap, name: &str) -> Vec<&'h str> {
    headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
}

/// `httproute-request-header-modifier`.
#[test]
fn request_headers_are_set_added_and_removed() {
    let table = filtered(
        "/",
        "{type: RequestHeaderModifier, requestHeaderModifier: {
          set: [{name: X-Header-Set-1, value: header-set-1}, {name: X-Header-Set-2, value: header-set-2}],
          add: [{name: X-Header-Add-1, value: header-add-1}, {name: X-Header-Add-2, value: 'header-add-2,3'}],
          remove: [X-Header-Remove-1, X-Header-Remove-2]}}",
    );
    let parts = request(
        "GET /",
        &[
            "x-header-set-2: old",
            "x-header-set-2: older",
            "x-header-add-2: mine",
            "x-header-remove-2: x",
            "other: val",
        ],
    );
    let headers = edited(rule(&table, &parts), parts.clone()).headers;
    assert_eq!(values(&headers, "x-header-set-1"), ["header-set-1"]);
    assert_eq!(values(&headers, "x-header-set-2"), ["header-set-2"]);
    assert_eq!(values(&headers, "x-header-add-1"), ["header-add-1"]);
    assert_eq!(values(&headers, "x-header-add-2"), ["mine", "header-add-2,3"]);
    assert_eq!(values(&headers, "other"), ["val"]);
    assert!(!headers.contains_key("x-header-remove-2"));
}

/// `httproute-response-header-modifier`.
#[test]
fn response_headers_are_another_matter() {
    let table = filtered(
        "/",
        "{type: ResponseHeaderModifier, responseHeaderModifier: {add: [{name: set-cookie, value: b=2}], remove: [server]}}",
    );
    let parts = request("GET /", &["server: x"]);
    let rule = rule(&table, &parts);
    assert_eq!(edited(rule, parts.clone()).headers, parts.headers);
    let mut headers = request("GET /", &["set-cookie: a=1", "server: x"]).headers;
    rule.filters.edit_response(&mut headers);
    assert_eq!(values(&headers, "set-cookie"), ["a=1", "b=2"]);
    assert!(!headers.contains_key("server"));
}

/// `httproute-rewrite-path`.
#[test]
fn paths_are_rewritten_and_queries_kept() {
    let prefix = |to: &str| {
        format!(
            "{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: '{to}'}}}}}}"
        )
    };
    let full =
        "{type: URLRewrite, urlRewrite: {path: {type: ReplaceFullPath, replaceFullPath: /one}}}".to_owned();
    for (at, filter, target, rewritten) in [
        ("/prefix/one", prefix("/one"), "/prefix/one/two", "/one/two"),
        ("/strip-prefix", prefix("/"), "/strip-prefix/three", "/three"),
        ("/strip-prefix", prefix("/"), "/strip-prefix", "/"),
        ("/strip-prefix", prefix(""), "/strip-prefix/x?q=1&r", "/x?q=1&r"),
        ("/full", full.clone(), "/full/one/two", "/one"),
        ("/full", full, "/full/one/two?q=%2F", "/one?q=%2F"),
    ] {
        let table = filtered(at, &filter);
        let parts = request(&format!("GET {target}"), &[]);
        let uri = edited(rule(&table, &parts), parts.clone()).uri;
        assert_eq!(uri.to_string(), format!("http://orders.shop:8080{rewritten}"), "{target} {filter}");
    }
}

/// `httproute-rewrite-host`.
#[test]
fn hosts_are_rewritten_wherever_they_stand() {
    let table = filtered("/", "{type: URLRewrite, urlRewrite: {hostname: one.example.org}}");
    let mut parts = request("GET /one?q", &[]);
    assert_eq!(edited(rule(&table, &parts), parts.clone()).uri, "http://one.example.org/one?q");
    parts.uri = Uri::from_static("/one?q");
    parts.headers.insert(HOST, "orders.shop".parse().unwrap());
    let parts = edited(rule(&table, &parts), parts.clone());
    assert_eq!(
        (parts.uri.to_string().as_str(), &parts.headers[HOST]),
        ("/one?q", &"one.example.org".parse().unwrap())
    );
}

#[test]
fn a_path_that_grows_too_long_is_refused() {
    let to = "/x".repeat(500);
    let table = filtered(
        "/a",
        &format!(
            "{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {to}}}}}}}"
        ),
    );
    let mut parts = request("GET /a", &[]);
    parts.uri = format!("/a/{}", "b".repeat(65_000)).parse().unwrap();
    let rule = rule(&table, &parts);
    assert_eq!(rule.filters.edit_request(&mut parts), Err(TooLong));
    assert!(parts.uri.path().starts_with("/a/b"), "left as it was");
}

#[test]
fn no_rewrite_makes_an_invalid_target() {
    let filters = ["''", "/", "/x", "/x/", "/%20/y"].map(|to| {
        format!("{{type: URLRewrite, urlRewrite: {{path: {{type: ReplacePrefixMatch, replacePrefixMatch: {to}}}}}}}")
    });
    let tables: Vec<_> = filters
        .iter()
        .flat_map(|filter| ["/", "/a", "/foo/"].map(|prefix| filtered(prefix, filter)))
        .collect();
    for_seeds(2000, |rng| {
        let mut parts = request("GET /", &[]);
        let target = format!("{}?{}", random_path(rng), random_path(rng));
        parts.uri = format!("http://orders.shop{target}").parse().unwrap();
        let table = &tables[rng.usize(..tables.len())];
        if goes(table, &parts) == "404" {
            return;
        }
        let uri = edited(rule(table, &parts), parts.clone()).uri;
        let again = PathAndQuery::try_from(uri.path_and_query().unwrap().as_str()).unwrap();
        assert!(again.path().starts_with('/'), "{target} {uri}");
        assert_eq!(again.query(), parts.uri.query(), "{target} {uri}");
        assert_eq!((uri.scheme_str(), uri.host()), (Some("http"), Some("orders.shop")), "{target} {uri}");
    });
}

fn location(table: &super::Table, parts: &Parts, port: u16) -> (u16, String) {
    match rule(table, parts).action(&mut Rng::with_seed(0)) {
        Action::Redirect(redirect) => {
            (redirect.status().as_u16(), redirect.location(parts, port).to_str().unwrap().to_owned())
        }
        other => panic!("{other:?}"),
    }
}

/// `httproute-redirect-host-and-status`, `-path`, `-port`, `-scheme`, `-port-and-scheme`, `-303`, `-307`,
/// `-308`: the redirect, the service port, and what comes of `/old/lemon?q=1`.
#[test]
fn redirects_name_scheme_host_port_and_path() {
    let prefix = "path: {type: ReplacePrefixMatch, replacePrefixMatch: /new}";
    let full = "path: {type: ReplaceFullPath, replaceFullPath: /full}";
    for (redirect, port, status, wanted) in [
        ("hostname: example.org", 80, 302, "http://example.org/old/lemon?q=1"),
        ("hostname: example.org", 8080, 302, "http://example.org:8080/old/lemon?q=1"),
        ("statusCode: 301, hostname: example.org", 80, 301, "http://example.org/old/lemon?q=1"),
        ("statusCode: 303", 80, 303, "http://orders.shop/old/lemon?q=1"),
        ("statusCode: 307", 8080, 307, "http://orders.shop:8080/old/lemon?q=1"),
        ("statusCode: 308, hostname: example.org", 80, 308, "http://example.org/old/lemon?q=1"),
        (prefix, 80, 302, "http://orders.shop/new/lemon?q=1"),
        (full, 80, 302, "http://orders.shop/full?q=1"),
        (&format!("hostname: example.org, statusCode: 301, {full}"), 80, 301, "http://example.org/full?q=1"),
        ("port: 8083", 80, 302, "http://orders.shop:8083/old/lemon?q=1"),
        ("port: 8083, hostname: example.org", 8080, 302, "http://example.org:8083/old/lemon?q=1"),
        ("port: 80, hostname: example.org", 8080, 302, "http://example.org/old/lemon?q=1"),
        ("scheme: https", 8080, 302, "https://orders.shop/old/lemon?q=1"),
        ("scheme: https, hostname: example.org", 80, 302, "https://example.org/old/lemon?q=1"),
        ("scheme: https, port: 443", 8080, 302, "https://orders.shop/old/lemon?q=1"),
        ("scheme: https, port: 8443", 80, 302, "https://orders.shop:8443/old/lemon?q=1"),
        ("scheme: http, port: 443", 80, 302, "http://orders.shop:443/old/lemon?q=1"),
        ("scheme: http", 8080, 302, "http://orders.shop/old/lemon?q=1"),
    ] {
        let table = filtered("/old", &format!("{{type: RequestRedirect, requestRedirect: {{{redirect}}}}}"));
        let parts = request("GET /old/lemon?q=1", &[]);
        assert_eq!(location(&table, &parts, port), (status, wanted.to_owned()), "{redirect} {port}");
        let mut plain = parts.clone();
        plain.uri = Uri::from_static("/old/lemon?q=1");
        plain.headers.insert(HOST, "orders.shop:8080".parse().unwrap());
        assert_eq!(location(&table, &plain, port).1, wanted, "{redirect} {port}, in origin form");
    }
}

#[test]
fn no_path_turns_a_redirect_elsewhere() {
    let filters = ["", ", path: {type: ReplacePrefixMatch, replacePrefixMatch: ''}"];
    let tables = filters.map(|path| {
        filtered("/", &format!("{{type: RequestRedirect, requestRedirect: {{hostname: example.org{path}}}}}"))
    });
    for_seeds(2000, |rng| {
        let mut parts = request("GET /", &[]);
        parts.uri = format!("http://orders.shop/{}?{}", random_path(rng), random_path(rng)).parse().unwrap();
        for table in &tables {
            let (_, location) = location(table, &parts, 80);
            assert!(location.is_ascii(), "{location}");
            let uri: Uri = location.parse().unwrap();
            assert_eq!(uri.authority().unwrap(), "example.org", "{location}");
        }
    });
    let parts = request("GET //evil.example/x", &[]);
    assert_eq!(location(&tables[1], &parts, 80).1, "http://example.org/evil.example/x");
}

#[test]
fn a_redirect_carries_the_responses_headers() {
    let table = table(&http_route(
        "r",
        "  - filters:
    - {type: ResponseHeaderModifier, responseHeaderModifier: {set: [{name: cache-control, value: no-store}]}}
    - {type: RequestRedirect, requestRedirect: {scheme: https}}",
    ));
    let parts = request("GET /", &[]);
    let mut headers = HeaderMap::new();
    headers.insert(LOCATION, location(&table, &parts, 80).1.parse().unwrap());
    rule(&table, &parts).filters.edit_response(&mut headers);
    assert_eq!(
        (&headers["cache-control"], &headers[LOCATION]),
        (&"no-store".parse().unwrap(), &"https://orders.shop/".parse().unwrap())
    );
}

/// `httproute-request-header-modifier-backend-weights`: a backend's filters are its own.
#[test]
fn filters_of_a_backend_come_after_the_rules() {
    let table = table(&http_route(
        "r",
        "  - filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: by, value: rule}]}}]
    backendRefs:
    - name: v1
      port: 80
      filters: [{type: RequestHeaderModifier, requestHeaderModifier: {add: [{name: by, value: v1}]}}]
    - {name: v2, port: 80}",
    ));
    let mut parts = request("GET /", &[]);
    let rule = rule(&table, &parts.clone());
    rule.filters.edit_request(&mut parts).unwrap();
    let by: Vec<Vec<String>> = rule
        .backends()
        .unwrap()
        .iter()
        .map(|backend| {
            let mut parts = parts.clone();
            backend.filters.edit_request(&mut parts).unwrap();
            values(&parts.headers, "by").into_iter().map(str::to_owned).collect()
        })
        .collect();
    assert_eq!(by, [vec!["rule", "v1"], vec!["rule"]]);
}

/// `httproute-request-multiple-mirrors` and `-percentage-mirror`.
#[test]
fn mirrors_take_their_share() {
    let table = filtered(
        "/",
        "{type: RequestMirror, requestMirror: {backendRef: {name: all, port: 80}}},
         {type: RequestMirror, requestMirror: {backendRef: {name: fifth, namespace: lab, port: 80}, percent: 20}},
         {type: RequestMirror, requestMirror: {backendRef: {name: rare, port: 81}, fraction: {numerator: 1, denominator: 1000}}},
         {type: RequestMirror, requestMirror: {backendRef: {name: never, port: 80}, percent: 0}}",
    );
    let rule = rule(&table, &request("GET /", &[]));
    let mut rng = Rng::with_seed(11);
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..10_000 {
        for mirror in rule.filters.mirrors(&mut rng) {
            *counts.entry((mirror.service.to_string(), mirror.port)).or_insert(0_u32) += 1;
        }
    }
    let count = |name: &str, port| counts.get(&(name.to_owned(), port)).copied().unwrap_or(0);
    assert_eq!(count("all.shop", 80), 10_000);
    assert!((1_800..2_200).contains(&count("fifth.lab", 80)), "{counts:?}");
    assert!((1..40).contains(&count("rare.shop", 81)), "{counts:?}");
    assert_eq!(counts.len(), 3, "{counts:?}");
}
