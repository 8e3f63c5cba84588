//! The latest resources that sidecars refused, for people. Pure.

use std::collections::VecDeque;

use serde::Serialize;

/// How many are kept; the oldest goes first.
const KEPT: usize = 100;

/// A resource a sidecar could not use; what it had of it before stays in force there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    /// Seconds since 1970.
    pub at: i64,
    /// Who refused.
    pub identity: String,
    /// What, such as `TrafficPolicy/shop/orders`.
    pub resource: String,
    /// Why.
    pub reason: String,
}

/// The latest of them.
#[derive(Debug, Default)]
pub struct Refusals(VecDeque<Refusal>);

impl Refusals {
    /// Adds one.
    pub fn add(&mut self, refusal: Refusal) {
        self.0.truncate(KEPT - 1);
        self.0.push_front(refusal);
    }

    /// All of them, the newest first.
    pub fn list(&self) -> Vec<Refusal> {
        self.0.iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_come_first_and_the_oldest_go() {
        let mut refusals = Refusals::default();
        for at in 0..250 {
            let (identity, resource, reason) = (String::new(), String::new(), String::new());
            refusals.add(Refusal { at, identity, resource, reason });
        }
        let times: Vec<_> = refusals.list().iter().map(|refusal| refusal.at).collect();
        assert_eq!(times, (150..250).rev().collect::<Vec<_>>());
    }
}
