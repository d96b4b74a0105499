//! Earliest deadline first: each entry comes up as often as its weight says, spread evenly.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Weighted turns over `0..n`.
#[derive(Debug)]
pub(super) struct Scheduler {
    queue: BinaryHeap<Entry>,
    weights: Vec<f64>,
    now: f64,
    order: u64,
}

#[derive(Debug, PartialEq)]
struct Entry {
    deadline: f64,
    /// Earlier entries first among equal deadlines.
    order: u64,
    index: usize,
}

impl Eq for Entry {}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Entry {
    /// The greatest is the one with the earliest deadline.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then(other.order.cmp(&self.order))
    }
}

impl Scheduler {
    /// `seed` is how many turns have passed already, so that workers don't start alike.
    pub fn new(weights: &[f64], seed: u64) -> Self {
        let mut scheduler =
            Self { queue: BinaryHeap::with_capacity(weights.len()), weights: weights.to_vec(), now: 0.0, order: 0 };
        for (index, weight) in weights.iter().enumerate() {
            scheduler.add(index, *weight);
        }
        for _ in 0..seed % weights.len().max(1) as u64 {
            scheduler.next(|_, weight| weight);
        }
        scheduler
    }

    /// Whose turn it is. `effective(index, weight)` is the weight for its next turn.
    pub fn next(&mut self, effective: impl Fn(usize, f64) -> f64) -> Option<usize> {
        let entry = self.queue.pop()?;
        self.now = entry.deadline;
        self.add(entry.index, effective(entry.index, self.weights[entry.index]));
        Some(entry.index)
    }

    fn add(&mut self, index: usize, weight: f64) {
        self.order += 1;
        self.queue.push(Entry { deadline: self.now + 1.0 / weight.max(f64::MIN_POSITIVE), order: self.order, index });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_follow_the_weights_exactly() {
        let mut scheduler = Scheduler::new(&[1.0, 3.0, 6.0], 0);
        let mut counts = [0; 3];
        for _ in 0..1000 {
            counts[scheduler.next(|_, weight| weight).expect("some")] += 1;
        }
        assert_eq!(counts, [100, 300, 600]);
    }

    #[test]
    fn equal_weights_take_turns() {
        let mut scheduler = Scheduler::new(&[1.0; 3], 1);
        let turns: Vec<_> = (0..6).filter_map(|_| scheduler.next(|_, weight| weight)).collect();
        assert_eq!(turns, [1, 2, 0, 1, 2, 0]);
        assert_eq!(Scheduler::new(&[], 5).next(|_, weight| weight), None);
    }
}
