//! Identities for tests.

use std::time::{Duration, SystemTime};

use outrigger_common::mtls::{Svid, certificate_pin};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// A root and how to get identities of it.
pub(crate) struct Root(CertifiedIssuer<'static, KeyPair>);

impl Root {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pin(&self) -> String {
        certificate_pin(self.0.der()).unwrap()
    }

    /// An identity valid from a minute ago until `expiry`.
    pub(crate) fn svid(&self, expiry: SystemTime) -> Svid {
        let mut params = CertificateParams::default();
        let uri = "spiffe://mesh.local/ns/shop/sa/orders";
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = expiry.into();
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let leaf = params.signed_by(&key, &self.0).unwrap().der().clone();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Svid::new(vec![leaf], key, vec![self.0.der().clone()]).unwrap()
    }
}
