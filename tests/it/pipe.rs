//! `ringcast pipe`: the delivery core between standard input and output, without a broker.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use crate::apple::{Apple, DEAD};
use crate::place::Place;
use crate::plan::{now, written};
use crate::process::{POLL_EVERY, Process, RINGCAST};
use crate::worker::{Config, GRACE};

const ANSWERED_WITHIN: Duration = Duration::from_mins(1);

#[tokio::test]
async fn every_line_is_answered_and_the_end_of_input_is_the_end() {
    let place = Place::new("pipe");
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut pipe = start(&place, &apple);
    let dead = format!("{DEAD}{:060x}", 1);
    let lines = [
        invite("00000001-0000-4000-8000-000000000001", 60, &["ab01", &dead]),
        String::new(),
        "   ".to_owned(),
        "{ \"call_id\": ".to_owned(),
        invite("00000001-0000-4000-8000-000000000002", -5, &["ab02"]),
        invite("00000001-0000-4000-8000-000000000003", 60, &["xyz"]),
        // The last line may lack its newline.
        invite("00000001-0000-4000-8000-000000000004", 60, &["ab04"]),
    ];
    pipe.write(lines.join("\n").as_bytes()).await;
    pipe.close_stdin();
    let status = pipe.ended(ANSWERED_WITHIN).await;
    assert_eq!(status.code(), Some(0), "{}", pipe.last_words());

    let (outcomes, events) = results(&pipe.stdout());
    assert_eq!(outcomes.len(), 5, "blank lines are no invites: {outcomes:?}");
    let result = |call: u8| &outcomes[&format!("00000001-0000-4000-8000-{call:012}")];
    assert_eq!(result(1)["result"], "accepted");
    assert_eq!(result(1)["devices"][1]["result"], "invalid_token");
    assert_eq!(result(2)["result"], "expired");
    assert_eq!(result(3)["result"], "undeliverable");
    assert_eq!(result(3)["devices"][0]["action"], "fix_invite");
    assert_eq!(result(4)["result"], "accepted");
    assert_eq!(outcomes[""]["result"], "malformed");
    assert!(outcomes[""]["error"].as_str().is_some_and(|error| error.contains("JSON")), "{}", outcomes[""]);
    assert_eq!(events.len(), 1);
    assert_eq!((&events[0]["token"], &events[0]["confidence"]), (&json!(dead), &json!("dead")));

    let mut pushed: Vec<String> = apple.stop().await.iter().map(|push| push.token().to_owned()).collect();
    pushed.sort();
    assert_eq!(pushed, ["ab01".to_owned(), "ab04".to_owned(), dead]);
}

#[tokio::test]
async fn answers_come_while_input_is_open_and_sigterm_drains() {
    let place = Place::new("pipe-drain");
    // Long enough that the signal comes first.
    let apple = Apple::start(&place, (1_500, 1_500), "").await;
    let mut pipe = start(&place, &apple);
    pipe.write(format!("{}\n", invite("00000002-0000-4000-8000-000000000001", 60, &["ab01"])).as_bytes())
        .await;
    let until = Instant::now() + ANSWERED_WITHIN;
    while results(&pipe.stdout()).0.is_empty() {
        assert!(
            Instant::now() < until && pipe.lives(),
            "an answer before the input ends; {}",
            pipe.last_words()
        );
        sleep(POLL_EVERY).await;
    }

    // The connection is warm now: the second invite is under way when the first byte of it has been taken.
    pipe.write(format!("{}\n", invite("00000002-0000-4000-8000-000000000002", 60, &["ab02"])).as_bytes())
        .await;
    sleep(Duration::from_millis(500)).await;
    pipe.terminate();
    let status = pipe.ended(GRACE).await;
    assert_eq!(status.code(), Some(0), "{}", pipe.last_words());
    let (outcomes, _) = results(&pipe.stdout());
    let second = &outcomes["00000002-0000-4000-8000-000000000002"];
    assert_eq!(second["result"], "accepted", "what was started is finished");
}

#[tokio::test]
async fn it_is_one_shard_and_says_so() {
    let place = Place::new("pipe-shards");
    let apple = Apple::start(&place, (0, 0), "").await;
    let mut config = Config::new(&apple);
    config.set("worker", "shards", "3");
    let mut pipe = start_with(&place, config);
    pipe.write(invite("00000003-0000-4000-8000-000000000001", 60, &["ab01"]).as_bytes()).await;
    pipe.close_stdin();
    assert_eq!(pipe.ended(ANSWERED_WITHIN).await.code(), Some(0), "{}", pipe.last_words());
    let (outcomes, _) = results(&pipe.stdout());
    assert_eq!(outcomes["00000003-0000-4000-8000-000000000001"]["result"], "accepted");
    assert!(pipe.stderr().contains("this is one shard"), "{}", pipe.last_words());
    assert_eq!(apple.stop().await.len(), 1);
}

#[tokio::test]
async fn stdin_and_stdout_may_be_files_or_pipes_or_that_of_the_log() {
    let place = Place::new("pipe-shell");
    let apple = Apple::start(&place, (0, 0), "").await;
    for (way, number) in [
        (r#""$0" pipe --config "$1" < in > out; echo $? > status"#, 1),
        (r#"cat in | { "$0" pipe --config "$1"; echo $? > status; } | cat > out"#, 2),
        (
            r#"cat in | { "$0" pipe --config "$1" 2>&1; echo $? > status; } | grep '^{"type":"ringcast' > out"#,
            3,
        ),
        // A shell reads byte by byte, so that the pipe is full.
        (
            r#"cat in | { "$0" pipe --config "$1"; echo $? > status; } | while read -r line; do echo "$line"; done > out"#,
            4,
        ),
    ] {
        // More than a pipe holds; where the log goes to the same one, so few that no line is split.
        let calls: Vec<String> = (0..if number == 3 { 50 } else { 400 })
            .map(|call| format!("00000004-0000-4000-800{number}-{call:012}"))
            .collect();
        let invites: Vec<String> = calls.iter().map(|call| invite(call, 60, &["ab01"])).collect();
        place.write("in", invites.join("\n"));
        let config = config(Config::new(&apple), &place);
        let mut shell = Process::start("sh", &["-c", way, RINGCAST, &config], &[], place.as_ref(), "shell");
        assert_eq!(shell.ended(ANSWERED_WITHIN).await.code(), Some(0), "{way}: {}", shell.last_words());
        let file = |name: &str| std::fs::read_to_string(place.path(name)).expect("it was written");
        assert_eq!(file("status"), "0\n", "{way}: {}", shell.last_words());
        let (outcomes, _) = results(&file("out"));
        for call in &calls {
            assert_eq!(outcomes[call]["result"], "accepted", "{way}: {call}");
        }
        assert_eq!(outcomes.len(), calls.len(), "{way}");
    }
}

#[tokio::test]
async fn what_cannot_be_written_is_no_answer() {
    let place = Place::new("pipe-full");
    let apple = Apple::start(&place, (0, 0), "").await;
    place.write("in", invite("00000005-0000-4000-8000-000000000001", 60, &["ab01"]));
    let config = config(Config::new(&apple), &place);
    // A full disk, and one that was opened to be read.
    for way in [r#""$0" pipe --config "$1" < in > /dev/full"#, r#""$0" pipe --config "$1" < in 1< /dev/null"#]
    {
        let mut shell = Process::start("sh", &["-c", way, RINGCAST, &config], &[], place.as_ref(), "shell");
        assert_eq!(shell.ended(ANSWERED_WITHIN).await.code(), Some(1), "{way}: {}", shell.last_words());
        assert!(shell.last_words().contains("stdout takes no more"), "{way}: {}", shell.last_words());
    }
}

#[tokio::test]
async fn nobody_waits_for_whoever_should_read_the_log() {
    let place = Place::new("pipe-log");
    let apple = Apple::start(&place, (0, 0), "").await;
    let calls: Vec<String> = (0..400).map(|call| format!("00000006-0000-4000-8000-{call:012}")).collect();
    let invites: Vec<String> = calls.iter().map(|call| invite(call, 60, &["ab01"])).collect();
    place.write("in", invites.join("\n"));
    let mut config = Config::new(&apple);
    // More lines than a pipe holds.
    config.text("log", "level", "trace");
    let config = self::config(config, &place);
    // Open to be read, too, it is a pipe that is never read and never broken.
    let way = r#"mkfifo err && exec 3<> err && exec "$0" pipe --config "$1" < in > out 2>&3"#;
    let mut shell = Process::start("sh", &["-c", way, RINGCAST, &config], &[], place.as_ref(), "shell");
    assert_eq!(shell.ended(ANSWERED_WITHIN).await.code(), Some(0), "{}", shell.last_words());
    let out = std::fs::read_to_string(place.path("out")).expect("it was written");
    let (outcomes, _) = results(&out);
    assert!(calls.iter().all(|call| outcomes[call]["result"] == "accepted"), "{outcomes:?}");
    assert_eq!(outcomes.len(), calls.len());
}

fn start(place: &Place, apple: &Apple) -> Process {
    start_with(place, Config::new(apple))
}

fn config(mut config: Config, place: &Place) -> String {
    // Nobody is there: a pipe needs no broker.
    config.text("amqp", "uri", "amqp://guest:guest@127.0.0.1:9/%2f");
    let file = config.write(place, "pipe.toml");
    file.to_str().expect("the test's paths are UTF-8").to_owned()
}

fn start_with(place: &Place, given: Config) -> Process {
    let file = config(given, place);
    Process::start(RINGCAST, &["pipe", "--config", &file], &[], place.as_ref(), "pipe")
}

pub(crate) fn invite(call_id: &str, seconds_left: i64, tokens: &[&str]) -> String {
    let devices: Vec<Value> = tokens.iter().map(|token| json!({ "token": token })).collect();
    let deadline = written(now() + time::Duration::seconds(seconds_left));
    json!({ "call_id": call_id, "app": "acme", "deadline": deadline, "devices": devices }).to_string()
}

/// Outcomes by call id (empty where there is none), and events. A last line that is still being written is left out.
pub(crate) fn results(stdout: &str) -> (BTreeMap<String, Value>, Vec<Value>) {
    let whole = stdout.rfind('\n').map_or("", |end| &stdout[..end]);
    let mut outcomes = BTreeMap::new();
    let mut events = Vec::new();
    for line in whole.lines() {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"));
        if value["type"] == "ringcast.outcome.v1" {
            let call_id = value["call_id"].as_str().unwrap_or_default().to_owned();
            assert!(outcomes.insert(call_id, value).is_none(), "one outcome each: {line}");
        } else {
            assert_eq!(value["type"], "ringcast.invalid-token.v1", "{line}");
            events.push(value);
        }
    }
    (outcomes, events)
}
