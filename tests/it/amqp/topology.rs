//! The topology as the broker sees it.

use lapin::options::{ExchangeDeleteOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use ringcast::amqp::topology::Thing;
use ringcast::amqp::{Error, Settings, State, supervisor};
use ringcast::cli::topology;
use serde_json::{Value, json};

use super::{Peer, Rig, settings};
use crate::vhost::Vhost;

fn arguments(row: &Value) -> Value {
    // rabbitmqctl prints them as a list of name, type and value.
    let triples = row["arguments"].as_array().unwrap();
    triples
        .iter()
        .map(|it| (it[0].as_str().unwrap().to_owned(), it[2].clone()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

#[tokio::test]
async fn declared_twice_it_is_as_the_contract_says() {
    let vhost = Vhost::new().await;
    let all = settings(vhost.uri());
    let made = topology::declare(&all).await.unwrap();
    assert_eq!(topology::declare(&all).await.unwrap(), made);
    assert_eq!(made.len(), 11);

    let mut queues: Vec<_> = vhost.list("list_queues", &["name", "durable", "arguments"]).await;
    queues.sort_by_key(|row| row["name"].to_string());
    let queues: serde_json::Map<_, _> = queues
        .iter()
        .map(|row| {
            assert_eq!(row["durable"], true);
            (row["name"].as_str().unwrap().to_owned(), arguments(row))
        })
        .collect();
    let quorum = json!({ "x-queue-type": "quorum" });
    let expected = json!({
        "ringcast.invites": {
            "x-queue-type": "quorum", "x-delivery-limit": 20, "x-dead-letter-exchange": "ringcast.dead",
            "x-dead-letter-strategy": "at-least-once", "x-overflow": "reject-publish"
        },
        "ringcast.expired": {
            "x-queue-type": "quorum", "x-delivery-limit": 20, "x-dead-letter-exchange": "",
            "x-dead-letter-routing-key": "ringcast.dead", "x-dead-letter-strategy": "at-least-once",
            "x-overflow": "reject-publish"
        },
        "ringcast.ended": { "x-queue-type": "stream", "x-max-age": "10m" },
        "ringcast.dead": quorum, "ringcast.outcomes": quorum,
        "ringcast.invalid-tokens": quorum, "ringcast.quarantined-tokens": quorum,
    });
    assert_eq!(Value::from(queues), expected);

    let exchanges = vhost.list("list_exchanges", &["name", "type", "durable"]).await;
    for (name, kind) in [
        ("ringcast.dead", "headers"),
        ("ringcast.results", "topic"),
        ("ringcast.live", "fanout"),
        ("ringcast.ended", "fanout"),
    ] {
        let row = exchanges.iter().find(|row| row["name"] == name).unwrap();
        assert_eq!((&row["type"], &row["durable"]), (&json!(kind), &json!(true)), "{name}");
    }

    let bindings =
        vhost.list("list_bindings", &["source_name", "destination_name", "routing_key", "arguments"]).await;
    let mut bindings: Vec<_> = bindings
        .iter()
        .filter(|row| row["source_name"] != "")
        .map(|row| {
            let why = arguments(row);
            if row["source_name"] == "ringcast.dead" {
                assert_eq!(why["x-match"], "all-with-x");
            }
            let by = why["x-first-death-reason"]
                .as_str()
                .unwrap_or(row["routing_key"].as_str().unwrap())
                .to_owned();
            format!(
                "{} {by} {}",
                row["source_name"].as_str().unwrap(),
                row["destination_name"].as_str().unwrap()
            )
        })
        .collect();
    bindings.sort();
    assert_eq!(
        bindings,
        [
            "ringcast.dead delivery_limit ringcast.expired",
            "ringcast.dead expired ringcast.expired",
            "ringcast.dead maxlen ringcast.dead",
            "ringcast.dead rejected ringcast.dead",
            "ringcast.ended  ringcast.ended",
            "ringcast.results invalid_token.# ringcast.invalid-tokens",
            "ringcast.results outcome.# ringcast.outcomes",
            "ringcast.results quarantined_token.# ringcast.quarantined-tokens",
        ]
    );
}

#[tokio::test]
async fn a_conflict_names_the_thing_and_the_argument() {
    let vhost = Vhost::new().await;
    let peer = Peer::new(&vhost.uri()).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(3));
    peer.channel
        .queue_declare("ringcast.invites".into(), QueueDeclareOptions::durable(), arguments)
        .await
        .unwrap();
    let error = topology::declare(&settings(vhost.uri())).await.unwrap_err();
    assert!(matches!(&error, Error::Declare { what, .. } if what == "queue ringcast.invites"), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("another x-delivery-limit") || text.contains("another x-"), "{text}");
    assert!(!error.is_unavailable());
}

#[tokio::test]
async fn everything_missing_is_named_at_once_and_declare_mends_it() {
    let vhost = Vhost::new().await;
    let all = settings(vhost.uri());
    supervisor::declare(&all).await.unwrap();
    let peer = Peer::new(&vhost.uri()).await;
    for queue in ["ringcast.invites", "ringcast.outcomes", "ringcast.ended"] {
        peer.channel.queue_delete(queue.into(), QueueDeleteOptions::default()).await.unwrap();
    }
    let presence = supervisor::check(&all).await.unwrap();
    let queue = |name: &str| Thing::Queue(name.to_owned());
    assert_eq!(presence.needed, [queue("ringcast.invites"), queue("ringcast.outcomes")]);
    assert_eq!(presence.optional, [queue("ringcast.ended")]);
    let live = peer.channel.exchange_delete("ringcast.live".into(), ExchangeDeleteOptions::default());
    live.await.unwrap();
    assert_eq!(supervisor::check(&all).await.unwrap(), presence, "nothing is copied there");
    let copying = supervisor::check(&Settings { live: true, ..all.clone() }).await.unwrap();
    assert_eq!(copying.optional, [Thing::Exchange("ringcast.live".to_owned()), queue("ringcast.ended")]);

    let rig = Rig::start(all.clone(), 5);
    let named = "queue ringcast.invites and queue ringcast.outcomes are missing";
    rig.await_state(|state| matches!(state, State::NotConsuming { reason, .. } if reason.starts_with(named)))
        .await;
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.ended\"} 1").await;
    for queue in ["ringcast.invites", "ringcast.expired"] {
        // None was ever read.
        rig.await_metric(&format!("ringcast_amqp_reading{{queue=\"{queue}\"}} 0")).await;
    }
    let mut declaring = all.clone();
    declaring.declare = true;
    let other = Rig::start(declaring, 5);
    other.await_consuming().await;
    rig.await_consuming().await;
    rig.stop().await;
    other.stop().await;
}

#[tokio::test]
async fn what_comes_back_is_noticed_though_nobody_asks_for_it() {
    let vhost = Vhost::new().await;
    let all = settings(vhost.uri());
    supervisor::declare(&all).await.unwrap();
    let peer = Peer::new(&vhost.uri()).await;
    peer.channel.queue_delete("ringcast.ended".into(), QueueDeleteOptions::default()).await.unwrap();
    let rig = Rig::start(all.clone(), 5);
    rig.await_consuming().await;
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.ended\"} 1").await;
    supervisor::declare(&all).await.unwrap();
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.ended\"} 0").await;
    rig.stop().await;
}
