//! GOAWAY: which requests it leaves out, and what becomes of the connection.

use std::time::Duration;

use h2::Reason as Code;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::client::{Answer, Client, TOKEN, World, describe};
use crate::simulator::faults::Ending;
use crate::simulator::{Fault, GoAway, LastStream, Options, Order, Record, Simulator};

const SECOND: Duration = Duration::from_secs(1);

fn last_fault(world: &World) -> (Option<&'static str>, bool) {
    let records = world.simulator.journal().records();
    let record = records.last().unwrap();
    (record.fault, record.processed)
}

/// Starts pushes that are held back for some seconds, and waits until all were judged.
async fn hold(world: &World, client: &mut Client, count: u64) -> Vec<JoinHandle<Result<Answer, h2::Error>>> {
    world.simulator.faults().add(Fault::latency(SECOND * 5, SECOND * 5).prefix("aa"));
    let before = world.simulator.journal().count();
    let started = (1..=count)
        .map(|number| {
            let request = client.request(&format!("aa{number:02}"));
            tokio::spawn(client.start(request, "{}"))
        })
        .collect();
    world.simulator.journal().wait_for(before + count).await;
    started
}

/// What each client's push came to, and what the journal says of it.
async fn fates(world: &World, started: Vec<JoinHandle<Result<Answer, h2::Error>>>) -> Vec<(String, bool)> {
    let mut said = Vec::new();
    for started in started {
        said.push(match started.await.unwrap() {
            Ok(answer) => answer.status.to_string(),
            Err(error) => describe(&error),
        });
    }
    let records: Vec<Record> = world.simulator.journal().records();
    let records = &records[records.len() - said.len()..];
    for record in records {
        assert_eq!(record.status.is_some(), record.processed, "{record:?}");
        assert_eq!(record.fault, (!record.processed).then_some("goaway"), "{record:?}");
    }
    said.into_iter().zip(records.iter().map(|record| record.processed)).collect()
}

fn go_away(last_stream: LastStream) -> GoAway {
    GoAway { last_stream, reason: Some("Shutdown".into()), ..GoAway::default() }
}

fn rang() -> (String, bool) {
    ("200".into(), true)
}

fn left_out() -> (String, bool) {
    ("remote goaway NO_ERROR".into(), false)
}

#[tokio::test(start_paused = true)]
async fn goaway_answers_what_it_counts_and_names_apples_reason() {
    let world = World::new();
    let faults = world.simulator.faults();
    faults.add(Fault::latency(SECOND, SECOND).token("aa01"));
    let go_away = GoAway { reason: Some("Shutdown".into()), serve_this: false, ..GoAway::default() };
    faults.add(Fault::go_away(go_away).token("aa02"));
    let mut client = world.connect().await;
    let (slow, struck) = (client.request("aa01"), client.request("aa02"));
    let (slow, struck) = (client.start(slow, "{}"), client.start(struck, "{}"));
    let error = struck.await.unwrap_err();
    assert_eq!(describe(&error), "remote goaway NO_ERROR", "{error}");
    assert!(error.to_string().contains("Shutdown"), "{error}");
    assert_eq!(last_fault(&world), (Some("goaway"), false));
    assert_eq!(slow.await.unwrap().status, 200, "below the last id");
    client.served.take().unwrap().await.unwrap();
    client.ended.await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn goaway_may_serve_its_cause_come_twice_and_on_an_idle_connection() {
    let world = World::new();
    let go_away = GoAway { twice: true, ..GoAway::default() };
    world.simulator.faults().add(Fault::go_away(go_away.clone()).times(1));
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    assert_eq!(last_fault(&world), (Some("goaway"), true));
    client.ended.await.unwrap().unwrap();

    let client = world.connect().await;
    tokio::task::yield_now().await;
    world.simulator.order(Order::GoAway(go_away));
    client.ended.await.unwrap().unwrap();
    assert_eq!(world.simulator.journal().count(), 1);
}

#[tokio::test(start_paused = true)]
async fn goaway_may_lose_what_it_counts() {
    let world = World::new();
    let faults = world.simulator.faults();
    let go_away = |then| Fault::go_away(GoAway { serve_this: true, then, code: 7, ..GoAway::default() });
    faults.add(go_away(Ending::Silence).token("aa01"));
    faults.add(go_away(Ending::Close).token("aa02"));
    faults.add(Fault::latency(SECOND, SECOND).token("aa03"));
    let mut client = world.connect().await;
    let request = client.request("aa01");
    let silent = client.start(request, "{}");
    assert!(timeout(SECOND * 60, silent).await.is_err());
    assert!(!client.ping().await);

    let mut client = world.connect().await;
    let (slow, struck) = (client.request("aa03"), client.request("aa02"));
    let (slow, struck) = (client.start(slow, "{}"), client.start(struck, "{}"));
    let _ = struck.await;
    assert_eq!(describe(&slow.await.unwrap_err()), "local io", "counted, and lost");
}

#[tokio::test(start_paused = true)]
async fn goaway_in_mid_flight_leaves_out_the_newest() {
    let world = World::new();
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    let started = hold(&world, &mut client, 4).await;
    assert_eq!(world.simulator.journal().count_processed(), 5);
    world.simulator.order(Order::GoAway(go_away(LastStream::LeaveOut(2))));
    tokio::task::yield_now().await;
    assert_eq!(world.simulator.journal().count_processed(), 3, "known at once, not when they were due");
    assert_eq!(fates(&world, started).await, [rang(), rang(), left_out(), left_out()]);
    client.served.take().unwrap().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn goaway_counts_all_that_is_held_unless_told_otherwise() {
    let world = World::new();
    let mut client = world.connect().await;
    let started = hold(&world, &mut client, 3).await;
    world.simulator.order(Order::GoAway(go_away(LastStream::Newest)));
    assert_eq!(fates(&world, started).await, [rang(), rang(), rang()]);
}

/// What was answered keeps the last id up, whatever is wished for: the id is always true.
#[tokio::test(start_paused = true)]
async fn goaway_never_leaves_out_what_was_answered() {
    for wish in [LastStream::LeaveOut(9), LastStream::Answered, LastStream::Id(0)] {
        let world = World::new();
        let mut client = world.connect().await;
        let mut started = hold(&world, &mut client, 2).await;
        assert_eq!(client.outcome(TOKEN).await, "200", "a newer one, answered at once");
        started.extend(hold(&world, &mut client, 1).await);
        world.simulator.order(Order::GoAway(go_away(wish)));
        let last = started.pop().unwrap().await.unwrap().unwrap_err();
        assert_eq!(describe(&last), "remote goaway NO_ERROR", "{wish:?}");
        assert_eq!(last_fault(&world), (Some("goaway"), false));
        for older in started {
            assert_eq!(older.await.unwrap().unwrap().status, 200, "{wish:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn two_goaways_in_a_row_and_the_second_is_lower() {
    let world = World::new();
    let mut client = world.connect().await;
    let started = hold(&world, &mut client, 4).await;
    world.simulator.order(Order::GoAway(go_away(LastStream::LeaveOut(1))));
    tokio::time::sleep(SECOND).await;
    world.simulator.order(Order::GoAway(go_away(LastStream::LeaveOut(2))));
    // A third one cannot take back the second.
    world.simulator.order(Order::GoAway(go_away(LastStream::Newest)));
    assert_eq!(fates(&world, started).await, [rang(), left_out(), left_out(), left_out()]);
}

#[tokio::test(start_paused = true)]
async fn a_goaway_with_the_highest_id_still_serves_what_comes() {
    let world = World::new();
    let mut client = world.connect().await;
    let started = hold(&world, &mut client, 1).await;
    world.simulator.order(Order::GoAway(go_away(LastStream::Id(u32::MAX >> 1))));
    assert_eq!(fates(&world, started).await, [rang()]);
}

#[tokio::test(start_paused = true)]
async fn a_request_can_cause_the_goaway_that_leaves_others_out() {
    let world = World::new();
    let fault = GoAway { serve_this: false, ..go_away(LastStream::Answered) };
    world.simulator.faults().add(Fault::go_away(fault).token("bb01"));
    let mut client = world.connect().await;
    let started = hold(&world, &mut client, 2).await;
    let begun = Instant::now();
    assert_eq!(client.outcome("bb01").await, "remote goaway NO_ERROR");
    for other in started {
        assert_eq!(describe(&other.await.unwrap().unwrap_err()), "remote goaway NO_ERROR");
    }
    assert!(begun.elapsed() < SECOND, "at once");
    assert_eq!(world.simulator.journal().count_processed(), 0);
    client.served.take().unwrap().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn goaway_data_need_not_be_json() {
    let world = World::new();
    let debug =
        GoAway { debug: Some("no JSON".into()), code: Code::ENHANCE_YOUR_CALM.into(), ..GoAway::default() };
    world.simulator.faults().add(Fault::go_away(GoAway { serve_this: false, ..debug }));
    let mut client = world.connect().await;
    let error = client.push(TOKEN).await.unwrap_err();
    assert_eq!(describe(&error), "remote goaway ENHANCE_YOUR_CALM");
    assert!(error.to_string().contains("no JSON"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_was_left_out_has_a_second_line_in_the_file() {
    let path = std::env::temp_dir().join(format!("ringcast-goaway-{}.jsonl", std::process::id()));
    let in_file = |options: &mut Options| {
        options.journal_entries_max = 0;
        options.journal_file = Some(path.clone());
    };
    let world = World::with(in_file);
    let simulator: Simulator = world.simulator.clone();
    let mut client = world.connect().await;
    let started = hold(&world, &mut client, 2).await;
    simulator.order(Order::GoAway(go_away(LastStream::LeaveOut(1))));
    for started in started {
        let _ = started.await.unwrap();
    }
    simulator.journal().flush().unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let lines: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let said: Vec<_> =
        lines.iter().map(|line| (line["sequence"].as_u64(), line["processed"].as_bool())).collect();
    assert_eq!(said, [(Some(1), Some(true)), (Some(2), Some(true)), (Some(2), Some(false))]);
    assert_eq!((&lines[2]["fault"], &lines[2]["token"]), (&"goaway".into(), &"aa02".into()));
    assert_eq!(simulator.journal().count_processed(), 1);
}
