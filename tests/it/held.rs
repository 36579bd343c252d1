//! A broker that takes back what a worker holds for too long: up to RabbitMQ 4.2 it closes the channel (406), from 4.3 on it
//! cancels the consumer. The invites come again while they ring, and are not rung again.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::json;

use crate::apple::{Apple, Push};
use crate::client::{self, Outgoing};
use crate::contract::check_outcome;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{await_drained, now, read_all, written};
use crate::vhost::{start_broker, version};
use crate::worker::{Config, Worker};

/// A delivery may be held for a second and a half, and that is looked at four times a second instead of once a minute. The queues
/// are made after that.
const IMPATIENCE: &str = "[application:set_env(rabbit, Key, Value) || {Key, Value} <- \
    [{consumer_timeout, 1500}, {channel_tick_interval, 250}, {quorum_tick_interval, 250}]].";
/// Device tokens that begin so are answered much later than that.
const SLOW: &str = "[[fault]]\ntoken_prefix = \"510e\"\nlatency = \"5s\"\n";
const INVITES: usize = 20;
const WITHIN: Duration = Duration::from_mins(1);

#[tokio::test]
async fn what_the_broker_takes_back_while_it_rings_is_rung_once() {
    let place = Place::new("held");
    let broker = start_broker().await;
    broker.ctl(&["eval", IMPATIENCE]).await.expect("it takes settings");
    let uri = broker.uri();
    let apple = Apple::start(&place, (0, 0), SLOW).await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &uri).text("apns", "request_timeout", "1m");
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    let dials = worker.metric("ringcast_amqp_dials_total").await;

    client::publish(&uri, "ringcast.invites", &calls("510e", INVITES)).await;
    client::await_depth(&uri, "ringcast.outcomes", INVITES, WITHIN).await;
    // Nobody waits for these, and they find the queue read again.
    client::publish(&uri, "ringcast.invites", &calls("a11e", INVITES)).await;
    client::await_depth(&uri, "ringcast.outcomes", 2 * INVITES, WITHIN).await;
    await_drained(&uri, &worker, WITHIN).await;
    worker.await_ready().await;
    assert_eq!(
        worker.metric("ringcast_amqp_dials_total").await,
        dials,
        "it costs a channel, not the session"
    );
    let again = worker.metric("ringcast_ledger_answers_total").await.unwrap_or_default();
    assert!(again >= 1.0, "what came again was answered from memory: {again}");
    let (version, log) = (version(&broker).await, worker.log());
    let old = ["3.", "4.0.", "4.1.", "4.2."].iter().any(|old| version.starts_with(old));
    let why = if old { "PRECONDITION_FAILED" } else { "the broker cancelled consuming" };
    assert!(log.contains(why) && log.contains("the queue is read again"), "{why}: {log}");
    worker.stop().await;

    let outcomes: Vec<_> = read_all(&uri, "ringcast.outcomes").await;
    let ids: BTreeSet<_> = outcomes.iter().map(|outcome| outcome.text("message_id")).collect();
    assert_eq!(ids.len(), 2 * INVITES, "one outcome identity for each invite");
    for outcome in outcomes.iter().map(check_outcome) {
        assert_eq!(outcome["result"], "accepted", "{outcome}");
    }
    let pushes = apple.stop().await;
    let tokens: BTreeSet<_> = pushes.iter().map(Push::token).collect();
    assert_eq!((pushes.len(), tokens.len()), (2 * INVITES, 2 * INVITES), "every phone once");
    assert_eq!(client::depth(&uri, "ringcast.expired").await, 0, "nothing is given up");
}

/// Calls to one phone each, whose token begins so.
fn calls(prefix: &str, count: usize) -> Vec<Outgoing> {
    let deadline = written(now() + Duration::from_mins(4));
    let call = |number| Outgoing {
        body: json!({
            "call_id": format!("0000{prefix}-0000-4000-8000-{number:012x}"),
            "app": "acme",
            "deadline": deadline,
            "devices": [{ "token": format!("{prefix}{number:060x}") }],
        })
        .to_string()
        .into_bytes(),
        properties: json!({ "message_id": format!("{prefix}-{number}") }),
    };
    (0..count).map(call).collect()
}
