//! Regular expressions of routes, compiled in one place so that what is accepted can be run.

use regex::bytes::RegexBuilder;

/// Memory one compiled expression may take: some thousands of states, far above any honest route.
const SIZE_LIMIT: usize = 256 * 1024;
/// Depth of nested groups: the parser recurses.
const NEST_LIMIT: u32 = 50;
/// Longest expression, in bytes: the Gateway API's limit of a path.
const MAX_PATTERN: usize = 1024;

/// A compiled expression that must match a whole value. Matching takes time linear in the value's
/// length, whatever the expression.
#[derive(Debug, Clone)]
pub struct Regex(regex::bytes::Regex);

impl Regex {
    /// Whether all of `value` matches.
    pub fn is_match(&self, value: &[u8]) -> bool {
        self.0.is_match(value)
    }
}

/// Compiles a regular expression as routes have them: the syntax of the `regex` crate over bytes (no
/// look-around, no back-references), classes such as `\d` in ASCII, anchored at both ends.
///
/// # Errors
/// What is wrong with it: the syntax, more than 1024 bytes, or a compiled form above 256 KiB.
pub fn compile_regex(pattern: &str) -> Result<Regex, String> {
    if pattern.len() > MAX_PATTERN {
        return Err(format!("{} bytes are too long; use at most {MAX_PATTERN}", pattern.len()));
    }
    let build = |pattern: &str| {
        RegexBuilder::new(pattern)
            .unicode(false)
            .size_limit(SIZE_LIMIT)
            .dfa_size_limit(SIZE_LIMIT)
            .nest_limit(NEST_LIMIT)
            .build()
            .map_err(|error| describe(pattern, &error))
    };
    // By itself first: `a)|(b` is no expression, but would become one between brackets.
    build(pattern)?;
    build(&format!(r"\A(?:{pattern})\z")).map(Regex)
}

/// The error on one line; the library's draws the expression with a mark under the place.
fn describe(pattern: &str, error: &regex::Error) -> String {
    let what = match error {
        regex::Error::CompiledTooBig(limit) => {
            return format!("{pattern:?} is too big: compiled, it takes more than {limit} bytes");
        }
        other => other.to_string(),
    };
    let last = what.lines().last().unwrap_or_default();
    format!("{pattern:?} is not a regular expression: {}", last.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::compile_regex;

    #[test]
    fn a_whole_value_must_match() {
        for (pattern, matches, other) in [
            ("a|ab", "ab", "abc"),
            ("/v[0-9]+/.*", "/v1/x", "x/v1/x"),
            ("", "", "a"),
            (r"\d+", "12", "1x"),
            ("(?i)yes", "YES", "yess"),
            ("^a$", "a", "a\n"),
        ] {
            let regex = compile_regex(pattern).unwrap();
            assert!(regex.is_match(matches.as_bytes()), "{pattern} {matches}");
            assert!(!regex.is_match(other.as_bytes()), "{pattern} {other}");
        }
    }

    #[test]
    fn bytes_that_are_no_text_can_be_compared() {
        assert!(compile_regex("a.b").unwrap().is_match(b"a\xffb"));
    }

    #[test]
    fn what_cannot_be_run_is_refused_on_one_line() {
        let deep = "(".repeat(60) + &")".repeat(60);
        for (pattern, words) in [
            ("a)|(b", "unopened group"),
            ("(", "unclosed group"),
            ("(?=a)", "look-around"),
            (r"(a)\1", "backreferences"),
            ("(?:x{500}){500}", "too big"),
            (deep.as_str(), "nest"),
            (&"a".repeat(1025), "too long"),
        ] {
            let error = compile_regex(pattern).unwrap_err();
            assert!(error.contains(words) && !error.contains('\n'), "{pattern}: {error}");
        }
    }
}
