//! How often a cut is tried, and how long is waited between.
//!
//! Crash story: pure arithmetic, no effects.

use std::time::Duration;

/// How often a cut is tried, and how long is waited between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// How often at the most; at least once.
    pub attempts: u32,
    /// The pause after the first attempt; each later one is half as long again.
    pub first_pause: Duration,
}

impl Default for Patience {
    /// Six attempts in about 3.3 s of pauses: longer than a statement that is merely slow.
    fn default() -> Self {
        Self { attempts: 6, first_pause: Duration::from_millis(250) }
    }
}

impl Patience {
    /// The pause after attempt number `attempt` (from 1): grows by half each time, and is moved by up to a
    /// quarter either way, so that two servers that got in each other's way do not meet again. The same
    /// `seed` gives the same pauses.
    #[must_use]
    pub fn pause(&self, attempt: u32, seed: u64) -> Duration {
        let grown = (1..attempt).fold(self.first_pause, |pause, _| pause.saturating_mul(3) / 2);
        let thousandths = 750 + u32::try_from(mix(seed, u64::from(attempt)) % 501).unwrap_or(0);
        grown.saturating_mul(thousandths) / 1000
    }
}

/// Spreads `seed` and `n` over 64 bits: the finaliser of SplitMix64 (Steele, Lea, Flood: "Fast splittable
/// pseudorandom number generators", 2014).
#[must_use]
pub fn mix(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Patience;

    #[test]
    fn pauses_grow_by_half_and_stay_within_a_quarter() {
        let patience = Patience { attempts: 9, first_pause: Duration::from_millis(100) };
        let mut differing = 0;
        for seed in 0..200 {
            let mut middle = 100.0;
            for attempt in 1..9 {
                let pause = patience.pause(attempt, seed).as_secs_f64() * 1000.0;
                assert!(pause >= middle * 0.749 && pause <= middle * 1.251, "{attempt}: {pause} of {middle}");
                differing += u32::from((pause - middle).abs() > middle * 0.01);
                middle *= 1.5;
            }
        }
        assert!(differing > 1000, "the pauses hardly vary: {differing} of 1600");
        assert_eq!(patience.pause(3, 7), patience.pause(3, 7));
    }
}
