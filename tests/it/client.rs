//! The foreign client of the broker: `client.py`, which see for the commands.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use crate::base64;

/// A message to publish.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outgoing {
    /// The body, whatever it is.
    pub(crate) body: Vec<u8>,
    /// AMQP properties by pika's names.
    pub(crate) properties: Value,
}

/// A message as it came out of a queue.
#[derive(Clone, Debug)]
pub(crate) struct Incoming {
    /// The body.
    pub(crate) body: Vec<u8>,
    /// The exchange that it was published to.
    pub(crate) exchange: String,
    /// With which key.
    pub(crate) routing_key: String,
    /// AMQP properties by pika's names; absent ones are absent.
    pub(crate) properties: Value,
}

impl Outgoing {
    /// The line that `client.py` reads.
    pub(crate) fn line(&self) -> String {
        let properties = if self.properties.is_null() { json!({}) } else { self.properties.clone() };
        json!({ "body": base64::encode(&self.body), "properties": properties }).to_string() + "\n"
    }
}

impl Incoming {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// A property that is a text; empty when absent.
    pub(crate) fn text(&self, property: &str) -> &str {
        self.properties[property].as_str().unwrap_or_default()
    }
}

/// Publishes persistent messages to a queue and waits for every confirm.
pub(crate) async fn publish(uri: &str, queue: &str, messages: &[Outgoing]) {
    let lines: String = messages.iter().map(Outgoing::line).collect();
    let printed = run(&[uri, "publish", queue], lines.into_bytes()).await;
    assert_eq!(printed[0]["confirmed"], messages.len(), "every message is confirmed");
}

/// Takes exactly `count` messages out of a queue.
pub(crate) async fn read(uri: &str, queue: &str, count: usize, within: Duration) -> Vec<Incoming> {
    let printed =
        run(&[uri, "read", queue, &count.to_string(), &within.as_secs().to_string()], Vec::new()).await;
    incoming(&printed)
}

/// Publishes messages that ask for a reply, and takes one for each: `how` is `queue` (of its own, exclusive, gone with it) or
/// `direct` (RabbitMQ's direct reply-to).
pub(crate) async fn call(
    uri: &str,
    queue: &str,
    messages: &[Outgoing],
    how: &str,
    within: Duration,
) -> Vec<Incoming> {
    let lines: String = messages.iter().map(Outgoing::line).collect();
    let printed = run(&[uri, "call", queue, &within.as_secs().to_string(), how], lines.into_bytes()).await;
    assert_eq!(printed.len(), messages.len(), "a reply to each");
    incoming(&printed)
}

/// Messages as `client.py` prints them.
fn incoming(printed: &[Value]) -> Vec<Incoming> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    printed
        .iter()
        .map(|message| Incoming {
            body: base64::decode(message["body"].as_str().unwrap_or_default()),
            exchange: text(&message["exchange"]),
            routing_key: text(&message["routing_key"]),
            properties: message["properties"].clone(),
        })
        .collect()
}

/// Waits until at least `count` messages lie ready in a queue, and gives their number then.
pub(crate) async fn await_depth(uri: &str, queue: &str, count: usize, within: Duration) -> usize {
    let printed =
        run(&[uri, "await", queue, &count.to_string(), &within.as_secs().to_string()], Vec::new()).await;
    let ready = printed[0]["ready"].as_u64().expect("client.py prints how many");
    usize::try_from(ready).expect("a queue's depth")
}

/// The number of messages that lie ready in a queue.
pub(crate) async fn depth(uri: &str, queue: &str) -> usize {
    await_depth(uri, queue, 0, Duration::from_secs(10)).await
}

async fn run(args: &[&str], input: Vec<u8>) -> Vec<Value> {
    let mut child = Command::new(python())
        .arg(program())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap_or_else(|error| panic!("client.py does not start: {error}"));
    let mut stdin = child.stdin.take().expect("it was asked for");
    // Beside the reading of its output, so that neither side waits for the other.
    let feed = tokio::spawn(async move { stdin.write_all(&input).await });
    let output = child.wait_with_output().await.expect("a child can be awaited");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    feed.await.expect("feeding does not panic").expect("client.py reads its input");
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).expect("client.py prints JSON lines")).collect()
}

/// `client.py`.
pub(crate) fn program() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/client.py")
}

/// The Python that has pika.
pub(crate) fn python() -> PathBuf {
    let python = std::env::var_os("RINGCAST_TEST_PYTHON")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python"), PathBuf::from);
    assert!(
        python.is_file(),
        "no Python with pika at {}: run 'tests/run prepare', or set RINGCAST_TEST_PYTHON",
        python.display()
    );
    python
}
