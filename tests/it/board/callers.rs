//! Call servers of three apps: a steady flow of calls, most of them good.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::watch::Receiver;
use tokio::time::{Instant, sleep_until};

use crate::apple::DEAD;
use crate::base64;
use crate::client;
use crate::plan::{now, written};
use crate::process::Process;

/// The pause between two calls.
const PACE: Duration = Duration::from_millis(25);
/// Device tokens that begin so are of another app or environment, by Apple's word.
pub(super) const SUSPECT: &str = "5b5bec";
/// Device tokens that begin so had too many pushes.
pub(super) const THROTTLED: &str = "4290";

/// What those who publish do wrong, while they do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    Malformed,
    BadToken,
    UnknownField,
    ClockAhead,
    TooLate,
    /// Published three times, so that one of two workers has it twice.
    Again,
}

impl Mistake {
    /// Each in turn, and as many good calls.
    fn of(number: usize) -> Option<Self> {
        use Mistake::{Again, BadToken, ClockAhead, Malformed, TooLate, UnknownField};
        [Malformed, BadToken, UnknownField, ClockAhead, TooLate, Again].get(number % 12).copied()
    }
}

/// See the module. Clones are the same ones.
#[derive(Clone, Default)]
pub(super) struct Callers {
    err: Arc<AtomicBool>,
}

impl Callers {
    /// From now on they make mistakes, or none any more.
    pub(super) fn err(&self, err: bool) {
        self.err.store(err, Relaxed);
    }

    /// Calls until it is over. The publisher does not give up where the broker is away.
    pub(super) async fn call(self, place: PathBuf, uri: String, over: Receiver<bool>) {
        let (python, program) = (client::python(), client::program());
        let text = |path: &std::path::Path| path.to_str().expect("the test's paths are UTF-8").to_owned();
        let args = [&text(&program), &uri, "tide"];
        let mut publisher = Process::start(&text(&python), &args, &[], &place, "callers");
        let mut next = Instant::now();
        for number in 0.. {
            if *over.borrow() {
                break;
            }
            sleep_until(next).await;
            let mistake = if self.err.load(Relaxed) { Mistake::of(number) } else { None };
            let line = message(number, mistake);
            let copies = if mistake == Some(Mistake::Again) { 3 } else { 1 };
            publisher.write(line.repeat(copies).as_bytes()).await;
            next = (next + PACE).max(Instant::now());
        }
        publisher.kill().await;
    }
}

/// Of ten calls six are for one app, three for another, one for the third; of five one is for the sandbox.
fn message(number: usize, mistake: Option<Mistake>) -> String {
    let app =
        ["acme", "globex", "acme", "acme", "umbra", "acme", "globex", "acme", "globex", "acme"][number % 10];
    let devices: Vec<Value> = (0..=number % 2).map(|place| device(number, place, mistake)).collect();
    let ahead = if mistake == Some(Mistake::ClockAhead) { 8 } else { 0 };
    let deadline = if mistake == Some(Mistake::TooLate) { now() } else { now() + rings_for(number) };
    let mut invite = json!({
        "call_id": format!("b0a4d000-0000-4000-8000-{number:012x}"),
        "app": app,
        "created_at": written(now() + time::Duration::seconds(ahead)),
        "deadline": written(deadline),
        "devices": devices,
    });
    match mistake {
        Some(Mistake::Malformed) => invite["deadline"] = json!("in half a minute"),
        Some(Mistake::UnknownField) => invite["has_vidoe"] = json!(true),
        _ => {}
    }
    let message = json!({
        "id": number,
        "routing_key": "ringcast.invites",
        "body": base64::encode(invite.to_string().as_bytes()),
        "properties": { "message_id": format!("board-{number}") },
    });
    format!("{message}\n")
}

/// Callers differ in patience: 10 to 28 s.
fn rings_for(number: usize) -> time::Duration {
    time::Duration::seconds(i64::try_from(10 + number * 7 % 19).expect("small"))
}

/// Every phone has a token of its own; now and then it is one that Apple does not like.
fn device(number: usize, place: usize, mistake: Option<Mistake>) -> Value {
    let begin = match number {
        _ if mistake == Some(Mistake::BadToken) && place == 0 => "no hex",
        _ if mistake == Some(Mistake::ClockAhead) => SUSPECT,
        number if number % 43 == 5 => DEAD,
        number if number % 397 == 7 => SUSPECT,
        number if number % 211 == 3 => THROTTLED,
        _ => "a11e",
    };
    let mut device = json!({ "token": format!("{begin}{number:0width$x}", width = 60 - begin.len()) + &format!("{place:04x}") });
    if number % 5 == 3 {
        device["environment"] = json!("sandbox");
    }
    device
}
