//! What a rule or backend changes: headers, host and path, redirects, mirrors.

use std::fmt::Write as _;

use fastrand::Rng;
use http::header::HOST;
use http::request::Parts;
use http::uri::{Authority, PathAndQuery};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri};
use outrigger_api::resource::route::{
    self, HeaderModifier, HttpRouteFilter, NamedValue, PathModifier, RequestMirror, RequestRedirect,
    UrlRewrite,
};
use outrigger_common::name::ServiceName;

use super::Invalid;
use super::path::{normal_prefix, replace_prefix};
use super::rule::service;

/// The filters of a rule or backend. Each kind has its own subject and occurs once at most, mirrors
/// aside, so that their order makes no difference.
#[derive(Debug, Default)]
pub struct Filters {
    /// A redirect instead of a backend.
    pub redirect: Option<Redirect>,
    request: HeaderEdit,
    response: HeaderEdit,
    rewrite: Option<Rewrite>,
    mirrors: Vec<Mirror>,
}

/// A rewritten target above 65,534 bytes, the most that a URI may have here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the rewritten path is too long")]
pub struct TooLong;

impl Filters {
    /// Compiles filters of a route in `namespace`. `prefix`: the one that all requests of the rule have
    /// (without a trailing slash), if there is one.
    ///
    /// # Errors
    /// A header that no route may change, a value that is none, or `ReplacePrefixMatch` without a prefix.
    pub fn compile(
        filters: &[HttpRouteFilter],
        namespace: &str,
        prefix: Option<&str>,
    ) -> Result<Self, Invalid> {
        let mut compiled = Self::default();
        for filter in filters {
            match filter {
                HttpRouteFilter::RequestHeaderModifier { modifier } => {
                    compiled.request = HeaderEdit::compile(modifier)?;
                }
                HttpRouteFilter::ResponseHeaderModifier { modifier } => {
                    compiled.response = HeaderEdit::compile(modifier)?;
                }
                HttpRouteFilter::RequestRedirect { redirect } => {
                    compiled.redirect = Some(Redirect::compile(redirect, prefix)?);
                }
                HttpRouteFilter::UrlRewrite { rewrite } => {
                    compiled.rewrite = Some(Rewrite::compile(rewrite, prefix)?);
                }
                HttpRouteFilter::RequestMirror { mirror } => {
                    compiled.mirrors.push(Mirror::compile(mirror, namespace)?);
                }
            }
        }
        Ok(compiled)
    }

    /// Applies headers, host and path to a request. The new host takes the place of the authority where
    /// the target has one, else of `Host`; the query stays.
    ///
    /// # Errors
    /// [`TooLong`]: the request cannot be sent.
    pub fn edit_request(&self, head: &mut Parts) -> Result<(), TooLong> {
        if let Some(rewrite) = &self.rewrite {
            rewrite.apply(head)?;
        }
        self.request.apply(&mut head.headers);
        Ok(())
    }

    /// Applies headers to a response, a redirect's included.
    pub fn edit_response(&self, headers: &mut HeaderMap) {
        self.response.apply(headers);
    }

    /// Where copies of this request go.
    pub fn mirrors<'a>(&'a self, rng: &mut Rng) -> impl Iterator<Item = &'a Mirror> {
        self.mirrors.iter().filter(move |mirror| mirror.is_due(rng))
    }
}

/// Headers set, added and removed.
#[derive(Debug, Default)]
struct HeaderEdit {
    set: Vec<(HeaderName, HeaderValue)>,
    add: Vec<(HeaderName, HeaderValue)>,
    remove: Vec<HeaderName>,
}

impl HeaderEdit {
    fn compile(modifier: &HeaderModifier) -> Result<Self, Invalid> {
        let pair = |NamedValue { name, value }: &NamedValue| {
            let value =
                HeaderValue::try_from(value).map_err(|_| Invalid(format!("{name}: not a header value")))?;
            Ok((changeable(name)?, value))
        };
        Ok(Self {
            set: modifier.set.iter().map(pair).collect::<Result<_, _>>()?,
            add: modifier.add.iter().map(pair).collect::<Result<_, _>>()?,
            remove: modifier.remove.iter().map(|name| changeable(name)).collect::<Result<_, _>>()?,
        })
    }

    fn apply(&self, headers: &mut HeaderMap) {
        for (name, value) in &self.set {
            headers.insert(name, value.clone());
        }
        for (name, value) in &self.add {
            // A line of its own says the same as a list (RFC 9110 section 5.3), and `set-cookie` needs it.
            headers.append(name, value.clone());
        }
        for name in &self.remove {
            headers.remove(name);
        }
    }
}

/// Headers that frame or route the message, or that only the mesh may say, are not a route's to change.
fn changeable(name: &str) -> Result<HeaderName, Invalid> {
    if !route::is_changeable_header(name) {
        return Err(Invalid(format!("a route must not change the header {name}")));
    }
    HeaderName::try_from(name).map_err(|_| Invalid(format!("{name:?} is not a header name")))
}

/// Another path.
#[derive(Debug)]
enum PathEdit {
    Full(Box<str>),
    Prefix { prefix: Box<str>, replacement: Box<str> },
}

impl PathEdit {
    fn compile(modifier: &PathModifier, prefix: Option<&str>) -> Result<Self, Invalid> {
        let checked = |value: &str| {
            let valid = PathAndQuery::try_from(value).is_ok_and(|path| path.path() == value);
            let valid = valid && value.starts_with('/');
            if valid { Ok(value.into()) } else { Err(Invalid(format!("{value:?} is not a path"))) }
        };
        Ok(match modifier {
            PathModifier::ReplaceFullPath { value } => Self::Full(checked(value)?),
            PathModifier::ReplacePrefixMatch { value } => Self::Prefix {
                prefix: normal_prefix(prefix.ok_or_else(|| {
                    Invalid("ReplacePrefixMatch needs a rule with exactly one match, a PathPrefix".to_owned())
                })?),
                replacement: if value.is_empty() { "".into() } else { checked(value)? },
            },
        })
    }

    /// The new path; `None` where there is no path to change, as in `OPTIONS *`.
    fn apply(&self, path: &str) -> Option<String> {
        match self {
            Self::Full(_) if !path.starts_with('/') => None,
            Self::Full(full) => Some(full.clone().into()),
            Self::Prefix { prefix, replacement } => replace_prefix(path, prefix, replacement),
        }
    }
}

/// Another host or path for the backend.
#[derive(Debug)]
struct Rewrite {
    host: Option<Authority>,
    path: Option<PathEdit>,
}

impl Rewrite {
    fn compile(rewrite: &UrlRewrite, prefix: Option<&str>) -> Result<Self, Invalid> {
        Ok(Self {
            host: rewrite.hostname.as_deref().map(hostname).transpose()?,
            path: rewrite.path.as_ref().map(|path| PathEdit::compile(path, prefix)).transpose()?,
        })
    }

    fn apply(&self, head: &mut Parts) -> Result<(), TooLong> {
        let path = self.path.as_ref().and_then(|edit| edit.apply(head.uri.path()));
        let target = match path {
            None => None,
            Some(mut path) => {
                if let Some(query) = head.uri.query() {
                    path.push('?');
                    path.push_str(query);
                }
                Some(PathAndQuery::try_from(path).map_err(|_| TooLong)?)
            }
        };
        let mut uri = std::mem::take(&mut head.uri).into_parts();
        if let Some(target) = target {
            uri.path_and_query = Some(target);
        }
        if let Some(host) = &self.host {
            match &mut uri.authority {
                Some(authority) => *authority = host.clone(),
                None => {
                    let value = HeaderValue::from_str(host.as_str());
                    head.headers.insert(HOST, value.expect("a host name is visible ASCII"));
                }
            }
        }
        // The parts that were there are there: a URI that was valid stays so.
        head.uri = Uri::from_parts(uri).map_err(|_| TooLong)?;
        Ok(())
    }
}

fn hostname(name: &str) -> Result<Authority, Invalid> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
    Authority::try_from(name)
        .ok()
        .filter(|_| name.bytes().all(valid))
        .ok_or_else(|| Invalid(format!("{name:?} is not a host name")))
}

/// A redirect.
#[derive(Debug)]
pub struct Redirect {
    scheme: Option<&'static str>,
    host: Option<Authority>,
    path: Option<PathEdit>,
    port: Option<u16>,
    status: StatusCode,
}

impl Redirect {
    fn compile(redirect: &RequestRedirect, prefix: Option<&str>) -> Result<Self, Invalid> {
        let scheme = match redirect.scheme.as_deref() {
            None => None,
            Some("http") => Some("http"),
            Some("https") => Some("https"),
            Some(other) => return Err(Invalid(format!("{other:?} is neither http nor https"))),
        };
        let status = redirect.status_code.unwrap_or(302);
        if !matches!(status, 301 | 302 | 303 | 307 | 308) {
            return Err(Invalid(format!("{status} is not a redirect's status")));
        }
        Ok(Self {
            scheme,
            host: redirect.hostname.as_deref().map(hostname).transpose()?,
            path: redirect.path.as_ref().map(|path| PathEdit::compile(path, prefix)).transpose()?,
            port: redirect.port,
            status: StatusCode::from_u16(status).map_err(|error| Invalid(error.to_string()))?,
        })
    }

    /// The response's status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The response's `Location`, by the rules of the Gateway API's `HTTPRequestRedirectFilter`: always
    /// with scheme and host, so that no path can turn into a host. What is left out is the request's own;
    /// `port` is the service port it was sent to. The query stays.
    pub fn location(&self, head: &Parts, port: u16) -> HeaderValue {
        let scheme = self.scheme.or(head.uri.scheme_str()).unwrap_or("http");
        let well_known = if scheme == "https" { 443 } else { 80 };
        let port = self.port.unwrap_or(if self.scheme.is_some() { well_known } else { port });
        let authority = head.uri.authority().cloned().or_else(|| {
            let host = head.headers.get(HOST)?;
            Authority::try_from(host.as_bytes()).ok()
        });
        let host = self.host.as_ref().or(authority.as_ref()).map_or("", Authority::host);
        let path = head.uri.path();
        let edited = self.path.as_ref().and_then(|edit| edit.apply(path));
        let mut location = format!("{scheme}://{host}");
        if port != well_known {
            location.push(':');
            location.push_str(&port.to_string());
        }
        push_visible(&mut location, edited.as_deref().unwrap_or(path));
        if let Some(query) = head.uri.query() {
            location.push('?');
            push_visible(&mut location, query);
        }
        HeaderValue::try_from(location).expect("scheme, host and escapes are visible ASCII")
    }
}

/// Adds a part of a URI; what HTTP does not allow in one, and some clients send, is escaped.
fn push_visible(to: &mut String, part: &str) {
    for byte in part.bytes() {
        if byte.is_ascii_graphic() {
            to.push(char::from(byte));
        } else {
            let _ = write!(to, "%{byte:02X}"); // writing to text does not fail
        }
    }
}

/// Where copies go.
#[derive(Debug)]
pub struct Mirror {
    /// The service.
    pub service: ServiceName,
    /// Its port.
    pub port: u16,
    numerator: u32,
    denominator: u32,
}

impl Mirror {
    fn compile(mirror: &RequestMirror, namespace: &str) -> Result<Self, Invalid> {
        let to = &mirror.backend_ref;
        let (numerator, denominator) = match (mirror.percent, mirror.fraction) {
            (None, None) => (1, 1),
            (Some(percent), None) => (u32::from(percent), 100),
            (None, Some(fraction)) => (fraction.numerator, fraction.denominator),
            (Some(_), Some(_)) => return Err(Invalid("percent and fraction exclude each other".to_owned())),
        };
        if denominator == 0 || numerator > denominator {
            return Err(Invalid(format!("{numerator} of {denominator} is not a share")));
        }
        Ok(Self {
            service: service(&to.kind, to.namespace.as_deref().unwrap_or(namespace), &to.name)?,
            port: to.port.ok_or_else(|| Invalid(format!("mirror {} has no port", to.name)))?,
            numerator,
            denominator,
        })
    }

    fn is_due(&self, rng: &mut Rng) -> bool {
        rng.u32(..self.denominator) < self.numerator
    }
}
