//! The published shape of outcomes and token events, field by field, written from the contract and not from the worker's
//! types: a reader of the results judges the worker here.

use std::collections::BTreeSet;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use uuid::Uuid;

use crate::client::Incoming;

const INVITE_RESULTS: [&str; 8] =
    ["accepted", "expired", "ended", "unknown", "undeliverable", "duplicate", "malformed", "failed"];

/// `true` in `required`: the field must be there.
struct Field {
    name: &'static str,
    required: bool,
    fits: fn(&Value) -> bool,
}

const fn must(name: &'static str, fits: fn(&Value) -> bool) -> Field {
    Field { name, required: true, fits }
}

const fn may(name: &'static str, fits: fn(&Value) -> bool) -> Field {
    Field { name, required: false, fits }
}

const OUTCOME: [Field; 10] = [
    must("type", |value| value == "ringcast.outcome.v1"),
    must("call_id", is_uuid),
    must("app", is_text),
    must("result", |value| value != "malformed" && value != "failed" && is_one_of(value, &INVITE_RESULTS)),
    must("worker", is_text),
    must("deadline", is_instant),
    must("received_at", is_instant),
    must("settled_at", is_instant),
    must("redelivered", Value::is_boolean),
    must("devices", |value| value.as_array().is_some_and(|devices| !devices.is_empty())),
];

const OUTCOME_TOO: [Field; 3] = [
    may("earlier_attempt", |value| value == "possible"),
    may("error", is_text),
    may("timeline", |value| value.as_array().is_some_and(|steps| steps.iter().all(is_step))),
];

const STEP: [Field; 10] = [
    must("at", is_instant),
    must("stage", |value| {
        let known = [
            "created",
            "received",
            "written",
            "answered",
            "unanswered",
            "unprocessed",
            "unsent",
            "retry",
            "omitted",
            "settled",
        ];
        is_one_of(value, &known)
    }),
    may("device", Value::is_u64),
    may("attempt", Value::is_u64),
    may("class", |value| is_one_of(value, &["unprocessed", "transient", "ambiguous"])),
    may("wait_ms", Value::is_u64),
    may("status", Value::is_u64),
    may("reason", is_text),
    may("error", is_text),
    may("count", Value::is_u64),
];

const MALFORMED: [Field; 11] = [
    must("type", |value| value == "ringcast.outcome.v1"),
    may("call_id", is_text),
    may("app", is_text),
    must("result", |value| value == "malformed"),
    must("error", is_text),
    must("worker", is_text),
    must("received_at", is_instant),
    must("settled_at", is_instant),
    must("redelivered", Value::is_boolean),
    may("deadline", is_instant),
    may("earlier_attempt", |value| value == "possible"),
];

const DEVICE: [Field; 13] = [
    // As it was given: of a device that breaks a rule it may be anything.
    must("token", Value::is_string),
    may("id", is_text),
    may("environment", |value| is_one_of(value, &["production", "sandbox"])),
    must("result", |value| {
        let known = [
            "accepted",
            "invalid_token",
            "suspect_token",
            "rejected",
            "throttled",
            "expired",
            "failed",
            "unknown",
            "ended",
            "duplicate",
        ];
        is_one_of(value, &known)
    }),
    must("action", |value| {
        is_one_of(value, &["none", "drop_token", "check_token", "fix_config", "fix_invite", "report"])
    }),
    may("status", Value::is_u64),
    may("reason", is_text),
    may("invalid_since", is_instant),
    may("apns_id", is_uuid),
    must("attempts", Value::is_u64),
    may("latency_ms", Value::is_u64),
    may("error", is_text),
    may("stage", |value| is_one_of(value, &["broker", "queue", "slot", "retry"])),
];

const EVENT: [Field; 15] = [
    must("type", |value| value == "ringcast.invalid-token.v1"),
    must("token", is_token),
    may("device_id", is_text),
    must("app", is_text),
    must("topic", |value| value.as_str().is_some_and(|topic| topic.strip_suffix(".voip").is_some())),
    must("environment", |value| is_one_of(value, &["production", "sandbox"])),
    must("confidence", |value| is_one_of(value, &["dead", "suspect"])),
    must("status", |value| value == 410 || value == 400),
    must("reason", is_text),
    may("invalid_since", is_instant),
    may("registered_at", is_instant),
    must("observed_at", is_instant),
    must("call_id", is_uuid),
    must("key_id", is_text),
    may("earlier_attempt", |value| value == "possible"),
];

/// Checks an outcome as a message: shape, fields that belong together, AMQP properties, routing. Gives its body.
pub(crate) fn check_outcome(message: &Incoming) -> Value {
    let outcome = message.json();
    let malformed = outcome["result"] == "malformed";
    if malformed {
        check_fields(&outcome, MALFORMED.iter());
    } else {
        check_fields(&outcome, OUTCOME.iter().chain(&OUTCOME_TOO));
        for device in outcome["devices"].as_array().expect("checked above") {
            check_device(device);
        }
        assert_eq!(outcome["result"], summary(&outcome["devices"]), "the first rule that fits, in {outcome}");
    }
    assert!(instant(&outcome["received_at"]) <= instant(&outcome["settled_at"]), "in {outcome}");
    check_properties(message, "ringcast.outcome.v1");
    let named = outcome["app"].as_str().map(|app| format!("outcome.{app}"));
    let fits = |key: &str| named.as_deref() == Some(key) || (malformed && key == "outcome.malformed");
    assert!(fits(&message.routing_key), "routed by {} with {outcome}", message.routing_key);
    outcome
}

/// Checks a token event as a message. Gives its body.
pub(crate) fn check_event(message: &Incoming) -> Value {
    let event = message.json();
    check_fields(&event, EVENT.iter());
    match event["confidence"].as_str() {
        Some("dead") => assert_eq!(event["status"], 410, "in {event}"),
        _ => {
            assert!(is_one_of(&event["reason"], &["BadDeviceToken", "DeviceTokenNotForTopic"]), "in {event}");
        }
    }
    check_properties(message, "ringcast.invalid-token.v1");
    let app = event["app"].as_str().expect("checked above");
    let kept_back = format!("quarantined_token.{app}");
    if event["confidence"] != "suspect" || message.routing_key != kept_back {
        assert_eq!(message.routing_key, format!("invalid_token.{app}"), "with {event}");
    }
    event
}

fn check_properties(message: &Incoming, kind: &str) {
    let properties = &message.properties;
    assert_eq!(properties["delivery_mode"], 2, "persistent: {properties}");
    assert_eq!(properties["type"], kind, "{properties}");
    assert!(!message.text("message_id").is_empty(), "a message id: {properties}");
    assert_eq!(message.exchange, "ringcast.results");
}

fn check_device(device: &Value) {
    check_fields(device, DEVICE.iter());
    let has = |field: &str| device.get(field).is_some();
    let tried = device["attempts"] != 0;
    assert_eq!(
        tried,
        has("latency_ms") || device["result"] == "unknown",
        "latency goes with attempts: {device}"
    );
    assert!(has("environment") || device["result"] == "rejected", "in {device}");
    let result = device["result"].as_str().expect("checked above");
    let action = device["action"].as_str().expect("checked above");
    let token = device["token"].as_str().expect("checked above");
    assert_eq!(token, token.to_lowercase(), "tokens are in lower case");
    let right = match result {
        "accepted" => {
            device["status"] == 200 && tried && has("apns_id") && action == "none" && !has("reason")
        }
        "invalid_token" => {
            device["status"] == 410 && tried && has("apns_id") && matches!(action, "drop_token" | "none")
        }
        "suspect_token" => device["status"] == 400 && tried && has("reason") && action == "check_token",
        "rejected" => {
            matches!(action, "fix_config" | "fix_invite" | "report") && (has("error") || has("reason"))
        }
        "throttled" => device["status"] == 429 && action == "none",
        "expired" => has("stage") && action == "none" && !has("status"),
        "ended" | "duplicate" => !tried && action == "none",
        _ => action == "none",
    };
    assert!(right, "the fields of a device with result {result} do not belong together: {device}");
}

/// The invite's result from its devices' (section 4 of the contract).
fn summary(devices: &Value) -> &'static str {
    let results: BTreeSet<&str> = devices
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|device| device["result"].as_str())
        .filter(|result| *result != "duplicate")
        .collect();
    if results.is_empty() {
        "duplicate"
    } else if results.contains("accepted") {
        "accepted"
    } else if results.len() == 1 && results.contains("expired") {
        "expired"
    } else if results.contains("ended") {
        "ended"
    } else if results.contains("unknown") {
        "unknown"
    } else {
        "undeliverable"
    }
}

fn check_fields<'a>(value: &Value, fields: impl Iterator<Item = &'a Field>) {
    let empty = Map::new();
    let object = value.as_object().unwrap_or(&empty);
    let mut known = BTreeSet::new();
    for field in fields {
        known.insert(field.name);
        match object.get(field.name) {
            None => assert!(!field.required, "no `{}` in {value}", field.name),
            Some(found) => assert!((field.fits)(found), "`{}` is {found} in {value}", field.name),
        }
    }
    for name in object.keys() {
        assert!(known.contains(name.as_str()), "the contract knows no `{name}`: {value}");
    }
}

/// An instant of the contract in milliseconds since 1970.
pub(crate) fn instant(value: &Value) -> i64 {
    let text = value.as_str().unwrap_or_default();
    let instant = OffsetDateTime::parse(text, &Rfc3339)
        .unwrap_or_else(|error| panic!("{value} is no instant: {error}"));
    i64::try_from(instant.unix_timestamp_nanos() / 1_000_000).expect("within our era")
}

fn is_step(value: &Value) -> bool {
    check_fields(value, STEP.iter());
    true
}

fn is_instant(value: &Value) -> bool {
    value.as_str().is_some_and(|text| OffsetDateTime::parse(text, &Rfc3339).is_ok())
}

fn is_uuid(value: &Value) -> bool {
    value.as_str().is_some_and(|text| text == text.to_lowercase() && Uuid::try_parse(text).is_ok())
}

fn is_text(value: &Value) -> bool {
    value.as_str().is_some_and(|text| !text.is_empty())
}

fn is_token(value: &Value) -> bool {
    value
        .as_str()
        .is_some_and(|text| text.len() >= 2 && text.bytes().all(|byte| b"0123456789abcdef".contains(&byte)))
}

fn is_one_of(value: &Value, words: &[&str]) -> bool {
    value.as_str().is_some_and(|word| words.contains(&word))
}
