//! Every way a request to the server can fail, and the one place that turns it into HTTP.

use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::body::BodyError;
use crate::idempotency::InvalidKey;
use crate::order::{InvalidOrder, OrderId, Refusal, Status};
use crate::store::StoreError;

/// The body of every response that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProblemBody {
    /// What happened.
    pub error: Problem,
}

/// What happened, for programs and for people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// A word a program can rely on, such as `order_not_found`.
    pub code: String,
    /// A sentence for people; may change.
    pub message: String,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A path, query or header value is not what the interface says.
    #[error("{0}")]
    InvalidParameter(String),
    /// The body was not delivered, too large, not JSON, or not the JSON the interface says.
    #[error(transparent)]
    Body(#[from] BodyError),
    /// A field of the body is out of bounds.
    #[error(transparent)]
    InvalidOrder(#[from] InvalidOrder),
    /// The key was used before, for something else.
    #[error("this Idempotency-Key was used for a different request; use a new key for a new request")]
    KeyReused,
    /// No such order.
    #[error("there is no order {0}")]
    OrderNotFound(OrderId),
    /// No such path.
    #[error("there is nothing at this path; see /openapi.json for what there is")]
    NoSuchPath,
    /// The path exists, the method does not.
    #[error("this path does not take this method; the allow header names those it takes")]
    MethodNotAllowed,
    /// The order's status does not allow the change.
    #[error("an order that is {from} cannot become {to}; {}", allowed(*.from))]
    IllegalTransition {
        /// Current status.
        from: Status,
        /// Status asked for.
        to: Status,
    },
    /// The order changed since the caller read it.
    #[error("the order is at version {current}; read it again and decide anew")]
    VersionConflict {
        /// Current version.
        current: i64,
    },
    /// The store could not do its work.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Error {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::InvalidParameter(_) => StatusCode::BAD_REQUEST,
            Self::Body(error) => error.status(),
            Self::InvalidOrder(_) | Self::KeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::OrderNotFound(_) | Self::NoSuchPath => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::IllegalTransition { .. } | Self::VersionConflict { .. } => StatusCode::CONFLICT,
            Self::Store(StoreError::Full) => StatusCode::INSUFFICIENT_STORAGE,
            Self::Store(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidParameter(_) => "invalid_parameter",
            Self::Body(error) => error.code(),
            Self::InvalidOrder(_) => "invalid_body",
            Self::KeyReused => "idempotency_key_reused",
            Self::OrderNotFound(_) => "order_not_found",
            Self::NoSuchPath => "no_such_path",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::IllegalTransition { .. } => "illegal_transition",
            Self::VersionConflict { .. } => "version_conflict",
            Self::Store(error) => error.code(),
        }
    }

    /// The JSON body.
    pub fn body(&self) -> Bytes {
        problem_json(self.code(), &self.to_string())
    }
}

impl From<InvalidKey> for Error {
    fn from(error: InvalidKey) -> Self {
        Self::InvalidParameter(error.to_string())
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::IllegalTransition { from, to } => Self::IllegalTransition { from, to },
            Refusal::VersionConflict { current } => Self::VersionConflict { current },
        }
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status(), self.body());
        if matches!(self, Self::Store(_)) {
            // Queues and locks clear within a second; a full disk needs a person.
            let seconds = if self.status() == StatusCode::SERVICE_UNAVAILABLE { "1" } else { "60" };
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static(seconds));
        }
        response
    }
}

/// A response with a JSON body.
pub fn json_response(status: StatusCode, body: Bytes) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// The JSON of a [`ProblemBody`].
pub fn problem_json(code: &str, message: &str) -> Bytes {
    let body = ProblemBody { error: Problem { code: code.to_owned(), message: message.to_owned() } };
    serde_json::to_vec(&body).expect("strings always serialise").into()
}

fn allowed(from: Status) -> String {
    match from.successors() {
        [] => format!("{from} is final"),
        next => format!("allowed: {}", next.iter().map(|s| s.as_str()).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_illegal_transition_names_the_status_and_what_is_allowed() {
        let text = |from, to| Error::IllegalTransition { from, to }.to_string();
        assert_eq!(
            text(Status::Pending, Status::Delivered),
            "an order that is pending cannot become delivered; allowed: confirmed, cancelled"
        );
        assert!(text(Status::Cancelled, Status::Pending).ends_with("cancelled is final"));
    }
}
