//! What the broker gave up on, as the worker gets it, and a session without it.

use lapin::options::{BasicGetOptions, BasicRejectOptions, QueueDeclareOptions, QueueDeleteOptions};
use lapin::types::{AMQPValue, FieldTable};
use ringcast::amqp::{State, supervisor};
use ringcast::worker::mailbox::GivenUp;

use super::{Peer, Rig, settings};
use crate::vhost::Vhost;

const EXPIRED: &str = "ringcast.expired";

#[tokio::test]
async fn a_session_lives_without_the_queue_of_the_expired_and_with_it_again() {
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    // Straight into the queue, so that nothing says why.
    peer.fill(EXPIRED, ["before".to_owned()]).await;
    let before = rig.next().await;
    assert_eq!((before.body.as_ref(), before.given_up), (b"before".as_slice(), Some(GivenUp::Unsaid)));
    before.receipt.ack();
    peer.fill("ringcast.invites", ["held".to_owned()]).await;
    let held = rig.next().await;
    assert_eq!(held.given_up, None);

    peer.channel.queue_delete(EXPIRED.into(), QueueDeleteOptions::default()).await.unwrap();
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.expired\"} 1").await;
    peer.fill("ringcast.invites", ["meanwhile".to_owned()]).await;
    let meanwhile = rig.next().await;
    assert_eq!((meanwhile.body.as_ref(), meanwhile.redelivered), (b"meanwhile".as_slice(), false));
    assert!(held.receipt.is_live(), "the session did not end over it");
    held.receipt.ack();
    meanwhile.receipt.ack();
    assert_eq!(rig.status.state(), State::Consuming);
    let noted = |note: &String| note.contains("queue ringcast.expired is missing");
    assert!(rig.status.notes().iter().any(noted), "{:?}", rig.status.notes());

    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    peer.fill(EXPIRED, ["after".to_owned()]).await;
    let after = rig.next().await;
    assert_eq!(after.body, "after");
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.expired\"} 0").await;
    assert!(rig.status.notes().is_empty(), "{:?}", rig.status.notes());
    after.receipt.reject();
    peer.await_ready("ringcast.dead", 1).await;
    rig.stop().await;
    assert_eq!(peer.ready(EXPIRED).await, 0);
}

#[tokio::test]
async fn a_worker_that_starts_without_the_queue_of_the_expired_takes_invites() {
    let vhost = Vhost::new().await;
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    let peer = Peer::new(&vhost.uri()).await;
    peer.channel.queue_delete(EXPIRED.into(), QueueDeleteOptions::default()).await.unwrap();
    let mut rig = Rig::start(settings(vhost.uri()), 10);
    rig.await_consuming().await;
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.expired\"} 1").await;
    peer.fill("ringcast.invites", ["1".to_owned()]).await;
    rig.next().await.receipt.ack();
    rig.stop().await;
}

#[tokio::test]
async fn a_full_queue_of_the_expired_leaves_the_invites_their_part_of_the_prefetch() {
    let vhost = Vhost::new().await;
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill(EXPIRED, (0..50).map(|n| n.to_string())).await;
    let mut rig = Rig::start(settings(vhost.uri()), 100);
    // A twentieth of the prefetch.
    rig.await_metric("ringcast_amqp_unsettled 5").await;
    peer.fill("ringcast.invites", (0..200).map(|n| n.to_string())).await;
    rig.await_metric("ringcast_amqp_unsettled 100").await;
    let mut given_up = 0;
    for _ in 0..250 {
        let delivery = rig.next().await;
        given_up += u32::from(delivery.given_up.is_some());
        delivery.receipt.ack();
    }
    assert_eq!(given_up, 50);
    rig.stop().await;
}

#[tokio::test]
async fn a_delivery_says_why_the_broker_gave_it_up() {
    let vhost = Vhost::new().await;
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("ringcast.invites", ["returned".to_owned()]).await;
    return_too_often(&peer).await;
    peer.await_ready(EXPIRED, 1).await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let delivery = rig.next().await;
    assert_eq!(delivery.given_up, Some(GivenUp::DeliveryLimit));
    assert_eq!(delivery.properties.message_id.as_deref(), Some("m-returned"), "its identity is the same");
    delivery.receipt.ack();
    rig.stop().await;
}

#[tokio::test]
async fn what_died_before_in_a_queue_of_the_publishers_is_judged_by_its_last_death() {
    const OWN: &str = "calls.own";
    let vhost = Vhost::new().await;
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    let peer = Peer::new(&vhost.uri()).await;
    // Invites wait there for a moment before they go to Ringcast.
    let mut arguments = FieldTable::default();
    arguments.insert("x-message-ttl".into(), AMQPValue::LongInt(1));
    arguments.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    arguments.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString("ringcast.invites".into()));
    peer.channel.queue_declare(OWN.into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
    peer.fill(OWN, ["returned".to_owned()]).await;
    peer.await_ready("ringcast.invites", 1).await;
    return_too_often(&peer).await;
    peer.await_ready(EXPIRED, 1).await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let delivery = rig.next().await;
    assert_eq!(delivery.given_up, Some(GivenUp::DeliveryLimit), "it was expired only in front");
    delivery.receipt.ack();
    rig.stop().await;
}

/// Gives the invite that lies there back until the broker has enough: the limit is 20, so it comes back as often, and once more.
async fn return_too_often(peer: &Peer) {
    for round in 0..21 {
        let got = loop {
            let get = peer.channel.basic_get("ringcast.invites".into(), BasicGetOptions::default());
            match get.await.unwrap() {
                Some(got) => break got,
                None => tokio::time::sleep(std::time::Duration::from_millis(10)).await,
            }
        };
        assert_eq!(got.redelivered, round > 0);
        got.acker.reject(BasicRejectOptions { requeue: true }).await.unwrap();
    }
}
