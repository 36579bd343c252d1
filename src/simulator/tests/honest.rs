//! Honest answers.

use std::time::Duration;

use super::client::{ID, START_S, TOKEN, World};
use crate::simulator::{DeviceState, Environment};

#[tokio::test(start_paused = true)]
async fn a_right_push_is_accepted_and_noted() {
    let world = World::new();
    let mut client = world.connect().await;
    let answer = client.push(&TOKEN.to_uppercase()).await.unwrap();
    assert_eq!(answer.status, 200);
    assert!(answer.body.is_empty());
    assert_eq!(answer.headers["apns-id"], ID);
    assert!(!answer.headers.contains_key("apns-unique-id"));

    let records = world.simulator.journal().records();
    let [record] = &records[..] else { panic!("{records:?}") };
    assert_eq!((record.at_ms, record.sequence, record.connection, record.stream), (START_S * 1000, 1, 1, 1));
    assert_eq!((&*record.token, &*record.apns_id), (TOKEN, ID));
    assert_eq!(record.topic.as_deref(), Some("com.acme.voice.voip"));
    assert_eq!(record.expiration.as_deref(), Some("0"));
    assert_eq!(record.priority.as_deref(), Some("10"));
    assert_eq!(record.push_type.as_deref(), Some("voip"));
    assert_eq!(record.body.json(), Some(serde_json::json!({"aps": {}})));
    let claims = record.authorization.as_ref().unwrap();
    assert_eq!((&*claims.kid, &*claims.iss, claims.iat), ("KEY1234567", "TEAM123456", START_S));
    assert_eq!((record.status, &record.reason, record.fault), (Some(200), &None, None));
    assert!(record.processed);
    let line = serde_json::to_string(record).unwrap();
    assert!(!line.contains(&client.authorization[7..]), "never the provider token itself");
}

#[tokio::test(start_paused = true)]
async fn a_dead_token_is_410_with_its_timestamp() {
    let world = World::new();
    world.simulator.devices().set("aa01", DeviceState::Unregistered { since_ms: 1_700_000_000_123 });
    world.simulator.devices().set("aa02", DeviceState::Expired { since_ms: 5 });
    world.simulator.devices().set("aa03", DeviceState::OtherEnvironment);
    let mut client = world.connect().await;
    let unregistered = r#"410 {"reason":"Unregistered","timestamp":1700000000123}"#;
    assert_eq!(client.outcome("aa01").await, unregistered);
    assert_eq!(client.outcome("aa02").await, r#"410 {"reason":"ExpiredToken","timestamp":5}"#);
    assert_eq!(client.outcome("aa03").await, r#"400 {"reason":"BadDeviceToken"}"#);
    assert_eq!(client.outcome("aa04").await, "200");
    let journal = world.simulator.journal();
    assert_eq!((journal.count(), journal.count_processed()), (4, 1));
    assert_eq!(journal.records()[0].reason.as_deref(), Some("Unregistered"));
}

#[tokio::test(start_paused = true)]
async fn an_id_is_made_up_where_there_is_none() {
    let world = World::with(|options| options.environment = Environment::Sandbox);
    let mut client = world.connect().await;
    let mut request = client.request(TOKEN);
    request.headers_mut().remove("apns-id");
    let answer = client.start(request, "{}").await.unwrap();
    let id = answer.headers["apns-id"].to_str().unwrap();
    assert_eq!(uuid::Uuid::parse_str(id).unwrap().hyphenated().to_string(), id);
    assert_eq!(world.simulator.journal().records()[0].apns_id, id);
    assert!(answer.headers.contains_key("apns-unique-id"), "the sandbox says more");
}

#[tokio::test(start_paused = true)]
async fn rules_hold_on_the_wire() {
    let world = World::new();
    let mut client = world.connect().await;
    let large = format!(r#"{{"a":"{}"}}"#, "x".repeat(100_000));
    let right = client.request(TOKEN);
    let mut twice = client.request(TOKEN);
    twice.headers_mut().append("apns-topic", "com.acme.voice.voip".parse().unwrap());
    let mut get = client.request(TOKEN);
    *get.method_mut() = http::Method::GET;
    for (request, body, status, reason) in [
        (right.clone(), "", 400, "PayloadEmpty"),
        (right, &*large, 413, "PayloadTooLarge"),
        (twice, "{}", 400, "DuplicateHeaders"),
        (get, "", 405, "MethodNotAllowed"),
    ] {
        let answer = client.start(request, body).await.unwrap();
        assert_eq!((answer.status, &*answer.reason()), (status, reason));
    }
    assert_eq!(client.outcome(TOKEN).await, "200");
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_wedged_by_a_token_that_changes_too_soon() {
    let world = World::new();
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    client.authorization = format!("bearer {}", world.provider_token(START_S + 1));
    let wedged = r#"429 {"reason":"TooManyProviderTokenUpdates"}"#;
    assert_eq!(client.outcome(TOKEN).await, wedged);
    tokio::time::sleep(Duration::from_mins(30)).await;
    assert_eq!(client.outcome(TOKEN).await, wedged, "it stays so");
    let mut other = world.connect().await;
    assert_eq!(other.outcome(TOKEN).await, "200");
    tokio::time::sleep(Duration::from_secs(1801)).await;
    assert_eq!(other.outcome(TOKEN).await, r#"403 {"reason":"ExpiredProviderToken"}"#);
    other.authorization = format!("bearer {}", world.provider_token(START_S + 3600));
    assert_eq!(other.outcome(TOKEN).await, r#"403 {"reason":"ExpiredProviderToken"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_ends_its_connection() {
    let world = World::new();
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, "200");
    assert_eq!(world.simulator.connections_open(), 1);
    let served = client.served.take().unwrap();
    drop(client);
    served.await.unwrap();
    assert_eq!((world.simulator.connections_open(), world.simulator.connections_total()), (0, 1));
}
