//! What governs the calls that arrive at one served port: who may call, how often, how many at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::request::Parts;
use outrigger_api::attach::Call;
use outrigger_api::resource::Resource;
use outrigger_api::resource::policy::{self, TrafficPolicySpec};
use outrigger_common::identity::SpiffeId;
use outrigger_common::name::ServiceName;

use crate::config::Config;
use crate::error::ProxyError;
use crate::outbound::policy::in_force;
use crate::policy::authz::{Authorization, Port, Verdict};
use crate::policy::limit;
use crate::policy::rate::{self, Bucket, CallerRates, Rate};
use crate::route::condition::Head;
use crate::route::matcher::{Found, Frontend, Table};
use crate::route::rule::Rule;

/// One served port, as policies name it.
#[derive(Debug, Clone, Copy)]
pub struct Served<'a> {
    /// The service.
    pub service: &'a ServiceName,
    /// The port, as callers name it.
    pub port: u16,
    /// Its name, if the registry tells one.
    pub port_name: Option<&'a str>,
}

/// See the module. Replaced as a whole by a new policy; buckets go on, at the new rate.
#[derive(Debug)]
pub struct PortPolicy {
    authorization: Authorization,
    /// Finds the route, where a route has rates of its own.
    table: Arc<Table>,
    by_rule: Vec<Arc<Rates>>,
    default: Arc<Rates>,
    /// A body that does not move.
    pub stream_idle: Duration,
    /// A connection of opaque bytes that does not move.
    pub tcp_idle: Duration,
}

/// Rate limits of the service, or of one rule.
#[derive(Debug, Default)]
struct Rates {
    all: Option<(policy::Rate, Arc<Bucket>)>,
    per_caller: Option<(policy::Rate, Arc<CallerRates>)>,
}

impl PortPolicy {
    /// Lets everybody in, at any rate.
    pub fn open(config: &Config) -> Self {
        Self {
            authorization: Authorization::default(),
            table: Arc::default(),
            by_rule: Vec::new(),
            default: Arc::default(),
            stream_idle: config.timeouts.idle,
            tcp_idle: config.timeouts.tcp_idle,
        }
    }

    /// What `resources` say about the port, and the policy in force there. Routes that cannot be
    /// compiled, which the registry's check excludes, leave the old ones in force for their rates;
    /// they never keep a new word on who may call from holding.
    pub fn compile(
        resources: &[Resource],
        defaults: &TrafficPolicySpec,
        served: &Served<'_>,
        (old, config, now): (&Self, &Config, Instant),
    ) -> (Self, TrafficPolicySpec) {
        let &Served { service, port, port_name } = served;
        let own = service.namespace();
        let policies = resources.iter().filter_map(|resource| match resource {
            Resource::AuthorizationPolicy { name, spec } => Some((name, spec)),
            _ => None,
        });
        let authorization = Authorization::compile(policies, service, Port { number: port, name: port_name });
        // Routes of the service's own namespace: what callers' namespaces make of their calls is theirs.
        let frontend = Frontend { service, port, port_name, caller_namespace: own };
        let table = Table::compile(&frontend, resources).map(Arc::new).unwrap_or_else(|error| {
            tracing::error!(%service, port, %error, "routes left out; those before stay");
            old.table.clone()
        });
        let call = Call { caller: own, service, port, port_name, route: None };
        let spec = in_force(resources, &call, defaults);
        let default = Rates::of(&spec, &old.default, now);
        let by_rule = table.rules().iter().map(|rule| {
            let call = Call { route: Some(rule.reference()), ..call };
            let of_rule = in_force(resources, &call, defaults);
            if rates(&of_rule) == rates(&spec) {
                return default.clone();
            }
            let same = |old: &Rule| {
                old.route == rule.route && old.label == rule.label && old.position == rule.position
            };
            let before = old.table.rules().iter().find(|old| same(old));
            let before = before.and_then(|before| old.by_rule.get(before.index));
            // What it shared with the others is theirs.
            let own = before.filter(|before| !Arc::ptr_eq(before, &old.default));
            Rates::of(&of_rule, own.unwrap_or(&Arc::default()), now)
        });
        let by_rule = by_rule.collect();
        let idle = spec.timeouts.as_ref().and_then(|timeouts| timeouts.stream_idle);
        let stream_idle = idle.map_or(config.timeouts.idle, Duration::from);
        let tcp_idle = idle.map_or(config.timeouts.tcp_idle, Duration::from);
        (Self { authorization, table, by_rule, default, stream_idle, tcp_idle }, spec)
    }

    /// Whether `caller` may call.
    ///
    /// # Errors
    /// It may not.
    pub fn authorize(&self, caller: &SpiffeId, service: &ServiceName) -> Result<(), ProxyError> {
        let why = match self.authorization.decide(caller) {
            Verdict::Allow => return Ok(()),
            Verdict::Deny { policy: Some(policy) } => {
                format!("AuthorizationPolicy {}/{} denies it", policy.namespace, policy.name)
            }
            Verdict::Deny { policy: None } => "no AuthorizationPolicy allows it".to_owned(),
        };
        Err(ProxyError::Denied { caller: caller.to_string(), service: service.to_string(), why })
    }

    /// Takes the request of `caller` out of the rates that govern it.
    ///
    /// # Errors
    /// One of them is exceeded.
    pub fn rate(&self, head: &Parts, grpc: bool, caller: &SpiffeId, now: Instant) -> Result<(), ProxyError> {
        let rates = match self.table.find(&Head::new(head, grpc)) {
            Found::Rule(rule) => self.by_rule.get(rule.index).unwrap_or(&self.default),
            Found::Default | Found::NotFound => &self.default,
        };
        let exceeded = |limit| move |retry_after| ProxyError::RateLimited { limit, retry_after };
        // The caller's own first: who is over it must not use up what is everybody's.
        if let Some((_, callers)) = &rates.per_caller {
            callers.take(caller, now).map_err(exceeded("this caller's rate limit"))?;
        }
        if let Some((_, bucket)) = &rates.all {
            bucket.take(now).map_err(exceeded("the rate limit"))?;
        }
        Ok(())
    }
}

fn rates(spec: &TrafficPolicySpec) -> (Option<policy::Rate>, Option<policy::Rate>) {
    let limits = spec.limits.clone().unwrap_or_default();
    (limits.rate, limits.rate_per_caller)
}

impl Rates {
    fn of(spec: &TrafficPolicySpec, old: &Arc<Self>, now: Instant) -> Arc<Self> {
        let (all, per_caller) = rates(spec);
        let said = |kept: Option<&policy::Rate>| kept.cloned();
        let before = (
            said(old.all.as_ref().map(|(rate, _)| rate)),
            said(old.per_caller.as_ref().map(|(rate, _)| rate)),
        );
        if before == (all.clone(), per_caller.clone()) {
            return old.clone();
        }
        // A bucket that begins anew is a full one, which every new policy would give away.
        let all = all.map(|said| match &old.all {
            Some((kept, bucket)) => {
                if *kept != said {
                    bucket.update(plain(&said), now);
                }
                (said, bucket.clone())
            }
            None => (said.clone(), Arc::new(Bucket::new(plain(&said), now))),
        });
        let per_caller = per_caller.map(|said| match &old.per_caller {
            Some((kept, callers)) => {
                if *kept != said {
                    callers.update(plain(&said), now);
                }
                (said, callers.clone())
            }
            None => (said.clone(), Arc::new(CallerRates::new(plain(&said), rate::CALLERS, now))),
        });
        Arc::new(Self { all, per_caller })
    }
}

/// One second's worth, at least 1, where no burst is said.
fn plain(rate: &policy::Rate) -> Rate {
    // Bounded by the check of the resource, far below what a u32 holds.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let second = rate.requests_per_second.ceil().clamp(1.0, 1e6) as u32;
    Rate { per_second: rate.requests_per_second, burst: rate.burst.unwrap_or(second) }
}

/// The bounds on concurrency.
pub fn concurrency(spec: &TrafficPolicySpec) -> limit::Settings {
    let limits = spec.limits.clone().unwrap_or_default();
    limit::Settings {
        max_in_flight: limits.max_in_flight.unwrap_or(1024),
        max_queued: limits.max_queued.unwrap_or(128),
        max_wait: limits.max_wait.map_or(Duration::from_millis(100), Duration::from),
        adaptive: limits.adaptive.unwrap_or(false),
    }
}
