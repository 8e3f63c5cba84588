//! A bound: so many at once and no queue, for requests in flight, pending requests and connections.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// A number of places, which may change while they are taken.
#[derive(Debug)]
pub struct Bound {
    taken: AtomicU32,
    limit: AtomicU32,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct BoundPermit(Arc<Bound>);

impl Bound {
    /// `limit` free places; with 0 there is never one.
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { taken: AtomicU32::new(0), limit: AtomicU32::new(limit) })
    }

    /// A place, if one is free. As long as the limit is not lowered, never more are taken than it
    /// allows, whoever asks at once.
    pub fn try_acquire(self: &Arc<Self>) -> Option<BoundPermit> {
        let one_more = |taken| (taken < self.limit.load(Ordering::Relaxed)).then_some(taken + 1);
        // Acquire and release, so that who takes a place sees what its last holder left.
        self.taken.fetch_update(Ordering::Acquire, Ordering::Relaxed, one_more).ok()?;
        Some(BoundPermit(self.clone()))
    }

    /// Changes the limit. Places taken above a lower one stay taken; no new one is given until they
    /// are back below it.
    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit, Ordering::Relaxed);
    }

    /// The limit in force.
    pub fn limit(&self) -> u32 {
        self.limit.load(Ordering::Relaxed)
    }

    /// Places taken.
    pub fn taken(&self) -> u32 {
        self.taken.load(Ordering::Relaxed)
    }
}

impl Drop for BoundPermit {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_when_dropped() {
        let bound = Bound::new(2);
        let (first, second) = (bound.try_acquire(), bound.try_acquire());
        assert!(first.is_some() && second.is_some() && bound.try_acquire().is_none());
        drop(first);
        let third = bound.try_acquire();
        assert!(third.is_some() && bound.try_acquire().is_none());
        drop((second, third));
        assert_eq!(bound.taken(), 0);
        assert!(Bound::new(0).try_acquire().is_none());
    }

    #[test]
    fn a_lower_limit_waits_for_places_to_come_back() {
        let bound = Bound::new(3);
        let mut held: Vec<_> = (0..3).map(|_| bound.try_acquire().unwrap()).collect();
        bound.set_limit(1);
        held.pop();
        assert!(bound.try_acquire().is_none());
        held.clear();
        let one = bound.try_acquire();
        assert!(one.is_some() && bound.try_acquire().is_none());
        bound.set_limit(2);
        assert!(bound.try_acquire().is_some());
    }

    #[test]
    fn the_limit_holds_between_threads() {
        let bound = Bound::new(3);
        let most = AtomicU32::new(0);
        let granted: usize = std::thread::scope(|scope| {
            let work = || {
                (0..20_000)
                    .filter(|_| {
                        let permit = bound.try_acquire();
                        if permit.is_some() {
                            most.fetch_max(bound.taken(), Ordering::Relaxed);
                        }
                        permit.is_some()
                    })
                    .count()
            };
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(work)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert!(granted > 0 && most.into_inner() <= 3);
        assert_eq!(bound.taken(), 0);
    }
}
