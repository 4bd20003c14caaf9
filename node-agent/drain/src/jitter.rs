//! Spreading the requests of many nodes that are noticed, or begin, in the same instant.

use std::hash::{BuildHasher, RandomState};
use std::ops::RangeInclusive;
use std::time::Duration;

/// `duration`, up to a fifth longer or shorter.
pub fn jittered(duration: Duration) -> Duration {
    duration.mul_f64(f64::from(any_of(800..=1200)) / 1000.0)
}

/// Any number of `range`.
pub fn any_of(range: RangeInclusive<u32>) -> u32 {
    let (least, most) = range.into_inner();
    let count = u64::from(most.saturating_sub(least)) + 1;
    // Every RandomState has other keys, which is all the randomness that is needed here.
    least.saturating_add((RandomState::new().hash_one(0u8) % count) as u32)
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
