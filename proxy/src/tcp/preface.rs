//! What the sidecars say to each other before the first opaque byte. Pure.
//!
//! The client's sidecar sends a hello: `version(1) length(2) fields`, each field `type(1) length(1)
//! value`. The server's answers: `version(1) verdict(1) length(1) reason`. Numbers are big-endian. A
//! field of an unknown type is passed over, so that later releases can say more; a change that cannot
//! be passed over is another name in ALPN.

use crate::reason::Reason;

/// The name of this exchange in ALPN (RFC 7301).
pub const ALPN: &[u8] = b"outrigger-tcp/1";
/// Largest hello, in bytes after version and length.
pub const LIMIT: usize = 1024;
/// Bytes of a hello before its fields.
pub const HELLO_HEAD: usize = 3;
/// Bytes of an answer before its reason.
pub const ANSWER_HEAD: usize = 3;

const VERSION: u8 = 1;
const SOURCE: u8 = 1;

/// What the client's sidecar says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hello {
    /// The calling service, `name.namespace`; empty if it says none.
    pub source: String,
}

/// What the server's sidecar answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// The application has accepted: all that follows is its.
    Connected,
    /// It is refused.
    Refused {
        /// Why, if it is a reason that this release knows.
        reason: Option<Reason>,
        /// The trouble is this endpoint's: another may do better. Nothing reached the application
        /// either way.
        elsewhere: bool,
    },
}

/// What was said is none of this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the other sidecar's words make no sense: {0}")]
pub struct Malformed(&'static str);

impl Hello {
    /// As it is sent. A source that does not fit is left out.
    pub fn encode(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        if let Ok(length @ 1..) = u8::try_from(self.source.len()) {
            fields.extend([SOURCE, length]);
            fields.extend_from_slice(self.source.as_bytes());
        }
        let length = u16::try_from(fields.len()).expect("one field of at most 255 bytes");
        [&[VERSION], length.to_be_bytes().as_slice(), &fields].concat()
    }

    /// How many bytes of fields follow a head.
    ///
    /// # Errors
    /// Another version, or too many.
    pub fn length(head: [u8; HELLO_HEAD]) -> Result<usize, Malformed> {
        let [version, high, low] = head;
        if version != VERSION {
            return Err(Malformed("its version is unknown"));
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        if length > LIMIT { Err(Malformed("it is too long")) } else { Ok(length) }
    }

    /// Reads the fields.
    ///
    /// # Errors
    /// A field that is cut off, or is no text.
    pub fn decode(mut fields: &[u8]) -> Result<Self, Malformed> {
        let mut hello = Self::default();
        while let [kind, length, rest @ ..] = fields {
            let (value, rest) =
                rest.split_at_checked((*length).into()).ok_or(Malformed("a field is cut off"))?;
            if *kind == SOURCE {
                let text = std::str::from_utf8(value).map_err(|_| Malformed("the source is no text"))?;
                text.clone_into(&mut hello.source);
            }
            fields = rest;
        }
        if fields.is_empty() { Ok(hello) } else { Err(Malformed("a field is cut off")) }
    }
}

impl Answer {
    /// As it is sent.
    pub fn encode(self) -> Vec<u8> {
        let (verdict, reason) = match self {
            Self::Connected => (0, ""),
            Self::Refused { reason, elsewhere } => {
                (if elsewhere { 1 } else { 2 }, reason.map_or("", Reason::as_str))
            }
        };
        let length = u8::try_from(reason.len()).expect("reasons are short");
        [&[VERSION, verdict, length], reason.as_bytes()].concat()
    }

    /// How many bytes of reason follow a head.
    ///
    /// # Errors
    /// Another version.
    pub fn length(head: [u8; ANSWER_HEAD]) -> Result<usize, Malformed> {
        if head[0] == VERSION { Ok(head[2].into()) } else { Err(Malformed("its version is unknown")) }
    }

    /// Reads head and reason.
    ///
    /// # Errors
    /// A verdict that is none.
    pub fn decode(head: [u8; ANSWER_HEAD], reason: &[u8]) -> Result<Self, Malformed> {
        let refused = |elsewhere| Self::Refused { reason: Reason::parse(reason), elsewhere };
        match head[1] {
            0 => Ok(Self::Connected),
            1 => Ok(refused(true)),
            2 => Ok(refused(false)),
            _ => Err(Malformed("its verdict is unknown")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(bytes: &[u8]) -> Result<Hello, Malformed> {
        let (head, fields) = bytes.split_first_chunk().unwrap();
        assert_eq!(Hello::length(*head)?, fields.len());
        Hello::decode(fields)
    }

    #[test]
    fn a_hello_arrives_as_it_was_sent() {
        for source in ["", "web.shop", &"x".repeat(255)] {
            let said = Hello { source: source.to_owned() };
            assert_eq!(hello(&said.encode()), Ok(said));
        }
        let too_long = Hello { source: "x".repeat(256) };
        assert_eq!(hello(&too_long.encode()), Ok(Hello::default()));
    }

    #[test]
    fn an_answer_arrives_as_it_was_sent() {
        let reasons = Reason::ALL.into_iter().map(Some).chain([None]);
        let refused =
            reasons.flat_map(|reason| [true, false].map(|elsewhere| Answer::Refused { reason, elsewhere }));
        for said in refused.chain([Answer::Connected]) {
            let bytes = said.encode();
            let (head, reason) = bytes.split_first_chunk().unwrap();
            assert_eq!(Answer::length(*head), Ok(reason.len()));
            assert_eq!(Answer::decode(*head, reason), Ok(said));
        }
    }

    #[test]
    fn fields_of_later_releases_are_passed_over() {
        let bytes = [&[1, 0, 16, 9, 3, 1, 2, 3, 1, 8], b"web.shop".as_slice(), &[7]].concat();
        assert_eq!(hello(&bytes), Err(Malformed("a field is cut off")));
        let bytes = [&[1, 0, 17, 9, 3, 1, 2, 3, 1, 8], b"web.shop".as_slice(), &[7, 0]].concat();
        assert_eq!(hello(&bytes).unwrap().source, "web.shop");
        let later = Answer::decode([1, 1, 5], b"later");
        assert_eq!(later, Ok(Answer::Refused { reason: None, elsewhere: true }));
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Hello::length([2, 0, 0]).is_err(), "a version to come");
        assert!(Hello::length([1, 4, 1]).is_err(), "too long");
        assert_eq!(Hello::length([1, 4, 0]), Ok(LIMIT));
        for fields in [&[1][..], &[1, 1], &[1, 2, b'a'], &[1, 1, 0xff]] {
            assert!(Hello::decode(fields).is_err(), "{fields:?}");
        }
        assert!(Answer::length([0, 0, 0]).is_err() && Answer::decode([1, 3, 0], b"").is_err());
        let mut rng = fastrand::Rng::with_seed(5);
        for _ in 0..2000 {
            let bytes: Vec<u8> = (0..rng.usize(..64)).map(|_| rng.u8(..)).collect();
            let _said = Hello::decode(&bytes);
        }
    }
}
