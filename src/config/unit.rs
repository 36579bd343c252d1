//! Durations as settings write them: a whole number and a mandatory unit.

use std::time::Duration;

const UNITS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// Reads `250ms`, `5s`, `10m`, `1h`. Errors say what is wrong and what would be right.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let wrong = |what: &str| Err(format!("{what}; write a whole number and ms, s, m or h, as in \"5s\""));
    if number.is_empty() {
        return wrong("is not a duration");
    }
    if unit.is_empty() {
        return wrong("has no unit");
    }
    let Some((_, factor)) = UNITS.iter().find(|(name, _)| *name == unit) else {
        return wrong("is not a whole number with a known unit");
    };
    match number.parse::<u64>().ok().and_then(|number| number.checked_mul(*factor)) {
        Some(milliseconds) => Ok(Duration::from_millis(milliseconds)),
        None => wrong("is too long"),
    }
}

/// Writes a duration of whole milliseconds in the largest unit that is exact; [`parse_duration`] reads it back.
pub(super) fn format_duration(duration: Duration) -> String {
    let milliseconds = duration.as_millis();
    if milliseconds == 0 {
        return "0s".to_owned();
    }
    let exact = UNITS.iter().find(|(_, factor)| milliseconds.is_multiple_of(u128::from(*factor)));
    let (unit, factor) = exact.unwrap_or(&("ms", 1));
    format!("{}{unit}", milliseconds / u128::from(*factor))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn units_are_mandatory_and_numbers_whole() {
        assert_eq!(parse_duration("0s"), Ok(Duration::ZERO));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse_duration("10m"), Ok(Duration::from_mins(10)));
        for wrong in ["", "5", "s", "1.5s", "5 s", " 5s", "-1s", "5S", "1d", "5s ", "99999999999999999999s"] {
            assert!(parse_duration(wrong).is_err(), "{wrong:?}");
        }
        assert!(parse_duration("18446744073709551615h").is_err(), "an overflow");
    }

    #[test]
    fn the_largest_exact_unit_is_written() {
        assert_eq!(format_duration(Duration::from_secs(90)), "90s");
        assert_eq!(format_duration(Duration::from_hours(1)), "1h");
        assert_eq!(format_duration(Duration::from_millis(1500)), "1500ms");
    }

    proptest! {
        #[test]
        fn durations_round_trip(milliseconds in 0..=u64::MAX) {
            let duration = Duration::from_millis(milliseconds);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
        }

        #[test]
        fn arbitrary_text_never_panics(text in any::<String>()) {
            let _ = parse_duration(&text);
        }
    }
}
