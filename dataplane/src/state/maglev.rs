//! Maglev (NSDI '16): a table of places in which each backend has its share, and few places change hands
//! when a backend comes or goes.

use crate::sys::abi::MAGLEV_SIZE;

/// Fills a table with indices into `names`; empty for no names. Names must be distinct.
pub fn table(names: &[String]) -> Vec<u32> {
    if names.is_empty() {
        return Vec::new();
    }
    let permutations: Vec<_> = names.iter().map(|name| permutation(name, u64::from(MAGLEV_SIZE))).collect();
    fill(&permutations, MAGLEV_SIZE as usize)
}

/// Offset and skip of a name in a table of `size` places.
fn permutation(name: &str, size: u64) -> (u64, u64) {
    (hash(name, 0x6d61_676c) % size, hash(name, 0x6576_0001) % (size - 1) + 1)
}

fn fill(permutations: &[(u64, u64)], size: usize) -> Vec<u32> {
    let mut table: Vec<Option<u32>> = vec![None; size];
    let mut turns = vec![0u64; permutations.len()];
    let mut filled = 0;
    loop {
        for (index, (offset, skip)) in permutations.iter().enumerate() {
            let place = loop {
                let place = ((offset + turns[index] * skip) % size as u64) as usize;
                turns[index] += 1;
                if table[place].is_none() {
                    break place;
                }
            };
            table[place] = Some(index as u32);
            filled += 1;
            if filled == size {
                return table.into_iter().flatten().collect();
            }
        }
    }
}

/// FNV-1a with a seed and a final mix: the same on every machine and in every version.
pub fn hash(text: &str, seed: u64) -> u64 {
    let start = 0xcbf2_9ce4_8422_2325 ^ seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let hash = text.bytes().fold(start, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    (hash ^ (hash >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_paper_comes_out() {
        assert_eq!(fill(&[(3, 4), (0, 2), (3, 1)], 7), [1, 0, 1, 0, 2, 2, 0]);
        assert_eq!(fill(&[(3, 4), (3, 1)], 7), [0, 0, 0, 0, 1, 1, 1]);
    }

    #[test]
    fn shares_are_even_and_a_removal_moves_little_else() {
        let names: Vec<_> = (0..5).map(|number| format!("10.0.0.{number}:80")).collect();
        let all = table(&names);
        for index in 0..5 {
            let share = all.iter().filter(|place| **place == index).count();
            assert!((194..=214).contains(&share), "{share}");
        }
        let fewer = table(&names[..4]);
        let moved = all.iter().zip(&fewer).filter(|(before, after)| **before != 4 && before != after).count();
        assert!(moved < 120, "{moved} of {MAGLEV_SIZE} places moved");
    }
}
