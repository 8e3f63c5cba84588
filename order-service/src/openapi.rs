//! The interface document of the server, served at `GET /openapi.json` byte for byte.
//!
//! The document is written by hand because it is the specification: the interface is decided there.
//! A document generated from annotations would only repeat what the annotations claim; this one is
//! held against what the service really answers (`tests/it/contract.rs`): paths and methods against
//! the router's own table, schemas against the types, status codes and bodies against live responses.

/// OpenAPI 3.1, JSON.
pub const DOCUMENT: &str = include_str!("../openapi.json");
