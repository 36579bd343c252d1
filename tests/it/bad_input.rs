//! What publishers get wrong. Each mistake is answered in words, and harms nobody else.

use std::time::Duration;

use serde_json::{Value, json};

use crate::apple::Apple;
use crate::client::{self, Incoming, Outgoing};
use crate::contract::check_outcome;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{now, written};
use crate::vhost::Vhost;
use crate::worker::{Config, Worker};

const CALL_ID: &str = "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a";
const ANSWERED_WITHIN: Duration = Duration::from_mins(1);

/// What must come of a case.
enum Expected {
    /// The invite is malformed, and the error holds all these words.
    Malformed(&'static [&'static str]),
    /// Each device's result, action and words of its error.
    Devices(&'static [(&'static str, &'static str, &'static [&'static str])]),
}

struct Case {
    name: &'static str,
    body: Vec<u8>,
    properties: Value,
    expected: Expected,
}

#[tokio::test]
async fn every_mistake_is_answered_with_what_would_be_right() {
    let place = Place::new("bad-input");
    let vhost = Vhost::new().await;
    let uri = vhost.uri();
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &uri).set("worker", "devices_max", "5");
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;

    let cases = cases();
    let messages: Vec<Outgoing> = cases.iter().map(message).collect();
    client::publish(&uri, "ringcast.invites", &messages).await;
    let outcomes = client::read(&uri, "ringcast.outcomes", cases.len(), ANSWERED_WITHIN).await;
    for case in &cases {
        let mut found = outcomes.iter().filter(|outcome| outcome.text("correlation_id") == case.name);
        let outcome = found.next().unwrap_or_else(|| panic!("{}: no outcome", case.name));
        assert!(found.next().is_none(), "{}: one outcome", case.name);
        judge(case, outcome);
    }

    assert!(worker.lives(), "the worker lives on");
    let good = Case {
        name: "a good one after all",
        body: invite(|_| ()),
        properties: json!({}),
        expected: Expected::Devices(&[("accepted", "none", &[])]),
    };
    client::publish(&uri, "ringcast.invites", &[message(&good)]).await;
    judge(&good, &client::read(&uri, "ringcast.outcomes", 1, ANSWERED_WITHIN).await[0]);
    worker.stop().await;

    // The originals of the malformed ones are kept, byte for byte; what was answered per device is done with.
    let malformed: Vec<&Case> =
        cases.iter().filter(|case| matches!(case.expected, Expected::Malformed(_))).collect();
    let kept = client::read(&uri, "ringcast.dead", malformed.len(), ANSWERED_WITHIN).await;
    for case in malformed {
        let original = kept.iter().find(|message| message.text("correlation_id") == case.name);
        let original = original.unwrap_or_else(|| panic!("{}: not in ringcast.dead", case.name));
        assert_eq!(original.body, case.body, "{}: byte for byte", case.name);
    }
    for queue in ["ringcast.invites", "ringcast.dead", "ringcast.expired", "ringcast.outcomes"] {
        assert_eq!(client::depth(&uri, queue).await, 0, "{queue} is empty");
    }
}

fn judge(case: &Case, message: &Incoming) {
    let outcome = check_outcome(message);
    let name = case.name;
    match case.expected {
        Expected::Malformed(words) => {
            assert_eq!(outcome["result"], "malformed", "{name}: {outcome}");
            assert_words(name, &outcome["error"], words);
        }
        Expected::Devices(expected) => {
            let devices = outcome["devices"].as_array().unwrap_or_else(|| panic!("{name}: {outcome}"));
            assert_eq!(devices.len(), expected.len(), "{name}: {outcome}");
            for (device, (result, action, words)) in devices.iter().zip(expected) {
                assert_eq!(device["result"], *result, "{name}: {outcome}");
                assert_eq!(device["action"], *action, "{name}: {outcome}");
                if !words.is_empty() {
                    assert_words(name, &device["error"], words);
                }
            }
        }
    }
}

fn assert_words(name: &str, error: &Value, words: &[&str]) {
    let text = error.as_str().unwrap_or_else(|| panic!("{name}: no error in words"));
    for word in words {
        assert!(text.contains(word), "{name}: {text:?} should name {word:?}");
    }
    assert!(text.len() < 4096, "{name}: an error is no place for a whole body");
}

fn message(case: &Case) -> Outgoing {
    let mut properties = case.properties.clone();
    properties["message_id"] = json!(format!("bad-{}", case.name));
    properties["correlation_id"] = json!(case.name);
    Outgoing { body: case.body.clone(), properties }
}

/// A good invite to one device, changed by `change`.
fn invite(change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut invite = json!({
        "call_id": CALL_ID,
        "app": "acme",
        "deadline": written(now() + Duration::from_mins(2)),
        "caller": { "handle": "+15551234567", "name": "Ada Lovelace" },
        "devices": [{ "token": format!("{:064x}", 1) }],
        "payload": { "room": "r-17" },
    });
    change(&mut invite);
    invite.to_string().into_bytes()
}

fn device(token: &Value) -> Value {
    json!([{ "token": token }])
}

fn malformed(name: &'static str, body: Vec<u8>, words: &'static [&'static str]) -> Case {
    Case { name, body, properties: json!({}), expected: Expected::Malformed(words) }
}

fn set(name: &'static str, field: &str, value: Value, words: &'static [&'static str]) -> Case {
    malformed(name, invite(|invite| invite[field] = value), words)
}

fn per_device(
    name: &'static str,
    field: &str,
    value: Value,
    expected: &'static [(&'static str, &'static str, &'static [&'static str])],
) -> Case {
    let body = invite(|invite| {
        // A call of its own: the same call and token again would be a duplicate.
        invite["call_id"] = json!(format!(
            "{:08x}-0000-4000-8000-000000000000",
            name.len() * 1000 + name.bytes().map(usize::from).sum::<usize>()
        ));
        invite[field] = value;
    });
    Case { name, body, properties: json!({}), expected: Expected::Devices(expected) }
}

fn cases() -> Vec<Case> {
    let mut cases = unreadable();
    cases.extend(wrong_fields());
    cases.extend(wrong_devices());
    cases
}

fn unreadable() -> Vec<Case> {
    let mut not_utf8 = invite(|_| ());
    not_utf8[30] = 0xff;
    let mebibyte = invite(|invite| invite["payload"]["filler"] = json!("x".repeat(1 << 20)));
    let encoded = Case {
        properties: json!({ "content_encoding": "gzip" }),
        ..malformed("gzip", invite(|_| ()), &["content_encoding", "gzip"])
    };
    vec![
        malformed("empty", Vec::new(), &["JSON"]),
        malformed("not JSON", b"{\"call_id\": ".to_vec(), &["JSON"]),
        malformed("a list", b"[1, 2]".to_vec(), &["object", "list"]),
        malformed("a text", b"\"hello\"".to_vec(), &["object", "text"]),
        malformed("two documents", b"{} {}".to_vec(), &["JSON"]),
        malformed("not UTF-8", not_utf8, &["UTF-8"]),
        malformed("one mebibyte", mebibyte, &["65536", "worker.invite_bytes_max"]),
        malformed("deep", [b"[".repeat(5000), b"]".repeat(5000)].concat(), &["object"]),
        encoded,
    ]
}

fn wrong_fields() -> Vec<Case> {
    let without = |name, field: &str, words| {
        malformed(name, invite(|invite| _ = invite.as_object_mut().expect("an object").remove(field)), words)
    };
    let far = written(now() + Duration::from_hours(24));
    vec![
        without("no call_id", "call_id", &["call_id", "missing", "UUID"]),
        without("no app", "app", &["app", "missing"]),
        without("no deadline", "deadline", &["deadline", "missing", "RFC 3339"]),
        without("no devices", "devices", &["devices", "missing"]),
        set("null call_id", "call_id", json!(null), &["call_id", "missing"]),
        set("call_id no UUID", "call_id", json!("call-17"), &["call_id", "call-17", "UUID"]),
        set("call_id a number", "call_id", json!(17), &["call_id", "text", "number"]),
        set("unknown app", "app", json!("acne"), &["app", "acne", "acme"]),
        set("app a list", "app", json!(["acme"]), &["app", "text", "list"]),
        set("deadline a number", "deadline", json!(1_795_253_430), &["deadline", "number"]),
        set(
            "deadline without a zone",
            "deadline",
            json!("2026-11-21T09:30:30"),
            &["deadline", "RFC 3339", "zone"],
        ),
        set("deadline in words", "deadline", json!("soon"), &["deadline", "soon", "RFC 3339"]),
        set("deadline a day ahead", "deadline", json!(far), &["deadline", "300", "worker.deadline_max"]),
        set("created_at in words", "created_at", json!("now"), &["created_at", "RFC 3339"]),
        set("caller a text", "caller", json!("Ada"), &["caller", "object", "text"]),
        set("long name", "caller", json!({ "name": "é".repeat(129) }), &["caller.name", "258", "256"]),
        set("has_video a text", "has_video", json!("yes"), &["has_video", "boolean", "text"]),
        set("no device", "devices", json!([]), &["devices", "1 to 5"]),
        set(
            "six devices",
            "devices",
            json!(vec![json!({ "token": "ab01" }); 6]),
            &["devices", "6", "1 to 5"],
        ),
        set("devices an object", "devices", json!({ "token": "ab01" }), &["devices", "list", "object"]),
        set("device a text", "devices", json!(["ab01"]), &["devices[0]", "object", "text"]),
        set("device without token", "devices", json!([{ "id": "phone" }]), &["devices[0].token", "missing"]),
        set("token a number", "devices", device(&json!(17)), &["devices[0].token", "text", "number"]),
        set("payload a list", "payload", json!([1]), &["payload", "object", "list"]),
        set("payload with aps", "payload", json!({ "aps": { "alert": "hi" } }), &["payload", "aps"]),
        set("payload with callUUID", "payload", json!({ "callUUID": "x" }), &["payload", "callUUID"]),
        set("payload with expiresAt", "payload", json!({ "expiresAt": 1 }), &["payload", "expiresAt"]),
        set("two mistakes", "devices", json!("none"), &["devices", "list"]),
    ]
}

fn wrong_devices() -> Vec<Case> {
    let bad = |name, token: &str, expected| per_device(name, "devices", device(&json!(token)), expected);
    let good = format!("{:064x}", 2);
    vec![
        per_device(
            "past deadline",
            "deadline",
            json!(written(now() - Duration::from_secs(1))),
            &[("expired", "none", &[])],
        ),
        per_device(
            "deadline in 1970",
            "deadline",
            json!("1970-01-01T00:00:00Z"),
            &[("expired", "none", &[])],
        ),
        bad("odd token", "abc", &[("rejected", "fix_invite", &["token", "hex"])]),
        bad("empty token", "", &[("rejected", "fix_invite", &["token", "hex"])]),
        bad("short token", "ab", &[("rejected", "fix_invite", &["token", "2", "256"])]),
        bad("long token", &"ab".repeat(257), &[("rejected", "fix_invite", &["token", "256"])]),
        bad("token not hex", "xyz1", &[("rejected", "fix_invite", &["token", "hex"])]),
        per_device(
            "one bad device of three",
            "devices",
            json!([{ "token": &good }, { "token": "nope" }, { "token": format!("{:064X}", 0xabc_u32) }]),
            &[
                ("accepted", "none", &[]),
                ("rejected", "fix_invite", &["token", "hex"]),
                ("accepted", "none", &[]),
            ],
        ),
        per_device(
            "odd environment",
            "devices",
            json!([{ "token": &good, "environment": "staging" }]),
            &[("rejected", "fix_invite", &["environment", "staging", "production", "sandbox"])],
        ),
        per_device(
            "registered_at in words",
            "devices",
            json!([{ "token": &good, "registered_at": "lately" }]),
            &[("rejected", "fix_invite", &["registered_at", "RFC 3339"])],
        ),
        per_device(
            "long device id",
            "devices",
            json!([{ "token": &good, "id": "x".repeat(257) }]),
            &[("rejected", "fix_invite", &["id", "256"])],
        ),
        per_device(
            "the same device twice",
            "devices",
            json!([{ "token": &good }, { "token": &good }]),
            &[("accepted", "none", &[]), ("duplicate", "none", &[])],
        ),
        per_device(
            "push body too large",
            "payload",
            json!({ "filler": "x".repeat(5200) }),
            &[("rejected", "fix_invite", &["5120"])],
        ),
    ]
}
