//! Paths as routes see them. See the module `route` for what is made equal and why.

use std::borrow::Cow;

/// The path in the form that matches are decided on: percent-encoded unreserved characters decoded,
/// other escapes in capitals (RFC 3986 section 6.2.2), repeated slashes merged, dot segments resolved
/// (section 5.2.4). Idempotent. No allocation for a path that has this form, as nearly all do. What does
/// not begin with `/` (the target `*`) is returned as it is.
pub fn normalise(path: &str) -> Cow<'_, str> {
    if is_normal(path) {
        return Cow::Borrowed(path);
    }
    let decoded = normal_escapes(path);
    let mut kept: Vec<&str> = Vec::new();
    let mut open = true; // whether the path ends with a slash
    for segment in decoded.split('/') {
        open = matches!(segment, "" | "." | "..");
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            _ => kept.push(segment),
        }
    }
    let mut normal = String::with_capacity(decoded.len());
    for segment in &kept {
        normal.push('/');
        normal.push_str(segment);
    }
    if open || kept.is_empty() {
        normal.push('/');
    }
    Cow::Owned(normal)
}

fn is_normal(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return true };
    let mut segments = rest.split('/').peekable();
    while let Some(segment) = segments.next() {
        let inner = segments.peek().is_some();
        if (segment.is_empty() && inner) || matches!(segment, "." | "..") {
            return false;
        }
    }
    let bytes = path.as_bytes();
    let escapes = bytes.iter().enumerate().filter(|(_, byte)| **byte == b'%').map(|(at, _)| &bytes[at..]);
    escapes.into_iter().all(|escape| {
        escaped(escape).is_some_and(|byte| !is_unreserved(byte))
            && !escape[1..3].iter().any(u8::is_ascii_lowercase)
    })
}

/// Decodes what needs no escape, and writes the other escapes in one way. A stray `%` becomes `%25`:
/// left alone it could form an escape with what is decoded after it.
fn normal_escapes(path: &str) -> String {
    let mut normal = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(at) = rest.find('%') {
        normal.push_str(&rest[..at]);
        rest = &rest[at..];
        match escaped(rest.as_bytes()) {
            Some(byte) if is_unreserved(byte) => normal.push(char::from(byte)),
            Some(_) => normal.push_str(&rest[..3].to_ascii_uppercase()),
            None => {
                normal.push_str("%25");
                rest = &rest[1..];
                continue;
            }
        }
        rest = &rest[3..];
    }
    normal.push_str(rest);
    normal
}

/// The byte meant by the escape that `bytes` begins with.
pub fn escaped(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| char::from(*bytes.get(at)?).to_digit(16);
    let value = digit(1)? * 16 + digit(2)?;
    (bytes[0] == b'%').then(|| u8::try_from(value).ok())?
}

fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// What follows the prefix in the path, empty or beginning with `/`, if the path's first elements are
/// the prefix's. `prefix` is normal and has no trailing slash: `/` is written as the empty text.
pub fn after_prefix<'p>(path: &'p str, prefix: &str) -> Option<&'p str> {
    let rest = path.strip_prefix(prefix)?;
    (prefix.is_empty() || rest.is_empty() || rest.starts_with('/')).then_some(rest)
}

/// The path with `replacement` in the place of `prefix` (as in [`after_prefix`]), by the table of the
/// Gateway API's `replacePrefixMatch`. What follows the prefix stays as it was received, unless there are
/// dot segments or the prefix was spelled in another way: then its normal form, which cannot leave the
/// replacement, takes its place. `None` if the path does not have the prefix.
pub fn replace_prefix(path: &str, prefix: &str, replacement: &str) -> Option<String> {
    if !path.starts_with('/') {
        return None;
    }
    let normal;
    let rest = match after_prefix(path, prefix) {
        Some(rest) if !has_dot_segments(path) => rest,
        _ => {
            normal = normalise(path);
            after_prefix(&normal, prefix)?
        }
    };
    let mut replaced = replacement.trim_end_matches('/').to_owned();
    if rest.starts_with('/') {
        replaced.push('/');
        replaced.push_str(rest.trim_start_matches('/'));
    }
    if replaced.is_empty() {
        replaced.push('/');
    }
    Some(replaced)
}

fn has_dot_segments(path: &str) -> bool {
    path.split('/').any(|segment| {
        // At most two dots, each of one or three bytes.
        segment.len() <= 6 && matches!(&*normal_escapes(segment), "." | "..")
    })
}

/// A prefix as [`after_prefix`] wants it.
pub fn normal_prefix(path: &str) -> Box<str> {
    normalise(path).trim_end_matches('/').into()
}
