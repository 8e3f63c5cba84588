//! Flow control of HTTP/2: how much may be on its way that nobody has read.

/// Streams a peer may have open on one connection.
pub const STREAMS: u32 = 250;
/// Unread bytes of one stream: bodies of the usual size pass without waiting for an update.
pub const STREAM: u32 = 256 << 10;
/// Unread bytes of one connection: enough for every stream to be full, so that those whose bodies nobody
/// reads never take the room of the others. It is memory only where that many do stand still.
pub const CONNECTION: u32 = STREAMS * STREAM;
/// Largest frame between sidecars: with its head of 9 bytes it fills four TLS records of 16 KiB. One byte
/// more, as with frames of 16 KiB, costs a record of its own.
pub const FRAME: u32 = (64 << 10) - 9;
/// Largest frame elsewhere: what every peer of HTTP/2 may send (RFC 9113 section 6.5.2).
pub const SMALL_FRAME: u32 = 16 << 10;
/// What a head may grow by on its way to another sidecar, in bytes: the mesh's own fields, and the 32 that
/// HTTP/2 counts for each field (RFC 9113 section 6.5.2) where HTTP/1, which has 100 at most, counts none.
/// What one sidecar has let in the other must not refuse.
pub const HEAD_GROWTH: usize = 8 << 10;
