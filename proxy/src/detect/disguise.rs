//! HTTP that does not want to be taken for it. Where [`super::detect`] asks what a client most likely
//! speaks, this asks what an application could possibly read as HTTP: servers pass over blanks and empty
//! lines, and take any white space for a space.

use super::LIMIT;

/// What the first bytes of an opaque connection could be to a lenient application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disguise {
    /// A request.
    Http,
    /// None.
    None,
    /// It takes more bytes to tell.
    Unclear,
}

/// Looks at all bytes a client has sent so far. A request's first line begins, after blanks, with a word
/// of letters, and its last word begins with `HTTP/`; a line that begins so and does not end counts as
/// one as well. So does the first line of HTTP/2's preface.
///
/// Never [`Disguise::Unclear`] for [`LIMIT`] bytes or more. Linear in the bytes given.
pub fn disguise(bytes: &[u8]) -> Disguise {
    let full = bytes.len() >= LIMIT;
    let begun = &bytes[bytes.iter().take_while(|&&byte| is_blank(byte)).count()..];
    let word = begun.iter().take_while(|&&byte| is_of_method(byte)).count();
    match begun.get(word) {
        // Nobody else begins with so many blanks.
        None if full => return if word == 0 { Disguise::Http } else { Disguise::None },
        None => return Disguise::Unclear,
        Some(&byte) if word == 0 || !is_blank(byte) => return Disguise::None,
        Some(_) => {}
    }
    let rest = &begun[word..];
    let Some(end) = rest.iter().position(|&byte| matches!(byte, b'\r' | b'\n')) else {
        return if full { Disguise::Http } else { Disguise::Unclear };
    };
    let last = rest[..end].rsplit(|&byte| is_blank(byte)).find(|word| !word.is_empty());
    let version = last.and_then(|last| last.get(..5));
    if version.is_some_and(|version| version.eq_ignore_ascii_case(b"HTTP/")) {
        Disguise::Http
    } else {
        Disguise::None
    }
}

/// Letters, and what some methods join them with.
fn is_of_method(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || matches!(byte, b'-' | b'_')
}

/// What some server passes over or takes for a space.
fn is_blank(byte: u8) -> bool {
    byte.is_ascii_whitespace() || matches!(byte, 0x0b | 0x1c..=0x1f | 0x85 | 0xa0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_an_application_could_read_as_a_request_is_one() {
        let target = ["GET /", &"x".repeat(LIMIT)].concat();
        for http in [
            "GET / HTTP/1.1\r\n",
            "\n\n\n\r\r\nGET / HTTP/1.1\r\n",
            "  get\t/\x0bhttp/1.0\n",
            "BREW /\x01 HTTP/1.1\r\n",
            "M-SEARCH * HTTP/1.1\rHost: me",
            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            &target,
            &"\n".repeat(LIMIT),
        ] {
            assert_eq!(disguise(http.as_bytes()), Disguise::Http, "{http:?}");
        }
    }

    #[test]
    fn other_protocols_are_none() {
        let long = "x".repeat(LIMIT);
        for other in [
            "EHLO mail.shop\r\n",
            "*1\r\n$4\r\nPING\r\n",
            "PING\r\nHTTP/",
            "<34>1 - GET / HTTP/1.1\n",
            "{\"line\": \"GET / HTTP/1.1\n",
            "10.0.0.1 - GET / HTTP/1.1\n",
            "CONNECT {\"verbose\":false}\r\n",
            "OPTIONS rtsp://cam/1 RTSP/1.0\r\n",
            "\0\0\0\x08\x04\x52\x16\x2f",
            "\x16\x03\x01\x02\0\x01",
            &long,
        ] {
            assert_eq!(disguise(other.as_bytes()), Disguise::None, "{other:?}");
        }
        for unclear in ["", "\r\n", "GE", "GET ", "GET / HTTP", "PRI * HTTP/2.0"] {
            assert_eq!(disguise(unclear.as_bytes()), Disguise::Unclear, "{unclear:?}");
        }
    }

    #[test]
    fn a_verdict_does_not_change_with_more_bytes() {
        let mut rng = fastrand::Rng::with_seed(11);
        for _ in 0..3000 {
            let alphabet = b"GET / HTTP/1.\r\n\0x";
            let bytes: Vec<u8> = (0..40).map(|_| alphabet[rng.usize(..alphabet.len())]).collect();
            let mut last = Disguise::Unclear;
            for length in 0..=bytes.len() {
                let now = disguise(&bytes[..length]);
                assert!(last == Disguise::Unclear || now == last, "{bytes:?} at {length}");
                last = now;
            }
        }
    }
}
