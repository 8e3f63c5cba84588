//! A backup: everything the store holds, as one file that says what it is and whether it is whole.
//!
//! ```text
//! outrigger-backup 1
//! {"store":"…","revision":42,"created":1790000000,"software":"0.1.0","leases":2,"entries":9}
//! {"lease":"00000000000000ab","ttl_ms":10000}          one line a lease
//! {"key":"ca/root","revision":1,"value":"<base64>"}     one line an entry
//! sha256 <64 hexadecimal digits, of everything before this line>
//! ```
//!
//! The mesh's private key is among the entries. Pure: no file is read or written here.

use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{Context, SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::join::unix;
use crate::model::ROOT_KEY;
use crate::store::{Entry, LeaseId, Revision, Snapshot};

const MAGIC: &str = "outrigger-backup ";
/// Version of the form above.
const FORMAT: &str = "1";
const CHECKSUM: &str = "sha256 ";
/// Size of the pieces a backup is made in.
const CHUNK: usize = 64 << 10;

/// What a backup says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Identity of the store.
    pub store: String,
    /// The revision everything in it was read at.
    pub revision: Revision,
    /// Seconds since 1970.
    pub created: i64,
    /// Release that made it.
    pub software: String,
    /// How many leases it holds.
    pub leases: usize,
    /// How many entries it holds.
    pub entries: usize,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LeaseLine {
    lease: String,
    ttl_ms: u64,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryLine {
    key: String,
    revision: Revision,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lease: Option<String>,
    /// Base64.
    value: String,
}

/// Why a backup cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BackupError {
    /// It is something else.
    #[error("it is no backup of an Outrigger registry")]
    Foreign,
    /// Another version of the form.
    #[error(
        "its format is {0}, this release reads {FORMAT}: use the release that made it, or one that reads both"
    )]
    Format(String),
    /// Its end is missing.
    #[error("it is cut short: its last line, the checksum, is missing; use another copy")]
    CutShort,
    /// It is not what was written.
    #[error("its checksum does not match: it was damaged or changed after it was made; use another copy")]
    Damaged,
    /// It is whole, but makes no sense.
    #[error("line {line} makes no sense ({cause}); it was not made by `outrigger registry backup`")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong with it.
        cause: String,
    },
}

/// The backup's bytes, in pieces of at most 64 KiB.
pub fn encode(snapshot: Snapshot, now: SystemTime) -> impl Iterator<Item = Bytes> + Send + 'static {
    let Snapshot { id, revision, entries, leases } = snapshot;
    let head = Head {
        store: id,
        revision,
        created: unix(now),
        software: env!("CARGO_PKG_VERSION").to_owned(),
        leases: leases.len(),
        entries: entries.len(),
    };
    let start = [format!("{MAGIC}{FORMAT}\n"), line(&head)];
    let leases = leases.into_iter().map(|(lease, ttl)| {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        line(&LeaseLine { lease: lease.to_string(), ttl_ms })
    });
    let entries = entries.into_iter().map(|entry| {
        line(&EntryLine {
            key: entry.key.to_string(),
            revision: entry.revision,
            lease: entry.lease.map(|lease| lease.to_string()),
            value: STANDARD.encode(&entry.value),
        })
    });
    let lines = start.into_iter().chain(leases).chain(entries);
    Chunks { lines, digest: Some(Context::new(&SHA256)), buffer: Vec::new() }
}

fn line(row: &impl Serialize) -> String {
    let mut line = serde_json::to_string(row).expect("rows are plain data with text keys");
    line.push('\n');
    line
}

/// Gathers lines into pieces and ends them with the checksum.
struct Chunks<L> {
    lines: L,
    /// Of every line so far; none once the checksum is in the buffer.
    digest: Option<Context>,
    buffer: Vec<u8>,
}

impl<L: Iterator<Item = String>> Iterator for Chunks<L> {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        while self.buffer.len() < CHUNK
            && let Some(mut digest) = self.digest.take()
        {
            if let Some(line) = self.lines.next() {
                digest.update(line.as_bytes());
                self.buffer.extend_from_slice(line.as_bytes());
                self.digest = Some(digest);
            } else {
                let last = format!("{CHECKSUM}{}\n", hex(digest.finish().as_ref()));
                self.buffer.extend_from_slice(last.as_bytes());
            }
        }
        if self.buffer.is_empty() {
            return None;
        }
        let rest = self.buffer.split_off(self.buffer.len().min(CHUNK));
        Some(std::mem::replace(&mut self.buffer, rest).into())
    }
}

/// Reads a backup; nothing of it is used unless all of it is as it was written.
///
/// # Errors
/// When it is no backup, of another version, incomplete, or not what was written.
pub fn decode(bytes: &[u8]) -> Result<(Head, Snapshot), BackupError> {
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let version = first.strip_prefix(MAGIC.as_bytes()).ok_or(BackupError::Foreign)?;
    if version != FORMAT.as_bytes() {
        let version = String::from_utf8_lossy(&version[..version.len().min(20)]).into_owned();
        return Err(BackupError::Format(version));
    }
    let text = std::str::from_utf8(checked(bytes)?).map_err(|_| BackupError::Damaged)?;
    let mut lines = text.lines().enumerate().skip(1).map(|(at, line)| (at + 1, line));
    let (at, head) = lines.next().unwrap_or((2, ""));
    let head: Head = parse(at, head)?;
    let (mut leases, mut entries) = (Vec::new(), Vec::new());
    for (at, line) in lines {
        let wrong = |cause: &str| BackupError::Line { line: at, cause: cause.to_owned() };
        let lease_id = |text: &str| LeaseId::parse(text).ok_or_else(|| wrong("its lease is no lease"));
        if leases.len() < head.leases {
            let row: LeaseLine = parse(at, line)?;
            leases.push((lease_id(&row.lease)?, Duration::from_millis(row.ttl_ms)));
            continue;
        }
        let row: EntryLine = parse(at, line)?;
        if row.revision > head.revision {
            return Err(wrong("its revision is above the backup's"));
        }
        let value = STANDARD.decode(&row.value).map_err(|_| wrong("its value is not base64"))?;
        let lease = row.lease.as_deref().map(lease_id).transpose()?;
        let key: Arc<str> = row.key.into();
        entries.push(Entry { key, value: value.into(), revision: row.revision, lease });
    }
    let wrong = |cause: &str| BackupError::Line { line: 2, cause: cause.to_owned() };
    if (leases.len(), entries.len()) != (head.leases, head.entries) {
        return Err(wrong("other numbers of leases and entries follow"));
    }
    if !entries.iter().any(|entry| &*entry.key == ROOT_KEY) {
        return Err(wrong("no root is among the entries"));
    }
    let snapshot = Snapshot { id: head.store.clone(), revision: head.revision, entries, leases };
    Ok((head, snapshot))
}

/// Everything before the checksum, which must be its.
fn checked(bytes: &[u8]) -> Result<&[u8], BackupError> {
    let whole = bytes.strip_suffix(b"\n").ok_or(BackupError::CutShort)?;
    let start = whole.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
    let (content, last) = bytes.split_at(start);
    let found = last.strip_prefix(CHECKSUM.as_bytes()).ok_or(BackupError::CutShort)?;
    let expected = hex(digest(&SHA256, content).as_ref());
    if found.trim_ascii_end() == expected.as_bytes() { Ok(content) } else { Err(BackupError::Damaged) }
}

fn parse<'a, T: Deserialize<'a>>(line: usize, text: &'a str) -> Result<T, BackupError> {
    serde_json::from_str(text).map_err(|error| BackupError::Line { line, cause: error.to_string() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(entries: usize, random: &mut fastrand::Rng) -> Snapshot {
        let lease = LeaseId(0xab);
        let mut all = vec![Entry { key: ROOT_KEY.into(), value: "{}".into(), revision: 1, lease: None }];
        all.extend((0..entries).map(|n| {
            let value: Vec<u8> = (0..random.usize(..3000)).map(|_| random.u8(..)).collect();
            let lease = random.bool().then_some(lease);
            Entry {
                key: format!("k/{n}\n\"é").into(),
                value: value.into(),
                revision: random.u64(1..99),
                lease,
            }
        }));
        Snapshot {
            id: "0123".into(),
            revision: 99,
            entries: all,
            leases: vec![(lease, Duration::from_millis(1500))],
        }
    }

    fn bytes(snapshot: &Snapshot) -> Vec<u8> {
        let chunks: Vec<_> = encode(snapshot.clone(), SystemTime::UNIX_EPOCH).collect();
        assert!(chunks.iter().all(|chunk| !chunk.is_empty() && chunk.len() <= CHUNK));
        chunks.concat()
    }

    #[test]
    fn what_is_written_is_read() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        for entries in [0, 1, 50, 500] {
            let snapshot = snapshot(entries, &mut random);
            let (head, read) = decode(&bytes(&snapshot)).unwrap();
            assert_eq!(read, snapshot);
            assert_eq!((head.entries, head.leases, head.revision), (entries + 1, 1, 99));
        }
    }

    #[test]
    fn nothing_but_the_whole_backup_is_accepted() {
        let seed = fastrand::u64(..);
        println!("seed {seed}");
        let mut random = fastrand::Rng::with_seed(seed);
        let good = bytes(&snapshot(3, &mut random));
        assert!(decode(&good).is_ok());
        for length in 0..good.len() {
            assert!(decode(&good[..length]).is_err(), "cut at {length}");
        }
        for _ in 0..2000 {
            let mut bad = good.clone();
            let at = random.usize(..bad.len());
            bad[at] ^= 1 << random.u8(..8);
            assert!(decode(&bad).is_err(), "changed at {at}");
        }
        assert!(decode(&[good.as_slice(), b"x"].concat()).is_err());
        assert!(decode(&[good.as_slice(), good.as_slice()].concat()).is_err());
    }

    #[test]
    fn every_refusal_says_what_is_wrong() {
        let good = bytes(&snapshot(1, &mut fastrand::Rng::with_seed(1)));
        let text = String::from_utf8(good.clone()).unwrap();
        assert_eq!(decode(b"PK\x03\x04").unwrap_err(), BackupError::Foreign);
        assert_eq!(decode(b"").unwrap_err(), BackupError::Foreign);
        let newer = text.replacen("outrigger-backup 1", "outrigger-backup 2", 1);
        assert_eq!(decode(newer.as_bytes()).unwrap_err(), BackupError::Format("2".into()));
        assert_eq!(decode(&good[..good.len() - 80]).unwrap_err(), BackupError::CutShort);
        let changed = text.replacen("0123", "0124", 1);
        assert_eq!(decode(changed.as_bytes()).unwrap_err(), BackupError::Damaged);
        let without_root = Snapshot { entries: Vec::new(), ..snapshot(0, &mut fastrand::Rng::new()) };
        let error = decode(&bytes(&without_root)).unwrap_err();
        assert!(error.to_string().contains("no root"), "{error}");
    }
}
