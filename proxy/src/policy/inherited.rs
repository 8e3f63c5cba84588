//! What the inbound sidecar remembers of the requests its application works on, so that the calls the
//! application makes for them inherit their deadline and attempt number, though it knows no mesh.
//!
//! An application with its own tracing makes spans of its own between the request and the call, so the
//! parent of the call may be unknown here; then the trace must do. Several requests of one trace may
//! be in the application at once, and nothing says which of them a call belongs to: the latest deadline
//! cuts no call that has time, and the highest attempt repeats none that is itself repeated.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

/// Requests remembered by default: some 2.6 MiB when all are there.
pub const CAPACITY: usize = 16_384;
/// Requests of one trace; more are found by the trace's others.
const PER_TRACE: usize = 64;
/// Traces below which memory is kept for the next ones.
const KEPT: usize = 1024;

/// What a call inherits from the request it is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inheritance {
    /// When the work is worth nothing any more; `None`: never.
    pub deadline: Option<Instant>,
    /// Which attempt the request is: 1 and up.
    pub attempt: u32,
}

impl Inheritance {
    /// Whether there is anything to inherit: a deadline, or an attempt above the first.
    pub fn binds(&self) -> bool {
        self.deadline.is_some() || self.attempt > 1
    }

    /// What holds for a call that may belong to either.
    fn either(self, other: Self) -> Self {
        // None is later than any time.
        let deadline = self.deadline.zip(other.deadline).map(|(one, other)| one.max(other));
        Self { deadline, attempt: self.attempt.max(other.attempt) }
    }
}

/// What a call was found to belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lookup {
    /// A request, by trace and span.
    Exact(Inheritance),
    /// One of the requests of its trace.
    ByTrace(Inheritance),
    /// The call carries a trace in which no request is being worked on, or none at all.
    ///
    /// Where [`Inherited::binding`] says that some request would have something to pass on, the
    /// application seems to drop `traceparent`. It may also be a call of a background task: what can be
    /// counted is calls made during such requests, not requests whose calls were lost.
    Miss,
}

/// The requests the application works on, by trace. A short lock for each request in and each call
/// out; none for a call out while no request has anything to pass on.
#[derive(Debug)]
pub struct Inherited {
    capacity: usize,
    table: Mutex<Table>,
    /// Remembered requests that have something to pass on.
    binding: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    traces: HashMap<u128, Live, Seeds>,
    requests: usize,
    /// Numbers the entries.
    counter: u64,
}

/// Hashes trace ids, which are random unless somebody means harm: two multiplications,
/// folded, with seeds nobody outside knows (as wyhash mixes). SipHash takes several times as long, twice
/// for each request.
#[derive(Debug, Clone)]
struct Seeds(u64, u64);

impl Default for Seeds {
    fn default() -> Self {
        let random = RandomState::new();
        Self(random.hash_one(0), random.hash_one(1))
    }
}

impl BuildHasher for Seeds {
    type Hasher = Folded;

    fn build_hasher(&self) -> Folded {
        Folded(self.clone(), 0)
    }
}

struct Folded(Seeds, u64);

impl Hasher for Folded {
    fn write_u128(&mut self, trace: u128) {
        // Casts take the halves.
        let (low, high) = (trace as u64 ^ self.0.0, (trace >> 64) as u64 ^ self.0.1);
        // Once leaves ids that follow each other in steps; the constant is the golden ratio's.
        self.1 = folded(self.1 ^ folded(low, high), 0x9e37_79b9_7f4a_7c15 ^ self.0.1);
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u128(u128::from(self.1) << 8 | u128::from(*byte));
        }
    }

    fn finish(&self) -> u64 {
        self.1
    }
}

/// The product's halves, laid over each other.
fn folded(one: u64, other: u64) -> u64 {
    let product = u128::from(one) * u128::from(other);
    product as u64 ^ (product >> 64) as u64
}

/// The requests of one trace; nearly always one.
#[derive(Debug)]
struct Live {
    first: Entry,
    more: Vec<Entry>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    span: u64,
    /// Attempts of one call may come under one span; each guard takes out its own.
    number: u64,
    inheritance: Inheritance,
}

impl Live {
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// Takes out an entry; whether it was the last one.
    fn remove(&mut self, number: u64) -> bool {
        if self.first.number != number {
            let index = self.more.iter().position(|entry| entry.number == number);
            if let Some(index) = index {
                self.more.swap_remove(index);
            }
            return false;
        }
        match self.more.pop() {
            Some(entry) => {
                self.first = entry;
                false
            }
            None => true,
        }
    }
}

/// A request remembered, until dropped.
#[derive(Debug)]
pub struct Remembered {
    /// `None`: there was no room for it.
    table: Option<Arc<Inherited>>,
    trace: u128,
    number: u64,
    binds: bool,
}

impl Remembered {
    /// Whether there was room for the request.
    pub fn is_kept(&self) -> bool {
        self.table.is_some()
    }
}

impl Inherited {
    /// Nothing remembered; at most `capacity` requests ever at once.
    pub fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, table: Mutex::default(), binding: AtomicUsize::new(0) })
    }

    /// Remembers a request that goes to the application with `trace` and `span` in its `traceparent`,
    /// as long as the guard lives. Requests without anything to pass on are remembered as well: their
    /// calls must not be taken for those of another request of the trace.
    pub fn remember(self: &Arc<Self>, trace: u128, span: u64, inheritance: Inheritance) -> Remembered {
        let binds = inheritance.binds();
        let number = self.lock().insert(trace, span, inheritance, self.capacity);
        if number.is_some() && binds {
            self.binding.fetch_add(1, Ordering::Relaxed);
        }
        let table = number.is_some().then(|| self.clone());
        Remembered { table, trace, number: number.unwrap_or_default(), binds }
    }

    /// What a call inherits that carries trace id and parent id `context`; `None` if it carries none.
    pub fn lookup(&self, context: Option<(u128, u64)>) -> Lookup {
        let Some((trace, span)) = context.filter(|_| self.binding()) else { return Lookup::Miss };
        let table = self.lock();
        let Some(live) = table.traces.get(&trace) else { return Lookup::Miss };
        let inherited = |entries: &mut dyn Iterator<Item = &Entry>| {
            entries.map(|entry| entry.inheritance).reduce(Inheritance::either)
        };
        match inherited(&mut live.entries().filter(|entry| entry.span == span)) {
            Some(inheritance) => Lookup::Exact(inheritance),
            None => inherited(&mut live.entries()).map_or(Lookup::Miss, Lookup::ByTrace),
        }
    }

    /// Whether any request being worked on has something to pass on.
    pub fn binding(&self) -> bool {
        self.binding.load(Ordering::Relaxed) > 0
    }

    /// Requests remembered.
    pub fn len(&self) -> usize {
        self.lock().requests
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no holder of this lock panics")
    }
}

impl Table {
    /// The entry's number, if there was room for it.
    fn insert(&mut self, trace: u128, span: u64, inheritance: Inheritance, capacity: usize) -> Option<u64> {
        use std::collections::hash_map::Entry as Place;
        if self.requests >= capacity {
            return None;
        }
        let entry = Entry { span, number: self.counter, inheritance };
        match self.traces.entry(trace) {
            Place::Vacant(place) => {
                place.insert(Live { first: entry, more: Vec::new() });
            }
            // The bound keeps a lookup short whatever a trace does.
            Place::Occupied(place) if place.get().more.len() + 1 >= PER_TRACE => return None,
            Place::Occupied(mut place) => place.get_mut().more.push(entry),
        }
        self.requests += 1;
        self.counter += 1;
        Some(entry.number)
    }

    fn remove(&mut self, trace: u128, number: u64) {
        let Some(live) = self.traces.get_mut(&trace) else { return };
        self.requests -= 1;
        if live.remove(number) {
            self.traces.remove(&trace);
            // A burst must not hold its memory for ever; a quarter, so that it is not moved often.
            let capacity = self.traces.capacity();
            if capacity > KEPT && self.traces.len() < capacity / 4 {
                self.traces.shrink_to((capacity / 2).max(KEPT / 2));
            }
        }
    }
}

impl Drop for Remembered {
    fn drop(&mut self) {
        if let Some(table) = &self.table {
            table.lock().remove(self.trace, self.number);
            if self.binds {
                table.binding.fetch_sub(1, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn until(time: Instant, attempt: u32) -> Inheritance {
        Inheritance { deadline: Some(time), attempt }
    }

    #[test]
    fn a_call_is_found_by_span_and_else_by_trace() {
        let (now, table) = (Instant::now(), Inherited::new(10));
        let later = now + Duration::from_secs(1);
        let first = table.remember(7, 1, until(later, 1));
        let second = table.remember(7, 2, until(now, 3));
        assert_eq!(table.lookup(Some((7, 1))), Lookup::Exact(until(later, 1)));
        assert_eq!(table.lookup(Some((7, 2))), Lookup::Exact(until(now, 3)));
        assert_eq!(table.lookup(Some((7, 9))), Lookup::ByTrace(until(later, 3)));
        assert_eq!((table.lookup(Some((8, 1))), table.lookup(None)), (Lookup::Miss, Lookup::Miss));
        assert!(table.binding(), "and somebody misses it");
        drop(first);
        assert_eq!(table.lookup(Some((7, 1))), Lookup::ByTrace(until(now, 3)));
        drop(second);
        assert_eq!(table.lookup(Some((7, 2))), Lookup::Miss);
        assert!(table.is_empty() && !table.binding());
    }

    #[test]
    fn no_deadline_is_the_latest() {
        let (now, table) = (Instant::now(), Inherited::new(10));
        let free = Inheritance { deadline: None, attempt: 1 };
        let unbound = table.remember(7, 1, free);
        assert!(!table.binding());
        assert_eq!(table.lookup(Some((7, 1))), Lookup::Miss, "there is nothing to pass on");
        let bound = table.remember(7, 2, until(now, 2));
        assert_eq!(table.lookup(Some((7, 1))), Lookup::Exact(free));
        assert_eq!(table.lookup(Some((7, 9))), Lookup::ByTrace(Inheritance { deadline: None, attempt: 2 }));
        drop(unbound);
        assert_eq!(table.lookup(Some((7, 9))), Lookup::ByTrace(until(now, 2)));
        drop(bound);
    }

    #[test]
    fn a_full_table_forgets_the_newcomer_and_nobody_else() {
        let (now, table) = (Instant::now(), Inherited::new(2));
        let kept = [table.remember(1, 1, until(now, 1)), table.remember(2, 1, until(now, 1))];
        let lost = table.remember(3, 1, until(now, 1));
        assert!(kept[0].is_kept() && !lost.is_kept());
        assert_eq!((table.lookup(Some((3, 1))), table.len()), (Lookup::Miss, 2));
        drop(lost);
        assert_eq!((table.lookup(Some((1, 1))), table.len()), (Lookup::Exact(until(now, 1)), 2));
        drop(kept);
        assert!(table.remember(3, 1, until(now, 1)).is_kept() && !table.binding());
    }

    #[test]
    fn a_trace_with_very_many_requests_is_found_by_its_others() {
        let (now, table) = (Instant::now(), Inherited::new(CAPACITY));
        let guards: Vec<_> = (1..=100).map(|span| table.remember(7, span, until(now, 1))).collect();
        assert_eq!(
            (table.len(), guards.iter().filter(|guard| guard.is_kept()).count()),
            (PER_TRACE, PER_TRACE)
        );
        assert_eq!(table.lookup(Some((7, 100))), Lookup::ByTrace(until(now, 1)));
        drop(guards);
        assert!(table.is_empty());
    }

    #[test]
    fn trace_ids_spread_whatever_they_have_in_common() {
        let shapes: [fn(u128) -> u128; 6] =
            [|n| n, |n| n << 64, |n| n << 112, |n| n | n << 64, |n| !n, |n| n << 17 | 1 << 127];
        for (seed, ids) in (0..40).flat_map(|seed| shapes.map(|ids| (seed, ids))) {
            let mut rng = fastrand::Rng::with_seed(seed);
            let seeds = Seeds(rng.u64(..), rng.u64(..));
            // The low bits choose the bucket, the highest seven tell its entries apart.
            let (mut low, mut high) = ([0; 64], [0; 64]);
            for n in 0..6400 {
                let hash = seeds.hash_one(ids(n));
                low[(hash & 63) as usize] += 1;
                high[(hash >> 58) as usize] += 1;
            }
            let most = low.into_iter().chain(high).max().unwrap();
            assert!(most < 180, "seed {seed}: {most} of 100 expected");
        }
    }

    #[test]
    fn memory_of_a_burst_is_given_back() {
        let table = Inherited::new(CAPACITY);
        let free = Inheritance { deadline: None, attempt: 1 };
        let guards: Vec<_> = (0..CAPACITY).map(|trace| table.remember(trace as u128, 1, free)).collect();
        assert_eq!(table.len(), CAPACITY);
        drop(guards);
        assert!(table.lock().traces.capacity() <= 2 * KEPT, "{}", table.lock().traces.capacity());
    }

    /// Random requests and calls against a plain list of what is live.
    #[test]
    fn it_agrees_with_a_list() {
        for seed in 0..100 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (now, table) = (Instant::now(), Inherited::new(40));
            let mut live: Vec<(u128, u64, Inheritance, Remembered)> = Vec::new();
            for step in 0..2000 {
                let (trace, span) = (u128::from(rng.u8(0..6)), rng.u64(1..8));
                match rng.u32(0..3) {
                    0 => {
                        let deadline = (rng.u8(0..4) > 0).then(|| now + Duration::from_secs(rng.u64(0..50)));
                        let inheritance = Inheritance { deadline, attempt: rng.u32(1..4) };
                        let guard = table.remember(trace, span, inheritance);
                        assert_eq!(guard.is_kept(), live.len() < 40, "seed {seed} step {step}");
                        if guard.is_kept() {
                            live.push((trace, span, inheritance, guard));
                        }
                    }
                    1 if !live.is_empty() => drop(live.swap_remove(rng.usize(0..live.len()))),
                    _ => {
                        let found = |of_span: bool| {
                            let entries =
                                live.iter().filter(|entry| entry.0 == trace && (!of_span || entry.1 == span));
                            let found: Vec<_> = entries.map(|entry| entry.2).collect();
                            let deadlines: Option<Vec<_>> =
                                found.iter().map(|inheritance| inheritance.deadline).collect();
                            let attempt = found.iter().map(|inheritance| inheritance.attempt).max()?;
                            Some(Inheritance {
                                deadline: deadlines.map(|all| all.into_iter().max().unwrap()),
                                attempt,
                            })
                        };
                        let expected = match (found(true), found(false)) {
                            _ if !live.iter().any(|entry| entry.2.binds()) => Lookup::Miss,
                            (Some(inheritance), _) => Lookup::Exact(inheritance),
                            (None, Some(inheritance)) => Lookup::ByTrace(inheritance),
                            (None, None) => Lookup::Miss,
                        };
                        assert_eq!(table.lookup(Some((trace, span))), expected, "seed {seed} step {step}");
                    }
                }
                assert_eq!(table.len(), live.len(), "seed {seed} step {step}");
            }
        }
    }
}
