//! Ring hash, compatible with Envoy's (xxHash64 of `address_i`, weights as numbers of points).

use xxhash_rust::xxh64::xxh64;

/// Points on a ring, by hash.
#[derive(Clone, Debug)]
pub struct Ring {
    points: Vec<(u64, u32)>,
}

impl Ring {
    /// Of keys with weights; `minimum` and `maximum` are the ring's size.
    pub fn new(keys: &[(String, u32)], minimum: u64, maximum: u64) -> Self {
        let total: f64 = keys.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let shares: Vec<f64> = keys.iter().map(|(_, weight)| f64::from(*weight) / total).collect();
        let least = shares.iter().copied().fold(1.0, f64::min);
        // So many points that the lightest key gets a whole number, unless that is too many.
        let scale = ((least * minimum as f64).ceil() / least).min(maximum as f64);
        let mut points = Vec::with_capacity(scale.ceil() as usize);
        let (mut current, mut target) = (0.0, 0.0);
        for (index, ((key, _), share)) in keys.iter().zip(&shares).enumerate() {
            target += scale * share;
            let mut number = 0;
            while current < target {
                let hash = xxh64(format!("{key}_{number}").as_bytes(), 0);
                points.push((hash, u32::try_from(index).expect("fewer than four thousand million endpoints")));
                number += 1;
                current += 1.0;
            }
        }
        points.sort_by_key(|(hash, _)| *hash);
        Self { points }
    }

    /// The key at the first point at or after the hash; `attempt` points further on a retry.
    pub fn choose(&self, hash: u64, attempt: u32) -> Option<usize> {
        let count = self.points.len();
        let at = self.points.partition_point(|(point, _)| *point < hash);
        let at = if at >= count { 0 } else { at };
        self.points.get((at + attempt as usize) % count.max(1)).map(|(_, index)| *index as usize)
    }

    /// Number of points.
    pub fn len(&self) -> usize {
        self.points.len()
    }

    /// True without keys.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_fall_on_the_endpoints_that_envoy_chooses() {
        let key = |(port, weight): (u16, u32)| (format!("127.0.0.1:{port}"), weight);
        let keys = [(29_911, 1), (29_912, 2), (29_913, 1), (29_914, 3)].map(key);
        let choice = Ring::new(&keys, 1024, 8_388_608);
        let at = |number: u32| choice.choose(xxh64(format!("key-{number}").as_bytes(), 0), 0).expect("an endpoint");
        let chosen: String = (0..24).map(|number| (at(number) + 1).to_string()).collect();
        assert_eq!(chosen, "441144343424442114134123");
    }

    fn keys(weights: &[u32]) -> Vec<(String, u32)> {
        weights.iter().enumerate().map(|(index, weight)| (format!("10.0.0.{index}:80"), *weight)).collect()
    }

    #[test]
    fn points_follow_the_weights() {
        let ring = Ring::new(&keys(&[1, 2]), 1024, 8_388_608);
        let of = |wanted: u32| ring.points.iter().filter(|(_, index)| *index == wanted).count();
        assert_eq!((ring.len(), of(0), of(1)), (1026, 342, 684));
        assert_eq!(Ring::new(&keys(&[1, 1, 1]), 1024, 2).len(), 2);
    }

    #[test]
    fn a_hash_falls_on_the_next_point_and_wraps_around() {
        let ring = Ring::new(&keys(&[1, 1]), 8, 8);
        for (position, (hash, index)) in ring.points.iter().enumerate() {
            assert_eq!(ring.choose(*hash, 0), Some(*index as usize));
            let next = ring.points[(position + 1) % ring.len()].1 as usize;
            assert_eq!(ring.choose(hash.wrapping_add(1), 0), Some(next));
            assert_eq!(ring.choose(*hash, 1), Some(next));
        }
        assert_eq!(Ring::new(&[], 8, 8).choose(1, 3), None);
    }

    #[test]
    fn removing_a_key_moves_only_its_hashes() {
        let (all, rest) = (Ring::new(&keys(&[1; 5]), 1024, 8192), Ring::new(&keys(&[1; 4]), 1024, 8192));
        let stays = |hash: u64| all.choose(hash, 0) == Some(4) || all.choose(hash, 0) == rest.choose(hash, 0);
        let kept = (0..1000u64).map(|number| xxh64(&number.to_le_bytes(), 1)).filter(|hash| stays(*hash)).count();
        assert!(kept > 900, "{kept}");
    }
}
