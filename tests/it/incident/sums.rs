//! The sums of both sides: what the worker said, beside what Apple's side saw.
//!
//! Whatever happened, this must hold: each call has one outcome; an accepted one was processed and answered by 200; what
//! was processed is accepted, or `unknown` where its answer was lost on the way; a device that was processed twice lost
//! its first answer; every copy of a push is the same; no push comes after its deadline; a token event says what Apple
//! said.

use std::collections::BTreeMap;

use ringcast::simulator::Record;
use serde_json::Value;

use super::stage::Call;

/// A push that left in time may be judged this much later on a loaded machine.
const JUDGED_WITHIN_MS: i128 = 1_000;

/// See the module.
pub(crate) struct Sums {
    /// Each call's device as in its outcome, by device token.
    devices: BTreeMap<String, Value>,
    /// What Apple's side saw, by device token.
    pushes: BTreeMap<String, Vec<Record>>,
    /// Token events.
    events: Vec<Value>,
}

impl Sums {
    /// Lays both sides beside each other. `lost`: connections whose answers may not have come through.
    pub(crate) fn take(
        calls: &[Call],
        mut outcomes: BTreeMap<String, Value>,
        events: Vec<Value>,
        records: Vec<Record>,
        lost: &[u64],
    ) -> Self {
        let mut pushes: BTreeMap<String, Vec<Record>> = BTreeMap::new();
        for record in records {
            pushes.entry(record.token.clone()).or_default().push(record);
        }
        let mut devices = BTreeMap::new();
        for call in calls {
            let outcome = outcomes.remove(&call.id);
            let outcome = outcome.unwrap_or_else(|| panic!("call {} has no outcome", call.id));
            let device = outcome["devices"][0].clone();
            assert_eq!(device["token"], call.token.as_str(), "{outcome}");
            let seen = pushes.get(&call.token).map(Vec::as_slice).unwrap_or_default();
            judge_pushes(call, &device, seen);
            judge_result(&device, seen, lost);
            assert!(devices.insert(call.token.clone(), device).is_none(), "each device is called once");
        }
        assert!(outcomes.is_empty(), "outcomes of calls that nobody made: {outcomes:?}");
        assert!(pushes.keys().all(|token| devices.contains_key(token)), "every push is to a device called");
        let sums = Self { devices, pushes, events };
        sums.judge_events();
        sums
    }

    fn judge_events(&self) {
        let wanted = |device: &&Value| match device["result"].as_str() {
            Some("invalid_token") => device["action"] == "drop_token",
            other => other == Some("suspect_token"),
        };
        let mut wanted: Vec<&Value> =
            self.devices.values().filter(wanted).map(|device| &device["token"]).collect();
        let mut found: Vec<&Value> = self.events.iter().map(|event| &event["token"]).collect();
        wanted.sort_by_key(ToString::to_string);
        found.sort_by_key(ToString::to_string);
        assert_eq!(found, wanted, "a token event for each token that Apple called bad, and for no other");
    }

    /// Every device whose token begins so has this result, and there are so many of them.
    pub(crate) fn expect(&self, prefix: &str, count: usize, result: &str) {
        let devices = self.devices(prefix);
        assert_eq!(devices.len(), count, "devices {prefix}…");
        for device in devices {
            assert_eq!(device["result"], result, "{device}");
        }
    }

    /// Every call that was made was accepted, and Apple's side processed each once.
    pub(crate) fn expect_all_once(&self, count: usize) {
        self.expect("", count, "accepted");
        self.expect_none_twice();
    }

    /// Apple's side processed no device twice.
    pub(crate) fn expect_none_twice(&self) {
        for (token, pushes) in &self.pushes {
            let processed = pushes.iter().filter(|push| push.processed).count();
            assert!(processed <= 1, "{token} was processed {processed} times: {pushes:#?}");
        }
    }

    /// The devices whose tokens begin so, as in their outcomes.
    pub(crate) fn devices(&self, prefix: &str) -> Vec<&Value> {
        self.devices.iter().filter(|(token, _)| token.starts_with(prefix)).map(|(_, device)| device).collect()
    }

    /// What Apple's side saw of the devices whose tokens begin so.
    pub(crate) fn pushes(&self, prefix: &str) -> Vec<&Record> {
        let begins = self.pushes.iter().filter(|(token, _)| token.starts_with(prefix));
        begins.flat_map(|(_, pushes)| pushes).collect()
    }

    /// How many requests Apple's side met in that way (`reset`, `goaway`, `stream limit`, …).
    pub(crate) fn struck(&self, fault: &str) -> usize {
        self.pushes("").iter().filter(|push| push.fault == Some(fault)).count()
    }

    /// The token events.
    pub(crate) fn events(&self) -> &[Value] {
        &self.events
    }
}

/// All that was pushed for one call is in time and the same.
fn judge_pushes(call: &Call, device: &Value, seen: &[Record]) {
    let deadline_ms = call.deadline.unix_timestamp_nanos() / 1_000_000;
    for push in seen {
        assert!(
            i128::from(push.at_ms) < deadline_ms + JUDGED_WITHIN_MS,
            "pushed after its deadline: {push:?}"
        );
        assert_eq!(push.expiration.as_deref(), Some("0"), "{push:?}");
        assert_eq!(push.apns_id, seen[0].apns_id, "every copy has one apns-id");
        // Where a stream was refused at its head, no body was read.
        if let Some(body) = push.body.json() {
            assert_eq!(body["callUUID"], call.id.as_str(), "{push:?}");
        }
    }
    let attempts = device["attempts"].as_u64().expect("it is always there");
    // Some may have been lost on the way.
    assert!(seen.len() as u64 <= attempts, "{} pushes in {attempts} attempts: {device}", seen.len());
}

/// What became of one device is what Apple's side did.
fn judge_result(device: &Value, seen: &[Record], lost: &[u64]) {
    let result = device["result"].as_str().unwrap_or_default();
    let processed: Vec<&Record> = seen.iter().filter(|push| push.processed).collect();
    let is_lost = |push: &&Record| lost.contains(&push.connection);
    match result {
        "accepted" => {
            let answered = processed.iter().any(|push| push.status == Some(200));
            assert!(answered, "accepted, but never processed: {device}\n{seen:#?}");
        }
        "unknown" => assert!(
            !lost.is_empty() && processed.iter().all(is_lost),
            "unknown, though its answer was not lost: {device}\n{seen:#?}"
        ),
        _ => assert!(processed.is_empty(), "processed, and yet: {device}\n{seen:#?}"),
    }
    assert!(processed.len() <= 2, "processed more than twice: {seen:#?}");
    if processed.len() == 2 {
        assert!(is_lost(&processed[0]), "processed again though its first answer was not lost: {seen:#?}");
    }
}
