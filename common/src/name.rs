//! Names of namespaces, accounts and services: DNS labels (RFC 1123 section 2.1), so that a service's
//! full name always fits into SNI and a SPIFFE path.

use std::fmt;

/// Longest label (RFC 1035 section 2.3.4).
const MAX_LABEL: usize = 63;

/// Why a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{value:?} is not a valid name: use 1 to 63 lower-case letters, digits and '-', starting and ending with a letter or digit"
)]
pub struct InvalidName {
    /// What was given.
    pub value: String,
}

/// Returns `Ok` when `value` is a lower-case DNS label.
pub fn check_label(value: &str) -> Result<(), InvalidName> {
    let edge = |byte: Option<u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    let bytes = value.as_bytes();
    let valid = bytes.len() <= MAX_LABEL
        && edge(bytes.first().copied())
        && edge(bytes.last().copied())
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-');
    if valid { Ok(()) } else { Err(InvalidName { value: value.to_owned() }) }
}

/// A service's full name: `name.namespace`, for example `orders.shop`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceName {
    // One allocation, because this is a map key on the request path; `split` is the index of the dot.
    full: Box<str>,
    split: u8,
}

impl ServiceName {
    /// Checks both labels.
    pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidName> {
        check_label(name)?;
        check_label(namespace)?;
        let split = u8::try_from(name.len()).expect("a checked label has at most 63 bytes");
        Ok(Self { full: format!("{name}.{namespace}").into_boxed_str(), split })
    }

    /// Parses `name.namespace`.
    pub fn parse(full: &str) -> Result<Self, InvalidName> {
        match full.split_once('.') {
            Some((name, namespace)) => Self::new(namespace, name),
            None => Err(InvalidName { value: full.to_owned() }),
        }
    }

    /// The service's own label.
    pub fn name(&self) -> &str {
        &self.full[..usize::from(self.split)]
    }

    /// The namespace's label.
    pub fn namespace(&self) -> &str {
        &self.full[usize::from(self.split) + 1..]
    }

    /// `name.namespace`: the form used in labels, headers and text.
    pub fn as_str(&self) -> &str {
        &self.full
    }
}

impl std::hash::Hash for ServiceName {
    /// Hashes as the text does, which `Borrow<str>` requires.
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.full.hash(state);
    }
}

impl std::borrow::Borrow<str> for ServiceName {
    fn borrow(&self) -> &str {
        &self.full
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.full)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_follow_rfc_1123() {
        for good in ["a", "orders", "a-1", "0x", &"a".repeat(63)] {
            assert_eq!(check_label(good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a.b", "a_b", "a/b", "ä", &"a".repeat(64)] {
            assert!(check_label(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn service_name_keeps_its_parts_and_hashes_like_its_text() {
        use std::collections::HashMap;
        let name = ServiceName::new("shop", "orders").unwrap();
        assert_eq!((name.name(), name.namespace(), name.as_str()), ("orders", "shop", "orders.shop"));
        assert_eq!(ServiceName::parse("orders.shop").unwrap(), name);
        assert!(ServiceName::parse("orders").is_err());
        assert!(ServiceName::parse("orders.shop.mesh").is_err());
        let map = HashMap::from([(name, 1)]);
        assert_eq!(map.get("orders.shop"), Some(&1));
    }
}
