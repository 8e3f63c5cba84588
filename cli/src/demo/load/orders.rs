//! What the load knows of the orders it made: which ids can be read, and which change of which order
//! is legal now. Pure.

use std::collections::VecDeque;
use std::sync::Arc;

use fastrand::Rng;
use order_service::order::Status;

/// Most orders kept in mind; older ones are forgotten first.
const KEPT: usize = 10_000;

/// The orders made so far.
#[derive(Debug, Default)]
pub(super) struct Orders {
    known: VecDeque<Arc<str>>,
    changeable: VecDeque<(Arc<str>, Status)>,
}

/// One legal change of one order. While it is under way nobody else gets a change of the same order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Update {
    pub(super) id: Arc<str>,
    pub(super) to: Status,
}

impl Update {
    /// The storefront's word for the change.
    pub(super) fn action(&self) -> &'static str {
        match self.to {
            Status::Confirmed => "pay",
            Status::Shipped => "ship",
            Status::Delivered => "deliver",
            Status::Cancelled | Status::Pending => "cancel",
        }
    }
}

impl Orders {
    /// An order was made.
    pub(super) fn created(&mut self, id: Arc<str>) {
        push(&mut self.known, id.clone());
        push(&mut self.changeable, (id, Status::Pending));
    }

    /// Any order.
    pub(super) fn any(&self, rng: &mut Rng) -> Option<Arc<str>> {
        let index = rng.usize(..self.known.len().max(1));
        self.known.get(index).cloned()
    }

    /// The order that waited longest for a change, and a change it may make. It is set aside until
    /// [`Orders::updated`]; after a change of unknown outcome it is never changed again.
    pub(super) fn next_update(&mut self, rng: &mut Rng) -> Option<Update> {
        let (id, status) = self.changeable.pop_front()?;
        // Final ones are never queued; most of the others go forward, one in ten is given up.
        let (forward, given_up) = match status.successors() {
            [] => return None,
            [only] => (*only, *only),
            [first, .., last] => (*first, *last),
        };
        Some(Update { id, to: if rng.u8(..10) == 0 { given_up } else { forward } })
    }

    /// A change was made.
    pub(super) fn updated(&mut self, update: Update) {
        if !update.to.successors().is_empty() {
            push(&mut self.changeable, (update.id, update.to));
        }
    }
}

fn push<T>(queue: &mut VecDeque<T>, value: T) {
    if queue.len() == KEPT {
        queue.pop_front();
    }
    queue.push_back(value);
}

#[cfg(test)]
mod tests {
    use order_service::order::transition;

    use super::*;

    #[test]
    fn every_change_is_legal_and_final_orders_rest() {
        let (mut orders, mut rng) = (Orders::default(), Rng::with_seed(7));
        let mut status = std::collections::HashMap::new();
        for number in 0..50 {
            let id: Arc<str> = format!("o{number}").into();
            status.insert(id.clone(), Status::Pending);
            orders.created(id);
        }
        let mut changes = 0;
        while let Some(update) = orders.next_update(&mut rng) {
            let now = status.get_mut(&update.id).unwrap();
            *now = transition(*now, update.to).unwrap();
            changes += 1;
            orders.updated(update);
        }
        assert!(status.values().all(|status| status.successors().is_empty()));
        assert!(status.values().any(|status| *status == Status::Cancelled));
        assert!(changes > 100, "{changes}");
    }

    #[test]
    fn an_order_never_has_two_changes_under_way() {
        let (mut orders, mut rng) = (Orders::default(), Rng::with_seed(1));
        orders.created("a".into());
        let update = orders.next_update(&mut rng).unwrap();
        assert_eq!(orders.next_update(&mut rng), None);
        orders.updated(Update { to: Status::Confirmed, ..update });
        assert!(orders.next_update(&mut rng).is_some());
    }

    #[test]
    fn memory_is_bounded_and_reading_prefers_nobody() {
        let (mut orders, mut rng) = (Orders::default(), Rng::with_seed(1));
        assert_eq!(orders.any(&mut rng), None);
        for number in 0..KEPT + 5 {
            orders.created(number.to_string().into());
        }
        assert_eq!(orders.known.len(), KEPT);
        assert!((0..1000).all(|_| orders.any(&mut rng).is_some_and(|id| id.parse::<usize>().unwrap() >= 5)));
    }
}
