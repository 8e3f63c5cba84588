//! The retry loop: attempts on endpoints not yet tried, only where repeating is safe, and only as
//! many as the budget of the destination allows.
//!
//! Undelivered requests of any method are repeated, and idempotent or keyed ones that met a broken
//! connection, a timeout of one attempt, or an answer the policy names. Nothing else is: a request
//! that may have reached the application may have had its effect.

use std::time::{Duration, Instant};

use http::Response;

use super::attempt::{self, Outcome, Wish};
use super::call::{Call, Tried};
use super::hedge;
use super::watch::Watch;
use crate::error::ProxyError;
use crate::http::incoming::Incoming;
use crate::policy::backoff::{Asked, Backoff};
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
    let mut number = 1;
    while number <= call.policy.attempts {
        if let Some(wish) = &failed {
            match pause(call, wish, number, &tried) {
                Ok(pause) if pause.is_zero() => {}
                Ok(pause) => Box::pin(tokio::time::sleep(pause)).await,
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
        let (outcome, made) = match hedge::delay(call, number) {
            None => (attempt::run(call, watch, body, number).await, 1),
            // Rare, and large.
            Some(delay) => Box::pin(hedge::run(call, watch, delay, &mut tried)).await,
        };
        match outcome {
            Outcome::Done(sent) => return Ok(sent),
            Outcome::Fail(error) => return Err(error),
            Outcome::Again(wish) => failed = Some(wish),
        }
        number += made;
    }
    failed.map_or_else(|| Err(ProxyError::NoEndpoint(call.service.to_string())), |wish| wish.result)
}

/// How long to wait before the attempt of this number, if there may be one.
fn pause(call: &Call<'_>, wish: &Wish, number: u32, tried: &Tried) -> Result<Duration, RetryOutcome> {
    let wanted = Wanted {
        undelivered: wish.reason == RetryReason::Undelivered,
        repeatable: wish.repeatable && !call.terms.under_retry,
        replayable: call.payload.replayable(),
        asked: wish.asked,
        retry: number - 1,
    };
    let elsewhere = || call.pick_untried(tried).is_some();
    let mut rng = fastrand::Rng::with_seed(fastrand::u64(..));
    let wait = wanted.pause(call.policy.backoff, elsewhere, &mut rng)?;
    let now = Instant::now();
    if call.left(now).is_some_and(|left| left <= wait) {
        // The answer would come too late.
        return Err(RetryOutcome::Pushback);
    }
    // Last: what is not sent again must not cost the budget.
    if !call.destination.budget.withdraw(now) {
        return Err(RetryOutcome::BudgetExhausted);
    }
    Ok(wait)
}

/// What another attempt depends on, the budget and the deadline aside.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    /// Certainly never reached the application.
    undelivered: bool,
    /// May be repeated although it may have had an effect.
    repeatable: bool,
    /// Its body can start over.
    replayable: bool,
    /// What the server said.
    asked: Option<Asked>,
    /// Which retry it would be, from 1.
    retry: u32,
}

impl Wanted {
    /// How long to wait before it, if it may be. Pure. `elsewhere`: whether there is an endpoint that
    /// was not tried.
    fn pause(
        self,
        backoff: Backoff,
        elsewhere: impl FnOnce() -> bool,
        rng: &mut fastrand::Rng,
    ) -> Result<Duration, RetryOutcome> {
        if !(self.undelivered || self.repeatable) || !self.replayable {
            return Err(RetryOutcome::NotReplayable);
        }
        // At first: nobody's capacity was used, and another endpoint is not to blame.
        if self.undelivered && self.asked.is_none() && self.retry == 1 && elsewhere() {
            return Ok(Duration::ZERO);
        }
        backoff.pause(self.retry, self.asked, rng).ok_or(RetryOutcome::Pushback)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff { base: Duration::from_millis(25), max: Duration::from_millis(250) };
    const DELIVERED: Wanted =
        Wanted { undelivered: false, repeatable: true, replayable: true, asked: None, retry: 1 };

    fn pause(wanted: Wanted, elsewhere: bool) -> Result<Duration, RetryOutcome> {
        wanted.pause(BACKOFF, || elsewhere, &mut fastrand::Rng::with_seed(11))
    }

    #[test]
    fn what_may_have_had_an_effect_is_repeated_only_if_repeatable() {
        assert!(pause(DELIVERED, true).is_ok());
        let once = Wanted { repeatable: false, ..DELIVERED };
        assert_eq!(pause(once, true), Err(RetryOutcome::NotReplayable));
        assert!(pause(Wanted { undelivered: true, ..once }, true).is_ok(), "it had no effect");
        let streamed = Wanted { replayable: false, undelivered: true, ..DELIVERED };
        assert_eq!(pause(streamed, true), Err(RetryOutcome::NotReplayable), "its body is gone");
    }

    #[test]
    fn the_undelivered_go_elsewhere_at_once_and_back_after_a_pause() {
        let undelivered = Wanted { undelivered: true, ..DELIVERED };
        assert_eq!(pause(undelivered, true), Ok(Duration::ZERO));
        for (wanted, elsewhere) in
            [(undelivered, false), (Wanted { retry: 2, ..undelivered }, true), (DELIVERED, true)]
        {
            assert!(pause(wanted, elsewhere).unwrap() > Duration::ZERO, "{wanted:?}");
        }
    }

    #[test]
    fn a_server_that_asks_for_time_gets_it_or_no_retry() {
        let asked = |asked| Wanted { undelivered: true, asked: Some(asked), ..DELIVERED };
        let wait = Duration::from_millis(200);
        assert!(pause(asked(Asked::After(wait)), true).unwrap() >= wait);
        for never in [Asked::Never, Asked::After(Duration::from_secs(1))] {
            assert_eq!(pause(asked(never), true), Err(RetryOutcome::Pushback));
        }
    }
}
