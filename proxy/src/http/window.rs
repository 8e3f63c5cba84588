//! Flow control of HTTP/2: how much may be on its way that nobody has read.

/// Streams a peer may have open on one connection.
pub const STREAMS: u32 = 250;
/// Unread bytes of one stream: bodies of the usual size pass without waiting for an update.
pub const STREAM: u32 = 256 << 10;
/// Unread bytes of one connection: enough for every stream to be full, so that those whose bodies nobody
/// reads never take the room of the others. It is memory only where that many do stand still.
pub const CONNECTION: u32 = STREAMS * STREAM;
