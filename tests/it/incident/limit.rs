//! Stream limits and windows: what Apple allows, and how suddenly it changes.

use std::time::Duration;

use h2::Reason as Code;
use ringcast::simulator::faults::{Fault, Latency};
use ringcast::simulator::{ConnectAction, ConnectFault, DeviceState, Order, When};

use super::stage::{Details, Setting};

fn some_latency() -> Fault {
    Fault::latency(Duration::from_millis(10), Duration::from_millis(30))
}

/// "One stream until a request with a valid provider token was answered" (Apple), whether the settings say so or not.
#[tokio::test]
async fn one_stream_until_the_first_answer() {
    for says_so in [true, false] {
        let setting = Setting::new("one-first", 4).apple(move |options| options.one_stream_first = says_so);
        let mut stage = setting.open().await;
        let held_ms = 200;
        stage.apple.faults().add(Fault::latency(Duration::from_millis(held_ms), Duration::from_millis(300)));
        stage.call("aa", 120).await;
        let sums = stage.end().await;
        sums.expect_all_once(120);
        assert_eq!(sums.struck("stream limit"), 0, "the worker never goes beyond what it is allowed");
        assert!(sums.devices("").iter().all(|device| device["attempts"] == 1));
        let pushes = sums.pushes("");
        for connection in 1..=4 {
            let mut at_ms: Vec<u64> =
                pushes.iter().filter(|push| push.connection == connection).map(|push| push.at_ms).collect();
            at_ms.sort_unstable();
            if let [first, second, ..] = at_ms[..] {
                assert!(second >= first + held_ms, "connection {connection} had a second stream unanswered");
            }
        }
    }
}

/// Senders have seen the limit fall to one after each 400, until the next 200. The good calls beside the bad ones ring.
#[tokio::test]
async fn the_limit_falls_to_one_after_each_rejection() {
    let setting = Setting::new("one-after", 2).apple(|options| options.one_stream_after_rejection = true);
    let mut stage = setting.open().await;
    stage.warm(2).await;
    stage.apple.faults().add(some_latency());
    for number in 0..40 {
        let bad = format!("bad0{number:060x}");
        stage.apple.devices().set(&bad, DeviceState::Unknown);
        stage.call("aa", 4).await;
        stage.call_token(&bad, &Details::default()).await;
    }
    let sums = stage.end().await;
    sums.expect("aa", 160, "accepted");
    sums.expect("bad0", 40, "suspect_token");
    sums.expect_none_twice();
    assert_eq!(sums.events().len(), 40);
    assert!(sums.devices("aa").iter().all(|device| device["status"] == 200));
}

/// Streams beyond what the server has room for are reset with `REFUSED_STREAM`: they go again, and cost no attempt.
#[tokio::test]
async fn excess_is_refused() {
    let mut stage = Setting::new("refused", 2).worker("worker", "attempts_max", "1").open().await;
    stage.warm(2).await;
    stage.apple.faults().add(some_latency());
    let every_third = When { every: 3, count: Some(60), ..When::default() };
    stage.apple.faults().add(Fault::reset(Code::REFUSED_STREAM, false).when(every_third));
    stage.call("aa", 60).await;
    stage.apple.order(Order::Limit(2));
    stage.call("bb", 60).await;
    let sums = stage.end().await;
    sums.expect_all_once(128);
    assert_eq!(sums.struck("reset"), 60, "{:?}", sums.pushes("aa"));
}

/// TLS is through, and HTTP/2 begins only seconds later.
#[tokio::test]
async fn the_first_settings_are_slow() {
    let mut stage = Setting::new("slow-settings", 2).prepare().await;
    let after = Latency { min: Duration::from_millis(900), max: Duration::from_millis(1500) };
    let action = ConnectAction::SlowSettings { after };
    stage.apple.faults().add_connect(ConnectFault { when: When::default(), action });
    let address = stage.address;
    stage.start(address);
    stage.call("aa", 60).await;
    let sums = stage.end().await;
    sums.expect_all_once(60);
    assert_eq!(sums.struck("stream limit"), 0);
}

/// 65,535 bytes of window, given back late, and bodies near the most that Apple takes: a dozen fill it.
#[tokio::test]
async fn the_window_is_full_of_large_bodies() {
    let mut stage = Setting::new("window", 2).prepare().await;
    let after = Latency { min: Duration::from_millis(80), max: Duration::from_millis(160) };
    let action = ConnectAction::SlowWindow { after, stream_window: None };
    stage.apple.faults().add_connect(ConnectFault { when: When::default(), action });
    let address = stage.address;
    stage.start(address);
    let large = Details { payload_bytes: 4_900, ..Details::default() };
    for _ in 0..160 {
        stage.call_with("aa", &large).await;
    }
    let sums = stage.end().await;
    sums.expect_all_once(160);
    assert!(sums.pushes("").iter().all(|push| push.body.0.len() > 4_900), "whole bodies");
    assert!(sums.devices("").iter().all(|device| device["attempts"] == 1));
}
