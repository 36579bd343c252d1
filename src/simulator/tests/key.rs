//! Keys, as a connection meets them.

use std::time::Duration;

use super::client::{START_S, TOKEN, World};
use crate::simulator::{Credential, Environment, Reason};

const UNRELATED: &str = r#"403 {"reason":"UnrelatedKeyIdInToken"}"#;
const INVALID: &str = r#"403 {"reason":"InvalidProviderToken"}"#;

#[tokio::test(start_paused = true)]
async fn a_key_of_the_other_environment_is_refused_in_either_spelling() {
    for (reason, body) in [
        (Reason::BadEnvironmentKeyIdInToken, r#"403 {"reason":"BadEnvironmentKeyIdInToken"}"#),
        (Reason::BadEnvironmentKeyInToken, r#"403 {"reason":"BadEnvironmentKeyInToken"}"#),
    ] {
        let world = World::with(|options| options.other_environment_reason = reason);
        let key = Credential::new("TEAM123456", "SANDBOX123", world.verifying_key());
        world.simulator.trust(Credential { environment: Some(Environment::Sandbox), ..key });
        let mut client = world.connect().await;
        client.authorization = world.authorization("TEAM123456", "SANDBOX123", START_S);
        assert_eq!(client.outcome(TOKEN).await, body);
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_stays_with_the_key_and_team_of_its_first_push() {
    let world = World::new();
    world.simulator.trust(Credential::new("TEAM123456", "KEY7654321", world.verifying_key()));
    world.simulator.trust(Credential::new("TEAM654321", "KEYOTHER12", world.verifying_key()));
    let mut client = world.connect().await;
    let first = client.authorization.clone();
    assert_eq!(client.outcome(TOKEN).await, "200");
    client.authorization = world.authorization("TEAM123456", "KEY7654321", START_S);
    assert_eq!(client.outcome(TOKEN).await, UNRELATED);
    client.authorization = world.authorization("TEAM654321", "KEYOTHER12", START_S);
    assert_eq!(client.outcome(TOKEN).await, INVALID, "another team");
    client.authorization = first;
    assert_eq!(client.outcome(TOKEN).await, "200");
    let mut other = world.connect().await;
    other.authorization = world.authorization("TEAM654321", "KEYOTHER12", START_S);
    assert_eq!(other.outcome(TOKEN).await, "200");
}

#[tokio::test(start_paused = true)]
async fn a_key_is_rotated_under_live_connections() {
    let world = World::new();
    let mut old = world.connect().await;
    assert_eq!(old.outcome(TOKEN).await, "200");
    let mut new = world.connect().await;
    new.authorization = world.authorization("TEAM123456", "KEY7654321", START_S);
    assert_eq!(new.outcome(TOKEN).await, INVALID, "not known yet");
    world.simulator.trust(Credential::new("TEAM123456", "KEY7654321", world.verifying_key()));
    assert_eq!(new.outcome(TOKEN).await, "200");
    assert_eq!(old.outcome(TOKEN).await, "200", "both at once");
    assert!(world.simulator.revoke("KEY1234567"));
    assert_eq!(old.outcome(TOKEN).await, INVALID);
    assert_eq!(new.outcome(TOKEN).await, "200");
}

#[tokio::test(start_paused = true)]
async fn a_topic_specific_key_pushes_to_its_topics() {
    let world = World::new();
    let key = Credential::new("TEAM123456", "TOPICKEY12", world.verifying_key());
    world.simulator.trust(Credential { bundle_ids: Some(["com.acme.chat".to_owned()].into()), ..key });
    let mut client = world.connect().await;
    client.authorization = world.authorization("TEAM123456", "TOPICKEY12", START_S);
    assert_eq!(client.outcome(TOKEN).await, r#"400 {"reason":"TopicDisallowed"}"#);
    let mut request = client.request(TOKEN);
    request.headers_mut().insert("apns-topic", "com.acme.chat.voip".parse().unwrap());
    assert_eq!(client.start(request, "{}").await.unwrap().status, 200);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_expires_wedges_its_connection() {
    let world = World::new();
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    tokio::time::sleep(Duration::from_secs(3601)).await;
    let expired = r#"403 {"reason":"ExpiredProviderToken"}"#;
    assert_eq!(client.outcome(TOKEN).await, expired);
    let fresh = world.authorization("TEAM123456", "KEY1234567", START_S + 3601);
    client.authorization.clone_from(&fresh);
    assert_eq!(client.outcome(TOKEN).await, expired, "wedged");
    let mut other = world.connect().await;
    other.authorization = fresh;
    assert_eq!(other.outcome(TOKEN).await, "200");
}
