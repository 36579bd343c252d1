//! GOAWAY: what lies above its last id goes again elsewhere, what lies below is answered, or goes again as ambiguous.

use std::time::Duration;

use ringcast::simulator::faults::{Ending, Fault};
use ringcast::simulator::{GoAway, LastStream, Order, Target};

use super::stage::{Setting, Stage};

/// Two connections with some thirty requests in flight each, of which one then hears `go_away`.
async fn send_away(setting: Setting, go_away: GoAway) -> Stage {
    let mut stage = setting.open().await;
    stage.warm(2).await;
    let before = stage.apple.journal().count();
    let slow = Fault::latency(Duration::from_millis(300), Duration::from_millis(600));
    let slow = stage.apple.faults().add(slow);
    stage.call("aa", 60).await;
    stage.seen(before, 60).await;
    stage.apple.order_to(Target::Connection(1), Order::GoAway(go_away));
    stage.apple.faults().remove(slow);
    stage.call("bb", 60).await;
    stage.until("another connection takes its place", |stage| stage.apple.connections_total() >= 3).await;
    stage
}

#[tokio::test]
async fn goaway_in_the_middle_leaves_some_out() {
    let last_stream = LastStream::LeaveOut(7);
    let reason = Some("Shutdown".to_owned());
    // What was left out surely was not processed, and costs no attempt.
    let setting = Setting::new("goaway", 2).worker("worker", "attempts_max", "1");
    let stage = send_away(setting, GoAway { last_stream, reason, ..GoAway::default() }).await;
    let sums = stage.end().await;
    sums.expect_all_once(128);
    assert_eq!(sums.struck("goaway"), 7, "so many went again");
    let again = sums.devices("aa").iter().filter(|device| device["attempts"] == 2).count();
    assert_eq!(again, 7, "and no other");
}

#[tokio::test]
async fn goaway_comes_twice() {
    let go_away = GoAway { last_stream: LastStream::LeaveOut(5), twice: true, ..GoAway::default() };
    let setting = Setting::new("goaway-twice", 2).worker("worker", "attempts_max", "1");
    let sums = send_away(setting, go_away).await.end().await;
    sums.expect_all_once(128);
    assert_eq!(sums.struck("goaway"), 5);
}

#[tokio::test]
async fn goaway_is_followed_by_silence() {
    let go_away = GoAway { last_stream: LastStream::LeaveOut(5), then: Ending::Silence, ..GoAway::default() };
    let mut stage = send_away(Setting::new("goaway-silence", 2), go_away).await;
    let sums = stage.end_losing(&[1]).await;
    sums.expect("", 128, "accepted");
    assert_eq!(sums.struck("goaway"), 5);
    let twice = sums.pushes("aa").iter().filter(|push| push.processed).count() - 60;
    assert!(twice > 0, "what it had taken and never answered went again, once");
}

/// 503 `Shutdown` to some, GOAWAY to all, and no new connections until it is back.
#[tokio::test]
async fn apns_shuts_down() {
    let mut stage = Setting::new("shutdown", 2).open().await;
    stage.warm(2).await;
    let before = stage.apple.journal().count();
    stage.apple.faults().add(Fault::latency(Duration::from_millis(50), Duration::from_millis(150)));
    stage.apple.faults().add(Fault::answer(503, "Shutdown").times(10));
    stage.call("aa", 60).await;
    stage.seen(before, 60).await;
    stage.shut_down().await;
    stage.call("bb", 40).await;
    stage.return_again().await;
    let sums = stage.end().await;
    sums.expect_all_once(108);
    let refused = sums.pushes("aa").iter().filter(|push| push.status == Some(503)).count();
    assert_eq!(refused, 10);
}
