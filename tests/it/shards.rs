//! Several shards in one process (`worker.shards`): all take calls, they are one worker to whoever looks, they stop together, and
//! what befalls one is told and does not keep the others from ringing.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};

use crate::apple::{Apple, Push};
use crate::client::{self, Outgoing};
use crate::contract::check_outcome;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, await_drained, now, read_all, written};
use crate::vhost::{Vhost, close_connections, list, start_broker};
use crate::worker::{Config, READY_WITHIN, Worker};

/// Long for a machine that does nothing else.
const DRAINED_WITHIN: Duration = Duration::from_mins(3);

fn shards(config: &mut Config, count: usize) -> &mut Config {
    config.set("worker", "shards", &count.to_string())
}

#[tokio::test]
async fn all_shards_take_calls_and_are_one_worker_to_whoever_looks() {
    const INVITES: usize = 900;
    let (place, vhost) = (Place::new("shards"), Vhost::new().await);
    // Long enough that no shard can take them all.
    let apple = Apple::start(&place, (20, 60), "").await;
    let mut config = Config::new(&apple);
    shards(&mut config, 3)
        .text("worker", "name", "trio")
        .text("amqp", "uri", &vhost.uri())
        .set("amqp", "prefetch", "40")
        .set("apns", "connections", "1")
        .set("apns", "connections_max", "1")
        .text("log", "level", "info,ringcast=debug,lapin=off");
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    let connected = "ringcast_apns_connections{environment=\"production\",state=\"usable\"} 3\n";
    worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(connected)).await;

    // What the broker lists can be told apart.
    let names = connection_names(&vhost.list("list_connections", &["client_properties"]).await, "trio");
    let expected = ["consume", "publish"]
        .into_iter()
        .flat_map(|role| (1..=3).map(move |shard| format!("ringcast {role} trio shard {shard}")));
    assert_eq!(names, expected.collect());
    let consumers = vhost.list("list_consumers", &["queue_name", "prefetch_count"]).await;
    let of_invites = json!({ "queue_name": "ringcast.invites", "prefetch_count": 38 });
    assert_eq!(consumers.iter().filter(|one| **one == of_invites).count(), 3, "{consumers:?}");

    let plan = Plan::new(INVITES, 71);
    client::publish(&vhost.uri(), "ringcast.invites", &plan.messages()).await;
    client::await_depth(&vhost.uri(), "ringcast.outcomes", INVITES, DRAINED_WITHIN).await;
    await_drained(&vhost.uri(), &worker, DRAINED_WITHIN).await;

    assert_eq!(worker.metric("ringcast_invites_total").await, Some(900.0), "every one is counted once");
    let (_, text) = worker.fetch("/metrics").await;
    for line in [
        "ringcast_amqp_prefetch 120",
        "ringcast_amqp_connected{role=\"consume\"} 1",
        "ringcast_amqp_connected{role=\"publish\"} 1",
        "ringcast_amqp_reading{queue=\"ringcast.invites\"} 1",
        "ringcast_ledger_entries{state=\"in_flight\"} 0",
    ] {
        assert_eq!(text.lines().filter(|found| *found == line).count(), 1, "{line} in {text}");
    }
    worker.stop().await;

    let outcomes = read_all(&vhost.uri(), "ringcast.outcomes").await;
    let events = read_all(&vhost.uri(), "ringcast.invalid-tokens").await;
    assert_eq!(outcomes.len(), INVITES, "one outcome for each invite");
    let pushes = apple.stop().await;
    let verdict = plan.judge(&outcomes, &events, &pushes);
    assert!(verdict.outcomes_doubled.is_empty() && verdict.redelivered.is_empty(), "{verdict:?}");
    assert!(verdict.rang_twice.is_empty(), "nobody rings twice: {verdict:?}");
    assert_eq!(verdict.by_worker.keys().collect::<Vec<_>>(), ["trio"], "outcomes carry the worker's name");
    let connections: BTreeSet<u64> = pushes.iter().map(Push::connection).collect();
    assert!(connections.len() >= 3, "each shard pushes on its own: {connections:?}");
    let log = worker.log();
    let at_work: BTreeSet<String> = log.lines().filter_map(shard_of_a_call).collect();
    assert_eq!(at_work, (1..=3).map(|shard| format!("shard-{shard}")).collect(), "all of them took calls");
}

/// The thread that a line about a call comes from.
fn shard_of_a_call(line: &str) -> Option<String> {
    let line: Value = serde_json::from_str(line).expect("the log is JSON");
    line.get("call.id")?;
    Some(line["threadName"].as_str()?.to_owned())
}

/// The names that clients gave their connections, those that hold `of`.
fn connection_names(connections: &[Value], of: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut look = vec![json!(connections)];
    while let Some(value) = look.pop() {
        match value {
            Value::String(text) if text.starts_with("ringcast ") && text.contains(of) => {
                _ = names.insert(text);
            }
            Value::Array(values) => look.extend(values),
            Value::Object(fields) => look.extend(fields.into_iter().map(|(_, value)| value)),
            _ => {}
        }
    }
    names
}

#[tokio::test]
async fn a_shard_without_its_broker_is_told_and_the_other_one_rings() {
    let (place, broker) = (Place::new("shards-lost"), start_broker().await);
    broker.ctl(&["add_user", "worker", "hush"]).await.expect("a user can be made");
    broker.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]).await.expect("rights can be given");
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    let uri = broker.uri().replace("guest:guest", "worker:hush");
    shards(&mut config, 2).text("worker", "name", "duo").text("amqp", "uri", &uri);
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    ring(&broker.uri(), 1).await;

    // The two connections of the first shard are as many as it may have: the second one cannot come back.
    let limit = r#"{"max-connections": 2}"#;
    broker.ctl(&["set_user_limits", "worker", limit]).await.expect("a limit can be set");
    close_connections(&broker, "ringcast consume duo shard 2").await;
    let told = worker.await_endpoint("/readyz", READY_WITHIN, |status, _| status == 503).await;
    assert!(told.lines().all(|line| line.starts_with("amqp: shard 2: ")), "{told}");
    let lacks = "ringcast_amqp_connected{role=\"consume\"} 0\n";
    worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(lacks)).await;
    for number in 2..20 {
        ring(&broker.uri(), number).await;
    }
    let (alive, _) = worker.fetch("/livez").await;
    let (ready, told) = worker.fetch("/readyz").await;
    assert_eq!((alive, ready), (200, 503), "{told}");
    let listed = list(&broker, "/", "list_connections", &["client_properties"]).await;
    let first = ["consume", "publish"].map(|role| format!("ringcast {role} duo shard 1"));
    assert!(connection_names(&listed, "duo").is_superset(&first.into()), "{listed:?}");

    broker.ctl(&["clear_user_limits", "worker", "max-connections"]).await.expect("a limit can be lifted");
    worker.await_ready().await;
    ring(&broker.uri(), 20).await;
    worker.stop().await;
    assert_eq!(apple.stop().await.len(), 20, "each rang once");
}

/// Rings one phone, from the queue to the outcome.
async fn ring(uri: &str, number: usize) {
    client::publish(uri, "ringcast.invites", &[call(number)]).await;
    let outcome = check_outcome(&client::read(uri, "ringcast.outcomes", 1, READY_WITHIN).await[0]);
    assert_eq!(outcome["result"], "accepted", "{outcome}");
}

fn call(number: usize) -> Outgoing {
    let invite = json!({
        "call_id": format!("{number:08x}-0000-4000-8000-000000000000"),
        "app": "acme",
        "deadline": written(now() + Duration::from_mins(4)),
        "devices": [{ "token": format!("ab{number:06x}") }],
    });
    Outgoing { body: invite.to_string().into_bytes(), ..Outgoing::default() }
}

/// Held by two shards, and never answered: the prefetch is for one shard, so that both have some.
const HELD: usize = 30;
const PREFETCH: usize = 20;

/// A worker of two shards, both with pushes that are not answered.
async fn start_in_vain(place: &Place, vhost: &Vhost, apple: &Apple, grace: &str) -> Worker {
    let mut config = Config::new(apple);
    shards(&mut config, 2)
        .text("amqp", "uri", &vhost.uri())
        .set("amqp", "prefetch", &PREFETCH.to_string())
        .text("apns", "request_timeout", "60s")
        .text("worker", "shutdown_grace", grace);
    declare(place, &config).await;
    let mut worker = Worker::start_ready(place, &config, "worker").await;
    let calls: Vec<Outgoing> = (0..HELD).map(call).collect();
    client::publish(&vhost.uri(), "ringcast.invites", &calls).await;
    let begun = format!("ringcast_ledger_entries{{state=\"in_flight\"}} {HELD}\n");
    worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(&begun)).await;
    worker
}

#[tokio::test]
async fn a_second_signal_cuts_off_all_shards() {
    let (place, vhost) = (Place::new("shards-cut"), Vhost::new().await);
    let apple = Apple::start(&place, (600_000, 600_000), "").await;
    let mut worker = start_in_vain(&place, &vhost, &apple, "10m").await;
    worker.tell_to_stop();
    let stops = |status, text: &str| status == 503 && text.starts_with("worker: stopping: ");
    worker.await_endpoint("/readyz", READY_WITHIN, stops).await;
    assert!(worker.lives(), "the grace is long");
    worker.tell_to_stop();
    assert_eq!(worker.await_end().await, Some(1), "{}", worker.log());
    assert!(worker.log().contains("the worker was cut off"), "{}", worker.log());
    client::await_depth(&vhost.uri(), "ringcast.invites", HELD, READY_WITHIN).await;
    assert_eq!(client::depth(&vhost.uri(), "ringcast.outcomes").await, 0, "all are for another worker");
}

#[tokio::test]
async fn one_grace_is_around_all_shards() {
    let (place, vhost) = (Place::new("shards-grace"), Vhost::new().await);
    let apple = Apple::start(&place, (600_000, 600_000), "").await;
    let mut worker = start_in_vain(&place, &vhost, &apple, "1s").await;
    worker.tell_to_stop();
    assert_eq!(worker.await_end().await, Some(1), "{}", worker.log());
    let log = worker.log();
    assert_eq!(log.matches("worker.shutdown_grace ran out").count(), 1, "{log}");
    client::await_depth(&vhost.uri(), "ringcast.invites", HELD, READY_WITHIN).await;
}
