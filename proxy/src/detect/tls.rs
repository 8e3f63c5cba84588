//! A TLS hello (RFC 8446 sections 4.1.2 and 5.1), and the host its `server_name` names (RFC 6066
//! section 3). Read, never answered: the application's TLS is not ours to end.

use super::{LIMIT, Verdict};

/// A host as a TLS hello names it: lower case, without a trailing dot.
pub type ServerName = Box<str>;

/// Content type of a handshake record.
pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Largest fragment of a plaintext record (RFC 8446 section 5.1).
const RECORD: usize = 1 << 14;
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

/// Looks at bytes that begin with [`HANDSHAKE`].
///
/// A hello that is longer than [`LIMIT`] is one without a name: it could only be told later.
pub(super) fn detect(bytes: &[u8]) -> Verdict {
    // The version of a record is 3.x for every version there is.
    if bytes.get(1).is_some_and(|&major| major != 3) || bytes.get(2).is_some_and(|&minor| minor > 4) {
        return Verdict::Opaque;
    }
    match hello(bytes) {
        Hello::Whole(message) => Verdict::Tls(server_name(&message)),
        Hello::Cut if bytes.len() >= LIMIT => Verdict::Tls(None),
        Hello::Cut => Verdict::More { likely: true },
        Hello::TooLong => Verdict::Tls(None),
        Hello::Other => Verdict::Opaque,
    }
}

enum Hello {
    /// Its body, after type and length, put together from its records.
    Whole(Vec<u8>),
    /// Not all of it is there.
    Cut,
    /// It cannot end within the limit.
    TooLong,
    /// It is none.
    Other,
}

/// Puts the handshake message together: one may be cut into records anywhere (RFC 8446 section 5.1).
fn hello(mut bytes: &[u8]) -> Hello {
    let mut message = Vec::new();
    loop {
        let [kind, major, _, high, low, rest @ ..] = bytes else {
            return match bytes {
                [kind, ..] if *kind != HANDSHAKE => Hello::Other,
                _ => Hello::Cut,
            };
        };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if *kind != HANDSHAKE || *major != 3 || length == 0 || length > RECORD {
            return Hello::Other;
        }
        let (fragment, after) = rest.split_at(length.min(rest.len()));
        message.extend_from_slice(fragment);
        match *message {
            [kind, ..] if kind != CLIENT_HELLO => return Hello::Other,
            [_, a, b, c, ..] => {
                let whole = 4 + usize::from(a) * 65536 + usize::from(u16::from_be_bytes([b, c]));
                if whole > LIMIT {
                    return Hello::TooLong;
                }
                if message.len() >= whole {
                    message.truncate(whole);
                    message.drain(..4);
                    return Hello::Whole(message);
                }
            }
            _ => {}
        }
        if fragment.len() < length {
            return Hello::Cut;
        }
        bytes = after;
    }
}

/// The host that a hello's body names. `None` where it names none, or nonsense.
fn server_name(body: &[u8]) -> Option<ServerName> {
    let mut body = Reader(body);
    body.take(2 + 32)?; // version and random
    body.vector_u8()?; // session id
    body.vector_u16()?; // cipher suites
    body.vector_u8()?; // compression methods
    let mut extensions = Reader(body.vector_u16()?);
    loop {
        let (kind, content) = (extensions.u16()?, extensions.vector_u16()?);
        if kind == SERVER_NAME {
            let mut names = Reader(Reader(content).vector_u16()?);
            // One name of each type at most, and there is one type.
            let (kind, name) = (names.take(1)?, names.vector_u16()?);
            return if kind == [HOST_NAME] { host(name) } else { None };
        }
    }
}

fn host(name: &[u8]) -> Option<ServerName> {
    let text = std::str::from_utf8(name).ok()?;
    let text = text.strip_suffix('.').unwrap_or(text);
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    (plain && (1..=253).contains(&text.len())).then(|| text.to_ascii_lowercase().into_boxed_str())
}

/// Takes parts off the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (part, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(part)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn vector_u8(&mut self) -> Option<&'a [u8]> {
        let length = self.take(1)?[0];
        self.take(length.into())
    }

    fn vector_u16(&mut self) -> Option<&'a [u8]> {
        let length = self.u16()?;
        self.take(length.into())
    }
}
