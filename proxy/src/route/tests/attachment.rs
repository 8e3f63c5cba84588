use super::super::RouteError;
use super::super::matcher::{Frontend, Table};
use super::{goes, http_route, parse, request, table, table_for, unchecked};
use outrigger_common::name::ServiceName;

fn attached(namespace: &str, name: &str, parent: &str) -> String {
    http_route(name, &format!("  - {{backendRefs: [{{name: {name}, namespace: shop, port: 80}}]}}"))
        .replace("namespace: shop}\nspec", &format!("namespace: {namespace}}}\nspec"))
        .replace("{name: orders}", parent)
}

#[test]
fn routes_govern_the_ports_they_name() {
    for (parent, on_http, on_admin) in [
        ("{name: orders}", "r", "r"),
        ("{name: orders, port: 8080}", "r", "default"),
        ("{name: orders, sectionName: http}", "r", "default"),
        ("{name: orders, sectionName: admin}", "default", "r"),
        ("{name: orders, sectionName: '8080'}", "r", "default"),
        ("{name: other}", "default", "default"),
        ("{name: orders, namespace: shop, kind: Service}", "r", "r"),
        ("{name: orders, namespace: elsewhere}", "default", "default"),
        ("{name: other}, {name: orders, port: 9090}", "default", "r"),
    ] {
        let resources = parse(&attached("shop", "r", parent));
        let get = request("GET /", &[]);
        assert_eq!(goes(&table_for(&resources, "shop", 8080), &get), on_http, "{parent}");
        assert_eq!(goes(&table_for(&resources, "shop", 9090), &get), on_admin, "{parent}");
    }
}

/// GEP-1686: consumer routes apply to their namespace alone, and there before those of the producer.
#[test]
fn consumer_routes_replace_the_producers_for_their_namespace() {
    let producer = attached("shop", "producer", "{name: orders}");
    let consumer = attached("web", "consumer", "{name: orders, namespace: shop, port: 8080}");
    let resources = parse(&(producer + &consumer));
    let get = request("GET /", &[]);
    for (caller, port, wanted) in [
        ("shop", 8080, "producer"),
        ("web", 8080, "consumer"),
        ("other", 8080, "producer"),
        ("web", 9090, "producer"),
    ] {
        assert_eq!(goes(&table_for(&resources, caller, port), &get), wanted, "{caller} {port}");
    }
    let alone = &resources[1..];
    assert_eq!(goes(&table_for(alone, "other", 8080), &get), "default");
}

#[test]
fn a_consumer_route_that_does_not_match_is_not_made_up_for() {
    let consumer = attached("web", "consumer", "{name: orders, namespace: shop}")
        .replace("{backendRefs", "{matches: [{path: {value: /only}}], backendRefs");
    let resources = parse(&(attached("shop", "producer", "{name: orders}") + &consumer));
    assert_eq!(goes(&table_for(&resources, "web", 8080), &request("GET /", &[])), "404");
}

/// `httproute-weight`.
#[test]
fn weights_share_requests_out() {
    let rules = "  - backendRefs: [{name: v1, port: 8080, weight: 70}, {name: v2, port: 8080, weight: 30}, {name: v3, port: 8080, weight: 0}]";
    let table = table(&http_route("split", rules));
    let rule = super::rule(&table, &request("GET /", &[]));
    let mut rng = fastrand::Rng::with_seed(7);
    let mut counts = std::collections::BTreeMap::new();
    for _ in 0..20_000 {
        let super::Action::Backend(backend) = rule.action(&mut rng) else { panic!("{rule:?}") };
        *counts.entry(backend.service.to_string()).or_insert(0_u32) += 1;
    }
    assert_eq!(counts.keys().collect::<Vec<_>>(), ["v1.shop", "v2.shop"]);
    assert!((13_600..14_400).contains(&counts["v1.shop"]), "{counts:?}");
}

/// `httproute-omitted-backendrefs`, as GEP-1294 has it for Services.
#[test]
fn no_backend_is_an_error_unless_none_was_named() {
    for (backends, wanted) in [
        ("", "self"),
        (", backendRefs: [{name: v1, port: 80, weight: 0}, {name: v2, port: 80, weight: 0}]", "500"),
        (", backendRefs: [{name: v1, port: 80, weight: 1000000}]", "v1"),
    ] {
        let yaml = http_route("r", &format!("  - {{matches: [{{path: {{value: /}}}}]{backends}}}"));
        assert_eq!(goes(&table(&yaml), &request("GET /", &[])), wanted, "{backends}");
    }
}

/// Refused by the api crate, but never to be taken for something else.
#[test]
fn empty_lists_lead_nowhere() {
    let get = request("GET /", &[]);
    for (rules, wanted) in [("[]", "404"), (r#"[{"backendRefs": []}]"#, "500")] {
        assert_eq!(goes(&table_for(&[unchecked(rules)], "shop", 8080), &get), wanted, "{rules}");
    }
}

/// The api crate's checks come first; what they might miss must not be half applied. So these come
/// past them, as JSON.
#[test]
fn what_cannot_be_compiled_names_its_rule() {
    let service = ServiceName::parse("orders.shop").unwrap();
    let to = Frontend { service: &service, port: 80, port_name: None, caller_namespace: "shop" };
    let header = |side: &str, edit: &str| {
        format!(
            r#""filters": [{{"type": "{side}HeaderModifier", "{0}HeaderModifier": {edit}}}]"#,
            side.to_lowercase()
        )
    };
    let rewrite =
        |rewrite: &str| format!(r#""filters": [{{"type": "URLRewrite", "urlRewrite": {rewrite}}}]"#);
    let redirect = |redirect: &str| {
        format!(r#""filters": [{{"type": "RequestRedirect", "requestRedirect": {redirect}}}]"#)
    };
    let mirror = |mirror: &str| {
        format!(
            r#""filters": [{{"type": "RequestMirror", "requestMirror": {{"backendRef": {{"name": "a", "port": 80}}, {mirror}}}}}]"#
        )
    };
    let full = |path: &str| {
        rewrite(&format!(r#"{{"path": {{"type": "ReplaceFullPath", "replaceFullPath": "{path}"}}}}"#))
    };
    let prefix = rewrite(r#"{"path": {"type": "ReplacePrefixMatch", "replacePrefixMatch": "/b"}}"#);
    for (rule, words) in [
        (r#""backendRefs": [{"name": "v1"}]"#.to_owned(), "no port"),
        (r#""backendRefs": [{"name": "v1", "kind": "Bucket", "port": 80}]"#.to_owned(), "Bucket"),
        (r#""matches": [{"headers": [{"name": "a b", "value": "x"}]}]"#.to_owned(), "header name"),
        (
            r#""matches": [{"path": {"type": "RegularExpression", "value": "a)|(b"}}]"#.to_owned(),
            "expression",
        ),
        (r#""matches": [{"method": "G T"}]"#.to_owned(), "method"),
        (header("Request", r#"{"set": [{"name": "X-Mesh-Source", "value": "a"}]}"#), "X-Mesh-Source"),
        (header("Request", r#"{"remove": ["x_forwarded-client_cert"]}"#), "must not"),
        (header("Request", r#"{"set": [{"name": "host", "value": "a"}]}"#), "host"),
        (header("Request", r#"{"add": [{"name": "x", "value": "a\nb"}]}"#), "header value"),
        (header("Response", r#"{"add": [{"name": "Connection", "value": "a"}]}"#), "Connection"),
        (header("Response", r#"{"remove": ["transfer-encoding"]}"#), "must not"),
        (format!(r#""matches": [{{"path": {{"type": "Exact", "value": "/a"}}}}], {prefix}"#), "PathPrefix"),
        (format!(r#""matches": [{{}}, {{"path": {{"value": "/a"}}}}], {prefix}"#), "PathPrefix"),
        (full("/a?b"), "not a path"),
        (full("a"), "not a path"),
        (full("/a b"), "not a path"),
        (rewrite(r#"{"hostname": "a:80"}"#), "host name"),
        (format!(r#""backendRefs": [{{"name": "v1", "port": 80, {}}}]"#, redirect("{}")), "RequestRedirect"),
        (redirect(r#"{"scheme": "ftp"}"#), "ftp"),
        (redirect(r#"{"statusCode": 200}"#), "200"),
        (redirect(r#"{"hostname": "user@host"}"#), "host name"),
        (mirror(r#""fraction": {"numerator": 2, "denominator": 1}"#), "share"),
        (mirror(r#""fraction": {"numerator": 0, "denominator": 0}"#), "share"),
        (mirror(r#""percent": 101"#), "share"),
    ] {
        let route = unchecked(&format!("[{{}}, {{{rule}}}]"));
        let RouteError { route, rule: position, reason } = Table::compile(&to, &[route]).expect_err(&rule);
        assert_eq!((&*route.name.name, position), ("unchecked", 1), "{rule}");
        assert!(reason.to_string().contains(words), "{reason}\n{rule}");
    }
}
