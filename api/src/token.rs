//! The text of a join token: what a sidecar needs to join, in one line that can be pasted.
//!
//! `outrigger-join.<id>.<secret>.<pin>`: the pin is the SHA-256 of the root key's
//! SubjectPublicKeyInfo in unpadded base64url, so a sidecar can tell the true registry from an
//! impostor before it sends the secret.

use std::fmt;

const PREFIX: &str = "outrigger-join";

/// A join token. `Debug` and `Display` never show the secret; [`Token::expose`] does.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// Public part: names the token in `outrigger get tokens` and in logs.
    pub id: String,
    /// The secret, sent only to a registry whose root matches the pin.
    pub secret: String,
    /// SHA-256 of the root's SubjectPublicKeyInfo, unpadded base64url.
    pub pin: String,
}

/// A text that is not a join token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a join token: expected {PREFIX}.<id>.<secret>.<pin>; make one with `outrigger token`")]
pub struct InvalidToken;

impl Token {
    /// Parses the text `outrigger token` printed; surrounding white space is ignored.
    ///
    /// # Errors
    /// When the text has another form. The error does not repeat the text.
    pub fn parse(text: &str) -> Result<Self, InvalidToken> {
        let mut parts = text.trim().split('.');
        let mut part = || parts.next().filter(|part| !part.is_empty()).ok_or(InvalidToken);
        if part()? != PREFIX {
            return Err(InvalidToken);
        }
        let token = Self { id: part()?.to_owned(), secret: part()?.to_owned(), pin: part()?.to_owned() };
        let plain = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        let valid =
            parts.next().is_none() && [&token.id, &token.secret, &token.pin].into_iter().all(|t| plain(t));
        if valid { Ok(token) } else { Err(InvalidToken) }
    }

    /// The whole text, secret included.
    pub fn expose(&self) -> String {
        format!("{PREFIX}.{}.{}.{}", self.id, self.secret, self.pin)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Token({})", self.id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_survives_a_round_trip_and_debug_hides_the_secret() {
        let token = Token { id: "t1".into(), secret: "s3cret".into(), pin: "p-_n".into() };
        assert_eq!(Token::parse(&format!(" {}\n", token.expose())), Ok(token.clone()));
        assert!(!format!("{token:?}").contains("s3cret"));
    }

    #[test]
    fn other_texts_are_refused_without_repeating_them() {
        for text in [
            "",
            "x",
            "outrigger-join.a.b",
            "outrigger-join.a..c",
            "outrigger-join.a.b.c.d",
            "join.a.b.c",
            "outrigger-join.a.b c.d",
        ] {
            let error = Token::parse(text).unwrap_err();
            assert!(error.to_string().contains("outrigger token"), "{text}");
        }
    }
}
