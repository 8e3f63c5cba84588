//! TLS towards other sidecars, made anew with each certificate.

use std::sync::Arc;

use outrigger_common::mtls::{self, ClientAuth, IdentityError, Svid};
use rustls::{ClientConfig, ServerConfig};

use crate::tcp::preface;

/// TLS configurations made of one certificate.
#[derive(Debug)]
pub struct TlsConfigs {
    /// Towards other sidecars, for requests.
    pub client: Arc<ClientConfig>,
    /// The same for opaque bytes.
    pub client_tcp: Arc<ClientConfig>,
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
            client_tcp: mtls::client_config(svid, &[preface::ALPN])?,
            server: mtls::server_config(svid, ClientAuth::Required, &[b"h2", b"http/1.1", preface::ALPN])?,
        })
    }
}
