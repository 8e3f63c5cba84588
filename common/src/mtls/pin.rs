//! The pin in a join token: how a sidecar that trusts nobody yet knows the true registry.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls_pki_types::CertificateDer;

use super::peer;

/// SHA-256 of some bytes after one another, for checksums.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut sum = [0; 32];
    sum.copy_from_slice(context.finish().as_ref());
    sum
}

/// Returns the pin of the key in a certificate, as [`key_pin`]; none when it is not one.
pub fn certificate_pin(certificate: &CertificateDer<'_>) -> Option<String> {
    peer::public_key(std::slice::from_ref(certificate)).ok().map(|key| key_pin(&key))
}

/// Returns the pin of a key: SHA-256 of its SubjectPublicKeyInfo in unpadded base64url, as in
/// RFC 7469 section 2.4 but for the alphabet.
pub fn key_pin(subject_public_key_info: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(sha256(&[subject_public_key_info]))
}
