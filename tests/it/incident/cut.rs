//! Connections that die without a word, and addresses that are gone.

use std::time::Duration;

use ringcast::simulator::faults::Fault;
use ringcast::simulator::{Order, Target};

use super::relay::Relay;
use super::stage::{Details, Setting};

const PACE: Duration = Duration::from_millis(5);

/// TCP lives, the peer's kernel takes what is written, and nobody answers: not the requests, not PING.
#[tokio::test]
async fn one_of_four_connections_freezes() {
    let mut stage = Setting::new("frozen", 4).open().await;
    stage.warm(4).await;
    stage.apple.faults().add(Fault::latency(Duration::from_millis(20), Duration::from_millis(60)));
    stage.call_paced("aa", 40, PACE).await;
    stage.apple.order_to(Target::Connection(2), Order::Freeze);
    stage.call_paced("bb", 80, PACE).await;
    stage.until("another connection takes its place", |stage| stage.apple.connections_total() >= 5).await;
    stage.settled().await;
    stage.call("cc", 40).await;
    let sums = stage.end_losing(&[2]).await;
    sums.expect("", 176, "accepted");
    let after = sums.pushes("cc");
    assert_eq!(after.len(), 40, "once it is out of use, nobody's push takes it");
    assert!(after.iter().all(|push| push.connection != 2));
}

/// A middle box forgot the connections: the far side ended, the near side sees nothing of it.
#[tokio::test]
async fn connections_are_half_open_after_a_cut() {
    let mut stage = Setting::new("half-open", 2).prepare().await;
    let relay = Relay::start(stage.address).await;
    stage.start(relay.address());
    stage.warm(2).await;
    stage.apple.faults().add(Fault::latency(Duration::from_millis(20), Duration::from_millis(60)));
    stage.call_paced("aa", 20, PACE).await;
    relay.cut();
    stage.call_paced("bb", 40, PACE).await;
    stage.until("a new connection is open", |stage| stage.apple.connections_total() >= 4).await;
    stage.settled().await;
    stage.call("cc", 40).await;
    let sums = stage.end_losing(&[1, 2]).await;
    sums.expect("3a", 8, "accepted");
    sums.expect("cc", 40, "accepted");
    // Written to a dead connection, and again to the other dead one: that is `unknown`, and nothing worse.
    for device in sums.devices("aa").into_iter().chain(sums.devices("bb")) {
        assert!(["accepted", "unknown"].contains(&device["result"].as_str().unwrap_or_default()), "{device}");
    }
}

/// Every address refuses connections; calls wait, short ones in vain, and it mends without a restart.
#[tokio::test]
async fn all_addresses_are_down_and_come_back() {
    let mut stage = Setting::new("all-down", 2).open().await;
    stage.warm(2).await;
    stage.crash().await;
    stage.until("the worker has seen it", |stage| stage.log().contains("no connection to APNs")).await;
    let short = Details { ring_time: Some(time::Duration::seconds(2)), ..Details::default() };
    for _ in 0..10 {
        stage.call_with("5b", &short).await;
    }
    stage.settled().await;
    stage.call("aa", 60).await;
    assert_eq!(stage.outcomes().len(), 18, "those with time left wait");
    stage.return_again().await;
    let sums = stage.end().await;
    sums.expect("5b", 10, "expired");
    assert!(sums.devices("5b").iter().all(|device| device["stage"] == "slot" && device["attempts"] == 0));
    sums.expect("aa", 60, "accepted");
    sums.expect_none_twice();
}

/// The process at the other end dies while requests are on their way, and another one takes its place. What goes again
/// must not land on a connection that dies in the same moment: that would use up its one repetition.
#[tokio::test]
async fn all_connections_drop_in_the_middle() {
    let mut stage = Setting::new("crash", 2).open().await;
    stage.warm(2).await;
    // Which connection's end is seen first is chance.
    for _ in 0..4 {
        let before = stage.apple.journal().count();
        stage.apple.faults().add(Fault::latency(Duration::from_millis(200), Duration::from_millis(300)));
        stage.call("aa", 40).await;
        stage.seen(before, 40).await;
        stage.crash().await;
        stage.apple.faults().clear();
        stage.return_again().await;
        stage.call("bb", 20).await;
        stage.settled().await;
    }
    let lost: Vec<u64> = (1..=stage.apple.connections_total()).collect();
    let sums = stage.end_losing(&lost).await;
    sums.expect("", 8 + 4 * 60, "accepted");
    assert!(
        sums.devices("aa").iter().all(|device| device["attempts"].as_u64() >= Some(2)),
        "its first was lost"
    );
}
