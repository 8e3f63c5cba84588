//! Transparent capture, in network namespaces joined by veth pairs: applications, sidecars and peers on
//! addresses of their own, and nothing in an application's configuration that points at the mesh.
//!
//! | Module | What it is about |
//! |---|---|
//! | [`scene`] | a registry, two applications with sidecars and an outsider, each on a machine of its own |
//! | [`outbound`] | what a captured application reaches |
//! | [`inbound`] | what reaches a captured application |
//! | [`edges`] | where capture meets what it was not made for |
//! | [`rules`] | `outrigger capture`: what is redirected and what is not, with no sidecar at all |
//! | [`plain`] | the programs that stand for applications and the outside |
//!
//! Root is needed.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod edges;
mod inbound;
mod outbound;
mod plain;
mod rules;
mod scene;
