//! What the broker gave up on before a worker could take it: each is answered, and nothing of it is pushed.

use std::time::Duration;

use lapin::options::{BasicGetOptions, BasicRejectOptions};
use lapin::{Connection, ConnectionProperties};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::apple::Apple;
use crate::client::{self, Incoming, Outgoing};
use crate::contract::check_outcome;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{now, written};
use crate::process::POLL_EVERY;
use crate::vhost::Vhost;
use crate::worker::{Config, Worker};

const WITHIN: Duration = Duration::from_mins(1);
/// Of the invites queue: a message comes back as often, and is given up the next time.
const DELIVERY_LIMIT: usize = 20;

#[tokio::test]
async fn what_the_broker_gave_up_on_is_answered_and_not_pushed() {
    let place = Place::new("given-up");
    let vhost = Vhost::new().await;
    let uri = vhost.uri();
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &uri);
    declare(&place, &config).await;

    let late = message("late", invite("11111111-0000-4000-8000-000000000001"), Some("1"));
    let garbage = message("garbage", b"{\"call_id\":".to_vec(), Some("1"));
    let returned = message("returned", invite("11111111-0000-4000-8000-000000000002"), None);
    client::publish(&uri, "ringcast.invites", &[late.clone(), garbage.clone()]).await;
    client::await_depth(&uri, "ringcast.expired", 2, WITHIN).await;
    client::publish(&uri, "ringcast.invites", &[returned]).await;
    return_too_often(&uri).await;
    client::await_depth(&uri, "ringcast.expired", 3, WITHIN).await;
    // Nothing says why it lies there.
    let astray = message("astray", invite("11111111-0000-4000-8000-000000000003"), None);
    client::publish(&uri, "ringcast.expired", std::slice::from_ref(&astray)).await;

    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    let outcomes = client::read(&uri, "ringcast.outcomes", 4, WITHIN).await;
    let of = |name: &str| -> (&Incoming, Value) {
        let mut found = outcomes.iter().filter(|outcome| outcome.text("correlation_id") == name);
        let outcome = found.next().unwrap_or_else(|| panic!("{name}: no outcome"));
        assert!(found.next().is_none(), "{name}: one outcome");
        (outcome, check_outcome(outcome))
    };
    let (first, outcome) = of("late");
    assert_eq!((&outcome["result"], &outcome["earlier_attempt"]), (&json!("expired"), &json!("possible")));
    for device in outcome["devices"].as_array().expect("checked") {
        assert_eq!((&device["result"], &device["stage"]), (&json!("expired"), &json!("broker")));
        assert_eq!(device["attempts"], 0);
    }
    assert_eq!(outcome["devices"].as_array().map(Vec::len), Some(2));
    let (_, outcome) = of("returned");
    assert_eq!(
        (&outcome["result"], &outcome["earlier_attempt"]),
        (&json!("undeliverable"), &json!("possible"))
    );
    assert!(outcome["error"].as_str().is_some_and(|error| error.contains("delivery limit")), "{outcome}");
    assert_eq!(outcome["devices"].as_array().map(Vec::len), Some(2), "{outcome}");
    let (_, outcome) = of("astray");
    assert_eq!(
        (&outcome["result"], &outcome["earlier_attempt"]),
        (&json!("undeliverable"), &json!("possible"))
    );
    assert!(outcome["error"].as_str().is_some_and(|error| error.contains("x-death")), "{outcome}");
    assert_eq!(of("garbage").1["result"], "malformed");
    let (_, metrics) = worker.fetch("/metrics").await;
    for line in [
        "ringcast_expired_total{stage=\"broker\"} 2",
        "ringcast_invites_total{app=\"acme\",result=\"expired\"} 1",
        "ringcast_invites_total{app=\"acme\",result=\"undeliverable\"} 2",
        "ringcast_barred_total{app=\"acme\",environment=\"production\",why=\"delivery_limit\"} 2",
        "ringcast_barred_total{app=\"acme\",environment=\"production\",why=\"unsaid\"} 2",
        "ringcast_apns_usable{app=\"acme\",environment=\"production\"} 1",
    ] {
        assert!(metrics.lines().any(|other| other == line), "no {line} in {metrics}");
    }

    // The same invite once more, in time: it has its outcome, under one id, and is not rung after all.
    let again =
        Outgoing { body: late.body.clone(), properties: message("late", Vec::new(), None).properties };
    client::publish(&uri, "ringcast.invites", &[again]).await;
    let second = &client::read(&uri, "ringcast.outcomes", 1, WITHIN).await[0];
    assert_eq!(second.text("message_id"), first.text("message_id"), "one outcome identity");
    assert_eq!(second.body, first.body);
    worker.stop().await;

    let dead = client::read(&uri, "ringcast.dead", 2, WITHIN).await;
    for kept in [garbage, astray] {
        assert!(dead.iter().any(|dead| dead.body == kept.body), "byte for byte: {kept:?}");
    }
    for queue in ["ringcast.invites", "ringcast.expired", "ringcast.dead", "ringcast.outcomes"] {
        assert_eq!(client::depth(&uri, queue).await, 0, "{queue} is empty");
    }
    assert!(apple.stop().await.is_empty(), "nothing was pushed");
}

/// Takes the invite that lies there and gives it back, until the broker has enough of it.
async fn return_too_often(uri: &str) {
    let connection = Connection::connect(uri, ConnectionProperties::default()).await.expect("a broker");
    let channel = connection.create_channel().await.expect("a channel");
    let mut returned = 0;
    while returned <= DELIVERY_LIMIT {
        let get = channel.basic_get("ringcast.invites".into(), BasicGetOptions::default());
        match get.await.expect("an answer") {
            Some(got) => {
                got.acker.reject(BasicRejectOptions { requeue: true }).await.expect("it is told");
                returned += 1;
            }
            None => sleep(POLL_EVERY).await,
        }
    }
}

fn message(name: &str, body: Vec<u8>, expiration: Option<&str>) -> Outgoing {
    let mut properties = json!({ "message_id": format!("given-up-{name}"), "correlation_id": name });
    if let Some(expiration) = expiration {
        properties["expiration"] = json!(expiration);
    }
    Outgoing { body, properties }
}

/// A good invite to two devices, with all the time that it needs.
fn invite(call_id: &str) -> Vec<u8> {
    let invite = json!({
        "call_id": call_id,
        "app": "acme",
        "deadline": written(now() + Duration::from_mins(4)),
        "devices": [{ "token": format!("{:064x}", 1) }, { "token": format!("{:064x}", 2) }],
    });
    invite.to_string().into_bytes()
}
