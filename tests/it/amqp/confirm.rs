//! Results that the broker does not take. They cost no delivery: what was consumed stays with the worker.

use std::time::Duration;

use futures_util::future::join_all;
use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};
use ringcast::amqp::{Settings, State, supervisor};
use ringcast::worker::mailbox::{Delivery, PublishError};
use tokio::time::timeout;

use super::{LIMIT, Peer, Rig, result, settings};
use crate::vhost::Vhost;

/// More than the lanes carry at once, and than RabbitMQ's flow control lets through to a queue that takes nothing.
const MANY: usize = 1200;

async fn hold_one(rig: &mut Rig, peer: &Peer) -> Delivery {
    peer.fill("ringcast.invites", ["held".to_owned()]).await;
    rig.next().await
}

fn why(fate: Result<(), PublishError>) -> String {
    match fate {
        Err(PublishError::Unconfirmed(why)) => why,
        other => panic!("{other:?}"),
    }
}

/// The session that took it lives: its ack reaches the broker, and it does not come again.
async fn settle_held(held: Delivery, rig: Rig, peer: &Peer) {
    assert!(held.receipt.is_live(), "the session lives");
    held.receipt.ack();
    rig.await_metric("ringcast_amqp_unsettled 0").await;
    rig.stop().await;
    assert_eq!(peer.ready("ringcast.invites").await, 0);
}

#[tokio::test]
async fn a_queue_that_confirms_nothing_costs_no_session() {
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    let held = hold_one(&mut rig, &peer).await;
    vhost.suspend("ringcast.outcomes").await;
    let outcome = |n: usize| {
        let outbox = rig.outbox.clone();
        async move { outbox.publish(result(&format!("o-{n}"), "outcome.acme")).await }
    };
    let outcomes = join_all((0..MANY).map(&outcome));
    let event = rig.outbox.publish(result("e", "invalid_token.acme"));
    let (fates, event) = tokio::join!(outcomes, event);
    assert_eq!(event, Ok(()), "another queue is another matter");
    for fate in fates {
        let why = why(fate);
        assert!(why.contains("no answer from the broker"), "{why}");
    }
    assert_eq!(rig.status.state(), State::Consuming);
    rig.await_metric(&format!("ringcast_amqp_publishes_total{{result=\"lost\"}} {MANY}")).await;
    assert_eq!(rig.outbox.publish(result("f", "invalid_token.acme")).await, Ok(()));
    assert_eq!(peer.ready("ringcast.invalid-tokens").await, 2, "each once");

    vhost.resume("ringcast.outcomes").await;
    // The confirms of the lost ones come late, and are nobody's: what has no queue comes back.
    let (routed, unrouted) = tokio::join!(
        join_all((0..MANY).map(&outcome)),
        join_all((0..MANY).map(|n| rig.outbox.publish(result(&format!("u-{n}"), "nobody.reads.this"))))
    );
    assert!(routed.iter().all(Result::is_ok), "{routed:?}");
    assert!(unrouted.iter().all(|fate| matches!(fate, Err(PublishError::Returned(_)))), "{unrouted:?}");
    settle_held(held, rig, &peer).await;
}

#[tokio::test]
async fn a_deleted_results_exchange_costs_no_session_and_is_named() {
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    let held = hold_one(&mut rig, &peer).await;
    peer.channel.exchange_delete("ringcast.results".into(), ExchangeDeleteOptions::default()).await.unwrap();
    for n in 0..3 {
        let why = why(rig.outbox.publish(result(&format!("r-{n}"), "outcome.acme")).await);
        assert!(why.contains("no exchange 'ringcast.results'"), "{why}");
    }
    let missing =
        "exchange ringcast.results is missing: run `ringcast topology declare` or set amqp.declare = true";
    rig.await_state(|state| *state == State::Lacking { reason: missing.into() }).await;
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.results\"} 1").await;
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    rig.await_consuming().await;
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.results\"} 0").await;
    assert_eq!(rig.outbox.publish(result("r", "outcome.acme")).await, Ok(()));
    settle_held(held, rig, &peer).await;
}

/// Where many are on their way, the client library's word that it heard of the closed channel may overtake them, and the
/// broker closes the connection over what then comes on no channel. So a session may be lost, and nothing else.
#[tokio::test]
async fn a_deleted_results_exchange_lets_none_of_many_pass_for_taken() {
    let vhost = Vhost::new().await;
    let rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.channel.exchange_delete("ringcast.results".into(), ExchangeDeleteOptions::default()).await.unwrap();
    let publish = |n: usize| rig.outbox.publish(result(&format!("r-{n}"), "outcome.acme"));
    for fate in join_all((0..MANY).map(publish)).await {
        match fate {
            Err(PublishError::Lost) => {}
            other => {
                let why = why(other);
                let told =
                    ["no exchange 'ringcast.results'", "the channel is closed", "the connection is closed"];
                assert!(told.iter().any(|word| why.contains(word)), "{why}");
            }
        }
    }
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    rig.await_consuming().await;
    let mut fates = 0;
    while rig.outbox.publish(result("r", "outcome.acme")).await.is_err() {
        fates += 1;
        assert!(fates < 100, "with the exchange back, results are taken");
    }
    assert_eq!(peer.ready("ringcast.outcomes").await, 1);
    rig.stop().await;
}

#[tokio::test]
async fn a_channel_that_is_closed_each_time_does_not_spin() {
    let vhost = Vhost::new().await;
    let rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.channel.exchange_delete("ringcast.results".into(), ExchangeDeleteOptions::default()).await.unwrap();
    let began = tokio::time::Instant::now();
    // Each takes a channel of the four, and each channel waits a second for its successor.
    for n in 0..13 {
        why(rig.outbox.publish(result(&format!("r-{n}"), "outcome.acme")).await);
    }
    assert!(began.elapsed() >= Duration::from_secs(2), "{:?}", began.elapsed());
    rig.stop().await;
}

#[tokio::test]
async fn a_deleted_outcomes_queue_is_named_until_it_is_back() {
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    let held = hold_one(&mut rig, &peer).await;
    peer.channel.queue_delete("ringcast.outcomes".into(), QueueDeleteOptions::default()).await.unwrap();
    let fate = rig.outbox.publish(result("r", "outcome.acme")).await;
    assert!(matches!(&fate, Err(PublishError::Returned(why)) if why.contains("NO_ROUTE")), "{fate:?}");
    let missing =
        "queue ringcast.outcomes is missing: run `ringcast topology declare` or set amqp.declare = true";
    rig.await_state(|state| *state == State::Lacking { reason: missing.into() }).await;
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.outcomes\"} 1").await;
    supervisor::declare(&settings(vhost.uri())).await.unwrap();
    rig.await_consuming().await;
    rig.await_metric("ringcast_amqp_missing{name=\"ringcast.outcomes\"} 0").await;
    assert_eq!(rig.outbox.publish(result("r", "outcome.acme")).await, Ok(()));
    settle_held(held, rig, &peer).await;
}

#[tokio::test]
async fn a_worker_that_declares_puts_back_what_results_need() {
    let vhost = Vhost::new().await;
    let declaring = Settings { declare: true, ..settings(vhost.uri()) };
    let mut rig = Rig::start_consuming(declaring, 10).await;
    let peer = Peer::new(&vhost.uri()).await;
    let held = hold_one(&mut rig, &peer).await;
    peer.channel.queue_delete("ringcast.outcomes".into(), QueueDeleteOptions::default()).await.unwrap();
    let published = timeout(LIMIT, async {
        while rig.outbox.publish(result("r", "outcome.acme")).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    published.await.expect("the queue comes back, and its binding");
    settle_held(held, rig, &peer).await;
}
