//! A load whose every result is known beforehand, and the judgement of what became of it.
//!
//! Of a hundred invites ten are past their deadline and one is malformed; of twenty device tokens one is dead. Each
//! carries its number as `correlation_id`, so that every result can be laid beside its invite.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::time::{Instant, sleep};

use crate::apple::{DEAD, DEAD_SINCE, Push};
use crate::client::{self, Incoming, Outgoing};
use crate::contract::{check_event, check_outcome, instant};
use crate::process::POLL_EVERY;
use crate::worker::Worker;

/// What an invite is made to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It rings.
    Good,
    /// Its deadline passed before it was published.
    Late,
    /// It breaks the contract.
    Malformed,
}

/// One invite of the load.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) kind: Kind,
    pub(crate) call_id: String,
    pub(crate) tokens: Vec<String>,
    pub(crate) body: Vec<u8>,
    /// When it was made, in milliseconds since 1970.
    pub(crate) made_ms: i64,
    deadline_ms: i64,
    trace_id: String,
}

impl Planned {
    /// The trace goes on: its id stays, whatever span the worker may name.
    fn judge_trace(&self, message: &Incoming) {
        let trace = message.properties["headers"]["traceparent"].as_str().unwrap_or_default();
        assert_eq!(trace.split('-').nth(1), Some(self.trace_id.as_str()), "in {}", message.properties);
    }
}

/// All of them, by number.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) invites: Vec<Planned>,
    salt: u16,
    tokens_made: usize,
}

/// What was found beyond what must always hold: the numbers of invites to which it happened.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    /// More than one outcome was published (of one identity: that must always hold).
    pub(crate) outcomes_doubled: BTreeSet<usize>,
    /// A device was pushed more than once.
    pub(crate) pushes_doubled: BTreeSet<usize>,
    /// A device was pushed more often than its outcome says that it took attempts. On a busy machine a connection to APNs may look
    /// stalled; what had no answer on it is pushed again then, as one attempt more.
    pub(crate) rang_twice: BTreeSet<usize>,
    /// An outcome says that the broker delivered the invite again.
    pub(crate) redelivered: BTreeSet<usize>,
    /// An outcome says that a device took more than one attempt.
    pub(crate) retried: BTreeSet<usize>,
    /// How many outcomes each worker gave.
    pub(crate) by_worker: BTreeMap<String, usize>,
}

/// What the outcomes say of a device that was pushed at.
#[derive(Debug)]
struct Told {
    apns_id: String,
    /// The most that a copy says.
    attempts: u64,
}

impl Plan {
    /// `salt` sets call ids and tokens apart from those of other loads.
    pub(crate) fn new(count: usize, salt: u16) -> Self {
        let mut plan = Self { invites: Vec::with_capacity(count), salt, tokens_made: 0 };
        let deadline = now() + Duration::from_mins(4);
        for _ in 0..count {
            plan.add(deadline);
        }
        plan
    }

    /// One invite more.
    pub(crate) fn add(&mut self, deadline: OffsetDateTime) {
        let (made, number) = (now(), self.invites.len());
        let kind = match (number % 100, number % 10) {
            (57, _) => Kind::Malformed,
            (_, 3) => Kind::Late,
            _ => Kind::Good,
        };
        let call_id = format!("{:08x}-0000-4000-8000-{number:012x}", self.salt);
        let tokens: Vec<String> = (0..=(number % 4))
            .map(|_| {
                self.tokens_made += 1;
                let begin = if self.tokens_made.is_multiple_of(20) { DEAD } else { "a11e" };
                format!("{begin}{:04x}{:056x}", self.salt, self.tokens_made)
            })
            .collect();
        let deadline = if kind == Kind::Late { made - Duration::from_secs(5) } else { deadline };
        let body = invite(&call_id, (made, deadline), &tokens, number);
        self.invites.push(Planned {
            kind,
            call_id,
            tokens,
            body: if kind == Kind::Malformed { spoil(body, number) } else { body },
            made_ms: milliseconds(made),
            deadline_ms: milliseconds(deadline),
            trace_id: format!("{:016x}{:016x}", self.salt, number + 1),
        });
    }

    /// As they are published.
    pub(crate) fn messages(&self) -> Vec<Outgoing> {
        (0..self.invites.len()).map(|number| self.message(number)).collect()
    }

    /// As one is published: persistent, with a message id, its number and a trace.
    pub(crate) fn message(&self, number: usize) -> Outgoing {
        let invite = &self.invites[number];
        Outgoing {
            body: invite.body.clone(),
            properties: json!({
                "message_id": format!("invite-{}", invite.call_id),
                "correlation_id": number.to_string(),
                "content_type": "application/json",
                "headers": { "traceparent": format!("00-{}-00f067aa0ba902b7-01", invite.trace_id) },
            }),
        }
    }

    /// How many invites are of a kind.
    pub(crate) fn count(&self, kind: Kind) -> usize {
        self.invites.iter().filter(|invite| invite.kind == kind).count()
    }

    /// The dead tokens that must be found out: those of invites that ring.
    pub(crate) fn dead_tokens(&self) -> BTreeSet<&str> {
        let good = self.invites.iter().filter(|invite| invite.kind == Kind::Good);
        good.flat_map(|invite| &invite.tokens)
            .map(String::as_str)
            .filter(|token| token.starts_with(DEAD))
            .collect()
    }

    /// Which invite rings at each device token that must be pushed at.
    pub(crate) fn owners(&self) -> BTreeMap<&str, usize> {
        let good = self.invites.iter().enumerate().filter(|(_, invite)| invite.kind == Kind::Good);
        good.flat_map(|(number, invite)| invite.tokens.iter().map(move |token| (token.as_str(), number)))
            .collect()
    }

    /// Judges all that came of the load. What must hold whatever happened is asserted: each invite has its right outcome
    /// in the right shape, all copies of it under one message id; each dead token its event; no push after a deadline,
    /// none for a late or malformed invite, and at least one for each other device, all under one `apns-id`.
    pub(crate) fn judge(&self, outcomes: &[Incoming], events: &[Incoming], pushes: &[Push]) -> Verdict {
        let mut verdict = Verdict::default();
        let told = self.judge_outcomes(outcomes, &mut verdict);
        self.judge_events(events);
        self.judge_pushes(pushes, &told, &mut verdict);
        verdict
    }

    /// Gives what the outcomes say of each device token that was pushed at.
    fn judge_outcomes(&self, outcomes: &[Incoming], verdict: &mut Verdict) -> BTreeMap<String, Told> {
        let mut ids: BTreeMap<usize, &str> = BTreeMap::new();
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let mut told = BTreeMap::new();
        for message in outcomes {
            let outcome = check_outcome(message);
            let number = self.number(message);
            let id = message.text("message_id");
            if let Some(earlier) = ids.insert(number, id) {
                assert_eq!(earlier, id, "every copy of an outcome has one message id");
                verdict.outcomes_doubled.insert(number);
            }
            assert_eq!(
                *numbers.entry(id).or_insert(number),
                number,
                "each invite has a message id of its own"
            );
            if outcome["redelivered"] == true {
                verdict.redelivered.insert(number);
            }
            let mut devices = outcome["devices"].as_array().into_iter().flatten();
            if devices.any(|device| device["attempts"].as_u64() > Some(1)) {
                verdict.retried.insert(number);
            }
            let worker = outcome["worker"].as_str().expect("checked").to_owned();
            *verdict.by_worker.entry(worker).or_default() += 1;
            self.judge_outcome(number, message, &outcome, &mut told);
        }
        let missing: Vec<usize> =
            (0..self.invites.len()).filter(|number| !ids.contains_key(number)).collect();
        assert!(
            missing.is_empty(),
            "{} invites have no outcome, among them {:?}",
            missing.len(),
            missing.first()
        );
        told
    }

    fn judge_outcome(
        &self,
        number: usize,
        message: &Incoming,
        outcome: &Value,
        told: &mut BTreeMap<String, Told>,
    ) {
        let invite = &self.invites[number];
        invite.judge_trace(message);
        if invite.kind == Kind::Malformed {
            assert_eq!(outcome["result"], "malformed", "of invite {number}");
            return;
        }
        assert_eq!(outcome["call_id"], invite.call_id);
        assert_eq!(outcome["app"], "acme");
        assert_eq!(message.routing_key, "outcome.acme");
        let devices = outcome["devices"].as_array().expect("checked");
        let tokens: Vec<&str> = devices.iter().filter_map(|device| device["token"].as_str()).collect();
        assert_eq!(tokens, invite.tokens, "one entry per device, in the invite's order");
        for (place, device) in devices.iter().enumerate() {
            let token = &invite.tokens[place];
            let expected = match invite.kind {
                Kind::Late => "expired",
                _ if token.starts_with(DEAD) => "invalid_token",
                _ => "accepted",
            };
            assert_eq!(device["result"], expected, "in {outcome}");
            assert_eq!(
                device["environment"],
                if number.is_multiple_of(2) { "production" } else { "sandbox" }
            );
            assert_eq!(device["id"], format!("phone-{place}"));
            if expected == "invalid_token" {
                assert_eq!(device["reason"], "Unregistered");
                assert_eq!(device["action"], "drop_token");
                assert_eq!(instant(&device["invalid_since"]), instant(&json!(DEAD_SINCE)));
            }
            if let Some(apns_id) = device["apns_id"].as_str() {
                let known = told
                    .entry(token.clone())
                    .or_insert_with(|| Told { apns_id: apns_id.to_owned(), attempts: 0 });
                assert_eq!(known.apns_id, apns_id, "every attempt at a device has one apns-id");
                known.attempts = known.attempts.max(device["attempts"].as_u64().expect("checked"));
            }
        }
    }

    fn judge_events(&self, events: &[Incoming]) {
        let mut ids: BTreeMap<&str, String> = BTreeMap::new();
        let mut found = BTreeMap::new();
        for message in events {
            let event = check_event(message);
            let number = self.number(message);
            let invite = &self.invites[number];
            invite.judge_trace(message);
            let token = event["token"].as_str().expect("checked").to_owned();
            assert!(invite.tokens.contains(&token), "an event of the invite that it names: {event}");
            assert_eq!(event["call_id"], invite.call_id);
            assert_eq!(event["confidence"], "dead");
            assert_eq!(event["reason"], "Unregistered");
            assert_eq!(event["topic"], "com.acme.voice.voip");
            assert_eq!(event["key_id"], "KEY1234567");
            assert_eq!(instant(&event["invalid_since"]), instant(&json!(DEAD_SINCE)));
            let id = message.text("message_id");
            assert_eq!(*ids.entry(id).or_insert_with(|| token.clone()), token, "an id for each device");
            assert_eq!(*found.entry(token).or_insert(id), id, "every copy of an event has one message id");
        }
        let found: BTreeSet<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(found, self.dead_tokens(), "an event for each dead token, and for no other");
    }

    fn judge_pushes(&self, pushes: &[Push], told: &BTreeMap<String, Told>, verdict: &mut Verdict) {
        let owners = self.owners();
        let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
        for push in pushes {
            let token = push.token();
            let number = *owners.get(token).unwrap_or_else(|| panic!("nobody should be pushed at: {push:?}"));
            let invite = &self.invites[number];
            let times = seen.entry(token).or_default();
            *times += 1;
            if *times > 1 {
                verdict.pushes_doubled.insert(number);
            }
            assert!(push.at_ms() < invite.deadline_ms, "no push at or after the deadline");
            let told = told.get(token);
            assert_eq!(
                Some(push.text("apns_id")),
                told.map(|told| told.apns_id.as_str()),
                "as the outcome says"
            );
            if told.is_some_and(|told| *times > told.attempts) {
                verdict.rang_twice.insert(number);
            }
            judge_push(push, invite);
        }
        assert_eq!(seen.len(), owners.len(), "every device of every invite that rings is pushed at");
    }

    /// Of which invite a result is.
    pub(crate) fn number(&self, message: &Incoming) -> usize {
        let number =
            message.text("correlation_id").parse().ok().filter(|number| *number < self.invites.len());
        number.unwrap_or_else(|| panic!("a correlation id of ours: {}", message.properties))
    }
}

fn judge_push(push: &Push, invite: &Planned) {
    let number = invite.call_id.rsplit('-').next().expect("as it was made").trim_start_matches('0');
    let expected = json!({
        "aps": {},
        "callUUID": invite.call_id,
        "handle": "+15551234567",
        "callerName": "Zoë ☎",
        "hasVideo": false,
        "expiresAt": invite.deadline_ms / 1000,
        "room": format!("r-{}", usize::from_str_radix(number, 16).unwrap_or_default()),
    });
    assert_eq!(push.body(), &expected);
    for (header, value) in [
        ("topic", "com.acme.voice.voip"),
        ("push_type", "voip"),
        ("priority", "10"),
        ("expiration", "0"),
        ("path", &format!("/3/device/{}", push.token())),
    ] {
        assert_eq!(push.text(header), value, "{header} of {push:?}");
    }
    assert!(matches!(push.status(), Some(200 | 410) | None), "an honest answer or none: {push:?}");
}

/// Waits until every invite is taken and settled. The broker's own word comes when the worker has stopped: what it had not
/// acked lies in the queue again then.
pub(crate) async fn await_drained(uri: &str, worker: &Worker, within: Duration) {
    let until = Instant::now() + within;
    loop {
        let unsettled = worker.metric("ringcast_amqp_unsettled").await;
        let waiting = client::depth(uri, "ringcast.invites").await;
        if waiting == 0 && unsettled == Some(0.0) {
            return;
        }
        assert!(
            Instant::now() < until,
            "not drained in {within:?}: {waiting} invites wait, {unsettled:?} are unsettled; {}",
            worker.log().lines().rev().take(20).collect::<Vec<_>>().join("\n")
        );
        sleep(POLL_EVERY).await;
    }
}

/// Empties a queue that nobody fills any more.
pub(crate) async fn read_all(uri: &str, queue: &str) -> Vec<Incoming> {
    let count = client::depth(uri, queue).await;
    client::read(uri, queue, count, Duration::from_mins(1)).await
}

#[expect(clippy::disallowed_methods, reason = "a publisher's own clock; the worker's is its own")]
pub(crate) fn now() -> OffsetDateTime {
    OffsetDateTime::from(std::time::SystemTime::now())
}

/// As the contract writes instants.
pub(crate) fn written(instant: OffsetDateTime) -> String {
    instant.format(&Rfc3339).expect("within our era")
}

/// Since 1970.
pub(crate) fn milliseconds(instant: OffsetDateTime) -> i64 {
    i64::try_from(instant.unix_timestamp_nanos() / 1_000_000).expect("within our era")
}

fn invite(
    call_id: &str,
    (made, deadline): (OffsetDateTime, OffsetDateTime),
    tokens: &[String],
    number: usize,
) -> Vec<u8> {
    let devices: Vec<Value> = tokens
        .iter()
        .enumerate()
        .map(|(place, token)| {
            let mut device = json!({ "token": token, "id": format!("phone-{place}") });
            if number % 2 == 1 {
                device["environment"] = json!("sandbox");
            }
            device
        })
        .collect();
    let invite = json!({
        "call_id": call_id,
        "app": "acme",
        "deadline": written(deadline),
        "created_at": written(made),
        "caller": { "handle": "+15551234567", "name": "Zoë ☎" },
        "has_video": false,
        "devices": devices,
        "payload": { "room": format!("r-{number}") },
    });
    invite.to_string().into_bytes()
}

/// Breaks a good invite, each in one of several ways.
fn spoil(mut body: Vec<u8>, number: usize) -> Vec<u8> {
    match (number / 100) % 4 {
        0 => body.truncate(body.len() / 2),
        1 => {
            body = String::from_utf8(body).expect("JSON").replace("\"deadline\"", "\"deadlin\"").into_bytes();
        }
        2 => body[20] = 0xff,
        _ => body = String::from_utf8(body).expect("JSON").replace("\"acme\"", "\"acne\"").into_bytes(),
    }
    body
}
