//! Faults, as a client meets them.

use std::time::Duration;

use h2::Reason as Code;
use tokio::time::{Instant, timeout};

use super::client::{Client, START_S, TOKEN, World};
use crate::simulator::faults::Whom;
use crate::simulator::{ConnectAction, ConnectFault, Fault, Order, Script, When};

const SECOND: Duration = Duration::from_secs(1);

fn last_fault(world: &World) -> (Option<&'static str>, bool) {
    let records = world.simulator.journal().records();
    let record = records.last().unwrap();
    (record.fault, record.processed)
}

#[tokio::test(start_paused = true)]
async fn answers_come_late_by_the_clock() {
    let world = World::new();
    world.simulator.faults().add(Fault::latency(SECOND * 3, SECOND * 3).token(TOKEN));
    let mut client = world.connect().await;
    let start = Instant::now();
    let (slow, fast) = (client.request(TOKEN), client.request("aabb"));
    let (slow, fast) = (client.start(slow, "{}"), client.start(fast, "{}"));
    assert_eq!(fast.await.unwrap().status, 200);
    assert!(start.elapsed() < Duration::from_millis(10), "{:?}", start.elapsed());
    assert_eq!(slow.await.unwrap().status, 200);
    assert!((SECOND * 3..SECOND * 3 + Duration::from_millis(10)).contains(&start.elapsed()));
    assert_eq!(last_fault(&world), (None, true));
}

#[tokio::test(start_paused = true)]
async fn a_reset_says_whether_it_was_processed() {
    let world = World::new();
    let faults = world.simulator.faults();
    faults.add(Fault::reset(Code::REFUSED_STREAM, true).token("aa01"));
    faults.add(Fault::reset(Code::INTERNAL_ERROR, true).token("aa02"));
    faults.add(Fault::reset(Code::CANCEL, false).token("aa03"));
    let mut client = world.connect().await;
    assert_eq!(client.outcome("aa01").await, "remote reset REFUSED_STREAM");
    assert_eq!(last_fault(&world), (Some("reset"), false), "refused is never processed");
    assert_eq!(client.outcome("aa02").await, "remote reset INTERNAL_ERROR");
    assert_eq!(last_fault(&world), (Some("reset"), true));
    assert_eq!(client.outcome("aa03").await, "remote reset CANCEL");
    assert_eq!(last_fault(&world), (Some("reset"), false));
    assert_eq!(client.outcome(TOKEN).await, "200");
}

#[tokio::test(start_paused = true)]
async fn silence_is_for_one_request_and_pings_are_answered() {
    let world = World::new();
    world.simulator.faults().add(Fault::silence(true).token("aa01"));
    let mut client = world.connect().await;
    let request = client.request("aa01");
    let lost = client.start(request, "{}");
    assert!(timeout(SECOND * 600, lost).await.is_err());
    assert_eq!(last_fault(&world), (Some("silence"), true));
    assert!(client.ping().await);
    assert_eq!(client.outcome(TOKEN).await, "200");
    world.simulator.heal();
    assert_eq!(client.outcome("aa01").await, "200");
}

#[tokio::test(start_paused = true)]
async fn a_frozen_connection_answers_nothing_until_it_is_healed() {
    let world = World::new();
    world.simulator.faults().add(Fault::freeze(true).token("aa01"));
    let mut client = world.connect().await;
    let (frozen, behind) = (client.request("aa01"), client.request(TOKEN));
    let frozen = tokio::spawn(client.start(frozen, "{}"));
    world.simulator.journal().wait_for(1).await;
    assert_eq!(last_fault(&world), (Some("freeze"), true));
    let behind = tokio::spawn(client.start(behind, "{}"));
    assert!(!client.ping().await);
    assert!(!frozen.is_finished() && !behind.is_finished());
    world.simulator.heal();
    assert_eq!(frozen.await.unwrap().unwrap().status, 200, "it rang, and now it is told");
    assert_eq!(behind.await.unwrap().unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_connection_that_is_left_ends() {
    let world = World::new();
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    world.simulator.order(Order::Freeze);
    let served = client.served.take().unwrap();
    client.ended.abort();
    timeout(SECOND, served).await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_closed_connection_loses_everything() {
    let world = World::new();
    world.simulator.faults().add(Fault::close(true).token("aa01"));
    let mut client = world.connect().await;
    assert_eq!(client.outcome("aa01").await, "local io");
    assert_eq!(last_fault(&world), (Some("close"), true));
    client.served.take().unwrap().await.unwrap();
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    world.simulator.order(Order::Close);
    client.served.take().unwrap().await.unwrap();
    assert!(client.push(TOKEN).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn connections_can_go_wrong_from_the_start() {
    let world = World::new();
    let strike = |action| {
        let when = When { count: Some(1), ..When::default() };
        world.simulator.faults().add_connect(ConnectFault { when, action });
    };
    strike(ConnectAction::Refuse);
    let mut refused = world.connect().await;
    assert!(refused.push(TOKEN).await.is_err());

    strike(ConnectAction::Silence);
    let mut silent = world.connect().await;
    assert!(timeout(SECOND * 60, silent.push(TOKEN)).await.is_err());
    world.simulator.heal();
    silent.served.take().unwrap().await.unwrap();

    strike(ConnectAction::GoAway { reason: "BadCertificateEnvironment".into() });
    let mut unwelcome = world.connect().await;
    let error = unwelcome.push(TOKEN).await.unwrap_err();
    assert!(error.is_go_away() || error.is_io(), "{error}");
    unwelcome.served.take().unwrap().await.unwrap();

    strike(ConnectAction::Deaf);
    let mut deaf = world.connect().await;
    assert!(!deaf.ping().await);
    assert_eq!(deaf.outcome(TOKEN).await, "200");

    let mut well = world.connect().await;
    assert!(well.ping().await);
    assert_eq!(world.simulator.connections_total(), 5);
    assert_eq!(world.simulator.journal().records().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_history() {
    async fn history(seed: u64) -> Vec<crate::simulator::Record> {
        let world = World::with(|options| options.seed = seed);
        let half = |fault: Fault| fault.when(When { probability: 0.4, ..When::default() });
        let faults = world.simulator.faults();
        faults.add(Fault::latency(Duration::ZERO, SECOND));
        faults.add(half(Fault::answer(500, "InternalServerError")));
        faults.add(half(Fault::reset(Code::REFUSED_STREAM, false)));
        let mut clients = [world.connect().await, world.connect().await, world.connect().await];
        let mut answers = tokio::task::JoinSet::new();
        for round in 0..60_u64 {
            for client in &mut clients {
                let mut request = client.request(&format!("aa{round:04}"));
                request.headers_mut().remove("apns-id");
                answers.spawn(client.start(request, "{}"));
            }
            tokio::time::sleep(Duration::from_millis(37 * (round % 3))).await;
        }
        while answers.join_next().await.is_some() {}
        world.simulator.journal().records()
    }
    let (first, again, other) = (history(5).await, history(5).await, history(6).await);
    assert_eq!(first.len(), 180);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[tokio::test(start_paused = true)]
async fn a_script_is_applied() {
    let world = World::new();
    let text = include_str!("../../../config/simulator.example.toml");
    let key = world.verifying_key();
    let script = Script::parse_with(text, |_| Ok(key.clone())).unwrap();
    world.simulator.apply(script);
    let mut client = world.connect().await;
    assert_eq!(client.outcome("aa02").await, r#"410 {"reason":"Unregistered","timestamp":1790812800000}"#);
    assert_eq!(client.outcome("bd02").await, "502 <html>Bad Gateway</html>");
    assert_eq!(client.outcome("bc01").await, r#"500 {"reason":"InternalServerError"}"#);
    assert_eq!(client.outcome("bc01").await, "200", "the first of each token alone");
    assert_eq!(client.outcome("bd03").await, r#"410 {"reason":"Unregistered","timestamp":4102444800000}"#);
    assert_eq!(client.outcome("bd04").await, r#"403 {"reason":"NobodyKnowsThisOne"}"#);
    assert_eq!(client.outcome("bd05").await, r#"503 {"reason":"Service Unavailable"}"#);
    assert_eq!(client.outcome("bd06").await, "500", "an error without a body");
    assert_eq!(client.outcome("be01").await, "remote reset REFUSED_STREAM");
    assert_eq!(client.outcome("bf02").await, "local io");
    assert_eq!(last_fault(&world), (Some("close"), true));
}

#[tokio::test(start_paused = true)]
async fn a_fault_of_one_connection_leaves_others_alone() {
    let world = World::new();
    let fault = Fault { whom: Whom::Connection(1), ..Fault::answer(500, "InternalServerError") };
    world.simulator.faults().add(fault);
    let (mut first, mut second) = (world.connect().await, world.connect().await);
    assert_eq!(second.outcome(TOKEN).await, "200");
    assert_eq!(first.outcome(TOKEN).await, r#"500 {"reason":"InternalServerError"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_dropped_future_is_a_dropped_connection() {
    let world = World::new();
    let (near, far) = tokio::io::duplex(1024);
    let simulator = world.simulator.clone();
    let served = tokio::spawn(async move { simulator.serve(far).await });
    let mut client = Client::handshake(near, world.provider_token(START_S)).await.unwrap();
    assert_eq!(client.outcome(TOKEN).await, "200");
    served.abort();
    assert!(served.await.unwrap_err().is_cancelled());
    assert!(client.push(TOKEN).await.is_err());
    assert_eq!(world.simulator.connections_open(), 0);
}
