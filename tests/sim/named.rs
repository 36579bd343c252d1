//! Histories with a name: what once went wrong, and must not again.

use ringcast::simulator::faults::Fault;
use serde_json::Value;

use crate::broker::Happening;
use crate::history::History;
use crate::plan::{Event, Plan, call_id, token};
use crate::tell;
use crate::world::STARTED_AT;

/// The results of a call's devices, an outcome each, in the order of the outcomes.
fn results(history: &History, call: u64) -> Vec<Vec<String>> {
    let mut all = Vec::new();
    for happening in &history.happenings {
        let Happening::Stored { publication, .. } = happening else { continue };
        let outcome: Value = serde_json::from_slice(&publication.body).expect("results are JSON");
        if outcome["call_id"] == call_id(call) && outcome["type"] == "ringcast.outcome.v1" {
            let devices = outcome["devices"].as_array().expect("a readable invite has devices").iter();
            all.push(
                devices.map(|device| device["result"].as_str().unwrap_or_default().to_owned()).collect(),
            );
        }
    }
    all
}

/// A fresh connection may carry one request until the first answer. Short calls to a token that is never answered took these
/// places on every connection, and kept them long after they had ended.
#[test]
fn calls_that_are_never_answered_do_not_block_a_fresh_pool() {
    let silent = Fault::silence(false).token(&token(1));
    let mut plan = Plan::quiet().event(0, Event::Apple(silent));
    for call in 1..=2 {
        plan = plan.call(call, &format!("short-{call}"), 10, 2_000, &[1], STARTED_AT);
    }
    for call in 10..20 {
        plan = plan.call(call, &format!("long-{call}"), 100, 4_800, &[call], STARTED_AT);
    }
    let history = tell(plan);
    for call in 10..20 {
        assert_eq!(results(&history, call), [["accepted"]], "call {call}");
    }
}

/// The pause between dials grew to half a minute during an outage, so that calls were lost after it was over.
#[test]
fn an_outage_that_is_over_is_noticed_at_once() {
    for over in (60_000..120_000).step_by(10_000) {
        // The worker that is there when the outage begins is replaced, so that nothing stands.
        let plan = Plan { connections: 1, connections_max: 1, ..Plan::quiet() }
            .event(0, Event::Network(false))
            .event(10, Event::Kill)
            .event(over, Event::Network(true));
        let history = tell(plan.call(1, "after", over + 10, 4_000, &[5], STARTED_AT));
        assert_eq!(results(&history, 1), [["accepted"]], "after {over} ms");
    }
}

/// A token that stood twice in an invite gave the claim back that its first entry had made, and a second message about the call
/// rang the phone again.
#[test]
fn a_token_listed_twice_still_rings_once() {
    let plan = Plan::quiet().call(1, "first", 10, 20_000, &[5, 5], STARTED_AT).call(
        1,
        "second",
        5_000,
        10_000,
        &[5],
        STARTED_AT,
    );
    let history = tell(plan);
    assert_eq!(results(&history, 1), [vec!["accepted", "duplicate"], vec!["duplicate"]]);
    assert_eq!(history.records.iter().filter(|record| record.processed).count(), 1);
}

/// While APNs was away, each lost connection to the broker left a handler behind for every copy that waited for its twin.
#[test]
fn lost_connections_leave_no_handlers_behind_while_apple_is_away() {
    const CALLS: u64 = 20;
    let mut plan =
        Plan { prefetch: 20, ..Plan::quiet() }.event(0, Event::Network(false)).event(0, Event::Kill);
    for call in 0..CALLS {
        plan = plan.call(call, &format!("call-{call}"), 1_000, 38_000, &[10 * call + 5], STARTED_AT);
    }
    for at in (2_000..30_000).step_by(500) {
        plan = plan.event(at, Event::CutBroker);
    }
    let history = tell(plan.event(31_000, Event::Network(true)));
    let held = history.happenings.iter().filter_map(|happening| match happening {
        Happening::Cut { held, .. } => Some(*held),
        _ => None,
    });
    let held: Vec<_> = held.collect();
    let calls = usize::try_from(CALLS).expect("few");
    assert!(held.len() > 10, "{held:?}");
    assert_eq!(held.iter().max(), Some(&calls), "one of each, which is rung on: {held:?}");
    // None was begun before, and those that came with the first session are rung though that is long gone.
    assert!(history.records.len() == calls && history.records.iter().all(|record| record.processed));
    assert!(
        (0..CALLS).all(|call| results(&history, call).concat().iter().all(|result| result == "accepted"))
    );
}
