use std::borrow::Cow;

use bytes::Bytes;
use ringcast::simulator::journal::Body;
use serde_json::json;

use super::*;
use crate::road::{Arrival, Kind};
use crate::town;

/// What must be found when all went well.
struct Found {
    calls: Vec<Call>,
    harvest: Harvest,
    journal: Vec<Record>,
    left: usize,
}

impl Found {
    fn right() -> Self {
        let calls = town::draw();
        let mut harvest = Harvest::default();
        let mut journal = Vec::new();
        for call in &calls {
            let number = call.number;
            let mut arrive = |kind, message_id: &str, body: Value| {
                let (message_id, body) = (message_id.to_owned(), Bytes::from(body.to_string()));
                harvest.add(Arrival { kind, number, message_id, body });
            };
            let mut outcome = json!({ "result": call.result() });
            if call.plot == Plot::Malformed {
                arrive(Kind::Original, "", json!(null));
            } else {
                let device = |phone: &town::Phone| json!({ "result": phone.result, "latency_ms": 50 });
                outcome["devices"] = call.phones.iter().map(device).collect();
            }
            arrive(Kind::Outcome, &number.to_string(), outcome);
            for phone in &call.phones {
                let confidence = match phone.result {
                    "invalid_token" => Some("dead"),
                    "suspect_token" => Some("suspect"),
                    _ => None,
                };
                if let Some(confidence) = confidence {
                    let event = json!({ "token": phone.token, "confidence": confidence });
                    arrive(Kind::TokenEvent, &phone.token, event);
                }
                for push in 1..=phone.pushes {
                    let is_last = push == phone.pushes;
                    journal.push(record(call, phone, is_last && phone.result == "accepted", !is_last));
                }
            }
        }
        Self { calls, harvest, journal, left: 0 }
    }

    fn table(&self) -> Table {
        let Self { calls, harvest, journal, left } = self;
        Table::of(&Evidence { calls, harvest, journal, aside: "set aside", left: *left })
    }
}

fn record(call: &Call, phone: &town::Phone, processed: bool, is_struck: bool) -> Record {
    let body = json!({ "callUUID": call.id.to_string() }).to_string();
    let (status, fault) = match (is_struck, call.plot) {
        (true, Plot::Refused) => (None, Some("reset")),
        (true, _) => (Some(503), Some("answer")),
        (false, _) => (Some(200), None),
    };
    Record {
        connection: 1,
        stream: 1,
        token: phone.token.clone(),
        apns_id: phone.token.clone(),
        body: Body(Bytes::from(body)),
        status,
        reason: None::<Cow<'static, str>>,
        fault,
        delay_ms: 0,
        processed,
        ..Record::default()
    }
}

#[test]
fn what_had_to_happen_is_right() {
    let table = Found::right().table();
    assert!(table.is_right(), "{table:?}");
}

/// Something that goes wrong, and what it is.
type Mishap = (&'static str, fn(&mut Found));

#[test]
fn whatever_differs_is_seen() {
    let mishaps: [Mishap; 13] = [
        ("no outcome", |found| drop(found.harvest.outcomes.remove(&3))),
        ("two outcomes", |found| {
            let again = found.harvest.outcomes[&3][0].clone();
            found.harvest.add(again);
        }),
        ("another call's identity", |found| {
            found.harvest.outcomes.get_mut(&3).unwrap()[0].message_id = "4".to_owned();
        }),
        ("another result", |found| {
            found.harvest.outcomes.get_mut(&3).unwrap()[0].body =
                Bytes::from_static(b"{\"result\":\"expired\"}");
        }),
        ("an original that is lost", |found| drop(found.harvest.originals.pop())),
        ("an invite left", |found| found.left = 1),
        ("no event", |found| drop(found.harvest.token_events.pop())),
        ("two events", |found| found.harvest.token_events.push(found.harvest.token_events[0].clone())),
        ("an event about a live token", |found| {
            let body = json!({ "token": found.calls[0].phones[0].token, "confidence": "dead" });
            found.harvest.token_events[0].body = Bytes::from(body.to_string());
        }),
        ("no push", |found| drop(found.journal.remove(0))),
        ("a push too many", |found| found.journal.push(found.journal[0].clone())),
        ("a push for a late call", |found| {
            let call = found.calls.iter().find(|call| call.plot == Plot::Late).unwrap();
            found.journal.push(record(call, &call.phones[0], true, false));
        }),
        ("a push in another call's name", |found| found.journal[0].body = Body(Bytes::from_static(b"{}"))),
    ];
    for (name, mishap) in mishaps {
        let mut found = Found::right();
        mishap(&mut found);
        assert!(!found.table().is_right(), "{name}");
    }
}

#[test]
fn percentiles_are_among_the_values() {
    let values: Vec<_> = (1..=200).collect();
    assert_eq!((percentile(&values, 50), percentile(&values, 99)), (Some(100), Some(198)));
    assert_eq!((percentile(&[7], 50), percentile(&[], 50)), (Some(7), None));
}
