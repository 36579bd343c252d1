//! The broker's side of a configuration that changes while the worker runs: logins, certificates, the prefetch.

use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::apple::Apple;
use crate::broker::Broker;
use crate::certificate;
use crate::client::{self, Outgoing};
use crate::client_certificate::Authority;
use crate::contract::check_outcome;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, await_drained, now, read_all, written};
use crate::process::{POLL_EVERY, run_ringcast};
use crate::vhost::{NO_BROKER, Vhost, start_broker};
use crate::worker::{Config, READY_WITHIN, Worker};

/// Long for a machine that does nothing else.
const DRAINED_WITHIN: Duration = Duration::from_mins(3);

/// Waits until the log holds `words` that many times.
async fn await_log(worker: &mut Worker, words: &str, times: usize) {
    let until = Instant::now() + READY_WITHIN;
    while worker.log().matches(words).count() < times {
        assert!(worker.lives() && Instant::now() < until, "not {times} times {words:?} in {}", worker.log());
        sleep(POLL_EVERY).await;
    }
}

/// Rings one phone, from the queue to the outcome. `uri`: of whoever publishes and reads.
async fn ring(uri: &str, number: usize) {
    let invite = json!({
        "call_id": format!("{number:08x}-0000-4000-8000-000000000000"),
        "app": "acme",
        "deadline": written(now() + Duration::from_mins(1)),
        "devices": [{ "token": format!("ab{number:06x}") }],
    });
    let message = Outgoing { body: invite.to_string().into_bytes(), ..Outgoing::default() };
    client::publish(uri, "ringcast.invites", &[message]).await;
    let outcome = check_outcome(&client::read(uri, "ringcast.outcomes", 1, READY_WITHIN).await[0]);
    assert_eq!(outcome["result"], "accepted");
}

const IN_SESSION: &str = "in session with the broker";

#[tokio::test]
async fn a_rotated_password_needs_no_restart_in_either_order() {
    let (place, broker) = (Place::new("password"), start_broker().await);
    let set_password = async |password: &str| {
        broker.ctl(&["change_password", "worker", password]).await.expect("a password can be changed");
    };
    let uri_file = place.path("uri");
    let write = |password: &str| {
        let uri = broker.uri().replace("guest:guest", &format!("worker:{password}"));
        place.write("uri.new", format!("{uri}\n"));
        std::fs::rename(place.path("uri.new"), &uri_file).expect("a file can be moved");
    };
    broker.ctl(&["add_user", "worker", "first"]).await.expect("a user can be made");
    broker.ctl(&["set_permissions", "worker", ".*", ".*", ".*"]).await.expect("rights can be given");
    write("first");
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.path("amqp", "uri_file", &uri_file).text("apns", "reload_interval", "100ms");
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    ring(&broker.uri(), 1).await;

    // The file first. What is open stays open until the broker closes it.
    write("second");
    await_log(&mut worker, "the broker's settings changed", 1).await;
    set_password("second").await;
    ring(&broker.uri(), 2).await;
    assert_eq!(worker.log().matches(IN_SESSION).count(), 1, "the session lives on");
    broker.ctl(&["close_all_connections", "rotated"]).await.expect("connections can be closed");
    await_log(&mut worker, IN_SESSION, 2).await;
    ring(&broker.uri(), 3).await;

    // The broker first.
    set_password("third").await;
    broker.ctl(&["close_all_connections", "rotated"]).await.expect("connections can be closed");
    let refused = |status, text: &str| status == 503 && text.contains("check the user and the password");
    worker.await_endpoint("/readyz", READY_WITHIN, refused).await;
    write("third");
    await_log(&mut worker, IN_SESSION, 3).await;
    worker.await_ready().await;
    ring(&broker.uri(), 4).await;
    worker.stop().await;
    for secret in ["first", "second", "third"] {
        assert!(!worker.log().contains(&format!("worker:{secret}")), "no password in the log");
    }
}

#[tokio::test]
async fn replaced_certificates_are_used_from_the_next_connection_on() {
    let place = Place::new("certificates");
    let (clients, mut tls) = (Authority::new(), certificate::make(&place, "broker"));
    let (own, strange) = (
        std::fs::read_to_string(&tls.ca_file).expect("a file"),
        std::fs::read_to_string(certificate::make(&place, "stranger").ca_file).expect("a file"),
    );
    tls.ca_file = place.write("trusted.pem", own.clone() + &clients.pem());
    tls.demands_certificate = true;
    let broker = Broker::start_with_tls(&tls).await.expect("it starts").expect(NO_BROKER);
    let issue =
        |days| clients.issue("guest", now() - time::Duration::days(9), now() + time::Duration::days(days));
    let uri = broker.uri_tls("%2f").expect("it speaks TLS").replace("guest:guest@", "");
    let (ca_file, client) = (place.write("ca.pem", own.clone()), place.write("client.pem", issue(9).pem()));
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config
        .text("amqp", "uri", &format!("{uri}?auth_mechanism=external"))
        .path("amqp", "ca_file", &ca_file)
        .path("amqp", "client_cert_file", &client)
        .path("amqp", "client_key_file", &client)
        .text("apns", "reload_interval", "100ms");
    declare(&place, &config).await;

    let replace = |file: &Path, content: &str| std::fs::write(file, content).expect("a file can be written");
    replace(&ca_file, &strange);
    replace(&client, &issue(-1).pem());
    let file = config.write(&place, "check.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let ended = run_ringcast(&["check", "--config", file], &[], place.as_ref()).await;
    assert_eq!(ended.code, Some(78), "{}", ended.stderr);
    assert!(ended.stderr.starts_with("amqp.client_cert_file (") && ended.stderr.contains(" expired on "));
    let mut worker = Worker::start(&place, &config, "worker");
    let reason = |words: &'static str| move |status, text: &str| status == 503 && text.contains(words);
    worker.await_endpoint("/readyz", READY_WITHIN, reason("into amqp.ca_file")).await;
    replace(&ca_file, &own);
    worker
        .await_endpoint("/readyz", READY_WITHIN, reason("amqp.client_cert_file: it says that it has expired"))
        .await;
    replace(&client, &issue(9).pem());
    worker.await_ready().await;
    ring(&broker.uri(), 1).await;
    worker.stop().await;
    let log = worker.log();
    assert!(log.contains("the client certificate for the broker changed"), "{log}");
    assert!(
        log.contains("the broker will refuse a certificate") && log.contains("amqp.client_cert_file"),
        "{log}"
    );
}

#[tokio::test]
async fn a_prefetch_changes_under_load_and_nothing_is_lost_or_doubled() {
    let (place, vhost) = (Place::new("prefetch"), Vhost::new().await);
    // An answer takes a second, so that the prefetch is the rate: the load outlasts however long the broker takes to be asked.
    let apple = Apple::start(&place, (1_000, 1_000), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri()).text("apns", "reload_interval", "100ms");
    let write = |config: &mut Config, prefetch: u16| {
        config.set("amqp", "prefetch", &prefetch.to_string()).write(&place, "worker.toml");
    };
    write(&mut config, 5);
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;

    let plan = Plan::new(4_000, 2);
    client::publish(&vhost.uri(), "ringcast.invites", &plan.messages()).await;
    // A twentieth, and one at least, is kept for what the broker gave up on.
    for (prefetch, shown) in [(60, 57), (200, 190), (12, 11)] {
        let before = client::depth(&vhost.uri(), "ringcast.outcomes").await;
        write(&mut config, prefetch);
        let until = Instant::now() + READY_WITHIN;
        loop {
            let consumers = vhost.list("list_consumers", &["queue_name", "prefetch_count"]).await;
            if consumers.contains(&json!({ "queue_name": "ringcast.invites", "prefetch_count": shown })) {
                break;
            }
            assert!(Instant::now() < until, "{consumers:?}");
        }
        client::await_depth(&vhost.uri(), "ringcast.outcomes", before + 30, DRAINED_WITHIN).await;
        let waiting = client::depth(&vhost.uri(), "ringcast.invites").await;
        assert!(waiting > 0, "it changed to {prefetch} while there was a load");
    }
    write(&mut config, 2_000);
    client::await_depth(&vhost.uri(), "ringcast.outcomes", plan.invites.len(), DRAINED_WITHIN).await;
    await_drained(&vhost.uri(), &worker, DRAINED_WITHIN).await;
    let (_, metrics) = worker.fetch("/metrics").await;
    let ambiguous =
        metrics.lines().find_map(|line| line.strip_prefix("ringcast_attempts_total{class=\"ambiguous\"} "));
    let ambiguous: usize = ambiguous.map_or(0, |count| count.parse().expect("a count"));
    worker.stop().await;

    let outcomes = read_all(&vhost.uri(), "ringcast.outcomes").await;
    let events = read_all(&vhost.uri(), "ringcast.invalid-tokens").await;
    assert_eq!(outcomes.len(), plan.invites.len(), "one outcome for each invite");
    let verdict = plan.judge(&outcomes, &events, &apple.stop().await);
    assert!(verdict.outcomes_doubled.is_empty(), "{verdict:?}");
    // A busy machine may let a connection to APNs look stalled; no other push comes twice.
    assert!(verdict.pushes_doubled.len() <= ambiguous, "{ambiguous} were ambiguous: {verdict:?}");
    // What was on its way to a consumer when it was cancelled the broker takes back by itself: it comes again, marked so, and
    // the worker had never seen it. There can be no more of these than fit into the prefetches that were left.
    assert!(verdict.redelivered.len() <= 4 + 57 + 190 + 11, "{verdict:?}");
    let log = worker.log();
    assert_eq!(log.matches(IN_SESSION).count(), 1, "one session: {log}");
    assert!(!log.contains("take effect at the next start"), "nothing waits: {log}");
}
