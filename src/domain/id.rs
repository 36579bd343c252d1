//! A newtype for every id, and how one is derived from another.
//!
//! Derived ids are UUIDs of version 8 (RFC 9562 §5.8) over SHA-256, so that every worker and every attempt comes to the
//! same one without asking anybody.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::digest::{self, Context, SHA256};
use serde::{Serialize, Serializer};
use uuid::Uuid;

/// Characters of a UUID, 8-4-4-4-12.
const LENGTH: usize = uuid::fmt::Hyphenated::LENGTH;

/// CallKit's `callUUID`: the same in every copy of an invite. Written in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct CallId(Uuid);

impl CallId {
    /// A UUID written 8-4-4-4-12, in any case.
    pub fn parse(text: &str) -> Option<Self> {
        if text.len() != LENGTH {
            return None;
        }
        Uuid::try_parse(text).ok().map(Self)
    }

    /// The id as a UUID.
    pub fn to_uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for CallId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// `apns-id`: the same in every attempt of one call and token. Canonical lower-case UUID, 8-4-4-4-12 (Apple, *Sending
/// notification requests to APNs*).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct ApnsId(Uuid);

impl ApnsId {
    /// The id of the push of `call` to `token`.
    pub fn derive(call: CallId, token: &DeviceToken) -> Self {
        Self(derive_uuid("ringcast.apns-id", &[call.0.as_bytes(), token.as_str().as_bytes()]))
    }

    /// The id as bytes, for tables.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// The id as a UUID.
    pub fn to_uuid(self) -> Uuid {
        self.0
    }
}

impl fmt::Display for ApnsId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// Which invite this is, readable or not: a digest of the AMQP `message_id` and the body. The same bytes published twice
/// under one id are one invite; anything else is two.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity([u8; 32]);

impl Identity {
    /// The identity of a message. An empty `message_id` counts as absent.
    pub fn of(message_id: Option<&str>, body: &[u8]) -> Self {
        let message_id = message_id.unwrap_or_default().as_bytes();
        Self(digest("ringcast.invite", &[message_id, body]))
    }

    /// `message_id` of the outcome.
    pub fn outcome_id(&self) -> Uuid {
        derive_uuid("ringcast.outcome", &[&self.0])
    }

    /// `message_id` of the token event of one device.
    pub fn token_event_id(&self, token: &DeviceToken) -> Uuid {
        derive_uuid("ringcast.token-event", &[&self.0, token.as_str().as_bytes()])
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(formatter, "Identity({a:02x}{b:02x}{c:02x}{d:02x}…)")
    }
}

/// A device token as an invite gives it, in lower case. [`DeviceToken::is_well_formed`] tells whether it may be sent.
///
/// Its `Debug` and `Display` are a fingerprint: no log line ever holds a whole token. A clone is the same text, not a copy.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct DeviceToken(Arc<str>);

impl DeviceToken {
    /// Bytes (not hex digits) of a token at most. Apple announced up to 100 and says not to assume a size.
    pub const BYTES_MAX: usize = 256;

    /// The token in lower case, well-formed or not.
    pub fn new(text: &str) -> Self {
        if text.bytes().fold(false, |upper, byte| upper | byte.is_ascii_uppercase()) {
            Self(text.to_ascii_lowercase().into())
        } else {
            Self(text.into())
        }
    }

    /// The whole token, for the request path and for results. Never for a log line.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// What is wrong with it and what would be right, if anything is.
    pub fn fault(&self) -> Option<String> {
        let digits = self.0.len();
        if self.is_well_formed() {
            return None;
        }
        let wrong = if let Some(at) = self.0.bytes().position(|byte| !byte.is_ascii_hexdigit()) {
            format!("has something that is no hex digit at position {}", at + 1)
        } else if !digits.is_multiple_of(2) {
            format!("has {digits} hex digits, an odd number")
        } else if digits < 4 {
            format!("has {digits} hex digits, too few")
        } else {
            format!("has {digits} hex digits, too many")
        };
        Some(format!("token {wrong}; it must be 2 to {} bytes as hex digits", Self::BYTES_MAX))
    }

    /// Whether it keeps the rule: hex, even length, 2 to 256 bytes.
    pub fn is_well_formed(&self) -> bool {
        // Without an early end, so that it is done for many bytes at once.
        let hex = self.0.bytes().fold(true, |hex, byte| hex & byte.is_ascii_hexdigit());
        let digits = self.0.len();
        hex && digits.is_multiple_of(2) && (4..=2 * Self::BYTES_MAX).contains(&digits)
    }
}

impl fmt::Debug for DeviceToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.get(..8) {
            Some(start) if self.0.len() >= 32 => write!(formatter, "{start}…({})", self.0.len()),
            _ => write!(formatter, "…({})", self.0.len()),
        }
    }
}

impl fmt::Display for DeviceToken {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, formatter)
    }
}

impl Serialize for DeviceToken {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// SHA-256 over a purpose and parts, each with its length, so that no two lists of parts look alike.
fn digest(purpose: &str, parts: &[&[u8]]) -> [u8; 32] {
    /// Holds an invite with two devices. To hash in one piece spares a context and a call for every part.
    const AT_ONCE: usize = 1024;
    let parts = || std::iter::once(purpose.as_bytes()).chain(parts.iter().copied());
    let length: usize = parts().map(|part| size_of::<u64>() + part.len()).sum();
    let digest = if length <= AT_ONCE {
        let mut buffer = [0; AT_ONCE];
        let mut end = 0;
        for part in parts() {
            let (head, rest) = buffer[end..].split_at_mut(size_of::<u64>());
            head.copy_from_slice(&(part.len() as u64).to_be_bytes());
            rest[..part.len()].copy_from_slice(part);
            end += head.len() + part.len();
        }
        digest::digest(&SHA256, &buffer[..end])
    } else {
        let mut context = Context::new(&SHA256);
        for part in parts() {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        context.finish()
    };
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

fn derive_uuid(purpose: &str, parts: &[&[u8]]) -> Uuid {
    let digest = digest(purpose, parts);
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CALL: &str = "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a";

    #[test]
    fn a_call_id_is_a_hyphenated_uuid_in_any_case() {
        let lower = CallId::parse(CALL).unwrap();
        assert_eq!(CallId::parse(&CALL.to_uppercase()), Some(lower));
        assert_eq!(lower.to_string(), CALL);
        for odd in
            ["", "6f1c6d0e6f3b4f5e9a510d5a4f3c2b1a", "{6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a}", &CALL[1..]]
        {
            assert_eq!(CallId::parse(odd), None, "{odd}");
        }
    }

    #[test]
    fn an_apns_id_depends_on_call_and_token_alone() {
        let call = CallId::parse(CALL).unwrap();
        let id = ApnsId::derive(call, &DeviceToken::new("AB01"));
        assert_eq!(id, ApnsId::derive(call, &DeviceToken::new("ab01")));
        assert_ne!(id, ApnsId::derive(call, &DeviceToken::new("ab02")));
        assert_eq!(id.to_string().len(), 36);
        assert_eq!(id.to_string(), id.to_string().to_lowercase());
    }

    #[test]
    fn identity_tells_message_id_and_body_apart() {
        assert_eq!(Identity::of(None, b"x"), Identity::of(Some(""), b"x"));
        assert_ne!(Identity::of(Some("x"), b""), Identity::of(Some(""), b"x"));
        assert_ne!(Identity::of(Some("a"), b"bc"), Identity::of(Some("ab"), b"c"));
        let identity = Identity::of(Some("m"), b"{}");
        assert_ne!(identity.outcome_id(), identity.token_event_id(&DeviceToken::new("ab01")));
    }

    /// Other versions must come to the same ids.
    #[test]
    fn ids_are_those_of_every_version() {
        let (short, long) = (Identity::of(Some("m"), b"{}"), Identity::of(None, &[b'x'; 1024]));
        assert_eq!(short.outcome_id().to_string(), "e694be58-b26c-852a-8f4b-486e3d072543");
        assert_eq!(long.outcome_id().to_string(), "0884365e-cc26-8257-97bc-774abb887857");
        let token = DeviceToken::new(&"9f86d081".repeat(8));
        assert_eq!(
            ApnsId::derive(CallId::parse(CALL).unwrap(), &token).to_string(),
            "81a3268d-f7c4-81b0-8eba-6ba3de092f49"
        );
    }

    #[test]
    fn a_digest_is_the_same_in_one_piece_and_in_many() {
        for length in [0, 1, 990, 1000, 1001, 1002, 1024, 5000] {
            let part = vec![b'x'; length];
            let mut whole = Vec::new();
            for part in [&b"ringcast.test"[..], &part] {
                whole.extend_from_slice(&(part.len() as u64).to_be_bytes());
                whole.extend_from_slice(part);
            }
            let expected = digest::digest(&SHA256, &whole);
            assert_eq!(digest("ringcast.test", &[&part]), expected.as_ref(), "{length} bytes");
        }
    }

    #[test]
    fn token_faults_say_what_would_be_right() {
        for (text, word) in
            [("abc", "odd"), ("ab", "few"), ("zz00", "position 1"), (&"ab".repeat(257), "many"), ("", "few")]
        {
            let fault = DeviceToken::new(text).fault().unwrap();
            assert!(fault.contains(word) && fault.contains("must be"), "{fault}");
        }
        for text in ["ab01", &"AB".repeat(256)] {
            assert!(DeviceToken::new(text).is_well_formed());
        }
    }

    #[test]
    fn a_token_is_never_printed_whole() {
        for text in ["ab01", &"9f86d081".repeat(8)] {
            let token = DeviceToken::new(text);
            assert!(!format!("{token:?} {token}").contains(text));
        }
    }
}
