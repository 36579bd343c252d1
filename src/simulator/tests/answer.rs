//! Answers that senders have tripped over, one test for each.

use bytes::Bytes;

use super::client::{TOKEN, World};
use crate::simulator::faults::{Action, Answer};
use crate::simulator::{DeviceState, Environment, Fault};

fn verbatim(status: u16, body: &'static str) -> Fault {
    let body = Some(Bytes::from_static(body.as_bytes()));
    Fault::new(Action::Answer(Answer { body, ..Answer::new(status, "") }))
}

#[tokio::test(start_paused = true)]
async fn a_410_with_a_timestamp_in_the_past() {
    let world = World::new();
    world.simulator.devices().set("aa01", DeviceState::Unregistered { since_ms: 1 });
    let gone = Answer { timestamp_ms: Some(2), ..Answer::new(410, "ExpiredToken") };
    world.simulator.faults().add(Fault::new(Action::Answer(gone)).token("aa02"));
    let mut client = world.connect().await;
    assert_eq!(client.outcome("aa01").await, r#"410 {"reason":"Unregistered","timestamp":1}"#);
    assert_eq!(client.outcome("aa02").await, r#"410 {"reason":"ExpiredToken","timestamp":2}"#);
}

#[tokio::test(start_paused = true)]
async fn a_410_with_a_timestamp_in_the_future() {
    let world = World::new();
    world.simulator.devices().set("aa01", DeviceState::Expired { since_ms: 9_999_999_999_999 });
    let answer = world.connect().await.outcome("aa01").await;
    assert_eq!(answer, r#"410 {"reason":"ExpiredToken","timestamp":9999999999999}"#);
}

#[tokio::test(start_paused = true)]
async fn a_reason_that_nobody_knows() {
    let world = World::new();
    world.simulator.faults().add(Fault::answer(400, "NobodyKnowsThisOne").times(1));
    let mut client = world.connect().await;
    assert_eq!(client.outcome(TOKEN).await, r#"400 {"reason":"NobodyKnowsThisOne"}"#);
    let record = &world.simulator.journal().records()[0];
    assert_eq!((record.reason.as_deref(), record.fault), (Some("NobodyKnowsThisOne"), Some("answer")));
    assert!(!record.processed);
    assert_eq!(client.outcome(TOKEN).await, "200");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_is_no_json() {
    let world = World::new();
    world.simulator.faults().add(verbatim(502, "<html>Bad Gateway</html>"));
    assert_eq!(world.connect().await.outcome(TOKEN).await, "502 <html>Bad Gateway</html>");
}

#[tokio::test(start_paused = true)]
async fn an_error_without_a_body() {
    let world = World::new();
    world.simulator.faults().add(verbatim(410, ""));
    let answer = world.connect().await.push(TOKEN).await.unwrap();
    assert_eq!((answer.status, answer.body.len()), (410, 0));
}

#[tokio::test(start_paused = true)]
async fn service_unavailable_with_a_space() {
    let world = World::new();
    world.simulator.faults().add(Fault::answer(503, "Service Unavailable"));
    assert_eq!(world.connect().await.outcome(TOKEN).await, r#"503 {"reason":"Service Unavailable"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_payload_of_5121_bytes_is_too_large() {
    let world = World::new();
    let mut client = world.connect().await;
    for (bytes, status) in [(5120, 200), (5121, 413)] {
        let request = client.request(TOKEN);
        let body = format!(r#"{{"a":"{}"}}"#, "x".repeat(bytes - 8));
        assert_eq!(client.start(request, &body).await.unwrap().status, status);
    }
    assert_eq!(world.simulator.journal().records()[1].reason.as_deref(), Some("PayloadTooLarge"));
}

#[tokio::test(start_paused = true)]
async fn apns_unique_id_in_the_sandbox_alone() {
    for (environment, expected) in [(Environment::Sandbox, true), (Environment::Production, false)] {
        let world = World::with(|options| options.environment = environment);
        let answer = world.connect().await.push(TOKEN).await.unwrap();
        assert_eq!(answer.headers.contains_key("apns-unique-id"), expected, "{environment:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn goaway_after_some_bad_device_tokens() {
    let world = World::with(|options| options.bad_device_tokens_max = Some(2));
    world.simulator.devices().set("aa01", DeviceState::Unknown);
    let mut client = world.connect().await;
    assert_eq!(client.outcome("aa01").await, r#"400 {"reason":"BadDeviceToken"}"#);
    assert_eq!(client.outcome(TOKEN).await, "200");
    assert_eq!(client.outcome("aa01").await, r#"400 {"reason":"BadDeviceToken"}"#);
    let error = client.push(TOKEN).await.unwrap_err();
    assert!(error.is_go_away() || error.is_io(), "{error}");
    client.ended.await.unwrap().unwrap();
    client.served.take().unwrap().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn throttled_is_for_one_device_alone() {
    let world = World::new();
    world.simulator.devices().set("aa01", DeviceState::Throttled);
    let mut client = world.connect().await;
    assert_eq!(client.outcome("aa01").await, r#"429 {"reason":"TooManyRequests"}"#);
    assert_eq!(client.outcome("aa02").await, "200");
}
