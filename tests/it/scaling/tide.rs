//! The calls of a day: recorded ones, made larger, and what is put on top of them.

use super::MINUTE;

/// 169 counts of five minutes each.
const RECORDED: &str = include_str!("tide.txt");
/// What a count covers, in seconds.
const SPAN: u32 = 5 * MINUTE;
/// When the first count begins: 07:00.
const OPENS: u32 = 7 * 60 * MINUTE;
/// The night has a tenth of the calls of the recorded day's edges, from two hours after the last count to two hours before the first.
const NIGHT: f64 = 0.1;
const DUSK: u32 = 120 * MINUTE;

pub(super) const DAY: u32 = 24 * 60 * MINUTE;

/// The rate of the calls over a day, whose busiest five minutes have a given rate.
#[derive(Clone, Debug)]
pub(super) struct Tide {
    counts: Vec<f64>,
    /// Calls a second for each recorded one in five minutes.
    scale: f64,
}

impl Tide {
    pub(super) fn new(peak: f64) -> Self {
        let counts: Vec<f64> = counts().iter().copied().map(f64::from).collect();
        let scale = peak / counts.iter().copied().fold(0.0, f64::max);
        Self { counts, scale }
    }

    /// Calls a second at a second of the day. A rate stays for its five minutes.
    pub(super) fn rate(&self, second: u32) -> f64 {
        let closes = OPENS + SPAN * u32::try_from(self.counts.len()).expect("169");
        let edge = |hour: &[f64]| hour.iter().sum::<f64>() / 12.0;
        let fade = |edge: f64, away: u32| {
            let passed = f64::from(away.min(DUSK)) / f64::from(DUSK);
            edge * (1.0 - passed * (1.0 - NIGHT))
        };
        let count = if second < OPENS {
            fade(edge(&self.counts[..12]), OPENS - second)
        } else if second < closes {
            self.counts[usize::try_from((second - OPENS) / SPAN).expect("169 at most")]
        } else {
            fade(edge(&self.counts[self.counts.len() - 12..]), second - closes)
        };
        count * self.scale
    }
}

fn counts() -> Vec<u32> {
    let numbers = RECORDED.lines().filter(|line| !line.starts_with('#')).flat_map(str::split_whitespace);
    numbers.map(|number| number.parse().expect("tide.txt holds counts")).collect()
}

#[test]
fn the_record_is_whole() {
    let counts = counts();
    assert_eq!((counts.len(), counts.iter().sum::<u32>()), (169, 41_257));
    assert_eq!((counts[0], counts[168], counts.iter().max()), (111, 79, Some(&398)));
}

#[test]
fn a_day_rises_and_falls_without_a_jump_at_its_edges() {
    let tide = Tide::new(398.0);
    assert!((tide.rate(OPENS) - 111.0).abs() < 1e-9, "the first five minutes");
    assert!((0..DAY).map(|second| tide.rate(second)).fold(0.0, f64::max) <= 398.0 + 1e-9);
    let (night, morning) = (tide.rate(3 * 60 * MINUTE), tide.rate(OPENS - 1));
    assert!(night > 5.0 && night < 15.0, "{night}");
    assert!(morning > 80.0 && morning < 120.0, "{morning}");
    assert!(tide.rate(DAY - 1) < 15.0, "{}", tide.rate(DAY - 1));
}
