//! Every field of every kind: its type, range, default and meaning, in one table. Values are checked
//! against it, and `docs/resources.md` is.

use std::fmt;

use outrigger_common::config::{format_duration, parse_bytes, parse_duration};
use outrigger_common::name::check_label;
use serde_json::Value;

mod route;
mod traffic;

pub use route::{GRPC_ROUTE, HTTP_FILTER, HTTP_MATCH, HTTP_ROUTE};
pub use traffic::{AUTHORIZATION_POLICY, TARGET, TRAFFIC_POLICY};

/// One field, as people read about it.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Dotted path below `spec`, `[]` for every element of a list, such as `rules[].name`.
    pub path: &'static str,
    /// What is accepted.
    pub range: Range,
    /// What holds where it is left out; `-` where nothing does.
    pub default: &'static str,
    /// What it does.
    pub doc: &'static str,
}

/// Type and range of a field.
#[derive(Debug, Clone, Copy)]
pub enum Range {
    /// `true` or `false`.
    Bool,
    /// A whole number from the first to the second.
    Whole(u64, u64),
    /// A number from the first to the second.
    Number(f64, f64),
    /// A number above 0, up to this.
    Above(f64),
    /// A share in percent from the first to the second.
    Percent(f64, f64),
    /// A duration from the first to the second, in milliseconds.
    Span(u64, u64),
    /// The same, or `0s`.
    SpanOrZero(u64, u64),
    /// A size from the first to the second, in bytes.
    Size(u64, u64),
    /// A DNS label (RFC 1123).
    Label,
    /// One of these words.
    Words(&'static [&'static str]),
    /// Text; what it may be.
    Text(&'static str),
    /// A section whose being there says something; it has these further fields under the name of a
    /// table of its own.
    Table(&'static str, &'static [Field]),
    /// A list of these.
    List(&'static str, &'static [Field]),
}

/// A kind, for people and for what walks its fields.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// Its name.
    pub name: &'static str,
    /// What stands below `spec`.
    pub fields: &'static [Field],
}

/// Every kind.
pub const KINDS: &[Kind] = &[
    Kind { name: "Service", fields: SERVICE },
    Kind { name: "MeshConfig", fields: MESH_CONFIG },
    Kind { name: "TrafficPolicy", fields: TRAFFIC_POLICY },
    Kind { name: "AuthorizationPolicy", fields: AUTHORIZATION_POLICY },
    Kind { name: "HTTPRoute", fields: HTTP_ROUTE },
    Kind { name: "GRPCRoute", fields: GRPC_ROUTE },
];

const fn field(path: &'static str, range: Range, default: &'static str, doc: &'static str) -> Field {
    Field { path, range, default, doc }
}

/// A port's number.
const PORT: Range = Range::Whole(1, 65_535);

/// Fields of a `Service`.
pub const SERVICE: &[Field] = &[
    field("ports[].name", Range::Label, "-", "name of the port; unique in the service"),
    field("ports[].port", PORT, "-", "number callers use; unique in the service"),
    field(
        "ports[].protocol",
        Range::Words(&["auto", "http", "http1", "http2", "grpc", "tcp"]),
        "auto",
        "how the application is spoken to; `auto` is whatever the caller turns out to speak, `http` the version it used, `tcp` opaque bytes",
    ),
    field(
        "addresses[]",
        Range::Text("an IPv4 or IPv6 address"),
        "-",
        "virtual addresses, at most 16: a captured connection to one of them and a port's number goes to that port; no other service may have the same",
    ),
];

/// Fields of a `MeshConfig`.
pub const MESH_CONFIG: &[Field] = &[
    field(
        "tracing.samplingRatio",
        Range::Number(0.0, 1.0),
        "0.01",
        "share sampled of the traces that sidecars start",
    ),
    field(
        "defaults",
        Range::Table("TrafficPolicy", TRAFFIC_POLICY),
        "-",
        "what every service's policy starts from: the fields of a TrafficPolicy without `targetRefs`",
    ),
    field(
        "mtls.mode",
        Range::Words(&["strict", "permissive"]),
        "strict",
        "whom sidecars let in to their applications: those alone who prove an identity, or plaintext as well",
    ),
    field(
        "egress.mode",
        Range::Words(&["allow", "deny"]),
        "allow",
        "what becomes of connections to what is nobody's in the mesh: they go there as they are, or are refused; a sidecar that was not told yet refuses them",
    ),
];

impl Range {
    /// The type in a word.
    pub fn unit(&self) -> &'static str {
        match self {
            Self::Bool => "bool",
            Self::Whole(..) | Self::Number(..) | Self::Above(_) => "number",
            Self::Percent(..) => "percent",
            Self::Span(..) | Self::SpanOrZero(..) => "duration",
            Self::Size(..) => "size",
            Self::Label | Self::Words(_) | Self::Text(_) => "text",
            Self::Table(name, _) => name,
            Self::List(name, _) => name,
        }
    }

    /// Whether a value, in JSON, is within the range; what only code can tell counts as within.
    pub fn contains(&self, value: &Value) -> bool {
        // A number that is not finite has no form in JSON and arrives as null.
        let within = |min: f64, max: f64| value.as_f64().is_some_and(|found| (min..=max).contains(&found));
        let millis = |min: u64, max: u64| {
            let parsed = value.as_str().and_then(|text| parse_duration(text).ok());
            parsed.is_some_and(|span| (u128::from(min)..=u128::from(max)).contains(&span.as_millis()))
        };
        match *self {
            Self::Bool => value.is_boolean(),
            Self::Whole(min, max) => value.as_u64().is_some_and(|found| (min..=max).contains(&found)),
            Self::Number(min, max) | Self::Percent(min, max) => within(min, max),
            Self::Above(max) => within(f64::MIN_POSITIVE, max),
            Self::Span(min, max) => millis(min, max),
            Self::SpanOrZero(min, max) => millis(0, 0) || millis(min, max),
            Self::Size(min, max) => {
                let parsed = value.as_str().and_then(|text| parse_bytes(text).ok());
                parsed.is_some_and(|size| (min..=max).contains(&(size as u64)))
            }
            Self::Label => value.as_str().is_some_and(|text| check_label(text).is_ok()),
            Self::Words(words) => value.as_str().is_some_and(|text| words.contains(&text)),
            Self::Text(_) | Self::Table(..) | Self::List(..) => true,
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let span = |millis| format_duration(std::time::Duration::from_millis(millis));
        match *self {
            Self::Bool => f.write_str("true or false"),
            Self::Whole(min, max) => write!(f, "{min} to {max}"),
            Self::Number(min, max) | Self::Percent(min, max) => write!(f, "{min} to {max}"),
            Self::Above(max) => write!(f, "above 0, to {max}"),
            Self::Span(min, max) => write!(f, "{} to {}", span(min), span(max)),
            Self::SpanOrZero(min, max) => write!(f, "{} to {}, or 0s", span(min), span(max)),
            Self::Size(min, max) => write!(f, "{} to {}", size(min), size(max)),
            Self::Label => f.write_str("a DNS label"),
            Self::Words(words) => f.write_str(&words.join(", ")),
            Self::Text(what) => f.write_str(what),
            Self::Table(..) | Self::List(..) => f.write_str("see there"),
        }
    }
}

fn size(bytes: u64) -> String {
    match bytes {
        0 => "0B".to_owned(),
        _ if bytes.is_multiple_of(1 << 20) => format!("{}MiB", bytes >> 20),
        _ if bytes.is_multiple_of(1 << 10) => format!("{}KiB", bytes >> 10),
        _ => format!("{bytes}B"),
    }
}

/// The first value of `tree` that is out of its field's range: its key below `tree`, and what is
/// wrong.
pub fn first_out_of_range(fields: &[Field], tree: &Value) -> Option<(String, String)> {
    fields.iter().find_map(|field| {
        let mut found = Vec::new();
        find(tree, field.path, "", &mut found);
        found.into_iter().find_map(|(key, value)| match field.range {
            Range::Table(_, fields) | Range::List(_, fields) => {
                first_out_of_range(fields, value).map(|(inner, message)| (format!("{key}.{inner}"), message))
            }
            range if range.contains(value) => None,
            range => Some((key, format!("{} is out of range; use {range}", plain(value)))),
        })
    })
}

/// What the field `key` (the last part of its path) of a kind accepts, where that is one thing only.
pub(super) fn range_of(kind: &str, key: &str) -> Option<String> {
    let mut found = Vec::new();
    let kind = KINDS.iter().find(|known| known.name == kind)?;
    collect(kind.fields, key, &mut found);
    found.sort();
    found.dedup();
    if found.len() == 1 { found.pop() } else { None }
}

fn collect(fields: &[Field], key: &str, found: &mut Vec<String>) {
    for field in fields {
        match field.range {
            Range::Table(_, inner) | Range::List(_, inner) => collect(inner, key, found),
            range if field.path.trim_end_matches("[]").rsplit('.').next() == Some(key) => {
                found.push(range.to_string());
            }
            _ => {}
        }
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "what is no number".to_owned(),
        other => other.to_string(),
    }
}

/// Every value at `path`, each with its key: `[]` is every element.
fn find<'a>(tree: &'a Value, path: &str, key: &str, found: &mut Vec<(String, &'a Value)>) {
    let (part, rest) = path.split_once('.').map_or((path, None), |(part, rest)| (part, Some(rest)));
    let (name, list) = part.strip_suffix("[]").map_or((part, false), |name| (name, true));
    let Some(value) = tree.get(name) else { return };
    let here = if key.is_empty() { name.to_owned() } else { format!("{key}.{name}") };
    let values: Vec<_> = match value {
        Value::Array(elements) if list => elements
            .iter()
            .enumerate()
            .map(|(index, element)| (format!("{here}[{index}]"), element))
            .collect(),
        other => vec![(here, other)],
    };
    for (here, value) in values {
        match rest {
            Some(rest) => find(value, rest, &here, found),
            None => found.push((here, value)),
        }
    }
}
