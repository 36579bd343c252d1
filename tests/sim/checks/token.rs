//! What the broker got of token events: invariant 5, and where each went.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringcast::domain::id::{DeviceToken, Identity};
use ringcast::domain::timestamp::Timestamp;
use ringcast::worker::mailbox::Route;
use serde_json::Value;

use super::{Story, unix_ms};
use crate::broker::Happening;
use crate::history::History;

/// A token event that the broker has.
struct Event<'h> {
    at: Duration,
    message_id: &'h str,
    key: &'h str,
    body: Value,
}

fn events(history: &History) -> impl Iterator<Item = Event<'_>> {
    history.happenings.iter().filter_map(|happening| match happening {
        Happening::Stored { at, publication } if publication.kind == "ringcast.invalid-token.v1" => {
            let Route::Results(key) = &publication.route else { return None };
            let body = serde_json::from_slice(&publication.body).expect("events are JSON");
            Some(Event { at: *at, message_id: &publication.message_id, key, body })
        }
        _ => None,
    })
}

/// Invariant 5: what an event says.
pub fn events_say_what_apple_said(history: &History, story: &Story<'_>, report: &mut impl FnMut(String)) {
    for Event { body: event, .. } in events(history) {
        let ring = (
            event["call_id"].as_str().unwrap_or_default().to_owned(),
            event["token"].as_str().unwrap_or_default().to_owned(),
        );
        let (status, reason) = (event["status"].as_u64(), event["reason"].as_str());
        let said = story
            .rings
            .get(&ring)
            .into_iter()
            .flatten()
            .any(|record| record.status.map(u64::from) == status && record.reason.as_deref() == reason);
        let confidence = match (status, reason) {
            (Some(410), _) => "dead",
            (Some(400), Some("BadDeviceToken" | "DeviceTokenNotForTopic")) => "suspect",
            _ => "none",
        };
        if !said || event["confidence"].as_str() != Some(confidence) {
            report(format!("a token event that Apple did not say: {event}"));
        }
    }
}

/// Invariant 5: a dead token's event is never kept back, a suspect one's only while the breaker of the worker that made it can
/// be open, and told only after that worker saw a push accepted.
pub fn events_go_where_they_belong(history: &History, story: &Story<'_>, report: &mut impl FnMut(String)) {
    let mut ways: BTreeMap<&str, &str> = BTreeMap::new();
    for Event { at, message_id, key, body } in events(history) {
        let kept_back = match key {
            "invalid_token.acme" => false,
            "quarantined_token.acme" => true,
            _ => {
                report(format!("a token event went by {key}: {body}"));
                continue;
            }
        };
        if body["confidence"] != "suspect" {
            if kept_back {
                report(format!("Apple's firm word was kept back: {body}"));
            }
            continue;
        }
        // Who made it stands nowhere: where nobody else had this invite, it is the one who did.
        let call = body["call_id"].as_str().unwrap_or_default();
        let token = DeviceToken::new(body["token"].as_str().unwrap_or_default());
        let ours = |identity: &&Identity| identity.token_event_id(&token).to_string() == message_id;
        let Some(identity) = story.identities(call).find(ours) else { continue };
        let takers: BTreeSet<u64> =
            story.taken.keys().filter(|(taken, _)| taken == identity).map(|(_, worker)| *worker).collect();
        let [worker] = takers.into_iter().collect::<Vec<_>>()[..] else { continue };
        if !story.is_muddled(call, worker) && *ways.entry(message_id).or_insert(key) != key {
            report(format!("worker {worker} sent an event two ways: {body}"));
        }
        let mine = || {
            let records = story.rings.values().flatten().filter(|record| story.worker(record) == worker);
            records.filter(|record| record.at_ms + record.delay_ms <= unix_ms(at))
        };
        if !kept_back && !mine().any(|record| record.status == Some(200)) {
            report(format!("worker {worker} condemned a token before Apple ever accepted: {body}"));
        }
        let suspects: BTreeSet<&str> =
            mine().filter(|record| record.status == Some(400)).map(|record| record.token.as_str()).collect();
        if kept_back && suspects.len() < 2 && story.was_accepted_before(worker, &body["observed_at"]) {
            report(format!("worker {worker} kept the only suspect token back after it rang others: {body}"));
        }
    }
}

impl Story<'_> {
    /// Whether a worker had told of an accepted push by then.
    fn was_accepted_before(&self, worker: u64, instant: &Value) -> bool {
        let read =
            |instant: &Value| instant.as_str().and_then(Timestamp::parse).expect("it says when").unix_ms();
        let told = self.outcomes.values().flatten().filter(|told| told.worker == worker);
        told.filter(|told| read(&told.outcome["settled_at"]) < read(instant))
            .flat_map(|told| told.outcome["devices"].as_array().into_iter().flatten())
            .any(|device| device["result"] == "accepted")
    }
}
