//! Refused provider tokens: a connection that stays wedged, and a key or a team that is wrong.

use std::time::Duration;

use ringcast::simulator::faults::Fault;

use super::stage::{Setting, Stage};
use super::sums::Sums;

/// One of two connections answers everything so from now on; the other one does not.
async fn wedge(name: &'static str, status: u16, reason: &str) -> Sums {
    let mut stage = Setting::new(name, 2).open().await;
    stage.warm(2).await;
    stage.apple.faults().add(Fault::latency(Duration::from_millis(20), Duration::from_millis(60)));
    stage.apple.faults().add(Fault::answer(status, reason).connection(1));
    stage.call("aa", 60).await;
    stage.until("another connection takes its place", |stage| stage.apple.connections_total() >= 3).await;
    stage.settled().await;
    stage.call("bb", 60).await;
    stage.end().await
}

/// A connection on which a token expired answers everything so, whatever token comes next.
#[tokio::test]
async fn a_connection_stays_wedged_after_an_expired_provider_token() {
    let sums = wedge("wedged", 403, "ExpiredProviderToken").await;
    sums.expect_all_once(128);
    assert!(sums.pushes("bb").iter().all(|push| push.connection != 1), "nobody is sent there again");
}

/// So does one on which tokens were changed too often.
#[tokio::test]
async fn provider_token_updates_are_throttled() {
    let sums = wedge("updates", 429, "TooManyProviderTokenUpdates").await;
    sums.expect_all_once(128);
    assert!(sums.pushes("bb").iter().all(|push| push.connection != 1), "nobody is sent there again");
}

/// Refused everywhere, until somebody mends it on Apple's side: no token is blamed, and no restart is needed.
async fn refuse_all(name: &'static str, status: u16, reason: &str) {
    let mut stage = Setting::new(name, 2).open().await;
    stage.warm(2).await;
    let fault = stage.apple.faults().add(Fault::answer(status, reason));
    stage.call_paced("bad0", 40, Duration::from_millis(5)).await;
    stage.settled().await;
    let connections = stage.apple.connections_total();
    assert!(connections <= 6, "{connections} connections were opened to be refused; {}", stage.log());
    stage.apple.faults().remove(fault);
    await_accepted(&mut stage).await;
    stage.call("aa", 40).await;
    let sums = stage.end().await;
    sums.expect("aa", 40, "accepted");
    expect_refused(&sums, "bad0", 40, reason);
    sums.expect_none_twice();
}

/// Calls until one is accepted; what comes before may still be refused.
async fn await_accepted(stage: &mut Stage) {
    for _ in 0..300 {
        stage.call("7e", 1).await;
        stage.settled().await;
        let device = stage.newest_device().expect("it is settled");
        if device["result"] == "accepted" {
            return;
        }
        assert_eq!(
            (&device["result"], &device["action"]),
            (&"rejected".into(), &"fix_config".into()),
            "{device}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it was mended, and no call is accepted; {}", stage.log());
}

/// By Apple, or by a worker that knows what Apple would say: then the error says so.
fn expect_refused(sums: &Sums, prefix: &str, count: usize, reason: &str) {
    sums.expect(prefix, count, "rejected");
    for device in sums.devices(prefix) {
        assert_eq!(device["action"], "fix_config", "{device}");
        let told = device["reason"] == reason
            || device["error"].as_str().is_some_and(|error| error.contains(reason));
        assert!(told, "it says why: {device}");
    }
    assert!(sums.events().is_empty(), "a mistake in the settings turns no token bad: {:?}", sums.events());
}

/// The page of Apple's that lists reasons spells it so.
#[tokio::test]
async fn the_key_is_for_the_other_environment() {
    refuse_all("other-key", 403, "BadEnvironmentKeyInToken").await;
}

/// And so do its servers, by the accounts of others.
#[tokio::test]
async fn the_key_is_for_the_other_environment_in_the_other_spelling() {
    refuse_all("other-key-id", 403, "BadEnvironmentKeyIdInToken").await;
}

/// A key under another team's id: Apple does not know it.
#[tokio::test]
async fn the_team_is_wrong() {
    let setting = Setting::new("team", 2).worker("apps.acme.auth", "team_id", "\"TEAM999999\"");
    let mut stage = setting.open().await;
    stage.call("bad0", 40).await;
    let sums = stage.end().await;
    expect_refused(&sums, "bad0", 40, "InvalidProviderToken");
}

/// Calls that wait for a connection when that becomes clear are not sent, one by one, to be refused as well.
#[tokio::test]
async fn every_provider_token_is_expired() {
    refuse_all("expired", 403, "ExpiredProviderToken").await;
}
