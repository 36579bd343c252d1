//! When deliveries were taken from workers that held them. Only then may a call ring twice, although each attempt was answered.

use std::fmt;

use serde_json::Value;

use crate::contract::instant;
use crate::plan::{milliseconds, now};

/// How long after its loss a delivery may still be pushed by whoever had it: it goes on with what it has begun, hears of the loss
/// a moment later than the broker that caused it, and its request may be on the way to Apple's side.
const AFTERMATH_MS: i64 = 1_000;

/// How long before a worker says so it may have lost its deliveries: the broker knows it first.
const UNHEARD_MS: i64 = 2_000;

/// How a worker says that what it held was lost, whatever the reason: a busy machine is one, too.
const SAID: [&str; 2] = ["no session with the broker", "a queue of invites is not read"];

/// One of them, from just before it was brought about until it had surely happened.
#[derive(Clone, Debug)]
struct Loss {
    what: String,
    from_ms: i64,
    until_ms: i64,
}

/// All of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Losses(Vec<Loss>);

impl Losses {
    /// Notes what `bring` brings about.
    pub(super) async fn during<T>(&mut self, what: impl Into<String>, bring: impl Future<Output = T>) -> T {
        let from_ms = milliseconds(now());
        let brought = bring.await;
        self.0.push(Loss { what: what.into(), from_ms, until_ms: milliseconds(now()) });
        brought
    }

    /// Notes that a worker has ended with deliveries that it did not settle: its connection went first, a moment ago at most.
    pub(super) fn ended(&mut self, what: impl Into<String>) {
        let until_ms = milliseconds(now());
        self.0.push(Loss { what: what.into(), from_ms: until_ms - AFTERMATH_MS, until_ms });
    }

    /// Notes what a worker's log tells of.
    pub(super) fn heard(&mut self, worker: &str, log: &str) {
        for line in log.lines().filter(|line| SAID.iter().any(|said| line.contains(said))) {
            // The last one of a worker that was killed may be half a line.
            let Ok(line) = serde_json::from_str::<Value>(line) else { continue };
            let until_ms = instant(&line["timestamp"]);
            let what = format!("{worker}: {}", line["amqp.reason"]);
            self.0.push(Loss { what, from_ms: until_ms - UNHEARD_MS, until_ms });
        }
    }

    pub(super) fn extend(&mut self, others: &Self) {
        self.0.extend_from_slice(&others.0);
    }

    /// Whether one lies between two instants: a delivery whose push reached Apple's side at the first may have come again, and
    /// have been pushed at the second.
    pub(super) fn lie_between(&self, first_ms: i64, second_ms: i64) -> bool {
        self.0.iter().any(|loss| loss.from_ms <= second_ms && first_ms <= loss.until_ms + AFTERMATH_MS)
    }
}

impl fmt::Display for Losses {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let told: Vec<_> =
            self.0.iter().map(|loss| format!("{} {}..{}", loss.what, loss.from_ms, loss.until_ms)).collect();
        formatter.write_str(&told.join(", "))
    }
}

#[tokio::test]
async fn a_loss_excuses_what_it_lies_between_and_nothing_else() {
    let mut losses = Losses::default();
    losses.during("kill", async {}).await;
    let at_ms = losses.0[0].from_ms;
    losses.0[0].until_ms = at_ms + 10;
    assert!(losses.lie_between(at_ms - 5, at_ms + 5));
    assert!(
        losses.lie_between(at_ms + 10 + AFTERMATH_MS, at_ms + 5_000),
        "what was lost was pushed all the same"
    );
    assert!(!losses.lie_between(at_ms - 10, at_ms - 1), "both were before it");
    assert!(!losses.lie_between(at_ms + 11 + AFTERMATH_MS, at_ms + 5_000), "both were after it");
}

#[test]
fn what_a_worker_says_of_its_session_is_heard() {
    let mut losses = Losses::default();
    let line = |second, message| {
        format!(
            r#"{{"timestamp":"2026-11-21T09:30:{second:02}.5Z","amqp.reason":"closed","message":"{message}"}}"#
        )
    };
    let lines =
        [line(10, "no session with the broker; trying"), line(20, "the worker runs"), line(30, SAID[1])];
    losses.heard("first", &(lines.join("\n") + "\n{\"message\":\"no session with the bro"));
    let at_ms = |second| instant(&Value::String(format!("2026-11-21T09:30:{second:02}Z")));
    assert!(losses.lie_between(at_ms(9), at_ms(10)) && losses.lie_between(at_ms(30), at_ms(33)));
    assert!(!losses.lie_between(at_ms(12), at_ms(28)), "{losses}");
}
