//! The harness of the whole-mesh tests: real processes on free ports, applications and load in the
//! test itself.
//!
//! | Module | What lives there |
//! |---|---|
//! | [`process`] | the `outrigger` binary as a child that ends with the test |
//! | [`mesh`] | [`mesh::Mesh`]: a registry and sidecars; tokens, certificates, restarts |
//! | [`app`] | [`app::App`]: a programmable HTTP application that remembers what it saw |
//! | [`servers`] | real databases, queues and mail, and their own clients |
//! | [`server`] | [`server::Server`]: an application that is a process of its own, with faults |
//! | [`tcp::TcpApp`] | an application of any protocol, connection by connection |
//! | [`client`] | [`client::Client`]: HTTP/1.1 and HTTP/2 through a sidecar, and raw bytes |
//! | [`component`] | programs from outside, which `cargo xtask test` installs and names |
//! | [`load`] | [`load::Load`]: open-loop load that keeps every failure |
//! | [`metrics`] | [`metrics::Metrics`]: what a `/metrics` page says |
//! | [`netns`] | network namespaces: machines of a test's own, and a network that joins them |
//! | [`wait`] | waiting for a condition, with a deadline |
//!
//! Everything must be started on the thread of the test: the kernel binds a child to the thread that
//! started it. `#[tokio::test]` does so.
//!
//! A test that fails shows the end of the log of every process of its mesh.
//! `OUTRIGGER_TEST_LOG` is `RUST_LOG` for the children.

pub mod app;
pub mod client;
pub mod component;
pub mod load;
pub mod mesh;
pub mod metrics;
pub mod netns;
pub mod process;
pub mod server;
pub mod servers;
pub mod tcp;
pub mod wait;
