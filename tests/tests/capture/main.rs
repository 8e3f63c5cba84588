//! Transparent capture, in network namespaces joined by veth pairs: applications, sidecars and peers on
//! addresses of their own, and nothing in an application's configuration that points at the mesh.
//!
//! | Module | What it is about |
//! |---|---|
//! | [`rules`] | `outrigger capture`: what is redirected and what is not, with no sidecar at all |
//! | [`plain`] | the programs that stand for applications and the outside |
//!
//! Root is needed.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod plain;
mod rules;
