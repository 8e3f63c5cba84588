//! Faults made on purpose: which requests are held back or answered by the mesh.

use std::time::Duration;

use fastrand::Rng;
use http::StatusCode;
use outrigger_api::resource::policy::{self, GrpcCode};

use super::condition::{Head, HttpMatch};
use super::{Invalid, path};

const DEFAULT_STATUS: u16 = 503;

/// The faults of a policy, compiled.
#[derive(Debug)]
pub struct Faults {
    /// With the share of the requests, 0 to 1.
    delay: Option<(f64, Duration)>,
    abort: Option<(f64, Abort)>,
    matches: Vec<HttpMatch>,
}

/// What befalls one request: the delay first, then the abort.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultAction {
    /// How long it is held back.
    pub delay: Option<Duration>,
    /// What it is answered with in place of being sent.
    pub abort: Option<Abort>,
}

/// The answer to an aborted request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Abort {
    /// Of HTTP requests.
    pub status: StatusCode,
    /// Of calls of gRPC.
    pub grpc_code: GrpcCode,
}

impl Faults {
    /// # Errors
    /// A match or status that is none.
    pub fn compile(spec: &policy::Faults) -> Result<Self, Invalid> {
        let abort = spec.abort.as_ref().map(|abort| {
            let status = abort.status.unwrap_or(DEFAULT_STATUS);
            let status =
                StatusCode::from_u16(status).map_err(|_| Invalid(format!("{status} is not a status")))?;
            let grpc_code = abort.grpc_code.unwrap_or(GrpcCode::Unavailable);
            Ok((abort.percent.share(), Abort { status, grpc_code }))
        });
        Ok(Self {
            delay: spec.delay.as_ref().map(|delay| (delay.percent.share(), delay.duration.0)),
            abort: abort.transpose()?,
            matches: spec.matches.iter().map(HttpMatch::compile).collect::<Result<_, _>>()?,
        })
    }

    /// What befalls a request, if anything. Delay and abort are drawn independently.
    pub fn decide(&self, head: &Head<'_>, rng: &mut Rng) -> Option<FaultAction> {
        if !self.applies(head) {
            return None;
        }
        let mut drawn = |share: f64| rng.f64() < share;
        let delay = self.delay.filter(|(share, _)| drawn(*share)).map(|(_, delay)| delay);
        let abort = self.abort.filter(|(share, _)| drawn(*share)).map(|(_, abort)| abort);
        (delay.is_some() || abort.is_some()).then_some(FaultAction { delay, abort })
    }

    fn applies(&self, head: &Head<'_>) -> bool {
        if self.matches.is_empty() {
            return true;
        }
        let path = path::normalise(head.path);
        self.matches.iter().any(|conditions| conditions.matches(head, &path))
    }
}
