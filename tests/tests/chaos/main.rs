//! Things break under open-loop load: processes, connections, the network, the registry, the clock,
//! capacity. Each test breaks one thing, prints what everybody saw of it, and judges.
//!
//! | Module | What breaks |
//! |---|---|
//! | [`single`] | one replica of three |
//! | [`network`] | the network to one replica |
//! | [`registry`] | the registry |
//! | [`whole`] | all replicas, or everything in turn |
//! | [`clock`] | the clock of a machine |
//! | [`metastable`] | capacity: there is more load than it carries |
//!
//! The policy in force is `policies/suite.yaml`. Certificates live for 21 s, so that each of them is
//! replaced in the middle of every test. Root is needed, for network namespaces.

#![allow(clippy::unwrap_used)] // clippy knows tests by their attribute, not what they share.

mod clock;
mod cluster;
mod metastable;
mod namespace;
mod network;
mod registry;
mod run;
mod single;
mod whole;
