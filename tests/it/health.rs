//! What the worker says of itself while its peers come and go.

use lapin::options::{ExchangeDeleteOptions, QueueDeleteOptions};

use serde_json::{Value, json};
use uuid::Uuid;

use crate::amqp::Peer;
use crate::apple::Apple;
use crate::client::{self, Outgoing};
use crate::http;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, await_drained, now, written};
use crate::vhost::{Vhost, start_broker};
use crate::worker::{Config, READY_WITHIN, Worker};

/// Every stable family (section 8 of the contract).
const FAMILIES: [&str; 25] = [
    "ringcast_invites_total",
    "ringcast_devices_total",
    "ringcast_apns_responses_total",
    "ringcast_stage_seconds",
    "ringcast_slack_seconds",
    "ringcast_expired_total",
    "ringcast_attempts_total",
    "ringcast_apns_connections",
    "ringcast_apns_streams",
    "ringcast_apns_oldest_unanswered_seconds",
    "ringcast_apns_goaways_total",
    "ringcast_provider_token_age_seconds",
    "ringcast_credential_expiry_timestamp_seconds",
    "ringcast_token_events_total",
    "ringcast_breaker_open",
    "ringcast_amqp_connected",
    "ringcast_amqp_blocked",
    "ringcast_amqp_unsettled",
    "ringcast_amqp_publishes_total",
    "ringcast_unknown_fields_total",
    "ringcast_clock_skew_seconds",
    "ringcast_build_info",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
];

/// Families that have a sample only where an app has a client certificate; `credential.rs` sees them.
const WITH_A_CERTIFICATE: [&str; 1] = ["ringcast_credential_expiry_timestamp_seconds"];

#[tokio::test]
async fn a_missing_broker_is_named_and_its_coming_is_noticed() {
    let place = Place::new("health");
    let mut broker = start_broker().await;
    let uri = broker.uri();
    broker.kill().expect("the broker can be killed");
    // Some family has no sample before a connection was told to go away.
    let going_away = "[[fault]]\nskip = 5\ncount = 1\ndo = \"goaway\"\nreason = \"Shutdown\"\n";
    let apple = Apple::start(&place, (0, 0), going_away).await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &uri);

    let mut worker = Worker::start(&place, &config, "worker");
    let live = |status: u16, _: &str| status == 200;
    worker.await_endpoint("/livez", READY_WITHIN, live).await;
    let names_broker = |status: u16, text: &str| status == 503 && text.to_lowercase().contains("amqp");
    worker.await_endpoint("/readyz", READY_WITHIN, names_broker).await;
    assert_eq!(worker.fetch("/livez").await.0, 200, "a missing broker is no reason to be restarted");
    assert_eq!(worker.fetch("/nowhere").await.0, 404);

    // The broker comes, without a single queue: what is missing is named.
    broker.start_again().await.expect("the broker starts again");
    let names_queue = |status: u16, text: &str| status == 503 && text.contains("ringcast.invites");
    worker.await_endpoint("/readyz", READY_WITHIN, names_queue).await;
    assert_eq!(worker.fetch("/livez").await.0, 200);
    assert!(worker.log().contains("ringcast.invites"), "the log names it, too");

    // The topology comes: ready, without a restart.
    declare(&place, &config).await;
    worker.await_ready().await;
    let plan = Plan::new(40, 5);
    client::publish(&uri, "ringcast.invites", &plan.messages()).await;
    client::await_depth(&uri, "ringcast.outcomes", 40, READY_WITHIN).await;
    await_drained(&uri, &worker, READY_WITHIN).await;
    check_metrics(&worker).await;

    // A peer that goes away again.
    broker.kill().expect("the broker can be killed");
    worker.await_endpoint("/readyz", READY_WITHIN, names_broker).await;
    assert_eq!(worker.fetch("/livez").await.0, 200);
    assert!(worker.lives(), "the worker outlives the broker");
    let log = worker.log();
    for token in plan.invites.iter().flat_map(|invite| &invite.tokens) {
        assert!(!log.contains(token.as_str()), "no device token in the log");
    }
    assert!(!log.contains("guest:guest"), "no password in the log");
}

#[tokio::test]
async fn a_worker_without_apple_is_alive_and_not_ready() {
    let place = Place::new("health-apple");
    let mut broker = start_broker().await;
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &broker.uri());
    declare(&place, &config).await;
    // Nobody listens on the discard port.
    config.text("apns", "production", "https://localhost:9").text("apns", "sandbox", "https://localhost:9");
    let mut worker = Worker::start(&place, &config, "worker");
    let names_apple = |status: u16, text: &str| status == 503 && text.to_lowercase().contains("apns");
    worker.await_endpoint("/readyz", READY_WITHIN, names_apple).await;
    assert_eq!(worker.fetch("/livez").await.0, 200, "nor is a missing Apple");
    let (_, text) = worker.fetch("/metrics").await;
    let usable: Vec<_> = text.lines().filter(|line| line.starts_with("ringcast_apns_usable{")).collect();
    let cannot = "ringcast_apns_usable{app=\"acme\",environment=\"production\"} 0";
    assert_eq!(usable, [cannot], "nobody asked for the sandbox yet");
    worker.stop().await;
    broker.stop().await.expect("the broker stops");
}

#[tokio::test]
async fn a_worker_is_ready_without_what_calls_do_not_need_and_says_what() {
    let place = Place::new("health-optional");
    let vhost = Vhost::new().await;
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri()).set("amqp", "live", "true");
    declare(&place, &config).await;
    let peer = Peer::new(&vhost.uri()).await;
    let live = peer.channel.exchange_delete("ringcast.live".into(), ExchangeDeleteOptions::default());
    live.await.expect("it is gone");
    let expired = peer.channel.queue_delete("ringcast.expired".into(), QueueDeleteOptions::default());
    expired.await.expect("it is gone");

    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    let lacks = ["exchange ringcast.live is missing", "queue ringcast.expired is missing"];
    let names_both = |status: u16, text: &str| status == 200 && lacks.iter().all(|it| text.contains(it));
    worker.await_endpoint("/readyz", READY_WITHIN, names_both).await;
    assert!(["exchange ringcast.live", "queue ringcast.expired"].iter().all(|it| worker.log().contains(it)));
    let missing = "ringcast_amqp_missing{name=\"ringcast.live\"} 1";
    worker.await_endpoint("/metrics", READY_WITHIN, |_, text| text.contains(missing)).await;
    let plan = Plan::new(40, 9);
    client::publish(&vhost.uri(), "ringcast.invites", &plan.messages()).await;
    client::await_depth(&vhost.uri(), "ringcast.outcomes", 40, READY_WITHIN).await;
    assert!(!worker.log().contains("refused a copy"), "none is sent to where nothing is: {}", worker.log());

    declare(&place, &config).await;
    let bare = |status: u16, text: &str| status == 200 && !text.contains("missing");
    worker.await_endpoint("/readyz", READY_WITHIN, bare).await;
    worker.stop().await;
}

#[tokio::test]
async fn a_refused_credential_is_named_with_since_when() {
    let place = Place::new("health-key");
    let vhost = Vhost::new().await;
    let refuses = "[[fault]]\ndo = \"answer\"\nstatus = 403\nreason = \"InvalidProviderToken\"\n";
    let apple = Apple::start(&place, (0, 0), refuses).await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri());
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    client::publish(&vhost.uri(), "ringcast.invites", &Plan::new(40, 6).messages()).await;
    let names_credential = |status: u16, text: &str| {
        status == 503
            && text.contains("Apple refuses this credential since 20")
            && text.contains("InvalidProviderToken")
    };
    worker.await_endpoint("/readyz", READY_WITHIN, names_credential).await;
    let open = "ringcast_apns_circuit_open{app=\"acme\",environment=\"production\"} 1";
    let cannot = "ringcast_apns_usable{app=\"acme\",environment=\"production\"} 0";
    let both = |_: u16, text: &str| text.contains(open) && text.contains(cannot);
    worker.await_endpoint("/metrics", READY_WITHIN, both).await;
    assert_eq!(worker.fetch("/livez").await.0, 200, "a restart would mend nothing");
    client::await_depth(&vhost.uri(), "ringcast.outcomes", 40, READY_WITHIN).await;
    let told = worker.log().matches("until a probe gets through").count();
    assert_eq!(told, 2, "once for each environment: {}", worker.log());
    worker.stop().await;
}

#[tokio::test]
async fn each_call_that_did_not_ring_is_one_line_that_says_why() {
    let (place, vhost) = (Place::new("line"), Vhost::new().await);
    let [live, dead, topic] = ["a1", "a2", "a3"].map(|byte| byte.repeat(32));
    let script = format!(
        "[[device]]\ntoken = \"{dead}\"\nstate = \"unregistered\"\nsince = 2026-10-01T00:00:00Z\n
         [[device]]\ntoken = \"{topic}\"\nstate = \"topic\"\ntopic = \"com.other.voip\"\n"
    );
    let apple = Apple::start(&place, (0, 0), &script).await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri());
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    let minute = time::Duration::MINUTE;
    let calls = [
        (vec![&live], minute, None),
        (vec![&dead, &live], minute, None),
        (vec![&dead], minute, Some(json!(["undeliverable", 410, "Unregistered"]))),
        (vec![&topic], minute, Some(json!(["undeliverable", 400, "DeviceTokenNotForTopic"]))),
        (vec![&live], -minute, Some(json!(["expired", null, null]))),
    ];
    let messages: Vec<Outgoing> = (1..).zip(&calls).map(|(id, (tokens, left, _))| {
        let devices: Vec<Value> = tokens.iter().map(|token| json!({ "token": token })).collect();
        let call_id = Uuid::from_u128(id).to_string();
        let body = json!({ "call_id": call_id, "app": "acme", "deadline": written(now() + *left), "devices": devices });
        Outgoing { body: body.to_string().into_bytes(), properties: json!({}) }
    }).collect();
    client::publish(&vhost.uri(), "ringcast.invites", &messages).await;
    client::await_depth(&vhost.uri(), "ringcast.outcomes", calls.len(), READY_WITHIN).await;
    worker.stop().await;

    let log = worker.log();
    for (id, (_, _, expected)) in (1..).zip(&calls) {
        let call_id = Uuid::from_u128(id).to_string();
        let lines: Vec<Value> = log
            .lines()
            .map(|line| serde_json::from_str(line).expect("a line is a JSON object"))
            .filter(|line: &Value| line["call.id"] == call_id.as_str())
            .collect();
        let said: Vec<Value> = lines
            .iter()
            .map(|line| json!([line["result"], line["apns.status"], line["apns.reason"]]))
            .collect();
        assert_eq!(said, Vec::from_iter(expected.clone()), "call {id}: {log}");
        let whole =
            |line: &Value| line["app"] == "acme" && line["why"].as_str().is_some_and(|why| !why.is_empty());
        assert!(lines.iter().all(whole), "call {id}: {log}");
    }
    assert!(![live, dead, topic].iter().any(|token| log.contains(token.as_str())), "no token: {log}");
    apple.stop().await;
}

async fn check_metrics(worker: &Worker) {
    let (status, text) = worker.fetch("/metrics").await;
    assert_eq!(status, 200);
    let is_served = |family: &str| text.lines().any(|line| line.starts_with(&format!("# TYPE {family} ")));
    let missing: Vec<&str> = FAMILIES.into_iter().filter(|family| !is_served(family)).collect();
    assert_eq!(missing, WITH_A_CERTIFICATE, "not in /metrics:\n{text}");
    let sample = |start: &str| {
        let line = text.lines().find(|line| line.starts_with(start));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
        value.unwrap_or_else(|| panic!("no sample {start} in /metrics:\n{text}"))
    };
    // Of 40 invites those numbered 3, 13, 23 and 33 are late.
    assert!((sample("ringcast_invites_total{app=\"acme\",result=\"expired\"}") - 4.0).abs() < 0.5);
    assert!(sample("ringcast_invites_total{app=\"acme\",result=\"accepted\"}") > 0.0);
    assert!(sample("ringcast_token_events_total{app=\"acme\",confidence=\"dead\",to=\"invalid\"}") > 0.0);
    assert!(sample("ringcast_amqp_publishes_total{result=\"confirmed\"}") >= 40.0);
    assert!(sample("ringcast_slack_seconds_count") > 0.0);
    for stage in ["queue", "slot", "apns", "confirm", "total"] {
        assert!(sample(&format!("ringcast_stage_seconds_count{{stage=\"{stage}\"}}")) > 0.0, "stage {stage}");
    }
    let token = |line: &str| {
        line.split(['"', ' ']).any(|word| word.len() >= 40 && word.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    assert!(!text.lines().any(token), "no device token in a metric");
}

#[tokio::test]
async fn a_call_that_rings_is_a_line_once_the_level_asks_for_it() {
    let (place, vhost) = (Place::new("level"), Vhost::new().await);
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.text("amqp", "uri", &vhost.uri());
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    let mut said = Vec::new();
    for (salt, level) in [(71, None), (72, Some("ringcast=debug,info")), (73, Some("info"))] {
        if let Some(level) = level {
            let answer = http::send("PUT", config.admin_port(), "/log-level", level).await;
            assert_eq!(answer, Some((200, format!("{level}\n"))));
        }
        let plan = Plan::new(1, salt);
        client::publish(&vhost.uri(), "ringcast.invites", &plan.messages()).await;
        // The line is written before the outcome is published.
        client::await_depth(&vhost.uri(), "ringcast.outcomes", said.len() + 1, READY_WITHIN).await;
        let told = worker.log().lines().filter(|line| line.contains(&plan.invites[0].call_id)).count();
        said.push(told);
    }
    assert_eq!(said, [0, 1, 0], "{}", worker.log());
    assert!(worker.log().contains("the log's level is changed"), "{}", worker.log());
    worker.stop().await;
    apple.stop().await;
}
