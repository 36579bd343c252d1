//! Chance that can be repeated: one small generator, seeded, from which everything random in the simulator comes.

use uuid::Uuid;

/// A `SplitMix64` generator. Good enough to pick faults and delays; never for secrets.
#[derive(Debug, Clone)]
pub(super) struct Chance {
    state: u64,
}

impl Chance {
    /// The same seed gives the same sequence.
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// True with the given probability: never at 0 or below, always at 1 or above.
    pub(super) fn hit(&mut self, probability: f64) -> bool {
        if probability >= 1.0 {
            return true;
        }
        #[expect(clippy::cast_precision_loss, reason = "53 bits fit a double exactly")]
        let unit = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        unit < probability
    }

    /// A number from `low` to `high`, both included.
    pub(super) fn between(&mut self, low: u64, high: u64) -> u64 {
        match high.saturating_sub(low).checked_add(1) {
            Some(span) => low + self.next() % span,
            None => self.next(),
        }
    }

    /// A random-looking UUID (version 4).
    pub(super) fn uuid(&mut self) -> Uuid {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.next().to_be_bytes());
        bytes[8..].copy_from_slice(&self.next().to_be_bytes());
        uuid::Builder::from_random_bytes(bytes).into_uuid()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_repeats_and_another_differs() {
        let draw = |seed| {
            let mut chance = Chance::new(seed);
            (0..8).map(|_| chance.next()).collect::<Vec<_>>()
        };
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn probabilities_and_ranges_are_kept() {
        let mut chance = Chance::new(1);
        assert!((0..1000).all(|_| !chance.hit(0.0)));
        assert!((0..1000).all(|_| chance.hit(1.0)));
        let hits = (0..10_000).filter(|_| chance.hit(0.3)).count();
        assert!((2800..3200).contains(&hits), "{hits}");
        assert!((0..1000).all(|_| (3..=5).contains(&chance.between(3, 5))));
        assert_eq!(chance.between(9, 9), 9);
        chance.between(0, u64::MAX);
    }

    #[test]
    fn uuids_are_version_four() {
        assert_eq!(Chance::new(3).uuid().get_version_num(), 4);
    }
}
