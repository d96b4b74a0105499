//! Maglev hashing (NSDI'16), compatible with Envoy's table (xxHash64, weights by skipped turns).

use xxhash_rust::xxh64::xxh64;

/// A look-up table of prime size.
#[derive(Clone, Debug)]
pub struct Maglev {
    table: Vec<u32>,
}

/// A key's turn through its permutation of the table.
#[derive(Clone, Debug)]
struct Turn {
    offset: u64,
    skip: u64,
    next: u64,
    weight: f64,
    target: f64,
}

impl Maglev {
    /// Of keys with weights. `size` is prime, and Envoy's default 65537.
    pub fn new(keys: &[(String, u32)], size: u64) -> Self {
        let total: f64 = keys.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let turn = |(key, weight): &(String, u32)| Turn {
            offset: xxh64(key.as_bytes(), 0) % size,
            skip: xxh64(key.as_bytes(), 1) % (size - 1) + 1,
            next: 0,
            weight: f64::from(*weight) / total,
            target: 0.0,
        };
        Self { table: fill(keys.iter().map(turn).collect(), size) }
    }

    /// The key for a hash; another one on a retry.
    pub fn choose(&self, hash: u64, attempt: u32) -> Option<usize> {
        let hash = if attempt == 0 { hash } else { hash ^ (u64::MAX - u64::from(attempt)).wrapping_add(1) };
        let index = hash.checked_rem(self.table.len() as u64)?;
        self.table.get(index as usize).map(|index| *index as usize)
    }
}

fn fill(mut turns: Vec<Turn>, size: u64) -> Vec<u32> {
    const FREE: u32 = u32::MAX;
    if turns.is_empty() {
        return Vec::new();
    }
    let heaviest = turns.iter().map(|turn| turn.weight).fold(0.0, f64::max);
    let mut table = vec![FREE; size as usize];
    let mut left = table.len();
    for iteration in 1u64.. {
        for (index, turn) in turns.iter_mut().enumerate() {
            if left == 0 {
                return table;
            }
            // The heaviest key takes every turn, one with a third of its weight every third.
            if iteration as f64 * turn.weight < turn.target {
                continue;
            }
            turn.target += heaviest;
            let slot = std::iter::repeat_with(|| turn.step(size)).find(|slot| table[*slot] == FREE);
            let slot = slot.expect("a permutation reaches every slot, and one is free");
            table[slot] = u32::try_from(index).expect("fewer than four thousand million endpoints");
            left -= 1;
        }
    }
    table
}

impl Turn {
    fn step(&mut self, size: u64) -> usize {
        // 128 bits: `skip × next` may pass 64 when the table is large and nearly full.
        let slot = (u128::from(self.offset) + u128::from(self.skip) * u128::from(self.next)) % u128::from(size);
        self.next += 1;
        slot as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_fall_on_the_endpoints_that_envoy_chooses() {
        let key = |(port, weight): (u16, u32)| (format!("127.0.0.1:{port}"), weight);
        let keys = [(29_911, 1), (29_912, 2), (29_913, 1), (29_914, 3)].map(key);
        let choice = Maglev::new(&keys, 65_537);
        let at = |number: u32| choice.choose(xxh64(format!("key-{number}").as_bytes(), 0), 0).expect("an endpoint");
        let chosen: String = (0..24).map(|number| (at(number) + 1).to_string()).collect();
        assert_eq!(chosen, "244444443442424412334122");
    }

    fn turns(list: &[(u64, u64)]) -> Vec<Turn> {
        let of = |(offset, skip): &(u64, u64)| Turn { offset: *offset, skip: *skip, next: 0, weight: 1.0, target: 0.0 };
        list.iter().map(of).collect()
    }

    #[test]
    fn the_papers_example_comes_out() {
        assert_eq!(fill(turns(&[(3, 4), (0, 2), (3, 1)]), 7), [1, 0, 1, 0, 2, 2, 0]);
        let without_the_second = fill(turns(&[(3, 4), (3, 1)]), 7);
        assert_eq!(without_the_second, [0, 0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn weights_of_one_and_two_share_the_default_table_as_in_envoy() {
        let keys = [("127.0.0.1:90".to_owned(), 1), ("127.0.0.1:91".to_owned(), 2)];
        let maglev = Maglev::new(&keys, 65_537);
        let of = |wanted: u32| maglev.table.iter().filter(|index| **index == wanted).count();
        assert_eq!((of(0), of(1)), (21_846, 43_691));
    }

    #[test]
    fn a_retry_goes_elsewhere_in_the_table() {
        let keys: Vec<_> = (0..10).map(|number| (format!("10.0.0.{number}:80"), 1)).collect();
        let maglev = Maglev::new(&keys, 65_537);
        let moved = (0..1000).filter(|hash| maglev.choose(*hash, 0) != maglev.choose(*hash, 1)).count();
        assert!(moved > 800, "{moved}");
        assert_eq!(Maglev::new(&[], 65_537).choose(1, 0), None);
    }
}
