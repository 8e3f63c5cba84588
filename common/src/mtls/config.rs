//! rustls configurations: who may connect to us, whom we believe.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use super::pin::key_pin;
use super::svid::{IdentityError, Svid};
use super::{clock, peer};

/// Whether a client must show a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    /// Always: the sidecar's mesh port.
    Required,
    /// Only if it has one: the registry, whose join method answers the others. The chain sent then
    /// holds the root, so that a joiner can check its pin.
    Optional,
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// A server that proves `svid` and verifies clients against its bundle.
///
/// # Errors
/// When key and certificate do not fit, or the bundle is unusable.
pub fn server_config(
    svid: &Svid,
    clients: ClientAuth,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, IdentityError> {
    let mut roots = RootCertStore::empty();
    for root in &svid.bundle {
        roots.add(root.clone())?;
    }
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
    let mut chain = svid.chain.clone();
    let verifier = match clients {
        ClientAuth::Required => verifier,
        ClientAuth::Optional => {
            chain.extend(svid.bundle.iter().cloned());
            verifier.allow_unauthenticated()
        }
    };
    let verifier = verifier.build().map_err(|error| rustls::Error::General(error.to_string()))?;
    let mut config = ServerConfig::builder_with_details(provider(), clock::provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, svid.key.clone_key())?;
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    // Without resumption every connection proves the client's certificate anew.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A client that proves `svid` and believes servers of its bundle. Names are not compared: the
/// caller compares the id of [`super::peer_id`] after the handshake.
///
/// # Errors
/// When key and certificate do not fit, or the bundle is unusable.
pub fn client_config(svid: &Svid, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, IdentityError> {
    let anchors = svid
        .bundle
        .iter()
        .map(|root| Ok(anchor_from_trusted_cert(root).map_err(bad_certificate)?.to_owned()))
        .collect::<Result<_, rustls::Error>>()?;
    let config = ClientConfig::builder_with_details(provider(), clock::provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier {
            trust: Trust::Bundle(anchors),
            provider: provider(),
        }))
        .with_client_auth_cert(svid.chain.clone(), svid.key.clone_key())?;
    Ok(finish(config, alpn))
}

/// A client that has no certificate yet and believes only a chain whose root has this pin.
///
/// # Errors
/// Never with the provider we use; the type says so for rustls.
pub fn joining_client_config(pin: &str, alpn: &[&[u8]]) -> Result<Arc<ClientConfig>, IdentityError> {
    let config = ClientConfig::builder_with_details(provider(), clock::provider())
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(ServerVerifier {
            trust: Trust::Pin(pin.to_owned()),
            provider: provider(),
        }))
        .with_no_client_auth();
    Ok(finish(config, alpn))
}

fn finish(mut config: ClientConfig, alpn: &[&[u8]]) -> Arc<ClientConfig> {
    config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    Arc::new(config)
}

fn bad_certificate(error: webpki::Error) -> rustls::Error {
    match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired.into(),
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet.into(),
        // A root with the name of ours and another key.
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature.into(),
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer.into(),
        other => CertificateError::Other(rustls::OtherError(Arc::new(other))).into(),
    }
}

#[derive(Debug)]
enum Trust {
    /// Roots received with our own certificate.
    Bundle(Vec<TrustAnchor<'static>>),
    /// The pin of a root not yet seen.
    Pin(String),
}

/// Verifies a server's chain, and that its leaf is an SVID; leaves the choice of id to the caller.
#[derive(Debug)]
struct ServerVerifier {
    trust: Trust,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned;
        let anchors = match &self.trust {
            Trust::Bundle(anchors) => anchors.as_slice(),
            Trust::Pin(pin) => {
                pinned = intermediates
                    .iter()
                    .filter_map(|root| Some((root, peer::public_key(std::slice::from_ref(root)).ok()?)))
                    .filter(|(_, key)| key_pin(key) == *pin)
                    .map(|(root, _)| anchor_from_trusted_cert(root).map_err(bad_certificate))
                    .collect::<Result<Vec<_>, _>>()?;
                pinned.as_slice()
            }
        };
        let certificate = EndEntityCert::try_from(leaf).map_err(bad_certificate)?;
        certificate
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                anchors,
                intermediates,
                now,
                KeyUsage::server_auth(),
                None,
                None,
            )
            .map_err(bad_certificate)?;
        peer::peer_id(std::slice::from_ref(leaf))
            .map_err(|error| CertificateError::Other(rustls::OtherError(Arc::new(error))))?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            certificate,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
