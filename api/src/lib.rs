//! The contract between the registry, the sidecars and the people who configure them: protobuf
//! messages ([`v1`]), and resource kinds in YAML with their validation ([`resource`]).
//!
//! No behaviour lives here: the registry decides what to accept, the sidecar what to do.

#![warn(missing_docs)]

pub mod attach;
pub mod document;
pub mod resource;
pub mod token;

/// Messages and services of `proto/outrigger/v1`, generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("outrigger.v1");
}

/// `grpc.health.v1`, by which applications of gRPC say whether they are ready; generated.
#[allow(missing_docs, clippy::all, clippy::pedantic, unused_qualifications, unreachable_pub)]
pub mod grpc_health {
    tonic::include_proto!("grpc.health.v1");
}

/// Version of the watch protocol this release speaks.
pub const PROTOCOL_VERSION: u32 = 1;

/// Feature of a registry that answers whose an address is.
pub const FEATURE_ADDRESSES: &str = "addresses";
