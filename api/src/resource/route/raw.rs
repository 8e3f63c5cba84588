//! The written form of the Gateway API's unions: `type`, and beside it the key that goes with it.
//!
//! Plain structs, because serde's tagged enums read a copy of the document, which has no lines.

use serde::{Deserialize, Serialize};

use super::{HeaderModifier, HttpRouteFilter, PathModifier, RequestMirror, RequestRedirect, UrlRewrite};

#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
enum FilterType {
    RequestHeaderModifier,
    ResponseHeaderModifier,
    RequestRedirect,
    #[serde(rename = "URLRewrite")]
    UrlRewrite,
    RequestMirror,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawFilter {
    #[serde(rename = "type")]
    kind: FilterType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_header_modifier: Option<HeaderModifier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    response_header_modifier: Option<HeaderModifier>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_redirect: Option<RequestRedirect>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    url_rewrite: Option<UrlRewrite>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    request_mirror: Option<RequestMirror>,
}

impl RawFilter {
    fn empty(kind: FilterType) -> Self {
        Self {
            kind,
            request_header_modifier: None,
            response_header_modifier: None,
            request_redirect: None,
            url_rewrite: None,
            request_mirror: None,
        }
    }
}

impl TryFrom<RawFilter> for HttpRouteFilter {
    type Error = String;

    fn try_from(raw: RawFilter) -> Result<Self, String> {
        let kind = raw.kind;
        let mut found = Vec::new();
        found.extend(raw.request_header_modifier.map(|modifier| {
            let filter = Self::RequestHeaderModifier { modifier };
            (FilterType::RequestHeaderModifier, "requestHeaderModifier", filter)
        }));
        found.extend(raw.response_header_modifier.map(|modifier| {
            let filter = Self::ResponseHeaderModifier { modifier };
            (FilterType::ResponseHeaderModifier, "responseHeaderModifier", filter)
        }));
        found.extend(raw.request_redirect.map(|redirect| {
            (FilterType::RequestRedirect, "requestRedirect", Self::RequestRedirect { redirect })
        }));
        found.extend(
            raw.url_rewrite
                .map(|rewrite| (FilterType::UrlRewrite, "urlRewrite", Self::UrlRewrite { rewrite })),
        );
        found.extend(
            raw.request_mirror
                .map(|mirror| (FilterType::RequestMirror, "requestMirror", Self::RequestMirror { mirror })),
        );
        if let Some((_, key, _)) = found.iter().find(|(found, ..)| *found != kind) {
            return Err(format!("a filter has the key its `type` names and no other; `{key}` is another"));
        }
        let Some((.., filter)) = found.pop() else {
            return Err("a filter has the key its `type` names; it is missing".to_owned());
        };
        Ok(filter)
    }
}

impl From<HttpRouteFilter> for RawFilter {
    fn from(filter: HttpRouteFilter) -> Self {
        match filter {
            HttpRouteFilter::RequestHeaderModifier { modifier } => {
                let empty = Self::empty(FilterType::RequestHeaderModifier);
                Self { request_header_modifier: Some(modifier), ..empty }
            }
            HttpRouteFilter::ResponseHeaderModifier { modifier } => {
                let empty = Self::empty(FilterType::ResponseHeaderModifier);
                Self { response_header_modifier: Some(modifier), ..empty }
            }
            HttpRouteFilter::RequestRedirect { redirect } => {
                Self { request_redirect: Some(redirect), ..Self::empty(FilterType::RequestRedirect) }
            }
            HttpRouteFilter::UrlRewrite { rewrite } => {
                Self { url_rewrite: Some(rewrite), ..Self::empty(FilterType::UrlRewrite) }
            }
            HttpRouteFilter::RequestMirror { mirror } => {
                Self { request_mirror: Some(mirror), ..Self::empty(FilterType::RequestMirror) }
            }
        }
    }
}

#[derive(Clone, Copy, Serialize, Deserialize)]
enum PathModifierType {
    ReplaceFullPath,
    ReplacePrefixMatch,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct RawPathModifier {
    #[serde(rename = "type")]
    kind: PathModifierType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replace_full_path: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    replace_prefix_match: Option<String>,
}

impl TryFrom<RawPathModifier> for PathModifier {
    type Error = String;

    fn try_from(raw: RawPathModifier) -> Result<Self, String> {
        match (raw.kind, raw.replace_full_path, raw.replace_prefix_match) {
            (PathModifierType::ReplaceFullPath, Some(value), None) => Ok(Self::ReplaceFullPath { value }),
            (PathModifierType::ReplacePrefixMatch, None, Some(value)) => {
                Ok(Self::ReplacePrefixMatch { value })
            }
            (PathModifierType::ReplaceFullPath, ..) => {
                Err("a path of type ReplaceFullPath has `replaceFullPath` and nothing else".to_owned())
            }
            (PathModifierType::ReplacePrefixMatch, ..) => {
                Err("a path of type ReplacePrefixMatch has `replacePrefixMatch` and nothing else".to_owned())
            }
        }
    }
}

impl From<PathModifier> for RawPathModifier {
    fn from(path: PathModifier) -> Self {
        match path {
            PathModifier::ReplaceFullPath { value } => Self {
                kind: PathModifierType::ReplaceFullPath,
                replace_full_path: Some(value),
                replace_prefix_match: None,
            },
            PathModifier::ReplacePrefixMatch { value } => Self {
                kind: PathModifierType::ReplacePrefixMatch,
                replace_full_path: None,
                replace_prefix_match: Some(value),
            },
        }
    }
}
