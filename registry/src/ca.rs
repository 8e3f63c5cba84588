//! The mesh's certificate authority: one root in the store, leaves signed from it.
//!
//! Source of the leaf's form: the SPIFFE X.509-SVID specification, sections 2 to 4.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use outrigger_common::identity::{Principal, SpiffeId, TrustDomain};
use outrigger_common::mtls::{KeyRequest, Svid, key_pin};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::CertificateDer;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::error::{CaError, StartError};
use crate::metrics::Metrics;
use crate::model::{self, ROOT_KEY, RootRow};
use crate::store::{Store, StoreError, Txn};

/// Clocks of a mesh differ by up to this: a leaf is valid this long before it is issued.
const BACKDATE: Duration = Duration::from_secs(60);
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const SERIAL_BYTES: usize = 16;

/// Signs certificates of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    root: CertificateDer<'static>,
    root_expiry: SystemTime,
    issuer: Issuer<'static, KeyPair>,
    pin: String,
    lifetime: Duration,
    metrics: Arc<Metrics>,
}

/// A public key that a request proved to hold. Nothing else of a request is ever used.
pub struct ProvenKey(SubjectPublicKeyInfo);

impl ProvenKey {
    /// Reads a PKCS#10 request; its names and extensions are ignored.
    ///
    /// # Errors
    /// When it is none, is not signed by its own key, or the key is not P-256.
    pub fn from_request(der: &[u8]) -> Result<Self, CaError> {
        let Ok(([], request)) = X509CertificationRequest::from_der(der) else { return Err(CaError::Request) };
        let key = SubjectPublicKeyInfo::from_der(request.certification_request_info.subject_pki.raw);
        let key = key.map_err(|_| CaError::KeyKind)?;
        if key.algorithm() != &rcgen::PKCS_ECDSA_P256_SHA256 {
            return Err(CaError::KeyKind);
        }
        request.verify_signature().map_err(|_| CaError::Request)?;
        Ok(Self(key))
    }

    /// SHA-256 of the key, base64.
    pub fn hash(&self) -> String {
        key_pin(&self.0.subject_public_key_info())
    }
}

/// A leaf and its validity.
pub struct Issued {
    /// The leaf.
    pub leaf: CertificateDer<'static>,
    /// Start of its validity.
    pub not_before: SystemTime,
    /// End of its validity.
    pub not_after: SystemTime,
}

impl Authority {
    /// Reads the root from the store, or makes it: by compare-and-set, so that of several registries
    /// that start at once on one store, one root wins.
    ///
    /// # Errors
    /// When the store refuses, or holds a root of another trust domain or none that can be used.
    pub async fn open(
        store: &dyn Store,
        place: &Path,
        trust_domain: TrustDomain,
        lifetime: Duration,
        metrics: Arc<Metrics>,
    ) -> Result<Self, StartError> {
        let entry = match store.entry(ROOT_KEY).await? {
            Some(entry) => entry,
            None => {
                let mut txn = Txn::default();
                txn.expect(ROOT_KEY, None);
                txn.put(ROOT_KEY, model::encode(&make_root(&trust_domain)?));
                match store.commit(txn).await {
                    Ok(_) => tracing::info!(%trust_domain, "made the mesh's root"),
                    Err(StoreError::Conflict { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
                store.entry(ROOT_KEY).await?.ok_or(StoreError::Closed)?
            }
        };
        let unusable = |cause: String| StartError::Root { place: place.to_owned(), cause };
        let (root, issuer) = parse_root(&model::decode(&entry)?).map_err(unusable)?;
        let (stored, root_expiry) =
            root_facts(&root).ok_or_else(|| unusable("it is not a SPIFFE root".to_owned()))?;
        if stored != trust_domain.as_str() {
            let configured = trust_domain.to_string();
            return Err(StartError::TrustDomain { place: place.to_owned(), stored, configured });
        }
        let pin = key_pin(&issuer.key().subject_public_key_info());
        Ok(Self { trust_domain, root, root_expiry, issuer, pin, lifetime, metrics })
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// End of the root's validity.
    pub fn root_expiry(&self) -> SystemTime {
        self.root_expiry
    }

    /// Pin of the root's key.
    pub fn pin(&self) -> &str {
        &self.pin
    }

    /// Signs a leaf for `id`. The caller has decided that the key's holder is `id`.
    ///
    /// # Errors
    /// When signing fails.
    pub fn issue(&self, id: &SpiffeId, key: &ProvenKey, now: SystemTime) -> Result<Issued, CaError> {
        // A leaf that lives seconds is not backdated by more than it lives, or two thirds of its time
        // would be over before it is issued.
        let not_before = now - BACKDATE.min(self.lifetime);
        let not_after = (now + self.lifetime).min(self.root_expiry);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.not_before = not_before.into();
        params.not_after = not_after.into();
        params.serial_number = Some(serial());
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&key.0, &self.issuer)?.der().clone();
        let kind = match id.principal() {
            Principal::Workload { .. } => "workload",
            Principal::Registry => "registry",
            Principal::Admin => "admin",
            Principal::Nobody => "nobody",
        };
        self.metrics.certificates_issued.with_label_values(&[kind]).inc();
        Ok(Issued { leaf, not_before, not_after })
    }

    /// A new key and certificate for one of the registry's own identities.
    ///
    /// # Errors
    /// When a key cannot be made or signing fails.
    pub fn own(&self, id: &SpiffeId, now: SystemTime) -> Result<Svid, StartError> {
        let request = KeyRequest::generate()?;
        let issued = self.issue(id, &ProvenKey::from_request(&request.csr)?, now)?;
        Ok(request.complete(vec![issued.leaf], vec![self.root.clone()])?)
    }
}

fn make_root(trust_domain: &TrustDomain) -> Result<RootRow, CaError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
    let now = SystemTime::now();
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Outrigger root of {trust_domain}"));
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + ROOT_LIFETIME).into();
    params.serial_number = Some(serial());
    params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(RootRow { certificate: STANDARD.encode(certificate.der()), key: STANDARD.encode(key.serialize_der()) })
}

/// 127 random bits, positive (RFC 5280 section 4.1.2.2).
fn serial() -> SerialNumber {
    let mut bytes = random::<SERIAL_BYTES>();
    bytes[0] &= 0x7f;
    SerialNumber::from_slice(&bytes)
}

/// Bytes nobody can guess.
///
/// # Panics
/// When the system has no randomness: nothing the registry does would be safe then.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).expect("the system's random generator works");
    bytes
}

fn parse_root(row: &RootRow) -> Result<(CertificateDer<'static>, Issuer<'static, KeyPair>), String> {
    let certificate = STANDARD.decode(&row.certificate).map_err(|error| error.to_string())?;
    let key = STANDARD.decode(&row.key).map_err(|_| "its key is not base64".to_owned())?;
    let key = KeyPair::try_from(key.as_slice()).map_err(|_| "its key is not PKCS#8".to_owned())?;
    let certificate = CertificateDer::from(certificate);
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(|error| error.to_string())?;
    Ok((certificate, issuer))
}

/// Trust domain and end of validity.
fn root_facts(root: &CertificateDer<'_>) -> Option<(String, SystemTime)> {
    let (_, certificate) = X509Certificate::from_der(root).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let domain = names.value.general_names.iter().find_map(|name| match name {
        GeneralName::URI(uri) => uri.strip_prefix("spiffe://"),
        _ => None,
    })?;
    let expiry = u64::try_from(certificate.validity().not_after.timestamp()).ok()?;
    Some((domain.to_owned(), SystemTime::UNIX_EPOCH + Duration::from_secs(expiry)))
}
