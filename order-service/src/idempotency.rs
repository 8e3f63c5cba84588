//! Idempotency keys: a caller's name for one write, so that repeating the write does it once.

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// The request header that carries a key.
pub const HEADER: &str = "idempotency-key";
/// The response header that marks an answer given before.
pub const REPLAYED_HEADER: &str = "idempotent-replayed";
/// Longest key, in bytes.
pub const MAX_KEY: usize = 255;

/// A checked key: 1 to [`MAX_KEY`] visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey(String);

/// Why a key is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an Idempotency-Key must have 1 to {MAX_KEY} visible ASCII characters")]
pub struct InvalidKey;

impl IdempotencyKey {
    /// A key nobody has used.
    pub fn random() -> Self {
        Self(Uuid::new_v4().to_string())
    }

    /// Checks a caller's key.
    ///
    /// # Errors
    /// When it is empty, too long or holds anything but visible ASCII.
    pub fn parse(text: &[u8]) -> Result<Self, InvalidKey> {
        let valid = (1..=MAX_KEY).contains(&text.len()) && text.iter().all(u8::is_ascii_graphic);
        match std::str::from_utf8(text) {
            Ok(text) if valid => Ok(Self(text.to_owned())),
            _ => Err(InvalidKey),
        }
    }

    /// The key as sent.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A key and what it was used for.
#[derive(Debug, Clone)]
pub struct KeyedRequest {
    /// The caller's key.
    pub key: IdempotencyKey,
    /// SHA-256 over method, path and body: tells a repeat from a different request under the same key.
    pub fingerprint: Vec<u8>,
}

impl KeyedRequest {
    /// Binds `key` to one request.
    pub fn new(key: IdempotencyKey, method: &str, path: &str, body: &[u8]) -> Self {
        let mut hash = Sha256::new();
        // Neither a method nor a path can hold a zero byte, so the parts cannot run into each other.
        for part in [method.as_bytes(), &[0], path.as_bytes(), &[0], body] {
            hash.update(part);
        }
        Self { key, fingerprint: hash.finalize().to_vec() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_bounded_visible_ascii() {
        assert!(IdempotencyKey::parse(&[b'k'; MAX_KEY]).is_ok());
        for bad in [&b""[..], &[b'k'; MAX_KEY + 1], b"a b", b"a\n", "ä".as_bytes()] {
            assert_eq!(IdempotencyKey::parse(bad), Err(InvalidKey));
        }
        assert_ne!(IdempotencyKey::random(), IdempotencyKey::random());
    }

    #[test]
    fn method_path_and_body_all_count() {
        let print = |method, path, body: &str| {
            KeyedRequest::new(IdempotencyKey::random(), method, path, body.as_bytes()).fingerprint
        };
        let base = print("POST", "/v1/orders", "{}");
        assert_eq!(base, print("POST", "/v1/orders", "{}"));
        for other in [
            print("PATCH", "/v1/orders", "{}"),
            print("POST", "/v1/order", "s{}"),
            print("POST", "/v1/orders", "{} "),
        ] {
            assert_ne!(base, other);
        }
    }
}
