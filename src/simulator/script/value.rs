//! Single values of a script; each says what would be right.

use std::time::Duration;

use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use toml::value::Datetime;

use super::super::faults::Latency;
use super::super::peer::Address;

/// Lower-case hex digits.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Hex(pub(super) String);

impl TryFrom<String> for Hex {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let hex = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if hex { Ok(Self(text.to_ascii_lowercase())) } else { Err("must be hex digits") }
    }
}

#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "f64")]
pub(super) struct Probability(pub(super) f64);

impl TryFrom<f64> for Probability {
    type Error = &'static str;

    fn try_from(number: f64) -> Result<Self, Self::Error> {
        if (0.0..=1.0).contains(&number) { Ok(Self(number)) } else { Err("must be a number from 0.0 to 1.0") }
    }
}

#[derive(Deserialize)]
#[serde(try_from = "u16")]
pub(super) struct Status(pub(super) u16);

impl TryFrom<u16> for Status {
    type Error = &'static str;

    fn try_from(status: u16) -> Result<Self, Self::Error> {
        if (200..=599).contains(&status) { Ok(Self(status)) } else { Err("must be a status from 200 to 599") }
    }
}

/// Milliseconds since 1970-01-01 UTC.
#[derive(Deserialize)]
#[serde(try_from = "Datetime")]
pub(super) struct Instant(pub(super) u64);

impl TryFrom<Datetime> for Instant {
    type Error = &'static str;

    fn try_from(datetime: Datetime) -> Result<Self, Self::Error> {
        OffsetDateTime::parse(&datetime.to_string(), &Rfc3339)
            .ok()
            .and_then(|instant| u64::try_from(instant.unix_timestamp_nanos() / 1_000_000).ok())
            .map(Self)
            .ok_or("must be an instant with a zone, without quotes, as 2026-10-01T00:00:00Z")
    }
}

/// An error code's name (RFC 9113 section 7) or number.
#[derive(Deserialize)]
#[serde(try_from = "String")]
pub(super) struct Code(pub(super) u32);

impl TryFrom<String> for Code {
    type Error = String;

    fn try_from(name: String) -> Result<Self, Self::Error> {
        const NAMES: [&str; 14] = [
            "NO_ERROR",
            "PROTOCOL_ERROR",
            "INTERNAL_ERROR",
            "FLOW_CONTROL_ERROR",
            "SETTINGS_TIMEOUT",
            "STREAM_CLOSED",
            "FRAME_SIZE_ERROR",
            "REFUSED_STREAM",
            "CANCEL",
            "COMPRESSION_ERROR",
            "CONNECT_ERROR",
            "ENHANCE_YOUR_CALM",
            "INADEQUATE_SECURITY",
            "HTTP_1_1_REQUIRED",
        ];
        let code = NAMES.iter().zip(0..).find(|(known, _)| **known == name).map(|(_, code)| code);
        code.map(Self).ok_or_else(|| format!("must be one of {}", NAMES.join(", ")))
    }
}

/// `"127.0.0.1:2197"`, or a number from 1.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "SocketOrNumber")]
pub(super) struct RawAddress(pub(super) Address);

#[derive(Deserialize)]
#[serde(untagged)]
enum SocketOrNumber {
    Socket(String),
    Number(usize),
}

impl TryFrom<SocketOrNumber> for RawAddress {
    type Error = &'static str;

    fn try_from(raw: SocketOrNumber) -> Result<Self, Self::Error> {
        let wrong = "must be an address with its port, as \"127.0.0.1:2197\", or its number, from 1";
        match raw {
            SocketOrNumber::Socket(text) => {
                text.parse().map(|socket| Self(Address::Socket(socket))).map_err(|_| wrong)
            }
            SocketOrNumber::Number(0) => Err(wrong),
            SocketOrNumber::Number(number) => Ok(Self(Address::Number(number))),
        }
    }
}

/// A time since the beginning: `"250ms"`.
#[derive(Deserialize, Clone, Copy)]
#[serde(try_from = "String")]
pub(super) struct Span(pub(super) Duration);

impl TryFrom<String> for Span {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        read_duration(&text).map(Self).ok_or("must be a time as \"250ms\", \"2s\" or \"1m\"")
    }
}

/// `"250ms"`, or `["50ms", "2s"]`.
#[derive(Deserialize)]
#[serde(try_from = "OneOrTwo")]
pub(super) struct RawLatency(pub(super) Latency);

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrTwo {
    One(String),
    Two([String; 2]),
}

impl TryFrom<OneOrTwo> for RawLatency {
    type Error = &'static str;

    fn try_from(text: OneOrTwo) -> Result<Self, Self::Error> {
        let wrong = "must be a time as \"250ms\", \"2s\" or \"1m\", or a range as [\"50ms\", \"2s\"]";
        let (min, max) = match &text {
            OneOrTwo::One(text) => (read_duration(text), read_duration(text)),
            OneOrTwo::Two([min, max]) => (read_duration(min), read_duration(max)),
        };
        let latency = Latency { min: min.ok_or(wrong)?, max: max.ok_or(wrong)? };
        if latency.min <= latency.max { Ok(Self(latency)) } else { Err("the shorter time must come first") }
    }
}

fn read_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let ms = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        _ => return None,
    };
    number.parse::<u32>().ok().map(|number| Duration::from_millis(u64::from(number) * ms))
}
