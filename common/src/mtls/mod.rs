//! Mutual TLS between the parts of the mesh: certificates as SPIFFE X.509 SVIDs, and the rustls
//! configurations made from them.
//!
//! TLS 1.3 only, without resumption. A handshake proves that the peer's chain ends in our bundle;
//! *who* the peer is must be read afterwards with [`peer_id`] and compared by the caller.

pub mod clock;
mod config;
mod peer;
mod pin;
mod svid;

pub use config::{ClientAuth, client_config, joining_client_config, server_config};
pub use peer::{PeerError, leaf_expiry, peer_id};
pub use pin::{certificate_pin, key_pin, sha256};
pub use svid::{IdentityError, KeyRequest, Svid};

#[cfg(test)]
mod tests;
