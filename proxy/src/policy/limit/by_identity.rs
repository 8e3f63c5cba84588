//! A bound for each identity, so that none takes all the places there are.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use outrigger_common::identity::SpiffeId;

/// So many places for each identity, and no queue.
#[derive(Debug)]
pub struct BoundByIdentity {
    limit: usize,
    /// Those that have places; never 0.
    taken: Mutex<HashMap<SpiffeId, usize>>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub struct IdentityPermit {
    bound: Arc<BoundByIdentity>,
    id: SpiffeId,
}

impl BoundByIdentity {
    /// `limit` places for each; with 0 there is never one.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, taken: Mutex::default() })
    }

    /// A place for `id`, if it has not taken all of its own.
    pub fn try_acquire(self: &Arc<Self>, id: &SpiffeId) -> Option<IdentityPermit> {
        let mut taken = self.lock();
        match taken.get_mut(id) {
            Some(places) if *places >= self.limit => return None,
            Some(places) => *places += 1,
            None if self.limit == 0 => return None,
            None => _ = taken.insert(id.clone(), 1),
        }
        Some(IdentityPermit { bound: self.clone(), id: id.clone() })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<SpiffeId, usize>> {
        // A count is whole after any panic.
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for IdentityPermit {
    fn drop(&mut self) {
        let mut taken = self.bound.lock();
        if let Entry::Occupied(mut places) = taken.entry(self.id.clone()) {
            *places.get_mut() -= 1;
            if *places.get() == 0 {
                places.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use outrigger_common::identity::TrustDomain;

    use super::*;

    #[test]
    fn each_has_its_own_places_and_who_has_none_is_forgotten() {
        let bound = BoundByIdentity::new(2);
        let id = |account: &str| {
            SpiffeId::workload(TrustDomain::new("mesh.local").unwrap(), "shop", account).unwrap()
        };
        let (greedy, other) = (id("greedy"), id("other"));
        let (first, second) = (bound.try_acquire(&greedy), bound.try_acquire(&greedy));
        assert!(first.is_some() && second.is_some() && bound.try_acquire(&greedy).is_none());
        let theirs = bound.try_acquire(&other);
        assert!(theirs.is_some());
        drop(first);
        let third = bound.try_acquire(&greedy);
        assert!(third.is_some() && bound.try_acquire(&greedy).is_none());
        drop((second, third, theirs));
        assert!(bound.lock().is_empty());
        assert!(BoundByIdentity::new(0).try_acquire(&other).is_none());
    }
}
