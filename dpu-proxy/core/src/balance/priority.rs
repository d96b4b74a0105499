//! How the load spreads over priorities: by health times the overprovisioning factor, in order; what is
//! left goes to degraded endpoints; a priority with too few healthy endpoints is in panic.

use super::{Health, Locality};

/// Endpoints of a priority by health.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub healthy: usize,
    pub degraded: usize,
    pub all: usize,
}

impl Counts {
    pub fn of(localities: &[Locality]) -> Self {
        let count = |wanted: Health| {
            localities.iter().flat_map(|locality| &locality.members).filter(|(_, health)| *health == wanted).count()
        };
        let all = localities.iter().map(|locality| locality.members.len()).sum();
        Self { healthy: count(Health::Healthy), degraded: count(Health::Degraded), all }
    }

    fn share(self, part: usize, factor: u32) -> u64 {
        match self.all {
            0 => 0,
            all => (u64::from(factor) * part as u64 / all as u64).min(100),
        }
    }

    fn is_in_panic(self, threshold: f64) -> bool {
        let percent = |part: usize| if self.all == 0 { 0.0 } else { 100.0 * part as f64 / self.all as f64 };
        percent(self.healthy) + percent(self.degraded) < threshold.min(100.0)
    }
}

/// Which endpoints of the chosen priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Availability {
    Healthy,
    Degraded,
    Panic,
}

/// Percent of the load by priority.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Loads {
    pub healthy: Vec<u64>,
    pub degraded: Vec<u64>,
    pub panic: Vec<bool>,
}

impl Loads {
    /// `factor` in percent (140), `panic_threshold` in percent of healthy endpoints (50; 0 never panics).
    pub fn of(counts: &[Counts], factor: u32, panic_threshold: f64) -> Self {
        let healthy: Vec<u64> = counts.iter().map(|counts| counts.share(counts.healthy, factor)).collect();
        let degraded: Vec<u64> = counts.iter().map(|counts| counts.share(counts.degraded, factor)).collect();
        let available = (healthy.iter().sum::<u64>() + degraded.iter().sum::<u64>()).min(100);
        let panic: Vec<bool> =
            counts.iter().map(|counts| available < 100 && counts.is_in_panic(panic_threshold)).collect();
        let mut loads = match available {
            0 => Self { healthy: vec![0; counts.len()], degraded: vec![0; counts.len()], panic },
            _ => Self::spread(&healthy, &degraded, available, panic),
        };
        let never_panics = panic_threshold <= 0.0 && available == 0;
        if !never_panics && loads.panic.iter().all(|panics| *panics) {
            loads.spread_by_size(counts);
        } else if never_panics {
            loads.give_first(100);
        }
        loads
    }

    fn spread(healthy: &[u64], degraded: &[u64], available: u64, panic: Vec<bool>) -> Self {
        let mut left = 100;
        let mut take = |availability: &[u64]| -> Vec<u64> {
            let share = |part: &u64| {
                let load = (part * 100 / available).min(left);
                left -= load;
                load
            };
            availability.iter().map(share).collect()
        };
        let mut loads = Self { healthy: take(healthy), degraded: take(degraded), panic };
        // Rounding errors go to the first that is available.
        if let Some(first) = healthy.iter().position(|part| *part > 0) {
            loads.healthy[first] += left;
        } else if let Some(first) = degraded.iter().position(|part| *part > 0) {
            loads.degraded[first] += left;
        }
        loads
    }

    /// All priorities are in panic: load by number of endpoints, whatever their health.
    fn spread_by_size(&mut self, counts: &[Counts]) {
        let total: usize = counts.iter().map(|counts| counts.all).sum();
        if total == 0 {
            return self.give_first(100);
        }
        let mut left = 100;
        for (load, counts) in self.healthy.iter_mut().zip(counts) {
            *load = 100 * counts.all as u64 / total as u64;
            left -= *load;
        }
        self.degraded.fill(0);
        let first = counts.iter().position(|counts| counts.all > 0).unwrap_or(0);
        self.healthy[first] += left;
    }

    fn give_first(&mut self, load: u64) {
        if let Some(first) = self.healthy.first_mut() {
            *first = load;
        }
    }

    /// The priority for a random number or hash.
    pub fn choose(&self, number: u64) -> (usize, Availability) {
        let mut left = number % 100;
        for (loads, availability) in [(&self.healthy, Availability::Healthy), (&self.degraded, Availability::Degraded)]
        {
            for (index, load) in loads.iter().enumerate() {
                match left.checked_sub(*load) {
                    None if self.panic[index] => return (index, Availability::Panic),
                    None => return (index, availability),
                    Some(rest) => left = rest,
                }
            }
        }
        (0, Availability::Healthy)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn percent(healthy: usize) -> Counts {
        Counts { healthy, degraded: 0, all: 100 }
    }

    fn loads(counts: &[Counts]) -> Vec<u64> {
        Loads::of(counts, 140, 50.0).healthy
    }

    #[test]
    fn load_spills_to_the_next_priority_as_envoy_documents() {
        for (first, second, expected) in [
            (100, 100, [100, 0]),
            (72, 72, [100, 0]),
            (71, 71, [99, 1]),
            (50, 50, [70, 30]),
            (25, 100, [35, 65]),
            (25, 25, [50, 50]),
            (0, 100, [0, 100]),
        ] {
            assert_eq!(loads(&[percent(first), percent(second)]), expected, "{first} {second}");
        }
        let few = [percent(20), percent(20), percent(10)];
        assert_eq!(Loads::of(&few, 140, 0.0).healthy, [40, 40, 20]);
    }

    #[test]
    fn degraded_endpoints_get_what_healthy_ones_cannot_carry() {
        let counts = [Counts { healthy: 50, degraded: 50, all: 100 }];
        let loads = Loads::of(&counts, 140, 50.0);
        assert_eq!((loads.healthy[0], loads.degraded[0]), (70, 30));
        assert_eq!(loads.choose(69), (0, Availability::Healthy));
        assert_eq!(loads.choose(70), (0, Availability::Degraded));
    }

    #[test]
    fn too_few_healthy_endpoints_are_a_panic() {
        let loads = Loads::of(&[percent(20)], 140, 50.0);
        assert_eq!(loads.choose(7), (0, Availability::Panic));
        let without = Loads::of(&[percent(20)], 140, 0.0);
        assert_eq!(without.choose(7), (0, Availability::Healthy));
        let enough_elsewhere = Loads::of(&[percent(20), percent(100)], 140, 50.0);
        assert_eq!(enough_elsewhere.panic, [false, false]);
    }

    #[test]
    fn in_total_panic_load_follows_the_number_of_endpoints() {
        let counts = [Counts { all: 30, ..Counts::default() }, Counts { all: 70, ..Counts::default() }];
        let loads = Loads::of(&counts, 140, 50.0);
        assert_eq!(loads.healthy, [30, 70]);
        assert_eq!(loads.choose(99), (1, Availability::Panic));
        assert_eq!(Loads::of(&counts, 140, 0.0).choose(99), (0, Availability::Healthy));
        assert_eq!(Loads::of(&[], 140, 50.0).choose(99), (0, Availability::Healthy));
    }
}
