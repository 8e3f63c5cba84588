//! The form of the files. Pure.
//!
//! A file is 8 bytes that name its kind, the format version (4 bytes, big endian), the SHA-256 of all
//! the rest, and a body of protobuf. This head is the same in every version, so that a newer file is
//! told from a damaged one.

use std::time::{Duration, SystemTime};

use outrigger_api::v1;
use outrigger_common::mtls::{IdentityError, Svid, sha256};
use prost::Message;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

/// Version of the bodies this release writes.
pub const FORMAT: u32 = 1;
const HEAD: usize = 8 + 4 + 32;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Key, chain and bundle.
    Identity,
    /// What the registry told last.
    Snapshot,
}

impl Kind {
    const fn magic(self) -> &'static [u8; 8] {
        match self {
            Self::Identity => b"outr-idy",
            Self::Snapshot => b"outr-snp",
        }
    }

    /// The file's name in the state directory.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Snapshot => "snapshot",
        }
    }
}

/// Why a file cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A later release wrote it.
    #[error("it is of format {0}, and this release knows format {FORMAT}")]
    Newer(u32),
    /// It is not what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

fn damaged(what: &dyn std::fmt::Display) -> Unusable {
    Unusable::Damaged(format!("{what}"))
}

/// A whole file of a body.
pub fn seal(kind: Kind, body: &[u8]) -> Vec<u8> {
    sealed_as(kind, FORMAT, body)
}

fn sealed_as(kind: Kind, format: u32, body: &[u8]) -> Vec<u8> {
    let format = format.to_be_bytes();
    let sum = sha256(&[kind.magic(), &format, body]);
    [kind.magic().as_slice(), &format, &sum, body].concat()
}

/// The body of a file.
///
/// # Errors
/// When it is of another kind, of a newer format, or not as it was written.
pub fn open(kind: Kind, file: &[u8]) -> Result<&[u8], Unusable> {
    let (head, body) = file.split_at_checked(HEAD).ok_or_else(|| damaged(&"it is cut short"))?;
    let (magic, rest) = head.split_at(8);
    let (format, sum) = rest.split_at(4);
    if magic != kind.magic() {
        return Err(damaged(&format_args!("it is no {}", kind.name())));
    }
    if sha256(&[magic, format, body]) != sum {
        return Err(damaged(&"its checksum does not fit"));
    }
    match format.try_into().map_or(0, u32::from_be_bytes) {
        FORMAT => Ok(body),
        newer if newer > FORMAT => Err(Unusable::Newer(newer)),
        other => Err(damaged(&format_args!("there is no format {other}"))),
    }
}

/// An identity as it is kept.
#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct StoredIdentity {
    #[prost(bytes = "vec", repeated, tag = "1")]
    chain: Vec<Vec<u8>>,
    /// PKCS#8.
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bytes = "vec", repeated, tag = "3")]
    bundle: Vec<Vec<u8>>,
    /// Milliseconds since 1970.
    #[prost(uint64, tag = "4")]
    obtained: u64,
    /// Id of the token that began it.
    #[prost(string, tag = "5")]
    token: String,
}

impl std::fmt::Debug for StoredIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoredIdentity")
    }
}

/// An identity read from disk.
#[derive(Debug)]
pub struct SavedIdentity {
    /// The identity; not checked for its time.
    pub svid: Svid,
    /// Id of the token it was first had for.
    pub token: String,
}

/// The file of an identity that was first had for the token named.
pub fn encode_identity(svid: &Svid, token: &str) -> Vec<u8> {
    let obtained = svid.obtained.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let stored = StoredIdentity {
        chain: svid.chain.iter().map(|der| der.to_vec()).collect(),
        key: svid.key.secret_der().to_vec(),
        bundle: svid.bundle.iter().map(|der| der.to_vec()).collect(),
        obtained: u64::try_from(obtained.as_millis()).unwrap_or(u64::MAX),
        token: token.to_owned(),
    };
    seal(Kind::Identity, &stored.encode_to_vec())
}

/// Reads such a file.
///
/// # Errors
/// As [`open`], and when there is no identity of a mesh in it.
pub fn decode_identity(file: &[u8]) -> Result<SavedIdentity, Unusable> {
    let stored = StoredIdentity::decode(open(Kind::Identity, file)?).map_err(|error| damaged(&error))?;
    let der = |list: Vec<Vec<u8>>| list.into_iter().map(Into::into).collect();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(stored.key));
    let unusable = |error: IdentityError| damaged(&outrigger_common::telemetry::chain(&error));
    let mut svid = Svid::new(der(stored.chain), key, der(stored.bundle)).map_err(unusable)?;
    svid.obtained = SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_millis(stored.obtained))
        .ok_or_else(|| damaged(&"its time is none"))?;
    Ok(SavedIdentity { svid, token: stored.token })
}

/// What goes before the changes in a snapshot.
#[derive(Clone, PartialEq, Message)]
pub struct Head {
    /// Identity of the registry's store; empty: not known.
    #[prost(string, tag = "1")]
    pub store: String,
    /// Where the registry goes on from; empty: it must tell everything.
    #[prost(bytes = "vec", tag = "2")]
    pub cursor: Vec<u8>,
    /// Revision of the store.
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    /// Release that wrote it: another one may have understood less.
    #[prost(string, tag = "4")]
    pub software: String,
    /// Whose view it is.
    #[prost(string, tag = "5")]
    pub identity: String,
    /// Services whose policies were asked for, in order.
    #[prost(string, repeated, tag = "6")]
    pub serves: Vec<String>,
}

/// The file of a snapshot.
pub fn encode_snapshot<'a>(head: &Head, changes: impl IntoIterator<Item = &'a v1::Change>) -> Vec<u8> {
    let mut body = head.encode_length_delimited_to_vec();
    for change in changes {
        change.encode_length_delimited(&mut body).expect("a vector grows");
    }
    seal(Kind::Snapshot, &body)
}

/// Reads such a file.
///
/// # Errors
/// As [`open`], and when the body is not one.
pub fn decode_snapshot(file: &[u8]) -> Result<(Head, Vec<v1::Change>), Unusable> {
    let mut body = open(Kind::Snapshot, file)?;
    let head = Head::decode_length_delimited(&mut body).map_err(|error| damaged(&error))?;
    let mut changes = Vec::new();
    while !body.is_empty() {
        changes.push(v1::Change::decode_length_delimited(&mut body).map_err(|error| damaged(&error))?);
    }
    Ok((head, changes))
}

#[cfg(test)]
mod tests;
