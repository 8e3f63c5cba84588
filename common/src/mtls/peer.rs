//! Who a peer is, read from the certificate it proved to hold.
//!
//! Source: the SPIFFE X.509-SVID specification, sections 2, 4 and 5.2: exactly one URI SAN, a leaf
//! that is no CA, `digitalSignature` and neither `keyCertSign` nor `cRLSign`.

use std::time::{Duration, SystemTime};

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::identity::{InvalidIdentity, SpiffeId};

/// Why a certificate names nobody in this mesh.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The peer presented none.
    #[error("no certificate was presented")]
    NoCertificate,
    /// It is not a certificate.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// It breaks a rule of the SVID specification.
    #[error("the certificate is not an X.509 SVID: {0}")]
    NotAnSvid(&'static str),
    /// Its URI is not an id this mesh issues.
    #[error(transparent)]
    Identity(#[from] InvalidIdentity),
    /// It certifies another key than the one asked for.
    #[error("the certificate is for another key than the one requested")]
    ForeignKey,
}

/// Returns the SPIFFE id of a chain's leaf. The chain itself must have been verified before.
///
/// # Errors
/// When the leaf is not an SVID of this mesh.
pub fn peer_id(chain: &[CertificateDer<'_>]) -> Result<SpiffeId, PeerError> {
    let leaf = leaf(chain)?;
    if leaf.is_ca() {
        return Err(PeerError::NotAnSvid("it may sign certificates"));
    }
    let usage = leaf.key_usage().map_err(|_| PeerError::Malformed)?;
    let usage = usage.ok_or(PeerError::NotAnSvid("it has no key usage"))?.value;
    if !usage.digital_signature() || usage.key_cert_sign() || usage.crl_sign() {
        return Err(PeerError::NotAnSvid(
            "its key usage must be digitalSignature, without signing of certificates",
        ));
    }
    let names = leaf.subject_alternative_name().map_err(|_| PeerError::Malformed)?;
    let mut uris = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => Ok(SpiffeId::parse(uri)?),
        (None, _) => Err(PeerError::NotAnSvid("it has no URI name")),
        (Some(_), Some(_)) => Err(PeerError::NotAnSvid("it has more than one URI name")),
    }
}

/// Returns the end of the leaf's validity.
///
/// # Errors
/// When the leaf cannot be parsed.
pub fn leaf_expiry(chain: &[CertificateDer<'_>]) -> Result<SystemTime, PeerError> {
    Ok(validity(chain)?.1)
}

pub(super) fn validity(chain: &[CertificateDer<'_>]) -> Result<(SystemTime, SystemTime), PeerError> {
    let leaf = leaf(chain)?;
    let time = |seconds: i64| {
        let seconds = u64::try_from(seconds).map_err(|_| PeerError::Malformed)?;
        Ok::<_, PeerError>(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds))
    };
    let validity = leaf.validity();
    Ok((time(validity.not_before.timestamp())?, time(validity.not_after.timestamp())?))
}

/// The leaf's SubjectPublicKeyInfo in DER.
pub(super) fn public_key(chain: &[CertificateDer<'_>]) -> Result<Vec<u8>, PeerError> {
    Ok(leaf(chain)?.public_key().raw.to_vec())
}

fn leaf<'a>(chain: &'a [CertificateDer<'_>]) -> Result<X509Certificate<'a>, PeerError> {
    let leaf = chain.first().ok_or(PeerError::NoCertificate)?;
    match X509Certificate::from_der(leaf) {
        Ok(([], leaf)) => Ok(leaf),
        Ok(_) | Err(_) => Err(PeerError::Malformed),
    }
}
