//! Typed client of the order service.
//!
//! Every write carries an `Idempotency-Key`, the caller's or one made here, so that a write may be
//! repeated by this client, by the caller or by anything on the way without being done twice.
//!
//! ```no_run
//! # async fn example() -> Result<(), order_service::client::ClientError> {
//! use order_service::client::{Call, Client, ClientOptions};
//! use order_service::order::{Item, NewOrder};
//!
//! let client = Client::new(ClientOptions::direct("http://orders.shop".parse().expect("a URL")));
//! let items = vec![Item { sku: "tea".into(), quantity: 2, unit_price_minor: 350 }];
//! let order = NewOrder { customer: "ada".into(), currency: "EUR".into(), items, note: None };
//! let placed = client.create(&order, &Call::default()).await?;
//! println!("{} costs {} cents", placed.value.id, placed.value.total_minor);
//! # Ok(())
//! # }
//! ```

mod pool;
mod trace;

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::Full;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::ProblemBody;
use crate::idempotency::{self, IdempotencyKey};
use crate::order::{NewOrder, Order, OrderId, OrderPage, OrderUpdate};
use crate::routes::ListQuery;
use pool::{Pool, Received};
pub use trace::TraceHeaders;

/// How much of an answer that is not ours is quoted in an error, in characters.
const MAX_QUOTE: usize = 200;

/// Whom to call and how.
#[derive(Debug, Clone)]
pub struct ClientOptions {
    /// The order service: `http://host[:port]`.
    pub orders: Uri,
    /// A forward proxy to send absolute-form requests to.
    pub proxy: Option<Uri>,
    /// How long one call may take, waiting for a connection included.
    pub timeout: Duration,
    /// Most connections; calls beyond that wait.
    pub max_connections: usize,
}

impl ClientOptions {
    /// Calls `orders` without a proxy, within 10 seconds, over at most 128 connections.
    pub fn direct(orders: Uri) -> Self {
        Self { orders, proxy: None, timeout: Duration::from_secs(10), max_connections: 128 }
    }
}

/// What goes along with one call.
#[derive(Debug, Clone, Default)]
pub struct Call {
    /// The key of a write; none: one is made. Give your own to be able to repeat the write later.
    pub key: Option<IdempotencyKey>,
    /// Trace headers to pass on.
    pub trace: TraceHeaders,
}

/// The result of a write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Written<T> {
    /// The order after it.
    pub value: T,
    /// Whether the service answered from memory: the same write was done before.
    pub replayed: bool,
    /// The key it was sent under.
    pub key: IdempotencyKey,
}

/// Why a call has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// No connection.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        /// Host and port of the order service or the proxy.
        address: String,
        /// What the system said.
        cause: String,
    },
    /// The connection broke before the whole answer was there. A write may or may not have been done.
    #[error("the connection to {address} broke: {cause}")]
    Broken {
        /// Host and port of the order service or the proxy.
        address: String,
        /// What happened.
        cause: String,
    },
    /// No answer in time. A write may or may not have been done.
    #[error("no answer from the order service within {}", outrigger_common::config::format_duration(*.0))]
    Timeout(Duration),
    /// The order service said no.
    #[error("{message}")]
    Refused {
        /// HTTP status.
        status: StatusCode,
        /// The word for programs.
        code: String,
        /// The sentence for people.
        message: String,
        /// Seconds after which it makes sense to try again, if the service said so.
        retry_after: Option<String>,
    },
    /// An answer that is not the order service's: of something on the way, most likely.
    #[error("unexpected answer {status} to the call of the order service: {quote}")]
    Unexpected {
        /// HTTP status.
        status: StatusCode,
        /// Beginning of the body.
        quote: String,
        /// Seconds after which it makes sense to try again, if the answer said so.
        retry_after: Option<String>,
    },
    /// The request cannot be put into HTTP (a base URL that is none).
    #[error("cannot make the request: {0}")]
    Request(String),
}

/// Calls the order service. Cheap to clone; clones share connections.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool,
    orders: Uri,
    timeout: Duration,
    proxied: bool,
}

impl Client {
    /// A client; connections are made when they are needed.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn new(options: ClientOptions) -> Self {
        let address = pool::address(options.proxy.as_ref().unwrap_or(&options.orders));
        Self {
            pool: Pool::new(address, options.max_connections),
            proxied: options.proxy.is_some(),
            orders: options.orders,
            timeout: options.timeout,
        }
    }

    /// Places an order.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn create(&self, order: &NewOrder, call: &Call) -> Result<Written<Order>, ClientError> {
        self.write(Method::POST, "/v1/orders", order, call).await
    }

    /// Reads an order.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn get(&self, id: OrderId, call: &Call) -> Result<Order, ClientError> {
        self.read(&format!("/v1/orders/{id}"), call).await
    }

    /// Lists orders, newest first.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn list(&self, query: &ListQuery, call: &Call) -> Result<OrderPage, ClientError> {
        self.read(&list_path(query), call).await
    }

    /// Changes an order.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn update(
        &self,
        id: OrderId,
        update: &OrderUpdate,
        call: &Call,
    ) -> Result<Written<Order>, ClientError> {
        self.write(Method::PATCH, &format!("/v1/orders/{id}"), update, call).await
    }

    async fn read<T: DeserializeOwned>(&self, path: &str, call: &Call) -> Result<T, ClientError> {
        let request = self.request(Method::GET, path, Bytes::new(), &call.trace)?;
        parse(&self.send(request).await?)
    }

    async fn write<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: &impl Serialize,
        call: &Call,
    ) -> Result<Written<T>, ClientError> {
        let key = call.key.clone().unwrap_or_else(IdempotencyKey::random);
        let body = serde_json::to_vec(body).map_err(|error| ClientError::Request(error.to_string()))?;
        let mut request = self.request(method, path, body.into(), &call.trace)?;
        let headers = request.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        let value =
            HeaderValue::try_from(key.as_str()).map_err(|error| ClientError::Request(error.to_string()))?;
        headers.insert(idempotency::HEADER, value);
        let received = self.send(request).await?;
        let replayed = received.headers.contains_key(idempotency::REPLAYED_HEADER);
        Ok(Written { value: parse(&received)?, replayed, key })
    }

    fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        trace: &TraceHeaders,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let refuse = |error: http::Error| ClientError::Request(error.to_string());
        let host = self.orders.authority().map(|authority| authority.as_str()).unwrap_or_default();
        // A proxy wants the whole URL in the request line, a server only the path (RFC 9112 section 3.2).
        let target = if self.proxied { format!("http://{host}{path}") } else { path.to_owned() };
        let mut request =
            Request::builder().method(method).uri(target).body(Full::new(body)).map_err(refuse)?;
        let value = HeaderValue::try_from(host).map_err(|error| ClientError::Request(error.to_string()))?;
        request.headers_mut().insert(header::HOST, value);
        trace.copy_to(request.headers_mut());
        Ok(request)
    }

    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Received, ClientError> {
        match tokio::time::timeout(self.timeout, self.pool.send(request)).await {
            Ok(result) => result,
            Err(_elapsed) => Err(ClientError::Timeout(self.timeout)),
        }
    }
}

fn list_path(query: &ListQuery) -> String {
    let mut path = "/v1/orders".to_owned();
    let mut separator = '?';
    let mut add = |name: &str, value: &str| {
        path.push(separator);
        separator = '&';
        path.push_str(name);
        path.push('=');
        // A cursor is made of letters and digits; anything else is made harmless and then refused.
        for byte in value.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    path.push(char::from(byte));
                }
                _ => path.push_str(&format!("%{byte:02X}")),
            }
        }
    };
    if let Some(limit) = query.limit {
        add("limit", &limit.to_string());
    }
    if let Some(cursor) = &query.cursor {
        add("cursor", cursor);
    }
    if let Some(status) = query.status {
        add("status", status.as_str());
    }
    path
}

fn parse<T: DeserializeOwned>(received: &Received) -> Result<T, ClientError> {
    let status = received.status;
    let retry_after = || text_of(&received.headers, &header::RETRY_AFTER);
    if status.is_success()
        && let Ok(value) = serde_json::from_slice(&received.body)
    {
        return Ok(value);
    }
    if !status.is_success()
        && let Ok(ProblemBody { error }) = serde_json::from_slice(&received.body)
    {
        let (code, message) = (error.code, error.message);
        return Err(ClientError::Refused { status, code, message, retry_after: retry_after() });
    }
    let quote = String::from_utf8_lossy(&received.body).chars().take(MAX_QUOTE).collect();
    Err(ClientError::Unexpected { status, quote, retry_after: retry_after() })
}

fn text_of(headers: &HeaderMap, name: &header::HeaderName) -> Option<String> {
    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::Status;

    #[test]
    fn a_list_path_holds_what_is_asked_and_escapes_the_cursor() {
        assert_eq!(list_path(&ListQuery::default()), "/v1/orders");
        let query = ListQuery { limit: Some(5), cursor: Some("c1&x".into()), status: Some(Status::Shipped) };
        assert_eq!(list_path(&query), "/v1/orders?limit=5&cursor=c1%26x&status=shipped");
    }
}
