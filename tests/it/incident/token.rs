//! What Apple says of device tokens.

use ringcast::simulator::DeviceState;

use super::stage::{Details, Setting};
use crate::plan::now;

/// A 410 says since when the token is dead. One that was registered after that is alive again, whatever Apple says.
#[tokio::test]
async fn a_410_is_older_or_newer_than_the_registration() {
    let mut stage = Setting::new("410", 2).open().await;
    let since = now() - time::Duration::hours(1);
    let since_ms = u64::try_from(since.unix_timestamp_nanos() / 1_000_000).expect("after 1970");
    let registered = |hours: i64| Details {
        registered_at: Some(since + time::Duration::hours(hours)),
        ..Details::default()
    };
    let dead = DeviceState::Unregistered { since_ms };
    for number in 0..10 {
        for (prefix, details) in
            [("dead01", registered(-24)), ("dead02", registered(24)), ("dead03", Details::default())]
        {
            let token = format!("{prefix}{number:058x}");
            stage.apple.devices().set(&token, dead.clone());
            stage.call_token(&token, &details).await;
        }
        stage.call("aa", 1).await;
    }
    let sums = stage.end().await;
    sums.expect("aa", 10, "accepted");
    sums.expect("dead", 30, "invalid_token");
    for (prefix, action) in [("dead01", "drop_token"), ("dead02", "none"), ("dead03", "drop_token")] {
        let devices = sums.devices(prefix);
        assert!(devices.iter().all(|device| device["action"] == action), "{devices:?}");
        assert!(devices.iter().all(|device| device["reason"] == "Unregistered"), "{devices:?}");
    }
    assert_eq!(sums.events().len(), 20, "none for those that were registered later");
    assert!(sums.events().iter().all(|event| event["confidence"] == "dead"));
    assert_eq!(sums.pushes("dead").len(), 30, "nobody asks twice");
}

/// Too many pushes to one phone: final for its call, and nobody else's affair.
#[tokio::test]
async fn too_many_requests_for_one_token() {
    let mut stage = Setting::new("429", 2).open().await;
    let throttled = format!("4290{:060x}", 1);
    stage.apple.devices().set(&throttled, DeviceState::Throttled);
    stage.call("aa", 20).await;
    stage.call_token(&throttled, &Details::default()).await;
    stage.call("bb", 20).await;
    let sums = stage.end().await;
    sums.expect("4290", 1, "throttled");
    assert_eq!(sums.devices("4290")[0]["attempts"], 1);
    assert_eq!(sums.pushes("4290").len(), 1, "asking again makes it worse");
    sums.expect("aa", 20, "accepted");
    sums.expect("bb", 20, "accepted");
    assert!(sums.events().is_empty());
}
