//! Which rule applies to a request. This version has one rule a service port: forward it there.

use std::sync::Arc;

use crate::telemetry::edge::Edge;

/// Name of the rule that applies where no other is configured.
pub const DEFAULT_ROUTE: &str = "default";

/// A rule, with the metrics of the requests it governs.
#[derive(Debug)]
pub struct Route {
    /// Metrics of the edge under this rule.
    pub edge: Arc<Edge>,
}

/// The rules of one service port, in order of precedence.
#[derive(Debug)]
pub struct RouteTable {
    default: Route,
}

impl RouteTable {
    /// A table with the default rule alone.
    pub fn new(default: Route) -> Self {
        Self { default }
    }

    /// The rule for a request: always the default one.
    pub fn find(&self) -> &Route {
        &self.default
    }
}
