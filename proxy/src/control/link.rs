//! The channel to the registry, made anew with each certificate.

use std::sync::Arc;

use arc_swap::ArcSwap;
use outrigger_common::channel::{self, Trust};
use tonic::transport::Channel;

/// Gives out the channel that proves the newest certificate. Streams opened before a renewal go on
/// over the old one until the registry ends them.
#[derive(Debug)]
pub struct Link {
    address: String,
    trust: Trust,
    current: ArcSwap<Channel>,
}

impl Link {
    /// A lazy channel to `address`.
    ///
    /// # Errors
    /// When `address` cannot be part of a URI.
    pub fn new(address: &str, trust: Trust) -> Result<Self, tonic::transport::Error> {
        let current = ArcSwap::from_pointee(channel::registry(address, trust.clone())?);
        Ok(Self { address: address.to_owned(), trust, current })
    }

    /// The channel for the next call or stream.
    pub fn channel(&self) -> Channel {
        Channel::clone(&self.current.load())
    }

    /// Leaves the old connection to its streams.
    ///
    /// # Errors
    /// As [`Link::new`], which has succeeded with the same address.
    pub fn renew(&self) -> Result<(), tonic::transport::Error> {
        self.current.store(Arc::new(channel::registry(&self.address, self.trust.clone())?));
        Ok(())
    }
}
