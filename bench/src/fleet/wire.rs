//! What a lean client needs of gRPC: frames, and messages with no more in them than is looked at.
//! Unknown fields are skipped, so these are the contract's messages to the registry.

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

const HEADER: usize = 5;
/// As the real sidecar's limit.
const MAX_MESSAGE: usize = 64 << 20;

/// Returns a message in a gRPC frame.
pub(super) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut bytes = BytesMut::with_capacity(HEADER + length);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).expect("a request is small"));
    message.encode(&mut bytes).expect("a BytesMut grows");
    bytes.freeze()
}

/// Puts frames together again.
#[derive(Debug, Default)]
pub(super) struct Frames(BytesMut);

impl Frames {
    /// Adds what was received.
    pub(super) fn add(&mut self, bytes: &Bytes) {
        self.0.extend_from_slice(bytes);
    }

    /// Returns the next whole message, if there is one.
    ///
    /// # Errors
    /// A frame that is compressed or too long; a message that is none.
    pub(super) fn next<M: Message + Default>(&mut self) -> anyhow::Result<Option<M>> {
        let Some((header, _)) = self.0.split_first_chunk::<HEADER>() else { return Ok(None) };
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        anyhow::ensure!(header[0] == 0 && length <= MAX_MESSAGE, "not a frame this client asked for");
        if self.0.len() < HEADER + length {
            return Ok(None);
        }
        let message = self.0.split_to(HEADER + length);
        let message = M::decode(&message[HEADER..])?;
        // Ten thousand of these exist: an empty one keeps no memory.
        if self.0.is_empty() {
            self.0 = BytesMut::new();
        }
        Ok(Some(message))
    }
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct WatchResponse {
    #[prost(oneof = "Told", tags = "1, 2")]
    pub(super) message: Option<Told>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Told {
    #[prost(message, tag = "1")]
    Welcome(Welcome),
    #[prost(message, tag = "2")]
    Update(Update),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Welcome {
    #[prost(bool, tag = "4")]
    pub(super) resumed: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Update {
    #[prost(uint64, tag = "1")]
    pub(super) nonce: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) cursor: Vec<u8>,
    #[prost(message, repeated, tag = "4")]
    pub(super) changes: Vec<Change>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Change {
    #[prost(oneof = "Kind", tags = "1, 2, 3")]
    pub(super) change: Option<Kind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
pub(super) enum Kind {
    #[prost(message, tag = "1")]
    Service(Service),
    #[prost(message, tag = "2")]
    Delta(Delta),
    #[prost(string, tag = "3")]
    Unknown(String),
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Service {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "3")]
    pub(super) endpoints: Vec<Endpoint>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Delta {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, repeated, tag = "2")]
    pub(super) upsert: Vec<Endpoint>,
    #[prost(message, repeated, tag = "3")]
    pub(super) remove: Vec<Key>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Endpoint {
    #[prost(string, tag = "1")]
    pub(super) workload: String,
    #[prost(bool, tag = "7")]
    pub(super) healthy: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Key {
    #[prost(string, tag = "1")]
    pub(super) workload: String,
}

#[cfg(test)]
mod tests {
    use outrigger_api::v1;

    use super::*;

    #[test]
    fn the_contracts_messages_are_read_in_whatever_pieces_they_come() {
        let endpoint = v1::Endpoint { workload: "w7".into(), healthy: true, ..Default::default() };
        let service = v1::Service { name: "svc1.ns0".into(), endpoints: vec![endpoint], ports: vec![] };
        let change = v1::Change { change: Some(v1::change::Change::Service(service)), requires: vec![] };
        let update = v1::Update { nonce: 3, cursor: vec![1, 2], revision: 9, changes: vec![change] };
        let message = Some(v1::watch_response::Message::Update(update));
        let bytes = frame(&v1::WatchResponse { message });
        let mut frames = Frames::default();
        for byte in bytes.chunks(1) {
            assert!(frames.next::<WatchResponse>().unwrap().is_none());
            frames.add(&Bytes::copy_from_slice(byte));
        }
        let Some(Told::Update(update)) = frames.next::<WatchResponse>().unwrap().unwrap().message else {
            panic!("an update");
        };
        let Some(Kind::Service(service)) = &update.changes[0].change else { panic!("a service") };
        assert_eq!((update.nonce, service.name.as_str(), service.endpoints.len()), (3, "svc1.ns0", 1));
        assert!(service.endpoints[0].healthy && service.endpoints[0].workload == "w7");
    }
}
