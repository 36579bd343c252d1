//! The broker goes away and comes back in the middle of a load. Nobody touches the worker.

use std::time::Duration;

use crate::apple::Apple;
use crate::client;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, await_drained, read_all};
use crate::vhost::start_broker;
use crate::worker::{Config, Worker};

const INVITES: usize = 4_000;
const MIDDLE: usize = 1_000;
const PREFETCH: usize = 200;
const DRAINED_WITHIN: Duration = Duration::from_secs(150);

#[tokio::test]
async fn a_worker_recovers_from_a_restart_of_the_broker_by_itself() {
    let place = Place::new("restart");
    let mut broker = start_broker().await;
    let uri = broker.uri();
    let apple = Apple::start(&place, (20, 60), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &uri).set("amqp", "prefetch", &PREFETCH.to_string());
    declare(&place, &config).await;
    let plan = Plan::new(INVITES, 4);
    client::publish(&uri, "ringcast.invites", &plan.messages()).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    client::await_depth(&uri, "ringcast.outcomes", MIDDLE, DRAINED_WITHIN).await;

    broker.stop().await.expect("the broker stops");
    let unready = worker.await_endpoint("/readyz", Duration::from_secs(30), |status, _| status == 503).await;
    assert!(!unready.trim().is_empty(), "it says why it is not ready");
    assert_eq!(worker.fetch("/livez").await.0, 200, "a missing broker is no reason to be restarted");
    broker.start_again().await.expect("the broker starts again");
    let before = client::depth(&uri, "ringcast.outcomes").await;
    assert!(before < INVITES, "the broker stopped in the middle, not at the end");

    worker.await_ready().await;
    client::await_depth(&uri, "ringcast.outcomes", INVITES, DRAINED_WITHIN).await;
    await_drained(&uri, &worker, DRAINED_WITHIN).await;
    worker.stop().await;
    assert_eq!(client::depth(&uri, "ringcast.invites").await, 0, "nothing is unacked, and nothing waits");
    let outcomes = read_all(&uri, "ringcast.outcomes").await;
    let events = read_all(&uri, "ringcast.invalid-tokens").await;
    let verdict = plan.judge(&outcomes, &events, &apple.stop().await);
    // Only what was unacked when the broker stopped came again. Where this worker still knew the outcome, it published the
    // same one again and pushed nobody; a device that was pushed again belongs to an invite that says it came again.
    let unacked = verdict.redelivered.union(&verdict.outcomes_doubled).count();
    assert!(unacked <= PREFETCH, "at most {PREFETCH} were unacked, {unacked} came again");
    assert!(verdict.rang_twice.is_subset(&verdict.redelivered), "{verdict:?}");
}
