//! Tests of the module above.

use http::HeaderValue;

use super::*;

const TOKEN: &str = "00aa11bb22cc33dd";

struct Draft {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Vec<u8>,
}

impl Draft {
    fn right() -> Self {
        let mut headers = HeaderMap::new();
        for (name, value) in [
            ("authorization", "bearer x"),
            ("apns-topic", "com.acme.voice.voip"),
            ("apns-push-type", "voip"),
            ("apns-priority", "10"),
            ("apns-expiration", "0"),
            ("apns-id", "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a"),
        ] {
            headers.insert(name, HeaderValue::from_static(value));
        }
        let path = format!("/3/device/{TOKEN}");
        Self { method: Method::POST, path, headers, body: br#"{"aps":{}}"#.to_vec() }
    }

    fn path(mut self, path: &str) -> Self {
        self.path = path.into();
        self
    }

    fn set(mut self, name: &'static str, value: &str) -> Self {
        self.headers.insert(name, HeaderValue::from_str(value).unwrap());
        self
    }

    fn add(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(name, HeaderValue::from_str(value).unwrap());
        self
    }

    fn without(mut self, name: &str) -> Self {
        self.headers.remove(name);
        self
    }

    fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    fn judge(&self) -> Result<Push<'_>, Reason> {
        let request =
            Request { method: &self.method, path: &self.path, headers: &self.headers, body: &self.body };
        judge(&request, &Policy { bundle_id: Some("com.acme.voice"), topics: None }, |header| {
            if header.is_some() { Ok(()) } else { Err(Reason::MissingProviderToken) }
        })
    }
}

fn payload(bytes: usize) -> Vec<u8> {
    format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8)).into_bytes()
}

#[test]
fn a_right_request_is_read() {
    let draft = Draft::right();
    let push = draft.judge().unwrap();
    assert_eq!(push.token, TOKEN);
    assert_eq!(
        (push.topic, push.bundle_id, push.push_type),
        ("com.acme.voice.voip", "com.acme.voice", "voip")
    );
    assert_eq!((push.priority, push.expiration), (10, Some(0)));
}

#[test]
fn what_is_allowed_is_allowed() {
    let right = Draft::right;
    for (what, draft) in [
        ("upper-case token", right().path("/3/device/AABB")),
        ("512 digits", right().path(&format!("/3/device/{}", "ab".repeat(256)))),
        ("no priority", right().without("apns-priority")),
        ("priority 5", right().set("apns-priority", "5")),
        ("no expiration", right().without("apns-expiration")),
        ("an expiration", right().set("apns-expiration", "1795253430")),
        ("no id", right().without("apns-id")),
        ("collapse id of 64", right().set("apns-collapse-id", &"c".repeat(64))),
        ("5120 bytes", right().body(payload(5120))),
        ("a stranger's header twice", right().add("x-a", "1").add("x-a", "2")),
    ] {
        assert!(draft.judge().is_ok(), "{what}: {:?}", draft.judge());
    }
    assert_eq!(right().path("/3/device/AABB").judge().unwrap().token, "aabb");
    assert_eq!(right().without("apns-expiration").judge().unwrap().expiration, None);
}

#[test]
fn wrong_requests_are_refused_in_apples_words() {
    let right = Draft::right;
    let mut get = right();
    get.method = Method::GET;
    let alert = || right().set("apns-push-type", "alert").set("apns-topic", "com.acme.voice");
    for (what, draft, reason) in [
        ("GET", get, Reason::MethodNotAllowed),
        ("other path", right().path("/4/device/aabb"), Reason::BadPath),
        ("deeper path", right().path("/3/device/aabb/cc"), Reason::BadPath),
        ("root", right().path("/"), Reason::BadPath),
        ("no token", right().path("/3/device/"), Reason::MissingDeviceToken),
        ("no token, no slash", right().path("/3/device"), Reason::MissingDeviceToken),
        ("odd digits", right().path("/3/device/aabbc"), Reason::BadDeviceToken),
        ("one byte", right().path("/3/device/aa"), Reason::BadDeviceToken),
        ("no hex", right().path("/3/device/zzzz"), Reason::BadDeviceToken),
        ("514 digits", right().path(&format!("/3/device/{}", "ab".repeat(257))), Reason::BadDeviceToken),
        ("query", right().path("/3/device/aabb?x=1"), Reason::BadDeviceToken),
        ("two topics", right().add("apns-topic", "com.acme.voice.voip"), Reason::DuplicateHeaders),
        ("two tokens", right().add("authorization", "bearer y"), Reason::DuplicateHeaders),
        ("no authorization", right().without("authorization"), Reason::MissingProviderToken),
        (
            "upper-case id",
            right().set("apns-id", "6F1C6D0E-6F3B-4F5E-9A51-0D5A4F3C2B1A"),
            Reason::BadMessageId,
        ),
        (
            "id without dashes",
            right().set("apns-id", "6f1c6d0e6f3b4f5e9a510d5a4f3c2b1a"),
            Reason::BadMessageId,
        ),
        ("empty id", right().set("apns-id", ""), Reason::BadMessageId),
        ("no topic", right().without("apns-topic"), Reason::MissingTopic),
        ("empty topic", right().set("apns-topic", ""), Reason::MissingTopic),
        ("no suffix", right().set("apns-topic", "com.acme.voice"), Reason::BadTopic),
        ("suffix alone", right().set("apns-topic", ".voip"), Reason::BadTopic),
        ("odd topic", right().set("apns-topic", "com acme.voip"), Reason::BadTopic),
        ("other app", right().set("apns-topic", "com.evil.voip"), Reason::TopicDisallowed),
        ("other type", right().set("apns-push-type", "ring"), Reason::InvalidPushType),
        ("alert to voip", right().set("apns-push-type", "alert"), Reason::InvalidPushType),
        ("no type", right().without("apns-push-type"), Reason::InvalidPushType),
        ("priority 7", right().set("apns-priority", "7"), Reason::BadPriority),
        ("background at 10", alert().set("apns-push-type", "background"), Reason::BadPriority),
        ("expiration words", right().set("apns-expiration", "soon"), Reason::BadExpirationDate),
        ("negative", right().set("apns-expiration", "-1"), Reason::BadExpirationDate),
        ("empty expiration", right().set("apns-expiration", ""), Reason::BadExpirationDate),
        ("milliseconds with dot", right().set("apns-expiration", "1.5"), Reason::BadExpirationDate),
        ("collapse id of 65", right().set("apns-collapse-id", &"c".repeat(65)), Reason::BadCollapseId),
        ("empty", right().body(""), Reason::PayloadEmpty),
        ("no JSON", right().body("hello"), Reason::PayloadEmpty),
        ("JSON, no object", right().body("[1]"), Reason::PayloadEmpty),
        ("two objects", right().body("{}{}"), Reason::PayloadEmpty),
        ("5121 bytes", right().body(payload(5121)), Reason::PayloadTooLarge),
        ("4097 bytes alert", alert().body(payload(4097)), Reason::PayloadTooLarge),
    ] {
        assert_eq!(draft.judge().unwrap_err(), reason, "{what}");
    }
}

#[test]
fn the_table_is_apples() {
    let of = |status| Reason::ALL.iter().filter(|reason| reason.status() == status).count();
    assert_eq!(Reason::ALL.len(), 33);
    assert_eq!([400, 403, 404, 405, 410, 413, 429, 500, 503].map(of), [14, 9, 1, 1, 2, 1, 2, 1, 2]);
    assert_eq!(Reason::TooManyProviderTokenUpdates.as_str(), "TooManyProviderTokenUpdates");
}
