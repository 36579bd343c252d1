//! A worker that stops, politely or not, in the middle of a load: nothing is lost, and what is done twice is bounded and
//! can be told.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::time::Duration;

use serde_json::json;

use crate::apple::{Apple, Push};
use crate::client::{self, Outgoing};
use crate::contract::check_outcome;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, Verdict, await_drained, now, read_all, written};
use crate::tally::tally;
use crate::vhost::Vhost;
use crate::worker::{Config, READY_WITHIN, Worker};

const INVITES: usize = 4_000;
/// The middle: where the first worker is stopped.
const MIDDLE: usize = 1_000;
const PREFETCH: usize = 200;
const DRAINED_WITHIN: Duration = Duration::from_secs(150);
/// Answers take so long that there is always something under way.
const LATENCY_MS: (u64, u64) = (20, 60);

#[tokio::test]
async fn a_worker_told_to_stop_finishes_what_it_started_and_another_does_the_rest() {
    stop_in_the_middle(Scene::new("terminate", 2).await, PREFETCH).await;
}

#[tokio::test]
async fn all_shards_of_a_worker_told_to_stop_finish_what_they_started() {
    let mut scene = Scene::new("terminate-shards", 70).await;
    scene.config.set("worker", "shards", "3");
    stop_in_the_middle(scene, 3 * PREFETCH).await;
}

/// `held`: by the worker that is stopped, at most.
async fn stop_in_the_middle(scene: Scene, held: usize) {
    let mut first = scene.start_and_reach_the_middle().await;
    first.stop().await;
    // Shown where the test fails.
    println!("the first worker's log:\n{}", first.log());
    let (verdict, outcomes) = scene.finish_with_another().await;
    println!("{verdict:?}");
    assert_eq!(outcomes, INVITES, "one outcome for each invite");
    assert!(verdict.outcomes_doubled.is_empty(), "{verdict:?}");
    assert!(verdict.rang_twice.is_empty(), "what was started was finished, not repeated: {verdict:?}");
    assert!(verdict.redelivered.len() <= held, "only what the first one held came again");
}

#[tokio::test]
async fn a_killed_worker_loses_nothing_and_repeats_only_what_was_unacked() {
    let scene = Scene::new("kill", 3).await;
    let mut first = scene.start_and_reach_the_middle().await;
    first.kill().await;
    let (verdict, outcomes) = scene.finish_with_another().await;
    assert!(outcomes < INVITES + PREFETCH, "{outcomes} outcomes: copies only of what was unacked");
    judge_repeats(&verdict, PREFETCH);
    assert!(!verdict.redelivered.is_empty(), "the kill came in the middle, so that something was unacked");
}

/// Prefetched by a worker that can hardly begin them.
const PREFETCHED: usize = 500;
/// `amqp.prefetch` for that: a twentieth of it is for what the broker gave up on.
const PREFETCH_FOR_THEM: usize = 526;
/// The first connection takes one push at a time and answers so late that another worker can start, and have all that was
/// given back, before it does.
const NARROW: &str = "[[connect]]\ndo = \"limit\"\nstreams = 1\ncount = 1\n\n\
                      [[fault]]\nconnection = 1\nlatency = \"30s\"\n";

#[tokio::test]
async fn invites_that_wait_for_a_stream_ring_elsewhere_while_the_stopped_worker_still_finishes() {
    let place = Place::new("giveback");
    let vhost = Vhost::new().await;
    let uri = vhost.uri();
    let apple = Apple::start(&place, (0, 0), NARROW).await;
    let config = |name: &str| {
        let mut config = Config::new(&apple);
        config
            .text("amqp", "uri", &uri)
            .set("amqp", "prefetch", &PREFETCH_FOR_THEM.to_string())
            .text("worker", "name", name)
            .text("worker", "shutdown_grace", "1m")
            .text("apns", "request_timeout", "1m");
        config
    };
    let mut narrow = config("first");
    narrow.set("apns", "connections", "1").set("apns", "connections_max", "1");
    declare(&place, &narrow).await;
    client::publish(&uri, "ringcast.invites", &calls(0..PREFETCHED)).await;
    let mut first = Worker::start_ready(&place, &narrow, "first").await;
    let all = format!("ringcast_amqp_unsettled {PREFETCHED}\n");
    first.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(&all)).await;
    let mut second = Worker::start_ready(&place, &config("second"), "second").await;
    assert_eq!(client::depth(&uri, "ringcast.outcomes").await, 0, "the first push is still under way");

    let told_ms = now().unix_timestamp_nanos() / 1_000_000;
    first.tell_to_stop();
    let given_back = PREFETCHED - 1;
    let answered = client::await_depth(&uri, "ringcast.outcomes", given_back, DRAINED_WITHIN).await;
    assert!(
        first.lives() && answered == given_back,
        "all but one are answered, and the first has that one still"
    );
    first.await_stopped().await;
    await_drained(&uri, &second, DRAINED_WITHIN).await;
    second.stop().await;
    assert_eq!(client::depth(&uri, "ringcast.invites").await, 0, "nothing is unacked, and nothing waits");

    let outcomes = read_all(&uri, "ringcast.outcomes").await;
    assert_eq!(outcomes.len(), PREFETCHED, "one outcome for each invite");
    let mut finished = Vec::new();
    for outcome in outcomes.iter().map(check_outcome) {
        assert_eq!(outcome["result"], "accepted", "{outcome}");
        assert_eq!(outcome["redelivered"], outcome["worker"] == "second", "{outcome}");
        if outcome["worker"] == "first" {
            finished.push(outcome["devices"][0]["token"].as_str().expect("checked").to_owned());
        }
    }
    assert_eq!(finished.len(), 1, "what was begun was finished");
    let pushes = apple.stop().await;
    let tokens: BTreeSet<_> = pushes.iter().map(Push::token).collect();
    assert_eq!((pushes.len(), tokens.len()), (PREFETCHED, PREFETCHED), "every call rang exactly once");
    let (begun, rest): (Vec<&Push>, Vec<_>) = pushes.iter().partition(|push| finished[0] == push.token());
    let rang_after = |push: &&Push| i128::from(push.at_ms()) - told_ms;
    assert!(begun.iter().all(|push| rang_after(push) < 0), "it was begun before the stop: {begun:?}");
    assert!(rest.iter().all(|push| rang_after(push) >= 0), "nothing else was");
    let latest_ms = rest.iter().map(rang_after).max();
    tally(format_args!(
        "the last of {} that were given back rang {latest_ms:?} ms after the stop",
        rest.len()
    ));
}

/// So many pushes at a time, and after the first one no answer for as long as the test goes on.
const BEGUN: usize = 10;
const SLOW: &str = "[[connect]]\ndo = \"limit\"\nstreams = 10\ncount = 1\n\n\
                    [[fault]]\nconnection = 1\nskip = 1\nlatency = \"2m\"\n";
/// What the evicted worker holds.
const HELD: usize = 190;

#[tokio::test]
async fn an_eviction_before_the_grace_is_over_repeats_only_what_was_begun() {
    let place = Place::new("evict");
    let vhost = Vhost::new().await;
    let uri = vhost.uri();
    let apple = Apple::start(&place, (0, 0), SLOW).await;
    let config = |name: &str| {
        let mut config = Config::new(&apple);
        config
            .text("amqp", "uri", &uri)
            .set("amqp", "prefetch", &PREFETCH.to_string())
            .text("worker", "name", name)
            .text("worker", "shutdown_grace", "5m")
            .text("apns", "request_timeout", "60s");
        config
    };
    let mut narrow = config("first");
    narrow.set("apns", "connections", "1").set("apns", "connections_max", "1");
    declare(&place, &narrow).await;
    let mut first = Worker::start_ready(&place, &narrow, "first").await;
    // Its connection is good for more than one push at a time once it has answered.
    client::publish(&uri, "ringcast.invites", &calls(0..1)).await;
    client::await_depth(&uri, "ringcast.outcomes", 1, READY_WITHIN).await;
    client::publish(&uri, "ringcast.invites", &calls(1..1 + HELD)).await;
    for metric in [
        format!("ringcast_amqp_unsettled {HELD}\n"),
        format!("ringcast_apns_streams{{environment=\"production\",kind=\"used\"}} {BEGUN}\n"),
    ] {
        first.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(&metric)).await;
    }
    let mut second = Worker::start_ready(&place, &config("second"), "second").await;

    first.tell_to_stop();
    let rest = 1 + HELD - BEGUN;
    let answered = client::await_depth(&uri, "ringcast.outcomes", rest, DRAINED_WITHIN).await;
    assert!(
        first.lives() && answered == rest,
        "what was not begun rings elsewhere, and it waits for the rest"
    );
    // The grace of the pod is over; that of the worker is not.
    first.kill().await;
    client::await_depth(&uri, "ringcast.outcomes", 1 + HELD, DRAINED_WITHIN).await;
    await_drained(&uri, &second, DRAINED_WITHIN).await;
    second.stop().await;

    let outcomes = read_all(&uri, "ringcast.outcomes").await;
    assert_eq!(outcomes.len(), 1 + HELD, "one outcome for each invite");
    let mut pushes: BTreeMap<String, Vec<Push>> = BTreeMap::new();
    for push in apple.stop().await {
        pushes.entry(push.token().to_owned()).or_default().push(push);
    }
    let mut twice = 0;
    for outcome in outcomes.iter().map(check_outcome) {
        assert_eq!(outcome["result"], "accepted", "{outcome}");
        let by_second = outcome["worker"] == "second";
        assert_eq!(outcome["redelivered"], by_second, "{outcome}");
        assert_eq!(outcome["earlier_attempt"] == "possible", by_second, "it may have rung: {outcome}");
        let pushed = &pushes[outcome["devices"][0]["token"].as_str().expect("checked")];
        if let [begun, again] = &pushed[..] {
            assert!(by_second && begun.text("apns_id") == again.text("apns_id"), "{pushed:?}");
            twice += 1;
        } else {
            assert_eq!(pushed.len(), 1, "{pushed:?}");
        }
    }
    assert_eq!((pushes.len(), twice), (1 + HELD, BEGUN), "what was begun, and nothing else, rings again");
}

/// Calls to one phone each.
fn calls(numbers: Range<usize>) -> Vec<Outgoing> {
    let deadline = written(now() + Duration::from_mins(4));
    let call = |number| Outgoing {
        body: json!({
            "call_id": format!("00000004-0000-4000-8000-{number:012x}"),
            "app": "acme",
            "deadline": deadline,
            "devices": [{ "token": format!("a11e{number:060x}") }],
        })
        .to_string()
        .into_bytes(),
        properties: json!({ "message_id": format!("invite-{number}") }),
    };
    numbers.map(call).collect()
}

/// What a kill may do: invites that were unacked come again, at most as many as were held, and say so. An invite whose ack
/// reached the broker never comes again, so whatever was done twice was unacked.
fn judge_repeats(verdict: &Verdict, prefetch: usize) {
    let Verdict { outcomes_doubled, rang_twice, redelivered, .. } = verdict;
    assert!(
        redelivered.len() <= prefetch,
        "at most {prefetch} were unacked, {} came again",
        redelivered.len()
    );
    assert!(
        outcomes_doubled.is_subset(redelivered),
        "doubled outcomes of what came again alone: {verdict:?}"
    );
    assert!(rang_twice.is_subset(redelivered), "doubled pushes of what came again alone: {verdict:?}");
}

struct Scene {
    place: Place,
    vhost: Vhost,
    apple: Apple,
    config: Config,
    plan: Plan,
}

impl Scene {
    async fn new(name: &str, salt: u16) -> Self {
        let place = Place::new(name);
        let vhost = Vhost::new().await;
        let apple = Apple::start(&place, LATENCY_MS, "").await;
        let mut config = Config::new(&apple);
        config.text("amqp", "uri", &vhost.uri()).set("amqp", "prefetch", &PREFETCH.to_string());
        declare(&place, &config).await;
        Self { place, vhost, apple, config, plan: Plan::new(INVITES, salt) }
    }

    async fn start_and_reach_the_middle(&self) -> Worker {
        let uri = self.vhost.uri();
        client::publish(&uri, "ringcast.invites", &self.plan.messages()).await;
        let worker = Worker::start_ready(&self.place, &self.config, "first").await;
        client::await_depth(&uri, "ringcast.outcomes", MIDDLE, DRAINED_WITHIN).await;
        worker
    }

    /// Gives also the number of outcomes, copies included.
    async fn finish_with_another(self) -> (Verdict, usize) {
        let uri = self.vhost.uri();
        let before = client::depth(&uri, "ringcast.outcomes").await;
        assert!(before < INVITES, "the first worker was stopped in the middle, not at the end");
        let mut second = Worker::start_ready(&self.place, &self.config, "second").await;
        client::await_depth(&uri, "ringcast.outcomes", INVITES, DRAINED_WITHIN).await;
        await_drained(&uri, &second, DRAINED_WITHIN).await;
        second.stop().await;
        println!("the second worker's log:\n{}", second.log());
        assert_eq!(client::depth(&uri, "ringcast.invites").await, 0, "nothing is unacked, and nothing waits");
        let outcomes = read_all(&uri, "ringcast.outcomes").await;
        let events = read_all(&uri, "ringcast.invalid-tokens").await;
        let pushes: Vec<Push> = self.apple.stop().await;
        (self.plan.judge(&outcomes, &events, &pushes), outcomes.len())
    }
}
