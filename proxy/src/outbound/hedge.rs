//! Hedging: a second attempt before the first has failed, so that one slow endpoint does not make a
//! request slow.
//!
//! Source: Dean and Barroso, "The Tail at Scale", CACM 2013, hedged requests.

use std::time::{Duration, Instant};

use super::attempt::{self, Outcome};
use super::call::{Call, Tried};
use super::watch::Watch;
use crate::http::body::Body;

/// After how long a second attempt goes out, if one may: with the first attempt, where the policy
/// asks for it.
pub fn delay(call: &Call<'_>, number: u32) -> Option<Duration> {
    let settings = call.policy.hedging.filter(|_| number == 1 && call.may_hedge())?;
    Some(call.destination.latencies().delay(settings, Instant::now()))
}

/// Runs the first attempt, and after `delay` a second one beside it at another endpoint, if the
/// budget allows. The first good answer counts; the other attempt is reset. Returns as well how many
/// attempts were made.
pub async fn run(call: &Call<'_>, watch: Watch, delay: Duration, tried: &mut Tried) -> (Outcome, u32) {
    let began = Instant::now();
    let first = attempt::run(call, watch, Body::Empty, 1);
    tokio::pin!(first);
    tokio::select! {
        outcome = &mut first => return (outcome, 1),
        () = tokio::time::sleep(delay) => {}
    }
    let Some(watch) = call.pick_untried(tried) else { return (first.await, 1) };
    if !call.destination.budget.withdraw(Instant::now()) {
        call.edge.hedge("budget_exhausted");
        return (first.await, 1);
    }
    tried.add(watch.endpoint().clone());
    let second = attempt::run(call, watch, Body::Empty, 2);
    tokio::pin!(second);
    let (outcome, second_won) = tokio::select! {
        outcome = &mut first => match outcome {
            Outcome::Done(_) => (outcome, false),
            Outcome::Again(_) | Outcome::Fail(_) => (second.await, true),
        },
        outcome = &mut second => match outcome {
            Outcome::Done(_) => (outcome, true),
            Outcome::Again(_) | Outcome::Fail(_) => (first.await, false),
        },
    };
    if second_won {
        // The slow one is not waited for, but what it took so far counts: left out, the quantile would
        // sink with each hedge, and hedges would grow in number.
        call.destination.latencies().observe(began.elapsed(), Instant::now());
    }
    let won = second_won && matches!(outcome, Outcome::Done(_));
    call.edge.hedge(if won { "won" } else { "lost" });
    (outcome, 2)
}
