//! Bounds in virtual time: what a connection that misbehaves costs the calls on it, and those that are not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ringcast::simulator::faults::{
    ConnectAction, ConnectFault, Ending, Fault, GoAway, LastStream, Latency, When,
};
use ringcast::simulator::{Order, Record, Target};
use serde_json::Value;

use crate::broker::Happening;
use crate::history::History;
use crate::network::address;
use crate::plan::{Event, Plan, token};
use crate::tell;
use crate::world::{REQUEST_TIMEOUT, STARTED_AT};

const MS: Duration = Duration::from_millis(1);

/// What an outcome says of a call's one device.
pub struct Told {
    pub result: String,
    pub attempts: u64,
    /// From the first attempt's start to the answer.
    pub latency_ms: u64,
    pub stage: String,
    pub error: String,
    /// From when it was taken to its outcome.
    pub took_ms: i64,
}

/// By token: what became of each call. Every call here has one device, and no token has two calls.
pub fn told(history: &History) -> BTreeMap<String, Told> {
    let mut all = BTreeMap::new();
    for happening in &history.happenings {
        let Happening::Stored { publication, .. } = happening else { continue };
        let outcome: Value = serde_json::from_slice(&publication.body).expect("results are JSON");
        if outcome["type"] != "ringcast.outcome.v1" {
            continue;
        }
        let device = &outcome["devices"][0];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let at = |value: &Value| {
            let instant = ringcast::domain::timestamp::Timestamp::parse(value.as_str().unwrap_or_default());
            instant.expect("outcomes say when").unix_ms()
        };
        let told = Told {
            result: text(&device["result"]),
            attempts: device["attempts"].as_u64().unwrap_or(0),
            latency_ms: device["latency_ms"].as_u64().unwrap_or(0),
            stage: text(&device["stage"]),
            error: text(&device["error"]),
            took_ms: at(&outcome["settled_at"]) - at(&outcome["received_at"]),
        };
        assert!(all.insert(text(&device["token"]), told).is_none(), "one outcome a call");
    }
    all
}

/// Four connections to four addresses, warm, and a steady stream of calls: one each `every` ms from 1 s on.
pub fn steady(calls: u64, every: u64, ring_for: i64) -> Plan {
    let quiet = Plan::wide(4, 6);
    let latency = Fault::latency(20 * MS, 60 * MS);
    let mut plan = quiet.event(0, Event::Apple(latency));
    // One call on each warms it.
    for call in 0..16 {
        plan = plan.call(call, &format!("warm-{call}"), 500 + call, 20_000, &[call], STARTED_AT);
    }
    for call in 16..16 + calls {
        plan = plan.call(
            call,
            &format!("call-{call}"),
            1_000 + every * (call - 16),
            ring_for,
            &[call],
            STARTED_AT,
        );
    }
    plan
}

/// How many connections were made.
pub fn connections(history: &History) -> usize {
    history.records.iter().map(|record| record.connection).collect::<BTreeSet<_>>().len()
}

/// Requests of a history by token.
pub fn by_token(history: &History) -> BTreeMap<&str, Vec<&Record>> {
    let mut all: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in &history.records {
        all.entry(&record.token).or_default().push(record);
    }
    all
}

/// Milliseconds since the start.
pub fn at(record: &Record) -> u64 {
    record.at_ms - u64::try_from(STARTED_AT).expect("after 1970")
}

#[test]
fn a_frozen_connection_costs_its_calls_a_second_and_a_half_and_the_others_nothing() {
    let history =
        tell(steady(2_000, 1, 20_000).event(2_000, Event::Order(Target::Connection(2), Order::Freeze)));
    let told = told(&history);
    let held: Vec<_> = told.values().filter(|told| told.attempts > 1).collect();
    assert!(held.len() >= 10, "only {} calls were on it", held.len());
    for told in told.values() {
        assert_eq!((told.result.as_str(), told.attempts <= 2), ("accepted", true), "{}", told.error);
        let most = if told.attempts > 1 { 1_500 } else { 100 };
        assert!(told.latency_ms <= most, "{} ms in {} attempts", told.latency_ms, told.attempts);
        assert!(
            told.took_ms <= i64::try_from(most).expect("small") + 10,
            "{} ms in the worker",
            told.took_ms
        );
    }
    assert!(history.records.iter().all(|record| record.connection != 2 || at(record) <= 2_000));
    assert_eq!(connections(&history), 5, "it was replaced, once");
}

#[test]
fn a_slow_connection_that_answers_its_pings_is_not_replaced_and_nothing_on_it_is_repeated() {
    for slow in [Fault::latency(1_950 * MS, 2_000 * MS).connection(2), Fault::latency(1_900 * MS, 2_000 * MS)]
    {
        let history = tell(steady(600, 5, 20_000).event(1_500, Event::Apple(slow.clone())));
        for (token, told) in told(&history) {
            assert_eq!((told.result.as_str(), told.attempts), ("accepted", 1), "{token}: {}", told.error);
        }
        assert!(by_token(&history).values().all(|records| records.len() == 1));
        assert_eq!(connections(&history), 4, "{slow:?}");
        assert!(history.records.iter().any(|record| record.connection == 2 && record.delay_ms >= 1_900));
    }
}

/// Apple takes longer than `request_timeout` for everything: pushing again would ring every phone twice, and twice as much is what a
/// slow Apple needs least. Only what waits when nobody has answered anything yet is given up.
#[test]
fn an_apple_slower_than_the_request_timeout_rings_once_and_is_waited_for() {
    let slow = Fault::latency(6_000 * MS, 6_000 * MS);
    let history = tell(steady(1_500, 10, 20_000).event(2_000, Event::Apple(slow)));
    let records = by_token(&history);
    for (token, told) in told(&history) {
        assert_eq!(told.result, "accepted", "{token}: {} after {} ms", told.error, told.latency_ms);
        let pushes = records[token.as_str()].len();
        if at(records[token.as_str()][0]) >= 3_200 {
            assert_eq!((pushes, told.attempts), (1, 1), "{token}");
            assert!(told.latency_ms <= 6_100, "{token}: {} ms", told.latency_ms);
        }
    }
    let twice = records.values().filter(|records| records.len() > 1).count();
    assert!((1..=130).contains(&twice), "{twice} of 1,500 were pushed twice");
}

/// Calls that come one by one find the same connection, beside one that has never carried any.
#[test]
fn one_that_answers_pings_alone_is_left_though_calls_are_few() {
    let mut plan = Plan::wide(2, 4).event(2_000, Event::Apple(Fault::silence(false).connection(1)));
    for call in 0..20 {
        plan = plan.call(call, &format!("call-{call}"), 500 + 1_700 * call, 20_000, &[call], STARTED_AT);
    }
    let history = tell(plan);
    let told = told(&history);
    let repeated = told.values().filter(|told| told.attempts > 1).count();
    for (token, told) in &told {
        assert_eq!(told.result, "accepted", "{token}: {}", told.error);
        assert!(told.latency_ms < 5_500, "{token}: {} ms", told.latency_ms);
    }
    assert!((1..=4).contains(&repeated), "{repeated} calls were on it");
}

/// While everything takes longer than `request_timeout`, one connection falls silent: that its sibling answers newer requests shows it.
#[test]
fn one_that_answers_pings_alone_is_left_though_its_sibling_is_slow() {
    let slow = Fault::latency(8_000 * MS, 8_000 * MS);
    let mute = Fault::silence(false).connection(3);
    let mut plan = Plan::wide(2, 2).event(3_000, Event::Apple(slow)).event(20_000, Event::Apple(mute));
    for call in 0..240 {
        plan = plan.call(call, &format!("call-{call}"), 500 + 100 * call, 60_000, &[call], STARTED_AT);
    }
    let history = tell(plan);
    let records = by_token(&history);
    let held: Vec<_> = records
        .values()
        .filter(|of_token| of_token[0].connection == 3 && at(of_token[0]) >= 20_000)
        .collect();
    assert!(held.len() >= 10, "{} calls were on it", held.len());
    for of_token in held {
        let again = of_token.get(1).map(|record| (record.connection, at(record) - at(of_token[0])));
        assert!(
            again.is_some_and(|(connection, after)| connection != 3 && after <= 10_100),
            "{}: {again:?}, after two limits at most",
            of_token[0].token
        );
    }
    // Where the repeats were all there was, nobody could say whether they are slow or lost.
    assert!(told(&history).values().all(|told| ["accepted", "unknown"].contains(&told.result.as_str())));
}

#[test]
fn a_request_that_is_lost_on_a_connection_that_answers_is_not_pushed_again() {
    let lost = Fault::silence(true).token(&token(700));
    let history = tell(steady(1_000, 10, 8_000).event(1_500, Event::Apple(lost)));
    let told = told(&history);
    let lost = &told[&token(700)];
    assert_eq!((lost.result.as_str(), lost.attempts), ("unknown", 1));
    assert!((9_000..9_010).contains(&lost.took_ms), "{} ms: the deadline and the grace", lost.took_ms);
    assert!(by_token(&history).values().all(|records| records.len() == 1));
    assert!(told.iter().all(|(other, told)| *other == token(700) || told.result == "accepted"));
    assert_eq!(connections(&history), 4, "none was replaced");
}

#[test]
fn one_that_answers_pings_and_no_request_is_left_once_for_all_its_calls() {
    let mute = Fault::silence(false).connection(2);
    let history = tell(steady(7_000, 1, 20_000).event(2_000, Event::Apple(mute)));
    let told = told(&history);
    let first =
        history.records.iter().find(|record| record.fault == Some("silence")).expect("some were on it");
    let left = at(first) + u64::try_from(REQUEST_TIMEOUT.as_millis()).expect("short");
    let held: Vec<_> = by_token(&history).into_iter().filter(|(_, records)| records.len() > 1).collect();
    assert!(held.len() >= 10, "only {} calls were on it", held.len());
    for (token, records) in held {
        assert_eq!(records.len(), 2, "{token}");
        assert!(
            (left..left + 100).contains(&at(records[1])),
            "{token} again at {}, not {left}",
            at(records[1])
        );
    }
    for (token, told) in &told {
        assert_eq!(told.result, "accepted", "{token}: {}", told.error);
        assert!(told.latency_ms < 5_200, "{token}: {} ms", told.latency_ms);
    }
    assert_eq!(connections(&history), 5, "it was replaced, once");
}

/// Whatever killed one connection may have killed all: the one repeat that is worth it must not go to another dead one.
#[test]
fn all_connections_die_at_once_and_every_call_is_answered_by_a_fresh_one() {
    for death in [Order::Freeze, Order::Close] {
        let history =
            tell(steady(1_000, 5, 20_000).event(2_500, Event::Order(Target::Everybody, death.clone())));
        let told = told(&history);
        let repeated = told.values().filter(|told| told.attempts > 1).count();
        assert!(repeated >= 4, "{death:?}: {repeated} calls were on them");
        for (token, told) in told {
            assert_eq!(told.result, "accepted", "{death:?}, {token}: {}", told.error);
            assert!(told.took_ms < 2_500, "{death:?}, {token}: {} ms", told.took_ms);
        }
    }
}

#[test]
fn a_half_open_connection_shows_while_nobody_calls() {
    // Nothing is in flight when it freezes; the next call comes half a minute later.
    let history =
        tell(steady(16, 1, 20_000).event(3_000, Event::Order(Target::Connection(3), Order::Freeze)).call(
            100,
            "later",
            35_000,
            20_000,
            &[100],
            STARTED_AT,
        ));
    assert_eq!(told(&history)[&token(100)].attempts, 1);
}

#[test]
fn a_goaway_under_500_streams_loses_nothing_and_repeats_only_what_was_left_out() {
    let go_away = GoAway {
        reason: Some("Shutdown".into()),
        last_stream: LastStream::LeaveOut(250),
        then: Ending::Drain,
        ..GoAway::default()
    };
    let mut plan = Plan::wide(1, 1)
        .call(0, "warm", 500, 20_000, &[0], STARTED_AT)
        .event(900, Event::Apple(Fault::latency(3_000 * MS, 3_000 * MS)))
        .event(2_000, Event::Order(Target::Everybody, Order::GoAway(go_away)));
    for call in 1..=500 {
        plan = plan.call(call, &format!("call-{call}"), 1_000, 20_000, &[call], STARTED_AT);
    }
    let history = tell(plan);
    let told = told(&history);
    assert_eq!(told.len(), 501);
    assert!(told.values().all(|told| told.result == "accepted"));
    assert_eq!(told.values().filter(|told| told.attempts == 2).count(), 250);
    for (token, records) in by_token(&history) {
        assert_eq!(records.iter().filter(|record| record.processed).count(), 1, "{token}");
    }
}

#[test]
fn an_address_that_goes_silent_costs_few_calls_then_none_and_is_used_again() {
    let silent = Target::Address(address(2).into());
    let mut plan = steady(0, 5, 20_000);
    plan.connections = 3;
    plan.addresses = 3;
    plan = plan.event(3_000, Event::Order(silent, Order::Silence)).event(20_000, Event::HealsAt(silent));
    for call in 100..3_600 {
        plan =
            plan.call(call, &format!("call-{call}"), 2_000 + 20 * (call - 100), 15_000, &[call], STARTED_AT);
    }
    plan.messages.sort_by_key(|message| message.at);
    let history = tell(plan);
    let told = told(&history);
    assert!(told.values().all(|told| told.result == "accepted"));
    let records = by_token(&history);
    let started = |token: &String| at(records[token.as_str()][0]);
    let affected = |from: u64, to: u64| {
        let of = told.iter().filter(|(token, _)| (from..to).contains(&started(token))).collect::<Vec<_>>();
        (of.iter().filter(|(_, told)| told.attempts > 1 || told.latency_ms > 200).count(), of.len())
    };
    let (hit, all) = affected(3_000, 4_500);
    assert!(hit * 3 < all, "{hit} of {all} calls suffered");
    let (hit, all) = affected(4_500, 20_000);
    assert_eq!(hit, 0, "of {all} calls afterwards");
    let again =
        history.records.iter().any(|record| record.address == Some(address(2)) && at(record) > 20_000);
    assert!(again, "the address that recovered is used again");
}

#[test]
fn all_addresses_down_then_up_and_calls_go_on() {
    let plan = steady(400, 50, 15_000)
        .event(3_000, Event::Order(Target::Everybody, Order::Silence))
        .event(9_000, Event::HealsAt(Target::Address(address(1).into())))
        .event(9_000, Event::HealsAt(Target::Address(address(2).into())))
        .event(9_001, Event::AppleHeals);
    let history = tell(plan);
    for (token, told) in told(&history) {
        // A call that was on its way when all went silent had its one repeat before they came back.
        assert!(["accepted", "unknown"].contains(&told.result.as_str()), "{token}: {}", told.result);
    }
}

#[test]
fn a_limit_of_one_serves_in_deadline_order_and_says_at_once_whom_it_cannot_serve() {
    let one = ConnectFault { when: When::default(), action: ConnectAction::Limit { streams: 1 } };
    let mut plan = Plan { connections: 1, connections_max: 1, prefetch: 500, ..Plan::quiet() }
        .event(0, Event::Connect(one))
        .event(0, Event::Apple(Fault::latency(500 * MS, 500 * MS)))
        .call(0, "first", 500, 20_000, &[0], STARTED_AT)
        .call(1, "second", 501, 20_000, &[1], STARTED_AT);
    // The later they come, the sooner they end.
    for call in 2..40 {
        let ring_for = 10_000 - i64::try_from(call).expect("small") * 100;
        plan = plan.call(call, &format!("call-{call}"), 3_000, ring_for, &[call], STARTED_AT);
    }
    let history = tell(plan);
    let told = told(&history);
    let served: Vec<_> = history.records.iter().filter(|record| at(record) > 3_500).collect();
    assert!(served.len() >= 12, "{} were served", served.len());
    assert!(served.windows(2).all(|pair| pair[0].token > pair[1].token), "the least time left comes first");
    let expired: Vec<_> = told.values().filter(|told| told.result == "expired").collect();
    assert!(expired.len() >= 10, "{} expired", expired.len());
    let at_once = expired.iter().filter(|told| told.took_ms < 500).count();
    assert!(at_once >= 8, "{at_once} of {} were told at once", expired.len());
    assert!(expired.iter().all(|told| told.stage == "slot"));
}

#[test]
fn a_limit_that_falls_to_one_and_comes_back_loses_nothing() {
    let plan = steady(400, 5, 20_000)
        .event(1_500, Event::Order(Target::Everybody, Order::Limit(1)))
        .event(2_500, Event::Order(Target::Everybody, Order::Limit(1_000)));
    let history = tell(plan);
    for (token, told) in told(&history) {
        assert_eq!(told.result, "accepted", "{token}: {}", told.error);
    }
}

#[test]
fn a_suspect_token_takes_a_connection_of_its_own_and_good_calls_feel_nothing() {
    let bad = token(7_777);
    let mut plan = steady(400, 5, 20_000);
    plan.one_stream_after_rejection = true;
    plan.devices.push((bad.clone(), ringcast::simulator::DeviceState::Unknown));
    // The first one before the good calls: it may cost a connection its streams. The others among them.
    for (copy, at) in [600].into_iter().chain((1_000..3_000).step_by(100)).enumerate() {
        plan = plan.call(5_000 + copy as u64, &format!("bad-{copy}"), at, 20_000, &[7_777], STARTED_AT);
    }
    plan.messages.sort_by_key(|message| message.at);
    let history = tell(plan);
    let later: Vec<_> =
        history.records.iter().filter(|record| record.token == bad && at(record) > 900).collect();
    assert!(later.len() >= 20, "{} pushes to the suspect token", later.len());
    let apart: BTreeSet<_> = later.iter().map(|record| record.connection).collect();
    for record in history.records.iter().filter(|record| record.token != bad) {
        assert!(!apart.contains(&record.connection), "{} shares its connection", record.token);
    }
    for (token, records) in by_token(&history).into_iter().filter(|(token, _)| **token != bad) {
        assert_eq!(records.len(), 1, "{token}");
    }
}

#[test]
fn a_body_that_could_not_leave_in_time_never_leaves() {
    // Windows come back after 3 s; bodies of 4 KiB fill the connection's window with 16 calls.
    let late = Latency { min: 3_000 * MS, max: 3_000 * MS };
    let slow = ConnectFault {
        when: When::default(),
        action: ConnectAction::SlowWindow { after: late, stream_window: None },
    };
    let mut plan = Plan::wide(1, 1).event(0, Event::Connect(slow));
    for call in 0..60 {
        plan = plan.large_call(call, 500, 2_000, 4_096, STARTED_AT);
    }
    let history = tell(plan);
    let told = told(&history);
    let expired = told.values().filter(|told| told.result == "expired").count();
    assert!(expired > 30, "{expired} of {} expired", told.len());
    assert!(told.values().all(|told| ["accepted", "expired"].contains(&told.result.as_str())));
}

#[test]
fn a_token_refused_on_a_fresh_connection_too_opens_the_circuit_with_a_word_about_the_clock() {
    let expired = Fault::answer(403, "ExpiredProviderToken");
    let mut plan =
        steady(200, 50, 20_000).event(2_000, Event::Apple(expired)).event(8_000, Event::AppleHeals);
    plan = plan.call(900, "later", 30_000, 9_000, &[900], STARTED_AT);
    let history = tell(plan);
    let told = told(&history);
    let at_once: Vec<_> =
        told.values().filter(|told| told.result == "rejected" && told.attempts == 0).collect();
    assert!(at_once.len() > 40, "{} were rejected at once", at_once.len());
    for told in at_once {
        assert!(told.error.contains("clock") && told.error.contains("since 2026-"), "{}", told.error);
    }
    // Refusals cost Apple a few requests, not one a call.
    let refused = history.records.iter().filter(|record| record.status == Some(403)).count();
    assert!(refused < 20, "{refused} requests were refused");
    assert_eq!(told[&token(900)].result, "accepted", "it heals by itself");
}

#[test]
fn a_peer_that_turns_every_connection_away_for_a_setting_is_not_dialled_in_a_loop() {
    let reason = ConnectAction::GoAway { reason: "BadCertificateEnvironment".into() };
    let plan = Plan::quiet()
        .event(0, Event::Connect(ConnectFault { when: When::default(), action: reason }))
        .call(1, "early", 10_000, 20_000, &[1], STARTED_AT);
    let history = tell(plan);
    let told = told(&history);
    let told = &told[&token(1)];
    assert_eq!((told.result.as_str(), told.attempts), ("rejected", 0));
    assert!(told.error.contains("BadCertificateEnvironment"), "{}", told.error);
    assert!(told.took_ms < 100, "{} ms", told.took_ms);
    assert!(history.connections_total < 25, "{} connections in 40 s", history.connections_total);
}
