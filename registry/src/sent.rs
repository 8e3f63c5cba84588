//! Watch responses as they go over the wire. A change is encoded once, whoever it is sent to: to the
//! far side these are the messages of `discovery.proto`, here the changes in them are bytes.

use std::collections::VecDeque;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use bytes::{BufMut, Bytes, BytesMut};
use outrigger_api::v1;
use outrigger_api::v1::change::Change as Kind;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint};

use crate::state::ServiceState;

/// Earlier forms of a service from which the way to the newest is remembered: while much changes, streams
/// are behind by different steps.
const FORMS: usize = 8;

/// Changes from this size on are not copied for each stream.
const SHARED: usize = 1024;
const UPDATE_TAG: u32 = 2;
const CHANGES_TAG: u32 = 4;

/// A `WatchResponse`.
#[derive(Clone, PartialEq, Message)]
pub struct Response {
    /// First message of the stream.
    #[prost(message, optional, tag = "1")]
    pub welcome: Option<v1::Welcome>,
    /// Any later one.
    #[prost(message, optional, tag = "2")]
    pub update: Option<Update>,
}

/// An `Update`.
#[derive(Clone, PartialEq, Message)]
pub struct Update {
    /// Increases by one with each update of a stream.
    #[prost(uint64, tag = "1")]
    pub nonce: u64,
    /// To be given back at the next connection.
    #[prost(bytes = "bytes", tag = "2")]
    pub cursor: Bytes,
    /// Revision of the store this state is of.
    #[prost(uint64, tag = "3")]
    pub revision: u64,
    /// Each a `Change`.
    #[prost(bytes = "bytes", repeated, tag = "4")]
    pub changes: Vec<Bytes>,
}

impl From<v1::Welcome> for Response {
    fn from(welcome: v1::Welcome) -> Self {
        Self { welcome: Some(welcome), update: None }
    }
}

impl From<Update> for Response {
    fn from(update: Update) -> Self {
        Self { welcome: None, update: Some(update) }
    }
}

impl Response {
    /// The message in a gRPC frame, in pieces: large changes are those that all streams share, so what
    /// is on its way to thousands of sidecars costs memory once.
    pub fn pieces(self) -> VecDeque<Bytes> {
        let length = self.encoded_len();
        let (mut pieces, mut small) = (VecDeque::new(), BytesMut::with_capacity(SHARED.min(length) + 64));
        small.put_u8(0);
        // A message of 4 GiB is beyond what any sidecar would read: it would refuse this one too.
        small.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
        let Self { welcome, update } = self;
        let head = Self { welcome, update: None };
        head.encode(&mut small).expect("a BytesMut grows");
        let Some(update) = update else { return [small.freeze()].into() };
        encode_key(UPDATE_TAG, WireType::LengthDelimited, &mut small);
        encode_varint(update.encoded_len() as u64, &mut small);
        let Update { nonce, cursor, revision, changes } = update;
        let head = Update { nonce, cursor, revision, changes: Vec::new() };
        head.encode(&mut small).expect("a BytesMut grows");
        for change in changes {
            small.reserve(encoded_len_varint(change.len() as u64) + 1);
            encode_key(CHANGES_TAG, WireType::LengthDelimited, &mut small);
            encode_varint(change.len() as u64, &mut small);
            if change.len() < SHARED {
                small.extend_from_slice(&change);
            } else {
                pieces.extend([small.split().freeze(), change]);
            }
        }
        pieces.extend((!small.is_empty()).then(|| small.freeze()));
        pieces
    }
}

/// A change in bytes.
pub fn change(kind: Kind) -> Bytes {
    v1::Change { change: Some(kind), requires: Vec::new() }.encode_to_vec().into()
}

/// What was worked out of one form of a service for the streams that were told of it: the same for
/// all of them. A copy starts without, and it makes no two forms differ.
#[derive(Debug, Default)]
pub struct Memo {
    whole: Mutex<Option<Bytes>>,
    digest: OnceLock<u64>,
    /// The same together with its name, where nothing governs it.
    told: OnceLock<u64>,
    /// What makes it out of earlier forms, the last [`FORMS`] that were asked for: nearly all streams
    /// come from one of a few. Their places are kept from being freed, so that each has its own address.
    after: Mutex<Vec<(Weak<ServiceState>, Option<Bytes>)>>,
}

impl Clone for Memo {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Memo {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Memo {
    /// The whole of it as a change; `make` works it out.
    pub fn whole(&self, make: impl FnOnce() -> v1::Service) -> Bytes {
        let mut whole = self.whole.lock().unwrap_or_else(PoisonError::into_inner);
        whole.get_or_insert_with(|| change(Kind::Service(make()))).clone()
    }

    /// Forgets the large part: there is a newer form, and nobody is told of this one any more.
    pub fn superseded(&self) {
        drop(self.whole.lock().unwrap_or_else(PoisonError::into_inner).take());
    }

    /// What tells it from other forms of the same service; `make` works it out.
    pub fn digest(&self, make: impl FnOnce() -> u64) -> u64 {
        *self.digest.get_or_init(make)
    }

    /// What tells apart what sidecars were told that hear of the service and of nothing that governs it; `make`
    /// works it out.
    pub fn told(&self, make: impl FnOnce() -> u64) -> u64 {
        *self.told.get_or_init(make)
    }

    /// The change that makes it out of `old`, if sidecars hear of any; `make` works it out.
    pub fn after(
        &self,
        old: &Arc<ServiceState>,
        make: impl FnOnce() -> Option<v1::ServiceDelta>,
    ) -> Option<Bytes> {
        let mut after = self.after.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, delta)) = after.iter().find(|(from, _)| from.as_ptr() == Arc::as_ptr(old)) {
            return delta.clone();
        }
        let delta = make().map(|delta| change(Kind::Delta(delta)));
        if after.len() == FORMS {
            after.remove(0);
        }
        after.push((Arc::downgrade(old), delta.clone()));
        delta
    }
}

/// 64 bits that stand for a value, after a restart and at another replica as well: among the few services of
/// a sidecar no two are alike by chance. Another release may have another digest: then everything is sent
/// again once.
pub fn digest(of: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_what_the_contract_says() {
        let welcome = v1::Welcome { protocol_version: 1, resumed: true, ..Default::default() };
        let bytes = Response::from(welcome.clone()).encode_to_vec();
        let framed: Vec<u8> = Response::from(welcome.clone()).pieces().into_iter().flatten().collect();
        assert_eq!(framed[5..], bytes);
        let message = v1::WatchResponse::decode(&*bytes).unwrap().message;
        assert_eq!(message, Some(v1::watch_response::Message::Welcome(welcome)));
        let large = v1::Service { name: "x".repeat(SHARED), ..Default::default() };
        let kinds = [Kind::Unknown("a.b".into()), Kind::Service(large), Kind::Unknown("c.d".into())];
        let update = Update {
            nonce: 3,
            cursor: vec![1, 2].into(),
            revision: 9,
            changes: kinds.iter().cloned().map(change).collect(),
        };
        let bytes = Response::from(update.clone()).encode_to_vec();
        let pieces = Response::from(update).pieces();
        assert_eq!(pieces.len(), 3, "the large one is not copied");
        let framed = pieces.into_iter().flatten().collect::<Vec<_>>();
        assert_eq!((framed[0], &framed[1..5]), (0, &u32::try_from(bytes.len()).unwrap().to_be_bytes()[..]));
        assert_eq!(framed[5..], bytes);
        let changes = kinds.map(|kind| v1::Change { change: Some(kind), requires: vec![] });
        let update = v1::Update { nonce: 3, cursor: vec![1, 2], revision: 9, changes: changes.into() };
        let message = v1::WatchResponse::decode(&*bytes).unwrap().message;
        assert_eq!(message, Some(v1::watch_response::Message::Update(update)));
    }
}
