//! What a worker gives back when it is told to stop: what it has not begun, at once, so that another one rings in time.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringcast::domain::id::Identity;
use ringcast::simulator::faults::{ConnectAction, ConnectFault, Fault, When};
use ringcast::worker::mailbox::Settlement;
use serde_json::Value;

use crate::broker::Happening;
use crate::history::History;
use crate::plan::{Event, Plan, call_id, token};
use crate::stalled::{at, by_token};
use crate::tell;
use crate::world::STARTED_AT;

/// Prefetched at once.
const CALLS: u64 = 500;
const CALLED_AT: u64 = 1_000;
const STOPPED_AT: u64 = 2_000;
/// From the stop until another worker rings.
const BOUND: Duration = Duration::from_secs(1);

/// What became of the deliveries of one invite: those given back, and those acknowledged.
#[derive(Debug, Default)]
struct Road {
    delivered: Vec<(Duration, bool)>,
    given_back: Vec<Duration>,
    acked: usize,
}

/// A worker whose only connection allows one stream, and is slow; at the stop another one starts, which does well.
fn narrow() -> Plan {
    let one = ConnectAction::Limit { streams: 1 };
    let first = When { count: Some(1), ..When::default() };
    let slow = Duration::from_secs(4);
    Plan { prefetch: 600, ..Plan::wide(1, 1) }
        .event(0, Event::Connect(ConnectFault { when: first, action: one }))
        .event(0, Event::Apple(Fault::latency(slow, slow).connection(1)))
}

fn roads(history: &History) -> BTreeMap<Identity, Road> {
    let mut roads: BTreeMap<Identity, Road> = BTreeMap::new();
    for happening in &history.happenings {
        match happening {
            Happening::Delivered { at, identity, redelivered, .. } => {
                roads.entry(*identity).or_default().delivered.push((*at, *redelivered));
            }
            Happening::Settled { at, identity, settlement, .. } => {
                let road = roads.entry(*identity).or_default();
                match settlement {
                    Settlement::GiveBack => road.given_back.push(*at),
                    Settlement::Ack => road.acked += 1,
                    other => panic!("{identity:?} was settled by {other:?}"),
                }
            }
            _ => {}
        }
    }
    roads
}

/// The worker that each outcome of a call names.
fn answered_by(history: &History) -> BTreeMap<String, BTreeSet<String>> {
    let mut workers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for happening in &history.happenings {
        let Happening::Stored { publication, .. } = happening else { continue };
        let outcome: Value = serde_json::from_slice(&publication.body).expect("results are JSON");
        assert_eq!(outcome["result"], "accepted", "{outcome}");
        let text = |field: &str| outcome[field].as_str().unwrap_or_default().to_owned();
        workers.entry(text("call_id")).or_default().insert(text("worker"));
    }
    workers
}

/// Given back when the grace was over, such calls were too late for whoever got them.
#[test]
fn five_hundred_that_wait_for_a_stream_ring_elsewhere_within_a_second_of_the_stop() {
    let mut plan = narrow();
    // The first has its stream; of its two devices the other one waits.
    plan = plan.call(0, "call-0", CALLED_AT - 10, 20_000, &[0, CALLS], STARTED_AT);
    for call in 1..CALLS {
        plan = plan.call(call, &format!("call-{call}"), CALLED_AT, 20_000, &[call], STARTED_AT);
    }
    let history = tell(plan.event(STOPPED_AT, Event::Relieve));

    let stopped = Duration::from_millis(STOPPED_AT);
    let (mut stayed, mut went) = (0, 0);
    for road in roads(&history).into_values() {
        assert_eq!(road.acked, 1, "{road:?}");
        if road.given_back.is_empty() {
            assert_eq!(road.delivered.len(), 1, "{road:?}");
            stayed += 1;
            continue;
        }
        let [(first, false), (second, true)] = road.delivered[..] else { panic!("{road:?}") };
        assert!(first < stopped && second >= stopped && second <= stopped + BOUND, "{road:?}");
        went += 1;
    }
    assert_eq!((stayed, went), (1, CALLS - 1));

    let answered = answered_by(&history);
    for call in 0..CALLS {
        let worker = if call == 0 { "worker-0" } else { "worker-1" };
        assert_eq!(answered[&call_id(call)], BTreeSet::from([worker.to_owned()]), "call {call}");
    }
    let records = by_token(&history);
    for device in 0..=CALLS {
        let [record] = records[token(device).as_str()][..] else { panic!("device {device} rang once") };
        if (1..CALLS).contains(&device) {
            let late = at(record).saturating_sub(STOPPED_AT);
            assert!(Duration::from_millis(late) <= BOUND, "device {device} rang {late} ms after the stop");
        }
    }
}

/// A copy of an invite that is under way waits for it, and goes where it goes.
#[test]
fn a_copy_that_waits_for_its_twin_shares_its_fate() {
    let mut plan = narrow();
    for call in [0, 1] {
        for _ in 0..3 {
            plan = plan.call(call, &format!("call-{call}"), CALLED_AT, 20_000, &[call], STARTED_AT);
        }
    }
    let history = tell(plan.event(STOPPED_AT, Event::Relieve));
    let mut told: Vec<_> =
        roads(&history).into_values().map(|road| (road.given_back.len(), road.acked)).collect();
    told.sort_unstable();
    assert_eq!(told, [(0, 3), (3, 3)], "the one that has the stream stays, with its copies; the other goes");
    assert_eq!(history.records.len(), 2, "each rings once");
}

/// Nothing can be begun while Apple cannot be reached.
#[test]
fn while_apple_is_away_everything_goes_back_and_nothing_is_remembered() {
    let mut plan = Plan { prefetch: 600, ..Plan::wide(1, 1) }
        .event(0, Event::Network(false))
        .event(0, Event::Kill)
        .event(STOPPED_AT, Event::Relieve)
        .event(STOPPED_AT, Event::Network(true));
    for call in 0..CALLS {
        plan = plan.call(call, &format!("call-{call}"), CALLED_AT, 20_000, &[call], STARTED_AT);
    }
    let history = tell(plan);
    let roads = roads(&history);
    assert!(roads.values().all(|road| road.given_back == [Duration::from_millis(STOPPED_AT)]));
    assert!(answered_by(&history).values().all(|workers| *workers == BTreeSet::from(["worker-2".into()])));
    assert!(history.records.len() == usize::try_from(CALLS).unwrap() && roads.len() == history.records.len());
}
