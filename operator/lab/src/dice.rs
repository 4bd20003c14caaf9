//! Random numbers that are the same for the same seed, on every machine.

/// SplitMix64.
#[derive(Clone, Debug)]
pub struct Dice(u64);

fn mixed(state: u64) -> u64 {
    let mut mixed = state;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

/// One number for `of` under a seed, independent of all others: who asks first changes nothing.
pub fn hash(seed: u64, of: u64) -> u64 {
    mixed(mixed(seed ^ 0x9e37_79b9_7f4a_7c15).wrapping_add(of.wrapping_mul(0xd1b5_4a32_d192_ed03)))
}

impl Dice {
    /// Dice of a seed, one pair for each purpose.
    pub fn of(seed: u64, purpose: u64) -> Self {
        Self(hash(seed, purpose))
    }

    /// Any number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mixed(self.0)
    }

    /// From 0 to less than 1.
    pub fn share(&mut self) -> f64 {
        (self.roll() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0 to less than `below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.roll() % below.max(1)
    }

    /// Seconds until something happens that happens `rate` times a second.
    pub fn wait(&mut self, rate: f64) -> f64 {
        -(1.0 - self.share()).ln() / rate.max(1e-12)
    }
}
