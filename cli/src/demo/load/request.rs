//! One request of the load: what it asks of the storefront, and whether the answer is right.

use std::sync::Arc;

use bytes::Bytes;
use fastrand::Rng;
use http::{Method, Request, StatusCode, header};
use http_body_util::Full;
use order_service::idempotency;
use serde::Deserialize;
use serde::de::IgnoredAny;

use super::orders::{Orders, Update};
use super::pool::Answer;

/// Orders on a page that is asked for.
const PAGE: usize = 10;

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operation {
    Get(Arc<str>),
    List,
    Create,
    Update(Update),
}

/// The mix: 70% get, 10% list, 15% create, 5% update. What needs an order that is not there yet becomes
/// a create.
pub(super) fn choose(mix: &mut Rng, pick: &mut Rng, orders: &mut Orders) -> Operation {
    match mix.u8(..100) {
        0..70 => orders.any(pick).map_or(Operation::Create, Operation::Get),
        70..80 => Operation::List,
        80..95 => Operation::Create,
        _ => orders.next_update(pick).map_or(Operation::Create, Operation::Update),
    }
}

/// Puts an operation into HTTP. `trace` is a sampled trace id to send along.
pub(super) fn build(
    operation: &Operation,
    host: &str,
    pick: &mut Rng,
    trace: Option<&str>,
) -> http::Result<Request<Full<Bytes>>> {
    let (method, path, body) = match operation {
        Operation::Get(id) => (Method::GET, format!("/orders/{id}"), Bytes::new()),
        Operation::List => (Method::GET, format!("/orders?limit={PAGE}"), Bytes::new()),
        Operation::Create => (Method::POST, "/checkout".to_owned(), cart(pick)),
        Operation::Update(update) => {
            (Method::POST, format!("/orders/{}/{}", update.id, update.action()), Bytes::new())
        }
    };
    let write = method == Method::POST;
    let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
    if write {
        request = request
            .header(header::CONTENT_TYPE, "application/json")
            .header(idempotency::HEADER, format!("demo-{:032x}", pick.u128(..)));
    }
    if let Some(trace) = trace {
        // Version 00, our span, sampled (W3C Trace Context section 3.2).
        request = request.header("traceparent", format!("00-{trace}-{:016x}-01", pick.u64(1..)));
    }
    request.body(Full::new(body))
}

/// A trace id: 16 bytes in hex, not all zero.
pub(super) fn trace_id(pick: &mut Rng) -> String {
    format!("{:032x}", pick.u128(1..))
}

fn cart(pick: &mut Rng) -> Bytes {
    let items: Vec<_> = (0..pick.u32(1..=3))
        .map(|_| {
            format!(
                r#"{{"sku":"sku-{}","quantity":{},"unit_price_minor":{}}}"#,
                pick.u32(..1000),
                pick.u32(1..=5),
                pick.u32(100..10_000)
            )
        })
        .collect();
    let customer = pick.u32(..10_000);
    format!(r#"{{"customer":"customer-{customer}","currency":"EUR","items":[{}]}}"#, items.join(",")).into()
}

#[derive(Deserialize)]
struct OrderAnswer<'a> {
    id: &'a str,
    status: &'a str,
}

#[derive(Deserialize)]
struct ListAnswer {
    orders: Vec<IgnoredAny>,
}

/// Checks an answer and remembers what it teaches about the orders.
///
/// # Errors
/// The kind of failure, for the tally.
pub(super) fn check(operation: Operation, answer: &Answer, orders: &mut Orders) -> Result<(), String> {
    if !answer.status.is_success() {
        return Err(refusal(answer));
    }
    let wrong = |what: &str| format!("wrong answer: {what}");
    if operation == Operation::List {
        let page: ListAnswer =
            serde_json::from_slice(&answer.body).map_err(|_| wrong("not a page of orders"))?;
        return if page.orders.len() <= PAGE { Ok(()) } else { Err(wrong("a page longer than asked for")) };
    }
    let order: OrderAnswer<'_> = serde_json::from_slice(&answer.body).map_err(|_| wrong("not an order"))?;
    match operation {
        Operation::Get(id) if *id == *order.id => Ok(()),
        Operation::Create if answer.status == StatusCode::CREATED && order.status == "pending" => {
            orders.created(order.id.into());
            Ok(())
        }
        Operation::Update(update) if *update.id == *order.id && update.to.as_str() == order.status => {
            orders.updated(update);
            Ok(())
        }
        Operation::Get(_) | Operation::Update(_) => Err(wrong("another order")),
        Operation::Create | Operation::List => Err(wrong("not a new order")),
    }
}

#[derive(Deserialize)]
struct ProblemAnswer {
    error: Problem,
}

#[derive(Deserialize)]
struct Problem {
    code: String,
}

/// Status, and the mesh's or the application's own word for it.
fn refusal(answer: &Answer) -> String {
    let reason = answer.headers.get("x-mesh-reason").and_then(|value| value.to_str().ok()).map(str::to_owned);
    let code = || serde_json::from_slice::<ProblemAnswer>(&answer.body).ok().map(|body| body.error.code);
    match reason.or_else(code) {
        Some(word) => format!("status {} {word}", answer.status.as_u16()),
        None => format!("status {}", answer.status.as_u16()),
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use order_service::order::{NewOrder, OrderId, Status};

    use super::*;

    fn answer(status: u16, body: &str) -> Answer {
        let status = StatusCode::from_u16(status).unwrap();
        Answer { status, headers: HeaderMap::new(), body: body.to_owned().into() }
    }

    #[test]
    fn the_mix_is_seventy_ten_fifteen_five() {
        let (mut mix, mut pick, mut orders) = (Rng::with_seed(1), Rng::with_seed(2), Orders::default());
        let mut counts = [0u32; 4];
        for number in 0..10_000 {
            orders.created(number.to_string().into());
            counts[match choose(&mut mix, &mut pick, &mut orders) {
                Operation::Get(_) => 0,
                Operation::List => 1,
                Operation::Create => 2,
                Operation::Update(_) => 3,
            }] += 1;
        }
        for (count, share) in counts.into_iter().zip([7000, 1000, 1500, 500u32]) {
            assert!(count.abs_diff(share) < 200, "{counts:?}");
        }
    }

    #[test]
    fn carts_are_valid_orders() {
        let mut pick = Rng::with_seed(3);
        for _ in 0..100 {
            let order: NewOrder = serde_json::from_slice(&cart(&mut pick)).unwrap();
            order.place(OrderId::random(), 0).unwrap();
        }
    }

    #[test]
    fn an_answer_must_be_the_one_asked_for() {
        let mut orders = Orders::default();
        let mut check = |operation, status, body: &str| check(operation, &answer(status, body), &mut orders);
        let get = || Operation::Get("a".into());
        assert_eq!(check(get(), 200, r#"{"id":"a","status":"pending","x":[1]}"#), Ok(()));
        assert!(check(get(), 200, r#"{"id":"b","status":"pending"}"#).is_err());
        assert!(check(get(), 200, "").is_err());
        assert_eq!(check(Operation::List, 200, r#"{"orders":[{}]}"#), Ok(()));
        assert!(check(Operation::List, 200, "[]").is_err());
        assert!(check(Operation::Create, 200, r#"{"id":"a","status":"pending"}"#).is_err());
        let update = || Operation::Update(Update { id: "a".into(), to: Status::Shipped });
        assert_eq!(check(update(), 200, r#"{"id":"a","status":"shipped"}"#), Ok(()));
        assert!(check(update(), 200, r#"{"id":"a","status":"pending"}"#).is_err());
        let refused = check(get(), 503, r#"{"error":{"code":"orders_unavailable","message":""}}"#);
        assert_eq!(refused.unwrap_err(), "status 503 orders_unavailable");
    }

    #[test]
    fn writes_carry_a_key_and_sampled_requests_a_trace() {
        let mut pick = Rng::with_seed(3);
        let trace = trace_id(&mut pick);
        let request = build(&Operation::Create, "h", &mut pick, Some(&trace)).unwrap();
        assert!(request.headers().contains_key(idempotency::HEADER));
        let parent = request.headers()["traceparent"].to_str().unwrap();
        assert!(parent.starts_with(&format!("00-{trace}-")) && parent.ends_with("-01") && parent.len() == 55);
        let request = build(&Operation::List, "h", &mut pick, None).unwrap();
        assert!(!request.headers().contains_key(idempotency::HEADER));
        assert!(!request.headers().contains_key("traceparent"));
    }
}
