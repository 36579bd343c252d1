//! A day of three workers that know nothing of each other: which provider tokens Apple sees, and where.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use ringcast::apns::Apns;
use ringcast::domain::app::Environment;
use ringcast::domain::id::{ApnsId, CallId, DeviceToken};
use ringcast::domain::timestamp::Timestamp;
use ringcast::simulator::Simulator;
use ringcast::worker::gateway::{Gateway, Push, Trail};
use tokio::time::{Instant, sleep};

use crate::plan::{Plan, call_id, token};
use crate::world::{World, acme};

/// Apple's bucket is not known; ours is.
const BUCKET_SECONDS: i64 = 30 * 60;

/// A worker pushes so often, with some jitter by its number, so that none runs in step with the hour.
const EVERY: Duration = Duration::from_secs(37);

const DAY: Duration = Duration::from_hours(24);

async fn push_all_day(apns: Apns, worker: u64, clock: ringcast::clock::Clock) {
    // Started at different times.
    sleep(Duration::from_mins(11 * worker) + Duration::from_secs(17 * worker)).await;
    let until = Instant::now() + DAY;
    let mut number = 0;
    while Instant::now() < until {
        number += 1;
        let call = worker * 1_000_000 + number;
        let token = DeviceToken::new(&token(call));
        let now = clock.unix_ms();
        let push = Push {
            app: acme(Duration::ZERO),
            environment: Environment::Production,
            apns_id: ApnsId::derive(CallId::parse(&call_id(call)).expect("a call id"), &token),
            token,
            body: Bytes::from_static(b"{\"aps\":{}}"),
            deadline: Instant::now() + Duration::from_secs(20),
            deadline_at: Timestamp::from_unix_ms(now + 20_000),
            answer_by: Instant::now() + Duration::from_secs(21),
            trail: Trail::default(),
        };
        let response = apns.push(&push).await.expect("Apple answers");
        assert_eq!(response.status, 200, "call {call}");
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
    assert!(tokens.len() >= 48, "{} half hours", tokens.len());
    assert!(tokens.values().all(|of_bucket| of_bucket.len() == 1), "one token each: {tokens:?}");
}
