//! SPIFFE identities: parsed once at the edge, compared as values everywhere else.
//!
//! Source: the SPIFFE ID specification, sections 2 and 2.1 to 2.4 (trust domain and path characters,
//! maximum length of 2048 bytes).

use std::fmt;

use crate::name::check_label;

const SCHEME: &str = "spiffe://";
/// Longest id the specification allows, in bytes.
const MAX_ID: usize = 2048;
/// The registry's own path. A workload's path always starts with `/ns/`, so no token can name it.
const REGISTRY_PATH: &str = "/outrigger/registry";
/// The administrator's path; unreachable for workloads for the same reason.
const ADMIN_PATH: &str = "/outrigger/admin";
/// What is shown of a caller without an identity; nobody can prove it, for it is never parsed.
const NOBODY_PATH: &str = "/outrigger/nobody";

/// Why an id is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not an identity of this mesh: {why}")]
pub struct InvalidIdentity {
    /// What was given.
    pub value: String,
    /// What is wrong with it.
    pub why: &'static str,
}

/// A trust domain, for example `mesh.local`: all identities signed by one root.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TrustDomain(Box<str>);

impl TrustDomain {
    /// Checks the characters the specification allows: lower-case letters, digits, `.`, `-` and `_`.
    pub fn new(value: &str) -> Result<Self, InvalidIdentity> {
        let valid = !value.is_empty()
            && value.len() <= 255
            && value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b".-_".contains(&b));
        if valid {
            Ok(Self(value.into()))
        } else {
            Err(InvalidIdentity {
                value: value.to_owned(),
                why: "a trust domain has 1 to 255 lower-case letters, digits, '.', '-' and '_'",
            })
        }
    }

    /// The domain's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Whom an identity names.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Principal {
    /// A workload, by namespace and account.
    Workload {
        /// The workload's namespace.
        namespace: Box<str>,
        /// The workload's account.
        account: Box<str>,
    },
    /// The registry: the only peer a sidecar believes about endpoints and certificates.
    Registry,
    /// The administrator: the only caller who may write resources and tokens.
    Admin,
    /// A caller that proved nothing, where that is allowed. No name or pattern of an identity means it.
    Nobody,
}

/// A SPIFFE id of this mesh, for example `spiffe://mesh.local/ns/shop/sa/orders`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SpiffeId {
    trust_domain: TrustDomain,
    principal: Principal,
}

impl SpiffeId {
    /// A workload's id. Both labels are checked, so the result can never be a reserved id.
    pub fn workload(
        trust_domain: TrustDomain,
        namespace: &str,
        account: &str,
    ) -> Result<Self, crate::name::InvalidName> {
        check_label(namespace)?;
        check_label(account)?;
        let principal = Principal::Workload { namespace: namespace.into(), account: account.into() };
        Ok(Self { trust_domain, principal })
    }

    /// The registry's reserved id.
    pub fn registry(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, principal: Principal::Registry }
    }

    /// The administrator's reserved id.
    pub fn admin(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, principal: Principal::Admin }
    }

    /// Who proved no identity at all.
    pub fn nobody(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, principal: Principal::Nobody }
    }

    /// Whether it was proved.
    pub fn is_proven(&self) -> bool {
        self.principal != Principal::Nobody
    }

    /// Parses the exact text of a URI SAN; anything this mesh would not issue is refused.
    pub fn parse(value: &str) -> Result<Self, InvalidIdentity> {
        let refuse = |why| InvalidIdentity { value: value.chars().take(256).collect(), why };
        if value.len() > MAX_ID {
            return Err(refuse("longer than 2048 bytes"));
        }
        let rest = value.strip_prefix(SCHEME).ok_or_else(|| refuse("it must start with spiffe://"))?;
        let slash = rest.find('/').ok_or_else(|| refuse("it has no path"))?;
        let (domain, path) = rest.split_at(slash);
        let trust_domain = TrustDomain::new(domain).map_err(|e| refuse(e.why))?;
        let principal = match path {
            REGISTRY_PATH => Principal::Registry,
            ADMIN_PATH => Principal::Admin,
            _ => {
                let (namespace, account) = path
                    .strip_prefix("/ns/")
                    .and_then(|rest| rest.split_once("/sa/"))
                    .ok_or_else(|| refuse("its path is not /ns/<namespace>/sa/<account>"))?;
                return Self::workload(trust_domain, namespace, account)
                    .map_err(|_| refuse("namespace and account must be DNS labels"));
            }
        };
        Ok(Self { trust_domain, principal })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whom it names.
    pub fn principal(&self) -> &Principal {
        &self.principal
    }

    /// The namespace, when it names a workload.
    pub fn namespace(&self) -> Option<&str> {
        match &self.principal {
            Principal::Workload { namespace, .. } => Some(namespace),
            Principal::Registry | Principal::Admin | Principal::Nobody => None,
        }
    }

    /// The account, when it names a workload.
    pub fn account(&self) -> Option<&str> {
        match &self.principal {
            Principal::Workload { account, .. } => Some(account),
            Principal::Registry | Principal::Admin | Principal::Nobody => None,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{SCHEME}{}", self.trust_domain)?;
        match &self.principal {
            Principal::Workload { namespace, account } => write!(f, "/ns/{namespace}/sa/{account}"),
            Principal::Registry => f.write_str(REGISTRY_PATH),
            Principal::Admin => f.write_str(ADMIN_PATH),
            Principal::Nobody => f.write_str(NOBODY_PATH),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_a_round_trip() {
        for id in [
            "spiffe://mesh.local/ns/shop/sa/orders",
            "spiffe://mesh.local/outrigger/registry",
            "spiffe://mesh.local/outrigger/admin",
        ] {
            assert_eq!(SpiffeId::parse(id).unwrap().to_string(), id);
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for id in [
            "",
            "https://mesh.local/ns/shop/sa/orders",
            "spiffe://mesh.local",
            "spiffe://mesh.local/",
            "spiffe:///ns/shop/sa/orders",
            "spiffe://Mesh.local/ns/shop/sa/orders",
            "spiffe://mesh.local:1/ns/shop/sa/orders",
            "spiffe://mesh.local/ns/shop/sa/",
            "spiffe://mesh.local/ns/shop/sa/orders/",
            "spiffe://mesh.local/ns/shop/sa/../outrigger",
            "spiffe://mesh.local/ns/shop/sa/a%2fb",
            "spiffe://mesh.local/ns//sa/orders",
            "spiffe://mesh.local/outrigger/registry/",
            "spiffe://mesh.local/outrigger/other",
            "spiffe://mesh.local/outrigger/nobody",
            "spiffe://mesh.local/ns/shop/sa/orders?x",
        ] {
            assert!(SpiffeId::parse(id).is_err(), "{id}");
        }
    }

    #[test]
    fn no_label_makes_a_workload_reserved() {
        let domain = TrustDomain::new("mesh.local").unwrap();
        assert!(SpiffeId::workload(domain.clone(), "x/../../outrigger", "registry").is_err());
        let id = SpiffeId::workload(domain, "outrigger", "registry").unwrap();
        assert_eq!(id.namespace(), Some("outrigger"));
        assert_ne!(id.principal(), &Principal::Registry);
    }
}
