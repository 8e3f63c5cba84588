//! Finds responses whose client does not read.
//!
//! hyper asks a body for its next piece only when there is room for it: a body whose client does not
//! read is not asked at all, and whatever it would do by itself (its timer among it) does not happen.
//! So every body that lives is on a list, for the cost of two short locks a response and no clock, and
//! a sweep each [`PERIOD`] looks which of them have not been asked for too long.

use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use super::body::Times;
use crate::reason::Reason;

/// Between two sweeps: how much longer than its time a response may stand still, twice at most.
pub const PERIOD: Duration = Duration::from_secs(1);

/// Whether something is asked for, as sweeps see it.
#[derive(Debug, Default)]
pub struct Stillness {
    asked: bool,
    /// The first sweep after it was last asked.
    since: Option<Instant>,
}

impl Stillness {
    /// It is asked.
    pub fn asked(&mut self) {
        self.asked = true;
    }

    /// A sweep at `now`: why it must end, if it must. What is asked has its own timer for its deadline.
    pub fn look(&mut self, times: Times, now: Instant) -> Option<Reason> {
        if std::mem::take(&mut self.asked) {
            self.since = Some(now);
            return None;
        }
        let since = *self.since.get_or_insert(now);
        if times.deadline.is_some_and(|deadline| now >= deadline) {
            return Some(Reason::DeadlineExceeded);
        }
        (now.saturating_duration_since(since) >= times.idle).then_some(Reason::IdleTimeout)
    }
}

/// What a sweep looks at.
pub trait Sweep: Send + Sync {
    /// Ends it if it has stood still for too long.
    fn sweep(&self, now: Instant);
}

/// The list.
#[derive(Default)]
pub struct Stalled(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    bodies: Vec<Option<Weak<dyn Sweep>>>,
    free: Vec<usize>,
}

/// A place on the list, given up when dropped.
pub struct Listed {
    list: Arc<Stalled>,
    place: usize,
}

impl Stalled {
    /// Lists `body` until the place is dropped.
    pub fn list(self: &Arc<Self>, body: Weak<dyn Sweep>) -> Listed {
        let mut entries = self.entries();
        let place = match entries.free.pop() {
            Some(place) => {
                entries.bodies[place] = Some(body);
                place
            }
            None => {
                entries.bodies.push(Some(body));
                entries.bodies.len() - 1
            }
        };
        drop(entries);
        Listed { list: self.clone(), place }
    }

    /// Looks at every body on the list.
    pub fn sweep(&self, now: Instant) {
        // Not under the lock: what ends gives up its place.
        let bodies: Vec<_> = self.entries().bodies.iter().flatten().filter_map(Weak::upgrade).collect();
        for body in bodies {
            body.sweep(now);
        }
    }

    /// Sweeps for ever.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(PERIOD).await;
            self.sweep(Instant::now());
        }
    }

    /// How many are on the list.
    pub fn len(&self) -> usize {
        let entries = self.entries();
        entries.bodies.len() - entries.free.len()
    }

    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().expect("no holder of this lock panics")
    }
}

impl std::fmt::Debug for Stalled {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stalled").field("len", &self.len()).finish()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        let mut entries = self.list.entries();
        let body = entries.bodies[self.place].take();
        entries.free.push(self.place);
        if entries.free.len() == entries.bodies.len() && entries.bodies.capacity() > 1024 {
            // After a peak, nothing of it stays.
            *entries = Entries::default();
        }
        drop(entries);
        // The last of it may be freed here.
        drop(body);
    }
}

impl std::fmt::Debug for Listed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Listed").field(&self.place).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn what_is_asked_moves_and_what_is_not_ends_after_its_time() {
        let start = Instant::now();
        let times = Times { idle: 3 * SECOND, deadline: None };
        let mut still = Stillness::default();
        let mut ends = Vec::new();
        for second in 0..12 {
            // Asked now and then, and not at all from the sixth on.
            if [0, 2, 5].contains(&second) {
                still.asked();
            }
            ends.push(still.look(times, start + second * SECOND));
        }
        let ended = ends.iter().position(Option::is_some);
        assert_eq!((ended, ends[8]), (Some(8), Some(Reason::IdleTimeout)));
        // Never asked at all: from the first sweep.
        let mut never = Stillness::default();
        let ends: Vec<_> = (0..4).map(|second| never.look(times, start + second * SECOND)).collect();
        assert_eq!(ends, [None, None, None, Some(Reason::IdleTimeout)]);
    }

    #[test]
    fn a_deadline_ends_what_stands_still_and_not_what_moves() {
        let start = Instant::now();
        let times = Times { idle: 100 * SECOND, deadline: Some(start + SECOND) };
        let mut still = Stillness::default();
        for second in 0..4 {
            still.asked();
            assert_eq!(still.look(times, start + second * SECOND), None);
        }
        assert_eq!(still.look(times, start + 4 * SECOND), Some(Reason::DeadlineExceeded));
        let mut young = Stillness::default();
        assert_eq!(young.look(times, start), None);
    }

    #[derive(Default)]
    struct Body(AtomicUsize);

    impl Sweep for Body {
        fn sweep(&self, _: Instant) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn only_what_lives_is_on_the_list_and_places_are_used_again() {
        let list = Arc::new(Stalled::default());
        let bodies: Vec<_> = (0..5).map(|_| Arc::new(Body::default())).collect();
        let weak = |body: &Arc<Body>| -> Weak<dyn Sweep> {
            let weak: Weak<Body> = Arc::downgrade(body);
            weak
        };
        let mut listed: Vec<_> = bodies.iter().map(|body| list.list(weak(body))).collect();
        list.sweep(Instant::now());
        listed.remove(2);
        listed.remove(0);
        list.sweep(Instant::now());
        let again = list.list(weak(&bodies[0]));
        list.sweep(Instant::now());
        let swept: Vec<_> = bodies.iter().map(|body| body.0.load(Ordering::SeqCst)).collect();
        assert_eq!(swept, [2, 3, 1, 3, 3]);
        assert_eq!((list.len(), list.entries().bodies.len()), (4, 5));
        drop((listed, again));
        assert!(list.is_empty());
        // A body that is freed while its place is still held is passed over.
        let place = list.list(weak(&Arc::new(Body::default())));
        list.sweep(Instant::now());
        assert_eq!(list.len(), 1);
        drop(place);
    }

    #[test]
    fn a_peak_leaves_nothing_behind() {
        let list = Arc::new(Stalled::default());
        let body = Arc::new(Body::default());
        let weak: Weak<Body> = Arc::downgrade(&body);
        let listed: Vec<_> = (0..5000).map(|_| list.list(weak.clone())).collect();
        drop(listed);
        assert_eq!((list.len(), list.entries().bodies.capacity()), (0, 0));
    }
}
