//! In and out, while nothing is wrong with the broker.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Once;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::QueueDeclareOptions;
use lapin::types::FieldTable;
use parking_lot::Mutex;
use ringcast::amqp::{Settings, State};
use ringcast::worker::mailbox::{PublishError, Route};

use super::{Peer, Rig, result, settings};
use crate::vhost::Vhost;

#[tokio::test]
async fn deliveries_are_settled_in_any_order_and_way() {
    const COUNT: usize = 1000;
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("ringcast.invites", (0..COUNT).map(|n| n.to_string())).await;

    let (mut held, mut acked, mut again) = (Vec::new(), BTreeSet::new(), BTreeSet::new());
    while acked.len() + 100 < COUNT {
        let delivery = rig.next().await;
        let number: usize = std::str::from_utf8(&delivery.body).unwrap().parse().unwrap();
        assert_eq!(delivery.properties.message_id, Some(format!("m-{number}")));
        assert_eq!(delivery.properties.reply_to.as_deref(), Some("answers"));
        assert!(delivery.receipt.is_live());
        if number.is_multiple_of(10) {
            delivery.receipt.reject();
        } else if number.is_multiple_of(7) && !delivery.redelivered {
            again.insert(number);
            drop(delivery);
        } else {
            assert_eq!(delivery.redelivered, again.remove(&number), "{number}");
            held.push((number, delivery));
        }
        // Out of order, and never all: the first of those held stays for long.
        while held.len() > 50 {
            let (number, delivery) = held.remove(1 + held.len() / 2);
            delivery.receipt.ack();
            assert!(acked.insert(number), "{number} was acked twice");
        }
        if acked.len() + held.len() + 100 >= COUNT && again.is_empty() {
            for (number, delivery) in held.drain(..) {
                delivery.receipt.ack();
                acked.insert(number);
            }
        }
    }
    assert_eq!(acked.len(), COUNT - COUNT / 10);
    peer.await_ready("ringcast.dead", 100).await;
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    assert_eq!(rig.status.state(), State::Consuming, "no channel was killed");
    rig.stop().await;
    assert_eq!(peer.ready("ringcast.invites").await, 0);
}

#[tokio::test]
async fn a_delivery_says_how_often_it_came_back() {
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("ringcast.invites", ["1".to_owned()]).await;
    for returns in 0..3 {
        let delivery = rig.next().await;
        // Before the first return, brokers say 0 or nothing.
        assert_eq!(delivery.returned.unwrap_or_default(), returns);
        assert_eq!(delivery.redelivered, returns > 0);
    }
    rig.next().await.receipt.reject();
    peer.await_ready("ringcast.dead", 1).await;
    rig.stop().await;
}

#[tokio::test]
async fn an_ack_behind_a_slow_invite_is_not_kept_back() {
    let vhost = Vhost::new().await;
    let mut all = settings(vhost.uri());
    all.prefetch = 3;
    let mut rig = Rig::start_consuming(all, 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("ringcast.invites", (0..50).map(|n| n.to_string())).await;
    let slow = rig.next().await;
    for _ in 1..50 {
        rig.next().await.receipt.ack();
    }
    rig.await_metric("ringcast_amqp_unsettled 1").await;
    slow.receipt.ack();
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    rig.stop().await;
}

#[tokio::test]
async fn each_of_many_results_gets_its_own_fate() {
    const COUNT: usize = 3000;
    let vhost = Vhost::new().await;
    let rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let lost = |n: usize| n.is_multiple_of(15);
    let fates = join_all((0..COUNT).map(|n| {
        let key = if lost(n) { "nobody.reads.this" } else { "outcome.acme" };
        let outbox = rig.outbox.clone();
        async move { outbox.publish(result(&format!("r-{n}"), key)).await }
    }))
    .await;
    for (n, fate) in fates.iter().enumerate() {
        match fate {
            Err(PublishError::Returned(why)) => {
                assert!(lost(n), "{n} was routed: {why}");
                assert!(why.contains("NO_ROUTE") && why.contains("nobody.reads.this"), "{why}");
            }
            fate => assert!(fate.is_ok() && !lost(n), "{n}: {fate:?}"),
        }
    }
    let peer = Peer::new(&vhost.uri()).await;
    let messages = peer.read("ringcast.outcomes", COUNT - COUNT / 15).await;
    let ids: BTreeSet<_> = messages.iter().map(|it| it.properties.message_id().clone().unwrap()).collect();
    assert_eq!(ids.len(), COUNT - COUNT / 15, "each once");
    let first = &messages[0].properties;
    let text = |value: &Option<lapin::types::ShortString>| value.as_ref().map(|it| it.as_str().to_owned());
    assert_eq!(first.delivery_mode(), &Some(2));
    assert_eq!(text(first.content_type()).as_deref(), Some("application/json"));
    assert_eq!(text(first.kind()).as_deref(), Some("ringcast.outcome.v1"));
    assert_eq!(text(first.app_id()).as_deref(), Some("ringcast"));
    assert_eq!(text(first.correlation_id()), text(first.message_id()).map(|id| format!("c-{id}")));
    assert_eq!(first.timestamp(), &Some(1_795_253_400));
    let headers = first.headers().clone().unwrap();
    assert_eq!(headers.inner().len(), 2, "{headers:?}");
    rig.await_metric("ringcast_amqp_publishes_total{result=\"returned\"} 200").await;
    rig.await_metric("ringcast_amqp_publishes_total{result=\"confirmed\"} 2800").await;
    rig.stop().await;
}

#[tokio::test]
async fn a_full_queue_refuses() {
    let vhost = Vhost::new().await;
    let rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    let mut arguments = FieldTable::default();
    arguments.insert("x-max-length".into(), lapin::types::AMQPValue::LongInt(0));
    arguments.insert("x-overflow".into(), lapin::types::AMQPValue::LongString("reject-publish".into()));
    peer.channel.queue_declare("full".into(), QueueDeclareOptions::durable(), arguments).await.unwrap();
    let bind = peer.channel.queue_bind(
        "full".into(),
        "ringcast.results".into(),
        "full".into(),
        lapin::options::QueueBindOptions::default(),
        FieldTable::default(),
    );
    bind.await.unwrap();
    assert_eq!(rig.outbox.publish(result("r", "full")).await, Err(PublishError::Nacked));
    assert_eq!(rig.outbox.publish(result("r", "outcome.acme")).await, Ok(()));
    rig.stop().await;
}

#[tokio::test]
async fn copies_go_out_unconfirmed_and_a_refused_one_harms_nothing() {
    let log = logged();
    let vhost = Vhost::new().await;
    let rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    let declare =
        peer.channel.queue_declare("answers".into(), QueueDeclareOptions::durable(), FieldTable::default());
    declare.await.unwrap();
    let copy = |id: &str, route: Route| ringcast::worker::mailbox::Publication { route, ..result(id, "") };
    let reply = |id: &str, queue: &str| copy(id, Route::Reply(queue.into()));
    assert_eq!(rig.outbox.publish(reply("a", "nobody")).await, Ok(()));
    assert_eq!(rig.outbox.publish(reply("b", "answers")).await, Ok(()));
    let delete = peer
        .channel
        .exchange_delete("ringcast.live".into(), lapin::options::ExchangeDeleteOptions::default());
    delete.await.unwrap();
    for _ in 0..20 {
        assert_eq!(rig.outbox.publish(copy("c", Route::Live("outcome.acme".into()))).await, Ok(()));
        assert_eq!(rig.outbox.publish(result("d", "outcome.acme")).await, Ok(()));
    }
    let long = "x".repeat(256);
    assert_eq!(rig.outbox.publish(reply("e", &long)).await, Ok(()));
    assert!(matches!(rig.outbox.publish(result("f", &long)).await, Err(PublishError::Returned(_))));
    let answer = &peer.read("answers", 1).await[0];
    assert_eq!(answer.properties.delivery_mode(), &Some(1));
    assert_eq!(answer.properties.message_id().as_ref().unwrap().as_str(), "b");
    assert_eq!(rig.status.state(), State::Consuming, "the session lives");
    rig.await_metric("ringcast_amqp_publishes_total{result=\"confirmed\"} 20").await;
    rig.stop().await;
    let told = String::from_utf8_lossy(&log.lock()).matches("refused a copy").count();
    assert_eq!(told, 1, "once a session, however many it refuses");
}

#[tokio::test]
async fn several_queues_share_the_worker_and_the_prefetch() {
    let vhost = Vhost::new().await;
    let mut all = settings(vhost.uri());
    all.invites = vec!["ringcast.invites".into(), "vip".into()];
    // One is kept for what the broker gave up on.
    all.prefetch = 11;
    let mut rig = Rig::start_consuming(all, 100).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("ringcast.invites", (0..20).map(|n| n.to_string())).await;
    peer.fill("vip", (20..40).map(|n| n.to_string())).await;
    rig.await_metric("ringcast_amqp_unsettled 10").await;
    let mut seen = BTreeSet::new();
    for _ in 0..40 {
        let delivery = rig.next().await;
        seen.insert(delivery.body.clone());
        delivery.receipt.ack();
    }
    assert_eq!(seen.len(), 40);
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    rig.stop().await;
}

/// What the process logged, from the first call on.
fn logged() -> &'static Mutex<Vec<u8>> {
    static LOG: Mutex<Vec<u8>> = Mutex::new(Vec::new());
    static LISTENING: Once = Once::new();
    struct Sink;
    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            LOG.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    LISTENING.call_once(|| {
        tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .with_writer(|| Sink)
            .try_init()
            .expect("nothing else here listens to the log");
    });
    &LOG
}

#[tokio::test]
async fn a_returned_result_is_not_logged() {
    let log = logged();
    let vhost = Vhost::new().await;
    let rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let mut secret = result("very-secret-id", "nobody.reads.this");
    secret.correlation_id = Some("very-secret-correlation".into());
    assert!(matches!(rig.outbox.publish(secret).await, Err(PublishError::Returned(_))));
    rig.stop().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    let log = String::from_utf8_lossy(&log.lock()).into_owned();
    assert!(log.contains("in session with the broker"), "the log was listened to: {log}");
    assert!(!log.contains("very-secret") && !log.contains("Server returned"), "{log}");
}

/// As with a prefetch of 1: the room that one queue's reader gets must not go from hand to hand.
#[tokio::test]
async fn several_queues_share_the_least_room_there_is() {
    let vhost = Vhost::new().await;
    let queues = ["ringcast.invites", "second", "third"];
    let three = Settings { invites: queues.map(str::to_owned).into(), ..settings(vhost.uri()) };
    let mut rig = Rig::start_consuming(three, 1).await;
    let peer = Peer::new(&vhost.uri()).await;
    for queue in queues {
        peer.fill(queue, (0..10).map(|n| format!("{queue}-{n}"))).await;
    }
    rig.await_metric("ringcast_amqp_unsettled 30").await;
    let mut seen = BTreeSet::new();
    while seen.len() < 30 {
        let delivery = rig.next().await;
        assert!(seen.insert(delivery.body.clone()), "once each");
        delivery.receipt.ack();
    }
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    rig.stop().await;
}
