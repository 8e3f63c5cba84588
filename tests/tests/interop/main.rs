//! What others wrote to judge HTTP/2 and gRPC, and the clients people use, through two sidecars.
//!
//! The servers behind them are real ones too: `nghttpd`, gRPC's own and that of
//! `websockets`. Where a test has to know what
//! arrived, it is the application of these tests.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod curl;
mod grpc;
mod h2spec;
mod httpx;
mod nghttp;
mod shop;
mod websocket;
