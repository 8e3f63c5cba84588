//! The HTTP interface of the server: one variant of [`Operation`] an endpoint.

mod health;
pub(crate) mod orders;

use std::time::Duration;

use axum::Router;
use axum::routing::{MethodRouter, get, patch, post};
use http::{Method, StatusCode};

use crate::error::{Error, json_response};
use crate::openapi;
use crate::store::Store;

pub use orders::ListQuery;

/// What every handler needs.
#[derive(Debug, Clone)]
pub struct App {
    /// Where orders are.
    pub store: Store,
    /// How long a request body may take.
    pub body_timeout: Duration,
}

/// An endpoint. The router is built from this table and the interface document is checked against it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Place an order.
    CreateOrder,
    /// List orders.
    ListOrders,
    /// Read an order.
    GetOrder,
    /// Change an order.
    UpdateOrder,
    /// Say whether orders can be read.
    Health,
    /// Give the interface document.
    Document,
}

impl Operation {
    /// Every endpoint.
    pub const ALL: [Self; 6] = [
        Self::CreateOrder,
        Self::ListOrders,
        Self::GetOrder,
        Self::UpdateOrder,
        Self::Health,
        Self::Document,
    ];

    /// Its method.
    pub fn method(self) -> Method {
        match self {
            Self::CreateOrder => Method::POST,
            Self::UpdateOrder => Method::PATCH,
            Self::ListOrders | Self::GetOrder | Self::Health | Self::Document => Method::GET,
        }
    }

    /// Its path, with parameters in braces.
    pub fn path(self) -> &'static str {
        match self {
            Self::CreateOrder | Self::ListOrders => "/v1/orders",
            Self::GetOrder | Self::UpdateOrder => "/v1/orders/{id}",
            Self::Health => "/healthz",
            Self::Document => "/openapi.json",
        }
    }

    fn handler(self) -> MethodRouter<App> {
        match self {
            Self::CreateOrder => post(orders::create),
            Self::ListOrders => get(orders::list),
            Self::GetOrder => get(orders::read),
            Self::UpdateOrder => patch(orders::update),
            Self::Health => get(health::health),
            Self::Document => {
                get(async || json_response(StatusCode::OK, openapi::DOCUMENT.as_bytes().into()))
            }
        }
    }
}

/// The whole interface.
pub fn router(app: App) -> Router {
    let mut router = Router::new();
    for operation in Operation::ALL {
        router = router.route(operation.path(), operation.handler());
    }
    router
        .fallback(async || Error::NoSuchPath)
        .method_not_allowed_fallback(async || Error::MethodNotAllowed)
        .with_state(app)
}
