//! Ten thousand invites, and an account of every one of them.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::apple::Apple;
use crate::client;
use crate::place::Place;
use crate::plan::{Kind, Plan, await_drained, read_all};
use crate::process::run_ringcast;
use crate::vhost::Vhost;
use crate::worker::{Config, Worker};

/// Long for a machine that does nothing else; short enough that the deadlines, four minutes ahead, are not in play.
const DRAINED_WITHIN: Duration = Duration::from_mins(3);

#[tokio::test]
async fn every_invite_of_a_load_is_accounted_for() {
    let place = Place::new("load");
    let vhost = Vhost::new().await;
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri());
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;

    let plan = Plan::new(10_000, 1);
    client::publish(&vhost.uri(), "ringcast.invites", &plan.messages()).await;
    client::await_depth(&vhost.uri(), "ringcast.outcomes", plan.invites.len(), DRAINED_WITHIN).await;
    await_drained(&vhost.uri(), &worker, DRAINED_WITHIN).await;
    worker.stop().await;

    assert_eq!(
        client::depth(&vhost.uri(), "ringcast.invites").await,
        0,
        "nothing is unacked, and nothing waits"
    );
    let outcomes = read_all(&vhost.uri(), "ringcast.outcomes").await;
    let events = read_all(&vhost.uri(), "ringcast.invalid-tokens").await;
    assert_eq!(outcomes.len(), plan.invites.len(), "one outcome for each invite");
    assert_eq!(events.len(), plan.dead_tokens().len(), "one event for each dead token");
    let verdict = plan.judge(&outcomes, &events, &apple.stop().await);
    assert!(verdict.outcomes_doubled.is_empty(), "{verdict:?}");
    assert!(verdict.rang_twice.is_empty(), "every device exactly once: {verdict:?}");
    assert!(verdict.redelivered.is_empty(), "{verdict:?}");

    let dead = read_all(&vhost.uri(), "ringcast.dead").await;
    assert_eq!(dead.len(), plan.count(Kind::Malformed), "the malformed ones, and no others");
    let malformed = plan.invites.iter().filter(|invite| invite.kind == Kind::Malformed);
    let originals: BTreeSet<&[u8]> = malformed.map(|invite| invite.body.as_slice()).collect();
    let kept: BTreeSet<&[u8]> = dead.iter().map(|message| message.body.as_slice()).collect();
    assert_eq!(kept, originals, "byte for byte");
    for message in &dead {
        assert_eq!(message.properties["headers"]["x-first-death-reason"], "rejected");
    }
    for queue in ["ringcast.expired", "ringcast.quarantined-tokens"] {
        assert_eq!(client::depth(&vhost.uri(), queue).await, 0, "{queue} was not needed");
    }
}

/// Makes the queues, as an operator would.
pub(crate) async fn declare(place: &Place, config: &Config) {
    let file = config.write(place, "declare.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let ended = run_ringcast(&["topology", "declare", "--config", file], &[], place.as_ref()).await;
    assert_eq!(ended.code, Some(0), "topology declare: {}", ended.stderr);
}
