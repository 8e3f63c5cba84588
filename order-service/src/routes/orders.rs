//! Orders: parse, call the store, answer.

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use serde::{Deserialize, Serialize};

use super::App;
use crate::body;
use crate::error::{Error, json_response};
use crate::idempotency::{self, IdempotencyKey, KeyedRequest};
use crate::order::{NewOrder, OrderId, OrderUpdate, Status};
use crate::store::{Answer, Change, Selection, decode_cursor, unix_ms};

/// Orders on a page when the caller does not say.
const DEFAULT_LIMIT: u32 = 20;
/// Most orders on a page.
const MAX_LIMIT: u32 = 100;

/// Query of a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ListQuery {
    /// Most orders, 1 to 100, default 20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
    /// `next_cursor` of the page before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cursor: Option<String>,
    /// Only orders in this status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

pub(super) async fn create(State(app): State<App>, request: Request) -> Result<Response, Error> {
    let (keyed, body) = read_write(&app, request).await?;
    let order: NewOrder = body::parse_json(&body)?;
    let order = order.place(OrderId::random(), unix_ms())?;
    let answer = app.store.write(Change::Create(order), keyed).await?;
    Ok(respond(answer))
}

pub(super) async fn update(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
    request: Request,
) -> Result<Response, Error> {
    let id = parse_id(id)?;
    let (keyed, body) = read_write(&app, request).await?;
    let update: OrderUpdate = body::parse_json(&body)?;
    update.check()?;
    let answer = app.store.write(Change::Update { id, update }, keyed).await?;
    Ok(respond(answer))
}

pub(super) async fn read(
    State(app): State<App>,
    id: Result<Path<String>, PathRejection>,
) -> Result<Response, Error> {
    let id = parse_id(id)?;
    let order = app.store.order(id).await?.ok_or(Error::OrderNotFound(id))?;
    Ok(json_response(StatusCode::OK, to_json(&order)))
}

pub(super) async fn list(
    State(app): State<App>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Result<Response, Error> {
    let Query(query) = query.map_err(|error| Error::InvalidParameter(error.body_text()))?;
    let page = app.store.list(select(&query)?).await?;
    Ok(json_response(StatusCode::OK, to_json(&page)))
}

/// Checks a query.
fn select(query: &ListQuery) -> Result<Selection, Error> {
    let limit = query.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(Error::InvalidParameter(format!("limit must be 1 to {MAX_LIMIT}")));
    }
    let before = match &query.cursor {
        None => None,
        Some(cursor) => Some(decode_cursor(cursor).ok_or_else(|| {
            Error::InvalidParameter("cursor must be the next_cursor of an earlier page".to_owned())
        })?),
    };
    Ok(Selection { before, status: query.status, limit })
}

/// Reads what the two writes have in common: the label, the key and the body.
async fn read_write(app: &App, request: Request) -> Result<(Option<KeyedRequest>, Bytes), Error> {
    let (head, body) = request.into_parts();
    body::check_json_label(&head.headers)?;
    let key = parse_key(&head.headers)?;
    let body = body::read(body, app.body_timeout).await?;
    let keyed = key.map(|key| keyed(key, &head.method, head.uri.path(), &body));
    Ok((keyed, body))
}

fn keyed(key: IdempotencyKey, method: &Method, path: &str, body: &[u8]) -> KeyedRequest {
    KeyedRequest::new(key, method.as_str(), path, body)
}

/// The caller's key, if there is one.
///
/// # Errors
/// A key that is no key, or more than one.
pub(crate) fn parse_key(headers: &HeaderMap) -> Result<Option<IdempotencyKey>, Error> {
    let mut values = headers.get_all(idempotency::HEADER).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => Ok(Some(IdempotencyKey::parse(value.as_bytes())?)),
        (Some(_), Some(_)) => {
            Err(Error::InvalidParameter("send one Idempotency-Key, not several".to_owned()))
        }
    }
}

/// # Errors
/// A path part that is no order id.
pub(crate) fn parse_id(part: Result<Path<String>, PathRejection>) -> Result<OrderId, Error> {
    let Path(text) = part.map_err(|error| Error::InvalidParameter(error.body_text()))?;
    OrderId::parse(&text).map_err(|error| Error::InvalidParameter(error.to_string()))
}

fn respond(answer: Answer) -> Response {
    let mut response = json_response(answer.status, answer.body);
    let headers = response.headers_mut();
    if answer.status == StatusCode::CREATED
        && let Some(id) = answer.order
        && let Ok(location) = HeaderValue::try_from(format!("/v1/orders/{id}"))
    {
        headers.insert(header::LOCATION, location);
    }
    if answer.replayed {
        headers.insert(idempotency::REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    response
}

fn to_json(value: &impl Serialize) -> Bytes {
    serde_json::to_vec(value).expect("our types always serialise").into()
}
