//! Results that the broker does not take: no invite is acked, it is told why, and when it is mended all drains without
//! anybody touching the worker.

use std::time::Duration;

use lapin::options::{QueueBindOptions, QueueDeleteOptions};
use lapin::types::FieldTable;

use crate::amqp::Peer;
use crate::apple::Apple;
use crate::client;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, await_drained, read_all};
use crate::vhost::Vhost;
use crate::worker::{Config, Worker};

const INVITES: usize = 60;
/// More than a queue that refuses takes before its publishers know of it.
const MANY_INVITES: usize = 500;
/// Less than there are invites.
const PREFETCH: usize = 40;
/// Without the part for what the broker gave up on.
const HELD: usize = 38;
const WITHIN: Duration = Duration::from_secs(90);
const RETURNED: &str = "ringcast_amqp_publishes_total{result=\"returned\"} ";

struct Stage {
    place: Place,
    vhost: Vhost,
    config: Config,
    apple: Apple,
    worker: Worker,
    peer: Peer,
    plan: Plan,
}

impl Stage {
    async fn build(name: &str, salt: u16, invites: usize) -> Self {
        let (place, vhost) = (Place::new(name), Vhost::new().await);
        let apple = Apple::start(&place, (0, 0), "").await;
        let mut config = Config::new(&apple);
        config.text("amqp", "uri", &vhost.uri()).set("amqp", "prefetch", &PREFETCH.to_string());
        declare(&place, &config).await;
        let worker = Worker::start_ready(&place, &config, "worker").await;
        let peer = Peer::new(&vhost.uri()).await;
        Self { place, vhost, config, apple, worker, peer, plan: Plan::new(invites, salt) }
    }

    /// Publishes the load into the trouble, and waits until the worker holds all that it may and says `why` it takes no more.
    async fn endure(&mut self, why: &str) {
        client::publish(&self.vhost.uri(), "ringcast.invites", &self.plan.messages()).await;
        let says = |status: u16, text: &str| {
            status == 503 && text.contains("results: results are not taken") && text.contains(why)
        };
        self.worker.await_endpoint("/readyz", WITHIN, says).await;
        let holds = |_: u16, text: &str| {
            let value = |family: &str| {
                let line = text.lines().find_map(|line| line.strip_prefix(family)?.strip_prefix(' '));
                line.and_then(|value| value.parse::<f64>().ok()).unwrap_or_default()
            };
            value("ringcast_amqp_untaken") >= 1.0
                && value("ringcast_amqp_oldest_untaken_seconds") >= 10.0
                && value("ringcast_amqp_unsettled").to_string() == HELD.to_string()
        };
        self.worker.await_endpoint("/metrics", WITHIN, holds).await;
        assert_eq!(self.worker.fetch("/livez").await.0, 200, "a restart would mend nothing");
        let log = self.worker.log();
        assert!(log.contains(why), "{why} is not in {log}");
        let told = log.matches("results are not taken").count();
        assert!((1..=3).contains(&told), "one line a minute, not one a result: {told} of them");
    }

    /// How many invites the broker still has, those that the worker holds included.
    async fn invites(&self) -> u64 {
        let queues = self.vhost.list("list_queues", &["name", "messages"]).await;
        let row = queues.iter().find(|row| row["name"] == "ringcast.invites").expect("it was declared");
        row["messages"].as_u64().expect("a number")
    }

    /// All drains, each invite with one outcome identity, no device pushed twice, and nothing came again.
    async fn drain(mut self) {
        let uri = self.vhost.uri();
        client::await_depth(&uri, "ringcast.outcomes", self.plan.invites.len(), WITHIN).await;
        await_drained(&uri, &self.worker, WITHIN).await;
        self.worker.await_ready().await;
        assert_eq!(self.worker.metric("ringcast_amqp_untaken").await, Some(0.0));
        assert!(self.worker.log().contains("results are taken again"), "{}", self.worker.log());
        self.worker.stop().await;
        let outcomes = read_all(&uri, "ringcast.outcomes").await;
        let events = read_all(&uri, "ringcast.invalid-tokens").await;
        let verdict = self.plan.judge(&outcomes, &events, &self.apple.stop().await);
        assert!(verdict.rang_twice.is_empty(), "{verdict:?}");
        assert!(verdict.redelivered.is_empty(), "the session lived through it: {verdict:?}");
    }
}

#[tokio::test]
async fn a_binding_that_is_gone_acks_nothing_and_drains_when_it_is_back() {
    let mut stage = Stage::build("unbound", 40, INVITES).await;
    let (queue, exchange, key) = ("ringcast.outcomes", "ringcast.results", "outcome.#");
    let unbind =
        stage.peer.channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default());
    unbind.await.expect("it was bound");
    stage.endure("NO_ROUTE, routing key outcome.acme").await;
    assert_eq!(stage.invites().await, 60, "not one is acked");
    let (_, metrics) = stage.worker.fetch("/metrics").await;
    let returned = metrics.lines().find_map(|line| line.strip_prefix(RETURNED)?.parse::<u64>().ok());
    assert!(returned.is_some_and(|count| count >= 38), "each was returned: {returned:?}");
    let bind = stage.peer.channel.queue_bind(
        queue.into(),
        exchange.into(),
        key.into(),
        QueueBindOptions::default(),
        FieldTable::default(),
    );
    bind.await.expect("both are there");
    stage.drain().await;
}

#[tokio::test]
async fn a_deleted_outcomes_queue_is_named_and_drains_when_it_is_declared() {
    let mut stage = Stage::build("deleted", 41, INVITES).await;
    let delete = stage.peer.channel.queue_delete("ringcast.outcomes".into(), QueueDeleteOptions::default());
    delete.await.expect("it was there");
    stage.endure("NO_ROUTE, routing key outcome.acme").await;
    assert_eq!(stage.invites().await, 60, "not one is acked");
    let missing = "amqp: queue ringcast.outcomes is missing: run `ringcast topology declare`";
    stage.worker.await_endpoint("/readyz", WITHIN, |_, text| text.contains(missing)).await;
    let gauge = |value: u8| format!("ringcast_amqp_missing{{name=\"ringcast.outcomes\"}} {value}");
    stage.worker.await_endpoint("/metrics", WITHIN, |_, text| text.contains(&gauge(1))).await;
    declare(&stage.place, &stage.config).await;
    stage.worker.await_endpoint("/metrics", WITHIN, |_, text| text.contains(&gauge(0))).await;
    stage.drain().await;
}

#[tokio::test]
async fn a_full_outcomes_queue_keeps_the_invites_and_drains_when_there_is_room() {
    let mut stage = Stage::build("full", 42, MANY_INVITES).await;
    stage.vhost.limit("ringcast.outcomes", 0).await;
    stage.endure("the broker refused it").await;
    stage.vhost.unlimit().await;
    stage.drain().await;
}

#[tokio::test]
async fn an_outcomes_queue_that_confirms_nothing_costs_no_session_and_drains() {
    let mut stage = Stage::build("silent", 43, INVITES).await;
    stage.vhost.suspend("ringcast.outcomes").await;
    stage.endure("the broker did not confirm it").await;
    assert_eq!(stage.invites().await, 60, "not one is acked");
    stage.vhost.resume("ringcast.outcomes").await;
    stage.drain().await;
}
