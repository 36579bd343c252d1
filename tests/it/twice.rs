//! Every invite comes twice on purpose, and rings once.

use std::time::Duration;

use crate::apple::Apple;
use crate::client;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, await_drained, read_all};
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
    assert!(verdict.pushes_doubled.is_empty(), "one push for each device: {verdict:?}");
    assert_eq!(verdict.outcomes_doubled.len(), INVITES);
    assert!(verdict.redelivered.is_empty(), "{verdict:?}");
}
