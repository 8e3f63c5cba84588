//! The interface document against the code.
//!
//! - [`check`] holds every answer of every test against the document: an undocumented status code or a
//!   body of another shape fails the test that met it.
//! - Paths and methods are compared with the router's own table, both ways.
//! - Schemas are compared with the types: properties, required ones, unknown ones, bounds.
//! - Every documented status code is brought about at least once.

use std::collections::BTreeSet;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use http::Method;
use order_service::openapi::DOCUMENT;
use order_service::order::{Item, NewOrder, Order, OrderId, OrderPage, OrderUpdate, Status};
use order_service::routes::Operation;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Answer, Server, cart, new_order, send, send_bytes};

static PARSED: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(DOCUMENT).unwrap());

/// Holds an answer against the document. Paths that are not in it have nothing to be held against.
pub fn check(method: &Method, path: &str, answer: &Answer) {
    let Some(template) = template_of(path) else { return };
    let operation = &PARSED["paths"][template][method.as_str().to_ascii_lowercase()];
    if operation.is_null() {
        assert_eq!(answer.status, 405, "{method} {path} is not in the document");
        return;
    }
    let response = resolve(&operation["responses"][answer.status.as_str()]);
    assert!(
        !response.is_null(),
        "{method} {template} answered {}, which is not in the document",
        answer.status
    );
    let headers = response["headers"].as_object().into_iter().flatten();
    for (name, _) in headers.filter(|(name, _)| *name != "Idempotent-Replayed") {
        assert!(answer.header(name).is_some(), "{method} {template} {} lacks {name}", answer.status);
    }
    let schema = &response["content"]["application/json"]["schema"];
    if let Err(problem) = validate(schema, &answer.json(), "body") {
        panic!("{method} {template} {}: {problem}", answer.status);
    }
}

fn template_of(path: &str) -> Option<&'static str> {
    let path = path.split('?').next()?;
    let templates = PARSED["paths"].as_object().unwrap().keys();
    let fits = |template: &&String| match template.split_once("{id}") {
        Some((before, "")) => path.strip_prefix(before).is_some_and(|id| !id.is_empty() && !id.contains('/')),
        _ => path == template.as_str(),
    };
    templates.into_iter().find(fits).map(String::as_str)
}

fn resolve(value: &'static Value) -> &'static Value {
    match value["$ref"].as_str() {
        Some(reference) => resolve(PARSED.pointer(reference.trim_start_matches('#')).expect(reference)),
        None => value,
    }
}

/// The part of JSON Schema the document uses. A property that a schema with properties does not list is
/// an error even where the document leaves room for it: here it means that somebody forgot to list it.
fn validate(schema: &'static Value, value: &Value, at: &str) -> Result<(), String> {
    let schema = resolve(schema);
    if let Some(choices) = schema["anyOf"].as_array() {
        let fits = choices.iter().any(|choice| validate(choice, value, at).is_ok());
        return if fits { Ok(()) } else { Err(format!("{at}: {value} fits no choice")) };
    }
    let types: Vec<_> = match &schema["type"] {
        Value::Array(types) => types.iter().filter_map(Value::as_str).collect(),
        one => one.as_str().into_iter().collect(),
    };
    if !types.contains(&type_of(value)) {
        return Err(format!("{at}: {value} is not {types:?}"));
    }
    if schema["enum"].as_array().is_some_and(|words| !words.contains(value)) {
        return Err(format!("{at}: {value} is not one of {}", schema["enum"]));
    }
    let size = match value {
        Value::String(text) => text.chars().count() as i64,
        Value::Array(items) => items.len() as i64,
        number => number.as_i64().unwrap_or_default(),
    };
    let bound = |names: [&str; 3]| names.iter().find_map(|name| schema[name].as_i64());
    if bound(["minimum", "minLength", "minItems"]).is_some_and(|min| size < min)
        || bound(["maximum", "maxLength", "maxItems"]).is_some_and(|max| size > max)
    {
        return Err(format!("{at}: {value} is out of bounds"));
    }
    for item in value.as_array().into_iter().flatten() {
        validate(&schema["items"], item, at)?;
    }
    validate_object(schema, value, at)
}

fn validate_object(schema: &'static Value, value: &Value, at: &str) -> Result<(), String> {
    let (Some(object), Some(properties)) = (value.as_object(), schema["properties"].as_object()) else {
        return Ok(());
    };
    for required in names(&schema["required"]) {
        if !object.contains_key(&required) {
            return Err(format!("{at}: {required} is missing"));
        }
    }
    for (name, inner) in object {
        let property = properties.get(name).ok_or_else(|| format!("{at}.{name} is not in the document"))?;
        validate(property, inner, &format!("{at}.{name}"))?;
    }
    Ok(())
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_i64() || number.is_u64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn names(list: &Value) -> BTreeSet<String> {
    list.as_array().into_iter().flatten().map(|name| name.as_str().unwrap().to_owned()).collect()
}

fn keys(object: &Value) -> BTreeSet<String> {
    object.as_object().unwrap().keys().cloned().collect()
}

fn documented() -> BTreeSet<(String, String)> {
    let paths = PARSED["paths"].as_object().unwrap().iter();
    paths.flat_map(|(path, item)| keys(item).into_iter().map(|method| (method, path.clone()))).collect()
}

#[test]
fn paths_and_methods_are_those_of_the_router() {
    let routed: BTreeSet<_> = Operation::ALL
        .iter()
        .map(|operation| (operation.method().as_str().to_ascii_lowercase(), operation.path().to_owned()))
        .collect();
    assert_eq!(documented(), routed);
}

#[test]
fn every_reference_leads_somewhere_and_every_component_is_used() {
    fn collect(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) => {
                found.extend(object.get("$ref").and_then(Value::as_str).map(str::to_owned));
                object.values().for_each(|inner| collect(inner, found));
            }
            Value::Array(items) => items.iter().for_each(|inner| collect(inner, found)),
            _ => {}
        }
    }
    let mut referred = BTreeSet::new();
    collect(&PARSED, &mut referred);
    let components = PARSED["components"].as_object().unwrap().iter();
    let defined: BTreeSet<_> = components
        .flat_map(|(kind, named)| {
            keys(named).into_iter().map(move |name| format!("#/components/{kind}/{name}"))
        })
        .collect();
    assert_eq!(referred, defined);
}

/// A request type: the document's properties are its fields, its required ones those without which it
/// is refused, and an unknown one is refused where the document says so.
fn check_request<T: Serialize + DeserializeOwned>(name: &str, full: &T) {
    let schema = &PARSED["components"]["schemas"][name];
    let sample = serde_json::to_value(full).unwrap();
    assert_eq!(keys(&sample), keys(&schema["properties"]), "{name}");
    let required = names(&schema["required"]);
    for field in keys(&sample) {
        let mut without = sample.clone();
        without.as_object_mut().unwrap().remove(&field);
        let refused = serde_json::from_value::<T>(without).is_err();
        assert_eq!(refused, required.contains(&field), "{name}.{field}");
    }
    let mut unknown = sample;
    unknown["unknown_field"] = json!(1);
    assert_eq!(schema["additionalProperties"], json!(false), "{name}");
    assert!(serde_json::from_value::<T>(unknown).is_err(), "{name}");
}

/// An answer type: properties are what the fullest one holds, required ones what the barest one holds.
fn check_answer<T: Serialize>(name: &str, full: &T, bare: &T) {
    let schema = &PARSED["components"]["schemas"][name];
    assert_eq!(keys(&serde_json::to_value(full).unwrap()), keys(&schema["properties"]), "{name}");
    assert_eq!(keys(&serde_json::to_value(bare).unwrap()), names(&schema["required"]), "{name}");
}

#[test]
fn schemas_are_those_of_the_types() {
    let noted = NewOrder { note: Some("gift".into()), ..new_order() };
    check_request::<NewOrder>("NewOrder", &noted);
    check_request::<Item>("Item", &noted.items[0]);
    let update = OrderUpdate { status: Some(Status::Shipped), note: Some("gift".into()), version: Some(1) };
    check_request::<OrderUpdate>("OrderUpdate", &update);

    let order = |new: NewOrder| new.place(OrderId::random(), 1).unwrap();
    let (full, bare): (Order, Order) = (order(noted), order(new_order()));
    check_answer("Order", &full, &bare);
    let page = |next_cursor| OrderPage { orders: vec![full.clone()], next_cursor };
    check_answer("OrderPage", &page(Some("c1".into())), &page(None));
    let words: Vec<_> = Status::ALL.iter().map(|status| json!(status)).collect();
    assert_eq!(PARSED["components"]["schemas"]["Status"]["enum"], json!(words));
}

#[tokio::test]
async fn bounds_are_those_of_the_document() {
    let server = Server::start().await;
    let mut checked = 0;
    for (schema, prefix) in [("NewOrder", ""), ("Item", "/items/0")] {
        for (field, rules) in PARSED["components"]["schemas"][schema]["properties"].as_object().unwrap() {
            for (rule, inside, outside) in [
                ("minimum", 0, -1),
                ("maximum", 0, 1),
                ("minLength", 0, -1),
                ("maxLength", 0, 1),
                ("minItems", 0, -1),
                ("maxItems", 0, 1),
            ] {
                let Some(bound) = rules[rule].as_i64() else { continue };
                for (offset, status) in [(inside, 201), (outside, 422)] {
                    let mut body = cart();
                    let size = bound + offset;
                    body.pointer_mut(prefix).unwrap()[field.as_str()] = match rule {
                        "minimum" | "maximum" => json!(size),
                        "minLength" | "maxLength" => json!("X".repeat(size as usize)),
                        _ => json!(vec![cart()["items"][0].clone(); size as usize]),
                    };
                    let answer = server.post("/v1/orders", &body).await;
                    assert_eq!(answer.status, status, "{schema}.{field} {rule} {size}: {answer:?}");
                    checked += 1;
                }
            }
        }
    }
    assert!(checked >= 20, "the document lost its bounds");
    server.stop().await;
}

/// Every documented status code, seen at least once; `send` checks each answer on the way.
#[tokio::test]
async fn every_documented_status_can_happen() {
    let server = Server::with(|config| {
        config.body_timeout = Duration::from_millis(50);
        config.store.busy_timeout = Duration::from_millis(20);
    })
    .await;
    let mut seen = BTreeSet::new();
    drive_requests(&server, &mut seen).await;
    drive_slow_bodies(&server, &mut seen).await;
    drive_broken_storage(&server, &mut seen).await;
    server.stop().await;
    drive_full_storage(&mut seen).await;

    let mut expected = BTreeSet::new();
    for (method, path) in documented() {
        for status in keys(&PARSED["paths"][&path][&method]["responses"]) {
            expected.insert(format!("{method} {path} {status}"));
        }
    }
    assert_eq!(seen, expected);
}

type Statuses = BTreeSet<String>;

async fn note(server: &Server, seen: &mut Statuses, method: &str, path: &str, body: Option<&str>) -> Answer {
    let label = if body == Some("unlabelled") { "text/plain" } else { "application/json" };
    let headers = [("content-type", label)];
    let verb = method.to_ascii_uppercase().parse().unwrap();
    let body = body.map(|body| Bytes::copy_from_slice(body.as_bytes()));
    let answer = send_bytes(server.address, verb, path, &headers, body).await;
    seen.insert(format!("{method} {} {}", template_of(path).unwrap(), answer.status.as_str()));
    answer
}

async fn drive_requests(server: &Server, seen: &mut Statuses) {
    let (cart, large) = (cart().to_string(), " ".repeat(65 * 1024));
    let path = server.place().await;
    let missing = format!("/v1/orders/{}", OrderId::random());
    let confirm = r#"{"status":"confirmed"}"#;
    for body in [cart.as_str(), "{", "{}", "unlabelled", &large] {
        note(server, seen, "post", "/v1/orders", Some(body)).await;
    }
    for (path, body) in [
        (&path, confirm),
        (&path, confirm),
        (&path, "{"),
        (&path, "{}"),
        (&path, "unlabelled"),
        (&path, &large),
        (&missing, confirm),
    ] {
        note(server, seen, "patch", path, Some(body)).await;
    }
    for path in [&path, &missing, "/v1/orders/7", "/v1/orders", "/v1/orders?limit=0", "/healthz"] {
        note(server, seen, "get", path, None).await;
    }
    let document = note(server, seen, "get", "/openapi.json", None).await;
    assert_eq!(document.body, DOCUMENT);
}

/// Announces a body and sends none of it.
async fn drive_slow_bodies(server: &Server, seen: &mut Statuses) {
    let path = server.place().await;
    for (method, path) in [("post", "/v1/orders"), ("patch", path.as_str())] {
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let head = format!(
            "{} {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n",
            method.to_ascii_uppercase()
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 408") && text.contains("body_timeout"), "{text}");
        seen.insert(format!("{method} {} 408", template_of(path).unwrap()));
    }
}

/// Writes meet a lock, then reads meet a table that is not there.
async fn drive_broken_storage(server: &Server, seen: &mut Statuses) {
    use sqlx::Connection;
    let path = server.place().await;
    let mut connection = server.database().await;
    let lock = connection.begin_with("BEGIN IMMEDIATE").await.unwrap();
    note(server, seen, "post", "/v1/orders", Some(&cart().to_string())).await;
    note(server, seen, "patch", &path, Some(r#"{"note":"n"}"#)).await;
    lock.rollback().await.unwrap();
    sqlx::query("ALTER TABLE orders RENAME TO hidden").execute(&mut connection).await.unwrap();
    for path in [path.as_str(), "/v1/orders", "/healthz"] {
        assert_eq!(note(server, seen, "get", path, None).await.code(), "storage_unavailable");
    }
    sqlx::query("ALTER TABLE hidden RENAME TO orders").execute(&mut connection).await.unwrap();
    assert_eq!(server.get(&path).await.status, 200, "the service must find its way back");
}

async fn drive_full_storage(seen: &mut Statuses) {
    let server = Server::with(|config| config.store.max_database_bytes = 96 * 1024).await;
    let path = server.place().await;
    let mut big = cart();
    big["note"] = json!("n".repeat(500));
    while send(server.address, Method::POST, "/v1/orders", &[], Some(&big)).await.status == 201 {}
    note(&server, seen, "post", "/v1/orders", Some(&big.to_string())).await;
    // An update fits until its page is full; a key always needs room of its own.
    let update = json!({ "note": "m".repeat(500) });
    loop {
        let key = order_service::idempotency::IdempotencyKey::random();
        let headers = [("idempotency-key", key.as_str())];
        let answer = send(server.address, Method::PATCH, &path, &headers, Some(&update)).await;
        if answer.status != 200 {
            seen.insert(format!("patch /v1/orders/{{id}} {}", answer.status.as_str()));
            break;
        }
    }
    server.stop().await;
}
