//! Instants of wall time, as the messages write them.

use std::fmt;
use std::time::Duration;

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Milliseconds since 1970-01-01T00:00:00Z. Written as RFC 3339 in UTC with three decimals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(i64);

impl Timestamp {
    /// From Unix milliseconds.
    pub const fn from_unix_ms(unix_ms: i64) -> Self {
        Self(unix_ms)
    }

    /// Unix milliseconds.
    pub fn unix_ms(self) -> i64 {
        self.0
    }

    /// Whole Unix seconds, rounded down.
    pub fn unix_seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }

    /// An RFC 3339 instant with a zone (RFC 3339 §5.6, with the blank that its note allows for the `T`); fractions of a
    /// millisecond are cut off.
    pub fn parse(text: &str) -> Option<Self> {
        // The library takes any character there.
        if !matches!(text.as_bytes().get(10), Some(b'T' | b't' | b' ')) {
            return None;
        }
        let instant = OffsetDateTime::parse(text, &Rfc3339).ok()?;
        i64::try_from(instant.unix_timestamp_nanos().div_euclid(1_000_000)).ok().map(Self)
    }

    /// The time from `earlier` to this instant; zero when this one is not later.
    pub fn since(self, earlier: Self) -> Duration {
        u64::try_from(self.0.saturating_sub(earlier.0)).map_or(Duration::ZERO, Duration::from_millis)
    }

    /// This instant and a duration, in whole milliseconds.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)))
    }
}

impl Timestamp {
    /// Bytes of an instant as text.
    pub const LENGTH: usize = 24;

    /// The instant as text. `None` before the year 0 and after 9999, which only a clock that is quite wrong says.
    pub fn encode(self) -> Option<[u8; Self::LENGTH]> {
        let ms = u64::try_from(self.0.checked_add(EPOCH_MS)?).ok()?;
        let (seconds, millisecond) = (ms / 1000, u32::try_from(ms % 1000).ok()?);
        let second = u32::try_from(seconds % DAY_SECONDS).ok()?;
        let (year, month, day) = civil(u32::try_from(seconds / DAY_SECONDS).ok()?);
        if year > 9999 {
            return None;
        }
        // Every outcome holds three of these, so the digits are written straight.
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut pair = |place: usize, number: u32| {
            text[place] = digit(number / 10);
            text[place + 1] = digit(number % 10);
        };
        pair(0, year / 100);
        pair(2, year % 100);
        pair(5, month);
        pair(8, day);
        pair(11, second / 3600);
        pair(14, second / 60 % 60);
        pair(17, second % 60);
        pair(21, millisecond % 100);
        text[20] = digit(millisecond / 100);
        Some(text)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.encode() {
            Some(text) => formatter.write_str(std::str::from_utf8(text).map_err(|_| fmt::Error)?),
            // A number is still the truth.
            None => write!(formatter, "{}", self.0),
        }
    }
}

/// Seconds of a day.
const DAY_SECONDS: u64 = 86_400;

/// Days of 400 years, after which the calendar repeats itself.
const ERA_DAYS: u32 = 146_097;

/// Milliseconds from the 1st of March of the year -400 to 1970. Counted from there, nothing is below 0.
const EPOCH_MS: i64 = (719_468 + 146_097) * 86_400_000;

/// Year, month and day, so many days after the 1st of March of the year -400. Years begin in March here, so that the leap day
/// is the last (Howard Hinnant, *chrono-compatible low-level date algorithms*, `civil_from_days`). A year before 0 is a very
/// large one.
fn civil(days: u32) -> (u32, u32, u32) {
    let (era, day) = (days / ERA_DAYS, days % ERA_DAYS);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day_of_year = day - (365 * year + year / 4 - year / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = (era * 400 + year + u32::from(month <= 2)).wrapping_sub(400);
    (year, month, day_of_year - (153 * from_march + 2) / 5 + 1)
}

/// A number below 10 as a digit.
fn digit(number: u32) -> u8 {
    number.to_le_bytes()[0].wrapping_add(b'0')
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_rfc_3339_with_a_zone_only() {
        let expected = Timestamp::from_unix_ms(1_795_253_430_000);
        for text in [
            "2026-11-21T09:30:30.000Z",
            "2026-11-21T09:30:30Z",
            "2026-11-21T10:30:30+01:00",
            "2026-11-21t09:30:30z",
            "2026-11-21 09:30:30Z",
        ] {
            assert_eq!(Timestamp::parse(text), Some(expected), "{text}");
        }
        for between in (0..=0x7f_u8).map(char::from) {
            let text = format!("2026-11-21{between}09:30:30Z");
            assert_eq!(Timestamp::parse(&text).is_some(), "Tt ".contains(between), "{text:?}");
        }
        for text in ["2026-11-21T09:30:30", "2026-11-21", "1795253430", "", "2026-13-21T09:30:30Z", "now"] {
            assert_eq!(Timestamp::parse(text), None, "{text}");
        }
    }

    #[test]
    fn writes_utc_with_three_decimals() {
        let text = Timestamp::from_unix_ms(1_795_253_430_007).to_string();
        assert_eq!(text, "2026-11-21T09:30:30.007Z");
        assert_eq!(Timestamp::from_unix_ms(0).to_string(), "1970-01-01T00:00:00.000Z");
    }

    #[test]
    fn a_clock_that_is_quite_wrong_is_a_number() {
        let [first, last] = [-62_167_219_200_000, 253_402_300_799_999];
        assert_eq!(Timestamp::from_unix_ms(first).to_string(), "0000-01-01T00:00:00.000Z");
        assert_eq!(Timestamp::from_unix_ms(last).to_string(), "9999-12-31T23:59:59.999Z");
        for unix_ms in [first - 1, last + 1, -EPOCH_MS, -EPOCH_MS - 1, i64::MIN, i64::MAX] {
            assert_eq!(Timestamp::from_unix_ms(unix_ms).to_string(), unix_ms.to_string());
        }
    }

    #[test]
    fn every_day_is_the_librarys() {
        const DAY_MS: i64 = 86_400_000;
        for day in (-719_528..2_932_897).step_by(137).chain(0..30_000) {
            let instant = Timestamp::from_unix_ms(day * DAY_MS + 45_296_789);
            let (text, library) =
                (instant.to_string(), OffsetDateTime::from_unix_timestamp(day * 86_400).unwrap());
            assert_eq!(text, format!("{}T12:34:56.789Z", library.date()));
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(unix_ms in 0i64..253_402_300_799_999) {
            let instant = Timestamp::from_unix_ms(unix_ms);
            prop_assert_eq!(Timestamp::parse(&instant.to_string()), Some(instant));
        }
    }
}
