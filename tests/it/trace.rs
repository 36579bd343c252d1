//! Traces and timelines: spans as a foreign collector reads them, what results carry on, and what a collector that is dead or
//! silent costs (nothing).

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use uuid::Uuid;

use crate::apple::Apple;
use crate::broker::Ports;
use crate::client::{self, Incoming, Outgoing};
use crate::contract::{check_outcome, instant};
use crate::load::declare;
use crate::place::Place;
use crate::plan::{await_drained, now, written};
use crate::process::{POLL_EVERY, Process};
use crate::vhost::Vhost;
use crate::worker::{Config, Worker};

const WITHIN: Duration = Duration::from_mins(1);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const REMOTE: &str = "00f067aa0ba902b7";
const SECRET: &str = "open-sesame";

/// The first push is answered by a failure of Apple's that passes.
const BUSY_ONCE: &str =
    "[[fault]]\ncount = 1\ndo = \"answer\"\nstatus = 503\nreason = \"ServiceUnavailable\"\n";

/// `collector.py`, while it runs.
pub(crate) struct Collector {
    process: Process,
    pub(crate) url: String,
}

impl Collector {
    /// With the arguments of the program.
    pub(crate) async fn start(place: &Place, arguments: &[&str]) -> Self {
        let program = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/collector.py");
        let path = |path: &PathBuf| path.to_str().expect("the test's paths are UTF-8").to_owned();
        let program = path(&program);
        let all = [&[program.as_str()], arguments].concat();
        let mut process = Process::start(&path(&client::python()), &all, &[], place.as_ref(), "collector");
        let port = process
            .says("where it listens", WITHIN, |text| {
                text.split_once("listening on ")?.1.split_once('\n').map(|(port, _)| port.to_owned())
            })
            .await;
        Self { process, url: format!("http://127.0.0.1:{port}") }
    }

    /// The spans that it took.
    fn spans(&self) -> Vec<Value> {
        let text = self.process.stdout();
        text.lines().map(|line| serde_json::from_str(line).expect("collector.py prints JSON lines")).collect()
    }
}

struct Scene {
    place: Place,
    vhost: Vhost,
    apple: Apple,
    config: Config,
}

impl Scene {
    async fn new(name: &str, more: &str) -> Self {
        let place = Place::new(name);
        let vhost = Vhost::new().await;
        let apple = Apple::start(&place, (0, 0), more).await;
        let mut config = Config::new(&apple);
        config.text("amqp", "uri", &vhost.uri());
        declare(&place, &config).await;
        Self { place, vhost, apple, config }
    }

    async fn publish(&self, invites: &[Outgoing]) {
        client::publish(&self.vhost.uri(), "ringcast.invites", invites).await;
    }

    /// The next outcomes, each checked, by their correlation id.
    async fn outcomes(&self, count: usize) -> Vec<(Incoming, Value)> {
        let outcomes = client::read(&self.vhost.uri(), "ringcast.outcomes", count, WITHIN).await;
        outcomes.into_iter().map(|outcome| (outcome.clone(), check_outcome(&outcome))).collect()
    }
}

fn of<'a>(outcomes: &'a [(Incoming, Value)], name: &str) -> &'a (Incoming, Value) {
    let mut found = outcomes.iter().filter(|(message, _)| message.text("correlation_id") == name);
    found.next().unwrap_or_else(|| panic!("{name}: no outcome"))
}

/// An invite to one device, with so much time left.
fn invite(name: &str, token: u8, left: time::Duration, headers: &Value) -> Outgoing {
    let body = json!({
        "call_id": Uuid::from_u128(u128::from(token)).to_string(),
        "app": "acme",
        "created_at": written(now() - Duration::from_secs(1)),
        "deadline": written(now() + left),
        "devices": [{ "token": format!("{token:02x}").repeat(32) }],
    });
    message(name, body.to_string().into_bytes(), headers)
}

fn message(name: &str, body: Vec<u8>, headers: &Value) -> Outgoing {
    let properties =
        json!({ "message_id": format!("id-{name}"), "correlation_id": name, "headers": headers });
    Outgoing { body, properties }
}

fn traced(flags: &str) -> Value {
    json!({ "traceparent": format!("00-{TRACE}-{REMOTE}-{flags}"), "tracestate": "vendor=1" })
}

fn header<'a>(message: &'a Incoming, name: &str) -> &'a str {
    message.properties["headers"][name].as_str().unwrap_or_default()
}

#[tokio::test]
async fn spans_go_on_with_the_trace_of_whoever_publishes_and_results_with_ours() {
    let mut scene = Scene::new("trace", BUSY_ONCE).await;
    let collector = Collector::start(&scene.place, &["take", SECRET]).await;
    let headers = scene.place.write("headers", format!("x-secret: {SECRET}\n"));
    scene
        .config
        .text("traces", "otlp_endpoint", &collector.url)
        .path("traces", "headers_file", &headers)
        .text("worker", "name", "worker-1");
    let mut worker = Worker::start_ready(&scene.place, &scene.config, "worker").await;
    let minute = time::Duration::MINUTE;
    scene.publish(&[invite("rings", 0xa1, minute, &traced("01"))]).await;
    let first = scene.outcomes(1).await;
    let garbage = message("garbage", b"{}".to_vec(), &traced("01"));
    let unsampled = invite("unsampled", 0xa2, minute, &traced("00"));
    let untraced = invite("untraced", 0xa3, minute, &json!({}));
    scene.publish(&[garbage, unsampled, untraced]).await;
    let outcomes = [first, scene.outcomes(3).await].concat();
    // At once: what is not posted yet is posted then.
    worker.stop().await;

    let spans = collector.spans();
    let text = format!("{spans:?}");
    assert!(!text.contains(&"a1".repeat(32)), "no device token is told");
    let whole = |name: &str| {
        let mut found = spans.iter().filter(|span| {
            span["attributes"]["messaging.message.conversation_id"] == name
                && span["name"] == "process invite"
        });
        let span = found.next().unwrap_or_else(|| panic!("{name}: no span in {text}"));
        assert!(found.next().is_none(), "{name}: one span");
        span
    };
    for (name, result, status) in
        [("rings", "accepted", "STATUS_CODE_UNSET"), ("garbage", "malformed", "STATUS_CODE_ERROR")]
    {
        let span = whole(name);
        assert_eq!((&span["trace_id"], &span["parent"]), (&json!(TRACE), &json!(REMOTE)), "{span}");
        assert_eq!((&span["status"], &span["attributes"]["result"]), (&json!(status), &json!(result)));
        assert_eq!((&span["kind"], &span["flags"]), (&json!("SPAN_KIND_CONSUMER"), &json!(0x301)));
        assert_eq!(span["trace_state"], "vendor=1");
        assert_eq!(span["resource"]["service.name"], "ringcast");
        assert_eq!(span["resource"]["service.instance.id"], "worker-1");
        let (message, _) = of(&outcomes, name);
        let ours = span["span_id"].as_str().expect("an id");
        assert_eq!(header(message, "traceparent"), format!("00-{TRACE}-{ours}-01"), "{name} goes on");
        assert_eq!(header(message, "tracestate"), "vendor=1");
    }
    check_children(&spans, whole("rings"));
    assert_eq!(spans.len(), 4 + 2, "two attempts and the results; the garbage has results alone: {text}");
    let (unsampled, _) = of(&outcomes, "unsampled");
    assert_eq!(header(unsampled, "traceparent"), format!("00-{TRACE}-{REMOTE}-00"), "as it was");
    let (untraced, _) = of(&outcomes, "untraced");
    assert_eq!(header(untraced, "traceparent"), "", "nobody began one");
    let line = worker.log().lines().find(|line| line.contains("an invite is malformed")).map(str::to_owned);
    assert!(line.expect("it is logged").contains(TRACE), "the log names the trace");
}

/// The first attempt of the call failed and the second did not; all lies within the call's own span.
fn check_children(spans: &[Value], parent: &Value) {
    let children: Vec<&Value> = spans.iter().filter(|span| span["parent"] == parent["span_id"]).collect();
    let [first, second, results] = children[..] else { panic!("not three children: {children:?}") };
    let told = |span: &Value, key: &str| span["attributes"][key].clone();
    for (push, number, class, status) in [(first, 1, "first", 503), (second, 2, "transient", 200)] {
        assert_eq!((&push["name"], &push["kind"]), (&json!("push"), &json!("SPAN_KIND_CLIENT")));
        assert_eq!((told(push, "attempt"), told(push, "class")), (json!(number), json!(class)));
        assert_eq!(told(push, "http.response.status_code"), status);
        assert_eq!(told(push, "apns.environment"), "production");
    }
    assert_eq!(
        (&first["status"], &first["message"]),
        (&json!("STATUS_CODE_ERROR"), &json!("ServiceUnavailable"))
    );
    assert_eq!(told(first, "apns.reason"), "ServiceUnavailable");
    assert_eq!(second["status"], "STATUS_CODE_UNSET");
    assert_eq!(
        (&results["name"], &results["kind"]),
        (&json!("publish results"), &json!("SPAN_KIND_PRODUCER"))
    );
    assert_eq!(told(results, "messaging.batch.message_count"), 1);
    let time = |span: &Value, key: &str| span[key].as_u64().expect("nanoseconds");
    for child in children {
        assert_eq!((&child["trace_id"], &child["flags"]), (&json!(TRACE), &json!(0x101)));
        assert!(time(parent, "began") <= time(child, "began"), "{child} in {parent}");
        assert!(time(child, "began") <= time(child, "ended"), "{child}");
        assert!(time(child, "ended") <= time(parent, "ended"), "{child} in {parent}");
    }
}

#[tokio::test]
async fn a_collector_that_is_dead_or_silent_changes_nothing_for_calls() {
    let mut scene = Scene::new("trace-lost", "").await;
    let silent = Collector::start(&scene.place, &["hang"]).await;
    let dead = format!("http://127.0.0.1:{}", Ports::claim().expect("there are free ports").first);
    for (token, (name, url)) in (1..).zip([("silent", &silent.url), ("dead", &dead)]) {
        scene.config.text("traces", "otlp_endpoint", url).set("traces", "sample_ratio", "1.0");
        let mut worker = Worker::start_ready(&scene.place, &scene.config, name).await;
        let invites = [0, 16].map(|more| invite(name, token + more, time::Duration::MINUTE, &json!({})));
        scene.publish(&invites).await;
        for (message, outcome) in scene.outcomes(2).await {
            assert_eq!(outcome["result"], "accepted", "{name}: {outcome}");
            assert_eq!(header(&message, "traceparent").len(), 55, "a trace began here");
        }
        await_drained(&scene.vhost.uri(), &worker, WITHIN).await;
        if name == "dead" {
            let until = Instant::now() + WITHIN;
            while told(&worker) == 0 {
                assert!(Instant::now() < until, "nobody says that the collector is dead: {}", worker.log());
                sleep(POLL_EVERY).await;
            }
        }
        worker.stop().await;
        assert_eq!(told(&worker), usize::from(name == "dead"), "one line a spell: {}", worker.log());
        assert!(worker.log().contains("did not take in time"), "what is lost is told: {}", worker.log());
    }
}

fn told(worker: &Worker) -> usize {
    worker.log().matches("the collector of traces does not take spans").count()
}

#[tokio::test]
async fn an_outcome_tells_what_happened_when_if_it_is_asked_for() {
    let mut scene = Scene::new("timeline", BUSY_ONCE).await;
    scene.config.set("worker", "timeline", "true");
    let mut worker = Worker::start_ready(&scene.place, &scene.config, "worker").await;
    let minute = time::Duration::MINUTE;
    let again = invite("again", 1, minute, &json!({}));
    scene.publish(std::slice::from_ref(&again)).await;
    let first = scene.outcomes(1).await;
    let at_once = invite("at-once", 2, minute, &json!({}));
    let late = invite("late", 3, -minute, &json!({}));
    // And one that comes twice: its outcome is told again, with the times of the first.
    scene.publish(&[at_once, late, again]).await;
    let outcomes = [first, scene.outcomes(3).await].concat();
    worker.stop().await;

    let steps = |name: &str| -> Vec<Value> {
        let (_, outcome) = of(&outcomes, name);
        let steps = outcome["timeline"].as_array().expect("it was asked for").clone();
        let times: Vec<i64> = steps.iter().map(|step| instant(&step["at"])).collect();
        assert!(times.is_sorted(), "in order of time: {steps:?}");
        assert_eq!(steps.last().map(|step| &step["at"]), Some(&outcome["settled_at"]));
        let of_time = |mut step: Value| {
            for key in ["at", "wait_ms"] {
                step.as_object_mut().expect("a step").remove(key);
            }
            step
        };
        steps.into_iter().map(of_time).collect()
    };
    let around = |between: &[Value]| {
        let [created, received, settled] =
            ["created", "received", "settled"].map(|stage| json!({ "stage": stage }));
        [&[created, received], between, &[settled]].concat()
    };
    assert_eq!(steps("late"), around(&[]));
    let written = |attempt| json!({ "stage": "written", "device": 0, "attempt": attempt });
    let accepted = |attempt| json!({ "stage": "answered", "device": 0, "attempt": attempt, "status": 200 });
    assert_eq!(steps("at-once"), around(&[written(1), accepted(1)]));
    let busy = json!({ "stage": "answered", "device": 0, "attempt": 1, "status": 503,
        "reason": "ServiceUnavailable" });
    let retry = json!({ "stage": "retry", "device": 0, "attempt": 2, "class": "transient" });
    assert_eq!(steps("again"), around(&[written(1), busy, retry, written(2), accepted(2)]));
    let told: Vec<_> =
        outcomes.iter().filter(|(message, _)| message.text("correlation_id") == "again").collect();
    let [(first, _), (second, _)] = told[..] else { panic!("told twice: {told:?}") };
    assert_eq!(first.body, second.body, "the second is the first once more");
    assert_eq!(scene.apple.stop().await.len(), 3, "three attempts");
}
