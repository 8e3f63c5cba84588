//! Fields of the routes.

use super::{Field, PORT, Range, field};

/// Fields of a match of an `HTTPRoute`.
pub const HTTP_MATCH: &[Field] = &[
    field(
        "path.type",
        Range::Words(&["Exact", "PathPrefix", "RegularExpression"]),
        "PathPrefix",
        "how the path is compared; a prefix consists of whole elements, a regular expression matches all of it",
    ),
    field(
        "path.value",
        Range::Text("a path, or a regular expression of at most 1024 bytes"),
        "/",
        "what the path must be",
    ),
    field(
        "headers[].type",
        Range::Words(&["Exact", "RegularExpression"]),
        "Exact",
        "how the value is compared; a regular expression matches all of it",
    ),
    field("headers[].name", Range::Text("a header name"), "-", "header that must be there"),
    field("headers[].value", Range::Text("1 to 4096 bytes"), "-", "what it must be"),
    field(
        "queryParams[].type",
        Range::Words(&["Exact", "RegularExpression"]),
        "Exact",
        "how the value is compared; a regular expression matches all of it",
    ),
    field("queryParams[].name", Range::Text("1 to 256 bytes"), "-", "query parameter that must be there"),
    field("queryParams[].value", Range::Text("1 to 1024 bytes"), "-", "what it must be"),
    field("method", Range::Words(METHODS), "-", "the method"),
];

/// The methods there are (RFC 9110 section 9.3, RFC 5789).
const METHODS: &[&str] = &["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// Fields of a filter.
pub const HTTP_FILTER: &[Field] = &[
    field(
        "type",
        Range::Words(&[
            "RequestHeaderModifier",
            "ResponseHeaderModifier",
            "RequestRedirect",
            "URLRewrite",
            "RequestMirror",
        ]),
        "-",
        "which; the key of the same name, in camel case, stands beside it. A GRPCRoute has header modifiers and mirrors alone",
    ),
    field(
        "requestHeaderModifier.set[].name",
        Range::Text("a header name"),
        "-",
        "header of the request that is replaced; not one of the connection, of framing, `host` or of the mesh (`x-mesh-*`)",
    ),
    field("requestHeaderModifier.set[].value", Range::Text("1 to 4096 bytes"), "-", "its value"),
    field(
        "requestHeaderModifier.add[].name",
        Range::Text("a header name"),
        "-",
        "header of the request that is appended; not one of the connection, of framing, `host` or of the mesh (`x-mesh-*`)",
    ),
    field("requestHeaderModifier.add[].value", Range::Text("1 to 4096 bytes"), "-", "its value"),
    field(
        "requestHeaderModifier.remove[]",
        Range::Text("a header name"),
        "-",
        "header of the request that is taken out; as above",
    ),
    field(
        "responseHeaderModifier.set[].name",
        Range::Text("a header name"),
        "-",
        "header of the response that is replaced; not one of the connection, of framing, `host` or of the mesh (`x-mesh-*`)",
    ),
    field("responseHeaderModifier.set[].value", Range::Text("1 to 4096 bytes"), "-", "its value"),
    field(
        "responseHeaderModifier.add[].name",
        Range::Text("a header name"),
        "-",
        "header of the response that is appended; not one of the connection, of framing, `host` or of the mesh (`x-mesh-*`)",
    ),
    field("responseHeaderModifier.add[].value", Range::Text("1 to 4096 bytes"), "-", "its value"),
    field(
        "responseHeaderModifier.remove[]",
        Range::Text("a header name"),
        "-",
        "header of the response that is taken out; as above",
    ),
    field("requestRedirect.scheme", Range::Words(&["http", "https"]), "-", "left out: the request's"),
    field("requestRedirect.hostname", Range::Text("a DNS name"), "-", "left out: the request's"),
    field(
        "requestRedirect.path.type",
        Range::Words(&["ReplaceFullPath", "ReplacePrefixMatch"]),
        "-",
        "what is replaced: all of the path, or what the one `PathPrefix` of the rule matched",
    ),
    field("requestRedirect.path.replaceFullPath", Range::Text("a path"), "-", "the new path"),
    field(
        "requestRedirect.path.replacePrefixMatch",
        Range::Text("a path or nothing"),
        "-",
        "in place of the prefix",
    ),
    field(
        "requestRedirect.port",
        PORT,
        "-",
        "left out: the scheme's own where a scheme is given, else the request's",
    ),
    field(
        "requestRedirect.statusCode",
        Range::Text("301, 302, 303, 307 or 308"),
        "302",
        "status of the answer",
    ),
    field("urlRewrite.hostname", Range::Text("a DNS name"), "-", "host the backend sees"),
    field(
        "urlRewrite.path.type",
        Range::Words(&["ReplaceFullPath", "ReplacePrefixMatch"]),
        "-",
        "what is replaced: all of the path, or what the one `PathPrefix` of the rule matched",
    ),
    field("urlRewrite.path.replaceFullPath", Range::Text("a path"), "-", "the new path"),
    field(
        "urlRewrite.path.replacePrefixMatch",
        Range::Text("a path or nothing"),
        "-",
        "in place of the prefix",
    ),
    field("requestMirror.backendRef.group", Range::Text("empty or core"), "-", "the group of Services"),
    field("requestMirror.backendRef.kind", Range::Words(&["Service"]), "Service", "of what"),
    field("requestMirror.backendRef.name", Range::Label, "-", "the Service"),
    field("requestMirror.backendRef.namespace", Range::Label, "the route's own", "its namespace"),
    field("requestMirror.backendRef.port", PORT, "-", "its port; needed"),
    field("requestMirror.percent", Range::Whole(0, 100), "100", "share of the requests that are copied"),
    field(
        "requestMirror.fraction.numerator",
        Range::Whole(0, 2_147_483_647),
        "-",
        "the share as a fraction, not together with `percent`; at most the denominator",
    ),
    field("requestMirror.fraction.denominator", Range::Whole(1, 2_147_483_647), "100", "of the fraction"),
];

/// Fields of an `HTTPRoute`.
pub const HTTP_ROUTE: &[Field] = &[
    field("parentRefs[].group", Range::Text("empty or core"), "-", "the group of Services"),
    field(
        "parentRefs[].kind",
        Range::Words(&["Service"]),
        "Service",
        "of what: there are no Gateways in a mesh",
    ),
    field(
        "parentRefs[].namespace",
        Range::Label,
        "the route's own",
        "of the Service; where it is another, the route governs the calls from the route's namespace alone",
    ),
    field("parentRefs[].name", Range::Label, "-", "the Service whose calls the route governs"),
    field(
        "parentRefs[].sectionName",
        Range::Text("a DNS label"),
        "-",
        "a port of the Service, by name; not together with `port`",
    ),
    field("parentRefs[].port", PORT, "-", "a port of the Service; left out: all of them"),
    field("rules[].name", Range::Label, "-", "for policies, metrics and spans; unique in the route"),
    field(
        "rules[].matches[]",
        Range::List("HTTP match", HTTP_MATCH),
        "-",
        "any one of these, at most 64 and 128 in the route; left out: everything",
    ),
    field(
        "rules[].filters[]",
        Range::List("filter", HTTP_FILTER),
        "-",
        "applied in order, at most 16; each type but `RequestMirror` once",
    ),
    field("rules[].backendRefs[].group", Range::Text("empty or core"), "-", "the group of Services"),
    field("rules[].backendRefs[].kind", Range::Words(&["Service"]), "Service", "of what"),
    field("rules[].backendRefs[].name", Range::Label, "-", "the Service"),
    field("rules[].backendRefs[].namespace", Range::Label, "the route's own", "its namespace"),
    field("rules[].backendRefs[].port", PORT, "-", "its port; needed"),
    field(
        "rules[].backendRefs[].weight",
        Range::Whole(0, 1_000_000),
        "1",
        "share among the backends of the rule",
    ),
    field(
        "rules[].backendRefs[].filters[]",
        Range::List("filter", HTTP_FILTER),
        "-",
        "applied to this backend's requests alone, after the rule's",
    ),
    field(
        "rules[].timeouts.request",
        Range::SpanOrZero(1, 86_400_000),
        "-",
        "as `timeouts.request` of a TrafficPolicy attached to the rule, which wins; `0s`: none",
    ),
    field(
        "rules[].timeouts.backendRequest",
        Range::SpanOrZero(1, 86_400_000),
        "-",
        "as `timeouts.perTry`; at most `request`",
    ),
    field("rules[].retry.codes[]", Range::Whole(400, 599), "-", "as `retries.statuses`"),
    field("rules[].retry.attempts", Range::Whole(0, 10), "-", "as `retries.attempts`"),
    field("rules[].retry.backoff", Range::Span(1, 60_000), "-", "as `retries.backoffBase`"),
];

/// Fields of a `GRPCRoute`.
pub const GRPC_ROUTE: &[Field] = &[
    field("parentRefs[].group", Range::Text("empty or core"), "-", "the group of Services"),
    field(
        "parentRefs[].kind",
        Range::Words(&["Service"]),
        "Service",
        "of what: there are no Gateways in a mesh",
    ),
    field(
        "parentRefs[].namespace",
        Range::Label,
        "the route's own",
        "of the Service; where it is another, the route governs the calls from the route's namespace alone",
    ),
    field("parentRefs[].name", Range::Label, "-", "the Service whose calls the route governs"),
    field(
        "parentRefs[].sectionName",
        Range::Text("a DNS label"),
        "-",
        "a port of the Service, by name; not together with `port`",
    ),
    field("parentRefs[].port", PORT, "-", "a port of the Service; left out: all of them"),
    field("rules[].name", Range::Label, "-", "for policies, metrics and spans; unique in the route"),
    field(
        "rules[].matches[].method.type",
        Range::Words(&["Exact", "RegularExpression"]),
        "Exact",
        "how service and method are compared",
    ),
    field(
        "rules[].matches[].method.service",
        Range::Text("a name of gRPC, or a regular expression"),
        "-",
        "such as `shop.v1.Orders`; service, method or both",
    ),
    field(
        "rules[].matches[].method.method",
        Range::Text("a name of gRPC, or a regular expression"),
        "-",
        "such as `Create`",
    ),
    field(
        "rules[].matches[].headers[].type",
        Range::Words(&["Exact", "RegularExpression"]),
        "Exact",
        "how the value is compared; a regular expression matches all of it",
    ),
    field(
        "rules[].matches[].headers[].name",
        Range::Text("a header name"),
        "-",
        "metadata that must be there",
    ),
    field("rules[].matches[].headers[].value", Range::Text("1 to 4096 bytes"), "-", "what it must be"),
    field(
        "rules[].filters[]",
        Range::List("filter", HTTP_FILTER),
        "-",
        "header modifiers and mirrors, applied in order",
    ),
    field("rules[].backendRefs[].group", Range::Text("empty or core"), "-", "the group of Services"),
    field("rules[].backendRefs[].kind", Range::Words(&["Service"]), "Service", "of what"),
    field("rules[].backendRefs[].name", Range::Label, "-", "the Service"),
    field("rules[].backendRefs[].namespace", Range::Label, "the route's own", "its namespace"),
    field("rules[].backendRefs[].port", PORT, "-", "its port; needed"),
    field(
        "rules[].backendRefs[].weight",
        Range::Whole(0, 1_000_000),
        "1",
        "share among the backends of the rule",
    ),
    field(
        "rules[].backendRefs[].filters[]",
        Range::List("filter", HTTP_FILTER),
        "-",
        "applied to this backend's requests alone, after the rule's",
    ),
];
