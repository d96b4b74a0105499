//! Fair shares of a worker's connections: idle capacity is lent, and taken back when it gets scarce.
//!
//! In: whose connection comes, and the weights of all workloads. Out: a slot, or none. Below the lending
//! mark everybody is admitted; above it only who holds less than the share that its weight gives.

use mesh_model::WorkloadUid;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

/// Above this part of the capacity nothing is lent any more, in percent.
const LENDING_PERCENT: u64 = 75;
/// File descriptors that are kept for everything but connections.
const RESERVED_DESCRIPTORS: u64 = 256;
/// A proxied connection has a downstream and an upstream socket.
const DESCRIPTORS_PER_CONNECTION: u64 = 2;

/// Connections of one worker, by owner (`None`: the root scope's).
#[derive(Debug)]
pub struct Shares {
    capacity: u64,
    total: Cell<u64>,
    held: RefCell<HashMap<Option<WorkloadUid>, u64>>,
}

/// A slot while it lives.
#[derive(Debug)]
pub struct Slot {
    shares: Rc<Shares>,
    owner: Option<WorkloadUid>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.shares.total.set(self.shares.total.get() - 1);
        let mut held = self.shares.held.borrow_mut();
        if let Some(count) = held.get_mut(&self.owner) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.owner);
            }
        }
    }
}

/// Connections that one of `workers` may hold, by the process's limit of file descriptors.
pub fn capacity(descriptors: u64, workers: usize) -> u64 {
    let usable = descriptors.saturating_sub(RESERVED_DESCRIPTORS) / DESCRIPTORS_PER_CONNECTION;
    (usable / workers.max(1) as u64).max(1)
}

impl Shares {
    /// For a worker that may hold `capacity` connections.
    pub fn new(capacity: u64) -> Rc<Self> {
        Rc::new(Self { capacity, total: Cell::new(0), held: RefCell::default() })
    }

    /// A slot for `owner`, whose weight is `weight` of `weights` in all. `None`: its share is used up.
    pub fn admit(self: &Rc<Self>, owner: Option<&WorkloadUid>, weight: u64, weights: u64) -> Option<Slot> {
        let total = self.total.get();
        let owner = owner.cloned();
        let mut held = self.held.borrow_mut();
        let own = held.get(&owner).copied().unwrap_or(0);
        let share = (self.capacity * weight.max(1)).div_ceil(weights.max(weight).max(1));
        let is_lent = total * 100 < self.capacity * LENDING_PERCENT;
        if total >= self.capacity || (!is_lent && own >= share) {
            return None;
        }
        *held.entry(owner.clone()).or_default() += 1;
        self.total.set(total + 1);
        Some(Slot { shares: Rc::clone(self), owner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uid(name: &str) -> WorkloadUid {
        WorkloadUid(name.to_owned())
    }

    #[test]
    fn idle_capacity_is_lent_but_never_what_others_need() {
        let shares = Shares::new(100);
        let (greedy, modest) = (uid("greedy"), uid("modest"));
        let taken: Vec<_> = std::iter::from_fn(|| shares.admit(Some(&greedy), 1, 2)).take(200).collect();
        assert_eq!(taken.len(), 75, "all that is lent");
        let own: Vec<_> = std::iter::from_fn(|| shares.admit(Some(&modest), 1, 2)).take(200).collect();
        assert_eq!(own.len(), 25, "what is kept back");
        drop(taken);
        assert!(shares.admit(Some(&modest), 1, 2).is_some(), "slots come back");
    }

    #[test]
    fn a_weight_gives_its_share_under_contention() {
        let shares = Shares::new(100);
        let others: Vec<_> = std::iter::from_fn(|| shares.admit(None, 1, 4)).take(75).collect();
        assert_eq!(others.len(), 75);
        let heavy = uid("heavy");
        let own: Vec<_> = std::iter::from_fn(|| shares.admit(Some(&heavy), 3, 4)).take(200).collect();
        assert_eq!(own.len(), 25);
    }

    #[test]
    fn the_capacity_follows_the_limit_of_descriptors() {
        assert_eq!(capacity(20_000, 2), 4_936);
        assert_eq!(capacity(0, 2), 1);
    }
}
