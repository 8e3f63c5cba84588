//! Files of resources: splits YAML into documents and places every error at file and line.

use std::path::Path;

use outrigger_common::config::{ConfigError, Origin};

use crate::resource::{Resource, from_origin};

/// Reads every resource of a YAML text; `file` is its name in errors.
///
/// # Errors
/// The first document that is not a valid resource, with file, line and key.
pub fn parse_yaml(file: &Path, text: &str) -> Result<Vec<Resource>, ConfigError> {
    let mut resources = Vec::new();
    for (first_line, document) in split(text) {
        // Blank lines in front keep the parser's line numbers those of the file.
        let padded = "\n".repeat(first_line) + &document;
        resources.push(from_origin(&Origin::new(Some(file.to_owned()), padded, Vec::new(), &[]))?);
    }
    Ok(resources)
}

/// Documents with something in them, each with the number of lines in front of it. A `---` at the
/// start of a line always ends a document (YAML 1.2.2 section 9.1.2).
fn split(text: &str) -> Vec<(usize, String)> {
    let mut documents = Vec::new();
    let mut current = (0, String::new());
    for (number, line) in text.lines().enumerate() {
        if line == "---" || line.starts_with("--- ") {
            documents.push(std::mem::replace(&mut current, (number + 1, String::new())));
        } else {
            current.1.push_str(line);
            current.1.push('\n');
        }
    }
    documents.push(current);
    let blank =
        |text: &str| text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
    documents.retain(|(_, text)| !blank(text));
    documents
}
