//! What governs the calls of one rule and the way to one destination: a traffic policy in force, as
//! plain values ready for the request path. Pure.

use std::time::Duration;

use http::StatusCode;
use outrigger_api::attach::{Call, layers_for};
use outrigger_api::resource::Resource;
use outrigger_api::resource::policy::{Effective, Layer, TrafficPolicySpec, effective};
use outrigger_api::resource::value::Span;

use crate::config::Config;
use crate::policy::backoff::Backoff;
use crate::policy::{budget, hedge};
use crate::route::fault::Faults;
use crate::route::hash::HashSource;

/// How requests of one rule are carried.
#[derive(Debug)]
pub struct CallPolicy {
    /// Of the whole request, from its head.
    pub deadline: Option<Duration>,
    /// From the last request byte sent to the response head, where there is no deadline; `None`: a
    /// policy says that there is no limit at all.
    pub head: Option<Duration>,
    /// Of one attempt, from its start to the response head.
    pub per_try: Option<Duration>,
    /// A body that does not move.
    pub stream_idle: Duration,
    /// A connection of opaque bytes that does not move.
    pub tcp_idle: Duration,
    /// Attempts at most, the first included.
    pub attempts: u32,
    /// On which answers a repeatable request is sent again.
    pub retry_on: RetryOn,
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// Bytes of a body kept for another attempt.
    pub buffer: usize,
    /// A second attempt before the first has failed.
    pub hedging: Option<hedge::Settings>,
    /// Faults made on purpose.
    pub faults: Option<Faults>,
}

/// Statuses and codes on which to send again.
#[derive(Debug, Clone, Copy, Default)]
pub struct RetryOn {
    /// Bit `status - 400`.
    statuses: [u64; 4],
    /// Bit of each code.
    grpc: u32,
}

impl RetryOn {
    /// Whether a response of this status is to be had again.
    pub fn status(&self, status: StatusCode) -> bool {
        let bit = usize::from(status.as_u16().wrapping_sub(FIRST_STATUS));
        self.statuses.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// Whether a call that ended with this code is to be made again.
    pub fn grpc(&self, code: u8) -> bool {
        1u32.checked_shl(code.into()).is_some_and(|bit| self.grpc & bit != 0)
    }
}

const FIRST_STATUS: u16 = 400;

/// The policy in force for calls, with the built-in defaults under all that was said.
pub fn in_force(resources: &[Resource], call: &Call<'_>, defaults: &TrafficPolicySpec) -> TrafficPolicySpec {
    explained(resources, call, defaults).spec
}

/// The same, with where each setting comes from.
pub fn explained(resources: &[Resource], call: &Call<'_>, defaults: &TrafficPolicySpec) -> Effective {
    let said = layers_for(resources, call, Some(defaults));
    let built_in = TrafficPolicySpec::built_in();
    let mut layers: Vec<_> = said.iter().map(|(origin, spec)| Layer { origin, spec }).collect();
    layers.push(Layer { origin: "default", spec: &built_in });
    effective(&layers)
}

impl CallPolicy {
    /// From a policy in force; what it leaves open the sidecar's own configuration says.
    ///
    /// # Errors
    /// A match that cannot be compiled, which the registry's check excludes.
    pub fn compile(spec: &TrafficPolicySpec, config: &Config) -> Result<Self, crate::route::Invalid> {
        let timeouts = spec.timeouts.clone().unwrap_or_default();
        let retries = spec.retries.clone().unwrap_or_default();
        let span = |span: Option<Span>| span.map(Duration::from).filter(|span| !span.is_zero());
        let mut retry_on = RetryOn::default();
        for status in retries.statuses.unwrap_or_default() {
            let bit = usize::from(status.saturating_sub(FIRST_STATUS));
            if let Some(word) = retry_on.statuses.get_mut(bit / 64) {
                *word |= 1 << (bit % 64);
            }
        }
        for code in retries.grpc_codes.unwrap_or_default() {
            retry_on.grpc |= 1 << code.number();
        }
        let base = span(retries.backoff_base).unwrap_or(Duration::from_millis(25));
        Ok(Self {
            deadline: span(timeouts.request),
            head: timeouts
                .request
                .is_none_or(|limit| !Duration::from(limit).is_zero())
                .then_some(config.timeouts.request),
            per_try: span(timeouts.per_try),
            stream_idle: span(timeouts.stream_idle).unwrap_or(config.timeouts.idle),
            tcp_idle: span(timeouts.stream_idle).unwrap_or(config.timeouts.tcp_idle),
            attempts: 1 + retries.attempts.unwrap_or(2),
            retry_on,
            backoff: Backoff {
                base,
                max: span(retries.backoff_max).unwrap_or(Duration::from_millis(250)).max(base),
            },
            buffer: retries.buffer.map_or(config.limits.replay_bytes, |size| size.0),
            hedging: spec.hedging.as_ref().map(|hedging| hedge::Settings {
                quantile: hedging.quantile.map_or(0.95, |quantile| quantile.share()),
                min_delay: span(hedging.min_delay).unwrap_or(Duration::from_millis(10)),
            }),
            faults: spec.faults.as_ref().map(Faults::compile).transpose()?,
        })
    }

    /// One attempt, with this sidecar's own times.
    pub fn once(config: &Config) -> Self {
        Self {
            deadline: None,
            head: Some(config.timeouts.request),
            per_try: None,
            stream_idle: config.timeouts.idle,
            tcp_idle: config.timeouts.tcp_idle,
            attempts: 1,
            retry_on: RetryOn::default(),
            backoff: Backoff { base: Duration::ZERO, max: Duration::ZERO },
            buffer: 0,
            hedging: None,
            faults: None,
        }
    }
}

/// The client's share of the retry budget.
pub fn client_budget(spec: &TrafficPolicySpec) -> budget::Settings {
    let said = spec.retry_budget.clone().unwrap_or_default();
    budget::Settings {
        share: said.percent.map_or(0.2, |percent| percent.share()),
        min_per_second: said.min_per_second.unwrap_or(3.0),
    }
}

/// The server's share.
pub fn server_budget(spec: &TrafficPolicySpec) -> budget::Settings {
    let said = spec.retry_budget.clone().unwrap_or_default();
    budget::Settings {
        share: said.server_percent.map_or(0.3, |percent| percent.share()),
        min_per_second: said.min_per_second.unwrap_or(3.0),
    }
}

/// What requests to a destination are hashed by, if its algorithm hashes.
///
/// # Errors
/// A header name that is none, which the registry's check excludes.
pub fn hash_source(spec: &TrafficPolicySpec) -> Result<Option<HashSource>, crate::route::Invalid> {
    spec.load_balancing
        .as_ref()
        .and_then(|balancing| balancing.hash.as_ref())
        .map(HashSource::compile)
        .transpose()
}
