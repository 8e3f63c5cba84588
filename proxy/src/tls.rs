//! TLS towards other sidecars, made anew with each certificate.

use std::sync::Arc;

use outrigger_common::mtls::{self, ClientAuth, IdentityError, Svid};
use rustls::{ClientConfig, ServerConfig};

/// TLS configurations made of one certificate.
#[derive(Debug)]
pub struct TlsConfigs {
    /// Towards other sidecars.
    pub client: Arc<ClientConfig>,
    /// For other sidecars.
    pub server: Arc<ServerConfig>,
}

impl TlsConfigs {
    /// Builds both sides.
    ///
    /// # Errors
    /// When the identity cannot be used for TLS.
    pub fn new(svid: &Svid) -> Result<Self, IdentityError> {
        Ok(Self {
            client: mtls::client_config(svid, &[b"h2"])?,
            server: mtls::server_config(svid, ClientAuth::Required, &[b"h2", b"http/1.1"])?,
        })
    }
}
