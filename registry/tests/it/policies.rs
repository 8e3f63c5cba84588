//! Routes and policies, from the administrator to the sidecars they concern.

use outrigger_api::document::parse_yaml;
use outrigger_api::resource::Resource;
use outrigger_api::v1;
use outrigger_api::v1::applied::Outcome;
use outrigger_api::v1::change::Change as Kind;
use outrigger_api::v1::watch_request::Message as Asked;
use tonic::{Code, Status};

use crate::harness::{Mesh, Sidecar, Watcher, hello, refused, until, workload};

fn document(kind: &str, place: &str, spec: &str) -> v1::Resource {
    let (namespace, name) = place.split_once('/').unwrap();
    let api = if kind.ends_with("Route") { "gateway.networking.k8s.io/v1" } else { "outrigger.dev/v1alpha1" };
    let yaml = format!(
        "apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    );
    sent(&parse_yaml("mesh.yaml".as_ref(), &yaml).unwrap()[0])
}

fn sent(resource: &Resource) -> v1::Resource {
    v1::Resource {
        kind: resource.kind().into(),
        namespace: resource.namespace().into(),
        name: resource.name().into(),
        json: resource.to_json(),
        revision: 0,
    }
}

/// A TrafficPolicy for a service, `name.namespace`.
fn policy(place: &str, service: &str, attempts: u32) -> v1::Resource {
    let (name, namespace) = service.split_once('.').unwrap();
    let target = format!("{{kind: Service, name: {name}, namespace: {namespace}}}");
    document(
        "TrafficPolicy",
        place,
        &format!("{{targetRefs: [{target}], retries: {{attempts: {attempts}}}}}"),
    )
}

fn route(place: &str, service: &str) -> v1::Resource {
    let (name, namespace) = service.split_once('.').unwrap();
    document(
        "HTTPRoute",
        place,
        &format!("{{parentRefs: [{{name: {name}, namespace: {namespace}}}], rules: [{{name: all}}]}}"),
    )
}

fn on_route(place: &str, route: &str) -> v1::Resource {
    document(
        "TrafficPolicy",
        place,
        &format!("{{targetRefs: [{{kind: HTTPRoute, name: {route}}}], retries: {{attempts: 1}}}}"),
    )
}

fn authorization(place: &str, spec: &str) -> v1::Resource {
    document("AuthorizationPolicy", place, spec)
}

async fn send(mesh: &Mesh, resources: &[v1::Resource], delete: bool) -> Result<Vec<v1::Applied>, Status> {
    let request = v1::ApplyRequest { resources: resources.to_vec(), delete, dry_run: false };
    Ok(mesh.admin().apply(request).await?.into_inner().results)
}

async fn apply(mesh: &Mesh, resources: &[v1::Resource]) {
    send(mesh, resources, false).await.unwrap();
}

async fn delete(mesh: &Mesh, resources: &[v1::Resource]) {
    send(mesh, resources, true).await.unwrap();
}

async fn serving(sidecar: &Sidecar, cursor: &[u8], services: &[&str], serves: &[&str]) -> Watcher {
    let serves = serves.iter().map(|s| (*s).to_owned()).collect();
    let mut watcher = sidecar.hello(v1::Hello { serves, ..hello(cursor, services) }).await.unwrap();
    watcher.update().await;
    watcher
}

#[tokio::test]
async fn a_policy_reaches_callers_before_the_service_and_leaves_nothing_behind() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "all", &["orders", "other"]).await;
    server.register(workload("w1", "orders.shop", 80)).await.unwrap();
    let mut early = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    let mut unconcerned = mesh.sidecar("shop", "back", &[]).await.watch(&["other.shop"]).await;
    assert_eq!(early.governing("orders.shop"), None, "none, so nothing is said");
    let all = [policy("shop/b", "orders.shop", 3), route("shop/r", "orders.shop"), on_route("shop/a", "r")];
    apply(&mesh, &all).await;
    let update = early.update().await;
    assert_eq!(update.changes.len(), 1, "one transaction, one set: {update:?}");
    let names = ["HTTPRoute/shop/r", "TrafficPolicy/shop/a", "TrafficPolicy/shop/b"];
    early.governed_by("orders.shop", &names).await;
    assert_eq!(early.policies["orders.shop"][2].json, all[0].json, "as it was applied");
    assert!(early.policies["orders.shop"][2].revision > 0);

    let late = mesh.sidecar("shop", "late", &[]).await;
    let mut late = late.hello(hello(&[], &[])).await.unwrap();
    late.update().await;
    late.subscribe(&["orders.shop"], &[]).await;
    let update = late.update().await;
    assert!(matches!(update.changes[0].change, Some(Kind::Policies(_))), "{update:?}");
    assert!(matches!(update.changes[1].change, Some(Kind::Service(_))), "{update:?}");
    assert_eq!(late.governing("orders.shop").unwrap(), names);

    // The policy on the route goes with the route, and is back with it.
    delete(&mesh, &all[1..2]).await;
    early.governed_by("orders.shop", &names[2..]).await;
    apply(&mesh, &all[1..2]).await;
    early.governed_by("orders.shop", &names).await;
    delete(&mesh, &all).await;
    early.governed_by("orders.shop", &[]).await;
    server.register(workload("w2", "other.shop", 80)).await.unwrap();
    unconcerned.update().await;
    assert!(unconcerned.policies.is_empty() && unconcerned.held["other.shop"].is_some());
}

#[tokio::test]
async fn resources_of_another_namespace_govern_its_own_calls_alone() {
    let mesh = Mesh::start("").await;
    let mut front = mesh.sidecar("front", "f", &[]).await.watch(&["orders.shop"]).await;
    let mut back = mesh.sidecar("back", "b", &[]).await.watch(&["orders.shop"]).await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut server = serving(&server, &[], &["orders.shop"], &["orders.shop"]).await;
    let consumer =
        [policy("front/mine", "orders.shop", 1), route("front/r", "orders.shop"), on_route("front/on", "r")];
    apply(&mesh, &consumer).await;
    let mine = ["HTTPRoute/front/r", "TrafficPolicy/front/mine", "TrafficPolicy/front/on"];
    front.governed_by("orders.shop", &mine).await;
    apply(&mesh, &[policy("shop/all", "orders.shop", 2)]).await;
    let producer = "TrafficPolicy/shop/all";
    front.governed_by("orders.shop", &[&mine[..], &[producer]].concat()).await;
    for watcher in [&mut back, &mut server] {
        watcher.governed_by("orders.shop", &[producer]).await;
        assert_eq!(watcher.cursor, front.cursor, "nothing in between was theirs");
    }
}

#[tokio::test]
async fn who_may_call_is_told_to_those_who_serve_alone() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    let mut callee = serving(&server, &[], &[], &["orders.shop"]).await;
    assert_eq!(callee.governing("orders.shop").unwrap(), [""; 0], "told that there are none");
    let mut both = serving(&server, &[], &["orders.shop"], &["orders.shop"]).await;
    let mut caller = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    let one = authorization(
        "shop/one",
        "{targetRefs: [{kind: Service, name: orders}], rules: [{namespaces: [shop]}]}",
    );
    let whole = authorization("shop/whole", "{action: Deny, rules: [{namespaces: [back]}]}");
    let others = authorization("back/whole", "{action: Deny, rules: [{namespaces: [shop]}]}");
    apply(&mesh, &[one.clone(), whole.clone(), others]).await;
    let told = ["AuthorizationPolicy/shop/one", "AuthorizationPolicy/shop/whole"];
    callee.governed_by("orders.shop", &told).await;
    assert!(callee.held.is_empty(), "of a service it only serves it hears the policies alone");
    both.governed_by("orders.shop", &told).await;
    apply(&mesh, &[policy("shop/p", "orders.shop", 1)]).await;
    let update = both.update().await;
    assert_eq!(update.changes.len(), 1, "the larger set, once: {update:?}");
    both.governed_by("orders.shop", &[&told[..], &["TrafficPolicy/shop/p"]].concat()).await;
    caller.governed_by("orders.shop", &["TrafficPolicy/shop/p"]).await;
    assert_eq!(caller.cursor, both.cursor, "nothing in between was the caller's");
    // What it calls it may give up; what it serves stays.
    both.subscribe(&["x.shop"], &["orders.shop"]).await;
    both.until("x.shop", |service| service.is_none()).await;
    delete(&mesh, &[one, whole]).await;
    both.governed_by("orders.shop", &["TrafficPolicy/shop/p"]).await;

    let foreign = v1::Hello { serves: vec!["orders.shop".into()], ..hello(&[], &[]) };
    let thief = mesh.sidecar("back", "thief", &[]).await;
    refused(thief.hello(foreign).await.map(|_| ()), Code::PermissionDenied, "another namespace");
    let many = v1::Hello { serves: (0..257).map(|n| format!("s{n}.shop")).collect(), ..hello(&[], &[]) };
    refused(server.hello(many).await.map(|_| ()), Code::ResourceExhausted, "256");
}

#[tokio::test]
async fn a_returning_sidecar_hears_of_policies_that_changed_and_of_no_others() {
    let mesh = Mesh::start("").await;
    let (kept, changed, gone) = (
        policy("shop/kept", "a.shop", 1),
        policy("shop/changed", "b.shop", 1),
        policy("shop/gone", "c.shop", 1),
    );
    apply(&mesh, &[kept, changed, gone.clone()]).await;
    let front = mesh.sidecar("shop", "front", &[]).await;
    let names = ["a.shop", "b.shop", "c.shop", "d.shop"];
    let watcher = front.watch(&names).await;
    assert_eq!(watcher.policies.len(), 3);
    let cursor = watcher.cursor.clone();
    drop(watcher);
    let same = serving(&front, &cursor, &names, &["d.shop"]).await;
    assert!(same.welcome.resumed && same.policies.is_empty(), "{:?}", same.policies);
    drop(same);
    apply(&mesh, &[policy("shop/changed", "b.shop", 2), policy("other/theirs", "a.shop", 1)]).await;
    delete(&mesh, &[gone]).await;
    let later = serving(&front, &cursor, &names, &["d.shop"]).await;
    assert!(later.welcome.resumed);
    assert_eq!(later.policies.keys().collect::<Vec<_>>(), ["b.shop", "c.shop"]);
    assert_eq!(later.governing("b.shop").unwrap(), ["TrafficPolicy/shop/changed"]);
    assert_eq!(later.governing("c.shop").unwrap(), [""; 0], "gone, and that is said");
    assert_eq!(serving(&front, &later.cursor, &names, &[]).await.policies.len(), 0);
}

#[tokio::test]
async fn a_full_answer_replaces_every_policy_held_even_by_nothing() {
    let mesh = Mesh::start("").await;
    apply(&mesh, &[policy("shop/p", "a.shop", 1)]).await;
    let front = mesh.sidecar("shop", "front", &[]).await;
    let watcher = serving(&front, b"\0\0\0\0\0\0\0\x01another", &["a.shop", "b.shop"], &["s.shop"]).await;
    assert!(!watcher.welcome.resumed);
    assert_eq!(watcher.governing("a.shop").unwrap(), ["TrafficPolicy/shop/p"]);
    for name in ["b.shop", "s.shop"] {
        assert_eq!(watcher.governing(name).unwrap(), [""; 0], "{name}");
    }
}

#[tokio::test]
async fn a_registry_that_was_away_knows_what_returning_sidecars_may_have_missed() {
    let dir = tempfile::tempdir().unwrap();
    let mesh = Mesh::start_in(dir.path(), "").await.unwrap();
    let gone = policy("shop/gone", "b.shop", 1);
    apply(&mesh, &[policy("shop/p", "a.shop", 1), gone.clone()]).await;
    let token = mesh.token("shop", "front", &[], 600).await;
    let svid = mesh.join(&token).await.unwrap();
    let watcher = mesh.sidecar_as(svid).watch(&["a.shop", "b.shop"]).await;
    assert_eq!(watcher.policies.len(), 2);
    let cursor = watcher.cursor.clone();
    drop(watcher);
    delete(&mesh, &[gone]).await;
    mesh.stop().await;
    let mesh = Mesh::start_in(dir.path(), "").await.unwrap();
    let front = mesh.sidecar_as(mesh.join(&token).await.unwrap());
    let watcher = serving(&front, &cursor, &["a.shop", "b.shop"], &[]).await;
    assert!(watcher.welcome.resumed);
    assert_eq!(watcher.governing("a.shop").unwrap(), ["TrafficPolicy/shop/p"]);
    assert_eq!(watcher.governing("b.shop").unwrap(), [""; 0]);
    mesh.stop().await;
}

#[tokio::test]
async fn a_bad_policy_is_refused_and_the_good_one_stays() {
    let mesh = Mesh::start("").await;
    let good = policy("shop/p", "orders.shop", 1);
    apply(&mesh, std::slice::from_ref(&good)).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    let with = |from: &str, to: &str| v1::Resource { json: good.json.replace(from, to), ..good.clone() };
    let other = policy("shop/other", "orders.shop", 1);
    for (bad, words) in [
        (with("attempts", "attempt"), "attempt"),
        (with("Service", "Topic"), "Topic"),
        (with("\"attempts\":1", "\"attempts\":11"), "0 to 10"),
        (v1::Resource { name: "renamed".into(), ..good.clone() }, "names another resource"),
        (v1::Resource { name: "a/b".into(), ..good.clone() }, "name"),
        (v1::Resource { namespace: "Bad".into(), ..good.clone() }, "not a valid name"),
    ] {
        let result = send(&mesh, &[other.clone(), bad], false).await;
        refused(result, Code::InvalidArgument, words);
    }
    apply(&mesh, &[policy("shop/q", "orders.shop", 2)]).await;
    watcher.governed_by("orders.shop", &["TrafficPolicy/shop/p", "TrafficPolicy/shop/q"]).await;
    assert_eq!(watcher.policies["orders.shop"][0].json, good.json);
}

#[tokio::test]
async fn what_is_probably_not_meant_is_said_and_applied() {
    let mesh = Mesh::start("").await;
    let service = document("Service", "shop/orders", "{ports: [{name: web, port: 80}]}");
    let with = |section: &str| {
        document(
            "TrafficPolicy",
            "shop/p",
            &format!(
                "{{targetRefs: [{{kind: Service, name: orders, sectionName: {section}}}], retries: {{attempts: 1}}}}"
            ),
        )
    };
    let warnings = async |resources: &[v1::Resource]| {
        let results = send(&mesh, resources, false).await.unwrap();
        results.into_iter().map(|result| result.warning).collect::<Vec<_>>()
    };
    assert_eq!(warnings(&[with("web")]).await, ["the target Service orders.shop does not exist yet"]);
    assert_eq!(warnings(&[with("web"), service.clone()]).await, ["", ""], "one request may hold both");
    assert_eq!(warnings(&[with("'80'")]).await, [""]);
    assert_eq!(warnings(&[with("grpc")]).await, ["the target Service orders.shop has no port grpc"]);
    let rule = |rule: &str| {
        document(
            "TrafficPolicy",
            "shop/r",
            &format!(
                "{{targetRefs: [{{kind: HTTPRoute, name: r, sectionName: {rule}}}], retries: {{attempts: 1}}}}"
            ),
        )
    };
    assert_eq!(warnings(&[rule("all")]).await, ["the target HTTPRoute shop/r does not exist yet"]);
    assert_eq!(warnings(&[route("shop/r", "orders.shop"), rule("all")]).await, ["", ""]);
    assert_eq!(warnings(&[rule("none")]).await, ["the target HTTPRoute shop/r has no rule named none"]);
    let split = document(
        "HTTPRoute",
        "shop/split",
        "{parentRefs: [{name: orders}], rules: [{backendRefs: [{name: canary, port: 80}]}]}",
    );
    assert_eq!(warnings(&[split]).await, ["the backend Service canary.shop does not exist yet"]);
    // The same key for the same target: the first by name wins, and both are told.
    let first = warnings(&[policy("shop/b", "orders.shop", 1)]).await;
    let second = warnings(&[policy("shop/a", "orders.shop", 2)]).await;
    assert_eq!(first, [""]);
    assert_eq!(
        second,
        [
            "TrafficPolicy shop/b sets retries.attempts for the same target; this one wins, as the first by name"
        ]
    );
    let third = warnings(&[policy("shop/b", "orders.shop", 3), policy("other/z", "orders.shop", 3)]).await;
    assert!(third[0].contains("TrafficPolicy shop/a") && third[0].contains("that one wins"), "{third:?}");
    assert_eq!(third[1], "", "another namespace is another level");
}

#[tokio::test]
async fn every_kind_is_written_read_and_deleted() {
    let mesh = Mesh::start("").await;
    let all = [
        policy("shop/p.v1", "orders.shop", 1),
        authorization("shop/a", "{}"),
        route("shop/r", "orders.shop"),
        document("GRPCRoute", "shop/g", "{parentRefs: [{name: orders}]}"),
    ];
    let outcomes = |results: Vec<v1::Applied>| results.iter().map(v1::Applied::outcome).collect::<Vec<_>>();
    assert_eq!(outcomes(send(&mesh, &all, false).await.unwrap()), [Outcome::Created; 4]);
    assert_eq!(outcomes(send(&mesh, &all, false).await.unwrap()), [Outcome::Unchanged; 4]);
    let get = async |kind: &str, name: &str| {
        let request = v1::GetRequest { kind: kind.into(), namespace: String::new(), name: name.into() };
        Ok::<_, Status>(mesh.admin().get(request).await?.into_inner().resources)
    };
    for resource in &all {
        let read = get(&resource.kind, &resource.name).await.unwrap();
        assert_eq!((read.len(), &read[0].json), (1, &resource.json));
    }
    assert_eq!(outcomes(send(&mesh, &all, true).await.unwrap()), [Outcome::Deleted; 4]);
    assert_eq!(outcomes(send(&mesh, &all, true).await.unwrap()), [Outcome::Unchanged; 4]);
    refused(get("TrafficPolicy", "p.v1").await, Code::NotFound, "no TrafficPolicy p.v1");
    assert_eq!(get("HTTPRoute", "").await.unwrap(), []);
}

#[tokio::test]
async fn a_refused_policy_is_counted_and_its_service_goes_on_in_deltas() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    server.register(workload("w1", "orders.shop", 80)).await.unwrap();
    apply(&mesh, &[policy("shop/p", "orders.shop", 1)]).await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&["orders.shop"]).await;
    let nack = v1::Nack { nonce: 2, resource: "TrafficPolicy/shop/p".into(), reason: "too new".into() };
    watcher.ask(Asked::Nack(nack)).await;
    until("it is counted", || async { mesh.metric("mesh_registry_nacks_total").await == 1.0 }).await;
    let shown = &mesh.get("/v1/refusals").await.1["refusals"][0];
    assert_eq!((&shown["resource"], &shown["reason"]), (&"TrafficPolicy/shop/p".into(), &"too new".into()));
    assert_eq!(shown["identity"], "spiffe://mesh.local/ns/shop/sa/front");
    server.register(workload("w2", "orders.shop", 80)).await.unwrap();
    let update = watcher.update().await;
    assert!(matches!(update.changes[0].change, Some(Kind::Delta(_))), "{update:?}");
    // The next set holds it again.
    apply(&mesh, &[policy("shop/p", "orders.shop", 2)]).await;
    watcher.update().await;
    assert!(watcher.policies["orders.shop"][0].json.contains("\"attempts\":2"));
}

#[tokio::test]
async fn the_meshs_defaults_reach_every_stream() {
    let mesh = Mesh::start("").await;
    let mut watcher = mesh.sidecar("shop", "front", &[]).await.watch(&[]).await;
    assert_eq!(watcher.defaults, "");
    let yaml = "apiVersion: outrigger.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {defaults: {retries: {attempts: 4}}}\n";
    let config = sent(&parse_yaml("mesh.yaml".as_ref(), yaml).unwrap()[0]);
    apply(&mesh, std::slice::from_ref(&config)).await;
    watcher.update().await;
    assert_eq!(watcher.defaults, r#"{"retries":{"attempts":4}}"#);
    delete(&mesh, &[config]).await;
    watcher.update().await;
    assert_eq!(watcher.defaults, "");
}

#[tokio::test]
async fn who_serves_learns_the_names_that_policies_may_give_its_ports() {
    let mesh = Mesh::start("").await;
    let server = mesh.sidecar("shop", "orders", &["orders"]).await;
    server.register(workload("w1", "orders.shop", 80)).await.unwrap();
    let mut server = serving(&server, &[], &[], &["orders.shop"]).await;
    for (name, expected) in [("http", vec![(80, "http")]), ("web", vec![(80, "web")])] {
        let spec = format!("{{ports: [{{name: {name}, port: 80}}]}}");
        apply(&mesh, &[document("Service", "shop/orders", &spec)]).await;
        let update = server.update().await;
        let Some(Kind::Policies(set)) = &update.changes[0].change else { panic!("{update:?}") };
        let ports: Vec<_> = set.ports.iter().map(|port| (port.number, port.name.as_str())).collect();
        assert_eq!(ports, expected);
    }
    delete(&mesh, &[document("Service", "shop/orders", "{ports: [{port: 80}]}")]).await;
    let update = server.update().await;
    assert!(matches!(&update.changes[0].change, Some(Kind::Policies(set)) if set.ports.is_empty()));
}
