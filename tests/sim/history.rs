//! What happened in one world, and sums over many.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use ringcast::simulator::{self, Record, Target};
use ringcast::worker::mailbox::{Publication, Route};

use crate::broker::{Happening, Message, Why};

/// What happened in one world.
pub struct History {
    pub messages: Vec<Message>,
    /// Of each worker.
    pub prefetch: usize,
    /// What connections were ordered, and when, in milliseconds since 1970.
    pub orders: Vec<(u64, Target, simulator::Order)>,
    pub happenings: Vec<Happening>,
    pub records: Vec<Record>,
    /// Which worker made each connection to Apple.
    pub dialled: BTreeMap<u64, u64>,
    /// Connections that Apple ever saw.
    pub connections_total: u64,
    /// Whether everything was drained in time after the healing.
    pub drained: bool,
    /// Whether the last worker stopped in time.
    pub stopped: bool,
    /// Handlers that died, as each of the last workers counts them.
    pub panics: BTreeMap<u64, usize>,
}

impl History {
    /// Everything that must be the same when the seed runs again.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for happening in &self.happenings {
            let _ = match happening {
                Happening::Stored { at, publication } => {
                    let body = String::from_utf8_lossy(&publication.body);
                    writeln!(text, "{at:?} stored {:?} {body}", publication.route)
                }
                other => writeln!(text, "{other:?}"),
            };
        }
        for record in &self.records {
            let _ = writeln!(text, "{record:?}");
        }
        text
    }
}

/// Sums over many worlds, so that a simulation in which nothing happens does not pass.
#[derive(Debug, Default)]
pub struct Totals {
    invites: usize,
    requests: usize,
    rung: usize,
    redelivered: usize,
    given_up: usize,
    /// Deliveries that a worker found dead, or never found.
    unseen: usize,
    cuts: usize,
    deaths: usize,
    /// Results that the broker has; more of them than confirmed ones are answers that were lost.
    stored: usize,
    confirmed: usize,
    /// Results of which the worker did not learn that they are stored.
    unconfirmed: BTreeMap<Why, usize>,
    /// Batches that waited for an alarm to be cleared.
    blocked: usize,
    outcomes: usize,
    /// Token events, by where they went and how sure they are.
    events: BTreeMap<String, usize>,
    results: BTreeMap<String, usize>,
}

impl Totals {
    pub fn add(&mut self, history: &History) {
        self.invites += history.messages.len();
        self.requests += history.records.len();
        self.rung += history.records.iter().filter(|record| record.processed).count();
        for happening in &history.happenings {
            match happening {
                Happening::Delivered { redelivered, given_up, seen, .. } => {
                    self.redelivered += usize::from(*redelivered);
                    self.given_up += usize::from(given_up.is_some());
                    self.unseen += usize::from(!seen);
                }
                Happening::Cut { .. } => self.cuts += 1,
                Happening::Stored { publication, .. } => {
                    self.stored += 1;
                    self.add_event(publication);
                    if let Route::Results(key) = &publication.route
                        && key.starts_with("outcome.")
                    {
                        self.outcomes += 1;
                        let outcome: serde_json::Value =
                            serde_json::from_slice(&publication.body).expect("JSON");
                        for device in outcome["devices"].as_array().into_iter().flatten() {
                            let result = device["result"].as_str().unwrap_or("?").to_owned();
                            *self.results.entry(result).or_default() += 1;
                        }
                    }
                }
                Happening::Died { .. } => self.deaths += 1,
                Happening::Confirmed { .. } => self.confirmed += 1,
                Happening::Unconfirmed { why, .. } => *self.unconfirmed.entry(*why).or_default() += 1,
                Happening::Blocked { .. } => self.blocked += 1,
                Happening::Settled { .. } | Happening::Buried { .. } => {}
            }
        }
    }

    fn add_event(&mut self, publication: &Publication) {
        let Route::Results(key) = &publication.route else { return };
        if publication.kind == "ringcast.invalid-token.v1" {
            let event: serde_json::Value = serde_json::from_slice(&publication.body).expect("JSON");
            let confidence = event["confidence"].as_str().unwrap_or("?");
            *self.events.entry(format!("{confidence} by {key}")).or_default() += 1;
        }
    }

    pub fn merge(&mut self, other: Self) {
        self.invites += other.invites;
        self.requests += other.requests;
        self.rung += other.rung;
        self.redelivered += other.redelivered;
        self.given_up += other.given_up;
        self.unseen += other.unseen;
        self.cuts += other.cuts;
        self.deaths += other.deaths;
        self.stored += other.stored;
        self.confirmed += other.confirmed;
        for (why, count) in other.unconfirmed {
            *self.unconfirmed.entry(why).or_default() += count;
        }
        self.blocked += other.blocked;
        self.outcomes += other.outcomes;
        for (event, count) in other.events {
            *self.events.entry(event).or_default() += count;
        }
        for (result, count) in other.results {
            *self.results.entry(result).or_default() += count;
        }
    }

    pub fn assert_that_something_happened(&self) {
        for result in [
            "accepted",
            "invalid_token",
            "suspect_token",
            "rejected",
            "throttled",
            "expired",
            "failed",
            "unknown",
            "duplicate",
        ] {
            assert!(
                self.results.get(result).copied().unwrap_or(0) > 10,
                "hardly any device was {result}: {self:?}"
            );
        }
        for event in [
            "dead by invalid_token.acme",
            "suspect by invalid_token.acme",
            "suspect by quarantined_token.acme",
        ] {
            assert!(
                self.events.get(event).copied().unwrap_or(0) > 100,
                "hardly any event was {event}: {self:?}"
            );
        }
        assert!(self.redelivered > 100 && self.cuts > 500 && self.rung > 5_000, "too quiet: {self:?}");
        let unheard = self.stored.saturating_sub(self.confirmed);
        assert!(
            [self.given_up, self.unseen, self.deaths, unheard].into_iter().all(|count| count > 100),
            "the broker is too kind: {self:?}"
        );
        for (why, least) in [
            (Why::Returned, 2_000),
            (Why::Nacked, 2_000),
            (Why::Late, 100),
            (Why::Never, 100),
            (Why::Closed, 500),
            (Why::Lost, 200),
        ] {
            let count = self.unconfirmed.get(&why).copied().unwrap_or_default();
            assert!(count >= least, "hardly any result was unconfirmed by {why:?}: {self:?}");
        }
        assert!(self.blocked >= 200, "hardly any alarm held a result up: {self:?}");
    }
}
