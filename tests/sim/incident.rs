//! What must not make things worse: an incident that opens connections in a loop, condemns a credential that works, or
//! holds calls for longer than it lasts.

use std::collections::BTreeSet;
use std::time::Duration;

use ringcast::simulator::faults::{ConnectAction, ConnectFault, Fault, GoAway, When};
use ringcast::simulator::{Order, Target};

use crate::network::address;
use crate::plan::{Event, Plan, token};
use crate::stalled::{at, by_token, connections, steady, told};
use crate::tell;
use crate::world::STARTED_AT;

const MS: Duration = Duration::from_millis(1);

#[test]
fn a_connection_that_freezes_beside_an_old_request_costs_new_calls_no_more() {
    // The slow one had its PONG at 1.3 s, and would get the next PING at 2.3 s.
    let plan = Plan::wide(1, 2)
        .call(0, "warm", 500, 20_000, &[0], STARTED_AT)
        .event(900, Event::Apple(Fault::latency(4_000 * MS, 4_000 * MS).token(&token(1))))
        .call(1, "slow", 1_000, 2_500, &[1], STARTED_AT)
        .event(1_320, Event::Order(Target::Connection(1), Order::Freeze))
        .call(2, "held", 1_330, 20_000, &[2], STARTED_AT);
    let history = tell(plan);
    let told = &told(&history)[&token(2)];
    assert_eq!((told.result.as_str(), told.attempts), ("accepted", 2));
    assert!(told.latency_ms <= 1_500, "{} ms", told.latency_ms);
}

#[test]
fn a_long_way_is_no_reason_to_dial() {
    let plan = Plan { way: 200 * MS, ..steady(400, 50, 20_000) };
    let history = tell(plan);
    assert!(told(&history).values().all(|told| (told.result.as_str(), told.attempts) == ("accepted", 1)));
    assert_eq!(connections(&history), 4);
    assert_eq!(history.connections_total, 4, "none was opened for nothing");
}

/// A call that lost its connection waits for a sign of life of the other one; the next call need not.
#[test]
fn a_call_that_waits_for_a_sign_of_life_holds_nobody_up() {
    let plan = Plan { way: 300 * MS, ..Plan::wide(2, 2) }
        .event(0, Event::Apple(Fault::close(false).token(&token(2))))
        .call(0, "warm", 2_000, 20_000, &[0], STARTED_AT)
        .call(1, "warm too", 2_001, 20_000, &[1], STARTED_AT)
        .call(2, "lost", 9_000, 3_000, &[2], STARTED_AT);
    let plan = (3..60).fold(plan, |plan, call| {
        plan.call(call, &format!("next-{call}"), 9_010 + 10 * (call - 3), 20_000, &[call], STARTED_AT)
    });
    let history = tell(plan);
    let told = told(&history);
    assert_eq!((told[&token(2)].attempts, told[&token(2)].result.as_str()), (2, "unknown"));
    let fair = told[&token(0)].took_ms + 50;
    for call in 3..60 {
        let told = &told[&token(call)];
        // Those that were on the lost connection themselves wait like it.
        if told.attempts == 1 {
            assert!(told.took_ms <= fair, "call {call}: {} ms, and {fair} would be fair", told.took_ms);
        }
    }
}

#[test]
fn a_second_of_refused_credentials_costs_seconds() {
    let refused = Fault::answer(403, "InvalidProviderToken");
    let history =
        tell(steady(4_000, 4, 20_000).event(2_000, Event::Apple(refused)).event(3_000, Event::AppleHeals));
    let told = told(&history);
    for call in 16..4_016 {
        let called = 1_000 + 4 * (call - 16);
        if called > 7_000 {
            let told = &told[&token(call)];
            assert_eq!(told.result, "accepted", "called at {called}: {}", told.error);
        }
    }
}

#[test]
fn a_fresh_connection_that_refuses_the_token_does_not_condemn_what_its_siblings_carry() {
    let expired = Fault::answer(403, "ExpiredProviderToken").connection(5);
    let history = tell(
        steady(1_000, 10, 20_000)
            .event(1_500, Event::Apple(expired))
            .event(2_000, Event::Order(Target::Connection(2), Order::GoAway(GoAway::default()))),
    );
    assert!(history.records.iter().any(|record| record.status == Some(403)));
    for (token, told) in told(&history) {
        assert_eq!(told.result, "accepted", "{token}: {}", told.error);
    }
}

#[test]
fn an_address_that_turns_new_connections_away_for_a_setting_does_not_condemn_what_its_siblings_carry() {
    let action = ConnectAction::GoAway { reason: "BadCertificateEnvironment".into() };

    let history = tell(
        steady(200, 50, 20_000)
            .event(1_500, Event::Connect(ConnectFault { when: When::default(), action }))
            .event(2_000, Event::Order(Target::Connection(2), Order::GoAway(GoAway::default()))),
    );
    for (token, told) in told(&history) {
        assert_eq!(told.result, "accepted", "{token}: {}", told.error);
    }
    assert!(history.connections_total < 25, "{} connections in 40 s", history.connections_total);
}

#[test]
fn failures_of_apples_open_no_connection_after_the_other() {
    for (status, reason) in [(500, "InternalServerError"), (503, "Shutdown")] {
        let fault = Fault::answer(status, reason);
        let history = tell(
            steady(2_000, 10, 20_000).event(2_000, Event::Apple(fault)).event(22_000, Event::AppleHeals),
        );
        assert!(history.connections_total < 40, "{reason}: {} connections", history.connections_total);
        let late = by_token(&history).into_values().filter(|records| at(records[0]) > 25_000);
        assert!(late.flatten().all(|record| record.status == Some(200)));
    }
}

#[test]
fn a_peer_that_allows_no_stream_is_not_dialled_in_a_loop() {
    let none = ConnectFault { when: When::default(), action: ConnectAction::Limit { streams: 0 } };
    let history = tell(
        steady(400, 50, 20_000)
            .event(2_000, Event::Connect(none))
            .event(2_000, Event::Order(Target::Everybody, Order::Limit(0)))
            .event(22_000, Event::AppleHeals),
    );
    assert!(history.connections_total < 40, "{} connections", history.connections_total);
}

#[test]
fn an_address_that_ends_each_new_connection_is_not_dialled_in_a_loop() {
    let mut plan = steady(400, 50, 20_000);
    for at in (2_000..22_000).step_by(100) {
        let order = Order::GoAway(GoAway::default());
        plan = plan.event(at, Event::Order(Target::Address(address(2).into()), order));
    }
    let history = tell(plan);
    assert!(history.connections_total < 25, "{} connections", history.connections_total);
}

#[test]
fn connections_that_share_an_expired_token_cost_no_call() {
    let mut plan = steady(1_000, 10, 20_000);
    for connection in 1..=4 {
        let expired = Fault::answer(403, "ExpiredProviderToken").connection(connection);
        plan = plan.event(2_000, Event::Apple(expired));
    }
    let history = tell(plan);
    for (token, told) in told(&history) {
        assert_eq!(told.result, "accepted", "{token}: {}", told.error);
    }
}

#[test]
fn who_waits_while_the_credential_is_refused_is_told_at_once() {
    let reason = ConnectAction::GoAway { reason: "BadCertificateEnvironment".into() };
    let plan = Plan::quiet()
        .event(0, Event::Connect(ConnectFault { when: When::default(), action: reason }))
        .event(0, Event::Network(false))
        .call(1, "early", 100, 20_000, &[1], STARTED_AT)
        .event(1_000, Event::Network(true));
    let history = tell(plan);
    let told = &told(&history)[&token(1)];
    assert_eq!((told.result.as_str(), told.attempts), ("rejected", 0), "{}", told.error);
    assert!(told.took_ms < 4_000, "{} ms", told.took_ms);
}

#[test]
fn a_failure_that_sticks_to_a_connection_is_tried_again_on_another_one() {
    let fault = Fault::answer(500, "InternalServerError").connection(1);
    let history = tell(steady(100, 100, 20_000).event(2_000, Event::Apple(fault)));
    let failed = history.records.iter().filter(|record| record.status == Some(500)).count();
    assert!(failed >= 10, "{failed} met it");
    for (token, told) in told(&history) {
        assert!(told.result == "accepted" && told.attempts <= 2, "{token}: {} attempts", told.attempts);
    }
}

#[test]
fn an_address_that_takes_no_connection_is_left_to_rest_and_the_others_have_all() {
    let action = ConnectAction::GoAway { reason: "Shutdown".into() };
    let when = When { address: Some(address(2).into()), ..When::default() };
    let history = tell(steady(2_000, 5, 20_000).event(0, Event::Connect(ConnectFault { when, action })));
    let late = history.records.iter().filter(|record| at(record) > 5_000);
    let used: BTreeSet<_> = late.map(|record| record.connection).collect();
    assert!(used.len() >= 4, "{used:?}");
}

#[test]
fn a_connection_that_freezes_under_a_request_that_had_its_pong_is_found_by_the_next_ping() {
    let plan = Plan::wide(1, 2)
        .call(0, "warm", 500, 20_000, &[0], STARTED_AT)
        .event(900, Event::Apple(Fault::latency(4_000 * MS, 4_000 * MS)))
        .call(1, "slow", 1_000, 20_000, &[1], STARTED_AT)
        .event(1_320, Event::Order(Target::Connection(1), Order::Freeze));
    let history = tell(plan);
    let records = &by_token(&history)[token(1).as_str()];
    let again: Vec<_> = records.iter().map(|record| at(record)).collect();
    assert!(again.len() == 2 && again[1] <= 3_400, "sent at {again:?}");
}

#[test]
fn whoever_comes_too_late_for_a_full_queue_is_told_in_that_moment() {
    let one = ConnectFault { when: When::default(), action: ConnectAction::Limit { streams: 1 } };
    let mut plan = Plan { connections: 1, connections_max: 1, prefetch: 500, ..Plan::quiet() }
        .event(0, Event::Connect(one))
        .event(0, Event::Apple(Fault::latency(500 * MS, 500 * MS)))
        .call(0, "first", 500, 20_000, &[0], STARTED_AT)
        .call(1, "second", 501, 20_000, &[1], STARTED_AT);
    for call in 2..40 {
        plan = plan.call(call, &format!("call-{call}"), 3_000, 9_000, &[call], STARTED_AT);
    }
    for call in 40..50 {
        plan = plan.call(call, &format!("late-{call}"), 3_150, 8_900, &[call], STARTED_AT);
    }
    let history = tell(plan);
    let told = told(&history);
    let at_once = (40..50).filter(|call| {
        let told = &told[&token(*call)];
        told.result == "expired" && told.stage == "slot" && told.took_ms < 10
    });
    assert!(at_once.count() >= 5);
}
