//! `/metrics` after a load with failures, beside the page that explains it (`src/metrics/README.md`) and before
//! Prometheus' own judgement.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Stdio;

use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::apple::{Apple, DEAD};
use crate::client;
use crate::client_certificate::Authority;
use crate::load::declare;
use crate::place::Place;
use crate::plan::{Plan, await_drained, now};
use crate::vhost::Vhost;
use crate::worker::{Config, READY_WITHIN, Worker};

const PAGE: &str = include_str!("../../src/metrics/README.md");

/// What goes wrong at Apple: a connection that must go, and failures that pass.
const FAULTS: &str = r#"
[[fault]]
skip = 5
count = 1
do = "goaway"
reason = "Shutdown"

[[fault]]
skip = 10
count = 3
do = "answer"
status = 503
reason = "ServiceUnavailable"
"#;

/// Each invite is published twice, so that the second one is answered from memory.
const INVITES: usize = 60;

#[tokio::test]
async fn what_a_worker_serves_is_what_the_page_tells_and_what_prometheus_takes() {
    let place = Place::new("metrics");
    let vhost = Vhost::new().await;
    let uri = vhost.uri();
    let plan = Plan::new(INVITES, 8);
    // Whatever happens to their connections, one token is of another app, and one push asks for other settings. They come
    // first: the first fault that does something decides.
    let refused = [(20, "BadDeviceToken"), (40, "TopicDisallowed")].map(|(number, reason)| {
        let token = &plan.invites[number].tokens[0];
        assert!(!token.starts_with(DEAD), "this one is answered 410");
        format!("[[fault]]\ntoken = \"{token}\"\ndo = \"answer\"\nstatus = 400\nreason = \"{reason}\"\n")
    });
    let apple = Apple::start(&place, (0, 0), &(refused.concat() + FAULTS)).await;
    let day = time::Duration::DAY;
    let issued = Authority::new().issue("com.umbra.voice", now() - day, now() + day * 100);
    let certificate = place.write("umbra.pem", issued.pem());
    let mut config = Config::new(&apple);
    config
        .text("amqp", "uri", &uri)
        .text("apps.umbra", "bundle_id", "com.umbra.voice")
        .path("apps.umbra.auth", "cert_file", &certificate)
        .path("apps.umbra.auth", "key_file", &certificate);
    declare(&place, &config).await;
    let mut worker = Worker::start_ready(&place, &config, "worker").await;
    for copies in 1..=2 {
        client::publish(&uri, "ringcast.invites", &plan.messages()).await;
        client::await_depth(&uri, "ringcast.outcomes", copies * INVITES, READY_WITHIN).await;
    }
    await_drained(&uri, &worker, READY_WITHIN).await;
    let (_, text) = worker.fetch("/metrics").await;
    worker.stop().await;
    apple.stop().await;

    let served = Family::served(&text);
    let mistakes = differences(&Family::told(PAGE), &served);
    assert!(mistakes.is_empty(), "src/metrics/README.md: {}", mistakes.join("; "));
    let apps: BTreeSet<&str> =
        served.values().filter_map(|family| family.labels.get("app")).flat_map(Label::words).collect();
    assert_eq!(
        apps,
        BTreeSet::from(["acme", "umbra", "unknown"]),
        "configured ones, and one word for the rest"
    );
    check_counts(&text, &plan);
    assert_eq!(promtool(&text).await, (Some(0), String::new()), "of\n{text}");
}

/// The families that no other test looks at. One invite of the plan is malformed: the ledger knows nothing of it.
fn check_counts(text: &str, plan: &Plan) {
    let whole = |start: &str| -> usize {
        let line =
            text.lines().find(|line| line.strip_prefix(start).is_some_and(|rest| rest.starts_with(' ')));
        let value = line.and_then(|line| line.rsplit(' ').next()?.parse().ok());
        value.unwrap_or_else(|| panic!("no sample {start} in /metrics:\n{text}"))
    };
    // A session that is lost on a busy machine adds to both.
    assert!(whole("ringcast_ledger_answers_total") >= INVITES - 1, "each came twice");
    assert!(whole(r#"ringcast_amqp_dials_total{result="connected"}"#) >= 1);
    assert_eq!(whole(r#"ringcast_ledger_entries{state="remembered"}"#), INVITES - 1);
    assert_eq!(whole(r#"ringcast_ledger_entries{state="in_flight"}"#), 0);
    let action =
        |action: &str| whole(&format!(r#"ringcast_device_actions_total{{action="{action}",app="acme"}}"#));
    assert_eq!(action("drop_token"), plan.dead_tokens().len());
    assert_eq!(action("check_token"), 1);
    // A refusal that follows an attempt without an answer, as on a machine too busy for PINGs, is no refusal but `unknown`.
    let unanswered = whole(r#"ringcast_attempts_total{class="ambiguous"}"#);
    assert!(
        action("fix_config") == 1 || unanswered > 0,
        "{unanswered} attempts followed one without an answer"
    );
    for environment in ["production", "sandbox"] {
        let of =
            |family: &str, more: &str| whole(&format!(r#"{family}{{environment="{environment}"{more}}}"#));
        assert!(of("ringcast_provider_token_mints_total", r#",result="minted""#) >= 1, "{environment}");
        assert_eq!(of("ringcast_provider_token_mints_total", r#",result="failed""#), 0);
        let opened = of("ringcast_apns_dials_total", r#",result="connected""#);
        assert!(
            of("ringcast_apns_ping_seconds_count", "") >= opened,
            "each opened with a PING, {environment}"
        );
    }
}

/// `promtool check metrics`: its exit code and what it says. 3 means that it would have done something otherwise.
async fn promtool(text: &str) -> (Option<i32>, String) {
    let mut child = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("promtool does not start: {error}; Debian's package is `prometheus`"));
    let mut stdin = child.stdin.take().expect("it is piped");
    stdin.write_all(text.as_bytes()).await.expect("promtool reads all");
    drop(stdin);
    let output = child.wait_with_output().await.expect("promtool ends");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

#[tokio::test]
async fn promtool_says_what_is_wrong() {
    let (code, said) = promtool("# HELP a_count A.\n# TYPE a_count counter\na_count 1\n").await;
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("a_count") && said.contains("_total"), "{said}");
}

/// One family, as it is served or as the page tells it.
#[derive(Debug, Default)]
struct Family {
    /// `counter`, `gauge` or `histogram`.
    kind: String,
    help: String,
    labels: BTreeMap<String, Label>,
}

/// The values of a label.
#[derive(Debug, Default)]
struct Label {
    values: BTreeSet<String>,
    /// The page describes further ones in prose, such as an app's name.
    is_open: bool,
}

impl Label {
    fn words(&self) -> impl Iterator<Item = &str> {
        self.values.iter().map(String::as_str)
    }
}

impl Family {
    /// Reads the text format 0.0.4, in which a family's samples follow its `HELP` and `TYPE`.
    fn served(text: &str) -> BTreeMap<String, Self> {
        let mut families: BTreeMap<String, Self> = BTreeMap::new();
        let mut current = String::new();
        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("every family has a help text");
                let family =
                    Self { help: help.replace("\\n", "\n").replace("\\\\", "\\"), ..Self::default() };
                assert!(families.insert(name.to_owned(), family).is_none(), "{name} is served twice");
                name.clone_into(&mut current);
                continue;
            }
            let family = families.get_mut(&current).expect("HELP comes first");
            if let Some(rest) = line.strip_prefix("# TYPE ") {
                let kind = rest.strip_prefix(current.as_str()).expect("TYPE follows its HELP");
                kind.trim().clone_into(&mut family.kind);
                continue;
            }
            let (sample, _) = line.rsplit_once(' ').expect("a sample and its value");
            let Some((_, labels)) = sample.split_once('{') else { continue };
            for pair in labels.trim_end_matches("\"}").split("\",") {
                let (name, value) = pair.split_once("=\"").expect("a label and its value");
                // A bucket's bound belongs to the format.
                if (family.kind.as_str(), name) != ("histogram", "le") {
                    family.labels.entry(name.to_owned()).or_default().values.insert(value.to_owned());
                }
            }
        }
        families
    }

    /// Reads the rows of the page: name, type and unit, labels, meaning, what to do.
    fn told(page: &str) -> BTreeMap<String, Self> {
        let mut families = BTreeMap::new();
        for row in page.lines().filter(|line| line.starts_with("| `")) {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [_, name, unit, labels, help, odd, _] = cells[..] else { panic!("not five cells: {row}") };
            let (kind, unit) = unit.split_once(", ").unwrap_or_else(|| panic!("no unit: {row}"));
            assert!(!unit.is_empty() && !odd.is_empty(), "an empty cell: {row}");
            let labels = if labels == "—" { "" } else { labels };
            let labels = labels.split("; ").filter(|label| !label.is_empty()).map(label).collect();
            let family = Self { kind: kind.to_owned(), help: help.to_owned(), labels };
            let name = name.trim_matches('`');
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} has two rows");
        }
        families
    }
}

/// A label on the page: its name, and its values as words in backticks, or in prose.
fn label(text: &str) -> (String, Label) {
    let (name, values) = text.split_once(": ").unwrap_or_else(|| panic!("no values: {text}"));
    let parts: Vec<&str> = values.split(", ").collect();
    let words = parts.iter().filter_map(|part| part.strip_prefix('`')?.strip_suffix('`').map(str::to_owned));
    let values: BTreeSet<String> = words.collect();
    (name.trim_matches('`').to_owned(), Label { is_open: values.len() < parts.len(), values })
}

/// The names of all families on the page.
pub(crate) fn families() -> BTreeSet<String> {
    Family::told(PAGE).into_keys().collect()
}

/// The labels of all families on the page, and the values of each; none where the page describes some in prose.
pub(crate) fn labels() -> BTreeMap<String, BTreeMap<String, Option<BTreeSet<String>>>> {
    let values = |label: Label| (!label.is_open).then_some(label.values);
    let labels =
        |family: Family| family.labels.into_iter().map(|(name, label)| (name, values(label))).collect();
    Family::told(PAGE).into_iter().map(|(name, family)| (name, labels(family))).collect()
}

/// What is on one side and not on the other, one sentence each.
fn differences(told: &BTreeMap<String, Family>, served: &BTreeMap<String, Family>) -> Vec<String> {
    let mut found = Vec::new();
    for name in told.keys().filter(|name| !served.contains_key(*name)) {
        found.push(format!("{name} is on the page and not served"));
    }
    for (name, served) in served {
        let Some(told) = told.get(name) else {
            found.push(format!("{name} is served and not on the page"));
            continue;
        };
        if told.kind != served.kind {
            found.push(format!("{name} is a {}, on the page a {}", served.kind, told.kind));
        }
        if told.help != served.help {
            found.push(format!("{name} is served with {:?}, the page has {:?}", served.help, told.help));
        }
        let names = |family: &Family| family.labels.keys().cloned().collect::<Vec<_>>();
        if names(told) != names(served) {
            found.push(format!("{name} has the labels {:?}, on the page {:?}", names(served), names(told)));
        }
        for (label, served) in &served.labels {
            let Some(told) = told.labels.get(label).filter(|told| !told.is_open) else { continue };
            for value in served.values.difference(&told.values) {
                found.push(format!("{name} has {label}={value:?}, which is not on the page"));
            }
        }
    }
    found
}

#[test]
fn every_difference_is_found() {
    let text = "# HELP a_total What \\\\ it is.\n# TYPE a_total counter\na_total{app=\"x\",to=\"b\"} 1\n\
                # HELP c Of it.\n# TYPE c histogram\nc_bucket{le=\"+Inf\"} 0\nc_sum 0\nc_count 0\n";
    let row = |kind: &str, labels: &str, help: &str| {
        format!("| `a_total` | {kind}, it | {labels} | {help} | run |")
    };
    let good = row("counter", "`app`: an app; `to`: `b`, `d`", "What \\ it is.");
    let other = "\n| `c` | histogram, seconds | — | Of it. | run |";
    let found = |first: &str, more: &str| {
        differences(&Family::told(&format!("{first}{more}")), &Family::served(text)).join("; ")
    };
    assert_eq!(found(&good, other), "");
    for (page, more, sentence) in [
        (&good, "", "c is served and not on the page"),
        (
            &good.replace("`a_total`", "`b_total`"),
            other,
            "b_total is on the page and not served; a_total is served",
        ),
        (&good.replace("counter", "gauge"), other, "a_total is a counter, on the page a gauge"),
        (&good.replace("What", "That"), other, "a_total is served with"),
        (&good.replace("`app`", "`apps`"), other, "a_total has the labels"),
        (&good.replace("`b`, ", ""), other, "a_total has to=\"b\", which is not on the page"),
    ] {
        assert!(found(page, more).starts_with(sentence), "{sentence:?}, but {:?}", found(page, more));
    }
}
