//! Spreading the requests of many nodes that are noticed in the same instant.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// `duration`, up to a fifth longer or shorter.
pub fn jittered(duration: Duration) -> Duration {
    // Every RandomState has other keys, which is all the randomness that is needed here.
    let random = RandomState::new().hash_one(0u8) % 401;
    duration.mul_f64(0.8 + random as f64 / 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_within_a_fifth() {
        let second = Duration::from_secs(1);
        let tries: Vec<Duration> = (0..1000).map(|_| jittered(second)).collect();
        assert!(tries.iter().all(|d| (800..=1200).contains(&(d.as_millis() as u64))));
        assert!(
            tries.iter().max().unwrap().abs_diff(*tries.iter().min().unwrap()) > Duration::from_millis(200)
        );
    }
}
