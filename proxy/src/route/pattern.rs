//! Regular expressions of routes.

use outrigger_api::resource::{Regex, compile_regex};

use super::Invalid;

/// A regular expression that must match all of a text.
#[derive(Debug)]
pub struct Pattern {
    regex: Regex,
    /// Characters of its source, for precedence.
    pub length: usize,
}

impl Pattern {
    /// # Errors
    /// What [`compile_regex`] refuses.
    pub fn compile(source: &str) -> Result<Self, Invalid> {
        Ok(Self { regex: compile_regex(source).map_err(Invalid)?, length: source.chars().count() })
    }

    /// Whether all of `text` matches. Linear in the text, whatever the pattern.
    pub fn matches(&self, text: &[u8]) -> bool {
        self.regex.is_match(text)
    }
}
