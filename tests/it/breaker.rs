//! Suspect tokens: while a setting is more likely to be wrong than they are, their events go to quarantine.

use std::time::Duration;

use serde_json::{Value, json};

use crate::apple::{Apple, DEAD};
use crate::client::{self, Incoming, Outgoing};
use crate::contract::{check_event, check_outcome};
use crate::load::declare;
use crate::place::Place;
use crate::plan::{now, read_all, written};
use crate::vhost::Vhost;
use crate::worker::{Config, READY_WITHIN, Worker};

/// Devices of the first calls, all of the other environment, until the setting is mended.
const STRANGERS: usize = 20;
/// More good calls than a breaker looks at.
const GOOD: usize = 60;
/// Device tokens that begin so belong to another app, whatever is mended.
const FOREIGN: &str = "bad0";

/// What Apple says of them.
fn strange() -> String {
    format!(
        "[[fault]]\ntoken_prefix = \"{FOREIGN}\"\ndo = \"answer\"\nstatus = 400\nreason = \"DeviceTokenNotForTopic\"\n\
         [[fault]]\ntoken_prefix = \"50de\"\ncount = {STRANGERS}\ndo = \"answer\"\nstatus = 400\nreason = \"BadDeviceToken\"\n"
    )
}

/// A worker with two apps, and what it was given so far.
struct Scene {
    uri: String,
    worker: Worker,
    calls: usize,
}

impl Scene {
    /// Calls so many devices of an app, one each, and waits until it is known what became of them.
    async fn call(&mut self, app: &str, begin: &str, count: usize) {
        let messages: Vec<Outgoing> = (self.calls..self.calls + count)
            .map(|number| {
                let body = json!({
                    "call_id": format!("0000b4ea-0000-4000-8000-{number:012x}"),
                    "app": app,
                    "deadline": written(now() + Duration::from_mins(4)),
                    "devices": [{ "token": format!("{begin}{number:060x}") }],
                });
                Outgoing { body: body.to_string().into_bytes(), properties: Value::Null }
            })
            .collect();
        client::publish(&self.uri, "ringcast.invites", &messages).await;
        self.calls += count;
        client::await_depth(&self.uri, "ringcast.outcomes", self.calls, READY_WITHIN).await;
    }

    /// Waits until so many events about tokens lie in both queues, `invalid` and `quarantined`.
    async fn await_events(&self, invalid: usize, quarantined: usize) {
        for (queue, count) in
            [("ringcast.invalid-tokens", invalid), ("ringcast.quarantined-tokens", quarantined)]
        {
            let found = client::await_depth(&self.uri, queue, count, READY_WITHIN).await;
            assert_eq!(found, count, "in {queue}; {}", self.worker.log());
        }
    }

    /// Waits until `/metrics` says so of an app in production.
    async fn await_gauge(&mut self, app: &str, open: u8) {
        let line = format!("ringcast_breaker_open{{app=\"{app}\",environment=\"production\"}} {open}\n");
        self.worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(&line)).await;
    }

    /// The note about an app in `/readyz`, which says 200 whatever it notes.
    async fn note(&self, app: &str) -> Option<String> {
        let (status, text) = self.worker.fetch("/readyz").await;
        assert_eq!(status, 200, "{text}");
        text.lines().find(|line| line.starts_with(&format!("tokens: {app} in "))).map(str::to_owned)
    }
}

#[tokio::test]
async fn tokens_of_the_wrong_environment_are_kept_back_until_it_is_mended() {
    let place = Place::new("breaker");
    let vhost = Vhost::new().await;
    let apple = Apple::start(&place, (0, 0), &strange()).await;
    let mut config = Config::new(&apple);
    config
        .text("amqp", "uri", &vhost.uri())
        .text("apps.umbra", "bundle_id", "com.umbra.voice")
        .text("apps.umbra.auth", "team_id", "TEAM123456")
        .text("apps.umbra.auth", "key_id", "KEY1234567")
        .path("apps.umbra.auth", "key_file", &apple.key_file());
    declare(&place, &config).await;
    let worker = Worker::start_ready(&place, &config, "worker").await;
    let mut scene = Scene { uri: vhost.uri(), worker, calls: 0 };
    let (_, text) = scene.worker.fetch("/metrics").await;
    let gauges = text.lines().filter(|line| line.starts_with("ringcast_breaker_open{"));
    assert!(gauges.clone().count() == 4 && gauges.clone().all(|line| line.ends_with(" 0")), "{text}");

    // Not one of the first is condemned, and it is no matter of the other app.
    scene.call("acme", "50de", STRANGERS).await;
    scene.await_events(0, STRANGERS).await;
    scene.await_gauge("acme", 1).await;
    let note = scene.note("acme").await.expect("it is noted");
    assert!(note.contains("in production since 20") && note.contains("BadDeviceToken"), "{note}");
    scene.call("umbra", "a11e", 1).await;
    scene.call("umbra", FOREIGN, 1).await;
    scene.await_events(1, STRANGERS).await;
    scene.await_gauge("umbra", 0).await;
    assert_eq!(scene.note("umbra").await, None);

    // Apple's firm word goes its way all the same.
    scene.call("acme", DEAD, 1).await;
    scene.await_events(2, STRANGERS).await;

    // Mended: what is still wrong is the tokens.
    scene.call("acme", "50de", GOOD).await;
    scene.await_gauge("acme", 0).await;
    assert_eq!(scene.note("acme").await, None);
    scene.call("acme", FOREIGN, 1).await;
    scene.await_events(3, STRANGERS).await;

    // And a mistake of the publisher's: of this wave ten are told of, counting the one before.
    scene.call("acme", FOREIGN, 30).await;
    scene.await_events(12, STRANGERS + 21).await;
    scene.await_gauge("acme", 1).await;

    scene.worker.stop().await;
    let kept_back = "kept back in ringcast.quarantined-tokens";
    let log = scene.worker.log();
    assert_eq!(log.matches(kept_back).count(), 1, "no more than once a minute: {log}");
    assert_eq!(log.matches("no longer kept back").count(), 1, "{log}");
    let told = log.lines().find(|line| line.contains(kept_back)).expect("it is there");
    for word in ["acme", "production", "com.acme.voice.voip", "BadDeviceToken", "bundle_id"] {
        assert!(told.contains(word), "{word} in {told}");
    }
    judge(&scene.uri).await;
    apple.stop().await;
}

/// Every event and every outcome, by the contract.
async fn judge(uri: &str) {
    let to = |message: &Incoming| (message.routing_key.clone(), check_event(message));
    for (key, event) in read_all(uri, "ringcast.quarantined-tokens").await.iter().map(to) {
        assert_eq!((key.as_str(), &event["confidence"]), ("quarantined_token.acme", &json!("suspect")));
    }
    for (key, event) in read_all(uri, "ringcast.invalid-tokens").await.iter().map(to) {
        assert_eq!(key, format!("invalid_token.{}", event["app"].as_str().expect("checked")));
        let is_dead = event["token"].as_str().expect("checked").starts_with(DEAD);
        assert_eq!(event["confidence"] == "dead", is_dead, "{event}");
    }
    let outcomes: Vec<Value> = read_all(uri, "ringcast.outcomes").await.iter().map(check_outcome).collect();
    let suspects = outcomes.iter().filter(|outcome| outcome["devices"][0]["result"] == "suspect_token");
    assert_eq!(suspects.count(), STRANGERS + 1 + 1 + 30, "told as ever, wherever their events went");
}
