//! A request line of HTTP/1: `method SP target SP HTTP/x.y` (RFC 9112 section 3).

use super::Verdict;

/// Methods nearly all requests have (RFC 9110 section 9.3, RFC 5789).
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];
/// Longest method. The registry of methods has none above 17 bytes.
const METHOD: usize = 32;
/// A target this long without an end is one of HTTP: no line of another protocol that begins like a
/// request is as long.
const TARGET: usize = 2 << 10;
/// Empty lines before the request line that are passed over (RFC 9112 section 2.2).
const EMPTY_LINES: usize = 2;

/// Looks at the bytes of a client that begins neither TLS nor HTTP/2.
pub(super) fn detect(bytes: &[u8]) -> Verdict {
    let Some(line) = after_empty_lines(bytes) else { return Verdict::Opaque };
    let Some(space) = line.iter().take(METHOD + 1).position(|&byte| !is_token(byte)) else {
        let likely = !line.is_empty() && METHODS.iter().any(|method| method.as_bytes().starts_with(line));
        return if line.len() <= METHOD { Verdict::More { likely } } else { Verdict::Opaque };
    };
    if space == 0 || line[space] != b' ' {
        // A CR alone: the rest of an empty line may come.
        let empty_line = line == b"\r" && bytes.len() <= 2 * EMPTY_LINES;
        return if empty_line { Verdict::More { likely: false } } else { Verdict::Opaque };
    }
    let (method, rest) = (&line[..space], &line[space + 1..]);
    let end = rest.iter().position(|&byte| byte == b'\n');
    let line = &rest[..end.unwrap_or(rest.len())];
    if !line.iter().all(|&byte| may_be_in_line(byte)) {
        return Verdict::Opaque;
    }
    match end {
        Some(_) if names_version(line) => Verdict::Http1,
        Some(_) => Verdict::Opaque,
        None if line.len() >= TARGET => Verdict::Http1,
        None => {
            let known = METHODS.iter().any(|known| known.as_bytes() == method);
            Verdict::More { likely: known || matches!(line.first(), Some(b'/' | b'*')) }
        }
    }
}

/// The bytes after the empty lines that a client may send first; `None`: there are too many.
fn after_empty_lines(mut bytes: &[u8]) -> Option<&[u8]> {
    for _ in 0..=EMPTY_LINES {
        bytes = match bytes {
            [b'\r', b'\n', rest @ ..] | [b'\n', rest @ ..] => rest,
            _ => return Some(bytes),
        };
    }
    None
}

/// Whether what follows the method ends in a version. Any version: that it is one we do not speak is
/// for the HTTP server to say.
fn names_version(rest: &[u8]) -> bool {
    let rest = rest.strip_suffix(b"\r").unwrap_or(rest);
    let last = rest.rsplit(|&byte| byte == b' ').find(|word| !word.is_empty());
    // A target and a version: at least two words.
    last.is_some_and(|last| last.starts_with(b"HTTP/") && last.len() < rest.len())
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Control bytes end the hope for a request line. Bytes above ASCII do not: some clients send them in
/// targets, and what is wrong with that is for the HTTP server to say.
fn may_be_in_line(byte: u8) -> bool {
    byte >= b' ' && byte != 0x7f || matches!(byte, b'\r' | b'\t')
}
