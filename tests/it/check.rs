//! The commands that an operator runs before the worker runs: what they say, and their exit codes.

use std::fs::File;
use std::process::Stdio;

use serde_json::Value;

use crate::apple::Apple;
use crate::broker::Ports;
use crate::load::declare;
use crate::place::Place;
use crate::process::{RINGCAST, run_ringcast};
use crate::vhost::Vhost;
use crate::worker::Config;

const USAGE: Option<i32> = Some(64);
const UNAVAILABLE: Option<i32> = Some(69);
const CONFIGURATION: Option<i32> = Some(78);

#[tokio::test]
async fn check_reports_every_mistake_at_once_with_where_it_came_from() {
    let place = Place::new("check");
    let key = place.write("key.p8", "no key\n");
    let text = format!(
        "[amqp]\n\
         uri = \"http://guest:s3cret@127.0.0.1/\"\n\
         prefetchh = 5\n\
         [worker]\n\
         devices_max = 5000\n\
         answer_grace = \"one fortnight\"\n\
         [apps.acme]\n\
         bundle_id = \"com.acme.voice\"\n\
         environment = \"staging\"\n\
         [apps.acme.auth]\n\
         team_id = \"TEAM123456\"\n\
         key_id = \"KEY1234567\"\n\
         key_file = {key:?}\n\
         [apps.zeta]\n\
         bundle_id = \"com.zeta.voice\"\n\
         [apps.zeta.auth]\n\
         team_id = \"TEAM123456\"\n\
         cert_file = {key:?}\n"
    );
    // Eight here, and one in the environment.
    place.write("ringcast.toml", text);
    let ended = run_ringcast(
        &["check", "--config", "ringcast.toml"],
        &[("RINGCAST__APNS__CONNECTIONS", "none")],
        place.as_ref(),
    )
    .await;
    assert_eq!(ended.code, CONFIGURATION, "{}", ended.stderr);
    assert_eq!(ended.stdout, "", "mistakes are no result");
    let wanted: [&[&str]; 9] = [
        &["amqp.uri (ringcast.toml:2):", "amqp://"],
        &["amqp.prefetchh (ringcast.toml:3):", "prefetch"],
        &["worker.devices_max (ringcast.toml:5):", "5000", "1000"],
        &["worker.answer_grace (ringcast.toml:6):", "one fortnight", "ms"],
        &["apps.acme.environment (ringcast.toml:9):", "staging", "production", "sandbox"],
        &["apps.acme.auth.key_file (ringcast.toml:13):", "key.p8"],
        &["apps.zeta.auth.cert_file (ringcast.toml:18):", "key.p8", "no certificate"],
        &["apps.zeta.auth.cert_file (ringcast.toml:18): is set beside", "team_id", "key_file"],
        &["apns.connections (RINGCAST__APNS__CONNECTIONS):", "none", "whole number"],
    ];
    for words in wanted {
        let line = ended.stderr.lines().find(|line| line.contains(words[0]));
        let line = line.unwrap_or_else(|| panic!("no line with {:?} in:\n{}", words[0], ended.stderr));
        for word in words {
            assert!(line.contains(word), "{line:?} should name {word:?}");
        }
    }
    assert_eq!(ended.stderr.lines().count(), wanted.len(), "one line each, and no other:\n{}", ended.stderr);
    assert!(!ended.stderr.contains("s3cret"), "a password is never shown:\n{}", ended.stderr);

    // The worker refuses the same configuration in the same words.
    let refused = run_ringcast(
        &["run", "--config", "ringcast.toml"],
        &[("RINGCAST__APNS__CONNECTIONS", "none")],
        place.as_ref(),
    )
    .await;
    assert_eq!(refused.code, CONFIGURATION, "{}", refused.stderr);
    assert!(refused.stderr.contains("amqp.prefetchh (ringcast.toml:3):"), "{}", refused.stderr);
}

#[tokio::test]
async fn check_says_nothing_wrong_of_a_good_configuration() {
    let place = Place::new("check-good");
    let apple = Apple::start(&place, (0, 0), "").await;
    let file = Config::new(&apple).write(&place, "ringcast.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let ended = run_ringcast(&["check", "--config", file], &[], place.as_ref()).await;
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[tokio::test]
async fn a_wrong_call_is_told_apart_from_a_wrong_configuration() {
    let place = Place::new("usage");
    for args in [&["rnu"][..], &["run", "--confg", "x"], &["topology", "undo"], &["send", "--app"]] {
        let ended = run_ringcast(args, &[], place.as_ref()).await;
        assert_eq!(ended.code, USAGE, "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("Usage"), "{args:?}: {}", ended.stderr);
    }
    let ended = run_ringcast(&["check", "--config", "nowhere.toml"], &[], place.as_ref()).await;
    assert_eq!(ended.code, CONFIGURATION, "{}", ended.stderr);
    assert!(ended.stderr.contains("nowhere.toml"), "{}", ended.stderr);
    let help = run_ringcast(&["--help"], &[], place.as_ref()).await;
    assert_eq!(help.code, Some(0));
    for command in ["run", "check", "topology", "pipe"] {
        assert!(help.stdout.contains(command), "{}", help.stdout);
    }
}

#[tokio::test]
async fn check_refuses_what_run_refuses_for_want_of_a_trust_root() {
    let place = Place::new("rootless");
    let apple = Apple::start(&place, (0, 0), "").await;
    let file = Config::new(&apple).text("apns", "ca_file", "").write(&place, "ringcast.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let rootless = [("SSL_CERT_FILE", "/nope"), ("SSL_CERT_DIR", "/nope")];
    for command in ["check", "run"] {
        let ended = run_ringcast(&[command, "--config", file], &rootless, place.as_ref()).await;
        assert_eq!(ended.code, CONFIGURATION, "{command}: {}", ended.stderr);
        assert!(ended.stderr.contains("no trust root: the system has none"), "{command}: {}", ended.stderr);
    }
    let with_mistake = [("RINGCAST__AMQP__PREFETCH", "0"), rootless[0], rootless[1]];
    let ended = run_ringcast(&["check", "--config", file], &with_mistake, place.as_ref()).await;
    let keys: Vec<&str> = ended.stderr.lines().filter_map(|line| line.split([' ', ':']).next()).collect();
    assert_eq!(keys, ["amqp.prefetch", "apns.ca_file"], "{}", ended.stderr);
}

#[tokio::test]
async fn an_address_that_cannot_be_listened_on_is_named_with_its_place() {
    let place = Place::new("listen");
    let apple = Apple::start(&place, (0, 0), "").await;
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("there are free ports");
    let taken = taken.local_addr().expect("it listens");
    // 192.0.2.0/24 is nobody's (RFC 5737).
    for (address, right) in [
        (taken.to_string(), "give a port that nothing else listens on, or end what does"),
        ("192.0.2.1:9090".to_owned(), "give an address of this machine, or 0.0.0.0 for all of them"),
    ] {
        let file = Config::new(&apple).text("admin", "listen", &address).write(&place, "ringcast.toml");
        let file = file.to_str().expect("the test's paths are UTF-8");
        let ended = run_ringcast(&["run", "--config", file], &[], place.as_ref()).await;
        assert_eq!(ended.code, Some(1), "{}", ended.stderr);
        let line = ended.stderr.lines().find(|line| line.starts_with("admin.listen (")).unwrap_or_default();
        assert!(line.contains(&format!("{file}:2): ")) && line.contains(&address), "{}", ended.stderr);
        assert!(line.ends_with(right), "{}", ended.stderr);
    }
}

#[tokio::test]
async fn a_stdout_that_cannot_be_written_is_said_and_no_panic() {
    let place = Place::new("full");
    let apple = Apple::start(&place, (0, 0), "").await;
    let file = Config::new(&apple).write(&place, "ringcast.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let run = async |args: &[&str], stdout: Stdio| {
        let mut command = tokio::process::Command::new(RINGCAST);
        command.args(args).stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped()).kill_on_drop(true);
        let child = command.spawn().expect("the program was built");
        let ended = child.wait_with_output().await.expect("a child can be awaited");
        (ended.status.code(), String::from_utf8(ended.stderr).expect("UTF-8"))
    };
    for args in [
        &["--help"][..],
        &["check", "--config", file],
        &["topology", "policies", "--config", file],
        &["topology", "permissions", "--config", file],
    ] {
        let full = File::options().write(true).open("/dev/full").expect("Linux has it");
        let (code, told) = run(args, full.into()).await;
        assert_eq!(code, Some(1), "{args:?}: {told}");
        assert!(told.starts_with("stdout cannot be written: No space left"), "{args:?}: {told}");
        assert_eq!(told.lines().count(), 1, "{args:?}: {told}");
        // As `head` does, which has what it wants.
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let (code, told) = run(args, writer.into()).await;
        let expected = i32::from(args[0] != "--help");
        assert_eq!((code, told.as_str()), (Some(expected), ""), "{args:?}");
    }
}

#[tokio::test]
async fn topology_is_declared_as_published_as_often_as_one_likes() {
    let place = Place::new("topology");
    let vhost = Vhost::new().await;
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);

    let nobody = Ports::claim().expect("there are free ports");
    config.text("amqp", "uri", &format!("amqp://guest:guest@127.0.0.1:{}/%2f", nobody.first));
    let file = config.write(&place, "nobody.toml");
    let file = file.to_str().expect("the test's paths are UTF-8");
    let ended = run_ringcast(&["topology", "declare", "--config", file], &[], place.as_ref()).await;
    assert_eq!(ended.code, UNAVAILABLE, "{}", ended.stderr);
    assert!(ended.stderr.contains(&nobody.first.to_string()), "it names the broker: {}", ended.stderr);
    assert!(!ended.stderr.contains("guest:guest"), "no password: {}", ended.stderr);

    config.text("amqp", "uri", &vhost.uri());
    declare(&place, &config).await;
    let first = topology(&vhost).await;
    // Who administers the broker has no keys of Apple's.
    let mut of_broker = Config::bare();
    declare(&place, of_broker.text("amqp", "uri", &vhost.uri())).await;
    assert_eq!(topology(&vhost).await, first, "the second time changes nothing");
    let mut expected = TOPOLOGY.to_vec();
    expected.sort_unstable();
    assert_eq!(first, expected);
}

/// The arguments are final: to change one is to break everybody who declares the same queue.
const TOPOLOGY: [&str; 19] = [
    "exchange ringcast.dead headers durable",
    "exchange ringcast.ended fanout durable",
    "exchange ringcast.live fanout durable",
    "exchange ringcast.results topic durable",
    "binding ringcast.dead -> ringcast.dead  x-first-death-reason=maxlen x-match=all-with-x",
    "binding ringcast.dead -> ringcast.dead  x-first-death-reason=rejected x-match=all-with-x",
    "binding ringcast.dead -> ringcast.expired  x-first-death-reason=delivery_limit x-match=all-with-x",
    "binding ringcast.dead -> ringcast.expired  x-first-death-reason=expired x-match=all-with-x",
    "binding ringcast.ended -> ringcast.ended ",
    "binding ringcast.results -> ringcast.invalid-tokens invalid_token.#",
    "binding ringcast.results -> ringcast.outcomes outcome.#",
    "binding ringcast.results -> ringcast.quarantined-tokens quarantined_token.#",
    "queue ringcast.dead durable x-queue-type=quorum",
    "queue ringcast.ended durable x-max-age=10m x-queue-type=stream",
    "queue ringcast.expired durable x-dead-letter-exchange= x-dead-letter-routing-key=ringcast.dead \
     x-dead-letter-strategy=at-least-once x-delivery-limit=20 x-overflow=reject-publish x-queue-type=quorum",
    "queue ringcast.invalid-tokens durable x-queue-type=quorum",
    "queue ringcast.invites durable x-dead-letter-exchange=ringcast.dead x-dead-letter-strategy=at-least-once \
     x-delivery-limit=20 x-overflow=reject-publish x-queue-type=quorum",
    "queue ringcast.outcomes durable x-queue-type=quorum",
    "queue ringcast.quarantined-tokens durable x-queue-type=quorum",
];

/// What the broker itself says there is, a line each.
pub(crate) async fn topology(vhost: &Vhost) -> Vec<String> {
    let mut lines = Vec::new();
    for exchange in vhost.list("list_exchanges", &["name", "type", "durable"]).await {
        let name = text(&exchange["name"]);
        if !name.is_empty() && !name.starts_with("amq.") {
            lines.push(format!("exchange {name} {}{}", text(&exchange["type"]), durable(&exchange)));
        }
    }
    let columns = ["source_name", "destination_name", "routing_key", "arguments"];
    for binding in vhost.list("list_bindings", &columns).await {
        let source = text(&binding["source_name"]);
        if !source.is_empty() {
            let (to, key) = (text(&binding["destination_name"]), text(&binding["routing_key"]));
            lines.push(format!("binding {source} -> {to} {key}{}", arguments(&binding["arguments"])));
        }
    }
    for queue in vhost.list("list_queues", &["name", "durable", "arguments"]).await {
        lines.push(format!(
            "queue {}{}{}",
            text(&queue["name"]),
            durable(&queue),
            arguments(&queue["arguments"])
        ));
    }
    lines.sort();
    lines
}

fn durable(thing: &Value) -> &'static str {
    if thing["durable"] == true { " durable" } else { "" }
}

/// ` key=value` in the order of the keys. rabbitmqctl writes a table as an object, or as a list of triples.
fn arguments(arguments: &Value) -> String {
    let mut pairs: Vec<String> = match arguments {
        Value::Object(pairs) => pairs.iter().map(|(key, value)| format!(" {key}={}", text(value))).collect(),
        Value::Array(triples) => {
            triples.iter().map(|triple| format!(" {}={}", text(&triple[0]), text(&triple[2]))).collect()
        }
        _ => Vec::new(),
    };
    pairs.sort();
    pairs.concat()
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
