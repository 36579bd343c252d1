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

    /// An RFC 3339 instant with a zone (RFC 3339 §5.6); fractions of a millisecond are cut off.
    pub fn parse(text: &str) -> Option<Self> {
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

impl fmt::Display for Timestamp {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(instant) = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.0) * 1_000_000) else {
            // Only a clock beyond the year 9999 comes here; a number is still the truth.
            return write!(formatter, "{}", self.0);
        };
        let (year, month, day) = instant.to_calendar_date();
        let (hour, minute, second, millisecond) = instant.to_hms_milli();
        let Ok(year @ 0..=9999) = u16::try_from(year) else { return write!(formatter, "{}", self.0) };
        // Every outcome holds three of these, so the digits are written straight.
        let mut text = *b"0000-00-00T00:00:00.000Z";
        digits(&mut text[0..4], year);
        digits(&mut text[5..7], u8::from(month).into());
        digits(&mut text[8..10], day.into());
        digits(&mut text[11..13], hour.into());
        digits(&mut text[14..16], minute.into());
        digits(&mut text[17..19], second.into());
        digits(&mut text[20..23], millisecond);
        formatter.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
    }
}

/// Writes a number into all of `places`, with leading zeros.
fn digits(places: &mut [u8], mut number: u16) {
    for place in places.iter_mut().rev() {
        *place = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
    }
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
        for text in ["2026-11-21T09:30:30.000Z", "2026-11-21T09:30:30Z", "2026-11-21T10:30:30+01:00"] {
            assert_eq!(Timestamp::parse(text), Some(expected), "{text}");
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

    proptest! {
        #[test]
        fn what_is_written_reads_back(unix_ms in 0i64..253_402_300_799_999) {
            let instant = Timestamp::from_unix_ms(unix_ms);
            prop_assert_eq!(Timestamp::parse(&instant.to_string()), Some(instant));
        }
    }
}
