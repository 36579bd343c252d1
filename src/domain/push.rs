//! The push: its body and its expiration.

use std::time::Duration;

use bytes::Bytes;

use super::app::App;
use super::invite::Invite;
use super::json::{Key, Writer};
use super::timestamp::Timestamp;

/// Bytes of a VoIP push's body at most (Apple, *Sending notification requests to APNs*).
pub const PAYLOAD_BYTES_MAX: usize = 5120;

/// Writes the body that every device of the invite gets. `Err` says how large it is and what would be right.
pub fn build_body(invite: &Invite) -> Result<Bytes, String> {
    let body: Vec<u8> = Writer::written(|body| write_body(body, invite));
    if body.len() > PAYLOAD_BYTES_MAX {
        return Err(format!(
            "the push would have {} bytes; Apple takes at most {PAYLOAD_BYTES_MAX}: make `payload` or the caller's texts shorter",
            body.len()
        ));
    }
    Ok(body.into())
}

fn write_body(body: &mut Writer, invite: &Invite) {
    let keys = &invite.app.payload;
    body.begin();
    body.raw("aps", "{}");
    if !keys.call_id.is_empty() {
        body.uuid(Key::Theirs(&keys.call_id), invite.call_id.to_uuid());
    }
    if !keys.opaque {
        if !keys.handle.is_empty() {
            body.optional(Key::Theirs(&keys.handle), invite.handle.as_deref());
        }
        if !keys.name.is_empty() {
            body.optional(Key::Theirs(&keys.name), invite.name.as_deref());
        }
        if let (Some(has_video), false) = (invite.has_video, keys.has_video.is_empty()) {
            body.boolean(Key::Theirs(&keys.has_video), has_video);
        }
    }
    if !keys.deadline.is_empty() {
        body.signed(Key::Theirs(&keys.deadline), invite.deadline.unix_seconds());
    }
    if !keys.opaque {
        body.members(&invite.payload);
    }
    body.end();
}

/// `apns-expiration`: 0 (one attempt, not stored), or Unix seconds in (`now`, `deadline`]. Never absent, which would mean
/// up to 30 days (Apple, *Sending notification requests to APNs*).
pub fn expiration(app: &App, now: Timestamp, deadline: Timestamp) -> i64 {
    if app.expiration_max == Duration::ZERO {
        return 0;
    }
    let seconds = deadline.min(now.plus(app.expiration_max)).unix_seconds();
    if seconds.saturating_mul(1000) <= now.unix_ms() { 0 } else { seconds }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::domain::invite::tests::{invite, rules};

    #[test]
    fn the_body_is_the_contracts() {
        let invite = invite(|_| {});
        let body = build_body(&invite).unwrap();
        assert_eq!(
            std::str::from_utf8(&body).unwrap(),
            r#"{"aps":{},"callUUID":"6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a","handle":"+15551234567","callerName":"Ada Lovelace","hasVideo":false,"expiresAt":1795253430,"room":"r-17"}"#
        );
    }

    #[test]
    fn absent_fields_and_empty_keys_leave_nothing() {
        let mut invite = invite(|json| {
            for field in ["caller", "has_video", "payload"] {
                json.as_object_mut().unwrap().remove(field);
            }
        });
        let mut app = (*invite.app).clone();
        app.payload.deadline = String::new();
        invite.app = app.into();
        let body = build_body(&invite).unwrap();
        assert_eq!(&body[..], br#"{"aps":{},"callUUID":"6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a"}"#);
        let mut app = (*invite.app).clone();
        app.payload.call_id = String::new();
        invite.app = app.into();
        assert_eq!(&build_body(&invite).unwrap()[..], br#"{"aps":{}}"#);
    }

    #[test]
    fn members_of_the_payload_are_copied_whatever_their_names() {
        let invite = invite(|json| json["payload"] = serde_json::json!({ "": 1, "a\"b": [{}] }));
        let body = String::from_utf8(build_body(&invite).unwrap().to_vec()).unwrap();
        assert!(body.ends_with(r#","expiresAt":1795253430,"":1,"a\"b":[{}]}"#), "{body}");
    }

    #[test]
    fn opaque_tells_the_call_and_its_deadline_alone() {
        let mut invite = invite(|_| {});
        let mut app = (*invite.app).clone();
        app.payload.opaque = true;
        invite.app = app.into();
        let body = build_body(&invite).unwrap();
        assert_eq!(
            &body[..],
            br#"{"aps":{},"callUUID":"6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a","expiresAt":1795253430}"#
        );
    }

    #[test]
    fn a_body_of_5120_bytes_passes_and_one_more_does_not() {
        let with = |filler: usize| {
            build_body(&invite(|json| json["payload"] = serde_json::json!({ "x": "y".repeat(filler) })))
        };
        let base = with(0).unwrap().len();
        assert_eq!(with(PAYLOAD_BYTES_MAX - base).unwrap().len(), PAYLOAD_BYTES_MAX);
        let error = with(PAYLOAD_BYTES_MAX - base + 1).unwrap_err();
        assert!(error.contains("5121 bytes") && error.contains("at most 5120"), "{error}");
    }

    proptest! {
        #[test]
        fn the_body_is_json_whatever_the_texts(handle in ".{0,60}", name in ".{0,60}", value in ".{0,60}") {
            let invite = invite(|json| {
                json["caller"] = serde_json::json!({ "handle": handle, "name": name });
                json["payload"] = serde_json::json!({ "k\"\\": value });
            });
            let body: serde_json::Value = serde_json::from_slice(&build_body(&invite).unwrap()).unwrap();
            prop_assert_eq!(body["handle"].as_str(), Some(handle.as_str()));
            prop_assert_eq!(body["k\"\\"].as_str(), Some(value.as_str()));
        }

        #[test]
        fn expiration_is_zero_or_between_now_and_the_deadline(
            now in 0i64..4_000_000_000_000, left in -10_000i64..400_000, most in 0u64..400_000,
        ) {
            let mut app = (*rules().apps[0]).clone();
            app.expiration_max = Duration::from_millis(most);
            let (now, deadline) = (Timestamp::from_unix_ms(now), Timestamp::from_unix_ms(now + left));
            let seconds = expiration(&app, now, deadline);
            prop_assert!(seconds == 0 || (seconds * 1000 > now.unix_ms() && seconds * 1000 <= deadline.unix_ms()));
            if left >= 1000 && most >= 1000 {
                prop_assert!(seconds > 0);
            }
        }
    }
}
