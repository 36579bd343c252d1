//! Pools over hours: how many connections they keep, and which provider tokens Apple sees of three workers that know
//! nothing of each other.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use ringcast::apns::Apns;
use ringcast::clock::Clock;
use ringcast::domain::app::Environment;
use ringcast::domain::id::{ApnsId, CallId, DeviceToken};
use ringcast::domain::policy::PushError;
use ringcast::domain::timestamp::Timestamp;
use ringcast::simulator::Simulator;
use ringcast::simulator::faults::{ConnectAction, ConnectFault, Fault, When};
use ringcast::worker::gateway::{Gateway, Push, Trail};
use tokio::time::{Instant, sleep};

use crate::plan::{Plan, call_id, token};
use crate::world::{World, acme};

/// Apple's bucket is not known; ours is.
const BUCKET_SECONDS: i64 = 30 * 60;

/// A worker pushes so often, with some jitter by its number, so that none runs in step with the hour.
const EVERY: Duration = Duration::from_secs(37);

const DAY: Duration = Duration::from_hours(24);

/// A push with 20 s left.
fn push(call: u64, clock: &Clock) -> Push {
    let token = DeviceToken::new(&token(call));
    let now = clock.unix_ms();
    Push {
        app: acme(Duration::ZERO),
        environment: Environment::Production,
        apns_id: ApnsId::derive(CallId::parse(&call_id(call)).expect("a call id"), &token),
        token,
        body: Bytes::from_static(b"{\"aps\":{}}"),
        deadline: Instant::now() + Duration::from_secs(20),
        deadline_at: Timestamp::from_unix_ms(now + 20_000),
        answer_by: Instant::now() + Duration::from_secs(21),
        trail: Trail::default(),
    }
}

async fn push_once(apns: &Apns, call: u64, clock: &Clock) {
    let response = apns.push(&push(call, clock)).await.expect("Apple answers");
    assert_eq!(response.status, 200, "call {call}");
}

async fn push_all_day(apns: Apns, worker: u64, clock: Clock) {
    // Started at different times.
    sleep(Duration::from_mins(11 * worker) + Duration::from_secs(17 * worker)).await;
    let until = Instant::now() + DAY;
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let call = worker * 1_000_000 + number;
        push_once(&apns, call, &clock).await;
        sleep(EVERY + Duration::from_secs(worker)).await;
    }
    apns.close().await;
}

async fn live(workers: u64) -> Simulator {
    let plan = Plan { connections: 2, connections_max: 4, ..Plan::quiet() };
    let (world, clock) = World::alone(plan);
    let running: Vec<_> = (0..workers)
        .map(|worker| tokio::spawn(push_all_day(world.apns(worker), worker, clock.clone())))
        .collect();
    for worker in running {
        worker.await.expect("it pushes to the end");
    }
    world.simulator.clone()
}

/// So many calls at once wait for a stream where each connection has two, and nobody calls afterwards for a while.
async fn ebb_and_flow() -> Vec<usize> {
    let two = ConnectFault { when: When::default(), action: ConnectAction::Limit { streams: 2 } };
    let plan = Plan::wide(2, 6);
    let (world, clock) = World::alone(plan);
    world.simulator.faults().add_connect(two);
    let slow = Duration::from_millis(400);
    world.simulator.faults().add(Fault::latency(slow, slow));
    let apns = world.apns(0);
    let mut open = Vec::new();
    sleep(Duration::from_secs(2)).await;
    open.push(world.simulator.connections_open());
    let calls: Vec<_> = (0..60)
        .map(|call| {
            let (apns, clock) = (apns.clone(), clock.clone());
            tokio::spawn(async move { push_once(&apns, call, &clock).await })
        })
        .collect();
    for call in calls {
        call.await.expect("it is accepted");
    }
    open.push(world.simulator.connections_open());
    sleep(Duration::from_mins(15)).await;
    open.push(world.simulator.connections_open());
    apns.close().await;
    open
}

#[test]
fn nothing_is_pushed_at_a_deadline_on_the_wall_though_time_seems_to_be_left() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    runtime.expect("a runtime").block_on(async {
        let (world, clock) = World::alone(Plan::quiet());
        let apns = world.apns(0);
        push_once(&apns, 1, &clock).await;
        // Suspended for a while: the wall's clock went on, the other stood still.
        let late = Push { deadline_at: Timestamp::from_unix_ms(clock.unix_ms()), ..push(2, &clock) };
        assert!(matches!(apns.push(&late).await, Err(PushError::NotSent(Some(_)))));
        assert_eq!(world.simulator.journal().records().len(), 1);
        apns.close().await;
    });
}

#[test]
fn connections_follow_the_load_and_go_when_it_is_over() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let open = runtime.expect("a runtime").block_on(ebb_and_flow());
    assert_eq!(open, [2, 6, 2], "before, under load, after");
}

#[test]
fn three_workers_show_apple_one_token_per_half_hour_and_change_none_within_20_minutes() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let simulator = runtime.expect("a runtime").block_on(live(3));
    let records = simulator.journal().records();
    assert!(records.len() > 6_000, "{} pushes in a day", records.len());

    // One token per bucket, whoever sends it: its claims are all that Apple has to tell it by, and it is signed the same.
    let mut tokens: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
    let mut of_connection: BTreeMap<u64, (i64, u64)> = BTreeMap::new();
    for record in &records {
        let claims = record.authorization.as_ref().expect("a provider token");
        let iat = i64::try_from(claims.iat).expect("in range");
        assert_eq!(iat % BUCKET_SECONDS, 0);
        tokens.entry(iat).or_default().insert(&claims.digest);
        let at = i64::try_from(record.at_ms).expect("in range") / 1_000;
        assert!(at - iat <= 50 * 60, "a token of {} s", at - iat);
        let (held, since) = of_connection.entry(record.connection).or_insert((iat, record.at_ms));
        if *held != iat {
            let kept = record.at_ms - *since;
            assert!(kept >= 20 * 60 * 1_000, "connection {}: changed after {kept} ms", record.connection);
            (*held, *since) = (iat, record.at_ms);
        }
    }
    // None lives for ever: they follow the name's addresses, and go one by one.
    let mut lives: BTreeMap<u64, (u64, u64)> = BTreeMap::new();
    for record in &records {
        let life = lives.entry(record.connection).or_insert((record.at_ms, record.at_ms));
        life.1 = record.at_ms;
    }
    let longest = lives.values().map(|(from, to)| Duration::from_millis(to - from)).max().expect("some");
    assert!(longest <= Duration::from_hours(5), "a connection was used for {longest:?}");
    assert!((30..100).contains(&lives.len()), "{} connections in a day of three workers", lives.len());
    assert!(tokens.len() >= 48, "{} half hours", tokens.len());
    assert!(tokens.values().all(|of_bucket| of_bucket.len() == 1), "one token each: {tokens:?}");
}
