//! Windows that are given back late, and SETTINGS that come late.

use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use super::client::{Answer, Client, TOKEN, World};
use crate::simulator::faults::Latency;
use crate::simulator::{ConnectAction, ConnectFault, Order, When};

const SECOND: Duration = Duration::from_secs(1);

fn after(seconds: u32) -> Latency {
    Latency { min: SECOND * seconds, max: SECOND * seconds }
}

fn strike(world: &World, action: ConnectAction) {
    let when = When { count: Some(1), ..When::default() };
    world.simulator.faults().add_connect(ConnectFault { when, action });
}

/// The largest payload there may be.
fn payload() -> String {
    format!(r#"{{"a":"{}"}}"#, "x".repeat(5120 - 8))
}

fn start(client: &mut Client, count: usize) -> Vec<JoinHandle<Result<Answer, h2::Error>>> {
    let requests: Vec<_> = (0..count).map(|_| client.request(TOKEN)).collect();
    requests.into_iter().map(|request| tokio::spawn(client.start(request, &payload()))).collect()
}

#[tokio::test(start_paused = true)]
async fn a_connection_window_that_is_given_back_late_blocks_the_thirteenth_body() {
    let world = World::new();
    strike(&world, ConnectAction::SlowWindow { after: after(10), stream_window: None });
    let mut client = world.connect().await;
    let started = start(&mut client, 14);
    sleep(SECOND * 9).await;
    assert_eq!(world.simulator.journal().count(), 12, "12 * 5120 bytes are below 65,535");
    assert!(client.ping().await, "PINGs are no bodies");
    sleep(SECOND * 2).await;
    assert_eq!(world.simulator.journal().count(), 14);
    for answer in started {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_window_that_is_given_back_late_delays_each_part() {
    let world = World::new();
    strike(&world, ConnectAction::SlowWindow { after: after(1), stream_window: Some(1280) });
    let (mut slow, mut usual) = (world.connect().await, world.connect().await);
    assert!(slow.ping().await && usual.ping().await, "the window is known");
    let begun = Instant::now();
    assert_eq!(start(&mut usual, 1).remove(0).await.unwrap().unwrap().status, 200);
    assert!(begun.elapsed() < SECOND);
    assert_eq!(start(&mut slow, 1).remove(0).await.unwrap().unwrap().status, 200);
    assert!((SECOND * 3..SECOND * 5).contains(&begun.elapsed()), "{:?}", begun.elapsed());
}

#[tokio::test(start_paused = true)]
async fn windows_can_become_slow_and_be_healed() {
    let world = World::new();
    let mut client = world.connect().await;
    for answer in start(&mut client, 14) {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
    world.simulator.order(Order::SlowWindow(after(600)));
    tokio::task::yield_now().await;
    let begun = world.simulator.journal().count();
    let started = start(&mut client, 30);
    sleep(SECOND).await;
    let stuck = world.simulator.journal().count() - begun;
    assert!((1..=13).contains(&stuck), "{stuck}");
    world.simulator.heal();
    sleep(SECOND).await;
    assert_eq!(world.simulator.journal().count() - begun, stuck, "what is on its way stays late");
    for answer in started {
        assert_eq!(answer.await.unwrap().unwrap().status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_settings_can_be_held_back() {
    let world = World::new();
    strike(&world, ConnectAction::SlowSettings { after: after(7) });
    let mut client = world.connect().await;
    let begun = Instant::now();
    assert!(!client.ping().await);
    assert_eq!(client.outcome(TOKEN).await, "200");
    assert!((SECOND * 7..SECOND * 8).contains(&begun.elapsed()), "{:?}", begun.elapsed());

    strike(&world, ConnectAction::SlowSettings { after: after(7) });
    let mut client = world.connect().await;
    let begun = Instant::now();
    tokio::task::yield_now().await;
    world.simulator.heal();
    assert_eq!(client.outcome(TOKEN).await, "200");
    assert!(begun.elapsed() < SECOND, "healed");
}
