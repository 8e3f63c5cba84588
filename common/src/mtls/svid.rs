//! A key with its certificate and the roots it trusts, in memory and as files.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::PublicKeyData;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::peer::{self, PeerError};
use crate::identity::SpiffeId;

const CERTIFICATE_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";
const BUNDLE_FILE: &str = "bundle.pem";

/// An identity one can act as: an X.509 SVID, its key, and the trust bundle.
///
/// `Debug` shows the id alone.
pub struct Svid {
    /// Who this is, from the leaf's URI SAN.
    pub id: SpiffeId,
    /// Leaf first.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's key.
    pub key: PrivateKeyDer<'static>,
    /// Roots to trust.
    pub bundle: Vec<CertificateDer<'static>>,
    /// Start of the leaf's validity.
    pub not_before: SystemTime,
    /// End of the leaf's validity.
    pub not_after: SystemTime,
    /// When this process got hold of it: its issue, but for the way here. The start of the validity
    /// is no measure of that, for it is backdated.
    pub obtained: SystemTime,
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file is missing, unreadable or cannot be written.
    #[error("cannot {verb} {path}")]
    File {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A file does not hold what its name says.
    #[error("{path} is not valid PEM: {message}")]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The certificate is not an SVID of this mesh.
    #[error("the certificate is unusable")]
    Certificate(#[from] PeerError),
    /// Key and certificate do not fit, or a bundle is not one.
    #[error("the certificate cannot be used for TLS")]
    Tls(#[from] rustls::Error),
    /// A key or request could not be made.
    #[error("cannot make a key")]
    Key(#[from] rcgen::Error),
}

impl Svid {
    /// Puts a chain, its key and a bundle together.
    ///
    /// # Errors
    /// When the leaf is not an SVID of this mesh.
    pub fn new(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Self, IdentityError> {
        let id = peer::peer_id(&chain)?;
        let (not_before, not_after) = peer::validity(&chain)?;
        Ok(Self { id, chain, key, bundle, not_before, not_after, obtained: SystemTime::now() })
    }

    /// Reads `cert.pem`, `key.pem` and `bundle.pem` of a directory.
    ///
    /// # Errors
    /// A file that is missing or holds something else, by name.
    pub fn read_dir(directory: &Path) -> Result<Self, IdentityError> {
        let chain = read_certificates(&directory.join(CERTIFICATE_FILE))?;
        let bundle = read_certificates(&directory.join(BUNDLE_FILE))?;
        let path = directory.join(KEY_FILE);
        let text = read(&path)?;
        let key = PrivateKeyDer::from_pem_slice(&text)
            .map_err(|error| IdentityError::Pem { path, message: error.to_string() })?;
        Self::new(chain, key, bundle)
    }

    /// Writes the three files (0600, each renamed into place; the directory is made 0700), the key
    /// before the certificate, so that a reader never pairs a new certificate with an absent key.
    ///
    /// # Errors
    /// When the directory or a file cannot be written.
    pub fn write_dir(&self, directory: &Path) -> Result<(), IdentityError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| IdentityError::File { verb: "write", path, source }
        };
        make_private_dir(directory).map_err(at(directory))?;
        let files = [
            (KEY_FILE, pem("PRIVATE KEY", [self.key.secret_der()])),
            (BUNDLE_FILE, pem("CERTIFICATE", self.bundle.iter().map(AsRef::as_ref))),
            (CERTIFICATE_FILE, pem("CERTIFICATE", self.chain.iter().map(AsRef::as_ref))),
        ];
        for (name, text) in files {
            let path = directory.join(name);
            write_private(&path, text.as_bytes()).map_err(at(&path))?;
        }
        Ok(())
    }

    /// When to renew: two thirds of the way from issue to expiry, moved by up to a tenth of the
    /// time in either direction by `unit` in `[0, 1)`, so that a fleet does not renew at once.
    pub fn renew_at(&self, unit: f64) -> SystemTime {
        let lifetime = self.not_after.duration_since(self.obtained).unwrap_or_default();
        let jitter = (unit.clamp(0.0, 1.0) - 0.5) * 0.2;
        self.obtained + lifetime.mul_f64(2.0 / 3.0 + jitter)
    }

    /// How long the leaf is still valid; zero when it has expired.
    pub fn remaining(&self, now: SystemTime) -> Duration {
        self.not_after.duration_since(now).unwrap_or_default()
    }
}

impl std::fmt::Debug for Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Svid({})", self.id)
    }
}

/// A new P-256 key and the request for its certificate. The key stays here.
pub struct KeyRequest {
    key: rcgen::KeyPair,
    /// PKCS#10 in DER; it names nobody, for the id never comes from a request.
    pub csr: CertificateSigningRequestDer<'static>,
}

impl KeyRequest {
    /// Makes a key and its request.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    pub fn generate() -> Result<Self, IdentityError> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?;
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        let csr = params.serialize_request(&key)?.der().clone();
        Ok(Self { key, csr })
    }

    /// The identity made of the answer to the request.
    ///
    /// # Errors
    /// When the answer is not an SVID of this mesh, or is for another key.
    pub fn complete(
        self,
        chain: Vec<CertificateDer<'static>>,
        bundle: Vec<CertificateDer<'static>>,
    ) -> Result<Svid, IdentityError> {
        if peer::public_key(&chain)? != self.key.subject_public_key_info() {
            return Err(PeerError::ForeignKey.into());
        }
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()));
        Svid::new(chain, key, bundle)
    }
}

impl std::fmt::Debug for KeyRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyRequest")
    }
}

fn read(path: &Path) -> Result<Vec<u8>, IdentityError> {
    std::fs::read(path).map_err(|source| IdentityError::File { verb: "read", path: path.to_owned(), source })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let refuse = |message: String| IdentityError::Pem { path: path.to_owned(), message };
    let text = read(path)?;
    let certificates: Vec<_> = CertificateDer::pem_slice_iter(&text)
        .collect::<Result<_, _>>()
        .map_err(|error| refuse(error.to_string()))?;
    if certificates.is_empty() { Err(refuse("no certificate in it".to_owned())) } else { Ok(certificates) }
}

fn pem<'a>(label: &str, ders: impl IntoIterator<Item = &'a [u8]>) -> String {
    use base64::Engine;
    let mut text = String::new();
    for der in ders {
        let encoded = base64::engine::general_purpose::STANDARD.encode(der);
        text.push_str(&format!("-----BEGIN {label}-----\n"));
        // RFC 7468 section 2: lines of 64 characters.
        for line in encoded.as_bytes().chunks(64) {
            text.push_str(std::str::from_utf8(line).expect("base64 is ASCII"));
            text.push('\n');
        }
        text.push_str(&format!("-----END {label}-----\n"));
    }
    text
}

/// Makes a directory only its owner can enter; one that exists is left as it is.
fn make_private_dir(directory: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

/// Writes a file only its owner can read: whole or not at all.
fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    // A left-over is removed, not reused: it may be open to others, or lead elsewhere.
    match std::fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}
