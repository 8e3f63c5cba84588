//! What one simulated sidecar holds: four bytes an endpoint.

use super::plan;
use super::wire::{Endpoint, Kind, Update};

/// One endpoint: number of its workload, and its health in the lowest bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Held(u32);

/// The services of one sidecar.
#[derive(Debug)]
pub(super) struct View {
    /// In the order of their numbers.
    services: Vec<(u32, Option<Vec<Held>>)>,
}

/// What an update did to what a sidecar held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Effect {
    /// Services that had endpoints and have none now.
    pub(super) emptied: u64,
    /// Endpoints taken away.
    pub(super) removed: u64,
    /// Services sent in full.
    pub(super) full: u64,
}

impl Held {
    /// Returns an endpoint of a workload.
    pub(super) fn new(workload: u32, healthy: bool) -> Self {
        Self(workload << 1 | u32::from(healthy))
    }

    fn read(endpoint: &Endpoint) -> Option<Self> {
        Some(Self::new(workload(&endpoint.workload)?, endpoint.healthy))
    }

    fn workload(self) -> u32 {
        self.0 >> 1
    }
}

/// Returns the id of a workload.
pub(super) fn workload_id(number: u32) -> String {
    format!("w{number}")
}

fn workload(id: &str) -> Option<u32> {
    id.strip_prefix('w')?.parse().ok()
}

impl View {
    /// Returns a view of services nothing is known of.
    pub(super) fn new(services: impl IntoIterator<Item = usize>) -> Self {
        let number = |service: usize| u32::try_from(service).expect("a plan has fewer services than that");
        let mut services: Vec<_> = services.into_iter().map(|service| (number(service), None)).collect();
        services.sort_unstable_by_key(|(service, _)| *service);
        Self { services }
    }

    /// Returns the names of the services that are held, or of those that are not.
    pub(super) fn names(&self, held: bool) -> Vec<String> {
        let these = self.services.iter().filter(|(_, endpoints)| endpoints.is_some() == held);
        these.map(|(service, _)| plan::name(*service as usize)).collect()
    }

    /// Returns whether each service has exactly so many endpoints, all healthy.
    pub(super) fn is_as(&self, endpoints: &[u32]) -> bool {
        self.services.iter().all(|(service, held)| {
            held.as_ref().is_some_and(|held| {
                held.len() == endpoints[*service as usize] as usize && held.iter().all(|held| held.0 & 1 == 1)
            })
        })
    }

    /// Folds an update in. Returns what it did, and how many services have what was `wanted` by it.
    pub(super) fn apply(&mut self, update: &Update, wanted: Option<Wanted>) -> (Effect, u64) {
        let (mut effect, mut seen) = (Effect::default(), 0);
        for kind in update.changes.iter().filter_map(|change| change.change.as_ref()) {
            let name = match kind {
                Kind::Service(service) => &service.name,
                Kind::Delta(delta) => &delta.name,
                Kind::Unknown(name) => name,
            };
            let Some(held) = self.service(name) else { continue };
            let before = held.as_ref().map_or(0, Vec::len);
            effect.full += u64::from(matches!(kind, Kind::Service(_)));
            effect.removed += change(held, kind);
            let after = held.as_ref().map_or(0, Vec::len);
            effect.emptied += u64::from(before > 0 && after == 0);
            seen += u64::from(wanted.is_some_and(|wanted| wanted.is_in(held.as_deref().unwrap_or_default())));
        }
        (effect, seen)
    }

    fn service(&mut self, name: &str) -> Option<&mut Option<Vec<Held>>> {
        let number = u32::try_from(plan::number(name)?).ok()?;
        let at = self.services.binary_search_by_key(&number, |(service, _)| *service).ok()?;
        Some(&mut self.services[at].1)
    }
}

/// Carries one change out; returns how many endpoints it took away.
fn change(held: &mut Option<Vec<Held>>, kind: &Kind) -> u64 {
    match kind {
        Kind::Service(service) => {
            let mut new: Vec<Held> = service.endpoints.iter().filter_map(Held::read).collect();
            new.sort_unstable();
            let old = held.replace(new);
            let new = held.as_deref().unwrap_or_default();
            old.iter().flatten().filter(|old| at(new, old.workload()).is_err()).count() as u64
        }
        Kind::Delta(delta) => {
            let held = held.get_or_insert_default();
            for endpoint in delta.upsert.iter().filter_map(Held::read) {
                match at(held, endpoint.workload()) {
                    Ok(place) => held[place] = endpoint,
                    Err(place) => held.insert(place, endpoint),
                }
            }
            let gone = delta.remove.iter().filter_map(|key| workload(&key.workload));
            let gone = gone.filter_map(|gone| at(held, gone).ok().map(|place| held.remove(place)));
            gone.count() as u64
        }
        Kind::Unknown(_) => held.take().map_or(0, |old| old.len() as u64),
    }
}

fn at(held: &[Held], workload: u32) -> Result<usize, usize> {
    held.binary_search_by_key(&workload, |held| held.workload())
}

/// What a probe waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Number of its workload.
    pub(super) workload: u32,
    /// Its health; none: that it is gone.
    pub(super) healthy: Option<bool>,
}

impl Wanted {
    fn is_in(self, held: &[Held]) -> bool {
        match (self.healthy, at(held, self.workload)) {
            (Some(healthy), Ok(place)) => held[place] == Held::new(self.workload, healthy),
            (None, Err(_)) => true,
            (Some(_), Err(_)) | (None, Ok(_)) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::wire::{Change, Delta, Key, Service};
    use super::*;

    fn endpoint(workload: u32, healthy: bool) -> Endpoint {
        Endpoint { workload: workload_id(workload), healthy }
    }

    fn update(kinds: Vec<Kind>) -> Update {
        let change = |kind| Change { change: Some(kind) };
        Update { nonce: 1, cursor: vec![], changes: kinds.into_iter().map(change).collect() }
    }

    #[test]
    fn updates_are_folded_in_and_losses_counted() {
        let mut view = View::new([4, 2]);
        assert_eq!(view.names(false), ["svc2.ns0", "svc4.ns0"]);
        let full = |endpoints| Kind::Service(Service { name: plan::name(2), endpoints });
        let all = update(vec![full(vec![endpoint(9, true), endpoint(1, true)])]);
        assert_eq!(view.apply(&all, None), (Effect { full: 1, ..Effect::default() }, 0));
        assert_eq!((view.names(true), view.names(false)), (vec![plan::name(2)], vec![plan::name(4)]));
        let (sick, gone) =
            (Wanted { workload: 9, healthy: Some(false) }, Wanted { workload: 9, healthy: None });
        let delta = |upsert, remove| Kind::Delta(Delta { name: plan::name(2), upsert, remove });
        let (effect, seen) = view.apply(&update(vec![delta(vec![endpoint(9, false)], vec![])]), Some(sick));
        assert_eq!((effect, seen), (Effect::default(), 1));
        let key = |workload| Key { workload: workload_id(workload) };
        let (effect, seen) = view.apply(&update(vec![delta(vec![], vec![key(9)])]), Some(gone));
        assert_eq!((effect.removed, effect.emptied, seen), (1, 0, 1));
        let (effect, _) = view.apply(&update(vec![Kind::Unknown(plan::name(2))]), None);
        assert_eq!((effect.removed, effect.emptied), (1, 1));
    }
}
