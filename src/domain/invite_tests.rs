//! What [`Invite::parse`] accepts, and what it says when it does not.

use serde_json::{Value, json};

use super::*;
use crate::domain::app::PayloadKeys;

/// 2026-11-21T09:30:00Z, thirty seconds before the deadline of [`sample`].
pub(crate) const NOW: Timestamp = Timestamp::from_unix_ms(1_795_253_400_000);

pub(crate) fn app() -> App {
    App {
        index: 0,
        name: "acme".into(),
        bundle_id: "com.acme.voice".into(),
        environment: Environment::Production,
        expiration_max: Duration::ZERO,
        payload: PayloadKeys {
            call_id: "callUUID".into(),
            handle: "handle".into(),
            name: "callerName".into(),
            has_video: "hasVideo".into(),
            deadline: "expiresAt".into(),
            opaque: false,
        },
    }
}

pub(crate) fn rules() -> Rules {
    Rules {
        apps: vec![Arc::new(app())],
        devices_max: 100,
        invite_bytes_max: 65_536,
        deadline_max: Duration::from_mins(5),
    }
}

pub(crate) fn sample() -> Value {
    json!({
        "call_id": "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a",
        "app": "acme",
        "deadline": "2026-11-21T09:30:30.000Z",
        "created_at": "2026-11-21T09:30:00.000Z",
        "caller": { "handle": "+15551234567", "name": "Ada Lovelace" },
        "has_video": false,
        "devices": [
            { "token": "9F86D081", "environment": "production", "id": "phone-1", "registered_at": "2026-10-01T00:00:00Z" }
        ],
        "payload": { "room": "r-17" }
    })
}

fn parse(change: impl FnOnce(&mut Value)) -> Result<Invite, Malformed> {
    let mut json = sample();
    change(&mut json);
    Invite::parse(json.to_string().as_bytes(), &rules(), NOW)
}

pub(crate) fn invite(change: impl FnOnce(&mut Value)) -> Invite {
    parse(change).unwrap()
}

#[test]
fn reads_the_contracts_example() {
    let invite = invite(|_| {});
    assert_eq!(invite.call_id.to_string(), "6f1c6d0e-6f3b-4f5e-9a51-0d5a4f3c2b1a");
    assert_eq!(invite.deadline.since(NOW), Duration::from_secs(30));
    assert_eq!(invite.handle.as_deref(), Some("+15551234567"));
    assert_eq!(invite.devices[0].token.as_str(), "9f86d081");
    assert_eq!(invite.devices[0].fault, None);
    assert_eq!(invite.unknown_fields, 0);
}

#[test]
fn null_is_absent_and_the_unknown_is_counted() {
    let invite = invite(|json| {
        for field in ["created_at", "caller", "has_video", "payload"] {
            json[field] = Value::Null;
        }
        json["devices"][0]["id"] = Value::Null;
        json["devices"][0]["colour"] = json!("red");
        json["mood"] = json!({ "deep": [1] });
    });
    assert_eq!(
        (invite.created_at, invite.handle, invite.has_video, invite.payload.len()),
        (None, None, None, 0)
    );
    assert_eq!(invite.unknown_fields, 2);
}

#[test]
fn the_unknown_may_stand_twice_and_the_known_may_not() {
    let text = sample().to_string();
    let with = |place: &str, more: &str| {
        let text = text.replacen(place, &format!("{more},{place}"), 1);
        Invite::parse(text.as_bytes(), &rules(), NOW)
    };
    for place in [r#""app":"#, r#""handle":"#, r#""token":"#] {
        let invite = with(place, r#""mood":1,"mood":{}"#).unwrap();
        assert_eq!((invite.unknown_fields, invite.devices[0].fault.as_deref()), (2, None), "{place}");
    }
    for (place, more, word) in [
        (r#""app":"#, r#""app":null"#, "in the body the key `app` stands twice"),
        (r#""handle":"#, r#""name":"Eve""#, "in caller the key `name` stands twice"),
        (r#""room":"#, r#""room":1"#, "the key `room` stands twice"),
    ] {
        let error = with(place, more).unwrap_err().error;
        assert!(error.contains(word), "{error}");
    }
    for more in [r#""id":"phone-2""#, r#""token":"ab02""#] {
        let invite = with(r#""token":"#, more).unwrap();
        let fault = invite.devices[0].fault.as_deref().unwrap();
        assert!(fault.ends_with("stands twice; it must stand once"), "{fault}");
    }
}

#[test]
fn each_broken_rule_names_the_field_and_what_would_be_right() {
    let table: Vec<(&str, Value, &[&str])> = vec![
        ("call_id", Value::Null, &["call_id is missing", "UUID"]),
        ("call_id", json!(7), &["call_id must be a text", "but is a number"]),
        ("call_id", json!("abc"), &["call_id is \"abc\"", "must be a UUID"]),
        ("app", Value::Null, &["app is missing"]),
        ("app", json!("ghost"), &["app is \"ghost\"", "configured: acme"]),
        ("deadline", Value::Null, &["deadline is missing", "RFC 3339"]),
        ("deadline", json!("tomorrow"), &["deadline is \"tomorrow\"", "RFC 3339 instant with a zone"]),
        ("deadline", json!("2026-11-21T09:30:30"), &["deadline is", "with a zone"]),
        ("deadline", json!(1_795_253_430), &["deadline must be a text", "but is a number"]),
        ("deadline", json!("2027-11-21T09:30:30Z"), &["deadline is 31536030 s ahead", "at most 300 s"]),
        ("created_at", json!("x"), &["created_at is \"x\""]),
        ("caller", json!("Ada"), &["caller must be an object, but is a text"]),
        ("caller", json!({ "name": "x".repeat(257) }), &["caller.name has 257 bytes", "at most 256"]),
        ("caller", json!({ "handle": 5 }), &["caller.handle must be a text"]),
        ("has_video", json!("yes"), &["has_video must be a boolean, but is a text"]),
        ("devices", Value::Null, &["devices is missing", "1 to 100"]),
        ("devices", json!({}), &["devices must be a list", "but is an object"]),
        ("devices", json!([]), &["devices has 0 elements", "1 to 100"]),
        ("devices", json!(vec![json!({ "token": "abcd" }); 101]), &["devices has 101 elements"]),
        ("devices", json!(["abcd"]), &["devices[0] must be an object, but is a text"]),
        ("devices", json!([{ "token": "abcd" }, {}]), &["devices[1].token is missing"]),
        ("devices", json!([{ "token": 5 }]), &["devices[0].token must be a text"]),
        ("payload", json!([]), &["payload must be an object"]),
        ("payload", json!({ "aps": {} }), &["payload holds the key \"aps\"", "use another name"]),
        ("payload", json!({ "callUUID": 1 }), &["payload holds the key \"callUUID\""]),
    ];
    for (field, value, words) in table {
        let malformed = parse(|json| json[field] = value.clone()).unwrap_err();
        for word in words {
            assert!(malformed.error.contains(word), "{field} = {value}: {}", malformed.error);
        }
        assert_eq!(malformed.call_id.is_some(), field != "call_id", "{field} = {value}");
        assert_eq!(malformed.known_app.is_some(), field != "app", "{field} = {value}");
    }
}

#[test]
fn a_payload_may_hold_what_the_worker_does_not_set() {
    let with = |key: &str, change: fn(&mut PayloadKeys)| {
        let (mut json, mut app) = (sample(), app());
        json["payload"] = json!({ key: 1 });
        change(&mut app.payload);
        let rules = Rules { apps: vec![Arc::new(app)], ..rules() };
        let text = json.to_string();
        let plain = plain::read(&text, &rules, NOW).is_some();
        assert_eq!(plain, Invite::parse_any(&text, &rules, NOW).is_ok(), "{key}");
        plain
    };
    for key in ["callUUID", "handle", "callerName", "hasVideo", "expiresAt"] {
        assert!(!with(key, |_| {}), "{key}");
        let is_of_caller = !matches!(key, "callUUID" | "expiresAt");
        assert_eq!(with(key, |keys| keys.opaque = true), is_of_caller, "{key}");
    }
    assert!(with("callUUID", |keys| keys.call_id.clear()));
    assert!(!with("aps", |keys| keys.opaque = true));
}

#[test]
fn all_mistakes_are_told_at_once() {
    let error = parse(|json| {
        json["call_id"] = json!("x");
        json["deadline"] = json!("y");
        json["has_video"] = json!(1);
    })
    .unwrap_err()
    .error;
    assert_eq!(
        error.matches("; it must be").count() + error.matches("must be a boolean").count(),
        3,
        "{error}"
    );
}

#[test]
fn what_is_no_object_is_refused_as_a_whole() {
    let large = format!("{{\"x\":\"{}\"}}", "a".repeat(65_536));
    for (body, word) in [
        (&b"hello"[..], "must be a JSON object"),
        (b"", "must be a JSON object"),
        (b"[1]", "must be an object, but is a list"),
        (b"{\"a\":\"\xff\"}", "not UTF-8 from byte 6"),
        (b"{\"app\":\"acme\",\"app\":\"acme\"}", "`app` stands twice"),
        (large.as_bytes(), "at most 65536"),
    ] {
        let malformed = Invite::parse(body, &rules(), NOW).unwrap_err();
        assert!(malformed.error.contains(word), "{}", malformed.error);
        assert_eq!((malformed.call_id, malformed.app), (None, None));
    }
}

#[test]
fn a_fault_of_one_device_stays_with_it() {
    let invite = invite(|json| {
        json["devices"] = json!([
            { "token": "abc" },
            { "token": "zz00" },
            { "token": "ab".repeat(257) },
            { "token": "ab" },
            { "token": "ab01", "environment": "prod" },
            { "token": "ab02", "id": "x".repeat(257) },
            { "token": "ab03", "registered_at": "yesterday" },
            { "token": "AB04" },
        ]);
    });
    let words = ["odd", "no hex", "too many", "too few", "production", "at most 256", "RFC 3339"];
    for (device, word) in invite.devices.iter().zip(words) {
        assert!(device.fault.as_ref().unwrap().contains(word), "{device:?}");
    }
    assert_eq!(invite.devices[7].fault, None);
    assert_eq!(invite.devices[7].token.as_str(), "ab04");
}

#[test]
fn one_physical_device_rings_once() {
    let invite = invite(|json| {
        json["devices"] = json!([
            { "token": "ab01", "id": "phone" },
            { "token": "AB01" },
            { "token": "ab01", "environment": "sandbox" },
            { "token": "ab02", "id": "phone" },
            { "token": "abc", "id": "tablet" },
            { "token": "ab03", "id": "tablet", "registered_at": "2026-01-01T00:00:00Z" },
            { "token": "ab04", "id": "tablet", "registered_at": "2026-02-01T00:00:00Z" },
        ]);
    });
    let duplicates: Vec<bool> = invite.devices.iter().map(|device| device.duplicate).collect();
    assert_eq!(duplicates, [false, true, true, true, false, true, false]);
}

#[test]
fn a_token_that_one_entry_links_to_another_rings_once() {
    let duplicates = |devices: &Value| {
        let invite = invite(|json| json["devices"] = devices.clone());
        invite.devices.iter().map(|device| device.duplicate).collect::<Vec<_>>()
    };
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let mut devices = json!([
        { "token": "ab01", "id": "phone", "registered_at": old },
        { "token": "ab02" },
        { "token": "ab02", "id": "phone", "registered_at": new },
    ]);
    assert_eq!(duplicates(&devices), [true, true, false]);
    devices[0]["registered_at"] = Value::Null;
    assert_eq!(duplicates(&devices), [false, true, true], "the first, where it does not say when");
    devices[0]["registered_at"] = json!(new);
    assert_eq!(duplicates(&devices), [false, true, true], "the first of two that are as late");
}

#[test]
fn an_empty_id_is_none() {
    let devices = json!([{ "token": "ab01", "id": "" }, { "token": "ab02", "id": "" }]);
    let invite = invite(|json| json["devices"] = devices);
    for device in &invite.devices {
        assert_eq!((device.id.as_ref(), device.duplicate), (None, false), "{device:?}");
    }
}

#[test]
fn a_created_at_in_the_future_is_a_sign_not_a_mistake() {
    assert_eq!(invite(|_| {}).skew(NOW), None);
    let ahead = invite(|json| json["created_at"] = json!("2026-11-21T09:30:09Z"));
    assert_eq!(ahead.skew(NOW), Some(Duration::from_secs(9)));
}

/// Both readings of a text that is no more than JSON at best.
fn both(text: &str) -> (Option<Invite>, Result<Invite, Malformed>) {
    (plain::read(text, &rules(), NOW), Invite::parse_any(text, &rules(), NOW))
}

#[test]
fn an_invite_without_oddities_is_read_in_one_go() {
    let changes: [fn(&mut Value); 7] = [
        |_| {},
        |json| json["created_at"] = Value::Null,
        |json| json["caller"] = json!({ "name": "Ada \"A\" Lovelace \u{1f600}" }),
        |json| json["devices"] = json!([{ "token": "AB01" }, { "token": "ab01", "environment": "sandbox" }]),
        |json| {
            json["devices"][0] =
                json!({ "token": "ab01", "id": null, "registered_at": "2026-10-01T00:00:00+02:00" });
        },
        |json| json["devices"] = json!([{ "token": "ab01", "id": "" }, { "token": "ab02", "id": "" }]),
        |json| json["payload"] = json!({ "k\"\\": [1, { "a": null }], "b": "\u{7}" }),
    ];
    for change in changes {
        let mut json = sample();
        change(&mut json);
        let (plain, any) = both(&json.to_string());
        assert!(plain.is_some(), "{json}");
        assert_eq!(plain, any.ok(), "{json}");
    }
}

#[test]
fn what_is_odd_is_left_to_the_reading_that_explains() {
    let text = sample().to_string();
    for (from, to) in [
        (r#""app":"#, r#""mood":1,"app":"#),
        (r#""app":"#, r#""app":null,"app":"#),
        (r#""acme""#, r#""ghost""#),
        ("30.000Z\"", "30\""),
        ("\"deadline\":\"2026", "\"deadline\":\"2027"),
        (r#"{"handle":"+15551234567","name":"Ada Lovelace"}"#, r#"["+15551234567","Ada Lovelace"]"#),
        (r#"{"handle""#, r#"{"name":"Ada","handle""#),
        (r#""9F86D081""#, r#""9F86D08""#),
        (r#""id":"#, r#""colour":"red","id":"#),
        (r#""id":"phone-1""#, r#""id":7"#),
        ("false", r#""no""#),
        (r#""room":"#, r#""aps":{},"room":"#),
        (r#""room":"#, r#""hasVideo":1,"room":"#),
        (r#""room":"#, r#""room":1,"room":"#),
        (r#"{"room":"r-17"}"#, r#"[{"room":"r-17"}]"#),
        (r#""r-17""#, "\"r-\u{1}17\""),
    ] {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from}");
        assert_eq!(both(&changed).0, None, "{changed}");
    }
}

proptest::proptest! {
    #[test]
    fn both_readings_agree(
        edits in proptest::collection::vec((0usize..500, 0usize..3, "[\\[\\]{}\":,a-z0-9TZ .\\\\-]{0,3}"), 0..4),
        field in 0usize..14,
        value in proptest::sample::select(vec![
            "null", "true", "7", "-1e400", "\"\"", "\"acme\"", "\"ab01\"", "\"sandbox\"", "\"\\u00e9\"", "\"\\ud800\"",
            "[]", "{}", "[null]", "[\"ab01\"]", "[{\"token\":\"ab01\"},{\"token\":\"AB01\",\"id\":\"x\"}]",
            "{\"a\":1}", "{\"a\":1,\"\\u0061\":2}", "{\"name\":\"x\"}", "\"2026-11-21T09:30:30Z\"",
        ]),
    ) {
        let names = [
            "call_id", "app", "deadline", "created_at", "caller", "has_video", "devices", "payload", "handle", "name",
            "token", "environment", "id", "registered_at",
        ];
        let mut json = sample();
        let (top, caller) = (field < 8, field < 10);
        let place = if top { &mut json } else if caller { &mut json["caller"] } else { &mut json["devices"][0] };
        place[names[field]] = json!("PLACE");
        let mut text = json.to_string().replacen("\"PLACE\"", value, 1);
        proptest::prop_assert!(text.contains(value));
        for (at, length, new) in edits {
            let at = at.min(text.len());
            let end = (at + length).min(text.len());
            if text.is_char_boundary(at) && text.is_char_boundary(end) {
                text.replace_range(at..end, &new);
            }
        }
        if let (Some(plain), any) = both(&text) {
            proptest::prop_assert_eq!(Ok(plain), any, "{}", text);
        }
    }

    #[test]
    fn exactly_one_entry_of_a_phone_rings(
        entries in proptest::collection::vec((0u8..6, proptest::option::of(0u8..4), proptest::option::of(1u8..4), 0u8..10), 1..12),
    ) {
        let list: Vec<Value> = entries.iter().map(|(token, id, day, odd)| json!({
            "token": format!("ab{token:02}"),
            "id": id.map(|id| format!("phone-{id}")),
            "registered_at": day.map(|day| format!("2026-10-0{day}T00:00:00Z")),
            "environment": if *odd == 0 { "moon" } else { "production" },
        })).collect();
        let devices = invite(|json| json["devices"] = list.into()).devices;
        for (place, device) in devices.iter().enumerate() {
            if device.fault.is_some() {
                proptest::prop_assert!(!device.duplicate);
                continue;
            }
            let mut phone = std::collections::BTreeSet::from([place]);
            for _ in &devices {
                let linked = |other: &Device| phone.iter().any(|place| {
                    let one: &Device = &devices[*place];
                    one.token == other.token || one.id.is_some() && one.id == other.id
                });
                let more: Vec<usize> =
                    (0..devices.len()).filter(|place| devices[*place].fault.is_none() && linked(&devices[*place])).collect();
                phone.extend(more);
            }
            let entries: Vec<&Device> = phone.iter().map(|place| &devices[*place]).collect();
            let ringing: Vec<&Device> = entries.iter().copied().filter(|device| !device.duplicate).collect();
            proptest::prop_assert_eq!(ringing.len(), 1, "of {:?}", entries);
            let expected = match entries[0].registered_at {
                None => None,
                Some(_) => entries.iter().filter_map(|device| device.registered_at).max(),
            };
            proptest::prop_assert_eq!(ringing[0].registered_at, expected, "of {:?}", entries);
            proptest::prop_assert!(expected.is_some() || std::ptr::eq(ringing[0], entries[0]));
        }
    }

    #[test]
    fn no_bytes_make_it_panic(body in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = Invite::parse(&body, &rules(), NOW);
    }

    #[test]
    fn no_value_in_any_field_makes_it_panic(field in 0usize..8, value in "[\\[\\]{}\":,a-z0-9 .\\\\-]{0,40}") {
        let name = ["call_id", "app", "deadline", "created_at", "caller", "has_video", "devices", "payload"][field];
        let body = sample().to_string().replacen(&format!("\"{name}\":"), &format!("\"{name}\":{value},\"z\":"), 1);
        let _ = Invite::parse(body.as_bytes(), &rules(), NOW);
    }
}
