//! How much is consumed and who is served first, also when it changes in the middle.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::timeout;

use super::{LIMIT, Peer, Rig, result, settings};
use crate::vhost::Vhost;

/// What the broker says of the consumers of a queue: their prefetches and arguments, sorted.
async fn consumers(vhost: &Vhost, queue: &str) -> Vec<Value> {
    let rows = vhost.list("list_consumers", &["queue_name", "prefetch_count", "arguments"]).await;
    let of_queue = rows.into_iter().filter(|row| row["queue_name"] == queue);
    let mut found: Vec<_> = of_queue.map(|row| json!([row["prefetch_count"], row["arguments"]])).collect();
    found.sort_by_key(Value::to_string);
    found
}

async fn await_prefetch(vhost: &Vhost, queue: &str, prefetch: u16) {
    let reached = timeout(LIMIT, async {
        while consumers(vhost, queue).await != [json!([prefetch, []])] {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(reached.await.is_ok(), "{queue}: {:?}, not {prefetch}", consumers(vhost, queue).await);
}

fn set_prefetch(rig: &Rig, prefetch: u16) {
    rig.settings.send_modify(|settings| settings.prefetch = prefetch);
}

#[tokio::test]
async fn a_changed_prefetch_leaves_what_is_held_where_it_is() {
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 500).await;
    Peer::new(&vhost.uri()).await.fill("ringcast.invites", (0..300).map(|n| n.to_string())).await;
    await_prefetch(&vhost, "ringcast.invites", 95).await;
    let (mut held, mut seen) = (Vec::new(), BTreeSet::new());
    for _ in 0..95 {
        held.push(rig.next().await);
    }
    rig.await_metric("ringcast_amqp_unsettled 95").await;

    set_prefetch(&rig, 40);
    await_prefetch(&vhost, "ringcast.invites", 38).await;
    await_prefetch(&vhost, "ringcast.expired", 2).await;
    rig.await_metric("ringcast_amqp_unsettled 133").await;
    // A further change waits for those of the first, so that what is held does not add up.
    set_prefetch(&rig, 60);
    await_prefetch(&vhost, "ringcast.expired", 3).await;
    assert_eq!(rig.outbox.publish(result("r", "outcome.acme")).await, Ok(()));
    rig.await_metric("ringcast_amqp_unsettled 133").await;
    assert_eq!(consumers(&vhost, "ringcast.invites").await, [json!([38, []])]);
    let last = held.pop().unwrap();
    for delivery in held.into_iter().chain([last]) {
        assert!(delivery.receipt.is_live() && !delivery.redelivered);
        assert!(seen.insert(delivery.body.clone()), "once each");
        delivery.receipt.ack();
    }
    await_prefetch(&vhost, "ringcast.invites", 57).await;
    rig.await_metric("ringcast_amqp_unsettled 95").await;

    while seen.len() < 300 {
        let delivery = rig.next().await;
        assert!(delivery.receipt.is_live() && !delivery.redelivered, "nothing was given back");
        assert!(seen.insert(delivery.body.clone()), "once each");
        delivery.receipt.ack();
    }
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    rig.stop().await;
    assert_eq!(Peer::new(&vhost.uri()).await.ready("ringcast.invites").await, 0);
}

#[tokio::test]
async fn a_higher_priority_has_everything_while_it_has_room() {
    let vhost = Vhost::new().await;
    let mut low = Rig::start_consuming(settings(vhost.uri()), 500).await;
    assert_eq!(consumers(&vhost, "ringcast.invites").await, [json!([95, []])], "no argument by default");
    let mut all = settings(vhost.uri());
    all.consumer_priority = 10;
    let mut high = Rig::start_consuming(all, 500).await;
    let argument = json!([95, [["x-priority", "signedint", 10]]]);
    assert!(consumers(&vhost, "ringcast.invites").await.contains(&argument));

    let peer = Peer::new(&vhost.uri()).await;
    for round in 0..3 {
        peer.fill("ringcast.invites", (0..30).map(|n| format!("{round}-{n}"))).await;
        for _ in 0..30 {
            high.next().await.receipt.ack();
        }
        high.await_metric("ringcast_amqp_unsettled 0").await;
        assert!(low.deliveries.try_recv().is_err(), "the other one had room");
    }
    // Full, it leaves the rest to the other.
    peer.fill("ringcast.invites", (0..100).map(|n| format!("full-{n}"))).await;
    let mut held = Vec::new();
    for _ in 0..95 {
        held.push(high.next().await);
    }
    for _ in 0..5 {
        low.next().await.receipt.ack();
    }
    for delivery in held {
        delivery.receipt.ack();
    }
    high.await_metric("ringcast_amqp_unsettled 0").await;
    // The priority may change, too.
    low.settings.send_modify(|settings| settings.consumer_priority = 20);
    let raised = json!([95, [["x-priority", "signedint", 20]]]);
    let reached = timeout(LIMIT, async {
        while !consumers(&vhost, "ringcast.invites").await.contains(&raised) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(reached.await.is_ok(), "{:?}", consumers(&vhost, "ringcast.invites").await);
    peer.fill("ringcast.invites", (0..30).map(|n| format!("raised-{n}"))).await;
    for _ in 0..30 {
        low.next().await.receipt.ack();
    }
    assert!(high.deliveries.try_recv().is_err());
    low.stop().await;
    high.stop().await;
}
