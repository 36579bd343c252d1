//! What breaks, and heals without anybody touching the worker.

use std::collections::BTreeSet;

use futures_util::future::join_all;
use lapin::options::QueueDeleteOptions;
use ringcast::amqp::{State, supervisor};
use ringcast::worker::mailbox::PublishError;

use super::{Peer, Rig, result, settings};
use crate::vhost::{Vhost, close_connections, start_broker};

fn reason(state: &State) -> String {
    match state {
        State::NotConsuming { reason, .. } => reason.clone(),
        other => panic!("{other:?}"),
    }
}

fn is_down(state: &State) -> bool {
    matches!(state, State::NotConsuming { .. })
}

#[tokio::test]
async fn a_deleted_queue_is_named_and_consumed_again_once_it_is_back() {
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("ringcast.invites", ["old".to_owned()]).await;
    let old = rig.next().await;
    peer.channel.queue_delete("ringcast.invites".into(), QueueDeleteOptions::default()).await.unwrap();
    let missing =
        "queue ringcast.invites is missing: run `ringcast topology declare` or set amqp.declare = true";
    rig.await_state(|state| is_down(state) && reason(state) == missing).await;
    assert!(!old.receipt.is_live(), "the worker can know that its ack reaches nobody");
    old.receipt.ack();
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.invites\"} 1").await;
    rig.await_metric("ringcast_amqp_reading{queue=\"ringcast.invites\"} 0").await;
    rig.await_metric("ringcast_amqp_connected{role=\"consume\"} 1").await;
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    rig.await_consuming().await;
    rig.await_metric("ringcast_amqp_reading{queue=\"ringcast.invites\"} 1").await;
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.invites\"} 0").await;
    peer.fill("ringcast.invites", ["new".to_owned()]).await;
    let new = rig.next().await;
    assert_eq!(new.body, "new");
    new.receipt.ack();
    rig.stop().await;
    assert_eq!(peer.ready("ringcast.invites").await, 0);
}

/// What is held from the others stays with the worker, and nothing of it comes again.
#[tokio::test]
async fn a_deleted_queue_is_no_matter_of_the_others() {
    let vhost = Vhost::new().await;
    let mut two = settings(vhost.uri());
    two.invites.push("vip".into());
    let mut rig = Rig::start_consuming(two.clone(), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("vip", ["held".to_owned()]).await;
    let held = rig.next().await;
    peer.channel.queue_delete("ringcast.invites".into(), QueueDeleteOptions::default()).await.unwrap();
    let missing = "ringcast.invites is missing";
    rig.await_state(|state| matches!(state, State::Partly { reason } if reason.contains(missing))).await;
    rig.await_metric("ringcast_amqp_reading{queue=\"vip\"} 1").await;
    assert!(held.receipt.is_live(), "what came from the other queue is still ours");
    held.receipt.ack();
    peer.fill("vip", ["next".to_owned()]).await;
    let next = rig.next().await;
    assert_eq!((next.body.as_ref(), next.redelivered), (b"next".as_slice(), false));
    next.receipt.ack();

    supervisor::declare(&two).await.unwrap();
    rig.await_consuming().await;
    peer.fill("ringcast.invites", ["again".to_owned()]).await;
    let again = rig.next().await;
    assert_eq!(again.body, "again");
    again.receipt.ack();
    rig.stop().await;
    assert_eq!(peer.ready("vip").await + peer.ready("ringcast.invites").await, 0);
}

#[tokio::test]
async fn killed_connections_are_replaced_and_what_was_held_comes_again() {
    // A broker of its own: this closes the connections of every virtual host.
    let broker = start_broker().await;
    let mut rig = Rig::start_consuming(settings(broker.uri()), 10).await;
    let peer = Peer::new(&broker.uri()).await;
    peer.fill("ringcast.invites", (0..60).map(|n| n.to_string())).await;
    let mut held = Vec::new();
    for _ in 0..20 {
        held.push(rig.next().await);
    }
    // Together: the command takes longer to end than the worker to be back.
    tokio::join!(rig.await_state(is_down), close_connections(&broker, "ringcast "));
    assert!(held.iter().all(|delivery| !delivery.receipt.is_live()));
    drop(held);
    rig.await_consuming().await;
    let mut seen = BTreeSet::new();
    while seen.len() < 60 {
        let delivery = rig.next().await;
        if delivery.receipt.is_live() {
            seen.insert(delivery.body.clone());
            delivery.receipt.ack();
        }
    }
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    rig.stop().await;
    assert_eq!(peer.ready("ringcast.invites").await, 0);
}

#[tokio::test]
async fn results_published_while_connections_die_have_an_honest_fate() {
    const COUNT: usize = 4000;
    let broker = start_broker().await;
    let rig = Rig::start_consuming(settings(broker.uri()), 10).await;
    let publishing = tokio::spawn(join_all((0..COUNT).map(|n| {
        let outbox = rig.outbox.clone();
        async move { outbox.publish(result(&format!("r-{n}"), "outcome.acme")).await }
    })));
    rig.await_state(|_| true).await;
    close_connections(&broker, "ringcast publish ").await;
    let fates = publishing.await.unwrap();
    rig.await_consuming().await;
    rig.stop().await;
    let peer = Peer::new(&broker.uri()).await;
    let there: BTreeSet<_> = peer
        .read("ringcast.outcomes", peer.ready("ringcast.outcomes").await as usize)
        .await
        .iter()
        .map(|message| message.properties.message_id().clone().unwrap().as_str().to_owned())
        .collect();
    for (n, fate) in fates.iter().enumerate() {
        match fate {
            Ok(()) => assert!(there.contains(&format!("r-{n}")), "{n} was confirmed and is not there"),
            Err(error) => assert_eq!(*error, PublishError::Lost, "{n}"),
        }
    }
}

#[tokio::test]
async fn a_broker_that_restarts_finds_the_worker_again() {
    let mut broker = start_broker().await;
    let mut rig = Rig::start_consuming(settings(broker.uri()), 10).await;
    let peer = Peer::new(&broker.uri()).await;
    peer.fill("ringcast.invites", (0..10).map(|n| n.to_string())).await;
    let held = rig.next().await;
    drop(peer);
    broker.stop().await.unwrap();
    let state = rig.await_state(|state| is_down(state) && reason(state).contains("cannot be reached")).await;
    assert!(!reason(&state).contains("guest"), "{state:?}");
    assert!(!held.receipt.is_live());
    let waiting = tokio::spawn({
        let outbox = rig.outbox.clone();
        async move { outbox.publish(result("r", "outcome.acme")).await }
    });
    broker.start_again().await.unwrap();
    assert_eq!(waiting.await.unwrap(), Ok(()));
    let mut seen = BTreeSet::new();
    while seen.len() < 10 {
        let delivery = rig.next().await;
        if delivery.receipt.is_live() {
            seen.insert(delivery.body.clone());
            delivery.receipt.ack();
        }
    }
    rig.stop().await;
}

#[tokio::test]
async fn a_memory_alarm_blocks_and_is_waited_out() {
    let broker = start_broker().await;
    let rig = Rig::start_consuming(settings(broker.uri()), 10).await;
    broker.ctl(&["set_vm_memory_high_watermark", "0"]).await.unwrap();
    // The broker blocks a connection when it next publishes.
    let waiting: Vec<_> = (0..20)
        .map(|n| {
            let outbox = rig.outbox.clone();
            tokio::spawn(async move { outbox.publish(result(&format!("r-{n}"), "outcome.acme")).await })
        })
        .collect();
    let state = rig.await_state(|state| matches!(state, State::Blocked { .. })).await;
    let State::Blocked { reason } = &state else { panic!("{state:?}") };
    assert_eq!(reason, "low on memory", "the broker's own words, which readiness puts into a sentence");
    rig.await_metric("ringcast_amqp_blocked 1").await;
    // Longer than the limit on a confirm: a broker that says why it is slow is not given up.
    tokio::time::sleep(std::time::Duration::from_secs(13)).await;
    assert_eq!(rig.status.state(), state);
    broker.ctl(&["set_vm_memory_high_watermark", "0.6"]).await.unwrap();
    for fate in waiting {
        assert_eq!(fate.await.unwrap(), Ok(()));
    }
    rig.await_consuming().await;
    rig.await_metric("ringcast_amqp_blocked 0").await;
    rig.stop().await;
}

/// A queue without a majority answers a consumer late. By then somebody else reads it, and nobody the messages of that one.
#[tokio::test]
async fn a_consumer_that_begins_too_late_keeps_nothing() {
    let vhost = Vhost::new().await;
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("ringcast.invites", (0..10).map(|n| n.to_string())).await;
    vhost.suspend("ringcast.invites").await;
    let mut rig = Rig::start(settings(vhost.uri()), 10);
    rig.await_state(|state| is_down(state) && reason(state).contains("no answer from the broker")).await;
    vhost.resume("ringcast.invites").await;
    rig.await_consuming().await;
    let mut seen = BTreeSet::new();
    while seen.len() < 10 {
        let delivery = rig.next().await;
        assert!(seen.insert(delivery.body.clone()), "once each");
        delivery.receipt.ack();
    }
    rig.stop().await;
    assert_eq!(peer.ready("ringcast.invites").await, 0);
}

/// The broker's heartbeats come from another process than the one that reads.
#[tokio::test]
async fn a_connection_that_opens_no_channel_is_left() {
    const SUSPEND: &str = "[sys:suspend(Pid) || Pid <- rabbit_networking:connections(), \
        [{_, Facts}] <- [rabbit_networking:connection_info(Pid, [client_properties])], \
        lists:member({<<\"connection_name\">>, longstr, <<\"ringcast consume rig\">>}, Facts)].";
    let broker = start_broker().await;
    let mut rig = Rig::start_consuming(settings(broker.uri()), 10).await;
    let peer = Peer::new(&broker.uri()).await;
    assert!(broker.ctl(&["eval", SUSPEND]).await.unwrap().contains("ok"));
    peer.channel.queue_delete("ringcast.invites".into(), QueueDeleteOptions::default()).await.unwrap();
    rig.await_state(is_down).await;
    supervisor::declare(&settings(broker.uri())).await.unwrap();
    rig.await_consuming().await;
    peer.fill("ringcast.invites", ["new".to_owned()]).await;
    rig.next().await.receipt.ack();
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    rig.stop().await;
}
