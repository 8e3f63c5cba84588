//! How many connections there may be. Whoever has no certificate yet gets few places and not for
//! long, so that strangers can shut out neither the joined nor, for more than moments, each other.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::{Instant, Sleep, sleep_until};

/// How many connections there may be, and for how long without a certificate.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All together; more wait in the kernel's queue. By default 20,000: two for each of 10,000
    /// sidecars, which renew their certificate on a new connection before the old one ends, in about
    /// a gigabyte.
    pub connections: usize,
    /// Those without a certificate: they may only join, which takes milliseconds. 64 by default.
    pub anonymous: usize,
    /// A connection without a certificate may keep its place for this long, even if others want it;
    /// 1 s by default.
    pub anonymous_least: Duration,
    /// After this long it is closed; 30 s by default.
    pub anonymous_most: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 20_000,
            anonymous: 64,
            anonymous_least: Duration::from_secs(1),
            anonymous_most: Duration::from_secs(30),
        }
    }
}

/// The places there are.
pub(super) struct Places {
    limits: Limits,
    all: Arc<Semaphore>,
    /// Oldest first; those that were given up are found closed.
    anonymous: Mutex<VecDeque<(Instant, oneshot::Sender<()>)>>,
}

impl Places {
    pub(super) fn new(limits: Limits) -> Self {
        let all = Arc::new(Semaphore::new(limits.connections));
        Self { limits, all, anonymous: Mutex::default() }
    }

    /// Waits for a place for any connection; none when there will be no more.
    ///
    /// Cancel safety: safe.
    pub(super) async fn any(&self) -> Option<OwnedSemaphorePermit> {
        if self.all.available_permits() == 0 {
            let limit = self.limits.connections;
            tracing::warn!(limit, "no place for another connection; clients wait until one ends");
        }
        self.all.clone().acquire_owned().await.ok()
    }

    /// A place for a connection without a certificate. When all are taken, the oldest connection has
    /// to go, unless it is as young as one that is about to join: then there is none.
    pub(super) fn anonymous(&self, now: Instant) -> Option<Stay> {
        let mut taken = self.anonymous.lock().unwrap_or_else(PoisonError::into_inner);
        taken.retain(|(_, stay)| !stay.is_closed());
        if taken.len() >= self.limits.anonymous {
            taken.pop_front_if(|(since, _)| now.duration_since(*since) >= self.limits.anonymous_least)?;
        }
        let (place, evicted) = oneshot::channel();
        taken.push_back((now, place));
        Some(Stay { evicted, end: Box::pin(sleep_until(now + self.limits.anonymous_most)), over: false })
    }
}

/// A place for a connection without a certificate; dropping it gives it up.
pub(super) struct Stay {
    evicted: oneshot::Receiver<()>,
    end: Pin<Box<Sleep>>,
    over: bool,
}

impl Stay {
    /// Whether it is over; if not, the task is woken when it is.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.over = self.over
            || Pin::new(&mut self.evicted).poll(cx).is_ready()
            || self.end.as_mut().poll(cx).is_ready();
        if self.over { Poll::Ready(()) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn two(anonymous_most: Duration) -> Places {
        Places::new(Limits { anonymous: 2, anonymous_most, ..Limits::default() })
    }

    async fn over(stay: &mut Stay) -> bool {
        poll_fn(|cx| Poll::Ready(stay.poll_over(cx).is_ready())).await
    }

    #[tokio::test]
    async fn the_oldest_gives_way_once_it_had_its_time() {
        let (places, now) = (two(30 * SECOND), Instant::now());
        let (mut first, mut second) = (places.anonymous(now).unwrap(), places.anonymous(now).unwrap());
        assert!(places.anonymous(now + SECOND / 2).is_none());
        let _third = places.anonymous(now + SECOND).unwrap();
        assert!(over(&mut first).await && over(&mut first).await && !over(&mut second).await);
    }

    #[tokio::test]
    async fn a_place_given_up_is_free_at_once_and_none_is_kept_for_long() {
        let (places, now) = (two(SECOND / 10), Instant::now());
        let (mut first, second) = (places.anonymous(now).unwrap(), places.anonymous(now).unwrap());
        drop(second);
        let _third = places.anonymous(now).unwrap();
        tokio::time::timeout(20 * SECOND, poll_fn(|cx| first.poll_over(cx))).await.unwrap();
    }
}
