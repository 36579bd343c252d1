//! Apple's rules for one request, judged purely: no clock, no network, no memory of other requests.
//!
//! Sources: Apple, "Sending notification requests to APNs" (headers, payload sizes, topics) and "Handling notification
//! responses from APNs" (statuses and reasons). Where Apple leaves a choice, the stricter reading is taken, because a
//! simulator that is too kind hides mistakes; each such choice is named where it is made.

use std::borrow::Cow;

use http::{HeaderMap, HeaderName, Method};
use serde_json::value::RawValue;

/// Largest payload of a `voip` push, in bytes (Apple, "Sending notification requests to APNs").
pub const VOIP_PAYLOAD_BYTES_MAX: usize = 5120;
/// Largest payload of every other push, in bytes.
pub const PAYLOAD_BYTES_MAX: usize = 4096;
/// Longest `apns-collapse-id`, in bytes.
pub const COLLAPSE_ID_BYTES_MAX: usize = 64;
/// Longest device token taken, in bytes. Apple names no length and asks not to assume one; this is a bound, no rule.
pub const DEVICE_TOKEN_BYTES_MAX: usize = 256;

pub(super) static APNS_ID: HeaderName = HeaderName::from_static("apns-id");
pub(super) static APNS_TOPIC: HeaderName = HeaderName::from_static("apns-topic");
pub(super) static APNS_PUSH_TYPE: HeaderName = HeaderName::from_static("apns-push-type");
pub(super) static APNS_PRIORITY: HeaderName = HeaderName::from_static("apns-priority");
pub(super) static APNS_EXPIRATION: HeaderName = HeaderName::from_static("apns-expiration");
pub(super) static APNS_COLLAPSE_ID: HeaderName = HeaderName::from_static("apns-collapse-id");

/// Each push type with what its topic must end in ("Sending notification requests to APNs", table of `apns-push-type`).
const PUSH_TYPES: [(&str, &str); 11] = [
    ("alert", ""),
    ("background", ""),
    ("voip", ".voip"),
    ("location", ".location-query"),
    ("complication", ".complication"),
    ("fileprovider", ".pushkit.fileprovider"),
    ("pushtotalk", ".voip-ptt"),
    ("liveactivity", ".push-type.liveactivity"),
    ("controls", ".push-type.controls"),
    ("widgets", ".push-type.widgets"),
    ("mdm", ""),
];

macro_rules! reasons {
    ($($name:ident $status:literal,)*) => {
        /// A reason for a refusal, spelled as Apple spells it ("Handling notification responses from APNs").
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Reason { $(#[doc = concat!("Status ", stringify!($status), ".")] $name,)* }

        impl Reason {
            /// Every reason of Apple's table; and `BadEnvironmentKeyInToken`, which is not in it: senders have seen
            /// that spelling on the wire.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The HTTP status that goes with the reason.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Apple's word.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }
        }
    };
}

reasons! {
    BadCollapseId 400,
    BadDeviceToken 400,
    BadExpirationDate 400,
    BadMessageId 400,
    BadPriority 400,
    BadTopic 400,
    DeviceTokenNotForTopic 400,
    DuplicateHeaders 400,
    IdleTimeout 400,
    InvalidPushType 400,
    MissingDeviceToken 400,
    MissingTopic 400,
    PayloadEmpty 400,
    TopicDisallowed 400,
    BadCertificate 403,
    BadCertificateEnvironment 403,
    BadEnvironmentKeyIdInToken 403,
    BadEnvironmentKeyInToken 403,
    ExpiredProviderToken 403,
    Forbidden 403,
    InvalidProviderToken 403,
    MissingProviderToken 403,
    UnrelatedKeyIdInToken 403,
    BadPath 404,
    MethodNotAllowed 405,
    ExpiredToken 410,
    Unregistered 410,
    PayloadTooLarge 413,
    TooManyProviderTokenUpdates 429,
    TooManyRequests 429,
    InternalServerError 500,
    ServiceUnavailable 503,
    Shutdown 503,
}

/// A refusal as it is answered: the reason and, with a 410 only, since when the device token is dead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Why, which also says the status.
    pub reason: Reason,
    /// Milliseconds since 1970-01-01 UTC.
    pub timestamp_ms: Option<u64>,
}

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self { reason, timestamp_ms: None }
    }
}

/// One request as it came, body complete.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// `:method`
    pub method: &'a Method,
    /// `:path`
    pub path: &'a str,
    /// All other headers.
    pub headers: &'a HeaderMap,
    /// The payload.
    pub body: &'a [u8],
}

/// What the judgement of a request depends on besides the request.
#[derive(Debug, Clone, Copy, Default)]
pub struct Policy<'a> {
    /// The one app that may be pushed to; `None`: any.
    pub bundle_id: Option<&'a str>,
    /// On a connection with a client certificate: the topics that the certificate lists.
    pub topics: Option<&'a [String]>,
}

/// A request that keeps every rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Push<'a> {
    /// Device token, lower-case hex.
    pub token: Cow<'a, str>,
    /// `apns-topic`
    pub topic: &'a str,
    /// The topic without what Apple appends to an app's bundle id.
    pub bundle_id: &'a str,
    /// `apns-push-type`; `alert` when absent.
    pub push_type: &'a str,
    /// `apns-priority`; 10 when absent.
    pub priority: u8,
    /// `apns-expiration` in seconds since 1970-01-01 UTC; `None` when absent, which is not the same as 0.
    pub expiration: Option<u64>,
}

/// Judges a request. `authorize` judges the `authorization` header, in its turn: after path and duplicates, before the
/// rest, so that a caller without credentials learns nothing else.
pub fn judge<'a>(
    request: &Request<'a>,
    policy: &Policy<'a>,
    authorize: impl FnOnce(Option<&'a [u8]>) -> Result<(), Reason>,
) -> Result<Push<'a>, Reason> {
    if request.method != Method::POST {
        return Err(Reason::MethodNotAllowed);
    }
    let token = path_token(request.path).ok_or(Reason::BadPath)?;
    check_duplicates(request.headers)?;
    authorize(request.headers.get(http::header::AUTHORIZATION).map(http::HeaderValue::as_bytes))?;
    if token.is_empty() {
        return Err(Reason::MissingDeviceToken);
    }
    let token = read_token(token).ok_or(Reason::BadDeviceToken)?;
    if !header(request.headers, &APNS_ID).is_none_or(is_canonical_uuid) {
        return Err(Reason::BadMessageId);
    }
    let push_type = text(header(request.headers, &APNS_PUSH_TYPE)).map_err(|()| Reason::InvalidPushType)?;
    let (topic, bundle_id, push_type) = check_topic(request.headers, push_type, policy)?;
    let priority = check_priority(request.headers, push_type)?;
    let expiration = match header(request.headers, &APNS_EXPIRATION) {
        None => None,
        Some(digits) => Some(read_number(digits).ok_or(Reason::BadExpirationDate)?),
    };
    if header(request.headers, &APNS_COLLAPSE_ID).is_some_and(|id| id.len() > COLLAPSE_ID_BYTES_MAX) {
        return Err(Reason::BadCollapseId);
    }
    check_payload(request.body, push_type)?;
    Ok(Push { token, topic, bundle_id, push_type, priority, expiration })
}

/// The device token part of `/3/device/<token>`, maybe empty; `None` for any other path.
pub(super) fn path_token(path: &str) -> Option<&str> {
    let rest = path.strip_prefix("/3/device")?;
    if rest.is_empty() {
        return Some("");
    }
    rest.strip_prefix('/').filter(|token| !token.contains('/'))
}

/// Lower-cases a device token; `None` unless it is an even number of hex digits, of at most
/// [`DEVICE_TOKEN_BYTES_MAX`] bytes and at least two.
pub(super) fn read_token(token: &str) -> Option<Cow<'_, str>> {
    let well_formed = token.len().is_multiple_of(2)
        && (4..=2 * DEVICE_TOKEN_BYTES_MAX).contains(&token.len())
        && token.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !well_formed {
        None
    } else if token.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Some(Cow::Owned(token.to_ascii_lowercase()))
    } else {
        Some(Cow::Borrowed(token))
    }
}

/// True for a UUID in its canonical form: lower-case, 8-4-4-4-12.
fn is_canonical_uuid(id: &[u8]) -> bool {
    id.len() == 36
        && id.iter().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => *byte == b'-',
            _ => matches!(byte, b'0'..=b'9' | b'a'..=b'f'),
        })
}

pub(super) fn header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a [u8]> {
    headers.get(name).map(http::HeaderValue::as_bytes)
}

fn text(value: Option<&[u8]>) -> Result<Option<&str>, ()> {
    value.map(str::from_utf8).transpose().map_err(|_| ())
}

/// Apple's headers may stand once each. (That `authorization` counts among them is the stricter reading.)
fn check_duplicates(headers: &HeaderMap) -> Result<(), Reason> {
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    let ours =
        |name: &&HeaderName| name.as_str().starts_with("apns-") || **name == http::header::AUTHORIZATION;
    if headers.keys().filter(ours).any(|name| headers.get_all(name).iter().nth(1).is_some()) {
        return Err(Reason::DuplicateHeaders);
    }
    Ok(())
}

/// Topic and push type belong together: the suffix of each type's topic is Apple's. That a suffixed topic with another
/// type (or none) is refused as `InvalidPushType` is the stricter reading of "must match". A certificate with one topic
/// may do without the header; that a topic it does not list is `TopicDisallowed`, not `BadTopic`, is our reading.
fn check_topic<'a>(
    headers: &'a HeaderMap,
    push_type: Option<&'a str>,
    policy: &Policy<'a>,
) -> Result<(&'a str, &'a str, &'a str), Reason> {
    let topic = text(header(headers, &APNS_TOPIC)).map_err(|()| Reason::BadTopic)?;
    let topic = match (topic, policy.topics) {
        (None, Some([only])) => only,
        (topic, _) => topic.ok_or(Reason::MissingTopic)?,
    };
    let (push_type, suffix) = match push_type {
        None => ("alert", ""),
        Some(given) => {
            *PUSH_TYPES.iter().find(|(known, _)| *known == given).ok_or(Reason::InvalidPushType)?
        }
    };
    if topic.is_empty() {
        return Err(Reason::MissingTopic);
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b".-_".contains(&byte);
    if topic.len() > 255 || !topic.bytes().all(allowed) {
        return Err(Reason::BadTopic);
    }
    let bundle_id =
        topic.strip_suffix(suffix).filter(|bundle_id| !bundle_id.is_empty()).ok_or(Reason::BadTopic)?;
    let suffixed = PUSH_TYPES.iter().any(|(_, other)| !other.is_empty() && topic.ends_with(other));
    if suffix.is_empty() && suffixed {
        return Err(Reason::InvalidPushType);
    }
    let listed = |topics: &[String]| topics.iter().any(|listed| listed == topic);
    if policy.bundle_id.is_some_and(|only| only != bundle_id) || !policy.topics.is_none_or(listed) {
        return Err(Reason::TopicDisallowed);
    }
    Ok((topic, bundle_id, push_type))
}

/// 10, 5 or 1; 10 when absent; "an error" to use 10 with `background`.
fn check_priority(headers: &HeaderMap, push_type: &str) -> Result<u8, Reason> {
    let priority = match header(headers, &APNS_PRIORITY) {
        None | Some(b"10") => 10,
        Some(b"5") => 5,
        Some(b"1") => 1,
        Some(_) => return Err(Reason::BadPriority),
    };
    if push_type == "background" && priority == 10 {
        return Err(Reason::BadPriority);
    }
    Ok(priority)
}

/// Plain decimal digits that fit 63 bits.
pub(super) fn read_number(digits: &[u8]) -> Option<u64> {
    if !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok().filter(|number| i64::try_from(*number).is_ok())
}

/// Size first, then JSON. Apple names no reason for a payload that is no JSON object (a compressed one, say): here it
/// counts as none at all, `PayloadEmpty`.
fn check_payload(body: &[u8], push_type: &str) -> Result<(), Reason> {
    if body.is_empty() {
        return Err(Reason::PayloadEmpty);
    }
    let max = if push_type == "voip" { VOIP_PAYLOAD_BYTES_MAX } else { PAYLOAD_BYTES_MAX };
    if body.len() > max {
        return Err(Reason::PayloadTooLarge);
    }
    match serde_json::from_slice::<&RawValue>(body) {
        Ok(value) if value.get().starts_with('{') => Ok(()),
        _ => Err(Reason::PayloadEmpty),
    }
}

#[cfg(test)]
mod tests;
