//! Configuration: one YAML file, then `OUTRIGGER_*` variables over it, then the program's own checks.
//!
//! A program describes its keys in a table of [`Key`]s. The table names the environment variables,
//! `docs/configuration.md` is checked against it, and the example file must set every key in it.
//! Unknown keys, wrong types and values out of range are errors that name file, line and key.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// Prefix of every environment variable that sets a key.
pub const ENV_PREFIX: &str = "OUTRIGGER_";

/// One configuration key, as people read about it.
#[derive(Debug, Clone, Copy)]
pub struct Key {
    /// Dotted path, such as `timeouts.connect`.
    pub path: &'static str,
    /// Unit or form of the value, such as `duration` or `host:port`.
    pub unit: &'static str,
    /// Default, as written in YAML; `-` when there is none.
    pub default: &'static str,
    /// What is accepted.
    pub range: &'static str,
    /// What it does.
    pub doc: &'static str,
}

impl Key {
    /// A row of the table: path, unit, default, range and text, as in the fields.
    pub const fn new(
        path: &'static str,
        unit: &'static str,
        default: &'static str,
        range: &'static str,
        doc: &'static str,
    ) -> Self {
        Self { path, unit, default, range, doc }
    }

    /// The environment variable that overrides this key: `timeouts.connect` is
    /// `OUTRIGGER_TIMEOUTS_CONNECT`.
    pub fn env(&self) -> String {
        format!("{ENV_PREFIX}{}", self.path.replace('.', "_").to_ascii_uppercase())
    }
}

/// Why a configuration is refused. The text names the place and, where there is one, the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {message}")]
pub struct ConfigError {
    /// File and line, or environment variable.
    pub place: String,
    /// Key, what is wrong, and what would be right.
    pub message: String,
}

/// Where a configuration came from, kept so that later checks can name the line of a key.
#[derive(Debug, Clone)]
pub struct Origin {
    file: Option<PathBuf>,
    text: String,
    env: Vec<(String, String)>,
    keys: &'static [Key],
}

impl Origin {
    /// Reads `file` (none: built-in defaults) and the environment of this process.
    ///
    /// # Errors
    /// When the file cannot be read or is not UTF-8.
    pub fn read(file: Option<&Path>, keys: &'static [Key]) -> Result<Self, ConfigError> {
        let text = match file {
            None => String::new(),
            Some(path) => std::fs::read_to_string(path).map_err(|error| ConfigError {
                place: path.display().to_string(),
                message: format!("cannot read the configuration file: {error}"),
            })?,
        };
        Ok(Self::new(file.map(Path::to_owned), text, std::env::vars().collect(), keys))
    }

    /// The same from values, for tests and for programs that start others.
    pub fn new(
        file: Option<PathBuf>,
        text: String,
        env: Vec<(String, String)>,
        keys: &'static [Key],
    ) -> Self {
        Self { file, text, env, keys }
    }

    /// Deserialises the file with the environment over it.
    ///
    /// # Errors
    /// Unknown keys, wrong types and malformed YAML, each with its place.
    pub fn load<T: DeserializeOwned>(&self) -> Result<T, ConfigError> {
        let blank =
            self.text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        let text = if blank { "{}" } else { &self.text };
        // The file alone first: only this pass knows lines.
        let from_file: T = parse_yaml(text).map_err(|(line, message)| self.at_line(line, message))?;
        let overrides: Vec<_> = self.overrides().collect();
        if overrides.is_empty() {
            return Ok(from_file);
        }
        let mut tree: Value = parse_yaml(text).map_err(|(line, message)| self.at_line(line, message))?;
        let mut loaded = from_file;
        for (key, variable, value) in overrides {
            (tree, loaded) = apply(&tree, key.path, value).map_err(|message| ConfigError {
                place: variable.clone(),
                message: format!("{}: {message}", key.path),
            })?;
        }
        Ok(loaded)
    }

    /// An error about the value of `key`, placed at its environment variable, else at its line.
    pub fn error(&self, key: &str, message: impl fmt::Display) -> ConfigError {
        if let Some((_, variable, _)) = self.overrides().find(|(known, ..)| key.starts_with(known.path)) {
            return ConfigError { place: variable, message: format!("{key}: {message}") };
        }
        match self.line_of(key) {
            Some(line) => self.at_line(Some(line), format!("{key}: {message}")),
            None => self.at_line(None, format!("{key}: {message}")),
        }
    }

    /// A variable of the environment that sets no key.
    pub fn variable(&self, name: &str) -> Option<&str> {
        self.env.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn overrides(&self) -> impl Iterator<Item = (&'static Key, String, &str)> {
        self.keys.iter().filter_map(|key| {
            let variable = key.env();
            let (_, value) = self.env.iter().find(|(name, _)| *name == variable)?;
            Some((key, variable, value.as_str()))
        })
    }

    fn at_line(&self, line: Option<u64>, message: String) -> ConfigError {
        let file =
            self.file.as_ref().map_or("built-in defaults".to_owned(), |path| path.display().to_string());
        let Some(line) = line else { return ConfigError { place: file, message } };
        ConfigError { place: format!("{file}:{line}"), message }
    }

    /// Line of a dotted key such as `spec.ports[1].port`, or of the innermost part of it that the file
    /// has.
    fn line_of(&self, key: &str) -> Option<u64> {
        place::line_of(&self.text, key)
    }
}

/// The key whose value starts at or after the end of `before`, the front part of a line.
fn key_before(before: &str) -> Option<&str> {
    let (front, _) = before.rsplit_once(':')?;
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let start = front.rfind(|c| !word(c)).map_or(0, |at| at + 1);
    Some(&front[start..]).filter(|key| !key.is_empty())
}

/// Parses YAML; an error is its line, if known, and its text.
fn parse_yaml<T: DeserializeOwned>(text: &str) -> Result<T, (Option<u64>, String)> {
    let options = serde_saphyr::options! { with_snippet: false };
    serde_saphyr::from_str_with_options(text, options).map_err(|error| {
        let message = error.to_string();
        let Some(location) = error.location().filter(|location| location.line() > 0) else {
            return (None, message);
        };
        // The parser names keys it does not want; for a wrong value the key stands in front of it.
        let key = usize::try_from(location.line()).ok().and_then(|line| {
            let column = usize::try_from(location.column()).ok()?;
            key_before(text.lines().nth(line.checked_sub(1)?)?.get(..column.checked_sub(1)?)?)
        });
        let message = match key {
            Some(key) if !message.contains("field") && !message.contains(key) => format!("{key}: {message}"),
            _ => message,
        };
        (Some(location.line()), message)
    })
}

/// Sets one key from text: as the YAML it reads as, else as plain text.
fn apply<T: DeserializeOwned>(tree: &Value, path: &str, value: &str) -> Result<(Value, T), String> {
    let parsed = parse_yaml::<Value>(value).map_err(|(_, message)| message);
    let mut first_error = None;
    for candidate in parsed.into_iter().chain([Value::String(value.to_owned())]) {
        let mut attempt = tree.clone();
        set(&mut attempt, path, candidate);
        match serde_json::from_value(attempt.clone()) {
            Ok(loaded) => return Ok((attempt, loaded)),
            Err(error) => _ = first_error.get_or_insert_with(|| error.to_string()),
        }
    }
    Err(first_error.unwrap_or_default())
}

fn set(tree: &mut Value, path: &str, value: Value) {
    let mut node = tree;
    for part in path.split('.') {
        if !node.is_object() {
            *node = Value::Object(serde_json::Map::new());
        }
        let Value::Object(map) = node else { return };
        node = map.entry(part).or_insert(Value::Null);
    }
    *node = value;
}

/// Reads durations such as `250ms`, `10s`, `5m` or `24h`; use with `#[serde(deserialize_with)]`.
///
/// # Errors
/// When the text is not a whole number with a unit.
pub fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).map_err(D::Error::custom)
}

/// Reads an optional duration; see [`duration`].
///
/// # Errors
/// As [`duration`].
pub fn optional_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.map(|text| parse_duration(&text).map_err(D::Error::custom)).transpose()
}

/// Reads sizes such as `512B`, `64KiB` or `1MiB`; use with `#[serde(deserialize_with)]`.
///
/// # Errors
/// When the text is not a whole number with a unit.
pub fn bytes<'de, D: Deserializer<'de>>(deserializer: D) -> Result<usize, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_bytes(&text).map_err(D::Error::custom)
}

/// Parses a duration: a whole number and one of `ms`, `s`, `m`, `h`.
///
/// # Errors
/// A text that says what is expected.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split_number(text);
    let refuse =
        || format!("{text:?} is not a duration: write a whole number and a unit (ms, s, m, h), such as 10s");
    let number: u64 = number.parse().map_err(|_| refuse())?;
    let millis = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(refuse()),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or_else(refuse)
}

/// Parses a size: a whole number and one of `B`, `KiB`, `MiB`, `GiB`.
///
/// # Errors
/// A text that says what is expected.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let (number, unit) = split_number(text);
    let refuse = || {
        format!("{text:?} is not a size: write a whole number and a unit (B, KiB, MiB, GiB), such as 64KiB")
    };
    let number: usize = number.parse().map_err(|_| refuse())?;
    let shift = match unit {
        "B" => 0,
        "KiB" => 10,
        "MiB" => 20,
        "GiB" => 30,
        _ => return Err(refuse()),
    };
    number.checked_mul(1 << shift).ok_or_else(refuse)
}

fn split_number(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.bytes().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    text.split_at(end)
}

/// Writes a duration the way [`parse_duration`] reads it.
pub fn format_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    match millis {
        0 => "0s".to_owned(),
        _ if millis.is_multiple_of(3_600_000) => format!("{}h", millis / 3_600_000),
        _ if millis.is_multiple_of(60_000) => format!("{}m", millis / 60_000),
        _ if millis.is_multiple_of(1000) => format!("{}s", millis / 1000),
        _ => format!("{millis}ms"),
    }
}

mod place;
#[cfg(test)]
mod tests;
