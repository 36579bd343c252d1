//! Every invite comes twice on purpose, and rings once; and who asked for a reply gets one to each.

use std::time::Duration;

use crate::apple::Apple;
use crate::client;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Kind, Plan, await_drained, read_all};
use crate::vhost::Vhost;
use crate::worker::{Config, Worker};

const INVITES: usize = 300;
const WITHIN: Duration = Duration::from_mins(2);

#[tokio::test]
async fn an_invite_that_comes_again_rings_once_and_is_answered_with_the_same_identity() {
    let (place, vhost) = (Place::new("twice"), Vhost::new().await);
    let uri = vhost.uri();
    // Slow enough that the second copy finds the first under way.
    let apple = Apple::start(&place, (50, 150), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &uri).set("amqp", "invites", r#"["ringcast.invites", "vip"]"#);
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;

    let plan = Plan::new(INVITES, 44);
    let messages = plan.messages();
    // Beside each other in one queue, and in another queue at the same time.
    let doubled: Vec<_> = messages.iter().flat_map(|message| [message.clone(), message.clone()]).collect();
    tokio::join!(
        client::publish(&uri, "ringcast.invites", &doubled),
        client::publish(&uri, "vip", &messages)
    );
    client::await_depth(&uri, "ringcast.outcomes", 3 * INVITES, WITHIN).await;
    // And once more when every outcome is known.
    client::publish(&uri, "vip", &messages).await;
    client::await_depth(&uri, "ringcast.outcomes", 4 * INVITES, WITHIN).await;
    await_drained(&uri, &worker, WITHIN).await;
    worker.stop().await;

    let outcomes = read_all(&uri, "ringcast.outcomes").await;
    assert_eq!(outcomes.len(), 4 * INVITES, "each copy is answered");
    let events = read_all(&uri, "ringcast.invalid-tokens").await;
    // The judge asserts one identity for all copies of an invite, and at least one push for each device.
    let verdict = plan.judge(&outcomes, &events, &apple.stop().await);
    assert!(verdict.rang_twice.is_empty(), "one push for each device: {verdict:?}");
    assert_eq!(verdict.outcomes_doubled.len(), INVITES);
    assert!(verdict.redelivered.is_empty(), "{verdict:?}");
}

#[tokio::test]
async fn who_asks_for_a_reply_gets_a_copy_of_the_outcome() {
    let (place, vhost) = (Place::new("reply"), Vhost::new().await);
    let uri = vhost.uri();
    let apple = Apple::start(&place, (0, 20), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &uri);
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    let plan = Plan::new(INVITES, 45);
    assert!(plan.count(Kind::Malformed) > 0, "these are answered, too");

    let messages = plan.messages();
    let first = client::call(&uri, "ringcast.invites", &messages, "queue", WITHIN).await;
    // What is known already is answered as well, to whoever asks now.
    let second = client::call(&uri, "ringcast.invites", &messages, "direct", WITHIN).await;
    await_drained(&uri, &worker, WITHIN).await;
    worker.stop().await;
    let outcomes = read_all(&uri, "ringcast.outcomes").await;
    assert_eq!(outcomes.len(), 2 * INVITES);
    for (queue, replies) in [("amq.gen-", first), ("amq.rabbitmq.reply-to.", second)] {
        let mut answered: Vec<_> = replies.iter().map(|reply| reply.text("correlation_id")).collect();
        answered.sort_unstable();
        answered.dedup();
        assert_eq!(answered.len(), INVITES, "one to each");
        for reply in &replies {
            assert_eq!((reply.exchange.as_str(), reply.routing_key.starts_with(queue)), ("", true));
            // What is malformed is read anew, and answered with other instants.
            let id = reply.text("message_id");
            let mut own = outcomes.iter().filter(|outcome| outcome.text("message_id") == id);
            let outcome = own.find(|outcome| outcome.body == reply.body).expect("byte for byte");
            for property in ["correlation_id", "type", "app_id", "content_type"] {
                assert_eq!(reply.text(property), outcome.text(property), "{property}");
            }
        }
    }
}
