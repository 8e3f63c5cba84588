//! What goes wrong: [`StartError`] stops the registry, [`RequestError`] answers one caller. Neither
//! ever holds a secret.

use std::path::PathBuf;

use outrigger_common::config::ConfigError;
use outrigger_common::listen::ListenError;
use outrigger_common::mtls::IdentityError;
use tonic::{Code, Status};

use crate::model::BadRow;
use crate::store::StoreError;
use crate::store::redb::OpenError;

/// Why the registry does not start, or does not go on. The text names the place and the remedy.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The configuration is refused.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A port is not to be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The data directory is not usable.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store does not answer.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store holds a row that makes no sense.
    #[error(transparent)]
    Row(#[from] BadRow),
    /// The mesh's root cannot be used.
    #[error(
        "the root in {place} cannot be used ({cause}); restore a backup into an empty data directory (`outrigger registry restore`)"
    )]
    Root {
        /// The data directory.
        place: PathBuf,
        /// What is wrong.
        cause: String,
    },
    /// The data directory belongs to another trust domain.
    #[error(
        "the root in {place} is of trust domain {stored}, but trust_domain is {configured}: set trust_domain to {stored}, or data_dir to another directory"
    )]
    TrustDomain {
        /// The data directory.
        place: PathBuf,
        /// Trust domain of the root.
        stored: String,
        /// Trust domain configured.
        configured: String,
    },
    /// A certificate of the registry's own cannot be made.
    #[error("cannot make the registry's own certificate")]
    Certificate(#[from] CaError),
    /// The administrator's files cannot be written, or TLS cannot be set up.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The store's thread ended while the registry served.
    #[error(
        "the store of {place} stopped by a fault of the registry's own, named in the log; start it again: everything answered as written is there"
    )]
    StoreEnded {
        /// The data directory.
        place: PathBuf,
    },
    /// The process may not do what it must.
    #[error("cannot start")]
    System(#[from] std::io::Error),
}

/// Why a certificate cannot be issued.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The request is not PKCS#10, or its signature is not that of its key.
    #[error("the certificate request is not a PKCS#10 request signed by its own key")]
    Request,
    /// Another kind of key.
    #[error("the certificate request holds a key that is not P-256; use an ECDSA P-256 key")]
    KeyKind,
    /// The certificate cannot be made.
    #[error("cannot sign the certificate")]
    Sign(#[from] rcgen::Error),
}

/// Why a request is refused.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The caller has not proven who it is.
    #[error("{0}")]
    Unauthenticated(String),
    /// The caller may not.
    #[error("{0}")]
    Denied(String),
    /// What it names does not exist.
    #[error("{0}")]
    NotFound(String),
    /// It contradicts what is there.
    #[error("{0}")]
    Contradiction(String),
    /// The certificate is refused or cannot be made.
    #[error(transparent)]
    Certificate(#[from] CaError),
    /// The store refused.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store holds a row that makes no sense.
    #[error(transparent)]
    Row(#[from] BadRow),
}

impl RequestError {
    fn code(&self) -> Code {
        match self {
            Self::Invalid(_) | Self::Certificate(CaError::Request | CaError::KeyKind) => {
                Code::InvalidArgument
            }
            Self::Unauthenticated(_) => Code::Unauthenticated,
            Self::Denied(_) => Code::PermissionDenied,
            Self::NotFound(_) | Self::Store(StoreError::LeaseGone(_)) => Code::NotFound,
            Self::Contradiction(_) => Code::FailedPrecondition,
            Self::Store(StoreError::Conflict { .. }) => Code::Aborted,
            Self::Store(
                StoreError::Unavailable { .. } | StoreError::Compacted { .. } | StoreError::Closed,
            ) => Code::Unavailable,
            Self::Certificate(CaError::Sign(_)) | Self::Row(_) => Code::Internal,
        }
    }
}

impl From<RequestError> for Status {
    fn from(error: RequestError) -> Self {
        Self::new(error.code(), outrigger_common::telemetry::chain(&error))
    }
}
