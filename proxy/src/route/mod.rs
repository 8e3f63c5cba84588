//! Which rule governs a request, and what the rule does: `HTTPRoute` and `GRPCRoute` of the Gateway API
//! in the form for meshes (GEP-1294), compiled. Pure: no clock, no socket, randomness comes in.
//!
//! `docs/routing.md` tells people the same at more length. The decisions that the Gateway API leaves
//! open:
//!
//! - **Paths** are compared in normal form ([`path::normalise`]), so that `/a/../admin`, `//admin`,
//!   `/%61dmin` and `/./admin` meet the rules of `/admin`. What was received is forwarded, byte for byte,
//!   unless a filter changes it. `%2F` is data, not a slash: `/a%2Fb` is one element.
//! - **Regular expressions** match all of a value, in the `regex` crate's syntax, and of a path its normal
//!   form. Among paths they come after `Exact` and before every prefix, the longest first: behind the
//!   prefixes, a rule for everything would make each of them useless.
//! - **Kinds** do not mix: where a `GRPCRoute` is attached, gRPC is its affair alone, and `HTTPRoute`s of
//!   the same port govern everything else. Where none is, `HTTPRoute`s govern gRPC too. GEP-1294 would
//!   ignore the `HTTPRoute`s of such a port altogether, which could only turn their requests into 404.
//! - **Consumer routes**, those of the caller's namespace for a service of another, replace the
//!   producer's as a whole (GEP-1294, "Multiple routes for a Service").

pub mod condition;
pub mod fault;
pub mod filter;
pub mod hash;
pub mod matcher;
pub mod path;
pub mod pattern;
pub mod rule;

use self::rule::RouteId;

/// Name of the rule that applies where no other is configured.
pub const DEFAULT_ROUTE: &str = "default";

/// Why something of a route or policy cannot be compiled, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

/// A route that cannot be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{route} rule {rule}: {reason}")]
pub struct RouteError {
    /// Which.
    pub route: RouteId,
    /// Index of the rule within the route.
    pub rule: usize,
    /// Why.
    pub reason: Invalid,
}

#[cfg(test)]
mod tests;
