//! Pauses between tries, and the randomness in them.
//!
//! The one file that names the `backoff` crate, which is unmaintained: to change it, change this file. Its own jitter is
//! off; ours is seeded, so that a simulation can be run again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ::backoff::backoff::Backoff as _;
use ::backoff::exponential::ExponentialBackoff;

/// Random numbers that are handed down. Clones draw from one sequence.
#[derive(Clone, Debug)]
pub struct Jitter(Arc<AtomicU64>);

impl Jitter {
    /// The same sequence for the same seed.
    pub fn seeded(seed: u64) -> Self {
        Self(Arc::new(AtomicU64::new(seed)))
    }

    /// A sequence that differs between processes.
    pub fn random() -> Self {
        use std::hash::{BuildHasher, Hasher, RandomState};
        Self::seeded(RandomState::new().build_hasher().finish())
    }

    /// The next number, in `[0, 1)`.
    pub fn draw(&self) -> f64 {
        let top = u32::try_from(self.bits() >> 32).unwrap_or(u32::MAX);
        f64::from(top) / (f64::from(u32::MAX) + 1.0)
    }

    /// The next number, in 64 bits.
    pub fn bits(&self) -> u64 {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        // SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
        let mut mixed = self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

/// Pauses that double from a first one to a longest one, each with up to half more or less.
pub struct Pause {
    growth: ExponentialBackoff<Standstill>,
    jitter: Jitter,
}

impl Pause {
    /// Starts at `first` and grows to `longest`.
    pub fn new(first: Duration, longest: Duration, jitter: Jitter) -> Self {
        let growth = ExponentialBackoff {
            current_interval: first,
            initial_interval: first,
            randomization_factor: 0.0,
            multiplier: 2.0,
            max_interval: longest,
            max_elapsed_time: None,
            clock: Standstill,
            start_time: tokio::time::Instant::now().into_std(),
        };
        Self { growth, jitter }
    }

    /// How long to wait now; the next one is longer.
    pub fn lengthen(&mut self) -> Duration {
        let pause = self.growth.next_backoff().unwrap_or(self.growth.max_interval);
        pause.mul_f64(0.5 + self.jitter.draw())
    }

    /// The trouble is over: the next pause is the first again.
    pub fn reset(&mut self) {
        self.growth.current_interval = self.growth.initial_interval;
    }
}

/// There is no end to trying, so the time that went by does not matter.
#[derive(Clone, Copy, Debug)]
struct Standstill;

impl ::backoff::Clock for Standstill {
    fn now(&self) -> std::time::Instant {
        tokio::time::Instant::now().into_std()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_start_again() {
        let ms = Duration::from_millis;
        let mut pause = Pause::new(ms(100), ms(1000), Jitter::seeded(1));
        for expected in [100, 200, 400, 800, 1000, 1000] {
            let next = pause.lengthen();
            assert!(next >= ms(expected / 2) && next < ms(expected * 3 / 2), "{next:?} of {expected}");
        }
        pause.reset();
        assert!(pause.lengthen() < ms(150));
    }

    #[test]
    fn a_seed_gives_the_same_numbers_all_in_range() {
        let draw = |seed| -> Vec<f64> {
            let jitter = Jitter::seeded(seed);
            (0..1000).map(|_| jitter.draw()).collect()
        };
        let numbers = draw(7);
        assert_eq!(numbers, draw(7));
        assert_ne!(numbers, draw(8));
        assert!(numbers.iter().all(|number| (0.0..1.0).contains(number)));
        let mean = numbers.iter().sum::<f64>() / 1000.0;
        assert!((0.45..0.55).contains(&mean), "{mean}");
    }
}
