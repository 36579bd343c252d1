//! The stop, in order.

use std::time::Duration;

use ringcast::amqp::{Phase, Settings, State};
use tokio::time::timeout;

use super::{LIMIT, Peer, Rig, result, settings};
use crate::vhost::{Vhost, start_broker};

#[tokio::test]
async fn draining_gives_back_what_was_not_begun_and_settles_the_rest() {
    let vhost = Vhost::new().await;
    let mut rig = Rig::start_consuming(settings(vhost.uri()), 5).await;
    let peer = Peer::new(&vhost.uri()).await;
    peer.fill("ringcast.invites", (0..200).map(|n| n.to_string())).await;
    let begun = [rig.next().await, rig.next().await, rig.next().await];
    // A twentieth is kept for what the broker gave up on.
    rig.await_metric("ringcast_amqp_unsettled 95").await;
    rig.phase.send_replace(Phase::Draining);
    // Those that wait in the flow are the worker's to give back.
    let mut unstarted = 0;
    while let Some(delivery) = timeout(LIMIT, rig.deliveries.recv()).await.expect("the flow ends") {
        unstarted += 1;
        delivery.receipt.give_back();
    }
    assert!((1..20).contains(&unstarted), "{unstarted}");
    rig.await_metric("ringcast_amqp_unsettled 3").await;
    peer.await_ready("ringcast.invites", 197).await;
    assert!(matches!(rig.status.state(), State::NotConsuming { .. }));
    // What was begun is published and settled as ever.
    assert_eq!(rig.outbox.publish(result("r", "outcome.acme")).await, Ok(()));
    let [one, two, three] = begun;
    assert!(one.receipt.is_live());
    two.receipt.ack();
    one.receipt.ack();
    rig.await_metric("ringcast_amqp_unsettled 1").await;
    // At the last moment: it counts all the same.
    three.receipt.ack();
    rig.stop().await;
    peer.await_ready("ringcast.invites", 197).await;
    let again = &peer.read("ringcast.invites", 1).await[0];
    assert!(again.redelivered);
}

/// RabbitMQ keeps settlements back while it has many others to write, and forgets them when their channel closes.
#[tokio::test]
async fn acks_of_the_last_moment_reach_a_slow_queue_behind_many_give_backs() {
    const EACH: usize = 100;
    // The queue writes nothing until the channel has heard every settlement, and some more.
    const SLOW: &str = "Queue = whereis('%2F_ringcast.invites'), ok = sys:suspend(Queue), spawn(fun() -> \
        Wait = fun Again(Tries) -> Held = [Count || Channel <- rabbit_channel:list_local(), \
            [{_, Count}] <- [try rabbit_channel:info(Channel, [messages_unacknowledged]) catch _:_ -> [] end]], \
            case lists:sum(Held) of 0 -> ok; _ when Tries =:= 0 -> ok; _ -> timer:sleep(5), Again(Tries - 1) end end, \
        Wait(2000), timer:sleep(100), sys:resume(Queue) end).";
    let broker = start_broker().await;
    let mut rig = Rig::start_consuming(Settings { prefetch: 500, ..settings(broker.uri()) }, 2 * EACH).await;
    let peer = Peer::new(&broker.uri()).await;
    peer.fill("ringcast.invites", (0..2 * EACH).map(|n| n.to_string())).await;
    let mut waiting = Vec::new();
    for _ in 0..2 * EACH {
        waiting.push(rig.next().await);
    }
    rig.phase.send_replace(Phase::Draining);
    assert!(timeout(LIMIT, rig.deliveries.recv()).await.expect("the flow ends").is_none());
    let begun = waiting.split_off(EACH);
    broker.ctl(&["eval", SLOW]).await.unwrap();
    for delivery in waiting {
        delivery.receipt.give_back();
    }
    for delivery in begun {
        delivery.receipt.ack();
    }
    rig.stop().await;
    // Confirmed after all that the end of the channel did to the queue.
    peer.fill("ringcast.invites", ["last".to_owned()]).await;
    let ready = usize::try_from(peer.ready("ringcast.invites").await).unwrap();
    assert_eq!(ready, EACH + 1, "what was given back comes again, and nothing that was acked");
}

#[tokio::test]
async fn draining_goes_on_through_a_lost_session() {
    let broker = start_broker().await;
    let mut rig = Rig::start_consuming(settings(broker.uri()), 5).await;
    let peer = Peer::new(&broker.uri()).await;
    peer.fill("ringcast.invites", (0..10).map(|n| n.to_string())).await;
    let begun = rig.next().await;
    rig.phase.send_replace(Phase::Draining);
    while let Some(delivery) = timeout(LIMIT, rig.deliveries.recv()).await.expect("the flow ends") {
        delivery.receipt.give_back();
    }
    broker.ctl(&["close_all_connections", "test"]).await.unwrap();
    timeout(LIMIT, async {
        while begun.receipt.is_live() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .expect("the receipt dies with the session");
    assert_eq!(rig.outbox.publish(result("r", "outcome.acme")).await, Ok(()), "the next session publishes");
    rig.stop().await;
    let peer = Peer::new(&broker.uri()).await;
    assert_eq!(peer.ready("ringcast.invites").await, 10, "it consumed nothing again");
    assert_eq!(peer.ready("ringcast.outcomes").await, 1);
}

#[tokio::test]
async fn closing_at_once_works_in_any_state() {
    let vhost = Vhost::new().await;
    // Missing everything; before anything was tried; while it consumes.
    let rig = Rig::start(settings(vhost.uri()), 5);
    rig.await_state(
        |state| matches!(state, State::NotConsuming { reason, .. } if reason.contains("missing")),
    )
    .await;
    rig.stop().await;
    Rig::start(settings(vhost.uri()), 5).stop().await;
    let rig = Rig::start_consuming(settings(vhost.uri()), 5).await;
    let Rig { phase, running, .. } = rig;
    drop(phase);
    timeout(LIMIT, running).await.expect("an application that is gone is a stop").unwrap();
}

#[tokio::test]
async fn a_blocked_broker_cannot_hold_up_the_end() {
    let broker = start_broker().await;
    let rig = Rig::start_consuming(settings(broker.uri()), 5).await;
    broker.ctl(&["set_vm_memory_high_watermark", "0"]).await.unwrap();
    let waiting = tokio::spawn({
        let outbox = rig.outbox.clone();
        async move { outbox.publish(result("r", "outcome.acme")).await }
    });
    rig.await_state(|state| matches!(state, State::Blocked { .. })).await;
    timeout(LIMIT, rig.stop()).await.expect("the end is not held up");
    assert!(waiting.await.unwrap().is_err());
}

/// Tells the test below that it runs in a process of its own.
const ALONE: &str = "RINGCAST_TEST_ALONE";

/// Other tests of this process have connections of their own, so this one starts itself again in a process of its own.
#[tokio::test]
async fn ended_sessions_leave_no_thread_behind() {
    if std::env::var_os(ALONE).is_some() {
        return census_of_threads().await;
    }
    let this = std::env::current_exe().unwrap();
    let mut census = tokio::process::Command::new(this);
    census.args(["--exact", "amqp::stop::ended_sessions_leave_no_thread_behind", "--nocapture"]);
    let output = timeout(2 * LIMIT, census.env(ALONE, "1").kill_on_drop(true).output());
    let output = output.await.expect("it ends").unwrap();
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

async fn census_of_threads() {
    let broker = start_broker().await;
    let rig = Rig::start_consuming(settings(broker.uri()), 5).await;
    assert_eq!(io_threads(), 2, "a session is two connections");
    rig.stop().await;
    for _ in 0..10 {
        Rig::start_consuming(settings(broker.uri()), 5).await.stop().await;
    }
    // Lost from outside.
    let rig = Rig::start_consuming(settings(broker.uri()), 5).await;
    let down = rig.await_state(|state| matches!(state, State::NotConsuming { .. }));
    let (_, closed) = tokio::join!(down, broker.ctl(&["close_all_connections", "test"]));
    closed.unwrap();
    rig.await_consuming().await;
    rig.stop().await;
    // Blocked: the library writes nothing any more on the connection, not even its goodbye.
    let rig = Rig::start_consuming(settings(broker.uri()), 5).await;
    broker.ctl(&["set_vm_memory_high_watermark", "0"]).await.unwrap();
    let outbox = rig.outbox.clone();
    let waiting = tokio::spawn(async move { outbox.publish(result("r", "outcome.acme")).await });
    rig.await_state(|state| matches!(state, State::Blocked { .. })).await;
    rig.stop().await;
    assert!(waiting.await.unwrap().is_err());
    timeout(LIMIT, async {
        while io_threads() > 0 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{} threads of the client library are left", io_threads()));
}

/// Threads of the client library in this process.
fn io_threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let name =
        |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks.map(name).filter(|name| name.starts_with("lapin-io")).count()
}
