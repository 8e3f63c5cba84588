//! What a client speaks, told from its first bytes. Pure: bytes in, a verdict out, and the same
//! verdict however the bytes were cut into reads.
//!
//! Only what is certain counts as HTTP. Protocols of lines look like it at first (`get key`,
//! `EHLO host`), so a request line must name its version before it is one; what turns out to be
//! something else is opaque, and then carried as it comes.

mod disguise;
mod http1;
mod tls;

pub use disguise::{Disguise, disguise};
pub use tls::ServerName;

/// Bytes looked at, at most: what is not known by then is decided without more. A TLS hello with
/// post-quantum key shares takes about 2 KiB.
pub const LIMIT: usize = 16 << 10;

/// The first bytes of HTTP/2 with prior knowledge (RFC 9113 section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// A request line of HTTP/1.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// A TLS hello, with the host it names, if it names one.
    Tls(Option<ServerName>),
    /// Something else.
    Opaque,
    /// It takes more bytes to tell.
    More {
        /// What is there can hardly be anything but HTTP or TLS: worth waiting for the rest. Else it is
        /// as good a beginning of any other protocol, whose client may be waiting for an answer.
        likely: bool,
    },
}

/// Looks at all bytes a client has sent so far.
///
/// Never [`Verdict::More`] for [`LIMIT`] bytes or more. Once it is another verdict, more bytes do not
/// change it.
/// Linear in the bytes given; allocates for a host name alone.
pub fn detect(bytes: &[u8]) -> Verdict {
    let verdict = match bytes.first() {
        None => Verdict::More { likely: false },
        Some(&tls::HANDSHAKE) => tls::detect(bytes),
        Some(_) if PREFACE.starts_with(bytes) && bytes.len() < PREFACE.len() => {
            Verdict::More { likely: true }
        }
        Some(_) if bytes.starts_with(PREFACE) => Verdict::Http2,
        Some(_) => http1::detect(bytes),
    };
    match verdict {
        Verdict::More { .. } if bytes.len() >= LIMIT => Verdict::Opaque,
        verdict => verdict,
    }
}

#[cfg(test)]
mod tests;
