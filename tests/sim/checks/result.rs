//! What the broker got of outcomes: invariants 2 and 3, and that they are true.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringcast::domain::id::{CallId, DeviceToken, Identity};
use ringcast::domain::timestamp::Timestamp;
use ringcast::worker::mailbox::{GivenUp, Settlement};
use serde_json::Value;

use super::{Story, worker_of};
use crate::broker::Happening;
use crate::history::History;

/// Invariant 2, for each delivery: whoever settles one has seen confirms of its own for it, of the outcome and of every token
/// event that the outcome tells of.
pub fn settled_after_confirms(history: &History, report: &mut impl FnMut(String)) {
    let mut confirmed: BTreeMap<(u64, &str), usize> = BTreeMap::new();
    let mut settled: BTreeMap<(u64, Identity), usize> = BTreeMap::new();
    let mut told: BTreeMap<(u64, Arc<str>), Vec<Value>> = BTreeMap::new();
    // A copy that the broker gave up on is done with once it is answered, whatever the answer.
    let mut given_up: BTreeSet<(u64, Identity)> = BTreeSet::new();
    for happening in &history.happenings {
        match happening {
            Happening::Delivered { worker, identity, given_up: Some(_), .. } => {
                given_up.insert((*worker, *identity));
            }
            Happening::Stored { publication, .. } if publication.kind == "ringcast.outcome.v1" => {
                let outcome: Value = serde_json::from_slice(&publication.body).expect("outcomes are JSON");
                let told = told.entry((worker_of(&outcome), publication.message_id.clone())).or_default();
                if !told.iter().any(|known| known["devices"] == outcome["devices"]) {
                    told.push(outcome);
                }
            }
            Happening::Confirmed { worker, message_id, .. } => {
                *confirmed.entry((*worker, message_id)).or_default() += 1;
            }
            Happening::Settled {
                at,
                worker,
                identity,
                settlement: settlement @ (Settlement::Ack | Settlement::Reject),
            } => {
                let settled = settled.entry((*worker, *identity)).or_default();
                *settled += 1;
                let confirms = |id: &str| confirmed.get(&(*worker, id)).copied().unwrap_or_default();
                let outcome_id = identity.outcome_id().to_string();
                if confirms(&outcome_id) < *settled {
                    report(format!(
                        "worker {worker} settled {identity:?} at {at:?} before its outcome was confirmed"
                    ));
                }
                let told = told.get(&(*worker, outcome_id.into())).map(Vec::as_slice).unwrap_or_default();
                // The broker keeps for people what nobody could handle, and that alone.
                let hopeless = |outcome: &Value| {
                    let error = outcome["error"].as_str().unwrap_or_default();
                    outcome["result"] == "malformed" || error.contains("failed before")
                };
                if !given_up.contains(&(*worker, *identity))
                    && !told.iter().any(|told| hopeless(told) == (*settlement == Settlement::Reject))
                {
                    report(format!("worker {worker} settled {identity:?} by {settlement:?}, told {told:?}"));
                }
                // Where it was handled more than once, to different ends, the events of any of them will do.
                let enough = if told.len() == 1 { *settled } else { 1 };
                let complete = told.iter().any(|outcome| {
                    suspects(outcome).all(|token| {
                        confirms(&identity.token_event_id(&DeviceToken::new(token)).to_string()) >= enough
                    })
                });
                if !complete {
                    report(format!(
                        "worker {worker} settled {identity:?} at {at:?} before its token events were confirmed"
                    ));
                }
            }
            _ => {}
        }
    }
}

/// Tokens of an outcome that must have made an event.
fn suspects(outcome: &Value) -> impl Iterator<Item = &str> {
    outcome["devices"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|device| matches!(device["action"].as_str(), Some("drop_token" | "check_token")))
        .filter_map(|device| device["token"].as_str())
}

/// How often an outcome lists a token.
fn times(outcome: &Value, token: &str) -> usize {
    let devices = outcome["devices"].as_array().into_iter().flatten();
    devices.filter(|device| device["token"] == token).count()
}

/// Invariant 3.
pub fn one_outcome_identity(history: &History, story: &Story<'_>, report: &mut impl FnMut(String)) {
    let identities: BTreeSet<Identity> =
        history.messages.iter().map(crate::broker::Message::identity).collect();
    for identity in &identities {
        if !story.outcomes.contains_key(identity) {
            report(format!("{identity:?} has no outcome"));
        }
    }
    let expected: BTreeSet<String> =
        identities.iter().map(|identity| identity.outcome_id().to_string()).collect();
    for happening in &history.happenings {
        if let Happening::Stored { publication, .. } = happening
            && publication.kind == "ringcast.outcome.v1"
            && !expected.contains(&*publication.message_id)
        {
            report(format!("an outcome has an identity that no invite has: {}", publication.message_id));
        }
    }
}

/// Invariant 3: what a worker once found out about an invite it says again, word for word.
pub fn outcomes_stay_the_same(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for (identity, outcomes) in &story.outcomes {
        let mut first: BTreeMap<u64, &Value> = BTreeMap::new();
        for told in outcomes {
            // What cannot be read is read each time.
            let Some(call) = told.outcome["call_id"].as_str() else { continue };
            let first = *first.entry(told.worker).or_insert(&told.outcome);
            if *first != told.outcome && !story.is_muddled(call, told.worker) {
                report(format!("{identity:?} was told in two ways: {first} and {}", told.outcome));
            }
        }
    }
}

/// What an outcome says of a device is what Apple saw of the worker that says it, and what the broker said to it.
pub fn outcomes_tell_the_truth(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for (identity, outcomes) in &story.outcomes {
        for told in outcomes {
            let outcome = &told.outcome;
            let Some(call) = outcome["call_id"].as_str() else { continue };
            let others = story.calls.get(call).is_none_or(|identities| identities.len() > 1);
            if others || story.is_muddled(call, told.worker) {
                continue;
            }
            if CallId::parse(call).is_none() {
                report(format!("{identity:?}: odd call id {call}"));
            }
            let expired = Some(GivenUp::Expired);
            let given_up = story.taken_of(call, told.worker).any(|taken| taken.given_up == expired);
            for device in outcome["devices"].as_array().into_iter().flatten() {
                let token = device["token"].as_str().unwrap_or_default();
                let result = device["result"].as_str().unwrap_or_default();
                if result == "duplicate" {
                    // Nobody else speaks of this call.
                    if times(outcome, token) < 2 {
                        report(format!("call {call}: {token} is said to be a duplicate, and is none"));
                    }
                    continue;
                }
                let none = Vec::new();
                let records = story.rings.get(&(call.to_owned(), token.to_owned())).unwrap_or(&none);
                let records: Vec<_> =
                    records.iter().filter(|record| story.worker(record) == told.worker).collect();
                let rung = records.iter().any(|record| record.processed);
                let answered = |status| records.iter().any(|record| record.status == Some(status));
                let holds = match result {
                    "accepted" => rung && answered(200),
                    "invalid_token" => answered(410),
                    "suspect_token" => answered(400),
                    "throttled" => answered(429) && !rung,
                    "expired" => !rung && (device["stage"] != "broker" || given_up),
                    "failed" | "rejected" => !rung,
                    "unknown" => !records.is_empty() || !story.broken.is_empty() || !story.orders.is_empty(),
                    _ => false,
                };
                if !holds {
                    report(format!(
                        "call {call}: worker {} says that {token} is {result}, but Apple saw {records:?}",
                        told.worker
                    ));
                }
            }
        }
    }
}

/// Where an invite may have rung before it came to a worker, the outcome says so.
pub fn outcomes_tell_of_earlier_attempts(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for (identity, outcomes) in &story.outcomes {
        for told in outcomes.iter().filter(|told| told.outcome["earlier_attempt"].is_null()) {
            let Some(call) = told.outcome["call_id"].as_str() else { continue };
            let alone = story.identities(call).count() == 1 && story.published[identity] == 1;
            let received_at =
                told.outcome["received_at"].as_str().and_then(Timestamp::parse).expect("it says when");
            let mut records = story.rings.range((call.to_owned(), String::new())..);
            let rung = records
                .by_ref()
                .take_while(|((other, _), _)| other == call)
                .flat_map(|(_, records)| records)
                .find(|record| {
                    story.worker(record) != told.worker
                        && i64::try_from(record.at_ms).unwrap_or(i64::MAX) < received_at.unix_ms()
                });
            if let (true, Some(record)) = (alone, rung) {
                report(format!("{} knows of no earlier attempt, but Apple saw {record:?}", told.outcome));
            }
        }
    }
}
