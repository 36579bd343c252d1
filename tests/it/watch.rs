//! `ringcast watch` beside a worker at work: what it shows, what it filters, and what ends it.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::apple::Apple;
use crate::client;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Kind, Plan, read_all};
use crate::process::{Ended, Process, RINGCAST, run_ringcast};
use crate::vhost::{Vhost, close_connections, start_broker};
use crate::worker::{Config, Worker};

const WITHIN: Duration = Duration::from_mins(2);
const INVITES: usize = 100;

/// An onlooker who has begun to look on.
async fn watch(place: &Place, file: &str, args: &[&str], name: &str) -> Process {
    let args = [&["watch", "--config", file], args].concat();
    let mut watch = Process::start(RINGCAST, &args, &[], place.as_ref(), name);
    watch.says("that it watches", WITHIN, |told| told.contains("watching amqp://").then_some(())).await;
    watch
}

/// What an onlooker has shown, once there are so many lines.
async fn lines(watch: &mut Process, count: usize) -> Vec<String> {
    let shown = |watch: &Process| -> Vec<String> { watch.stdout().lines().map(str::to_owned).collect() };
    let until = tokio::time::Instant::now() + WITHIN;
    while shown(watch).len() < count {
        assert!(
            tokio::time::Instant::now() < until && watch.lives(),
            "{count} lines: {}",
            watch.last_words()
        );
        tokio::time::sleep(crate::process::POLL_EVERY).await;
    }
    shown(watch)
}

#[tokio::test]
async fn who_looks_on_sees_each_result_as_it_was_published() {
    let (place, vhost) = (Place::new("watch"), Vhost::new().await);
    let uri = vhost.uri();
    let apple = Apple::start(&place, (5, 20), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &uri).set("amqp", "live", "true").set("worker", "timeline", "true");
    declare(&place, &config).await;
    let file = place.as_ref().join("declare.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    let plan = Plan::new(INVITES, 61);
    let one = plan.invites.iter().find(|invite| invite.kind == Kind::Good && invite.tokens.len() > 1);
    let one = one.expect("calls to several devices");

    let mut all = watch(&place, file, &["--json"], "all").await;
    let mut late =
        watch(&place, file, &["--json", "--result", "expired", "--result", "malformed"], "late").await;
    let mut call = watch(&place, file, &["--call", &one.call_id.to_uppercase()], "call").await;
    client::publish(&uri, "ringcast.invites", &plan.messages()).await;
    client::await_depth(&uri, "ringcast.outcomes", INVITES, WITHIN).await;
    client::await_depth(&uri, "ringcast.invalid-tokens", plan.dead_tokens().len(), WITHIN).await;
    worker.stop().await;

    let outcomes = read_all(&uri, "ringcast.outcomes").await;
    let events = read_all(&uri, "ringcast.invalid-tokens").await;
    let text = |body: &[u8]| String::from_utf8(body.to_vec()).expect("JSON is UTF-8");
    let published: BTreeSet<String> =
        outcomes.iter().chain(&events).map(|result| text(&result.body)).collect();
    let shown = lines(&mut all, published.len()).await;
    assert_eq!(shown.iter().cloned().collect::<BTreeSet<_>>(), published, "byte for byte");
    assert_eq!(shown.len(), published.len(), "each once");

    let few: BTreeSet<String> = outcomes
        .iter()
        .filter(|outcome| {
            ["expired", "malformed"].contains(&outcome.json()["result"].as_str().unwrap_or_default())
        })
        .map(|outcome| text(&outcome.body))
        .collect();
    assert!(few.len() >= plan.count(Kind::Late), "{few:?}");
    assert_eq!(lines(&mut late, few.len()).await.into_iter().collect::<BTreeSet<_>>(), few);

    // The outcome, each device, and when each thing happened: received, written and answered once a device, settled.
    let devices = one.tokens.len();
    let story = lines(&mut call, 1 + devices + 2 + 2 * devices).await;
    assert!(story[0].contains(&one.call_id) && story[0].contains("acme"), "{story:?}");
    for line in &story[1..=devices] {
        assert!(line.contains("200") || line.contains("410"), "{story:?}");
    }
    let stages: Vec<&str> =
        story[1 + devices..].iter().filter_map(|line| line.split_whitespace().nth(2)).collect();
    for (stage, times) in [("received", 1), ("written", devices), ("answered", devices), ("settled", 1)] {
        assert_eq!(stages.iter().filter(|told| **told == stage).count(), times, "{stage}: {story:?}");
    }
    assert!(
        !one.tokens.iter().any(|token| story.iter().any(|line| line.contains(token.as_str()))),
        "{story:?}"
    );
    for watch in [all, late, call] {
        assert!(watch.stderr().lines().count() == 1, "nothing else to say: {}", watch.stderr());
    }
    apple.stop().await;
}

#[tokio::test]
async fn a_lost_broker_is_found_again() {
    let (place, broker) = (Place::new("watch-again"), start_broker().await);
    let apple = Apple::start(&place, (5, 20), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &broker.uri()).set("amqp", "live", "true");
    declare(&place, &config).await;
    let file = place.as_ref().join("declare.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let mut worker = Worker::start_ready(&place, &config, "worker").await;

    let mut all = watch(&place, file, &[], "all").await;
    close_connections(&broker, "ringcast watch").await;
    let again = |told: &str| (told.matches("watching amqp://").count() == 2).then_some(());
    all.says("that it watches again", WITHIN, again).await;
    assert!(all.stderr().contains("what passes meanwhile is not shown"), "{}", all.stderr());

    let plan = Plan::new(1, 62);
    client::publish(&broker.uri(), "ringcast.invites", &plan.messages()).await;
    let shown = lines(&mut all, 1).await;
    assert!(shown[0].contains("accepted") && shown[0].contains(&plan.invites[0].call_id), "{shown:?}");
    worker.stop().await;
    apple.stop().await;
}

#[tokio::test]
async fn what_cannot_be_watched_is_said() {
    let (place, vhost) = (Place::new("watch-not"), Vhost::new().await);
    let apple = Apple::start(&place, (5, 20), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri());
    let file = config.write(&place, "watch.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let run = async |args: &[&str], env: &[(&str, &str)]| -> Ended {
        run_ringcast(&[&["watch", "--config", file], args].concat(), env, place.as_ref()).await
    };

    let ended = run(&[], &[]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(
        ended.stderr.contains("exchange ringcast.live is missing: run `ringcast topology declare`"),
        "{ended:?}"
    );
    // An onlooker has no keys of Apple's, and need not say anything of apps.
    let bare = place
        .write("bare.toml", "[amqp]\nuri = \"amqp://READER:x@127.0.0.1:1/v\"\n[apns]\nconnections = 0\n");
    let bare = bare.to_str().expect("the test's paths are UTF-8");
    let ended = run_ringcast(&["watch", "--config", bare, "--app", "acme"], &[], place.as_ref()).await;
    assert_eq!(ended.code, Some(69), "{ended:?}");
    let ended = run(&[], &[("RINGCAST__AMQP__PREFECH", "1")]).await;
    assert_eq!(ended.code, Some(78), "{ended:?}");
    assert!(ended.stderr.starts_with("amqp.prefech (RINGCAST__AMQP__PREFECH)"), "{ended:?}");
    let ended = run(&[], &[("RINGCAST__AMQP__URI", "amqp://guest:hunter2@127.0.0.1:1/v")]).await;
    assert_eq!(ended.code, Some(69), "{ended:?}");
    assert!(ended.stderr.contains("127.0.0.1:1") && !ended.stderr.contains("hunter2"), "{ended:?}");
    for (args, sentence) in [
        (["--app", "acne"], "\"acne\" is not configured; there are acme"),
        (["--result", "rang"], "no such result; there are accepted, expired, ended, unknown, undeliverable"),
        (["--call", "7"], "a call id is a UUID"),
    ] {
        let ended = run(&args, &[]).await;
        assert_eq!(ended.code, Some(64), "{ended:?}");
        assert!(ended.stderr.contains(sentence), "{ended:?}");
    }
    apple.stop().await;
}
