//! Storefront mode: a user's shop. Each request becomes one call of the order service.

use std::net::SocketAddr;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Router, body::Body};
use http::{HeaderMap, HeaderValue, StatusCode, header};
use outrigger_common::drain::Drain;
use outrigger_common::listen::{ListenError, bind};
use serde::Serialize;

use crate::body;
use crate::client::{Call, Client, ClientError, TraceHeaders, Written};
use crate::config::StorefrontConfig;
use crate::error::{Error, json_response, problem_json};
use crate::idempotency::REPLAYED_HEADER;
use crate::order::{NewOrder, Order, OrderUpdate, Status};
use crate::routes::ListQuery;
use crate::routes::orders::{parse_id, parse_key};
use crate::serve::{ServeOptions, serve};

/// How long a cart may take to arrive.
const BODY_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(10);

/// Why the storefront did not start.
#[derive(Debug, thiserror::Error)]
pub enum StorefrontError {
    /// The address cannot be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system does not say which address was bound.
    #[error("cannot read the address of the listener")]
    Address(#[source] std::io::Error),
}

/// Serves the shop until `drain` starts, then finishes what is in flight. Calls `ready` with the bound
/// address once requests are answered; the order service need not be there yet.
///
/// # Errors
/// When the address cannot be had.
pub async fn run(
    config: StorefrontConfig,
    ready: impl FnOnce(SocketAddr),
    drain: Drain,
) -> Result<(), StorefrontError> {
    let listener = bind(config.listen, "storefront.listen").await?;
    let address = listener.local_addr().map_err(StorefrontError::Address)?;
    let router = router(Client::new(config.client));
    tracing::info!(%address, "storefront ready");
    ready(address);
    let options =
        ServeOptions { max_connections: config.max_connections, drain_timeout: config.drain_timeout };
    serve(listener, router, options, drain).await;
    Ok(())
}

fn router(client: Client) -> Router {
    Router::new()
        .route("/checkout", post(checkout))
        .route("/orders", get(list))
        .route("/orders/{id}", get(read))
        .route("/orders/{id}/{action}", post(act))
        .route(
            "/healthz",
            get(async || json_response(StatusCode::OK, br#"{"status":"ok"}"#.as_slice().into())),
        )
        .fallback(async || Error::NoSuchPath)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .with_state(client)
}

/// Why a user's request failed.
enum Failure {
    /// It was wrong in itself.
    Request(Error),
    /// The order service was asked and gave no success.
    Upstream(ClientError),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Request(error)
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        Self::Upstream(error)
    }
}

async fn checkout(State(client): State<Client>, request: Request) -> Result<Response, Failure> {
    let (head, body) = request.into_parts();
    let call = write_call(&head.headers)?;
    let cart: NewOrder = read_json(&head.headers, body).await?;
    let placed = client.create(&cart, &call).await?;
    let mut response = written(StatusCode::CREATED, &placed);
    if let Ok(location) = HeaderValue::try_from(format!("/orders/{}", placed.value.id)) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn read(
    State(client): State<Client>,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let order = client.get(parse_id(id)?, &read_call(&headers)).await?;
    Ok(success(StatusCode::OK, &order))
}

async fn list(
    State(client): State<Client>,
    query: Result<Query<ListQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let Query(query) = query.map_err(|error| Error::InvalidParameter(error.body_text()))?;
    let page = client.list(&query, &read_call(&headers)).await?;
    Ok(success(StatusCode::OK, &page))
}

/// `POST /orders/{id}/pay|ship|deliver|cancel`.
async fn act(
    State(client): State<Client>,
    path: Result<Path<(String, String)>, PathRejection>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let Path((id, action)) = path.map_err(|error| Error::InvalidParameter(error.body_text()))?;
    let status = match action.as_str() {
        "pay" => Status::Confirmed,
        "ship" => Status::Shipped,
        "deliver" => Status::Delivered,
        "cancel" => Status::Cancelled,
        _ => return Err(Error::NoSuchPath.into()),
    };
    let call = write_call(&headers)?;
    let update = OrderUpdate { status: Some(status), ..OrderUpdate::default() };
    let changed = client.update(parse_id(Ok(Path(id)))?, &update, &call).await?;
    Ok(written(StatusCode::OK, &changed))
}

async fn read_json(headers: &HeaderMap, body: Body) -> Result<NewOrder, Error> {
    body::check_json_label(headers)?;
    Ok(body::parse_json(&body::read(body, BODY_TIMEOUT).await?)?)
}

fn read_call(headers: &HeaderMap) -> Call {
    Call { key: None, trace: TraceHeaders::from_headers(headers) }
}

/// A user's own key goes along, so that a user may repeat a checkout; else the client makes one.
fn write_call(headers: &HeaderMap) -> Result<Call, Error> {
    Ok(Call { key: parse_key(headers)?, trace: TraceHeaders::from_headers(headers) })
}

fn success(status: StatusCode, value: &impl Serialize) -> Response {
    let body = serde_json::to_vec(value).expect("our types always serialise");
    json_response(status, body.into())
}

fn written(status: StatusCode, done: &Written<Order>) -> Response {
    let mut response = success(status, &done.value);
    if done.replayed {
        response.headers_mut().insert(REPLAYED_HEADER, HeaderValue::from_static("true"));
    }
    response
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let error = match self {
            Self::Request(error) => return error.into_response(),
            Self::Upstream(error) => error,
        };
        let (status, code) = judge(&error);
        let mut response = json_response(status, problem_json(&code, &error.to_string()));
        if let ClientError::Refused { retry_after: Some(seconds), .. }
        | ClientError::Unexpected { retry_after: Some(seconds), .. } = &error
            && let Ok(value) = HeaderValue::try_from(seconds)
        {
            response.headers_mut().insert(header::RETRY_AFTER, value);
        }
        response
    }
}

/// What a failed call of the order service means for the user: its refusals are passed on, its and
/// the way's troubles become 502, 503 or 504.
fn judge(error: &ClientError) -> (StatusCode, String) {
    let (status, code) = match error {
        ClientError::Refused { status, code, .. } if status.is_client_error() => {
            return (*status, code.clone());
        }
        ClientError::Timeout(_) => (StatusCode::GATEWAY_TIMEOUT, "orders_timeout"),
        ClientError::Refused { status, .. } | ClientError::Unexpected { status, .. } => match *status {
            StatusCode::SERVICE_UNAVAILABLE
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::INSUFFICIENT_STORAGE => (StatusCode::SERVICE_UNAVAILABLE, "orders_unavailable"),
            StatusCode::GATEWAY_TIMEOUT => (StatusCode::GATEWAY_TIMEOUT, "orders_timeout"),
            _ => (StatusCode::BAD_GATEWAY, "orders_failed"),
        },
        ClientError::Connect { .. } | ClientError::Broken { .. } => {
            (StatusCode::BAD_GATEWAY, "orders_unreachable")
        }
        ClientError::Request(_) => (StatusCode::INTERNAL_SERVER_ERROR, "internal"),
    };
    (status, code.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_pass_and_troubles_become_gateway_errors() {
        let refused = |status: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            judge(&ClientError::Refused {
                status,
                code: "x".into(),
                message: String::new(),
                retry_after: None,
            })
            .0
        };
        let unexpected = |status: u16| {
            let status = StatusCode::from_u16(status).unwrap();
            judge(&ClientError::Unexpected { status, quote: String::new(), retry_after: None }).0
        };
        for status in [400, 404, 409, 422] {
            assert_eq!(refused(status), status);
            // Something on the way answered, not the order service: no fault of the user.
            assert_eq!(unexpected(status), 502);
        }
        for (given, shown) in [(503, 503), (507, 503), (504, 504), (500, 502)] {
            assert_eq!((refused(given).as_u16(), unexpected(given).as_u16()), (shown, shown));
        }
        assert_eq!(unexpected(429), 503);
        assert_eq!(judge(&ClientError::Timeout(BODY_TIMEOUT)).0, 504);
    }
}
