//! Request bodies: bounded in size and time, then parsed as JSON with the field named when it is wrong.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

/// Largest request body, in bytes.
pub const MAX_BODY: usize = 64 * 1024;
/// How much of a body that is too large is read and dropped, in bytes, so that a client that sends
/// first and reads later finds the answer instead of a reset connection.
const MAX_DISCARDED: usize = 1024 * 1024;

/// Why a body is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BodyError {
    /// Longer than [`MAX_BODY`].
    #[error("the body is larger than {MAX_BODY} bytes")]
    TooLarge,
    /// Did not arrive in time.
    #[error("the body did not arrive within {}", outrigger_common::config::format_duration(*.0))]
    Slow(Duration),
    /// The connection broke in the middle of it.
    #[error("the body ended early")]
    Broken,
    /// Labelled as something other than JSON.
    #[error("the body must be JSON: send the header content-type: application/json")]
    NotLabelledJson,
    /// Not JSON.
    #[error("the body is not JSON: {0}")]
    NotJson(String),
    /// JSON of another shape; the text names the field.
    #[error("the body is not what is expected here: {0}")]
    WrongShape(String),
}

impl BodyError {
    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Slow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Broken | Self::NotJson(_) => StatusCode::BAD_REQUEST,
            Self::NotLabelledJson => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::WrongShape(_) => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }

    /// The word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge => "body_too_large",
            Self::Slow(_) => "body_timeout",
            Self::Broken => "body_incomplete",
            Self::NotLabelledJson => "unsupported_media_type",
            Self::NotJson(_) => "invalid_json",
            Self::WrongShape(_) => "invalid_body",
        }
    }
}

/// Reads a whole body.
///
/// # Errors
/// When it is larger than [`MAX_BODY`], slower than `limit`, or breaks off.
pub async fn read(body: Body, limit: Duration) -> Result<Bytes, BodyError> {
    tokio::time::timeout(limit, collect(body)).await.map_err(|_| BodyError::Slow(limit))?
}

async fn collect(mut body: Body) -> Result<Bytes, BodyError> {
    let mut kept = BytesMut::new();
    let mut seen = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| BodyError::Broken)?.into_data() else { continue };
        seen += data.len();
        if seen > MAX_DISCARDED {
            break;
        }
        if seen <= MAX_BODY {
            kept.extend_from_slice(&data);
        }
    }
    if seen > MAX_BODY { Err(BodyError::TooLarge) } else { Ok(kept.freeze()) }
}

/// Checks that a body is labelled JSON.
///
/// # Errors
/// When the content type is absent or another one.
pub fn check_json_label(headers: &HeaderMap) -> Result<(), BodyError> {
    let label = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let media_type = label.split(';').next().unwrap_or_default().trim();
    if media_type.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(BodyError::NotLabelledJson) }
}

/// Parses a body.
///
/// # Errors
/// Not JSON, or JSON with a field missing, unknown or of the wrong type.
pub fn parse_json<T: DeserializeOwned>(body: &[u8]) -> Result<T, BodyError> {
    use serde_json::error::Category;
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => BodyError::WrongShape(error.to_string()),
        Category::Io | Category::Syntax | Category::Eof => BodyError::NotJson(error.to_string()),
    })
}
