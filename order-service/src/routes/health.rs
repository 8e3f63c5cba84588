//! `GET /healthz`: whether this replica can serve reads.

use axum::extract::State;
use axum::response::Response;
use http::StatusCode;

use super::App;
use crate::error::{Error, json_response};

/// Reads are what counts: a replica whose disk is full still serves them and should keep its traffic.
pub(super) async fn health(State(app): State<App>) -> Result<Response, Error> {
    app.store.check().await?;
    Ok(json_response(StatusCode::OK, br#"{"status":"ok"}"#.as_slice().into()))
}
