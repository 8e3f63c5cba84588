//! What a sidecar keeps of its calls to one port of a service, whatever the snapshot: the retry
//! budget, the limits, the latency that hedging goes by. A new policy changes it in place.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use outrigger_api::resource::policy::TrafficPolicySpec;
use outrigger_api::resource::value::Span;

use crate::config::Config;
use crate::outbound::policy::{client_budget, hash_source};
use crate::policy::budget::RetryBudget;
use crate::policy::hedge::Latencies;
use crate::policy::limit::Bound;
use crate::pool::connector::Limits;
use crate::route::Invalid;
use crate::route::hash::HashSource;

/// See the module.
#[derive(Debug)]
pub struct Destination {
    /// How much may be sent again.
    pub budget: RetryBudget,
    /// Requests on their way.
    pub in_flight: Arc<Bound>,
    latencies: OnceLock<Latencies>,
    settings: ArcSwap<Settings>,
}

/// What of a destination's policy the request path reads.
#[derive(Debug)]
pub struct Settings {
    /// Limits of the connections.
    pub limits: Limits,
    /// What requests are hashed by, if the algorithm hashes.
    pub hash: Option<HashSource>,
}

impl Destination {
    /// One that nobody has called yet.
    pub fn new(config: &Config, now: Instant) -> Self {
        let limits = Limits::unbounded(config.timeouts.connect, config.pool.idle_timeout);
        let built_in = TrafficPolicySpec::built_in();
        Self {
            budget: RetryBudget::new(client_budget(&built_in), now),
            in_flight: Bound::new(u32::MAX),
            latencies: OnceLock::new(),
            settings: ArcSwap::from_pointee(Settings { limits, hash: None }),
        }
    }

    /// Response latencies, observed while a policy asks for hedging: without one they take no memory.
    pub fn latencies(&self) -> &Latencies {
        self.latencies.get_or_init(|| Latencies::new(Instant::now()))
    }

    /// The settings in force.
    pub fn settings(&self) -> Arc<Settings> {
        self.settings.load_full()
    }

    /// Puts a policy in force, for what is under way as well.
    ///
    /// # Errors
    /// When it cannot be compiled; nothing changes then.
    pub fn update(&self, policy: &TrafficPolicySpec, config: &Config) -> Result<(), Invalid> {
        let hash = hash_source(policy)?;
        let timeouts = policy.timeouts.clone().unwrap_or_default();
        let pool = policy.connection_pool.clone().unwrap_or_default();
        let span = |said: Option<Span>, default: Duration| said.map_or(default, Duration::from);
        let old = self.settings.load();
        let limits = Limits {
            connect: span(timeouts.connect, config.timeouts.connect),
            idle: span(timeouts.idle, config.pool.idle_timeout),
            max_requests_per_connection: pool.max_requests_per_connection,
            connections: old.limits.connections.clone(),
            pending: old.limits.pending.clone(),
        };
        limits.connections.set_limit(pool.max_connections.unwrap_or(u32::MAX));
        limits.pending.set_limit(pool.max_pending.unwrap_or(u32::MAX));
        self.in_flight.set_limit(pool.max_in_flight.unwrap_or(u32::MAX));
        self.budget.update(client_budget(policy));
        self.settings.store(Arc::new(Settings { limits, hash }));
        Ok(())
    }
}
