//! The retry loop: attempts on endpoints not yet tried, only where repeating is safe, and only as
//! many as the budget of the destination allows.
//!
//! Undelivered requests of any method are repeated, and idempotent or keyed ones that met a broken
//! connection, a timeout of one attempt, or an answer the policy names. Nothing else is: a request
//! that may have reached the application may have had its effect.

use std::time::{Duration, Instant};

use http::Response;
use hyper::body::Incoming;

use super::attempt::{self, Outcome, Wish};
use super::call::{Call, Tried};
use super::hedge;
use super::watch::Watch;
use crate::error::ProxyError;
use crate::pool::h2::StreamGuard;
use crate::telemetry::metrics::{RetryOutcome, RetryReason};

/// A response, and what must live as long as its body.
pub struct Sent {
    /// Head read, body not.
    pub response: Response<Incoming>,
    /// Who answered, and what is learned of it.
    pub watch: Watch,
    /// Counts the stream at the connection.
    pub stream: StreamGuard,
}

/// Sends a request, and sends it again where that is safe.
///
/// Cancel safety: the attempt under way is reset.
///
/// # Errors
/// How the last attempt failed.
pub async fn send(call: &Call<'_>) -> Result<Sent, ProxyError> {
    call.destination.budget.request(Instant::now());
    let mut tried = Tried::default();
    let mut failed: Option<Wish> = None;
    for number in 1..=call.policy.attempts {
        if let Some(wish) = &failed {
            match pause(call, wish, number, &tried) {
                Ok(pause) if pause.is_zero() => {}
                Ok(pause) => tokio::time::sleep(pause).await,
                Err(outcome) => {
                    call.edge.retry(wish.reason, outcome);
                    break;
                }
            }
        }
        let Some(watch) = call.pick(&tried) else { break };
        let Some(body) = call.payload.attempt() else { break };
        if let Some(wish) = failed.take() {
            // The failed response is let go only now: it might have been the answer.
            call.edge.retry(wish.reason, RetryOutcome::Sent);
        }
        tried.add(watch.endpoint().clone());
        let outcome = match hedge::delay(call, number) {
            None => attempt::run(call, watch, body, number).await,
            // Rare, and large.
            Some(delay) => Box::pin(hedge::run(call, watch, delay, &mut tried)).await,
        };
        match outcome {
            Outcome::Done(sent) => return Ok(sent),
            Outcome::Fail(error) => return Err(error),
            Outcome::Again(wish) => failed = Some(wish),
        }
    }
    failed.map_or_else(|| Err(ProxyError::NoEndpoint(call.service.to_string())), |wish| wish.result)
}

/// How long to wait before the attempt of this number, if there may be one.
fn pause(call: &Call<'_>, wish: &Wish, number: u32, tried: &Tried) -> Result<Duration, RetryOutcome> {
    let undelivered = wish.reason == RetryReason::Undelivered;
    let may_repeat = undelivered || (wish.repeatable && !call.terms.under_retry);
    if !may_repeat || !call.payload.replayable() {
        return Err(RetryOutcome::NotReplayable);
    }
    // At first: nobody's capacity was used, and another endpoint is not to blame.
    let at_once = wish.asked.is_none() && undelivered && number == 2 && call.pick_untried(tried).is_some();
    let mut rng = fastrand::Rng::with_seed(fastrand::u64(..));
    let wait = match at_once {
        true => Duration::ZERO,
        false => call.policy.backoff.pause(number - 1, wish.asked, &mut rng).ok_or(RetryOutcome::Pushback)?,
    };
    let now = Instant::now();
    if call.left(now).is_some_and(|left| left <= wait) {
        // The answer would come too late.
        return Err(RetryOutcome::Pushback);
    }
    if !call.destination.budget.withdraw(now) {
        return Err(RetryOutcome::BudgetExhausted);
    }
    Ok(wait)
}
