//! What must always hold, whatever the world did: the invariants of the design, read off a history.
//!
//! This file reads the history and asserts that worlds drain; `push.rs` speaks of what Apple saw, `result.rs` of the outcomes
//! that the broker got, `timeline.rs` of the times in them, `token.rs` of the token events.

mod push;
mod result;
mod timeline;
mod token;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringcast::domain::id::Identity;
use ringcast::domain::timestamp::Timestamp;
use ringcast::simulator::{Address, Order, Record, Target};
use ringcast::worker::mailbox::{GivenUp, Settlement};
use serde_json::Value;

use crate::broker::Happening;
use crate::history::History;
use crate::world::{REQUEST_TIMEOUT, STARTED_AT};

/// How long an invite can be in a worker's hands until its outcome is final: the longest ring of a world, and some grace.
const IN_HAND_MAX: Duration = Duration::from_secs(40);

/// Every violation of a history, in words.
pub fn check(history: &History) -> Vec<String> {
    let story = Story::read(history);
    let mut violations = Vec::new();
    let mut report = |violation: String| violations.push(violation);
    liveness(history, &story, &mut report);
    few_hold_what_is_lost(history, &mut report);
    push::none_after_its_deadline(&story, &mut report);
    push::none_needless(&story, &mut report);
    push::none_without_a_delivery(&story, &mut report);
    result::settled_after_confirms(history, &mut report);
    result::one_outcome_identity(history, &story, &mut report);
    result::outcomes_stay_the_same(&story, &mut report);
    result::outcomes_tell_the_truth(&story, &mut report);
    result::outcomes_tell_of_earlier_attempts(&story, &mut report);
    token::events_say_what_apple_said(history, &story, &mut report);
    token::events_go_where_they_belong(history, &story, &mut report);
    timeline::timelines_agree_with_the_entries(&story, &mut report);
    violations
}

/// One call and token at Apple's.
type Ring = (String, String);

/// A delivery that a worker could look at.
#[derive(Clone, Copy, Debug)]
struct Taken {
    at: Duration,
    given_up: Option<GivenUp>,
}

/// An outcome that the broker has.
#[derive(Debug)]
struct Told {
    worker: u64,
    outcome: Value,
}

/// A history, sorted by who is asking.
struct Story<'h> {
    /// By identity and worker: what it was given.
    taken: BTreeMap<(Identity, u64), Vec<Taken>>,
    /// By identity and worker: how many deliveries it gave back. It has begun nothing of those.
    given_back: BTreeMap<(Identity, u64), usize>,
    /// By worker: when it was given anything.
    work: BTreeMap<u64, Vec<Duration>>,
    /// By identity: how often it was published.
    published: BTreeMap<Identity, usize>,
    /// By identity: the outcomes stored, in order.
    outcomes: BTreeMap<Identity, Vec<Told>>,
    /// By call: all identities that speak of it.
    calls: BTreeMap<String, BTreeSet<Identity>>,
    /// By call: its latest deadline.
    deadlines: BTreeMap<String, i64>,
    /// By call and worker: when a handler died over it.
    deaths: BTreeMap<(String, u64), Vec<Duration>>,
    rings: BTreeMap<Ring, Vec<&'h Record>>,
    /// Connections on which something was done to more than one request, and from when on.
    broken: BTreeMap<u64, u64>,
    orders: &'h [(u64, Target, Order)],
    dialled: &'h BTreeMap<u64, u64>,
    prefetch: usize,
}

impl<'h> Story<'h> {
    fn read(history: &'h History) -> Self {
        let mut story = Self {
            taken: BTreeMap::new(),
            given_back: BTreeMap::new(),
            work: BTreeMap::new(),
            published: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            calls: BTreeMap::new(),
            deadlines: BTreeMap::new(),
            deaths: BTreeMap::new(),
            rings: BTreeMap::new(),
            broken: BTreeMap::new(),
            orders: &history.orders,
            dialled: &history.dialled,
            prefetch: history.prefetch,
        };
        for message in &history.messages {
            let identity = message.identity();
            *story.published.entry(identity).or_default() += 1;
            if let Ok(invite) = serde_json::from_slice::<Value>(&message.body) {
                let call = invite["call_id"].as_str().unwrap_or_default().to_owned();
                let deadline = Timestamp::parse(invite["deadline"].as_str().unwrap_or_default());
                let deadline = deadline.map_or(i64::MIN, Timestamp::unix_ms);
                let latest = story.deadlines.entry(call.clone()).or_insert(deadline);
                *latest = deadline.max(*latest);
                story.calls.entry(call).or_default().insert(identity);
            }
        }
        story.read_happenings(history);
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

    fn read_happenings(&mut self, history: &'h History) {
        let by_outcome_id: BTreeMap<_, _> =
            self.published.keys().map(|identity| (identity.outcome_id().to_string(), *identity)).collect();
        for happening in &history.happenings {
            match happening {
                Happening::Delivered { at, worker, identity, given_up, seen: true, .. } => {
                    let taken = Taken { at: *at, given_up: *given_up };
                    self.taken.entry((*identity, *worker)).or_default().push(taken);
                    self.work.entry(*worker).or_default().push(*at);
                }
                Happening::Settled { worker, identity, settlement: Settlement::GiveBack, .. } => {
                    *self.given_back.entry((*identity, *worker)).or_default() += 1;
                }
                Happening::Stored { publication, .. } => {
                    if let Some(identity) = by_outcome_id.get(&*publication.message_id) {
                        let outcome: Value =
                            serde_json::from_slice(&publication.body).expect("outcomes are JSON");
                        let told = Told { worker: worker_of(&outcome), outcome };
                        self.outcomes.entry(*identity).or_default().push(told);
                    }
                }
                Happening::Died { at, worker, call } => {
                    self.deaths.entry((call.clone(), *worker)).or_default().push(*at);
                }
                _ => {}
            }
        }
    }

    /// Who made the connection of this request.
    fn worker(&self, record: &Record) -> u64 {
        self.dialled[&record.connection]
    }

    /// What Apple saw of a call and token, by worker.
    fn by_worker<'s>(&self, records: &'s [&'h Record]) -> BTreeMap<u64, Vec<&'s Record>> {
        let mut by_worker: BTreeMap<u64, Vec<&Record>> = BTreeMap::new();
        for record in records {
            by_worker.entry(self.worker(record)).or_default().push(record);
        }
        by_worker
    }

    fn identities(&self, call: &str) -> impl Iterator<Item = &Identity> {
        self.calls.get(call).into_iter().flatten()
    }

    /// What a worker was given of a call.
    fn taken_of(&self, call: &str, worker: u64) -> impl Iterator<Item = &Taken> {
        self.identities(call).filter_map(move |identity| self.taken.get(&(*identity, worker))).flatten()
    }

    /// How often a worker's memory of what it had taken by `since` may have been pushed out `until` then: its ledger holds
    /// four prefetches of finished invites.
    fn forgotten(&self, worker: u64, since: Duration, until: Duration) -> usize {
        let work = self.work.get(&worker).into_iter().flatten();
        let since = since.saturating_sub(IN_HAND_MAX);
        work.filter(|at| (since..=until).contains(*at)).count() / (4 * self.prefetch + 1)
    }

    /// Whether a worker may have handled a call more than once.
    fn is_muddled(&self, call: &str, worker: u64) -> bool {
        let taken: Vec<_> = self.taken_of(call, worker).map(|taken| taken.at).collect();
        let (Some(first), Some(last)) = (taken.iter().min(), taken.iter().max()) else { return false };
        self.deaths.contains_key(&(call.to_owned(), worker)) || self.forgotten(worker, *first, *last) > 0
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
fn liveness(history: &History, story: &Story<'_>, report: &mut impl FnMut(String)) {
    if !history.drained {
        report("the world healed, and invites were left".to_owned());
    }
    if !history.stopped {
        report("the worker did not stop in time".to_owned());
    }
    for (worker, panics) in &history.panics {
        let planned = story.deaths.iter().filter(|((_, other), _)| other == worker);
        let planned: usize = planned.map(|(_, deaths)| deaths.len()).sum();
        if *panics != planned {
            report(format!("{panics} handlers died in worker {worker}, of {planned} that had to"));
        }
    }
    for ((call, worker), deaths) in &story.deaths {
        let messages = story.identities(call).count();
        // From the third delivery on it is answered and not handled.
        if deaths.len() > 2 * messages {
            report(format!("call {call} made a handler of worker {worker} die {} times", deaths.len()));
        }
    }
    for happening in &history.happenings {
        if let Happening::Buried { identity, .. } = happening {
            report(format!("{identity:?} was given up, and nobody answered it"));
        }
    }
}

/// Invariant 6: of deliveries that are lost, a worker has one for each invite in its hands at most, that which is rung on.
fn few_hold_what_is_lost(history: &History, report: &mut impl FnMut(String)) {
    let mut given: BTreeMap<u64, BTreeSet<Identity>> = BTreeMap::new();
    for happening in &history.happenings {
        match happening {
            Happening::Delivered { worker, identity, .. } => {
                given.entry(*worker).or_default().insert(*identity);
            }
            Happening::Cut { at, worker, held } => {
                let invites = given.get(worker).map_or(0, BTreeSet::len);
                if *held > invites {
                    report(format!(
                        "worker {worker} holds {held} lost deliveries of {invites} invites at {at:?}"
                    ));
                }
            }
            _ => {}
        }
    }
}

/// The number in the name of the worker that an outcome is from.
fn worker_of(outcome: &Value) -> u64 {
    let name = outcome["worker"].as_str().and_then(|name| name.strip_prefix("worker-"));
    name.and_then(|number| number.parse().ok()).expect("workers of a world are numbered")
}

/// An instant of a world, in milliseconds since 1970.
fn unix_ms(at: Duration) -> u64 {
    u64::try_from(STARTED_AT).unwrap_or(0) + u64::try_from(at.as_millis()).unwrap_or(0)
}

/// The same the other way.
fn since_start(unix_ms: u64) -> Duration {
    Duration::from_millis(unix_ms.saturating_sub(u64::try_from(STARTED_AT).unwrap_or(0)))
}
