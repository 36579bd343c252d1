//! W3C Trace Context (<https://www.w3.org/TR/trace-context/>, §3.2): as part of what something is done, and who asked for it.

use std::fmt;
use std::num::{NonZeroU64, NonZeroU128};

/// Bytes of a `traceparent` of version 00.
const LENGTH: usize = 55;

/// The bit of the flags that says: whoever asked records this trace.
const SAMPLED: u8 = 1;

/// The flags that are known: sampled, and that the trace id is random (W3C Trace Context, level 2).
const FLAGS_KNOWN: u8 = SAMPLED | 2;

/// A whole trace. Written as 32 hex digits in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(NonZeroU128);

/// One span of a trace. Written as 16 hex digits in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(NonZeroU64);

/// What a `traceparent` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// The trace.
    pub trace_id: TraceId,
    /// The span that asked.
    pub span_id: SpanId,
    flags: u8,
}

impl TraceId {
    /// From a number; `None` for 0, which is no trace id.
    pub fn new(number: u128) -> Option<Self> {
        NonZeroU128::new(number).map(Self)
    }

    /// As OTLP has it: the first digit's bits first.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.get().to_be_bytes()
    }
}

impl SpanId {
    /// From a number; `None` for 0, which is no span id.
    pub fn new(number: u64) -> Option<Self> {
        NonZeroU64::new(number).map(Self)
    }

    /// As OTLP has it: the first digit's bits first.
    pub fn to_bytes(self) -> [u8; 8] {
        self.0.get().to_be_bytes()
    }
}

impl TraceContext {
    /// A trace that begins here and is recorded.
    pub fn new(trace_id: TraceId, span_id: SpanId) -> Self {
        Self { trace_id, span_id, flags: SAMPLED }
    }

    /// Reads a `traceparent`. A version that is not known yet is read as far as version 00 goes (§3.2.4).
    pub fn parse(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let (head, more) = bytes.split_at_checked(LENGTH)?;
        let [b'-', b'-', b'-'] = [head[2], head[35], head[52]] else { return None };
        let version = hex(&head[..2])?;
        match (version, more) {
            (0xff, _) | (0, [_, ..]) => return None,
            (_, [] | [b'-', ..]) => {}
            _ => return None,
        }
        Some(Self {
            trace_id: TraceId::new(hex(&head[3..35])?)?,
            span_id: SpanId::new(u64::try_from(hex(&head[36..52])?).ok()?)?,
            flags: u8::try_from(hex(&head[53..55])?).ok()? & FLAGS_KNOWN,
        })
    }

    /// Whether whoever asked records this trace.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// The same trace, as another span goes on with it.
    #[must_use]
    pub fn continued_by(self, span_id: SpanId) -> Self {
        Self { span_id, ..self }
    }

    /// As OTLP has it: the W3C flags.
    pub fn flags(&self) -> u8 {
        self.flags
    }
}

/// Hex digits in lower case, as many as `u128` holds.
fn hex(digits: &[u8]) -> Option<u128> {
    digits.iter().try_fold(0, |number, digit| {
        let value = match digit {
            b'0'..=b'9' => digit - b'0',
            b'a'..=b'f' => digit - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(value))
    })
}

impl fmt::Display for TraceId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:032x}", self.0)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}", self.0)
    }
}

/// A `traceparent` of version 00.
impl fmt::Display for TraceContext {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "00-{}-{}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The example of the specification (§3.2.3).
    const EXAMPLE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_specifications_examples_are_read() {
        let context = TraceContext::parse(EXAMPLE).expect("it is right");
        assert_eq!(context.trace_id.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(context.span_id.to_string(), "00f067aa0ba902b7");
        assert!(context.is_sampled());
        assert_eq!(context.to_string(), EXAMPLE);
        assert_eq!(context.span_id.to_bytes(), [0, 0xf0, 0x67, 0xaa, 0x0b, 0xa9, 0x02, 0xb7]);
        let unsampled = TraceContext::parse(&EXAMPLE.replace("-01", "-00")).expect("it is right");
        assert!(!unsampled.is_sampled());
    }

    /// As the test suite of the W3C has them (github.com/w3c/trace-context, `test/test.py`, `test_traceparent_*`).
    #[test]
    fn odd_ones_are_none() {
        for odd in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-001",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-.0",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-.bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e47360-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b-01",
            "0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "000-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            ".0-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            " 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01what-the-future-will-not-be-like",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what-the-future-will-not-be-like",
        ] {
            assert_eq!(TraceContext::parse(odd), None, "{odd:?}");
        }
    }

    #[test]
    fn a_version_to_come_is_read_as_far_as_it_is_known_and_goes_on_as_00() {
        for text in [
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like",
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-f9",
        ] {
            assert_eq!(TraceContext::parse(text).expect("it is right").to_string(), EXAMPLE, "{text}");
        }
    }

    #[test]
    fn the_trace_goes_on_under_another_span() {
        let context = TraceContext::parse(&EXAMPLE.replace("-01", "-03")).expect("it is right");
        let ours = context.continued_by(SpanId::new(0xb7ad).expect("not 0"));
        assert_eq!(ours.to_string(), "00-4bf92f3577b34da6a3ce929d0e0e4736-000000000000b7ad-03");
    }

    proptest! {
        #[test]
        fn whatever_comes_is_read_or_not(text in "\\PC{0,70}") {
            let _ = TraceContext::parse(&text);
        }

        #[test]
        fn what_is_written_reads_back(trace in 1..u128::MAX, span in 1..u64::MAX, flags in 0..4_u8) {
            let text = format!("00-{trace:032x}-{span:016x}-{flags:02x}");
            prop_assert_eq!(TraceContext::parse(&text).map(|context| context.to_string()), Some(text));
        }
    }
}
