//! Certificates of the peers and the relays: one root, and one leaf that both ends of the hop use.

use std::fs;
use std::path::Path;

use anyhow::Result;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// What the outbound end asks for and checks.
pub(crate) const NAME: &str = "orders.shop";
/// Files of a directory, all PEM: the root's certificate.
pub(crate) const ROOT: &str = "root.pem";
/// The leaf's certificate.
pub(crate) const CERTIFICATE: &str = "leaf.pem";
/// The leaf's key: ECDSA P-256, as a sidecar's.
pub(crate) const KEY: &str = "leaf.key";
/// Certificate and key in one file, as HAProxy wants them.
pub(crate) const BOTH: &str = "leaf.both";

/// Makes them, and writes them to a directory.
pub(crate) fn write(directory: &Path) -> Result<()> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, "bench root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let root = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new([NAME.to_owned()])?;
    params.distinguished_name.push(DnType::CommonName, NAME);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &root)?;

    fs::write(directory.join(ROOT), root.pem())?;
    fs::write(directory.join(CERTIFICATE), leaf.pem())?;
    fs::write(directory.join(KEY), key.serialize_pem())?;
    fs::write(directory.join(BOTH), leaf.pem() + &key.serialize_pem())?;
    Ok(())
}
