//! Real incidents: for each exactly those alerts fire that name it, so that nobody else is blamed and nothing is told twice
//! over; where nothing is wrong, none fires at all.
//!
//! All of them happen at the same time, each to an installation of its own, under one Prometheus with the rules as they are
//! shipped, except that every span of time in them is divided by [`FASTER`].

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use futures_util::future::join_all;
use lapin::BasicProperties;
use lapin::options::{
    BasicGetOptions, BasicPublishOptions, BasicRejectOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use tokio::time::{sleep, timeout};

use super::RULES;
use super::caller::Calls;
use super::scene::{Plan, Scene};
use crate::amqp::Peer;
use crate::apple::DEAD;
use crate::broker::{Broker, Ports};
use crate::client_certificate::Authority;
use crate::place::Place;
use crate::plan::now;
use crate::process::POLL_EVERY;
use crate::prometheus::{Prometheus, Sample};
use crate::vhost::{Vhost, start_broker};

/// Five minutes are fifteen seconds, one minute is three: a worker that starts on a busy machine is ready before that.
const FASTER: u64 = 20;
/// What has not happened and been told by then never will be.
const WITHIN: Duration = Duration::from_mins(3);
/// How long all are watched at least: longer than any `for`.
const WATCHED: Duration = Duration::from_secs(20);

/// Between two calls, where many must be under way. All others have fewer: `rabbitmqctl` must get its share of the processor, too.
const OFTEN: Duration = Duration::from_millis(60);

/// Apple fails every push.
const FAILS: &str = "[[fault]]\ndo = \"answer\"\nstatus = 503\nreason = \"ServiceUnavailable\"\n";

/// Apple knows none of the tokens, as when they are of the other environment.
const STRANGERS: &str = "[[fault]]\ndo = \"answer\"\nstatus = 400\nreason = \"BadDeviceToken\"\n";

/// Apple says what only a defect of ours explains.
const PUZZLED: &str = "[[fault]]\ndo = \"answer\"\nstatus = 405\nreason = \"MethodNotAllowed\"\n";

/// What is told of each installation: whose fault it is, and exactly these alerts.
const EXPECTED: [(&str, &str, &[&str]); 22] = [
    ("healthy", "", &[]),
    ("apple-fails", "apple", &["RingcastCallsFail", "RingcastAppleErrors"]),
    // What was written when it froze gets no answer before its deadline.
    ("apple-frozen", "apple", &["RingcastAppleUnreachable", "RingcastCallsFail"]),
    ("apple-slow", "apple", &["RingcastSlackShrinks", "RingcastAppleSlow"]),
    ("wrong-team", "settings", &["RingcastCredentialRefused", "RingcastCallsRefused"]),
    ("wrong-root", "settings", &["RingcastDialsFail"]),
    ("old-certificate", "settings", &["RingcastCertificateExpires", "RingcastCertificateExpiresSoon"]),
    ("strange-tokens", "settings", &["RingcastBreakerOpen"]),
    ("broken-key", "settings", &["RingcastChangeRefused"]),
    ("unbound", "broker", &["RingcastResultsUnroutable", "RingcastResultsUntaken"]),
    ("broker", "broker", &["RingcastBrokerBlocked", "RingcastBrokerLost"]),
    ("queue-lost", "broker", &["RingcastQueueNotRead", "RingcastTopologyMissing"]),
    ("rabbitmq", "broker", &["RingcastResultsUnread"]),
    ("backlog", "load", &["RingcastBacklog", "RingcastCallsExpire", "RingcastSlackShrinks"]),
    ("skewed", "publisher", &["RingcastClockSkewed"]),
    ("malformed", "publisher", &["RingcastInvitesWrong", "RingcastEveryInviteWrong"]),
    ("old-tokens", "publisher", &["RingcastTokensRefused"]),
    ("killed", "ringcast", &["RingcastCrashLoop"]),
    ("gone", "ringcast", &["RingcastWorkerSilent", "RingcastNoWorker"]),
    ("back", "ringcast", &["RingcastCallsMissed"]),
    ("barred", "ringcast", &["RingcastCallsBarred"]),
    ("puzzled", "ringcast", &["RingcastDefect"]),
];

/// All that fired since the start.
const FIRED: &str = "count by (job, side, alertname) (max_over_time(ALERTS{alertstate=\"firing\"}[10m]))";

/// More results than those that may lie unread.
const UNREAD: usize = 10_100;

type Building<'a> = Pin<Box<dyn Future<Output = Scene> + 'a>>;
type Happening<'a> = Pin<Box<dyn Future<Output = ()> + 'a>>;

#[tokio::test]
async fn each_incident_is_told_by_its_alert_and_nobody_else_is_blamed() {
    let place = Place::new("alerts");
    let rules = place.write("alerts.yaml", faster(RULES));
    let (vhost, unbound, barred, mut broker) =
        tokio::join!(Vhost::new(), Vhost::new(), Vhost::new(), start_broker());
    let plugin = Ports::claim().expect("there are free ports");
    vhost.serve_metrics(plugin.first).await;
    let (uri, unbound_uri, barred_uri) = (vhost.uri(), unbound.uri(), barred.uri());
    let broker_uri = broker.uri();
    let mut scenes: BTreeMap<&str, Scene> = join_all(build(&uri, &unbound_uri, &barred_uri, &broker_uri))
        .await
        .into_iter()
        .map(|scene| (scene.name, scene))
        .collect();
    leave_unread(&uri).await;
    let jobs: Vec<(&str, u16)> =
        scenes.iter().map(|(name, scene)| (*name, scene.config.admin_port())).collect();
    let prometheus = Prometheus::start_jobs(&jobs, plugin.first, &[rules]).await;
    // All but one, and the broker.
    prometheus.await_scraped(jobs.len(), WITHIN).await;

    let mut killed = scenes.remove("killed").expect("it was built");
    let mut back = scenes.remove("back").expect("it was built");
    let happenings: Vec<Happening<'_>> = vec![
        Box::pin(async {
            let peer = Peer::new(&unbound_uri).await;
            let (queue, exchange, key) = ("ringcast.outcomes", "ringcast.results", "outcome.#");
            let unbind =
                peer.channel.queue_unbind(queue.into(), exchange.into(), key.into(), FieldTable::default());
            unbind.await.expect("it was bound");
        }),
        Box::pin(async {
            let peer = Peer::new(&uri).await;
            let delete =
                peer.channel.queue_delete("calls.queue-lost.too".into(), QueueDeleteOptions::default());
            delete.await.expect("it was there");
        }),
        Box::pin(give_up(&barred_uri)),
        Box::pin(trouble_broker(&mut broker, &prometheus)),
        Box::pin(kill_until_told(&mut killed, &prometheus)),
        Box::pin(leave_for_a_while(&mut back, &prometheus)),
        Box::pin(sleep(WATCHED)),
        Box::pin(await_all_told(&prometheus)),
    ];
    scenes["apple-frozen"].apple.freeze();
    std::fs::write(scenes["broken-key"].apple.key_file(), "no key").expect("it can be written");
    scenes.get_mut("gone").expect("it was built").kill_worker().await;
    scenes.get_mut("wrong-root").expect("it was prepared").start_worker();
    let happened = timeout(WITHIN, join_all(happenings)).await;
    // It says what lacks, too.
    judge(&prometheus).await;
    happened.expect("everything happened in time");
}

/// One question for all of them: one for each, over and over, would take the processor from what is watched.
async fn await_all_told(prometheus: &Prometheus) {
    let all = |fired: &[Sample]| {
        let told = |job: &str, alert: &str| {
            fired.iter().any(|sample| label(sample, "job") == job && label(sample, "alertname") == alert)
        };
        EXPECTED.iter().all(|(job, _, alerts)| alerts.iter().all(|alert| told(job, alert)))
    };
    prometheus.await_query(FIRED, WITHIN, all).await;
}

/// What must have fired has, who was blamed is who is to blame, and nothing else was told.
async fn judge(prometheus: &Prometheus) {
    let fired = prometheus.query(FIRED).await;
    let mut mistakes = Vec::new();
    let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for sample in &fired {
        let [job, alert, blamed] = ["job", "alertname", "side"].map(|name| label(sample, name));
        found.entry(job).or_default().insert(alert);
        let expected = EXPECTED.iter().find(|(expected, ..)| *expected == job);
        if expected.is_none_or(|(_, side, _)| *side != blamed) {
            mistakes.push(format!("{job}: {alert} blames {blamed}"));
        }
    }
    for (job, _, alerts) in EXPECTED {
        let alerts: BTreeSet<&str> = alerts.iter().copied().collect();
        let told = found.remove(job).unwrap_or_default();
        if told != alerts {
            mistakes.push(format!("{job}: {told:?} were told, and not {alerts:?}"));
        }
    }
    assert!(mistakes.is_empty(), "{}; of {found:#?}", mistakes.join("; "));
    // What a template cannot say, Prometheus says in its place.
    for alert in prometheus.alerts().await {
        let text = alert.annotations.values().map(String::as_str).collect::<Vec<_>>().join(" ");
        let broken = ["<error", "<no value>", "%!", "NaN", "Inf"].iter().find(|word| text.contains(**word));
        assert!(broken.is_none(), "{}: {text}", alert.name);
    }
}

fn label<'a>(sample: &'a Sample, name: &str) -> &'a str {
    sample.labels.get(name).map_or("", String::as_str)
}

/// All installations. What goes wrong from the start is built in.
fn build<'a>(uri: &'a str, unbound: &'a str, barred: &'a str, broker: &'a str) -> Vec<Building<'a>> {
    let mut fails = Plan::new("apple-fails", uri);
    fails.script = FAILS;
    let mut strangers = Plan::new("strange-tokens", uri);
    strangers.script = STRANGERS;
    // The broker tells a connection that it is blocked when that publishes; so calls must be under way then.
    let mut slow = Plan::new("broker", broker);
    slow.latency_ms = (500, 500);
    // Six at once, which are too few to count as full: more come than it can push. What waits is four seconds old, so that those
    // expire which have no more; one in five has, and is accepted with little left. So it stays where the broker takes half a second
    // to confirm what becomes of them: what has expired holds the worker up for as long, too.
    let mut backlog = Plan::new("backlog", uri);
    backlog.latency_ms = (800, 800);
    backlog.calls.every = Duration::from_millis(110);
    backlog.calls.ring_seconds = &[4, 4, 4, 4, 7];
    let mut slow_apple = Plan::new("apple-slow", uri);
    slow_apple.latency_ms = (2_500, 2_500);
    slow_apple.calls.every = OFTEN;
    slow_apple.calls.ring_seconds = &[5];
    // Enough of them are under way when it freezes.
    let mut frozen = Plan::new("apple-frozen", uri);
    frozen.calls.every = OFTEN;
    let mut puzzled = Plan::new("puzzled", uri);
    puzzled.script = PUZZLED;
    let mut malformed = Plan::new("malformed", uri);
    malformed.calls.app = "nobody";
    let mut old_tokens = Plan::new("old-tokens", uri);
    old_tokens.calls.prefix = DEAD;
    let mut back = Plan::new("back", uri);
    back.calls.ring_seconds = &[3];
    let mut skewed = Plan::new("skewed", uri);
    skewed.calls = Calls { skew: time::Duration::seconds(20), ..Calls::default() };
    vec![
        Box::pin(Plan::new("healthy", uri).build(|_, _| {})),
        Box::pin(fails.build(|_, _| {})),
        Box::pin(frozen.build(|_, _| {})),
        Box::pin(Plan::new("wrong-team", uri).build(|config, _| {
            config.text("apps.acme.auth", "team_id", "TEAM000000");
        })),
        // Its worker starts under Prometheus' eyes, and is never ready.
        Box::pin(Plan::new("wrong-root", uri).prepare(|config, place| {
            let root = place.write("root.pem", Authority::named("Somebody else").pem());
            config.path("apns", "ca_file", &root);
        })),
        Box::pin(Plan::new("old-certificate", uri).build(|config, place| {
            let (now, day) = (now(), time::Duration::DAY);
            let issued = Authority::new().issue("com.umbra.voice", now - day, now + day * 2);
            let certificate = place.write("umbra.pem", issued.pem());
            config
                .text("apps.umbra", "bundle_id", "com.umbra.voice")
                .path("apps.umbra.auth", "cert_file", &certificate)
                .path("apps.umbra.auth", "key_file", &certificate);
        })),
        Box::pin(strangers.build(|_, _| {})),
        Box::pin(Plan::new("unbound", unbound).build(|_, _| {})),
        Box::pin(slow.build(|_, _| {})),
        Box::pin(backlog.build(|config, _| {
            config.set("amqp", "prefetch", "7");
        })),
        Box::pin(slow_apple.build(|_, _| {})),
        Box::pin(puzzled.build(|_, _| {})),
        Box::pin(malformed.build(|_, _| {})),
        Box::pin(old_tokens.build(|_, _| {})),
        Box::pin(Plan::new("broken-key", uri).build(|config, _| {
            config.text("apns", "reload_interval", "200ms");
        })),
        Box::pin(Plan::new("queue-lost", uri).build(|config, _| {
            config.set("amqp", "invites", r#"["calls.queue-lost", "calls.queue-lost.too"]"#);
        })),
        Box::pin(back.build(|_, _| {})),
        Box::pin(Plan::new("barred", barred).build(|_, _| {})),
        Box::pin(skewed.build(|_, _| {})),
        Box::pin(Plan::new("killed", uri).build(|_, _| {})),
        Box::pin(Plan::new("gone", uri).build(|_, _| {})),
    ]
}

/// First it has no memory left, then it is gone.
async fn trouble_broker(broker: &mut Broker, prometheus: &Prometheus) {
    broker.ctl(&["set_vm_memory_high_watermark", "0"]).await.expect("it raises an alarm");
    let told = r#"ALERTS{job="broker",alertname="RingcastBrokerBlocked",alertstate="firing"}"#;
    prometheus.await_query(told, WITHIN, |samples| !samples.is_empty()).await;
    broker.kill().expect("it can be killed");
}

/// Results that nobody reads.
async fn leave_unread(uri: &str) {
    let peer = Peer::new(uri).await;
    let mut confirms = Vec::with_capacity(UNREAD);
    for _ in 0..UNREAD {
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let publish =
            peer.channel.basic_publish("".into(), "ringcast.outcomes".into(), options, b"{}", properties);
        confirms.push(publish.await.expect("it is sent"));
    }
    for confirm in confirms {
        assert!(confirm.await.expect("it is answered").is_ack());
    }
}

/// An invite that comes back to a queue more often than that allows.
async fn give_up(uri: &str) {
    let peer = Peer::new(uri).await;
    let mut args = FieldTable::default();
    args.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    args.insert("x-delivery-limit".into(), AMQPValue::LongInt(1));
    args.insert("x-dead-letter-exchange".into(), AMQPValue::LongString("".into()));
    args.insert("x-dead-letter-routing-key".into(), AMQPValue::LongString("ringcast.expired".into()));
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    peer.channel.queue_declare("returned".into(), options, args).await.expect("a queue");
    let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
    let body = Calls::default().invite(u32::MAX, 30);
    let publish = peer.channel.basic_publish("".into(), "returned".into(), options, &body, properties);
    assert!(publish.await.expect("it is sent").await.expect("it is answered").is_ack());
    let mut returned = 0;
    while returned < 2 {
        let get = peer.channel.basic_get("returned".into(), BasicGetOptions::default());
        match get.await.expect("an answer") {
            Some(got) => {
                got.acker.reject(BasicRejectOptions { requeue: true }).await.expect("it is told");
                returned += 1;
            }
            None => sleep(POLL_EVERY).await,
        }
    }
}

/// A worker that is away for so long that calls expire, and comes back before its absence is told.
async fn leave_for_a_while(scene: &mut Scene, prometheus: &Prometheus) {
    scene.kill_worker().await;
    let away = r#"count_over_time(ringcast:worker_trouble{job="back"}[10s]) >= 2"#;
    prometheus.await_query(away, WITHIN, |samples| !samples.is_empty()).await;
    scene.start_worker().await_ready().await;
}

/// A worker that lives for some two seconds each time.
async fn kill_until_told(scene: &mut Scene, prometheus: &Prometheus) {
    let told = r#"ALERTS{job="killed",alertname="RingcastCrashLoop",alertstate="firing"}"#;
    while prometheus.query(told).await.is_empty() {
        scene.replace_worker().await;
        let up = r#"up{job="killed"} == 1"#;
        prometheus.await_query(up, WITHIN, |samples| !samples.is_empty()).await;
        sleep(Duration::from_secs(2)).await;
    }
}

/// The rules with every span of time divided.
fn faster(rules: &str) -> String {
    let mut text = String::new();
    for line in rules.lines() {
        let mut rest = line;
        while let Some(start) = rest.find('[').or_else(|| rest.find("for: ").map(|start| start + 4)) {
            let (before, after) = rest.split_at(start + 1);
            text += before;
            let end = after.find(']').unwrap_or(after.len());
            let (span, then) = after.split_at(end);
            match milliseconds(span) {
                Some(span) => text += &[&(span / FASTER).to_string(), "ms"].concat(),
                None => text += span,
            }
            rest = then;
        }
        text += rest;
        text.push('\n');
    }
    text
}

/// `5m`, `30s`, `1h`.
fn milliseconds(span: &str) -> Option<u64> {
    let (number, unit) = span.split_at_checked(span.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    Some(number.parse::<u64>().ok()? * unit)
}

#[test]
fn every_span_is_divided_and_nothing_else_is_touched() {
    let rules = "for: 5m\nexpr: a{b=~\"c|d\"}[10m] > 5 and e[1h] / f[30s]\nsummary: for ever [x]\nfor: 0s\n";
    let expected = "for: 15000ms\nexpr: a{b=~\"c|d\"}[30000ms] > 5 and e[180000ms] / f[1500ms]\nsummary: for ever [x]\nfor: 0ms\n";
    assert_eq!(faster(rules), expected);
    assert!(!faster(RULES).contains("[5m]") && RULES.contains("[5m]"));
}
