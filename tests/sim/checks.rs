//! What must always hold, whatever the world did: the invariants of the design, read off a history.

use std::collections::{BTreeMap, BTreeSet};

use ringcast::domain::id::{CallId, DeviceToken, Identity};
use ringcast::domain::timestamp::Timestamp;
use ringcast::simulator::{Address, Order, Record, Target};
use ringcast::worker::mailbox::Settlement;
use serde_json::Value;

use crate::broker::Happening;
use crate::world::{History, REQUEST_TIMEOUT};

/// Every violation of a history, in words.
pub fn check(history: &History) -> Vec<String> {
    let story = Story::read(history);
    let mut violations = Vec::new();
    let mut report = |violation: String| violations.push(violation);
    liveness(history, &mut report);
    no_push_after_its_deadline(&story, &mut report);
    ack_after_confirms(history, &story, &mut report);
    one_outcome_identity(history, &story, &mut report);
    no_needless_repeat(&story, &mut report);
    outcomes_tell_the_truth(&story, &mut report);
    token_events_say_what_apple_said(history, &story, &mut report);
    violations
}

/// One call and token at Apple's.
type Ring = (String, String);

/// A history, sorted by who is asking.
struct Story<'h> {
    /// By identity: how often it was delivered and not given back. A worker that gives an invite back has begun nothing of
    /// it, so that the delivery excuses nothing.
    delivered: BTreeMap<Identity, usize>,
    /// By identity: the outcomes stored, in order.
    outcomes: BTreeMap<Identity, Vec<Value>>,
    /// By call: all identities that speak of it.
    calls: BTreeMap<String, BTreeSet<Identity>>,
    /// By call: its latest deadline.
    deadlines: BTreeMap<String, i64>,
    rings: BTreeMap<Ring, Vec<&'h Record>>,
    /// Connections on which something was done to more than one request, and from when on.
    broken: BTreeMap<u64, u64>,
    orders: &'h [(u64, Target, Order)],
}

impl<'h> Story<'h> {
    fn read(history: &'h History) -> Self {
        let mut story = Self {
            delivered: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            calls: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            rings: BTreeMap::new(),
            broken: BTreeMap::new(),
            orders: &history.orders,
        };
        let mut by_outcome_id = BTreeMap::new();
        for message in &history.messages {
            let identity = message.identity();
            by_outcome_id.insert(identity.outcome_id().to_string(), identity);
            if let Ok(invite) = serde_json::from_slice::<Value>(&message.body) {
                let call = invite["call_id"].as_str().unwrap_or_default().to_owned();
                let deadline = Timestamp::parse(invite["deadline"].as_str().unwrap_or_default());
                let deadline = deadline.map_or(i64::MIN, Timestamp::unix_ms);
                let latest = story.deadlines.entry(call.clone()).or_insert(deadline);
                *latest = deadline.max(*latest);
                story.calls.entry(call).or_default().insert(identity);
            }
        }
        for happening in &history.happenings {
            match happening {
                Happening::Delivered { identity, .. } => *story.delivered.entry(*identity).or_default() += 1,
                Happening::Settled { identity, settlement: Settlement::GiveBack, .. } => {
                    *story.delivered.entry(*identity).or_default() -= 1;
                }
                Happening::Stored { publication, .. } => {
                    if let Some(identity) = by_outcome_id.get(&publication.message_id) {
                        let outcome = serde_json::from_slice(&publication.body).expect("outcomes are JSON");
                        story.outcomes.entry(*identity).or_default().push(outcome);
                    }
                }
                _ => {}
            }
        }
        // What was refused before its body was read tells no call; it was surely not processed.
        let read = |record: &&Record| !matches!(record.fault, Some("going away" | "stream limit"));
        for record in history.records.iter().filter(read) {
            let body = record.body.json().unwrap_or_default();
            let call = body["callUUID"].as_str().unwrap_or_default().to_owned();
            story.rings.entry((call, record.token.clone())).or_default().push(record);
            if matches!(record.fault, Some("goaway" | "freeze" | "close" | "going away")) {
                story.broken.entry(record.connection).or_insert(record.at_ms);
            }
        }
        story
    }

    /// How often the invites of a call were delivered.
    fn deliveries(&self, call: &str) -> usize {
        self.calls
            .get(call)
            .into_iter()
            .flatten()
            .map(|identity| self.delivered.get(identity).unwrap_or(&0))
            .sum()
    }

    /// Whether a request on this connection was not answered within the sender's limit, by this instant.
    fn overdue_on(&self, connection: u64, at_ms: u64) -> bool {
        let limit = u64::try_from(REQUEST_TIMEOUT.as_millis()).unwrap_or(u64::MAX);
        self.rings.values().flatten().any(|record| {
            record.connection == connection
                && record.at_ms + limit <= at_ms
                && (record.status.is_none() || record.delay_ms >= limit)
        })
    }

    /// Whether the sender may not have learnt what became of this request.
    fn is_uncertain(&self, record: &Record) -> bool {
        let until = record.at_ms + record.delay_ms + 1;
        record.status.is_none()
            || self.broken.contains_key(&record.connection)
            || self.orders_to(record).any(|(at, order)| at <= until && !matches!(order, Order::Limit(_)))
    }

    /// Whether it may have lain in front of Apple for a while before it was looked at.
    fn was_held(&self, record: &Record) -> bool {
        self.orders_to(record)
            .any(|(at, order)| at <= record.at_ms && matches!(order, Order::Freeze | Order::Silence))
    }

    fn orders_to(&self, record: &Record) -> impl Iterator<Item = (u64, &Order)> {
        let orders = self.orders.iter().filter(|(_, target, _)| match target {
            Target::Everybody => true,
            Target::Address(address) => record.address.is_some_and(|at| Address::from(at) == *address),
            Target::Connection(number) => record.connection == *number,
        });
        orders.map(|(at, _, order)| (*at, order))
    }
}

/// Invariants 6 and 7: a world that healed drains, and a worker that is stopped stops.
fn liveness(history: &History, report: &mut impl FnMut(String)) {
    if !history.drained {
        report("the world healed, and invites were left".to_owned());
    }
    if !history.stopped {
        report("the worker did not stop in time".to_owned());
    }
    if history.panics {
        report("a handler died".to_owned());
    }
}

/// Invariant 1.
fn no_push_after_its_deadline(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for ((call, token), records) in &story.rings {
        let deadline = story.deadlines.get(call).copied().unwrap_or(i64::MIN);
        for record in records {
            let at = i64::try_from(record.at_ms).unwrap_or(i64::MAX);
            if at >= deadline && !story.was_held(record) {
                report(format!("call {call} was pushed to {token} {} ms after its deadline", at - deadline));
            }
            let expiration: i64 =
                record.expiration.as_deref().and_then(|text| text.parse().ok()).unwrap_or(-1);
            if expiration != 0 && (expiration * 1000 <= at || expiration * 1000 > deadline) {
                report(format!("call {call}: apns-expiration {expiration} at {at}, deadline {deadline}"));
            }
        }
    }
}

/// Invariant 2.
fn ack_after_confirms(history: &History, story: &Story<'_>, report: &mut impl FnMut(String)) {
    let mut confirmed = BTreeSet::new();
    for happening in &history.happenings {
        match happening {
            Happening::Confirmed { message_id, .. } => {
                confirmed.insert(message_id.clone());
            }
            Happening::Settled { at, identity, settlement: Settlement::Ack | Settlement::Reject } => {
                if !confirmed.contains(&identity.outcome_id().to_string()) {
                    report(format!("{identity:?} was settled at {at:?} before its outcome was confirmed"));
                }
                let told = story.outcomes.get(identity).into_iter().flatten();
                // Where a redelivery came to another end, the events of either end will do.
                let complete = told.clone().any(|outcome| {
                    suspects(outcome).all(|token| {
                        confirmed.contains(&identity.token_event_id(&DeviceToken::new(token)).to_string())
                    })
                });
                if told.clone().next().is_some() && !complete {
                    report(format!(
                        "{identity:?} was settled at {at:?} before its token events were confirmed"
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

/// Invariant 3.
fn one_outcome_identity(history: &History, story: &Story<'_>, report: &mut impl FnMut(String)) {
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
            && !expected.contains(&publication.message_id)
        {
            report(format!("an outcome has an identity that no invite has: {}", publication.message_id));
        }
    }
}

/// Invariant 4. A phone rings again only where the sender could not know; whatever repeats has the same ids.
fn no_needless_repeat(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for ((call, token), records) in &story.rings {
        let ids: BTreeSet<_> = records.iter().map(|record| &record.apns_id).collect();
        if ids.len() > 1 {
            report(format!("call {call} to {token} was pushed under {} ids", ids.len()));
        }
        let deliveries = story.deliveries(call);
        for (place, pair) in records.windows(2).enumerate() {
            let [first, then] = pair else { continue };
            // A connection on which a request was not answered in time may be given up with all that it held.
            let late = story.overdue_on(first.connection, then.at_ms);
            let wedged = first.reason.as_deref() == Some("TooManyProviderTokenUpdates");
            let final_word = matches!(first.status, Some(400 | 410 | 413 | 418 | 429)) && !wedged;
            let repeatable = !first.processed && !final_word;
            if deliveries == 1 && !repeatable && !late && !story.is_uncertain(first) {
                report(format!("call {call} to {token}: request {} was needless after {first:?}", place + 2));
            }
        }
        let rung = records.iter().filter(|record| record.processed).count();
        // One handling rings at most twice: once, and once more after an ambiguous attempt.
        if rung > 2 * deliveries {
            report(format!("call {call} rang {rung} times at {token} in {deliveries} deliveries"));
        }
    }
}

/// What an outcome says of a device is what Apple's journal shows, where the invite was handled once.
fn outcomes_tell_the_truth(story: &Story<'_>, report: &mut impl FnMut(String)) {
    for (identity, outcomes) in &story.outcomes {
        if story.delivered.get(identity) != Some(&1) {
            continue;
        }
        for outcome in outcomes {
            let Some(call) = outcome["call_id"].as_str() else { continue };
            if story.calls.get(call).is_none_or(|identities| identities.len() > 1) {
                continue;
            }
            if CallId::parse(call).is_none() {
                report(format!("{identity:?}: odd call id {call}"));
            }
            for device in outcome["devices"].as_array().into_iter().flatten() {
                let token = device["token"].as_str().unwrap_or_default();
                let result = device["result"].as_str().unwrap_or_default();
                if result == "duplicate" {
                    continue;
                }
                let none = Vec::new();
                let records = story.rings.get(&(call.to_owned(), token.to_owned())).unwrap_or(&none);
                let rung = records.iter().any(|record| record.processed);
                let answered = |status| records.iter().any(|record| record.status == Some(status));
                let holds = match result {
                    "accepted" => rung && answered(200),
                    "invalid_token" => answered(410),
                    "suspect_token" => answered(400),
                    "throttled" => answered(429) && !rung,
                    "expired" => records.iter().all(|record| !record.processed),
                    "failed" | "rejected" => !rung,
                    "unknown" => !records.is_empty() || !story.broken.is_empty() || !story.orders.is_empty(),
                    _ => false,
                };
                if !holds {
                    report(format!("call {call}: {token} is said to be {result}, but Apple saw {records:?}"));
                }
            }
        }
    }
}

/// Invariant 5.
fn token_events_say_what_apple_said(history: &History, story: &Story<'_>, report: &mut impl FnMut(String)) {
    for happening in &history.happenings {
        let Happening::Stored { publication, .. } = happening else { continue };
        if publication.kind != "ringcast.invalid-token.v1" {
            continue;
        }
        let event: Value = serde_json::from_slice(&publication.body).expect("events are JSON");
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
