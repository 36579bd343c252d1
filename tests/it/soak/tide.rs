//! The calls: made at a steady pace, and published by a foreign client that does not give up.

use std::collections::BTreeMap;
use std::time::Duration;

use ringcast::pause::Jitter;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use super::{INVITES, SPARE};
use crate::apple::DEAD;
use crate::base64;
use crate::client;
use crate::place::Place;
use crate::plan::{now, written};
use crate::process::Process;

/// The pause between two calls.
const PACE: Duration = Duration::from_millis(8);
/// How long a call rings, in seconds: longer than the broker is usually away.
const RINGS_FOR: (f64, f64) = (12.0, 22.0);
/// Device tokens that begin so are taken by Apple's side and never answered.
const SILENT: &str = "511e";
pub(super) const SILENCE: &str = "\n[[fault]]\ntoken_prefix = \"511e\"\ndo = \"silence\"\n";
/// The publisher goes on as long as there is something to confirm.
const CONFIRMED_WITHIN: Duration = Duration::from_mins(2);

/// What becomes of a device's pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phone {
    Good,
    /// Apple says 410.
    Dead,
    /// Apple says nothing.
    Silent,
}

impl Phone {
    pub(super) fn of(token: &str) -> Self {
        match &token[..4] {
            DEAD => Self::Dead,
            SILENT => Self::Silent,
            _ => Self::Good,
        }
    }
}

/// One call as it was published.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) id: String,
    pub(super) tokens: Vec<String>,
    pub(super) deadline_ms: i64,
    /// How often its invite was published: more than once where a confirm did not come.
    pub(super) tries: u64,
    queue: &'static str,
}

pub(super) struct Tide {
    publisher: Process,
    dice: Jitter,
    calls: Vec<Call>,
    /// Nothing goes to the spare queue.
    spared: bool,
}

impl Tide {
    pub(super) fn start(place: &Place, uris: &[String], dice: Jitter) -> Self {
        let (python, program) = (client::python(), client::program());
        let text = |path: &std::path::Path| path.to_str().expect("the test's paths are UTF-8").to_owned();
        let args = [&text(&program), &uris.join(","), "tide"];
        let publisher = Process::start(&text(&python), &args, &[], place.as_ref(), "tide");
        Self { publisher, dice, calls: Vec::new(), spared: false }
    }

    /// From now on the spare queue gets nothing, or something again.
    pub(super) fn spare(&mut self, spared: bool) {
        self.spared = spared;
    }

    /// Whether every call for the spare queue is confirmed.
    pub(super) fn is_spare_confirmed(&self) -> bool {
        let confirmed = self.confirmed();
        let mut spare = self.calls.iter().enumerate().filter(|(_, call)| call.queue == SPARE);
        spare.all(|(number, _)| confirmed.contains_key(&number))
    }

    /// How often each confirmed call was published.
    fn confirmed(&self) -> BTreeMap<usize, u64> {
        let text = self.publisher.stdout();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        let read = |line: &str| {
            let told: Value = serde_json::from_str(line).expect("client.py prints JSON lines");
            let number = |field: &str| told[field].as_u64().expect("client.py prints numbers");
            (usize::try_from(number("confirmed")).expect("a number of ours"), number("tries"))
        };
        whole.lines().map(read).collect()
    }

    /// The next call as a line for the publisher.
    fn next(&mut self) -> String {
        let number = self.calls.len();
        let (least, most) = RINGS_FOR;
        let ring_for = Duration::from_secs_f64(least + self.dice.draw() * (most - least));
        let deadline = now() + ring_for;
        let queue = if number % 10 == 7 && !self.spared { SPARE } else { INVITES };
        let tokens: Vec<String> = (0..=number % 3)
            .map(|place| {
                let kind = match self.dice.draw() {
                    draw if draw < 0.04 => DEAD,
                    // A call in the spare queue is soon over, so that the queue can run empty.
                    draw if draw < 0.045 && queue == INVITES => SILENT,
                    _ => "a11e",
                };
                format!("{kind}{number:056x}{place:04x}")
            })
            .collect();
        let call_id = format!("50a40000-0000-4000-8000-{number:012x}");
        let devices: Vec<Value> = tokens.iter().map(|token| json!({ "token": token })).collect();
        let body = json!({
            "call_id": call_id,
            "app": "acme",
            "deadline": written(deadline),
            "created_at": written(now()),
            "devices": devices,
        });
        self.calls.push(Call {
            id: call_id,
            tokens,
            deadline_ms: i64::try_from(deadline.unix_timestamp_nanos() / 1_000_000).expect("within our era"),
            tries: 0,
            queue,
        });
        let message = json!({
            "id": number,
            "routing_key": queue,
            "body": base64::encode(body.to_string().as_bytes()),
            "properties": {
                "message_id": format!("soak-{number}"),
                "correlation_id": number.to_string(),
                "expiration": ring_for.as_millis().to_string(),
            },
        });
        format!("{message}\n")
    }

    async fn call(&mut self) {
        let line = self.next();
        self.publisher.write(line.as_bytes()).await;
    }

    /// Waits until every call is confirmed, and gives them.
    pub(super) async fn end(mut self) -> Vec<Call> {
        self.publisher.close_stdin();
        let status = self.publisher.ended(CONFIRMED_WITHIN).await;
        assert!(status.success(), "{}", self.publisher.last_words());
        let confirmed = self.confirmed();
        for (number, call) in self.calls.iter_mut().enumerate() {
            call.tries = *confirmed.get(&number).expect("the publisher ends when all is confirmed");
        }
        self.calls
    }
}

/// Lets the calls come until it is over. A publisher that waits for the broker holds them up.
pub(super) async fn flow(tide: &Mutex<Tide>, over: Receiver<bool>) {
    let mut next = Instant::now();
    while !*over.borrow() {
        sleep_until(next).await;
        tide.lock().await.call().await;
        next = (next + PACE).max(Instant::now());
    }
}
