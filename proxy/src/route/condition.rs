//! One match of a route, compiled: conditions on a request that must all hold.

use http::header::{COOKIE, HOST};
use http::request::Parts;
use http::{HeaderMap, HeaderName, Method};
use outrigger_api::resource::route::{
    GrpcRouteMatch, HttpRouteMatch, NamedMatch, PathMatchKind, ValueMatchKind,
};

use super::pattern::Pattern;
use super::{Invalid, path};

/// What of a request decides its route.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    /// Its method.
    pub method: &'a Method,
    /// The path as received.
    pub path: &'a str,
    /// What follows `?`.
    pub query: Option<&'a str>,
    /// Its headers.
    pub headers: &'a HeaderMap,
    /// The target's authority, where HTTP/2 has it: what a match on `host` compares.
    pub authority: Option<&'a str>,
    /// Whether it is a call of gRPC.
    pub grpc: bool,
}

impl<'a> Head<'a> {
    /// The head of a request; `grpc` says whether its content type begins with `application/grpc`.
    pub fn new(parts: &'a Parts, grpc: bool) -> Self {
        Self {
            method: &parts.method,
            path: parts.uri.path(),
            query: parts.uri.query(),
            headers: &parts.headers,
            authority: parts.uri.authority().map(http::uri::Authority::as_str),
            grpc,
        }
    }
}

/// A compiled `HTTPRouteMatch`.
#[derive(Debug)]
pub struct HttpMatch {
    path: PathTest,
    method: Option<Method>,
    headers: Vec<(HeaderName, ValueTest)>,
    query: Vec<(Box<str>, ValueTest)>,
}

#[derive(Debug)]
enum PathTest {
    Exact(Box<str>),
    /// Without a trailing slash.
    Prefix(Box<str>),
    Pattern(Pattern),
}

/// Where a match stands among others: the smaller goes first.
pub type Rank = (u8, std::cmp::Reverse<[usize; 4]>);

impl HttpMatch {
    /// # Errors
    /// A header name, method or regular expression that is none.
    pub fn compile(spec: &HttpRouteMatch) -> Result<Self, Invalid> {
        let path = match &spec.path {
            None => PathTest::Prefix("".into()),
            Some(test) => match test.kind {
                PathMatchKind::Exact => PathTest::Exact(path::normalise(&test.value).into()),
                PathMatchKind::PathPrefix => PathTest::Prefix(path::normal_prefix(&test.value)),
                PathMatchKind::RegularExpression => PathTest::Pattern(Pattern::compile(&test.value)?),
            },
        };
        let method = spec.method.as_deref().map(|method| {
            Method::from_bytes(method.as_bytes()).map_err(|_| Invalid(format!("{method:?} is not a method")))
        });
        let mut query: Vec<(Box<str>, ValueTest)> = Vec::with_capacity(spec.query_params.len());
        for test in &spec.query_params {
            if query.iter().all(|(name, _)| **name != *test.name) {
                query.push((test.name.as_str().into(), ValueTest::compile(test.kind, &test.value)?));
            }
        }
        Ok(Self { path, method: method.transpose()?, headers: header_tests(&spec.headers)?, query })
    }

    /// Precedence of the Gateway API (`HTTPRouteRule.matches`): Exact, regular expressions (longest
    /// first; the place of these is ours), longest prefix; then method, number of headers, number of query
    /// parameters.
    pub fn rank(&self) -> Rank {
        let (class, length) = match &self.path {
            PathTest::Exact(_) => (0, 0),
            PathTest::Pattern(pattern) => (1, pattern.length),
            PathTest::Prefix(prefix) => (2, prefix.len()),
        };
        let method = usize::from(self.method.is_some());
        (class, std::cmp::Reverse([length, method, self.headers.len(), self.query.len()]))
    }

    /// Whether all conditions hold. `normal` is the head's path in normal form ([`path::normalise`]).
    pub fn matches(&self, head: &Head<'_>, normal: &str) -> bool {
        let path = match &self.path {
            PathTest::Exact(exact) => **exact == *normal,
            PathTest::Prefix(prefix) => path::after_prefix(normal, prefix).is_some(),
            PathTest::Pattern(pattern) => pattern.matches(normal.as_bytes()),
        };
        path && self.method.as_ref().is_none_or(|method| method == head.method)
            && headers_match(&self.headers, head)
            && self.query.iter().all(|(name, test)| query_matches(head.query, name, test))
    }
}

/// A compiled `GRPCRouteMatch`.
#[derive(Debug)]
pub struct GrpcMatch {
    service: Option<ValueTest>,
    method: Option<ValueTest>,
    headers: Vec<(HeaderName, ValueTest)>,
}

impl GrpcMatch {
    /// # Errors
    /// A header name or regular expression that is none.
    pub fn compile(spec: &GrpcRouteMatch) -> Result<Self, Invalid> {
        let part = |value: Option<&String>| match (&spec.method, value) {
            (Some(test), Some(value)) if !value.is_empty() => ValueTest::compile(test.kind, value).map(Some),
            _ => Ok(None),
        };
        let method = spec.method.as_ref();
        Ok(Self {
            service: part(method.and_then(|method| method.service.as_ref()))?,
            method: part(method.and_then(|method| method.method.as_ref()))?,
            headers: header_tests(&spec.headers)?,
        })
    }

    /// Precedence of the Gateway API (`GRPCRouteRule.matches`): longest service, longest method, number of
    /// headers. Regular expressions come after all exact names, before none.
    pub fn rank(&self) -> Rank {
        let specific = |test: &Option<ValueTest>| match test {
            Some(ValueTest::Exact(name)) => (1, name.len()),
            Some(ValueTest::Pattern(pattern)) => (0, pattern.length + 1),
            None => (0, 0),
        };
        let ((exact_service, service), (exact_method, method)) =
            (specific(&self.service), specific(&self.method));
        // One number each, so that an exact name outranks a pattern of any length.
        let scale = |exact: usize, length: usize| exact * (usize::MAX / 2) + length;
        let lengths = [scale(exact_service, service), scale(exact_method, method), self.headers.len(), 0];
        (0, std::cmp::Reverse(lengths))
    }

    /// Whether all conditions hold. `normal` is the head's path in normal form.
    pub fn matches(&self, head: &Head<'_>, normal: &str) -> bool {
        let any = self.service.is_none() && self.method.is_none();
        (any || self.names(normal)) && headers_match(&self.headers, head)
    }

    /// A call's path is `/service/method` (gRPC over HTTP/2).
    fn names(&self, normal: &str) -> bool {
        let Some((service, method)) = normal.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return false;
        };
        let holds = |test: &Option<ValueTest>, name: &str| {
            test.as_ref().is_none_or(|test| test.matches([name.as_bytes()].into_iter(), b""))
        };
        holds(&self.service, service) && holds(&self.method, method)
    }
}

#[derive(Debug)]
enum ValueTest {
    Exact(Box<str>),
    Pattern(Pattern),
}

impl ValueTest {
    fn compile(kind: ValueMatchKind, value: &str) -> Result<Self, Invalid> {
        Ok(match kind {
            ValueMatchKind::Exact => Self::Exact(value.into()),
            ValueMatchKind::RegularExpression => Self::Pattern(Pattern::compile(value)?),
        })
    }

    /// Whether the values, joined by `separator`, are as wanted; never if there are none.
    fn matches<'v>(&self, mut values: impl Iterator<Item = &'v [u8]>, separator: &[u8]) -> bool {
        let Some(first) = values.next() else { return false };
        match self {
            Self::Exact(wanted) => {
                let mut left = wanted.as_bytes().strip_prefix(first);
                for value in values {
                    let rest = left.and_then(|left| left.strip_prefix(separator));
                    left = rest.and_then(|left| left.strip_prefix(value));
                }
                left.is_some_and(<[u8]>::is_empty)
            }
            Self::Pattern(pattern) => {
                let Some(second) = values.next() else { return pattern.matches(first) };
                let mut joined = [first, separator, second].concat();
                for value in values {
                    joined.extend_from_slice(separator);
                    joined.extend_from_slice(value);
                }
                pattern.matches(&joined)
            }
        }
    }
}

/// Of several tests of one header the first alone counts, as the Gateway API wants.
fn header_tests(tests: &[NamedMatch]) -> Result<Vec<(HeaderName, ValueTest)>, Invalid> {
    let mut compiled: Vec<(HeaderName, ValueTest)> = Vec::with_capacity(tests.len());
    for test in tests {
        let name = HeaderName::try_from(&test.name)
            .map_err(|_| Invalid(format!("{:?} is not a header name", test.name)))?;
        if compiled.iter().all(|(other, _)| *other != name) {
            compiled.push((name, ValueTest::compile(test.kind, &test.value)?));
        }
    }
    Ok(compiled)
}

fn headers_match(tests: &[(HeaderName, ValueTest)], head: &Head<'_>) -> bool {
    tests.iter().all(|(name, test)| {
        if name == HOST
            && let Some(authority) = head.authority
        {
            return test.matches([authority.as_bytes()].into_iter(), b",");
        }
        // HTTP/2 clients may split a cookie (RFC 9113 section 8.2.3).
        let separator: &[u8] = if name == COOKIE { b"; " } else { b"," };
        test.matches(head.headers.get_all(name).iter().map(http::HeaderValue::as_bytes), separator)
    })
}

fn query_matches(query: Option<&str>, name: &str, test: &ValueTest) -> bool {
    let mut pairs = query
        .unwrap_or_default()
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .filter(|(raw, _)| decoded(raw).eq(name.bytes()));
    let Some((_, value)) = pairs.next() else { return false };
    match test {
        ValueTest::Exact(wanted) => decoded(value).eq(wanted.bytes()),
        ValueTest::Pattern(pattern) => pattern.matches(&decoded(value).collect::<Vec<_>>()),
    }
}

/// A name or value of a query, decoded as forms are (WHATWG URL, `application/x-www-form-urlencoded`).
fn decoded(text: &str) -> impl Iterator<Item = u8> {
    let mut rest = text.as_bytes();
    std::iter::from_fn(move || {
        let (&first, others) = rest.split_first()?;
        if let Some(byte) = path::escaped(rest) {
            rest = &rest[3..];
            return Some(byte);
        }
        rest = others;
        Some(if first == b'+' { b' ' } else { first })
    })
}
