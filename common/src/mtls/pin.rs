//! The pin in a join token: how a sidecar that trusts nobody yet knows the true registry.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Returns the pin of a key: SHA-256 of its SubjectPublicKeyInfo in unpadded base64url, as in
/// RFC 7469 section 2.4 but for the alphabet.
pub fn key_pin(subject_public_key_info: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, subject_public_key_info))
}
