//! What became of every call: the account, and the judgement.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde_json::Value;

use super::losses::Losses;
use super::tide::{Call, Phone};
use crate::apple::Push;
use crate::client::Incoming;
use crate::contract::{check_event, check_outcome};

/// How long a request may be on its way to Apple's side and wait there to be judged, on a machine with other work. The
/// worker's own limit is asserted in virtual time.
const ON_ITS_WAY_MS: i64 = 1_000;

/// Numbers to print, and what is wrong.
#[derive(Default)]
pub(super) struct Account {
    calls: usize,
    devices: usize,
    outcomes: usize,
    /// Outcomes of each result, of the strongest copy.
    results: BTreeMap<String, usize>,
    /// Calls whose delivery came again.
    came_again: usize,
    /// Calls whose invite was published more than once.
    published_again: usize,
    pushes: usize,
    /// Pushes at a device that had one already, by the reason.
    repeats: BTreeMap<Reason, usize>,
    events: usize,
    /// The latest arrival at Apple's side after the deadline; before it: negative.
    latest_ms: Option<i64>,
    wrong: Vec<String>,
}

/// Why a device may be pushed at more than once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Reason {
    /// An attempt was not answered.
    Unknown,
    /// Between the pushes a worker was killed, or its connection lost: the delivery came again.
    Lost,
    /// The publisher's confirm was lost: the invite lay there twice, and two workers had it at once.
    PublishedAgain,
}

/// All copies of one call's outcome.
#[derive(Default)]
struct Copies {
    message_ids: BTreeSet<String>,
    outcomes: Vec<Value>,
}

impl Copies {
    /// A delivery of it came again: an outcome says so, or there are several. A worker that knows the outcome already gives
    /// the same one again, with the words of the first delivery.
    fn came_again(&self) -> bool {
        let says_so =
            |outcome: &Value| outcome["redelivered"] == true || outcome.get("earlier_attempt").is_some();
        self.outcomes.len() > 1 || self.outcomes.iter().any(says_so)
    }

    /// What the copies say of one device.
    fn devices<'a>(&'a self, token: &'a str) -> impl Iterator<Item = &'a Value> {
        let devices = self.outcomes.iter().filter_map(|outcome| outcome["devices"].as_array()).flatten();
        devices.filter(move |device| device["token"] == token)
    }

    /// Its strongest result (contract, section 4).
    fn result(&self) -> &str {
        let rank = |result: &&str| match *result {
            "accepted" => 2,
            "unknown" => 1,
            _ => 0,
        };
        self.outcomes
            .iter()
            .filter_map(|outcome| outcome["result"].as_str())
            .max_by_key(rank)
            .unwrap_or("none")
    }
}

impl Account {
    /// `losses`: what alone can bring a delivery again, so that a call rings twice although every attempt was answered. That an outcome
    /// says `redelivered` is no reason: what a stopping worker gives back comes again, too, and must not have been begun.
    pub(super) fn of(
        calls: &[Call],
        outcomes: &[Incoming],
        events: &[Incoming],
        pushes: &[Push],
        losses: &Losses,
    ) -> Self {
        let mut account = Self {
            calls: calls.len(),
            devices: calls.iter().map(|call| call.tokens.len()).sum(),
            outcomes: outcomes.len(),
            published_again: calls.iter().filter(|call| call.tries > 1).count(),
            pushes: pushes.len(),
            events: events.len(),
            ..Self::default()
        };
        let copies = read_outcomes(calls, outcomes);
        let told = account.read_events(calls, events);
        let mut pushed: BTreeMap<&str, Vec<&Push>> = BTreeMap::new();
        for push in pushes {
            pushed.entry(push.token()).or_default().push(push);
        }
        for (call, copies) in calls.iter().zip(&copies) {
            account.read_call(call, copies, &told, &mut pushed, losses);
        }
        let strangers: Vec<&&str> = pushed.keys().collect();
        account.require(strangers.is_empty(), || format!("pushes to nobody's devices: {strangers:?}"));
        account
    }

    /// The device tokens that were told of.
    fn read_events(&mut self, calls: &[Call], events: &[Incoming]) -> BTreeSet<String> {
        let mut ids: BTreeMap<String, &str> = BTreeMap::new();
        for message in events {
            let event = check_event(message);
            let token = event["token"].as_str().expect("checked").to_owned();
            let number: usize = message.text("correlation_id").parse().expect("a correlation id of ours");
            assert!(calls[number].tokens.contains(&token), "an event of the call that it names: {event}");
            self.require(Phone::of(&token) == Phone::Dead, || format!("{token} is not dead: {event}"));
            let id = message.text("message_id");
            let known = *ids.entry(token).or_insert(id);
            self.require(known == id, || format!("two ids of one event: {event}"));
        }
        ids.into_keys().collect()
    }

    fn read_call(
        &mut self,
        call: &Call,
        copies: &Copies,
        told: &BTreeSet<String>,
        pushed: &mut BTreeMap<&str, Vec<&Push>>,
        losses: &Losses,
    ) {
        let id = &call.id;
        self.require(copies.message_ids.len() == 1, || {
            format!("call {id} has outcomes of {} identities", copies.message_ids.len())
        });
        *self.results.entry(copies.result().to_owned()).or_default() += 1;
        self.came_again += usize::from(copies.came_again());
        for token in &call.tokens {
            let pushes = pushed.remove(token.as_str()).unwrap_or_default();
            self.read_device(call, token, copies, told.contains(token), &pushes, losses);
        }
    }

    fn read_device(
        &mut self,
        call: &Call,
        token: &str,
        copies: &Copies,
        told: bool,
        pushes: &[&Push],
        losses: &Losses,
    ) {
        let id = &call.id;
        let phone = Phone::of(token);
        let mut unknown = false;
        for device in copies.devices(token) {
            let result = device["result"].as_str().unwrap_or_default();
            let fits = match result {
                "accepted" => phone == Phone::Good,
                "invalid_token" => phone == Phone::Dead,
                "unknown" => true,
                "expired" => device["attempts"] == 0,
                _ => false,
            };
            self.require(fits, || format!("call {id} says of a {phone:?} phone: {device}"));
            let rang = matches!(result, "accepted" | "invalid_token");
            self.require(!rang || !pushes.is_empty(), || {
                format!("call {id} says {result}, and nobody was pushed at")
            });
            self.require(result != "invalid_token" || told, || format!("call {id} has no event of {device}"));
            unknown |= result == "unknown" || device["attempts"].as_u64() > Some(1);
        }
        // Apple's word may have come to a worker that was killed; the next one may have come too late to hear it again.
        let heard = pushes.iter().find(|push| push.status() == Some(410));
        let was_lost = heard.is_none_or(|push| losses.lie_between(push.at_ms(), call.deadline_ms));
        self.require(told || was_lost, || format!("call {id}: a 410 and no event"));
        for push in pushes {
            let late_ms = push.at_ms() - call.deadline_ms;
            self.latest_ms = self.latest_ms.max(Some(late_ms));
            self.require(late_ms < ON_ITS_WAY_MS, || format!("call {id} was pushed {late_ms} ms too late"));
        }
        let apns_ids: BTreeSet<&str> = pushes.iter().map(|push| push.text("apns_id")).collect();
        self.require(apns_ids.len() <= 1, || format!("call {id}: one device, several apns-ids"));
        for pair in pushes.windows(2) {
            let (first_ms, second_ms) = (pair[0].at_ms(), pair[1].at_ms());
            // Who tried may have been killed before it could tell; Apple's side knows what it did not answer.
            let reason = if unknown || pair[0].status().is_none() {
                Reason::Unknown
            } else if losses.lie_between(first_ms, second_ms) {
                Reason::Lost
            } else if call.tries > 1 {
                Reason::PublishedAgain
            } else {
                let told = Value::from(copies.outcomes.clone());
                self.wrong.push(format!(
                    "call {id} was pushed at {first_ms} and at {second_ms} for no reason: {told}; lost: {losses}"
                ));
                continue;
            };
            *self.repeats.entry(reason).or_default() += 1;
        }
    }

    fn require(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.wrong.push(what());
        }
    }

    /// Fails with all that is wrong.
    pub(super) fn judge(&self) {
        assert!(self.wrong.is_empty(), "{} things are wrong:\n{}", self.wrong.len(), self.wrong.join("\n"));
        let accepted = self.results.get("accepted").copied().unwrap_or_default();
        assert!(accepted * 2 > self.calls, "most calls ring all the same: {accepted} of {}", self.calls);
    }
}

/// By call. What is asserted here holds for each message by itself.
fn read_outcomes(calls: &[Call], outcomes: &[Incoming]) -> Vec<Copies> {
    let mut all: Vec<Copies> = calls.iter().map(|_| Copies::default()).collect();
    let mut owners: BTreeMap<&str, usize> = BTreeMap::new();
    for message in outcomes {
        let outcome = check_outcome(message);
        let number: usize = message.text("correlation_id").parse().expect("a correlation id of ours");
        assert_eq!(outcome["call_id"], calls[number].id);
        let id = message.text("message_id");
        assert_eq!(*owners.entry(id).or_insert(number), number, "{id} is the outcome of one invite");
        all[number].message_ids.insert(id.to_owned());
        all[number].outcomes.push(outcome);
    }
    all
}

impl fmt::Display for Account {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, devices, outcomes, results, came_again, published_again, .. } = self;
        let Self { pushes, repeats, events, latest_ms, .. } = self;
        writeln!(formatter, "{calls} calls to {devices} devices: {results:?}")?;
        writeln!(
            formatter,
            "{outcomes} outcomes, {} of them copies; {came_again} deliveries came again, {published_again} invites were published again",
            outcomes.saturating_sub(*calls)
        )?;
        writeln!(formatter, "{pushes} pushes; repeated: {repeats:?}; {events} token events")?;
        write!(
            formatter,
            "the last push reached Apple {latest_ms:?} ms after its deadline (negative: before it)"
        )
    }
}
