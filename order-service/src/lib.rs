//! The reference application: a shop's orders over HTTP/JSON, and a storefront that uses them.
//!
//! It knows nothing of any mesh. The storefront calls `http://orders.shop` through an ordinary
//! forward proxy setting and passes trace headers on; whatever runs beside it does the rest.
//!
//! ```text
//! user ─► storefront ─► client ─► (proxy) ─► server ─► routes ─► store ─► SQLite
//! ```
//!
//! | Module | What lives there |
//! |---|---|
//! | [`cli`] | the two subcommands, reusable by another binary |
//! | [`config`] | file and environment, raw then checked |
//! | [`order`] | orders, amounts and legal state changes; pure |
//! | [`store`] | durable orders and idempotency keys: one writer with group commit, a few readers |
//! | [`routes`] | the HTTP interface of the server, one variant of [`routes::Operation`] an endpoint |
//! | [`server`] | server mode: store, routes and listener put together |
//! | [`client`] | typed client of that interface; writes always carry an idempotency key |
//! | [`storefront`] | storefront mode: a user's shop on top of the client |
//! | [`body`], [`error`], [`serve`] | request bodies, problem bodies, accepting and draining |
//! | [`openapi`] | the interface document, served as it is and checked by tests against what is answered |

#![warn(missing_docs)]

pub mod body;
pub mod cli;
pub mod client;
pub mod config;
pub mod error;
pub mod idempotency;
pub mod openapi;
pub mod order;
pub mod routes;
pub mod serve;
pub mod server;
pub mod store;
pub mod storefront;
